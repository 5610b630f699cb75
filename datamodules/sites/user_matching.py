"""The same users in two places of storage: two bands of a city, two fidelities, twins with and without foliage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.sites.site import Site


def pair(sites_a: Sequence[Site], sites_b: Sequence[Site], tolerance: float = 1e-3) -> list[tuple[Tensor, Tensor]]:
    """Match users by position, site by site.

    Args:
        sites_a: Sites, say of one band.
        sites_b: As many sites in the same order, their base stations where those of `sites_a` are.
        tolerance: How far apart two positions of one user, or base station, may lie [m].

    Returns:
        For each couple of sites, index tensors (M,), int64, ascending in the first: `a.paths[first]` and
        `b.paths[second]` are the same M users, row by row. A user that only one of the sites serves is in neither.

    Raises:
        InputError: The sites cannot be coupled, or users of a site stand on one spot or nowhere.
    """
    if len(sites_a) != len(sites_b):
        raise InputError(f"cannot pair {len(sites_a)} sites with {len(sites_b)}: give both the same base stations")
    pairs = []
    for a, b in zip(sites_a, sites_b, strict=True):
        if (a.bs_position - b.bs_position).norm() > tolerance:
            raise InputError(
                f"cannot pair {a.name} with {b.name}: their base stations stand at {a.bs_position.tolist()} and "
                f"{b.bs_position.tolist()} [m]"
            )
        pairs.append(_match(a, b, tolerance))
    return pairs


def _match(a: Site, b: Site, tolerance: float) -> tuple[Tensor, Tensor]:
    from scipy.spatial import KDTree

    trees = []
    for site in (a, b):
        position = site.links.position.double().numpy()
        if not np.isfinite(position).all():
            raise InputError(f"users of {site.name} have no known position: they cannot be paired")
        trees.append(KDTree(position))
        if trees[-1].query_pairs(tolerance):
            raise InputError(f"users of {site.name} stand closer than {tolerance} m: they cannot be told apart")
    distance, index = trees[1].query(trees[0].data, distance_upper_bound=tolerance)
    first = np.flatnonzero(np.isfinite(distance))
    return torch.from_numpy(first), torch.from_numpy(index[first].astype(np.int64))
