"""How the program ends when it is told to: one line, a status that says so, and how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

#: what a shell returns for a process that SIGINT or SIGTERM has ended; SLURM and `make` go by it
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


class Terminated(SystemExit):
    """SIGTERM has come: ends the process with its status wherever nothing else is done about it."""


def terminate(signum: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM as Python handles SIGINT, at once; a second one ends the process without more ado."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated(TERMINATED)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in what is run here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def how_to_go_on(error: BaseException) -> str:
    """Return what `Commands` has noted on an error, as the end of a line; empty where nothing was begun."""
    return "".join(f": {note}" for note in getattr(error, "__notes__", []))
