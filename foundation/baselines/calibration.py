"""Codewords without a calibrator: those of users nearby, whose channels are known."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_mean(positions: Tensor, known_positions: Tensor, known_weights: Tensor, neighbours: int = 1) -> Tensor:
    """Return the mean weights of the nearest users that are known; of one, the grid search of twin calibration V-B.

    Args:
        positions: Coordinates of the users [m], shape (B, C).
        known_positions: Coordinates of the known users [m], shape (M, C).
        known_weights: Their DFT weights, shape (M, Q); all should sum to one, or the strong ones decide.
        neighbours: How many, at most M.

    Returns:
        Shape (B, Q).
    """
    # not by a matrix product, which at kilometres from the origin loses the metres
    distances = torch.cdist(positions, known_positions, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.topk(min(neighbours, len(known_positions)), largest=False).indices
    return known_weights[nearest].mean(1)
