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
from datamodules.channel.transforms import constant
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
    equal = labels.unsqueeze(1) == others
    known = labels.unsqueeze(1) != UNKNOWN
    return (equal & known).double() @ _weights(weights, labels.device, math.inf)


def positive_pairs(
    labels: Tensor, others: Tensor, rho: float = 5.0, weights: Mapping[str, float] | None = None
) -> Tensor:
    """Return the mask of positive pairs, of similarity rho or more, bool (B, M); arguments as of `similarity`."""
    # tolerance for rounding errors of the sum of weights
    return similarity(labels, others, weights) >= rho - 1e-9


def adversarial_pairs(
    labels: Tensor,
    others: Tensor,
    weights: Mapping[str, float] | None = None,
    thresholds: Mapping[str, float] = THRESHOLDS,
) -> Tensor:
    """Return the mask of adversarial pairs (ConTwin eq 2 and Table 4), from which negatives are mined, bool (B, M).

    A pair is adversarial when the weights of the axes in which it differs sum to 1 or more. Scenarios and LOS states
    differ when they are not equal; downtilts when their difference exceeds the threshold, and mobility classes when
    that of their mean speeds does, so that two vehicles never differ; carriers when it reaches the threshold, so that
    3.5 and 28 GHz do not differ, but 28 and 60 GHz do.

    Args:
        labels: Domain labels, shape (B, A).
        others: Domain labels, shape (M, A).
        weights: Weight lambda_a in [0, 1] of each axis by name, by default 1, so that one axis is sufficient.
        thresholds: Thresholds of the differences by axis, at least 0, in the units of `THRESHOLDS`.

    Raises:
        ValueError: A weight is outside [0, 1], a threshold is below 0, or the axis of either is unknown.
    """
    if set(thresholds) != set(THRESHOLDS):
        raise ValueError(f"thresholds must be of {', '.join(THRESHOLDS)}, got {', '.join(sorted(thresholds))}")
    if not all(value >= 0 for value in thresholds.values()):
        raise ValueError(f"thresholds must be numbers of at least 0, got {dict(thresholds)}")
    mobility, tilt, frequency = (AXES.index(name) for name in ("mobility", "tilt", "frequency"))
    one, other = labels.unsqueeze(1), others.unsqueeze(0)
    gap = (one - other).abs()
    differs = gap > 0
    differs[..., tilt] = gap[..., tilt] > thresholds["tilt"]
    differs[..., frequency] = gap[..., frequency] >= thresholds["frequency"]
    differs &= (one != UNKNOWN) & (other != UNKNOWN)
    speed, other_speed = (class_speed(label[:, mobility]) for label in (labels, others))
    # an unknown speed is NaN, which exceeds no threshold
    differs[..., mobility] = (speed.unsqueeze(1) - other_speed).abs() > thresholds["mobility"]
    return differs.double() @ _weights(weights, labels.device, 1.0) >= 1 - 1e-9


def class_speed(mobility: Tensor) -> Tensor:
    """Return the mean speed [m/s] of mobility classes, float64; NaN for an unknown class."""
    middle = constant(tuple(sum(SPEEDS[name]) / 2 for name in MOBILITIES), mobility.device, torch.float64)
    return torch.where(mobility >= 0, middle[mobility.clamp_min(0)], math.nan)


def _weights(weights: Mapping[str, float] | None, device: torch.device, most: float) -> Tensor:
    given = {} if weights is None else weights
    unknown = sorted(set(given) - set(AXES))
    if unknown:
        raise ValueError(f"weights must be of the axes {', '.join(AXES)}, not {', '.join(unknown)}")
    values = [float(given.get(name, 1.0)) for name in AXES]
    if not all(0 <= value <= most for value in values):
        raise ValueError(f"weights must lie in [0, {most:g}], got {dict(given)}")
    return constant(tuple(values), device, torch.float64)
