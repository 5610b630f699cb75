"""The progress of a run: one bar over all epochs, or lines in a log that say how long it will take."""

import io

import pytest

from datamodules.progress import Progress, SharedProgress
from foundation.cli import main
from tests.foundation.toy import Toy


@pytest.fixture
def lines(monkeypatch):
    """Run the toy with a line for every step, and return those that standard error was given."""
    monkeypatch.setattr("datamodules.progress._EVERY", 0.0)
    monkeypatch.setattr("datamodules.progress._CHECK", 1e6)  # else a slow machine tells the time in between

    def run(*args):
        monkeypatch.setattr("sys.stderr", stream := io.StringIO())
        assert main([args[0], "--config", "toy.yaml", "--trainer.enable_model_summary", "false", *args[1:]]) == 0
        return [line for line in stream.getvalue().splitlines() if " gone" in line]

    return run


def test_a_run_tells_epoch_loss_and_time_left(toy_folder, lines):
    found = lines("fit", "--trainer.max_epochs", "2")
    first, last = found[0], found[-1]
    assert first.startswith("epoch 1/2: ")
    assert " left, " in first
    assert "loss=" in first
    assert last.startswith("epoch 2/2: 100 % (")


def test_a_resumed_run_starts_where_it_was(toy_folder, lines):
    lines("fit", "--trainer.max_epochs", "2", "--run_id", "x")
    found = lines("fit", "--trainer.max_epochs", "4", "--run_id", "x", "--ckpt_path", "last")
    done = int(found[0].partition("(")[2].partition(" of")[0])
    total = int(found[0].partition(" of ")[2].partition(")")[0])
    assert found[0].startswith("epoch 3/4")
    assert done == total // 2 + 1


def test_test_and_predict_tell_theirs(toy_folder, lines):
    lines("fit", "--trainer.max_epochs", "1")
    assert lines("test", "--ckpt_path", "best")[-1].startswith("testing: 100 %")
    assert lines("validate", "--ckpt_path", "best")[-1].startswith("validating: 100 %")
    assert lines("predict", "--ckpt_path", "best")[-1].startswith("predicting: 100 %")


def test_the_time_goes_on_while_a_test_scores_and_draws(toy_folder, lines, monkeypatch):
    lines("fit", "--trainer.max_epochs", "1")
    shown = []
    monkeypatch.setattr(Toy, "on_test_epoch_end", lambda _: shown.append([bar.desc for bar in Progress._open]))
    lines("test", "--ckpt_path", "best")
    assert shown == [["scoring and drawing"]], "a bar at 100 % that stands still, or none"
    assert not Progress._open


def test_a_shared_bar_tells_run_epoch_metric_and_how_much_of_all_is_done(toy_folder, lines, monkeypatch):
    monkeypatch.setattr("datamodules.progress._EVERY", 0.0)
    monkeypatch.setattr("sys.stderr", stream := io.StringIO())
    with SharedProgress([30.0, 90.0]) as progress:
        for run in ("x/a", "x/b"):
            progress.begin(run)
            assert main(["fit", "--config", "toy.yaml", "--trainer.max_epochs", "2", "--then_test", "true"]) == 0
            progress.end()
    told = [line for line in stream.getvalue().splitlines() if " gone" in line]
    assert told[0].startswith("x/a epoch 1/2: ")
    assert "loss=" in told[0]
    assert told[-1].startswith("x/b: 100 % of all")


def test_the_time_left_is_that_of_the_run_itself_and_of_the_others_by_what_runs_took(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("datamodules.progress.monotonic", lambda: now[0])
    with SharedProgress([10.0, 10.0, 10.0, 10.0]) as progress:

        def told(seconds):
            now[0] = seconds
            return str(progress._bar).partition(", ")[2]

        progress.begin("a")
        assert told(0) == "00:00 gone, 00:40 left"
        assert told(60) == "01:00 gone, 00:30 left", "a run without progress of its own has its estimate"
        part = progress.part(100, "training", initial=0)
        told(64)
        for _ in range(4):
            part.update()
        assert told(64) == "01:04 gone, 00:30 left", "too few steps to tell from"
        told(80)
        for _ in range(16):
            part.update()
        assert told(80) == "01:20 gone, 01:50 left", "a fifth in 20 s, then three runs of 10 s"
        told(160)
        progress.end()
        progress.begin("b")
        assert told(170) == "02:50 gone, 04:05 left", "as if half of the runs took 16 times their estimate"
        progress.end()
        assert told(170) == "02:50 gone, 00:20 left", "one run of three was that far off"


def test_it_can_be_left_out(toy_folder, lines):
    assert not lines("fit", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false")
