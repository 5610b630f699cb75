"""How far a long job is: a bar on a terminal, a line every ten seconds in a log, whether or not a step ends."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any, ClassVar

from tqdm import tqdm

#: seconds between two lines of a log, and between two looks at the clock
_EVERY, _LOOK = 10.0, 1.0
_LINE = "{desc}: {percentage:.0f} % ({n_fmt} of {total_fmt}), {elapsed} gone, {remaining} left{postfix}"
_ENDLESS = "{desc}: {n_fmt} {unit}, {elapsed} gone{postfix}"
_AT_WORK = "{desc}: {elapsed} gone{postfix}"


class Progress(tqdm):  # type: ignore[type-arg, misc, unused-ignore]
    """A tqdm bar that a log can be read after: where standard error is no terminal, it writes whole lines, and few.

    Args:
        total: Number of steps, None where it is not known.
        desc: What is done.
        unit: What a step is.
        leave: Whether the last state stays.
        **options: For tqdm, such as `initial` and `disable`.
    """

    disable: bool
    #: those that are open, of which the innermost tells how far it is
    _open: ClassVar[list[Progress]] = []

    def __init__(self, total: float | None, desc: str, unit: str = "step", leave: bool = True, **options: Any) -> None:
        self._lines = not sys.stderr.isatty()
        self._written: float | None = None
        self._closed = threading.Event()
        self._clock = threading.Thread(target=self._watch, daemon=True)
        if os.environ.get("LOCAL_RANK", "0") != "0":
            options["disable"] = True  # the first process of a machine speaks for all
        if self._lines:
            form = options.pop("bar_format", _ENDLESS if total is None else _LINE)
            options = {"miniters": 1, **options, "mininterval": _EVERY, "maxinterval": _EVERY, "bar_format": form}
        super().__init__(total=total, desc=desc, unit=unit, leave=leave, file=sys.stderr, **options)
        if not self.disable:
            self._open.append(self)
            self._clock.start()

    @property
    def due(self) -> bool:
        """Whether the next step will be shown."""
        if self.disable:
            return False
        last = self.last_print_t if not self._lines else self.start_t if self._written is None else self._written
        return bool(self._time() - last >= self.mininterval)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or write a line once there is something to tell."""
        if not self._lines:
            super().display(msg, pos)
        elif self.n > self.initial and self.due:  # not for a mere change of the description
            self._write()

    def say(self, text: str) -> None:
        """Name what is done next, at once."""
        self.set_description_str(text, refresh=not self._lines)
        if self._lines and not self.disable:
            self.fp.write(f"{text} ({self.n} of {self.total} done)\n")
            self.fp.flush()

    def close(self) -> None:
        """Leave the last state, or nothing."""
        self._closed.set()
        if self._clock.is_alive() and self._clock is not threading.current_thread():
            self._clock.join()
        if self in self._open:
            self._open.remove(self)
        if not self._lines:
            super().close()
        elif not self.disable:
            self.disable = True
            self._decr_instances(self)
            if self.leave and self.n > self.initial:
                self._write()

    def _watch(self) -> None:
        """Tell the time where no step has ended for long."""
        while not self._closed.wait(_LOOK):
            if self._open[-1:] != [self]:
                continue
            if not self._lines and self._time() - max(self.last_print_t, self.start_t + self.delay) >= _LOOK:
                self.refresh()
            elif self._lines and self.due:
                self._write()

    def _write(self) -> None:
        self._written = self._time()
        self.fp.write(f"{self}\n")
        self.fp.flush()


def at_work(what: str) -> Progress:
    """Say that something of unknown length is at work, with the time gone, once it takes more than a second.

    Args:
        what: What is done, such as `opening the data`.
    """
    return Progress(None, what, leave=False, delay=1.0, bar_format=_AT_WORK)
