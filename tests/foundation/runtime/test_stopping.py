"""How the program ends when it, or another process of its run, is told to."""

import signal
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors import signal_connector

from foundation.runtime.commands import Commands
from foundation.runtime.stopping import Terminated
from tests.foundation.commands import QUIET, REPOSITORY, finish, lightning, process

pytestmark = pytest.mark.usefixtures("toy_folder")

GO_ON = "the same command with `--run_id 1 --ckpt_path last` goes on after the last finished epoch"


@pytest.fixture
def running():
    program = process("fit", "--config", "toy.yaml", *QUIET, "--run_id", "1", "--trainer.max_epochs", "100000")
    while not Path("runs/toy/1/checkpoints/last.ckpt").exists():
        assert program.poll() is None
        time.sleep(0.05)
    yield program
    program.kill()
    program.communicate()


def test_a_run_at_work_is_locked_and_sigterm_ends_it_with_its_status(running, capsys):
    for args in (("--ckpt_path", "last"), ("--run_id", "1", "--ckpt_path", "last")):
        assert lightning("fit", *args, "--trainer.max_epochs", "1") == 2
        assert "runs/toy/1 is at work in another process" in capsys.readouterr().err
    running.send_signal(signal.SIGTERM)
    _, err = finish(running)
    assert running.returncode == 143
    assert err.splitlines()[-1] == f"terminated: {GO_ON}"
    assert "Traceback" not in err
    assert not Path("runs/toy/1/.lock").exists()


@pytest.mark.slow
def test_interrupt_is_one_line(running):
    running.send_signal(signal.SIGINT)
    _, err = finish(running)
    assert running.returncode == 130
    assert err.splitlines()[-1] == f"interrupted: {GO_ON}"
    assert "Traceback" not in err


def test_before_the_first_checkpoint_it_says_so():
    program = process("fit", "--config", "toy.yaml", *QUIET, "--run_id", "1", env={"TOY_WAIT_AT": "2"})
    while not Path("runs/toy/1/waiting").exists():
        assert program.poll() is None
        time.sleep(0.05)
    program.send_signal(signal.SIGTERM)
    _, err = finish(program)
    assert program.returncode == 143
    assert err.splitlines()[-1] == (
        "terminated: no epoch was finished; the same command with `--run_id 1` starts the run over"
    )


def ended_at_once():
    return Commands._ended_at_once(Trainer(accelerator="cpu", logger=False, enable_progress_bar=False))


def test_sigterm_starts_no_collective_within_another(monkeypatch):
    trainer = ended_at_once()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(type(trainer), "world_size", 2)
    monkeypatch.setattr(dist, "broadcast", lambda *_, **__: pytest.fail("the other process may be in a collective"))
    trainer._signal_connector.register_signal_handlers()
    try:
        with pytest.raises(Terminated) as leaving:
            signal.raise_signal(signal.SIGTERM)
    finally:
        trainer._signal_connector.teardown()
    assert leaving.value.code == 143
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()  # of every step, for which each process waits


def test_slurm_requeues_without_a_meeting_of_the_processes(monkeypatch):
    trainer, done = ended_at_once(), []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(signal_connector, "call", lambda command: done.append(command) or 0)
    monkeypatch.setattr(type(trainer.strategy), "barrier", lambda *_: pytest.fail("another may be in a collective"))
    monkeypatch.setattr(trainer, "save_checkpoint", lambda file: done.append(trainer.strategy.barrier("saved")))
    trainer._signal_connector._slurm_sigusr_handler_fn(signal.SIGUSR1, None)
    assert done == [None, ["scontrol", "requeue", "7"]]
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    trainer._signal_connector._slurm_sigusr_handler_fn(signal.SIGUSR1, None)
    assert len(done) == 2, "the first process saves and requeues"


@pytest.mark.slow
def test_a_killed_process_of_two_ends_the_other_in_one_line():
    ddp = ["--config", str(REPOSITORY / "experiments/ddp.yaml"), "--trainer.devices", "2"]
    program = process("fit", "--config", "toy.yaml", *ddp, *QUIET, "--run_id", "1", env={"TOY_KILL_AT": "7"})
    _, err = finish(program)
    assert program.returncode == 1
    assert err.splitlines()[-1] == f"error: another process of this run is gone: {GO_ON}"
    assert "Traceback" not in err


FACTORY = """
from pathlib import Path
from datamodules.sources.build import build
from foundation.runtime.stopping import ended_by_sigterm
from tests.datamodules.sources.test_build import Toy
with ended_by_sigterm():
    build(Toy(list("abc"), "cache", Path("log"), seconds=600), workers=2)
"""


def test_processes_that_make_sites_end_with_the_program():
    program = process(launcher=("-c", FACTORY))
    while not Path("log").exists() or len(Path("log").read_text().splitlines()) < 2:
        assert program.poll() is None
        time.sleep(0.05)
    workers = [int(line.split()[1]) for line in Path("log").read_text().splitlines()]
    started = time.monotonic()
    program.send_signal(signal.SIGTERM)
    finish(program)
    assert time.monotonic() - started < 10
    assert program.returncode == 143
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
