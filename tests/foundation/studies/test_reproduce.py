"""`make reproduce` makes what is missing in `results.csv`, with what that needs, and nothing else."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import tests.foundation.toy  # noqa: F401 (its classes, by their bare names)
from foundation.runtime.runs import write_summary
from foundation.studies import continual, reproduce
from foundation.studies.reproduce import Plan, complete, is_tested, main, missing
from foundation.studies.rows import Durations, collect, read, rows_of, write
from foundation.studies.study import Study

ROOT = Path(__file__).parents[3]
ROWS, PAGE = Path("experiments/results.csv"), Path("RESULTS.md")
TOY = ["--config=toy.yaml", "--trainer.max_epochs=1", "--trainer.enable_model_summary=false"]
TESTED = [*TOY, "--then_test", "true"]


def write_study(name, paper, **settings):
    file = Path("experiments/studies", paper, f"{name}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"# About {name}.\n" + yaml.safe_dump({"seeds": [0], "paper": paper, **settings}))


@pytest.fixture
def folder(toy_folder):
    """Two papers, the run of one of which reads a file of an untested run of a third study."""
    write_study("x", "csiclip", pretrain={"a": TESTED, "b": TESTED}, tuned_on="links")
    write_study("y", "contwin", pretrain={"c": [*TESTED, "--data.missing=runs/z/pretrain-first/config.yaml"]})
    write_study("z", "contwin", pretrain={"first": TOY})
    return toy_folder


@pytest.fixture
def call(folder, monkeypatch, capfd):
    """Call the command, and return its exit status and what it printed."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["reproduce", *args])
        with pytest.raises(SystemExit) as leaving:
            main()
        told = capfd.readouterr()
        return leaving.value.code, told.out, told.err

    return call


def made():
    """Return the runs that lie in `runs`."""
    return sorted(str(file.parent.relative_to("runs")) for file in Path("runs").glob("*/*/summary.json"))


def test_it_makes_every_row_and_then_nothing(call):
    status, out, err = call()
    assert status == 0
    assert out.startswith("rows in experiments/results.csv are missing of 3 runs of x, y: 4 runs, about 4 min on the")
    assert "4 min of it a guess" in out
    assert "[4/4] y/pretrain-c: 100 % of all" in err
    assert made() == ["x/pretrain-a", "x/pretrain-b", "y/pretrain-c", "z/pretrain-first"]
    rows = read(ROWS)
    assert [(row.experiment, row.run, row.metric) for row in rows] == [
        ("x", "pretrain-a", "loss"), ("x", "pretrain-b", "loss"), ("y", "pretrain-c", "loss")
    ]  # fmt: skip
    assert rows[0].tuned_on == "links"
    assert "### x" in PAGE.read_text()
    PAGE.unlink()
    before = ROWS.stat().st_mtime_ns
    assert call()[:2] == (0, "nothing is missing: experiments/results.csv has all rows of x, y, z\n")
    assert (ROWS.stat().st_mtime_ns, PAGE.exists()) == (before, False)


def test_on_a_fresh_clone_a_deleted_row_is_made_alone_with_what_it_needs(call):
    call()
    rows = [replace(row, value=7.0, wall_s=120.0) for row in read(ROWS)]  # of another machine
    write(ROWS, rows[:2])
    shutil.rmtree("runs")
    status, out, _ = call()
    assert status == 0
    assert out.startswith("rows in experiments/results.csv are missing of 1 run of y: 2 runs, about 4 min")
    assert made() == ["y/pretrain-c", "z/pretrain-first"]
    assert read(ROWS)[:2] == rows[:2]
    assert read(ROWS)[2].value != 7.0


def test_a_run_that_lost_one_of_its_metrics_is_made_again_and_takes_no_more_than_its_like(call):
    study = Study.named("x")
    summary = {"experiment": "x", "run_id": "a-los-probe-s0", "head": "los", "mode": "probe", "seed": 0, "wall_s": 30.0}
    rows = rows_of({**summary, "metrics": {"test/f1": 0.5, "test/accuracy": 0.25}}, study)
    study = replace(study, seeds=[0, 1], pretrain={"a": TOY}, tasks=["los"], modes=["probe"])
    Path("experiments/finetune").mkdir()
    Path("experiments/finetune/los.yaml").write_text("then_test: true\n")
    assert [each.run for each in missing([study], rows, Path("runs"))] == ["a-los-probe-s1"]
    wanted = missing([study], rows[1:], Path("runs"))
    assert [each.run for each in wanted] == ["a-los-probe-s0", "a-los-probe-s1"]
    plan = Plan(wanted, rows[1:], Path("runs"))
    assert {run: job.seconds for (_, run), job in plan.jobs.items()} == {
        "pretrain-a": 60.0, "a-los-probe-s0": 30.0, "a-los-probe-s1": 30.0
    }  # fmt: skip
    assert (
        plan.summary()
        == "3 runs, about 2 min on the hardware of the existing rows, 60 s of it a guess without rows of such runs"
    )


def test_a_run_takes_as_long_as_its_like_and_a_zero_shot_test_not_as_long_as_a_training(folder):
    def rows(experiment, run, seconds):
        summary = {"experiment": experiment, "run_id": run, "metrics": {"test/loss": 0.5}, "wall_s": seconds}
        return rows_of(summary, Study.named("x"))

    held = [*rows("x", "pretrain-q", 500.0), *rows("x", "b-los-probe-s0", 6.0)]
    held += [row for data in ("d", "e") for row in rows("y", f"c-zeroshot-@{data}-s0", 300.0)]
    durations = Durations(held)
    seconds = durations.of
    assert [seconds("y", "pretrain-c-s1"), seconds("x", "b-los-probe-s4")] == [300.0, 6.0]
    assert durations.guessed == 0.0
    assert [seconds("x", "pretrain-new"), seconds("x", "new-los-probe-s0")] == [500.0, 6.0], "as others of the study"
    assert seconds("z", "pretrain-new") == 400.0, "as pre-trainings of other studies"
    assert [seconds("y", "c-zeroshot-@d-s1"), seconds("z", "new-los-probe-s0")] == [20.0, 60.0]


def test_one_paper_or_study_is_made_alone(call):
    assert call("csiclip")[0] == 0
    assert made() == ["x/pretrain-a", "x/pretrain-b"]
    assert call("z")[1].startswith("nothing is missing")
    status, _, err = call("nonsense")
    assert status == 2
    assert err.startswith("error: no paper and no study 'nonsense': papers are csiclip, envchannel")


def test_it_goes_on_after_a_run_that_failed(call):
    write_study("x", "csiclip", pretrain={"a": TESTED, "b": [*TESTED, "--model.complain=stop"]})
    status, _, err = call("x")
    assert status == 2
    assert "error: stop" in err
    assert [row.run for row in read(ROWS)] == ["pretrain-a"]
    assert "### x" in PAGE.read_text()
    write_study("x", "csiclip", pretrain={"a": TESTED, "b": TESTED})
    assert "[1/1] x/pretrain-b" in call("x")[1]
    assert [row.run for row in read(ROWS)] == ["pretrain-a", "pretrain-b"]


def test_rows_of_runs_that_lie_there_finished_are_taken(call):
    call()
    rows = read(ROWS)
    write(ROWS, rows[1:])
    assert call()[1].startswith("rows in experiments/results.csv are missing of 1 run of x: 0 runs, about 0 s")
    assert read(ROWS) == rows


def test_a_refinement_is_made_alone(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(continual, "refine", lambda study, runs: asked.append(study) or 0)
    methods = {"top": {"rule": "top"}, "random": {"rule": "random", "counts": [8]}}
    further = {"worlds": ["target"], "count": 2, "methods": ["top"]}
    write_study(
        "r", "csifeedback", seeds=[0, 1], pretrain={"twin": TESTED, "city": TESTED}, pretrain_per_seed=True,
        sizes=[10, 20], refine={"counts": [2, 4], "methods": methods, "continual": further},
    )  # fmt: skip
    study = Study.named("r")
    wanted = {each.run: each for each in missing([study], [], Path("runs"))}
    assert len(wanted) == 8 + 2 * 4

    def make(run, name):
        jobs = Plan([wanted[run]], [], Path("runs")).jobs
        assert [job for _, job in jobs] == [name or run]
        asked.clear()
        return jobs["r", name or run].make

    assert make("random-n8-s1", "")() == 0
    (part,) = asked
    assert (part.seeds, part.sizes, list(part.pretrain)) == ([1], [20], ["twin"])
    assert part.refine == {"methods": {"random": {"rule": "random", "counts": [8]}}}
    for run in ("top-to-target-s0", "pretrain-twin-n20-s0"):
        make(run, "all of s0")()
        assert asked == [replace(study, seeds=[0])], "hangs together with all of its seed"
    assert "partial" not in repr(make("pretrain-city-n20-s0", "")), "a run of the command line"
    every = [job for _, job in Plan([*wanted.values()], [], Path("runs")).jobs]
    assert [job for job in every if "city" not in job] == [
        "pretrain-twin-n10-s0",
        "all of s0",
        "pretrain-twin-n10-s1",
        "all of s1",
    ]


def test_what_is_refined_is_complete_once_it_is_decided_on(folder):
    write_study(
        "r", "csifeedback", pretrain={"twin": TESTED, "city": TESTED}, pretrain_per_seed=True,
        refine={"counts": [2], "methods": {"top": {"rule": "top"}},
                "continual": {"worlds": ["target"], "count": 2, "methods": ["top"]}},
    )  # fmt: skip
    study, runs = Study.named("r"), Path("runs")
    wanted = {each.run: each for each in missing([study], [], runs)}
    added = {
        "top-n2-s0": ["refine/replaces"], "top-to-target-s0": ["refine/twin_nmse_db"],
        "pretrain-twin-s0": ["refine/held_nmse_db", "refine/twin_nmse_db"], "pretrain-city-s0": [],
    }  # fmt: skip
    assert added.keys() == wanted.keys()
    for run, names in added.items():
        assert not complete(study, run, runs)
        metrics = {"test/nmse_db": -5.0}
        for name in names:  # a kill between training and what is found of it
            write_summary(runs / "r" / run / "summary.json", {"metrics": metrics})
            assert not complete(study, run, runs)
            assert Plan([wanted[run]], [], runs).jobs
            metrics[name] = 1.0
        write_summary(runs / "r" / run / "summary.json", {"metrics": metrics})
        assert complete(study, run, runs)
        assert not Plan([wanted[run]], [], runs).jobs


def test_a_zero_shot_test_has_the_rows_that_make_results_gives_it(call):
    write_study("q", "contwin", pretrain={"a": TOY}, zero_shot=["--config", "{run}/config.yaml"])
    own = {
        "pretrain-a": {"n_train": 75, "wall_s": 48.5, "metrics": {}},
        "a-zeroshot-s0": {"n_train": 9, "wall_s": None},
    }
    for run, told in own.items():
        told = {"experiment": "q", "run_id": run, "metrics": {"test/loss": 0.5}, **told}
        write_summary(Path("runs/q", run, "summary.json"), told)
    assert "1 run of q: 0 runs, about 0 s" in call("q")[1]
    rows = read(ROWS)
    assert [(row.run, row.n_train, row.wall_s) for row in rows] == [("a-zeroshot-s0", 75, 48.5)]
    assert rows == collect(Path("runs"), Study.named("q"))


def test_a_command_is_tested_by_its_name_its_yaml_or_its_option(folder):
    Path("tested.yaml").write_text("then_test: true\n")
    assert is_tested(["test", "--config=toy.yaml", "--then_test", "false"]), (
        "an argument of the study, for its training"
    )
    assert not is_tested(["fit", "--config", "toy.yaml"])
    assert is_tested(["fit", "--config", "toy.yaml", "--config=tested.yaml"])
    assert not is_tested(["fit", "--config=tested.yaml", "--then_test", "false"])
    assert not is_tested(["fit", "--config=tested.yaml", "--then_test=false"])


def test_a_run_that_no_study_makes_is_named(call):
    write_study("y", "contwin", pretrain={"c": [*TESTED, "--data.missing=runs/z/pretrain-second/config.yaml"]})
    status, _, err = call("y")
    assert status == 2
    assert err == "error: study y: needs the run pretrain-second of z, which makes no such run\n"
    assert reproduce.refinements(Study.named("y")) == []


def test_each_study_is_listed_once_for_all_that_its_runs_need(call, monkeypatch):
    zero_shot = {f"d{number}": [f"--seed_everything={number}"] for number in range(4)}
    write_study("q", "contwin", pretrain={"a": TOY}, zero_shot=["--config", "{run}/config.yaml"], data=zero_shot)
    study, listed = Study.named("q"), []
    wanted = missing([study], [], Path("runs"))
    monkeypatch.setattr(
        Study, "commands", lambda self, runs, own=Study.commands: listed.append(self) or own(self, runs)
    )
    assert len(Plan(wanted, [], Path("runs")).jobs) == 1 + 4
    assert listed == [study]


def test_what_is_missing_is_known_without_the_slow_imports():
    code = (
        "import sys; from pathlib import Path; from foundation.studies.reproduce import choose, missing\n"
        "assert any(each.args is None for each in missing(choose(''), [], Path('runs'))), 'studies with a refinement'\n"
        "print(sorted({'torch', 'lightning', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
