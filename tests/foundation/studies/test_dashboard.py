import json

import pytest
import yaml

from foundation.studies.dashboard import collect_runs, main, workspace

pytest.importorskip("wandb_workspaces")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two experiments of what `lightning fit` leaves, at a home without a key."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for experiment, run, lr, metrics in (
        ("beam_finetune", "a", 0.1, "step,epoch,train/loss,val/loss,val/beam/top1,test/beam/top1,test/beam/gain_db"),
        ("beam_finetune", "b", 0.2, "step,epoch,val/loss,test/beam/top1"),
        ("zero", "c", 0.1, "step,epoch,test/match_area"),
    ):
        folder = tmp_path / "runs" / experiment / run
        (folder / "plots").mkdir(parents=True)
        (folder / "plots/confusion.png").touch()
        (folder / "metrics.csv").write_text(f"{metrics}\n")
        config = {"run_id": run, "model": {"class_path": "FineTune", "init_args": {"lr": lr, "mode": "finetune"}}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "runs"


def panels(space):
    return {section.name: section.panels for section in space.sections}


def test_a_damaged_run_is_left_out_by_name(runs, capsys):
    (runs / "beam_finetune/a/config.yaml").write_text("model: {")
    (runs / "zero/c/metrics.csv").write_bytes(b"\xff\n")
    assert collect_runs(runs, None).experiments == ["beam_finetune"]
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in said] == [
        f"skipped {runs}/{name}" for name in ("beam_finetune/a", "zero/c")
    ]


def test_what_runs_have_in_common_and_what_differs(runs):
    shown = collect_runs(runs, "beam_finetune")
    assert shown.scores == ["test/beam/gain_db", "test/beam/top1"]
    assert shown.varied == ["model.init_args.lr"]  # that runs have names of their own is no setting
    assert collect_runs(runs, None).experiments == ["beam_finetune", "zero"]


def test_the_workspace_has_what_is_compared(runs):
    import wandb_workspaces.reports.v2 as wr

    space = workspace(collect_runs(runs, "beam_finetune"), "us")
    shown = panels(space)
    assert list(shown) == [
        "Validation", "Test: beam", "Which run is better, and why", "Pictures", "Embeddings", "Training"
    ]  # fmt: skip
    assert [(panel.x, panel.y) for panel in shown["Validation"]] == [
        ("epoch", ["val/beam/top1"]),
        ("epoch", ["val/loss"]),
    ]
    assert [panel.metrics for panel in shown["Test: beam"]] == [["test/beam/gain_db"], ["test/beam/top1"]]
    comparer, parallel = shown["Which run is better, and why"]
    assert (comparer.diff_only, type(parallel)) == ("split", wr.ParallelCoordinatesPlot)
    assert [axis.metric.name for axis in parallel.columns] == ["model.init_args.lr", "test/beam/gain_db"]
    assert shown["Pictures"][0].media_keys == ["plots/confusion"]
    assert "beam_finetune" in space.runset_settings.filters


def test_offline_the_definition_is_written_and_reads_back(runs, capsys):
    from wandb_workspaces.workspaces import Workspace, internal

    assert main(["beam_finetune", "--runs", str(runs), "--entity", "us"]) == 0
    said = capsys.readouterr().out
    assert f"{runs}/beam_finetune/dashboard.json (no key is configured)" in said
    assert "wandb login" in said
    assert "wandb sync" in said
    text = (runs / "beam_finetune/dashboard.json").read_text()
    read = Workspace._from_model(internal.View.model_validate(json.loads(text)))
    made = workspace(collect_runs(runs, "beam_finetune"), "us")
    assert [(name, len(each)) for name, each in panels(read).items()] == [(n, len(p)) for n, p in panels(made).items()]
    assert (read.entity, read.project) == ("us", "csi-foundation")
    (runs / "beam_finetune/a/wandb/offline-run-1").mkdir(parents=True)
    assert main(["--runs", str(runs)]) == 0
    assert f"`wandb sync {runs}/*/*/wandb/offline-run-*`" in capsys.readouterr().out
    assert "Test: zero-shot and reconstruction" in (runs / "dashboard.json").read_text()


def test_a_server_that_refuses_costs_nothing(runs, capsys, monkeypatch):
    import wandb

    class Refusing:
        def __init__(self):
            raise wandb.errors.CommError("no such\nuser")

    monkeypatch.setattr("foundation.runtime.loggers.offline_reason", lambda: "")
    monkeypatch.setattr(wandb, "Api", Refusing)
    assert main(["--runs", str(runs)]) == 0
    assert "(no such user)" in capsys.readouterr().out


def test_bad_input_ends_with_one_line(runs, tmp_path, capsys):
    assert main(["foo", "--runs", str(runs)]) == 2
    assert capsys.readouterr().err == f"error: no run lies in {runs}/foo; there are: beam_finetune, zero\n"
    assert main(["--runs", str(tmp_path / "none")]) == 2
    assert "run `make demo` or `lightning fit` first" in capsys.readouterr().err


def test_a_wrong_name_is_called_as_it_was_given(runs, capsys):
    assert main(["../x", "--runs", str(runs)]) == 2
    said = capsys.readouterr().err
    assert "experiment '../x' is no plain name" in said
    assert "--experiment" not in said
