"""What a report reads of runs, whole or not."""

import json
import math
from pathlib import Path

import pytest
import torch

from foundation.report.__main__ import main
from foundation.report.page import gather
from foundation.report.plots import read_plots, shrink
from foundation.report.runs import read_run
from foundation.runtime.runs import Run
from heads.figures import confusion_figure
from tests.foundation.report.folders import MAP, add_plots, write_run


def test_a_run_is_told_by_its_files(tmp_path):
    run = read_run(write_run(tmp_path, seed=2, name="a-s2"))
    told = {key: run.facts[key] for key in ("model", "head", "mode", "data", "seed", "state", "n_train")}
    assert told == {
        "model": "CSICLIP", "head": "positioning", "mode": "finetune", "data": "munich", "seed": 2, "state": "finished",
        "n_train": 50,
    }  # fmt: skip
    assert run.config["data.source"] == "SionnaRT"
    assert run.config["data.source.scene"] == "munich"
    assert run.monitor == "val/positioning/mean_m"
    assert run.metrics["test/positioning/mean_m"] == pytest.approx(run.metrics["val/positioning/mean_m"])
    assert set(run.curves) == {"train/loss", "val/loss", "val/positioning/mean_m"}
    assert run.curves["train/loss"].epochs[-1] == 19


def test_a_run_without_summary_tells_what_its_settings_and_metrics_do(tmp_path):
    folder = write_run(tmp_path)
    (folder / "summary.json").unlink()
    run = read_run(folder)
    assert (run.experiment, run.name, run.facts["state"]) == ("demo", "a-s0", "stopped")
    assert (run.facts["model"], run.facts["mode"], run.facts["data"]) == ("FineTune", "finetune", "munich")
    assert run.metrics["val/loss"] == pytest.approx(1 / 20, rel=1e-4)
    lock = Run(tmp_path, "demo", "a-s0").claim()
    assert read_run(folder).facts["state"] == "running"
    lock.release()
    (folder / ".lock").touch()  # what a kill leaves
    assert read_run(folder).facts["state"] == "stopped"
    (folder / "metrics.csv").unlink()
    assert read_run(folder).metrics == {}


def test_runs_that_differ_in_their_seed_alone_are_one_group(tmp_path):
    names = {"a-s0": (0, 1e-3), "a-s1": (1, 1e-3), "20260101-120000-s0": (0, 1e-3), "b-s0": (0, 1e-2)}
    runs = {name: read_run(write_run(tmp_path, name=name, seed=s, lr=lr)) for name, (s, lr) in names.items()}
    assert runs["a-s0"].group == runs["a-s1"].group == runs["20260101-120000-s0"].group != runs["b-s0"].group
    assert runs["a-s0"].unseeded == "a"
    assert runs["20260101-120000-s0"].unseeded == "CSICLIP positioning finetune"


def test_rows_cut_short_and_nan_cost_no_curve(tmp_path):
    file = write_run(tmp_path, points=0) / "metrics.csv"
    file.write_text("step,loss,epoch\n0,1.5,0\n1,nan,0\n2,2.\0,0\n3\nx,1,1\n4,inf,1\n5,0.5,1\n6,0.123")
    curve = read_run(file.parent).curves["loss"]
    assert curve.steps == [0, 1, 4, 5]
    assert curve.values == [1.5, None, None, 0.5]
    thin = type(curve)(list(range(1000)), [None] * 1000, [0.0] * 1000).thinned(30)
    assert (len(thin.steps), thin.steps[0], thin.steps[-1]) == (30, 0, 999)


def test_metrics_that_are_nan_are_kept_as_such(tmp_path):
    folder = write_run(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "metrics": {"test/x": math.nan}}))
    assert read_run(folder).metrics["test/x"] is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", '{"model": '),
        ("summary.json", "[1]"),
        ("config.yaml", "a: [1"),
        ("config.yaml", "\0"),
        ("plots/error_map.json", '{"kind": "map", "title": "x", "position": 3}'),
        ("predictions.safetensors", "no tensors"),
    ],
)
def test_a_damaged_run_is_skipped_and_named(tmp_path, capsys, name, content):
    write_run(tmp_path, name="whole-s0")
    folder = write_run(tmp_path, name="broken-s0")
    add_plots(folder)
    (folder / name).write_text(content)
    with pytest.warns(UserWarning, match="skipped .*broken-s0: "):
        data = gather([tmp_path])
    assert [run["name"] for run in data["runs"]] == ["whole-s0"]
    assert len(data["warnings"]) == 1
    assert (folder / name).read_text() == content
    assert main([str(tmp_path), "--out", str(tmp_path / "x.html")]) == 0
    assert f"warning: skipped {folder}: " in capsys.readouterr().err


def test_nothing_to_show_is_one_line(tmp_path, capsys):
    for args in ([str(tmp_path)], [str(tmp_path / "none")]):
        assert main(args) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
    (write_run(tmp_path) / "summary.json").write_text("{")
    assert main([str(tmp_path)]) == 2


def test_runs_are_found_in_any_folder_that_is_named(tmp_path):
    folder = write_run(tmp_path / "runs")
    (write_run(folder.parent, folder.name, "on-munich") / "summary.json").unlink()
    for named, count in ((tmp_path, 2), (tmp_path / "runs", 2), (folder.parent, 2), (folder / "on-munich", 1)):
        runs = gather([named])["runs"]
        assert len(runs) == count
        assert runs[-1]["id"] == "demo/a-s0/on-munich"


def test_pictures_are_made_small_and_those_with_data_are_not_shown_twice(tmp_path):
    folder = write_run(tmp_path)
    add_plots(folder, users=5000)
    plots, pictures = read_plots(folder)
    assert {plot["kind"] for plot in plots} == {"cdf", "map", "confusion"}
    [drawn] = [plot for plot in plots if plot["kind"] == "map"]
    assert len(drawn["x"]) == len(drawn["value"]) == 600
    assert [picture.stem for picture in pictures] == ["reconstruction"]
    small = shrink(pictures, 60_000)
    assert 1000 < len(small[pictures[0]]) <= 60_000
    assert small[pictures[0]].startswith("data:image/webp;base64,")
    assert shrink(pictures, 300) == {}


def test_no_number_of_the_page_is_nan(tmp_path):
    folder = write_run(tmp_path, "tune_x", "trial-0000")
    (folder / "plots").mkdir()
    (folder / "plots" / "error_map.png").touch()
    plot = {**MAP, "position": [[0.0, 1.0], [2.0, 3.0]], "value": [math.nan, math.inf]}
    (folder / "plots" / "error_map.json").write_text(json.dumps(plot))
    trial = {"number": 0, "state": "FAIL", "value": math.nan, "params": {"a": math.inf, "b": 1, "c": 0.5, "d": "1e-3"}}
    study = {"metric": "val/loss", "direction": "minimize", "trials": [trial]}
    (tmp_path / "tune_x" / "tune.json").write_text(json.dumps(study))
    data = gather([tmp_path])
    json.dumps(data, allow_nan=False)
    assert data["runs"][0]["plots"][0]["limit"] == 0
    assert data["tunings"][0]["trials"][0]["params"] == {"a": "inf", "b": 1, "c": 0.5, "d": "1e-3"}


def test_a_page_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch, capsys):
    write_run(tmp_path)
    (tmp_path / "report.html").write_text("before")

    def half(path, text, *_):
        path.open("w").write(text[:9])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    assert main([str(tmp_path)]) == 2
    assert "report.html cannot be written (No space left on device)" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "before"


def test_a_confusion_keeps_its_counts(tmp_path):
    figure = confusion_figure(torch.tensor([[3, 1], [0, 0]]), "LOS", ("NLOS", "LOS"))
    folder = write_run(tmp_path)
    (folder / "plots").mkdir()
    figure.savefig(folder / "plots" / "confusion.png")
    (folder / "plots" / "confusion.json").write_text(json.dumps(figure.plot_data))
    [plot] = read_plots(folder)[0]
    assert (plot["counts"], plot["classes"]) == ([[3, 1], [0, 0]], ["NLOS", "LOS"])


def test_trials_of_a_search_are_read(tmp_path):
    write_run(tmp_path, "tune_x", "trial-0000")
    trial = {"number": 0, "state": "COMPLETE", "value": 0.5, "run_id": "trial-0000", "params": {"model.lr": 0.1}}
    study = {"metric": "val/loss", "direction": "minimize", "trials": [trial]}
    file = tmp_path / "tune_x" / "tune.json"
    file.write_text(json.dumps(study))
    [told] = gather([tmp_path])["tunings"]
    assert (told["experiment"], told["trials"][0]["params"]) == ("tune_x", {"model.lr": 0.1})
    file.write_text("{}")
    with pytest.warns(UserWarning, match=r"skipped .*tune\.json"):
        assert gather([tmp_path])["tunings"] == []
