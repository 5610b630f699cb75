"""Learning-rate schedules.

`constant`; `cosine`, with 5 % warm-up, updated every step; `restarts`, three cosines, each twice as long as the
previous one (environment-channel section IV-B); `plateau`, multiplication by 0.8 at the 11th validation in a
row without improvement (CSI-CLIP section IV-B: by 0.8 every ten epochs without improvement).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from datamodules.errors import InputError

Schedule = Literal["constant", "cosine", "restarts", "plateau"]
#: ends of the cosines of `restarts`
RESTARTS = (1 / 7, 3 / 7, 1.0)


def plateau(optimizer: Optimizer, mode: Literal["min", "max"]) -> ReduceLROnPlateau:
    """Return the schedule `plateau` of a score that is minimised (`min`) or maximised (`max`)."""
    return ReduceLROnPlateau(optimizer, mode=mode, factor=0.8, patience=10)


def cosine(optimizer: Optimizer, steps: float, stages: Sequence[float] = (1.0,)) -> LambdaLR:
    """Return a schedule of one or several cosines, each with a warm-up of 5 % and a final value of zero.

    Args:
        optimizer: The optimizer.
        steps: Number of steps of the training.
        stages: Ends of the cosines, as ascending fractions of the steps; the last one is 1.

    Raises:
        InputError: The number of steps is infinite.
    """
    if not math.isfinite(steps):
        raise InputError("the cosine schedule needs an end: set trainer.max_epochs or trainer.max_steps")
    ends = [round(steps * share) for share in stages]

    def factor(step: int) -> float:
        start, end = next(((s, e) for s, e in pairwise([0, *ends]) if step < e), (0, ends[-1]))
        length, step = max(1, end - start), step - start
        warmup = max(1, round(0.05 * length))
        if step < warmup:
            return (step + 1) / (warmup + 1)
        rest: float = min(1.0, (step - warmup) / max(1, length - warmup))
        return 0.5 * (1 + math.cos(math.pi * rest))

    return LambdaLR(optimizer, factor)
