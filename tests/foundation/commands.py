"""The command line on `toy.yaml`, in this process or in one of its own, and what its runs leave."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tests.foundation.toy  # noqa: F401 - makes the bare class names known
from foundation.cli import main

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
REPOSITORY = Path(__file__).parents[2]


def lightning(*args, config="toy.yaml"):
    return main([args[0], "--config", config, *QUIET, *args[1:]])


def complaint(capsys, *args, config="toy.yaml"):
    """Return the one line with which a command refuses its input."""
    capsys.readouterr()
    assert lightning(*args, config=config) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def process(*args, launcher=("-m", "tests.foundation.program"), **kwargs):
    """Start the program in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **kwargs.pop("env", {})}
    command = [sys.executable, *launcher, *args]
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # where the tests run in the background, Ctrl-C is ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(program):
    """Wait for a program, but not for ever."""
    try:
        return program.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        program.kill()
        pytest.fail(f"still running: {program.communicate()}")


def the_run(experiment="toy"):
    (folder,) = Path("runs", experiment).iterdir()
    return folder


def summary(experiment="toy"):
    return json.loads((the_run(experiment) / "summary.json").read_text())


def rows(experiment="toy"):
    with (the_run(experiment) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def weights(experiment="toy", name="last"):
    return torch.load(the_run(experiment) / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
