from __future__ import annotations

import csv
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from foundation.cli import main, run
from tests.foundation import toy

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Work in an empty folder that holds `toy.yaml`."""
    monkeypatch.chdir(tmp_path)
    head = {"class_path": "WideToyHead", "init_args": {"width": 5}}
    config = {
        "model": {"class_path": "Toy", "init_args": {"head": head}},
        "data": {"class_path": "ToyData", "init_args": {"n": 22}},
        "trainer": {"accelerator": "cpu", "max_epochs": 4, "log_every_n_steps": 2, "num_sanity_val_steps": 0},
    }
    Path("toy.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def lightning(*args, config="toy.yaml"):
    return main([args[0], "--config", config, *QUIET, *args[1:]])


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


class TestRun:
    def test_fit_leaves_a_whole_run_folder(self, capsys):
        assert lightning("fit") == 0
        folder = the_run()
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert names == {
            "config.yaml",
            "metrics.csv",
            "summary.json",
            "checkpoints/best.ckpt",
            "checkpoints/last.ckpt",
        }
        assert not (folder / "checkpoints/last.ckpt").is_symlink()
        assert f"run: {folder}" in capsys.readouterr().out

    def test_summary_tells_what_was_run_and_test_adds_to_it(self):
        lightning("fit")
        fitted = summary()
        expected = {
            "experiment": "toy",
            "model": "toy",
            "head": "line",
            "mode": "scratch",
            "seed": 0,
            "split": "random",
        }
        assert expected.items() <= fitted.items()
        assert (fitted["n_train"], fitted["n_val"], fitted["n_test"]) == (22, 22, 22)
        assert fitted["params_total"] == fitted["params_trained"] == 31
        assert fitted["wall_s"] > 0
        assert fitted["epochs"] == 4
        assert fitted["metrics"] == {}
        assert set(fitted["versions"]) == {"csi-foundation", "torch", "lightning"}
        assert fitted["hardware"]["cores"] >= 1
        assert {"commit", "dirty"} <= set(fitted)
        assert lightning("test", "--ckpt_path", "best") == 0
        tested = summary()
        assert tested["metrics"] == {"test/loss": pytest.approx(tested["best"]["val/loss"])}
        assert tested["wall_s"] == fitted["wall_s"]

    def test_then_test_scores_the_best_checkpoint_in_the_same_run(self):
        commands = run(["fit", "--config", "toy.yaml", *QUIET, "--then_test", "true", "--trainer.max_epochs", "2"])
        best = commands.trainer.checkpoint_callback.best_model_score.item()
        assert rows()[-1]["test/loss"] != ""
        assert summary()["metrics"]["test/loss"] == pytest.approx(best)
        assert float(rows()[-2]["val/loss"]) > best  # so that last and best differ

    def test_config_given_back_starts_the_same_run_afresh(self):
        lightning("fit", "--experiment", "first")
        assert lightning("fit", "--experiment", "second", config=str(the_run("first") / "config.yaml")) == 0
        first, second = weights("first"), weights("second")
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_config_of_a_run_names_that_run(self):
        lightning("fit", "--run_id", "old")
        lightning("fit", "--run_id", "new")
        assert lightning("test", "--ckpt_path", "best", config="runs/toy/old/config.yaml") == 0
        assert json.loads(Path("runs/toy/old/summary.json").read_text())["metrics"]
        assert not json.loads(Path("runs/toy/new/summary.json").read_text())["metrics"]
        assert Path("runs/toy/old/test.yaml").exists()

    def test_experiment_and_run_id_are_keys(self):
        assert lightning("fit", "--experiment", "mine", "--run_id", "1", "--runs", "elsewhere") == 0
        assert Path("elsewhere/mine/1/checkpoints/last.ckpt").exists()

    def test_runs_of_the_same_second_do_not_meet(self, monkeypatch):
        monkeypatch.setattr("foundation.runs.time.strftime", lambda _: "now")
        lightning("fit")
        lightning("fit")
        assert {folder.name for folder in Path("runs/toy").iterdir()} == {"now-s0", "now-s0-2"}

    def test_checkpoint_by_path_scores_into_its_run(self):
        lightning("fit")
        assert lightning("test", "--ckpt_path", str(the_run() / "checkpoints/last.ckpt")) == 0
        assert summary()["metrics"]
        assert len(list(Path("runs/toy").iterdir())) == 1

    def test_predictions_are_one_file(self, capsys):
        lightning("fit")
        assert lightning("predict", "--ckpt_path", "best") == 0
        path = the_run() / "predictions.safetensors"
        predictions = load_file(path)
        assert predictions["prediction"].shape == (22, 1)
        assert predictions["user"].tolist() == list(range(22))
        assert str(path) in capsys.readouterr().out

    def test_fast_dev_run_leaves_nothing(self):
        assert lightning("fit", "--trainer.fast_dev_run", "true", "--then_test", "true") == 0
        assert not Path("runs").exists()

    def test_later_config_overrules(self):
        Path("more.yaml").write_text("model: {init_args: {lr: 0.5}}\n")
        commands = run(["fit", "--config", "toy.yaml", "--config", "more.yaml", *QUIET, "--trainer.max_epochs", "1"])
        assert commands.model.hparams["lr"] == 0.5
        assert the_run().parent.name == "toy"


class TestResume:
    @pytest.mark.parametrize("kill_at", [8, 22])
    def test_killed_and_resumed_run_ends_like_one_that_was_not(self, kill_at):
        program = process("fit", "--config", "toy.yaml", *QUIET, "--experiment", "killed", f"--model.kill_at={kill_at}")
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


def swap(text, old, new):
    assert old in text
    return text.replace(old, new)


class TestBadInput:
    """Each ends with one line that names the cause, and status 2."""

    def complaint(self, capsys, *args, config="toy.yaml"):
        status = lightning(*args, config=config)
        lines = capsys.readouterr().err.splitlines()
        assert status == 2
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        return lines[0]

    @pytest.mark.parametrize(
        ("old", "new", "expected"),
        [
            ("width: 5", "widht: 5", ["unknown key 'model.head.widht'", "(toy.yaml, line", "did you mean 'width'?"]),
            ("n: 22", "m: 22", ["unknown key 'data.m'", "toy.yaml"]),
            ("max_epochs", "max_epoch", ["unknown key 'trainer.max_epoch'", "did you mean 'trainer.max_epochs'?"]),
            ("model:", "modle:", ["unknown key 'modle'", "did you mean 'model'?"]),
            ("width: 5", "width: wide", ["'model.head.width'", "toy.yaml, line", "must be a whole number, got 'wide'"]),
            ("n: 22", "n: many", ["'data.n'", "must be a whole number, got 'many'"]),
            (
                "max_epochs: 4",
                "max_epochs: four",
                ["'trainer.max_epochs'", "must be a whole number or null, got 'four'"],
            ),
            ("n: 22", "{}", ["missing 'data.n'"]),
            ("data:\n", "data: 3\nother:\n", ["'data' (toy.yaml, line", "must be class_path of a LightningDataModule"]),
            ("accelerator: cpu", "profiler: [2, 3]", ["'trainer.profiler'", "got '[2, 3]'"]),
            ("class_path: Toy\n", "class_path: Tyo\n", ["unknown class 'Tyo'", "did you mean 'Toy'?"]),
            ("WideToyHead", "WideHead", ["unknown class 'WideHead'"]),
            (
                "class_path: Toy\n",
                "class_path: no.such.Toy\n",
                ["'no.such.Toy' cannot be imported", "No module named 'no"],
            ),
            ("class_path: Toy\n", "class_path: torch.nn.Linear\n", ["'torch.nn.Linear'", "'model'", "LightningModule"]),
        ],
    )
    def test_config(self, capsys, old, new, expected):
        Path("toy.yaml").write_text(swap(Path("toy.yaml").read_text(), old, new))
        line = self.complaint(capsys, "fit")
        for part in expected:
            assert part in line

    @pytest.mark.parametrize(
        ("args", "expected"),
        [
            (["--model.lrr", "1"], "unknown key 'model.lrr'"),
            (["--model.lr", "high"], "'model.lr' on the command line must be a number, got 'high'"),
            (["--trainer.max_epoch", "3"], "trainer.max_epoch"),
            (["--nonsense", "3"], "unknown key 'nonsense' on the command line"),
            (["--config", "none.yaml"], "none.yaml does not exist"),
            (["--ckpt_path", "none.ckpt"], "checkpoint none.ckpt does not exist"),
            (["--ckpt_path", "last"], "--ckpt_path last: no runs/toy/*/checkpoints/last.ckpt"),
            (["--model.complain", "three beams wanted"], "error: three beams wanted"),
            (["--data.missing", "no/such/file"], "no/such/file does not exist"),
            (["--data.batch_size", "0"], "error: batch_size must be at least 1, got 0"),
            (["--trainer.precision", "17"], "17"),
        ],
    )
    def test_arguments(self, capsys, args, expected):
        assert expected in self.complaint(capsys, "fit", *args)
        assert not list(Path().glob("runs/*/*"))  # no empty folder stays behind

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("model:\n  class_path: Toy\n   init_args: [\n", "broken.yaml, line 3, column 13: mapping values"),
            ("- a\n- b\n", "broken.yaml: must hold `key: value` lines"),
            ("model: {a: [}\n", "broken.yaml, line 1"),
        ],
    )
    def test_yaml(self, capsys, text, expected):
        Path("broken.yaml").write_text(text)
        assert expected in self.complaint(capsys, "fit", config="broken.yaml")

    def test_command(self, capsys):
        assert main(["fti"]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert "'fti'" in line
        assert "fit, validate, test, predict" in line

    def test_checkpoint_of_another_model(self, capsys):
        lightning("fit", "--model", "OtherToy", "--trainer.max_epochs", "1")
        capsys.readouterr()
        line = self.complaint(capsys, "test", "--ckpt_path", str(the_run() / "checkpoints/best.ckpt"))
        assert "is of a OtherToy, but the configured model is a Toy" in line

    def test_checkpoint_of_another_width(self, capsys):
        lightning("fit", "--trainer.max_epochs", "1")
        capsys.readouterr()
        line = self.complaint(capsys, "test", "--ckpt_path", "best", "--model.head.width", "7")
        assert "does not fit the configured model: size mismatch for head.layers.0.weight" in line

    def test_checkpoint_with_code_in_it(self, capsys):
        class Payload:
            def __reduce__(self):
                return (Path.touch, (Path("was-run"),))

        torch.save({"state_dict": {}, "payload": Payload()}, "evil.ckpt")
        assert "refusing to run code" in self.complaint(capsys, "test", "--ckpt_path", "evil.ckpt")
        Path("evil.ckpt").write_bytes(pickle.dumps(Payload()))
        assert "evil.ckpt" in self.complaint(capsys, "fit", "--ckpt_path", "evil.ckpt")
        assert not Path("was-run").exists()

    def test_damaged_checkpoint(self, capsys):
        lightning("fit", "--trainer.max_epochs", "1")
        last = the_run() / "checkpoints/last.ckpt"
        last.write_bytes(last.read_bytes()[:1000])
        capsys.readouterr()
        assert f"{last} is damaged" in self.complaint(capsys, "test", "--ckpt_path", "last")

    def test_taken_run_id(self, capsys):
        lightning("fit", "--run_id", "1", "--trainer.max_epochs", "1")
        capsys.readouterr()
        assert "runs/toy/1 exists" in self.complaint(capsys, "fit", "--run_id", "1")

    def test_bug_keeps_its_traceback(self, monkeypatch):
        monkeypatch.setattr(toy.Toy, "training_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lightning("fit")

    def test_debug_shows_the_traceback(self, monkeypatch):
        monkeypatch.setenv("CSI_DEBUG", "1")
        with pytest.raises(FileNotFoundError):
            lightning("fit", "--data.missing", "no/such/file")


class TestProgram:
    def test_help_is_quick_and_imports_nothing_heavy(self):
        code = (
            "import sys; from foundation.cli import main; status = main(['--help']); heavy = {'torch', 'lightning', "
            "'deepmimo', 'sionna', 'mitsuba', 'wandb', 'timm'} & set(sys.modules); print(heavy); sys.exit(status)"
        )
        program = process(launcher=("-c", code))
        out, err = program.communicate()
        assert program.returncode == 0, err
        assert out.startswith("usage: lightning COMMAND")
        assert out.endswith("set()\n")

    def test_help_of_a_command_imports_no_source_and_no_wandb(self):
        code = (
            "import sys, contextlib; from foundation.cli import main\n"
            "with contextlib.suppress(SystemExit): main(['fit', '--help'])\n"
            "print({'deepmimo', 'sionna', 'mitsuba', 'wandb', 'timm'} & set(sys.modules))"
        )
        out, err = process(launcher=("-c", code)).communicate()
        assert "--experiment" in out, err
        assert out.endswith("set()\n")

    def test_interrupt_is_one_line(self):
        program = process("fit", "--config", "toy.yaml", *QUIET, "--run_id", "1", "--trainer.max_epochs", "100000")
        while not Path("runs/toy/1/checkpoints/last.ckpt").exists():
            assert program.poll() is None
            time.sleep(0.05)
        program.send_signal(signal.SIGINT)
        _, err = finish(program)
        assert program.returncode == 130
        assert err.splitlines()[-1].startswith("interrupted")
        assert "Traceback" not in err

    @pytest.mark.parametrize("launcher", ["lightning", pytest.param("torchrun", marks=pytest.mark.slow)])
    def test_two_processes_share_one_run(self, launcher):
        start = ("-m", "tests.foundation.program")
        if launcher == "torchrun":
            start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *start)
        ddp = ["--config", str(REPOSITORY / "experiments/ddp.yaml"), "--trainer.devices", "2"]
        program = process("fit", "--config", "toy.yaml", *ddp, *QUIET, "--then_test", "true", launcher=start)
        out, err = finish(program)
        assert program.returncode == 0, err
        assert out.count("run: ") == 1
        assert summary()["hardware"]["processes"] == 2
        assert summary()["metrics"]["test/loss"] > 0
        assert (the_run() / "checkpoints/last.ckpt").exists()
        program = process("predict", "--config", "toy.yaml", *ddp, *QUIET, "--ckpt_path", "best", launcher=start)
        _, err = finish(program)
        assert program.returncode == 0, err
        assert sorted(load_file(the_run() / "predictions.safetensors")["user"].tolist()) == list(range(22))

    def test_two_processes_complain_once(self):
        program = process(
            "fit", "--config", "toy.yaml", *QUIET, "--trainer.devices", "2", "--data.missing", "no/such/file"
        )
        _, err = finish(program)
        assert program.returncode == 2
        assert err.count("error: ") == 1
        assert "Traceback" not in err
