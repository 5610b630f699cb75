"""The main job, end to end: pre-train, adapt, test, predict, resume, refuse."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from foundation.checkpoint import load_encoder
from foundation.cli import main
from foundation.report.embedding import embeddings_of
from foundation.report.plots import read_plots

QUIET = [
    "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--trainer.accelerator", "cpu",
]  # fmt: skip
SMALL = [
    "--model.csi_encoder.width", "0.25", "--model.cir_encoder.width", "0.25",
    "--data.bs.cols", "8", "--data.ofdm.num_subcarriers", "16",
]  # fmt: skip
CONFIG = ["--config", "experiments/csiclip.yaml"]


@pytest.fixture
def pretrained(street_data, tmp_path):
    args = ["fit", *CONFIG, *street_data, *SMALL, *QUIET, "--trainer.max_epochs", "2", "--runs", str(tmp_path / "runs")]
    assert main([*args, "--run_id", "a"]) == 0
    return tmp_path / "runs" / "csiclip" / "a"


def test_pretrain_adapt_test_predict(pretrained, street_data, tmp_path, capsys, monkeypatch):
    assert {file.name for file in pretrained.iterdir()} >= {"config.yaml", "metrics.csv", "summary.json", "checkpoints"}
    small = ["--data.bs.cols", "8", "--data.ofdm.num_subcarriers", "16", *QUIET, "--runs", str(tmp_path / "runs")]
    start = ["fit", "--config", "experiments/finetune/positioning.yaml", *street_data, *small, "--run_id", "b"]
    start += ["--model.checkpoint", str(pretrained / "checkpoints" / "best.ckpt"), "--trainer.max_epochs", "3"]
    assert main([*start, "--data.num_labels", "20"]) == 0
    folder = tmp_path / "runs" / "positioning" / "b"
    said = capsys.readouterr().out.strip().splitlines()[-1]
    assert said == f"summary: {folder / 'summary.json'}, pictures: {folder / 'plots'}"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["model"] == "CSICLIP"
    assert (summary["head"], summary["mode"], summary["split"]) == ("positioning", "finetune", "spatial")
    assert summary["n_train"] == 20
    assert summary["metrics"]["test/positioning/mean_m"] > 0
    drawn, others = read_plots(folder)
    assert {plot["name"]: plot["kind"] for plot in drawn} == {"error_cdf": "cdf", "error_map": "map"}
    assert others == []
    assert {file.suffix for file in (folder / "plots").iterdir()} == {".png", ".json"}
    middle = next(plot for plot in drawn if plot["kind"] == "cdf")["quantiles"][50]
    assert middle == pytest.approx(summary["metrics"]["test/positioning/median_m"], abs=1e-3)
    best = str(folder / "checkpoints" / "best.ckpt")
    assert load_encoder(best).hparams == load_encoder(pretrained / "checkpoints" / "best.ckpt").hparams
    assert main(["predict", "--config", str(folder / "config.yaml"), "--ckpt_path", best]) == 0
    rows = load_file(folder / "predictions.safetensors")
    assert rows["prediction"].shape == (len(rows["user"]), 2)
    monkeypatch.setitem(sys.modules, "umap", None)
    [embedding] = embeddings_of(folder)
    assert len(embedding["x"]) == len(rows["user"])
    with safe_open(folder / "predictions.safetensors", "pt") as file:
        assert {site["city"] for site in json.loads(file.metadata()["sites"])} == set(summary["test_cities"])


def test_another_model_or_width_is_refused_in_one_line(pretrained, street_data, tmp_path, capsys):
    start = ["fit", "--config", "experiments/finetune/los.yaml", *street_data, *QUIET, "--runs", str(tmp_path / "runs")]
    checkpoint = ["--model.checkpoint", str(pretrained / "checkpoints" / "best.ckpt")]
    capsys.readouterr()
    assert main([*start, *checkpoint, "--config", "experiments/encoders/csiclip.yaml"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert "of another shape" in said
    assert main([*start, *checkpoint, "--config", "experiments/encoders/hand.yaml"]) == 2
    assert "does not fit this HandFeatures" in capsys.readouterr().err
    assert main(["test", *start[1:], "--model.mode", "control", "--config", "experiments/encoders/hand.yaml",
                 "--ckpt_path", checkpoint[1]]) == 2  # fmt: skip
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: ")


def test_missing_scenario_is_one_line(tmp_path, capsys):
    source = f"{{class_path: DeepMIMO, init_args: {{scenario: nowhere, root: {tmp_path}, download: false}}}}"
    assert main(["fit", *CONFIG, *QUIET, "--data.source", source, "--runs", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert "nowhere" in said[-1]
    assert said[-1].startswith("error: ")
    assert not any("Traceback" in line for line in said)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_of_a_whole_one(street_data, tmp_path):
    args = ["fit", *CONFIG, *street_data, *SMALL, *QUIET, "--trainer.max_epochs", "4", "--data.num_workers", "2"]

    def start(runs: str, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "foundation", *args, "--runs", str(tmp_path / runs), *more]
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)

    assert start("whole", "--run_id", "x").wait() == 0
    killed = start("killed", "--run_id", "x")
    last = tmp_path / "killed" / "csiclip" / "x" / "checkpoints" / "last.ckpt"
    while not last.exists():
        assert killed.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    time.sleep(0.1)  # into the next epoch
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    epoch = torch.load(last, weights_only=True)["epoch"]
    assert epoch < 3, "killed too late to show anything"
    assert start("killed", "--ckpt_path", "last").wait() == 0
    whole = torch.load(tmp_path / "whole" / "csiclip" / "x" / "checkpoints" / "last.ckpt", weights_only=True)
    resumed = torch.load(last, weights_only=True)
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key
