"""Progress of long operations: a bar on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import os
import statistics
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from time import monotonic
from typing import Any, ClassVar

from tqdm import tqdm

#: interval of the lines of a log [s], and of the checks whether one is due [s]
_EVERY, _CHECK = 10.0, 1.0
_LINE = "{desc}: {percentage:.0f} % ({n_fmt} of {total_fmt}), {elapsed} gone, {remaining} left{postfix}"
_UNBOUNDED = "{desc}: {n_fmt} {unit}, {elapsed} gone{postfix}"
_ACTIVITY = "{desc}: {elapsed} gone{postfix}"
_ALL = "{desc}: {percentage:.0f} % of all, {elapsed} gone, {remaining} left{postfix}"
#: finished fraction of a part of a run from which its rate predicts its remaining time
_KNOWN = 0.05


class Progress(tqdm):  # type: ignore[type-arg, misc, unused-ignore]
    """A tqdm bar; if standard error is not a terminal, whole lines at long intervals.

    Args:
        total: Number of steps; None if unknown.
        desc: Description of the operation.
        unit: Name of a step.
        leave: Whether the final state remains.
        **options: Arguments of tqdm, such as `initial` and `disable`.
    """

    disable: bool
    #: the open ones, of which the innermost writes
    _open: ClassVar[list[Progress]] = []

    def __init__(self, total: float | None, desc: str, unit: str = "step", leave: bool = True, **options: Any) -> None:
        self._lines = not sys.stderr.isatty()
        self._written: float | None = None
        self._closed = threading.Event()
        self._clock = threading.Thread(target=self._watch, daemon=True)
        if os.environ.get("LOCAL_RANK", "0") != "0":
            options["disable"] = True  # only the first process of a machine writes
        if self._lines:
            form = options.pop("bar_format", _UNBOUNDED if total is None else _LINE)
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
        """Draw the bar, or write a line if one is due."""
        if not self._lines:
            super().display(msg, pos)
        elif self.n > self.initial and self.due:  # not when only the description has changed
            self._write()

    def announce(self, text: str) -> None:
        """Set the description, and show it immediately."""
        self.set_description_str(text, refresh=not self._lines)
        if self._lines and not self.disable:
            self.fp.write(f"{text} ({self.n} of {self.total} done)\n")
            self.fp.flush()

    def close(self) -> None:
        """Close the bar, and show the final state if `leave` is set."""
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
        """Update the elapsed time during long steps."""
        while not self._closed.wait(_CHECK):
            if self._open[-1:] != [self]:
                continue
            if not self._lines and self._time() - max(self.last_print_t, self.start_t + self.delay) >= _CHECK:
                self.refresh()
            elif self._lines and self.due:
                self._write()

    def _write(self) -> None:
        self._written = self._time()
        self.fp.write(f"{self}\n")
        self.fp.flush()


def activity(what: str) -> Progress:
    """Return a progress bar without steps: after one second it shows the elapsed time.

    Args:
        what: Description of the operation, such as `opening the data`.
    """
    return Progress(None, what, leave=False, delay=1.0, bar_format=_ACTIVITY)


class SharedProgress(AbstractContextManager["SharedProgress"]):
    """One bar over many runs, in which a `RunProgress` shows epoch and metrics of its run instead of its own bar.

    The remaining time of the current run follows from its own rate, once that is known. Later runs are expected to take
    their estimates times the median ratio of true and estimated duration of the finished runs, which one run with a
    wrong estimate hardly changes.

    Args:
        seconds: Estimated duration of each run [s], in order.
    """

    def __init__(self, seconds: Sequence[float]) -> None:
        self._seconds = list(seconds)
        self._ratios = [1.0]
        self._number, self._run = -1, ""
        self._left: float | None = None
        self._opened = self._started = monotonic()
        self._bar = _Overall(self)

    def __enter__(self) -> SharedProgress:
        """Replace the bars of runs."""
        self._token: Token[SharedProgress | None] = SHARED.set(self)
        return self

    def __exit__(self, *_: Any) -> None:
        """Close the bar."""
        SHARED.reset(self._token)
        self._bar.close()

    def begin(self, run: str) -> None:
        """Begin the next run."""
        self._number, self._run, self._left, self._started = self._number + 1, run, None, monotonic()
        self._bar.set_postfix({}, refresh=False)
        self._bar.set_description_str(run)

    def end(self) -> None:
        """End the run."""
        self._ratios.append((monotonic() - self._started) / max(self._seconds[self._number], 0.1))
        self._bar.set_description_str(self._run, refresh=False)
        self._left = 0.0
        self._bar.update()

    def part(self, total: float | None, name: str, initial: int) -> Part:
        """Return the bar of a part of the run."""
        return Part(self, total, name, initial)

    @property
    def due(self) -> bool:
        """Whether the next step will be shown."""
        return self._bar.due

    def show(self, text: str, metrics: dict[str, float], left: float | None) -> None:
        """Show the state of a run.

        Args:
            text: Its epoch, or another activity.
            metrics: Its latest metrics.
            left: Its remaining time [s], None where that is not known yet.
        """
        self._bar.set_description_str(f"{self._run} {text}", refresh=False)
        self._bar.set_postfix(metrics, refresh=False)
        self._left = left
        self._bar.update()

    @property
    def gone_and_left(self) -> tuple[float, float]:
        """Elapsed and remaining time of all runs [s]."""
        now, typical = monotonic(), statistics.median(self._ratios)
        own = sum(self._seconds[max(self._number, 0) : self._number + 1])
        left = max(own * typical - (now - self._started), 0.0) if self._left is None else self._left
        return now - self._opened, left + typical * sum(self._seconds[self._number + 1 :])


class _Overall(Progress):
    """The bar of a `SharedProgress`, with its elapsed and remaining time."""

    def __init__(self, shared: SharedProgress) -> None:
        self._shared = shared
        super().__init__(None, "", "s", bar_format=_ALL, smoothing=0, miniters=0)

    @property
    def format_dict(self) -> dict[str, Any]:
        """The values of a line; tqdm would extrapolate the elapsed time by the number of steps."""
        gone, left = self._shared.gone_and_left
        return {**super().format_dict, "n": gone, "total": max(gone + left, 1e-3), "elapsed": gone, "rate": 1.0}


#: the bar over the runs of this process, if there is one
SHARED: ContextVar[SharedProgress | None] = ContextVar("shared", default=None)


class Part:
    """The bar of one part of a run, such as its training, shown within a `SharedProgress`."""

    def __init__(self, shared: SharedProgress, total: float | None, name: str, initial: int) -> None:
        self._shared, self._text = shared, name
        self._total = None if total is None else total - initial
        self._done, self._started, self._metrics = 0, monotonic(), dict[str, float]()

    @property
    def due(self) -> bool:
        """Whether the next step will be shown."""
        return self._shared.due

    def set_postfix(self, metrics: dict[str, float], refresh: bool = True) -> None:
        """Set the latest metrics."""
        self._metrics = metrics

    def set_description_str(self, text: str, refresh: bool = True) -> None:
        """Set the description."""
        self._text = text

    def update(self) -> None:
        """Advance by one step."""
        self._done += 1
        share = min(1.0, self._done / self._total) if self._total else 0.0
        left = (monotonic() - self._started) * (1 / share - 1) if share >= _KNOWN else None
        self._shared.show(self._text, self._metrics, left)

    def close(self) -> None:
        """Do nothing; the shared bar continues."""
