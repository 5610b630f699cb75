"""Termination by signals: one line with the command to resume, and the exit status of the signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

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


def resume_hint(error: BaseException) -> str:
    """Return the hint that `Commands` attached to an error, as the end of a line; empty without a started run."""
    return "".join(f": {note}" for note in getattr(error, "__notes__", []))
