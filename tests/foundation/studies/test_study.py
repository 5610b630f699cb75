"""Studies name every run once, and results find the variant in the name again."""

import json
from pathlib import Path

import pytest

from datamodules.errors import InputError
from foundation.studies import reproduce, run
from foundation.studies.rows import collect, data_of, rows_of, variant_of
from foundation.studies.run import main
from foundation.studies.run_list import finished
from foundation.studies.study import Study, find
from foundation.studies.tables import table

X = Study("x", [0])


def flag(args, name):
    return args[args.index(name) + 1]


def test_one_pretraining_serves_all_seeds_or_each_has_its_own():
    settings = {
        "name": "x",
        "seeds": [0, 1],
        "tasks": ["los"],
        "pretrain": {"a": ["--config", "a.yaml"]},
        "modes": ["probe"],
    }
    shared = dict(Study(**settings).commands(Path("runs")))
    assert list(shared) == ["pretrain-a", "a-los-probe-s0", "a-los-probe-s1"]
    assert flag(shared["a-los-probe-s1"], "--model.checkpoint") == "runs/x/pretrain-a/checkpoints/best.ckpt"
    own = dict(Study(**settings, pretrain_per_seed=True).commands(Path("runs")))
    assert list(own)[:2] == ["pretrain-a-s0", "pretrain-a-s1"]
    assert flag(own["pretrain-a-s1"], "--seed_everything") == "1"
    assert flag(own["a-los-probe-s1"], "--model.checkpoint") == "runs/x/pretrain-a-s1/checkpoints/best.ckpt"


@pytest.mark.parametrize("runs", ["runs", "runs/mine", "elsewhere"])
def test_a_study_in_any_folder_of_runs_finds_its_own_and_those_of_other_studies(runs):
    study = Study(
        "x", [0], tasks=["los"], pretrain={"a": []}, modes=["probe"], checkpoints={"b": "runs/y/b-s{seed}/best.ckpt"}
    )
    commands = dict(study.commands(Path(runs)))
    assert flag(commands["pretrain-a"], "--runs") == runs
    assert flag(commands["a-los-probe-s0"], "--model.checkpoint") == f"{runs}/x/pretrain-a/checkpoints/best.ckpt"
    assert flag(commands["b-los-probe-s0"], "--model.checkpoint") == f"{runs}/y/b-s0/best.ckpt"


def test_every_variant_is_pretrained_with_each_size():
    study = Study(
        name="x", seeds=[0, 1], pretrain={"twin": ["--config", "a.yaml"], "city": []}, sizes=[10, 5120],
        available={"city": 4000}, pretrain_per_seed=True,
    )  # fmt: skip
    commands = dict(study.commands(Path("runs")))
    assert len(commands) == 8
    sizes = [flag(commands[f"pretrain-city-n{size}-s0"], "--data.num_labels") for size in (10, 5120)]
    assert sizes == ["10", "4000"]
    assert flag(commands["pretrain-twin-n5120-s1"], "--data.num_labels") == "5120"
    assert variant_of("pretrain-twin-n5120-s1", "", "pretrain") == "twin-n5120"


def test_a_wide_table_leaves_out_the_details():
    names = ["cosine", "grid_cosine", "cosine_p10", *(f"cosine_of_{n}" for n in range(1, 20)), "cosine_los", "rate"]
    names += ["cosine_nlos_p10", "hit_rate"]
    summary = {
        "experiment": "x", "run_id": "pretrain-full-s0", "head": None, "mode": "pretrain", "seed": 0, "split": "random",
        "metrics": {f"test/{name}": 0.5 for name in names},
    }  # fmt: skip
    head = table(rows_of(summary, X)).splitlines()[0]
    shown = "cosine | grid_cosine | cosine_p10 | cosine_los | rate | cosine_nlos_p10 | hit_rate"
    assert head.startswith(f"| pre-training | mode | labels | {shown} | trained parameters |")


def test_a_study_says_what_is_wrong_in_one_line(tmp_path, monkeypatch, capsys):
    file = tmp_path / "x.yaml"
    file.write_text("seeds: [0]\nrefine: {counts: [1]}\n")
    monkeypatch.setattr("sys.argv", ["study", str(file), "--runs", str(tmp_path)])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith("error: study x: refine needs methods by name")


@pytest.mark.parametrize("name", ["", "foo"])
def test_a_study_that_there_is_not_is_one_line(name, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[3])
    monkeypatch.setattr("sys.argv", ["study", name])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: no study '{name}' in experiments/studies: must be one of ")
    assert "demo" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", [run, reproduce])
def test_an_interruption_between_two_runs_is_one_line(command, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.chdir(Path(__file__).parents[3])
    monkeypatch.setattr(command, "run_study" if command is run else "reproduce", stop)
    monkeypatch.setattr("sys.argv", ["study", "demo"])
    with pytest.raises(SystemExit) as leaving:
        command.main()
    assert leaving.value.code == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on\n"


def test_the_old_name_of_its_data_is_read(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("seeds: [0]\nplaces: {here: [--data.seed, '3']}\n")
    with pytest.warns(FutureWarning, match="write data"):
        assert Study.load(file).data == {"here": ["--data.seed", "3"]}


def test_data_and_checkpoints_of_another_study():
    study = Study(
        name="x", seeds=[0, 1], tasks=["los"], modes=["probe"], data={"here": ["--data.seed", "3"], "there": []},
        checkpoints={"big": "runs/y/pretrain-big-s{seed}/checkpoints/best.ckpt"},
        baselines={"vit": ["--model.mode", "scratch", "--model.checkpoint", "runs/s{seed}.ckpt"]},
        zero_shot=["--config", "{run}/config.yaml"],
    )  # fmt: skip
    commands = dict(study.commands(Path("runs")))
    assert len(commands) == 4 + 8
    tested = commands["big-zeroshot-@there-s1"]
    assert tested[0] == "test"
    assert flag(tested, "--config") == "runs/y/pretrain-big-s1/config.yaml"
    assert flag(tested, "--ckpt_path") == "runs/y/pretrain-big-s1/checkpoints/best.ckpt"
    assert flag(commands["vit-los-scratch-@here-s1"], "--model.checkpoint") == "runs/s1.ckpt"


def test_each_city_has_encoders_that_were_pretrained_for_it():
    study = Study(
        name="x", seeds=[0, 1], tasks=["los"], modes=["probe"], pretrain={"a": ["--config", "a.yaml"]}, args=["--all"],
        data={"munich": ["--munich"], "losangeles": ["--la"]}, checkpoints={"b": "runs/y/pretrain-b-@{data}/best.ckpt"},
        pretrain_on={"munich": ["--paris"], "losangeles": ["--ny"]},
    )  # fmt: skip
    commands = dict(study.commands(Path("runs")))
    assert list(commands)[:2] == ["pretrain-a-@munich", "pretrain-a-@losangeles"]
    assert commands["pretrain-a-@losangeles"][-3] == "--ny", "after what all runs share"
    assert len(commands) == 2 + 8
    own, other = commands["a-los-probe-@losangeles-s1"], commands["b-los-probe-@munich-s0"]
    assert flag(own, "--model.checkpoint") == "runs/x/pretrain-a-@losangeles/checkpoints/best.ckpt"
    assert flag(other, "--model.checkpoint") == "runs/y/pretrain-b-@munich/best.ckpt"
    assert (variant_of("pretrain-a-@munich", "", "pretrain"), data_of("pretrain-a-@munich")) == ("a", "munich")


def test_studies_are_found_in_folders(tmp_path):
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper/x.yaml").write_text("seeds: [0]\npaper: csiclip\n")
    assert Study.named("x", tmp_path).paper == "csiclip"
    with pytest.raises(InputError, match=r"no study 'y' in .*: must be one of x"):
        find("y", tmp_path)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("data: {a: []}\nareas: {b: []}", "has both 'data' and 'areas'"),
        ("data: {a: []}\npretrain_on: {b: []}", "'pretrain_on' must name what 'data' names: a"),
        ("seeds: 0", "'seeds' must be a list of whole numbers, got 0"),
        ("seeds: []", "'seeds' must be at least one number"),
        ("seeds: [true]", "'seeds' must be a list of whole numbers"),
        ("tasks: los", "'tasks' must be a list of words"),
        ("pretrain: {a: --config x}", "'pretrain' must be names with a list of words"),
        ("baselines: {a: [--model.mode, scratch, --model.lr, 0.1]}", "numbers among them in quotes"),
        ("baselines: {a/b: [--model.mode, scratch]}", "'baselines' names 'a/b' is no plain name"),
        ("tasks: [los]\nbaselines: {a: [--model.lr, '1']}", "each baseline needs --model.mode"),
        ("tasks: [los]\ncheckpoints: {a: 'runs/{foo}/x.ckpt'}", r"checkpoints take \{seed\} and \{data\}.*foo"),
        ("checkpoints: {a: x.ckpt}\nzero_shot: ['{run}/config.yaml']", "are runs/STUDY/RUN/checkpoints/best.ckpt"),
        ("only: {b: [los]}\nbaselines: {a: [--model.mode, scratch]}", "'only' names b, which is none of a"),
        ("available: {b: 3}", "'available' names b, which is none of none"),
        ("refine: [a]", "'refine' must be names with any value"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, settings, problem):
    seeds = "" if settings.startswith("seeds") else "seeds: [0]\n"
    (tmp_path / "x.yaml").write_text(f"{seeds}{settings}\n")
    with pytest.raises(InputError, match=problem):
        Study.load(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("run_id", "head", "mode", "variant"),
    [
        ("newyork-beam-probe-s0", "beam", "probe", "newyork"),
        ("vit-toft_beam-scratch-@a-s12", "beam", "scratch", "vit-toft_beam"),
        ("full-zeroshot-@a-s1", "", "zeroshot", "full"),
        ("pretrain-full-s0", "", "zeroshot", "full"),
    ],
)
def test_variants(run_id, head, mode, variant):
    assert variant_of(run_id, head, mode) == variant


def test_a_zero_shot_test_says_what_its_model_learned_from(tmp_path):
    tested = {"experiment": "x", "mode": "probe", "head": "prediction", "seed": 1, "n_train": 1512, "validations": 0}
    runs = {
        "pretrain-filter-s1": {"n_train": 75, "n_validation": 216, "validations": 2, "wall_s": 48.5, "metrics": {}},
        "filter-zeroshot-@fast-s1": {"metrics": {"test/prediction/nmse_db": -9.0}},
        "other-zeroshot-@fast-s1": {"metrics": {"test/prediction/nmse_db": -5.0}},
    }
    for name, own in runs.items():
        (tmp_path / "x" / name).mkdir(parents=True)
        (tmp_path / "x" / name / "summary.json").write_text(json.dumps({**tested, "run_id": name, **own}))
    filtered, other = collect(tmp_path, X)
    assert (filtered.variant, filtered.data, filtered.value) == ("filter", "fast", -9.0)
    assert (filtered.n_train, filtered.n_validation, filtered.scored, filtered.wall_s) == (75, 216, 2, 48.5)
    assert (other.n_train, other.train_cities) == (0, ""), "of a model from elsewhere nothing is known"


def test_a_zero_shot_test_of_another_studys_model_says_what_that_learned_from(tmp_path):
    study = Study("x", [3], checkpoints={"full": "runs/other/pretrain-full-s{seed}/checkpoints/best.ckpt"})
    tested = {
        "experiment": "x", "run_id": "full-zeroshot-s3", "mode": "zeroshot", "head": None, "seed": 3, "n_train": 1043,
        "train_cities": ["munich"], "test_cities": ["munich"], "metrics": {"test/nmse_db": -4.0},
    }  # fmt: skip
    learned = {"run_id": "pretrain-full-s3", "n_train": 41186, "train_places": ["etoile"], "validations": 6}
    for name, summary in (("x/full-zeroshot-s3", tested), ("other/pretrain-full-s3", learned)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    (row,) = collect(tmp_path, study)
    assert (row.n_train, row.scored, row.train_cities, row.test_cities) == (41186, 6, "etoile", "munich")


def test_zero_shot_scores_stand_in_a_table_of_their_own():
    summary = {
        "experiment": "x", "run_id": "pretrain-full-s0", "head": None, "mode": "zeroshot", "seed": 0, "split": "city",
        "metrics": {"test/los_accuracy": 0.93, "test/los_chance": 0.57, "test/nmse_db": -1.9},
    }  # fmt: skip
    lines = table(rows_of(summary, X)).splitlines()
    assert lines[0].startswith("| zero-shot | mode | labels | los_accuracy [%] | los_chance [%] | nmse_db [dB] |")
    assert lines[2].startswith("| full | zeroshot |  | 93.0 | 57.0 | -1.90 |"), "labels are not recorded"


@pytest.mark.parametrize(
    ("mode", "metrics", "then_test", "done"),
    [
        ("pretrain", {}, "false", True), ("pretrain", {}, "true", False), ("zeroshot", {"test/x": 1.0}, "true", True),
        ("probe", {}, "true", False), ("probe", {"test/x": 1.0}, "true", True), ("probe", {}, "false", True),
    ],
)  # fmt: skip
def test_a_run_is_finished_when_it_was_tested_as_it_was_to_be(tmp_path, mode, metrics, then_test, done):
    assert not finished(tmp_path)
    (tmp_path / "config.yaml").write_text(f"then_test: {then_test}\n")
    (tmp_path / "summary.json").write_text(json.dumps({"mode": mode, "metrics": metrics}))
    assert finished(tmp_path) is done


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_a_half_written_summary_is_of_no_finished_run(tmp_path):
    (tmp_path / "summary.json").write_text('{"mode": "pretr')
    assert not finished(tmp_path)


def test_a_file_that_is_no_study_is_named(tmp_path):
    with pytest.raises(InputError, match=r"x.yaml cannot be read"):
        Study.load(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("seeds: [0]\nsed: 1\n")
    with pytest.raises(InputError, match="unknown key 'sed': must be one of seeds, tasks"):
        Study.load(tmp_path / "x.yaml")
