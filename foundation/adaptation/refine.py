"""Refinement of a model trained on a digital twin by a few links of the real world (twin feedback sections V-B, V-C).

Three phases: a model is trained on the twin; the links of the target world that it serves badly are chosen; it is
trained on, over the chosen links alone (naive) or with those of the twin as well (rehearsal). It is kept as it was
unless it then does better on target links that it has not seen.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.errors import InputError

#: which target links are fed back whole: any, those of an NMSE above a threshold, or those of the largest NMSE
Selection = Literal["random", "threshold", "top"]


def select(
    error: Tensor, rule: Selection, count: int | None = None, threshold_db: float | None = None, seed: int = 0
) -> Tensor:
    """Choose the links of the target world to refine with (twin feedback section V-C).

    Args:
        error: NMSE of each link under the model as it is, linear, shape (M,); NaN for a link without power, which is
            never chosen.
        rule: `random`; `top`, the largest NMSE first; or `threshold`, every link above it.
        count: How many. Under `threshold` the most that are taken, drawn by seed, and by default all.
        threshold_db: NMSE [dB] above which a link is fed back.
        seed: Draws.

    Returns:
        Indices of the links, int64; ascending, but for `top`.

    Raises:
        InputError: The rule lacks its number, or there are fewer links than `count`, or none above the threshold.
    """
    known = error.isfinite().nonzero().squeeze(1)
    if rule == "threshold":
        if threshold_db is None:
            raise InputError("selection by threshold needs threshold_db, an NMSE [dB]")
        known = known[error[known] > 10 ** (threshold_db / 10)]
        if not len(known):
            raise InputError(f"no link has an NMSE above {threshold_db:g} dB: lower threshold_db")
        if count is None or count >= len(known):
            return known
    if count is None or not 1 <= count <= len(known):
        raise InputError(f"selection by {rule} needs a count of 1 to {len(known)} links, got {count}")
    if rule == "top":
        return known[error[known].argsort(descending=True, stable=True)[:count]]
    keep = np.random.default_rng(seed).permutation(len(known))[:count]
    return known[torch.from_numpy(np.sort(keep)).to(known.device)]


def rehearsal(
    num_twin: int, num_target: int, mix: float | None = None, seed: int = 0, epoch: int = 0
) -> NDArray[np.int64]:
    """Return the order in which an epoch of refinement serves the links of both worlds.

    Args:
        num_twin: Links of the twin, which come first in the union.
        num_target: Chosen links of the target world, which follow.
        mix: Share of target links in training. By default that of the union, each link once, as in the paper. With 1 an
            epoch is the target alone, naive fine-tuning; else it is every link of the twin once, and the target links
            as often as it takes, the one no more than once more than the other.
        seed: Draws, with the epoch, so that a resumed run sees the same order.
        epoch: Which epoch.

    Returns:
        Indices into the union.

    Raises:
        InputError: `mix` lies outside [0, 1], or a world that it asks for has no link.
    """
    if mix is not None and not 0 <= mix <= 1:
        raise InputError(f"mix must lie in [0, 1], got {mix:g}")
    if (mix != 0 and num_target < 1) or (mix != 1 and num_twin < 1):
        raise InputError(
            f"refinement with a mix of {mix} lacks links: {num_twin} of the twin, {num_target} of the target"
        )
    rng = np.random.default_rng([seed, epoch])
    if mix is None:
        return rng.permutation(num_twin + num_target)
    if mix == 1:
        return num_twin + rng.permutation(num_target)
    count = round(num_twin * mix / (1 - mix))
    passes = [rng.permutation(num_target) for _ in range(-(-count // num_target))] if count else []
    again = num_twin + np.concatenate([np.zeros(0, dtype=np.int64), *passes])[:count]
    return rng.permutation(np.concatenate([np.arange(num_twin), again]))


def largest_correlation(channels: Tensor, known: Tensor, chunk: int = 256) -> Tensor:
    """Return how alike each channel is to the most alike of another set (twin feedback eq 14).

    Args:
        channels: Complex, shape (M, ...).
        known: Channels of the twin, shape (D, ...).
        chunk: Channels at once.

    Returns:
        Largest |<h, h'>| / (|h| |h'|) over the twin, (M,) in [0, 1]; 0 for a channel of zeros.
    """
    units = [_unit(value.flatten(1)) for value in (channels, known)]
    return torch.cat([(part @ units[1].mH).abs().amax(1) for part in units[0].split(chunk)])  # type: ignore[no-untyped-call]


def _unit(rows: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norm > 0, norm, torch.ones_like(norm))


def replaces(offline: Tensor, refined: Tensor) -> bool:
    """Say whether a refined model takes the place of the one before.

    Args:
        offline: NMSE of the earlier model on target links held out of the refinement, linear, shape (M,).
        refined: That of the refined model on the same links.

    Returns:
        Whether the mean is smaller; a model that fails on any of them, with a NaN, is not better.

    Raises:
        ValueError: They are not the same links.
    """
    if offline.shape != refined.shape or not len(offline):
        raise ValueError(f"cannot compare {tuple(offline.shape)} with {tuple(refined.shape)} links: give both the same")
    return bool(refined.mean() < offline.mean())


def forgotten(nmse_db: Tensor) -> Tensor:
    """Return how much a model that learned one world after another has lost of each [dB].

    Args:
        nmse_db: NMSE [dB] after each stage (row) in each world (column), shape (stages, worlds).

    Returns:
        What the last stage is worse by than the best one so far, (worlds,), not below 0.
    """
    return nmse_db[-1] - nmse_db.amin(0)
