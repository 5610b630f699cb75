"""How a command ends: by a signal or an error, with one line that says what to do, and its exit status."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from datamodules.errors import remedied

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

#: exit status of a process ended by SIGINT or SIGTERM, which SLURM and `make` evaluate
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


class Terminated(SystemExit):
    """Raised on SIGTERM; ends the process with the exit status of that signal unless caught."""


def terminate(signum: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM as Python handles SIGINT; a second signal ends the process immediately."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated(TERMINATED)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Context in which SIGTERM raises `Terminated`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def requeue_alone(trainer: Trainer) -> None:
    """Make the first process save and requeue on the signal of SLURM without the others.

    The signal arrives between any two operations of each process. Lightning would meet at a barrier, in which some
    processes would wait for collective operations of others, and the job would not be requeued.
    """
    connector, strategy = trainer._signal_connector, trainer.strategy
    requeue = connector._slurm_sigusr_handler_fn

    def alone(signum: int, frame: FrameType | None) -> None:
        if not trainer.is_global_zero:
            return
        barrier, strategy.barrier = strategy.barrier, lambda *_, **__: None  # type: ignore[method-assign]
        try:
            requeue(signum, frame)  # type: ignore[arg-type]
        finally:
            strategy.barrier = barrier  # type: ignore[method-assign]

    connector._slurm_sigusr_handler_fn = alone  # type: ignore[method-assign, assignment]


def resume_hint(error: BaseException) -> str:
    """Return the hint that `Commands` attached to an error, as the end of a line; empty without a started run."""
    return "".join(f": {note}" for note in getattr(error, "__notes__", []))


def exit_status(work: Callable[[], int | None]) -> int:
    """Return the exit status of a command: that of `work`, or 2 with one line for invalid input or an unusable file."""
    try:
        return work() or 0
    except KeyboardInterrupt:  # between two runs, as while links are selected; a run handles its own
        print("interrupted: the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        line = remedied(error)
        if line is None or os.environ.get("CSI_DEBUG"):
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
