"""Curves of the metrics that a run logged to its `metrics.csv`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundation.runtime.runs import read_rows


@dataclass
class Curve:
    """One metric over the steps of a run.

    Attributes:
        steps: Steps, in the order of the file.
        epochs: Epoch of each step, None if not logged.
        values: Values, None for NaN and infinity.
    """

    steps: list[int] = field(default_factory=list)
    epochs: list[int | None] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)

    @property
    def last(self) -> float | None:
        """The last value."""
        return self.values[-1] if self.values else None

    def thinned(self, most: int) -> Curve:
        """Return the curve with at most the given number of points, including the first and the last."""
        count = len(self.steps)
        if count <= most:
            return self
        kept = sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})
        steps, epochs, values = self.steps, self.epochs, self.values
        return Curve([steps[i] for i in kept], [epochs[i] for i in kept], [values[i] for i in kept])


def finite(value: Any) -> float | None:
    """Return a value as a number of six digits, or None if it is no finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return float(f"{number:.6g}") if math.isfinite(number) else None


def read_curves(file: Path) -> dict[str, Curve]:
    """Read all columns except `step` and `epoch`; empty without a file.

    Incomplete rows are omitted, such as those of a killed run or a full disk, or the last one while it is written.
    """
    if not file.exists():
        return {}
    curves: dict[str, Curve] = {}
    for row in read_rows(file)[1]:
        epoch = finite(row.get("epoch"))
        for name, cell in row.items():
            if cell and name not in ("step", "epoch"):
                curve = curves.setdefault(name, Curve())
                curve.steps.append(int(row["step"]))
                curve.epochs.append(None if epoch is None else int(epoch))
                curve.values.append(finite(cell))
    return curves
