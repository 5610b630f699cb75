"""Refinement of a model trained on a digital twin by links of the target world (twin feedback sections V-B, V-C).

Three phases: the model is trained on the twin; links of the target world of large error are selected; training
continues on the selected links alone (naive) or together with those of the twin (rehearsal). The refined model replaces
the offline one if its error on held-out target links is smaller.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.errors import InputError

#: selection of target links: at random, those of an NMSE above a threshold, or those of the largest NMSE
Selection = Literal["random", "threshold", "top"]


def select(
    error: Tensor, rule: Selection, count: int | None = None, threshold_db: float | None = None, seed: int = 0
) -> Tensor:
    """Select links of the target world for the refinement (twin feedback section V-C).

    Args:
        error: Linear NMSE of each link under the offline model, shape (M,); NaN for a link without power, which is
            never selected.
        rule: `random`; `top`, the largest NMSE first; or `threshold`, all links above it.
        count: Number of links. With `threshold` the largest number, drawn at random, by default all.
        threshold_db: NMSE [dB] above which a link is selected by `threshold`.
        seed: Random seed.

    Returns:
        Indices of the links, int64, ascending except for `top`.

    Raises:
        InputError: The rule is unknown, `count` or `threshold_db` is missing, or there are too few links.
    """
    if rule not in get_args(Selection):
        raise InputError(f"links are selected by {', '.join(get_args(Selection))}, got {rule}")
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
    """Return the order of the links of both worlds in one epoch of refinement.

    Args:
        num_twin: Links of the twin, the first ones of the union.
        num_target: Selected links of the target world, the last ones of the union.
        mix: Share of target links in an epoch. By default every link of the union once, as in the paper. With 1 the
            target links alone, naive fine-tuning; otherwise every link of the twin once, and target links repeated to
            that share, with numbers of repetitions that differ by at most one.
        seed: Random seed.
        epoch: Number of the epoch, part of the seed, so that a resumed run has the same order.

    Returns:
        Indices into the union.

    Raises:
        InputError: `mix` is outside [0, 1], or a world of nonzero share has no link.
    """
    if mix is not None and not 0 <= mix <= 1:
        raise InputError(f"mix must be in [0, 1], got {mix:g}")
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
    """Return the largest correlation of each channel with those of another set (twin feedback eq 14).

    Args:
        channels: Complex, shape (M, ...).
        known: Channels of the twin, shape (D, ...).
        chunk: Channels processed at a time.

    Returns:
        Largest |<h, h'>| / (|h| |h'|) over the twin, (M,) in [0, 1]; 0 for a channel of zeros.
    """
    units = [_unit(value.flatten(1)) for value in (channels, known)]
    return torch.cat([(part @ units[1].mH).abs().amax(1) for part in units[0].split(chunk)])  # type: ignore[no-untyped-call]


def _unit(rows: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norm > 0, norm, torch.ones_like(norm))


def replaces(offline: Tensor, refined: Tensor) -> bool:
    """Return whether a refined model replaces the offline one.

    Args:
        offline: Linear NMSE of the offline model on target links held out of the refinement, shape (M,).
        refined: Linear NMSE of the refined model on the same links, shape (M,).

    Returns:
        Whether the mean is smaller; False if any value is NaN.

    Raises:
        ValueError: The shapes differ.
    """
    if offline.shape != refined.shape or not len(offline):
        raise ValueError(f"cannot compare {tuple(offline.shape)} with {tuple(refined.shape)} links: give both the same")
    return bool(refined.mean() < offline.mean())


def forgotten(nmse_db: Tensor) -> Tensor:
    """Return the forgetting of each world after sequential training [dB].

    Args:
        nmse_db: NMSE [dB] after each stage (row) in each world (column), shape (stages, worlds).

    Returns:
        NMSE after the last stage minus the smallest one of all stages, (worlds,), at least 0.
    """
    return nmse_db[-1] - nmse_db.amin(0)
