"""Runs that were stopped, and go on."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.foundation.commands import QUIET, lightning, process, rows, summary, the_run, weights

pytestmark = pytest.mark.usefixtures("toy_folder")


class TestResume:
    @pytest.mark.parametrize("kill_at", [8, 22])
    def test_killed_and_resumed_run_ends_like_one_that_was_not(self, kill_at):
        kill = {"TOY_KILL_AT": str(kill_at)}
        program = process("fit", "--config", "toy.yaml", *QUIET, "--experiment", "killed", env=kill)
        program.communicate()
        assert program.returncode == -signal.SIGKILL
        assert lightning("fit", "--experiment", "killed", "--ckpt_path", "last") == 0
        lightning("fit", "--experiment", "whole")
        killed, whole = weights("killed"), weights("whole")
        assert all(torch.equal(killed[key], whole[key]) for key in whole)
        assert rows("killed") == rows("whole")
        assert summary("killed")["best"] == summary("whole")["best"]

    def test_plateau_scheduler_takes_the_step_that_the_checkpoint_lacks(self):
        # Every epoch is a bad one for this scheduler, so that each missed step shows in the learning rate.
        args = ["--model.threshold", "1000", "--trainer.max_epochs"]
        lightning("fit", "--experiment", "whole", *args, "4")
        lightning("fit", "--experiment", "parts", *args, "2")
        lightning("fit", "--experiment", "parts", *args, "4", "--ckpt_path", "last")
        assert [row["lr"] for row in rows("parts")] == [row["lr"] for row in rows("whole")]

    def test_wall_time_adds_up(self):
        lightning("fit", "--trainer.max_epochs", "2")
        first = summary()["wall_s"]
        lightning("fit", "--ckpt_path", "last")
        assert summary()["wall_s"] > first

    @pytest.mark.filterwarnings("ignore:The dirpath has changed")
    def test_foreign_checkpoint_starts_a_new_run(self):
        lightning("fit", "--experiment", "first")
        best = str(the_run("first") / "checkpoints/best.ckpt")
        assert lightning("fit", "--ckpt_path", best, "--trainer.max_epochs", "5", "--experiment", "second") == 0
        assert the_run("second")

    def test_last_is_loadable_whenever_the_run_is_killed(self):
        program = process("fit", "--config", "toy.yaml", *QUIET, "--run_id", "1", "--trainer.max_epochs", "100000")
        last = Path("runs/toy/1/checkpoints/last.ckpt")
        steps = set()
        try:
            while not last.exists():
                assert program.poll() is None
                time.sleep(0.05)
            for _ in range(50):
                os.kill(program.pid, signal.SIGSTOP)  # as good as a kill for what lies on disk
                steps.add(torch.load(last, weights_only=True)["global_step"])
                os.kill(program.pid, signal.SIGCONT)
                time.sleep(0.011)
        finally:
            program.kill()
            program.communicate()
        torch.load(last, weights_only=True)
        assert len(steps) > 3
