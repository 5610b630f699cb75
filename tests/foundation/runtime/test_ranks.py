"""Two real processes: no command waits for a collective that one of them does not reach, and no score differs."""

import json
import math
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests.foundation.commands import QUIET, REPOSITORY
from tests.foundation.ranks import TRAINED, scores, trained, without_weights

CONFIGS = REPOSITORY / "experiments"
SHARED = [*QUIET, "--trainer.accelerator", "cpu", "--trainer.devices", "2"]
SHARED += ["--trainer.strategy", "ddp", "--data.bs.cols", "8", "--data.ofdm.num_subcarriers", "16"]


def run_on_two(folder, commands):
    """Run commands one after another, in one pair of processes."""
    (folder / "commands.json").write_text(json.dumps(commands))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "WANDB_MODE": "offline"}
    job = subprocess.run(
        [*launcher, "-m", "tests.foundation.ranks", str(folder)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert job.returncode == 0, job.stderr[-4000:]
    (folder / "said.txt").write_text(job.stdout)


def all_commands(config, folder, data, *more):
    """Return `fit` with `then_test`, and the others on its best checkpoint."""
    start = ["--config", str(CONFIGS / config), *SHARED, *data, *more, "--runs", str(folder / "runs")]
    fit = [
        "fit",
        *start,
        "--config",
        str(CONFIGS / "wandb.yaml"),
        "--run_id",
        "a",
        "--trainer.max_epochs",
        "1",
        "--then_test",
        "true",
    ]
    best = str(folder / "runs" / (folder / config).stem / "a" / "checkpoints" / "best.ckpt")
    return [fit, *([command, *start, "--ckpt_path", best] for command in ("validate", "test", "predict"))]


def check_run(folder, name, *pictures):
    """Check what the commands left."""
    run = folder / "runs" / name / "a"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["hardware"]["processes"] == 2
    assert all(value is not None for value in summary["metrics"].values())
    assert {file.stem for file in (run / "plots").glob("*.png")} == set(pictures)
    media = {file.name.split("_")[0] for file in run.glob("wandb/offline-run-*/files/media/images/plots/*.png")}
    assert media == {picture.split("_")[0] for picture in pictures}, "pictures for W&B"
    said = [line for line in (folder / "said.txt").read_text().splitlines() if line.startswith(f"summary: {run}")]
    # of fit, of its test, and of `test`; by the first process alone
    assert said == [f"summary: {run}/summary.json", *[f"summary: {run}/summary.json, pictures: {run}/plots"] * 2]
    rows = load_file(run / "predictions.safetensors")
    links = [(site, user) for site, user in zip(rows["site"].tolist(), rows["user"].tolist(), strict=True)]
    assert links == sorted(links), "not in the order of the side"
    assert len(set(links)) == len(links) > 100
    return summary


@pytest.fixture(scope="module")
def job(street, tmp_path_factory):
    """Pre-train CSI-CLIP and adapt it, and what models score, all on two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "scores").mkdir()
    source = f"{{class_path: DeepMIMO, init_args: {{scenario: street, root: {street}, cache: {folder / 'made'}}}}}"
    data = ["--data.source", source, "--data.batch_size", "16", "--data.block", "5.0"]
    towers = [f"--model.{tower}_encoder.width=0.25" for tower in ("csi", "cir")]
    commands = all_commands("csiclip.yaml", folder, data, *towers)
    commands = [command for command in commands if command[0] != "test"]  # CSI-CLIP has none
    commands[0] += ["--then_test", "false", "--trainer.logger", "false"]
    checkpoint = str(folder / "runs/csiclip/a/checkpoints/best.ckpt")
    commands += all_commands("finetune/positioning.yaml", folder, data, "--model.checkpoint", checkpoint)
    run_on_two(folder, commands)
    return folder


def test_pre_training_and_adaptation_run_whole(job):
    check_run(job, "positioning", "error_cdf", "error_map")
    clip = job / "runs/csiclip/a"
    assert json.loads((clip / "summary.json").read_text())["validation"]["val/loss"] > 0
    assert len(load_file(clip / "predictions.safetensors")["user"]) > 100


def test_scores_are_those_of_one_process(job, tmp_path):
    two = json.loads((job / "scores/scores.json").read_text())
    one = scores(tmp_path)
    for side, values in one.items():
        assert two[side].keys() == values.keys()
        for name, value in values.items():
            assert two[side][name] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), (side, name)
    assert all(math.isfinite(values["val/loss"]) for values in one.values() if "val/loss" in values)
    assert abs(one["CSICLIP 11"]["val/loss"] - math.log(11)) > 1e-3, "the embeddings are all the same"


@pytest.mark.parametrize("make", TRAINED, ids=lambda make: make.__name__)
def test_a_training_logs_what_one_process_does(make, job, tmp_path):
    two, one = json.loads((job / "scores/scores.json").read_text())[make.__name__], trained(tmp_path, make)
    assert two.keys() == one.keys() >= {"train/loss", "val/loss", "val/probe/los/accuracy"}
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), name


def test_a_predictor_without_weights_is_run_by_several_processes(job, tmp_path):
    two, one = json.loads((job / "scores/scores.json").read_text())["without weights"], without_weights(tmp_path)
    assert math.isfinite(one["val/prediction/nmse_db"])
    assert two == pytest.approx(one, abs=1e-4)


@pytest.mark.slow
def test_environment_channel_runs_whole(street_data, tmp_path):
    tower = {"width": "32", "layers": "1", "shared_layers": "1", "heads": "2", "embed_dim": "16"}
    small = [
        f"--model.{part}_encoder.{key}={value}" for part in ("channel", "environment") for key, value in tower.items()
    ]
    small += ["--model.channel_encoder.num_antennas=8", "--model.channel_encoder.num_subcarriers=16"]
    small += ["--model.channel_encoder.patch=[4, 4]", "--data.split=spatial", "--data.holdout=null"]
    small += ["--model.decoder.num_antennas=8", "--model.decoder.num_subcarriers=16", "--model.decoder.width=32"]
    small += ["--data.fractions=[0.5, 0.2, 0.3]"]
    run_on_two(tmp_path, all_commands("envchannel.yaml", tmp_path, street_data, *small))
    summary = check_run(tmp_path, "envchannel", "similarity", "matching", "embeddings")
    assert summary["metrics"]["test/match_area"] >= 0
