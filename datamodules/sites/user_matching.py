"""Matching of users between sites: base stations, frequency bands and twin variants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.errors import InputError
from datamodules.sites.numbering import number_rows
from datamodules.sites.site import Site, area_numbers


def pair(sites_a: Sequence[Site], sites_b: Sequence[Site], tolerance: float = 1e-3) -> list[tuple[Tensor, Tensor]]:
    """Match users by position, site by site.

    Args:
        sites_a: Sites, such as those of one band.
        sites_b: Sites of the same base stations in the same order.
        tolerance: Largest distance of two positions of one user or base station [m].

    Returns:
        For each pair of sites, index tensors (M,), int64, ascending in the first: `a.paths[first]` and
        `b.paths[second]` are the same M users, row by row. Users of only one of the sites are omitted.

    Raises:
        InputError: The base stations differ, users of a site have equal or unknown positions, or two match one user.
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
            raise InputError(f"users of {site.name} are nearer than {tolerance} m to each other: they cannot be paired")
    distance, index = trees[1].query(trees[0].data, distance_upper_bound=tolerance)
    first = np.flatnonzero(np.isfinite(distance))
    if len(np.unique(index[first])) < len(first):
        raise InputError(
            f"two users of {a.name} are both within {tolerance:g} m of one of {b.name}: lower the tolerance, or give "
            "the same positions"
        )
    return torch.from_numpy(first), torch.from_numpy(index[first].astype(np.int64))


def user_numbers(sites: Sequence[Site]) -> NDArray[np.int64]:
    """Return the user number of each link of all sites, in order of the first links.

    Sites of an area with the same positions share their users row by row. Otherwise, and between areas that overlap on
    the ground (such as two bands of a city), users of equal position, rounded to 1 mm, are one user. Rows of equal
    position within a site, such as the snapshots of a device at rest, are different users.

    Returns:
        User numbers, shape (number of links,), with links counted over the sites in order.
    """
    area, ground = np.array(area_numbers(sites), dtype=np.int64), ground_numbers(sites)
    sizes = np.array([len(site) for site in sites], dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    site_of = np.repeat(np.arange(len(sites)), sizes)
    links = np.arange(len(site_of))
    _, first, number_of = np.unique(area, return_index=True, return_inverse=True)
    shares = np.array([_same_rows(sites[a], site) for a, site in zip(first[number_of], sites, strict=True)], dtype=bool)
    shares = (np.bincount(number_of, ~shares) == 0)[number_of]  # all sites of the area do
    # the link of the same row in the first site of the area
    user = np.where(shares[site_of], links - starts[site_of] + starts[first[number_of]][site_of], links)
    if not shares.all() or len(np.unique(ground)) < len(first):
        user = _merge_equal_positions(sites, site_of, ground[site_of], shares[site_of], user)
    number: NDArray[np.int64] = np.unique(user, return_inverse=True)[1].astype(np.int64)
    return number


def _same_rows(one: Site, other: Site) -> bool:
    a, b = one.links.position, other.links.position
    return one is other or (a.shape == b.shape and bool(torch.equal(a.nan_to_num(), b.nan_to_num())))


def _merge_equal_positions(
    sites: Sequence[Site],
    site_of: NDArray[np.int64],
    ground: NDArray[np.int64],
    shares: NDArray[np.bool_],
    user: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the first link of the user of every link, with users of equal position merged."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    position = np.concatenate([site.links.position.numpy() for site in sites]).astype(np.float64)
    located = np.flatnonzero(np.isfinite(position).all(1))
    spot = number_rows(ground[located], *np.round(1e3 * position[located]).T)
    pair = number_rows(spot, site_of[located])
    twice = np.bincount(pair)[pair] > 1
    crowded = np.bincount(spot, twice)[spot] > 0
    joins = ~crowded | ~shares[located]
    total = len(user)
    ends = np.concatenate([user, total + spot[joins]])
    begins = np.concatenate([np.arange(total), located[joins]])
    size = total + spot.max(initial=0) + 1
    graph = coo_array((np.ones(len(ends), dtype=bool), (begins, ends)), shape=(size, size))
    component = connected_components(graph, directed=False)[1][:total]
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    joined: NDArray[np.int64] = first[inverse]
    return joined


def ground_numbers(sites: Sequence[Site]) -> NDArray[np.int64]:
    """Return a number of each site, equal for sites of one area, or of overlapping areas of a city."""
    named: dict[str, int] = {}
    parent = [named.setdefault(site.area, i) for i, site in enumerate(sites)]

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    boxes: dict[int, NDArray[np.float32]] = {}
    for i, site in enumerate(sites):
        if len(site):
            position = site.links.position.numpy()[:, :2]
            box = np.concatenate([position.min(0), -position.max(0)])
            boxes[root(i)] = np.minimum(boxes.get(root(i), box), box)
    areas = list(boxes)
    corners = np.array([boxes[i] for i in areas]).reshape(-1, 4)
    for n, i in enumerate(areas):
        # two boxes overlap when each begins before the other ends; compared with all later ones at once
        later = corners[n + 1 :]
        overlap = (later[:, :2] <= -corners[n, 2:]).all(1) & (corners[n, :2] <= -later[:, 2:]).all(1)
        for j in (areas[n + 1 + k] for k in np.flatnonzero(overlap)):
            if sites[i].city == sites[j].city:
                parent[root(j)] = root(i)
    return np.array([root(i) for i in range(len(sites))], dtype=np.int64)
