"""Which links are alike, and which are adversarial: sets of pairs by their domain labels (ConTwin section 5).

Labels are the rows (B, A) of `datamodules.sides.domains`. A condition that is not known agrees with no other and
differs from none.
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
        weights: Weight of each axis by name, not negative; by default 1 each, so that links alike in all have 5.

    Raises:
        ValueError: A weight is negative or of an unknown axis.
    """
    alike = labels.unsqueeze(1) == others
    known = labels.unsqueeze(1) != UNKNOWN
    return (alike & known).double() @ _weights(weights, labels.device, math.inf)


def alike(labels: Tensor, others: Tensor, rho: float = 5.0, weights: Mapping[str, float] | None = None) -> Tensor:
    """Return which pairs are positives, those of similarity rho or more, bool (B, M); arguments as of `similarity`."""
    # weights that sum to rho may miss it by their rounding
    return similarity(labels, others, weights) >= rho - 1e-9


def adversarial(
    labels: Tensor,
    others: Tensor,
    speed: Tensor | None = None,
    other_speed: Tensor | None = None,
    weights: Mapping[str, float] | None = None,
    thresholds: Mapping[str, float] = THRESHOLDS,
) -> Tensor:
    """Return which pairs are adversarial negatives (ConTwin eq 2 and Table 4), the pool of the loss, bool (B, M).

    A pair is one when the weights of the axes in which it differs sum to 1 or more. Scenario and LOS differ when they
    are not the same; speed and downtilt by more than their threshold, and carriers by theirs or more: so 3.5 and 28 GHz
    do not differ, 28 and 60 GHz do.

    Args:
        labels: Domain labels, shape (B, A).
        others: Domain labels, shape (M, A).
        speed: Speed of each link [m/s], shape (B,); by default the middle of its mobility class.
        other_speed: Speed of the others [m/s], shape (M,).
        weights: Weight lambda_a in [0, 1] of each axis by name; by default 1 each, so that one axis is enough.
        thresholds: Least differences by axis, in the units of `THRESHOLDS`.

    Raises:
        ValueError: A weight is outside [0, 1], or weight or threshold are of an unknown axis.
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
    # a speed that is not known is NaN, which is above no threshold
    differs[..., mobility] = (speeds[0].unsqueeze(1) - speeds[1]).abs() > thresholds["mobility"]
    return differs.double() @ _weights(weights, labels.device, 1.0) >= 1 - 1e-9


def class_speed(mobility: Tensor) -> Tensor:
    """Return the middle of the speeds [m/s] of mobility classes, float64, NaN where the class is not known."""
    middle = torch.tensor([sum(SPEEDS[name]) / 2 for name in MOBILITIES], dtype=torch.float64, device=mobility.device)
    return torch.where(mobility >= 0, middle[mobility.clamp_min(0)], math.nan)


def _weights(weights: Mapping[str, float] | None, device: torch.device, most: float) -> Tensor:
    given = {} if weights is None else weights
    unknown = sorted(set(given) - set(AXES))
    if unknown:
        raise ValueError(f"weights know the axes {', '.join(AXES)}, not {', '.join(unknown)}")
    values = [float(given.get(name, 1.0)) for name in AXES]
    if not all(0 <= value <= most for value in values):
        raise ValueError(f"weights must lie in [0, {most:g}], got {dict(given)}")
    return torch.tensor(values, dtype=torch.float64, device=device)
