"""Baseline of twin calibration: the codewords of the nearest training users, whose channels are known."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_mean(positions: Tensor, known_positions: Tensor, known_weights: Tensor, neighbours: int = 1) -> Tensor:
    """Return the mean weights of the nearest known users; one neighbour is the grid search of twin calibration V-B.

    Args:
        positions: Coordinates of the users [m], shape (B, C).
        known_positions: Coordinates of the known users [m], shape (M, C).
        known_weights: Their DFT weights, shape (M, Q), each row of sum one; else strong users dominate the mean.
        neighbours: Number of nearest users to average, at most M.

    Returns:
        Shape (B, Q).
    """
    # not by a matrix product, whose rounding kilometres from the origin exceeds a metre
    distances = torch.cdist(positions, known_positions, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.topk(min(neighbours, len(known_positions)), largest=False).indices
    return known_weights[nearest].mean(1)


def places(links: dict[str, Tensor]) -> Tensor:
    """Return positions of users and base stations (n, 6) [m]: links of two base stations are far apart."""
    return torch.cat([links["position"] + links["bs_position"], links["bs_position"]], dim=1)
