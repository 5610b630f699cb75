"""How far a long job is: a bar on a terminal, a line every half minute in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

#: seconds between two lines of a log
_EVERY = 30.0
_LINE = "{desc}: {percentage:.0f} % ({n_fmt} of {total_fmt}), {elapsed} gone, {remaining} left{postfix}"
_ENDLESS = "{desc}: {n_fmt} {unit}, {elapsed} gone{postfix}"


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

    def __init__(self, total: float | None, desc: str, unit: str = "step", leave: bool = True, **options: Any) -> None:
        self._lines = not sys.stderr.isatty()
        if self._lines:
            form = _ENDLESS if total is None else _LINE
            options |= {"mininterval": _EVERY, "maxinterval": _EVERY, "miniters": 1, "bar_format": form}
        super().__init__(total=total, desc=desc, unit=unit, leave=leave, file=sys.stderr, **options)

    @property
    def due(self) -> bool:
        """Whether the next step will be shown."""
        return bool(self._time() - self.last_print_t >= self.mininterval)

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
        if not self._lines:
            super().close()
        elif not self.disable:
            self.disable = True
            self._decr_instances(self)
            if self.leave and self.n > self.initial:
                self._write()

    def _write(self) -> None:
        self.fp.write(f"{self}\n")
        self.fp.flush()
