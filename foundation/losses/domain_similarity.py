"""Positive and adversarial pairs of links by their domain labels (ConTwin section 5).

Labels are the rows (B, A) of `datamodules.sides.domains`. An unknown label is neither equal to nor different from any
other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from datamodules.channel.motion import MOBILITIES, SPEEDS
from datamodules.sides.domains import AXES, UNKNOWN

#: ConTwin's Table 4, by axis: speed [m/s], downtilt [degrees] and carrier [MHz], the units of the labels
THRESHOLDS: Mapping[str, float] = {"mobility": 30 / 3.6, "tilt": 5.0, "frequency": 25e3}


def similarity(labels: Tensor, others: Tensor, weights: Mapping[str, float] | None = None) -> Tensor:
    """Return the weighted Hamming similarity, the sum over axes of w_a [a_i = a_j], shape (B, M).

    Args:
        labels: Domain labels, shape (B, A).
        others: Domain labels, shape (M, A).
        weights: Nonnegative weight of each axis by name, by default 1, so that links equal in all axes have 5.

    Raises:
        ValueError: A weight is negative, or its axis is unknown.
    """
    alike = labels.unsqueeze(1) == others
    known = labels.unsqueeze(1) != UNKNOWN
    return (alike & known).double() @ _weights(weights, labels.device, math.inf)


def alike(labels: Tensor, others: Tensor, rho: float = 5.0, weights: Mapping[str, float] | None = None) -> Tensor:
    """Return the mask of positive pairs, of similarity rho or more, bool (B, M); arguments as of `similarity`."""
    # tolerance for rounding errors of the sum of weights
    return similarity(labels, others, weights) >= rho - 1e-9


def adversarial(
    labels: Tensor,
    others: Tensor,
    speed: Tensor | None = None,
    other_speed: Tensor | None = None,
    weights: Mapping[str, float] | None = None,
    thresholds: Mapping[str, float] = THRESHOLDS,
) -> Tensor:
    """Return the mask of adversarial pairs (ConTwin eq 2 and Table 4), from which negatives are mined, bool (B, M).

    A pair is adversarial when the weights of the axes in which it differs sum to 1 or more. Scenarios and LOS states
    differ when they are not equal; speeds and downtilts when their difference exceeds the threshold; carriers when it
    reaches the threshold, so that 3.5 and 28 GHz do not differ, but 28 and 60 GHz do.

    Args:
        labels: Domain labels, shape (B, A).
        others: Domain labels, shape (M, A).
        speed: Speed of each link [m/s], shape (B,); by default the mean of its mobility class.
        other_speed: Speed of the others [m/s], shape (M,).
        weights: Weight lambda_a in [0, 1] of each axis by name, by default 1, so that one axis is sufficient.
        thresholds: Thresholds of the differences by axis, in the units of `THRESHOLDS`.

    Raises:
        ValueError: A weight is outside [0, 1], or the axis of a weight or threshold is unknown.
    """
    if set(thresholds) != set(THRESHOLDS):
        raise ValueError(f"thresholds must be of {', '.join(THRESHOLDS)}, got {', '.join(sorted(thresholds))}")
    mobility, tilt, frequency = (AXES.index(name) for name in ("mobility", "tilt", "frequency"))
    one, other = labels.unsqueeze(1), others.unsqueeze(0)
    gap = (one - other).abs()
    differs = gap > 0
    differs[..., tilt] = gap[..., tilt] > thresholds["tilt"]
    differs[..., frequency] = gap[..., frequency] >= thresholds["frequency"]
    differs &= (one != UNKNOWN) & (other != UNKNOWN)
    speeds = [
        class_speed(label[:, mobility]) if given is None else given.double()
        for label, given in ((labels, speed), (others, other_speed))
    ]
    # an unknown speed is NaN, which exceeds no threshold
    differs[..., mobility] = (speeds[0].unsqueeze(1) - speeds[1]).abs() > thresholds["mobility"]
    return differs.double() @ _weights(weights, labels.device, 1.0) >= 1 - 1e-9


def class_speed(mobility: Tensor) -> Tensor:
    """Return the mean speed [m/s] of mobility classes, float64; NaN for an unknown class."""
    middle = torch.tensor([sum(SPEEDS[name]) / 2 for name in MOBILITIES], dtype=torch.float64, device=mobility.device)
    return torch.where(mobility >= 0, middle[mobility.clamp_min(0)], math.nan)


def _weights(weights: Mapping[str, float] | None, device: torch.device, most: float) -> Tensor:
    given = {} if weights is None else weights
    unknown = sorted(set(given) - set(AXES))
    if unknown:
        raise ValueError(f"weights must be of the axes {', '.join(AXES)}, not {', '.join(unknown)}")
    values = [float(given.get(name, 1.0)) for name in AXES]
    if not all(0 <= value <= most for value in values):
        raise ValueError(f"weights must lie in [0, {most:g}], got {dict(given)}")
    return torch.tensor(values, dtype=torch.float64, device=device)
