"""Codewords without a calibrator: those of users nearby, whose channels are known."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_mean(places: Tensor, known_places: Tensor, known_weights: Tensor, neighbours: int = 1) -> Tensor:
    """Return the mean weights of the nearest users that are known; of one, the grid search of twin calibration V-B.

    Args:
        places: Where the users are [m], shape (B, C).
        known_places: Where the known users are, shape (M, C).
        known_weights: Their DFT weights, shape (M, Q); all should sum to one, or the strong ones decide.
        neighbours: How many, at most M.

    Returns:
        Shape (B, Q).
    """
    # not by a matrix product, which at kilometres from the origin loses the metres
    distances = torch.cdist(places, known_places, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.topk(min(neighbours, len(known_places)), largest=False).indices
    return known_weights[nearest].mean(1)
