"""Split rules: users are assigned to train, validation and test, with all their links."""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.errors import InputError, check_choice, shown
from datamodules.sites.numbering import content_keys, number_rows, rows_by_number
from datamodules.sites.site import Site
from datamodules.sites.user_matching import ground_numbers, user_numbers

#: `site` is the old word for `area`
Rule = Literal["random", "spatial", "time", "area", "city", "site"]
Fractions = tuple[float, float, float]

#: one boolean mask a side, over all links in order of the sites
Masks = tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]
SIDES = ("train", "validation", "test")


def split_links(
    sites: Sequence[Site],
    rule: Rule,
    fractions: Fractions = (0.7, 0.1, 0.2),
    block: float = 20.0,
    holdout: Sequence[str] = (),
    seed: int = 0,
) -> Masks:
    """Split the users of all sites, each with its links to every base station and in every variant.

    Args:
        sites: The sites; links are numbered through them in order.
        rule: `random` permutes users, so that test users may be adjacent to training users (as in the papers, for
            comparison only); `spatial` permutes square blocks of the map, the same for all base stations of an area;
            `time` trains on the first and tests on the last links recorded; `area` holds out whole areas, `city` whole
            cities. Areas that overlap on the ground are on one side.
        fractions: Fractions of train, validation and test; with `area` and `city` of the areas or cities.
        block: Side length of a block [m].
        holdout: Areas (`area`) or cities (`city`) of the test side, with `*` as in file names; drawn at random when
            empty.
        seed: Random seed.

    Returns:
        Disjoint masks over all links, one for each side. No user (`user_numbers`) is on two sides. With `time`, links
        within the gap between two sides, and users recorded before and after it, are on no side.

    Raises:
        InputError: The rule is unknown, a side is empty, a held-out name is unknown, or the fractions do not sum to 1.
    """
    rule = current_name(rule)
    if len(fractions) != 3 or min(fractions) < 0 or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
        raise InputError(f"data.fractions must be three numbers of sum 1, got {tuple(fractions)}")
    if holdout and rule not in ("area", "city"):
        raise InputError(f"data.holdout is for data.split `area` or `city`, not `{rule}`: set one, or leave it out")
    site_of = np.repeat(np.arange(len(sites)), [len(site) for site in sites])
    user = user_numbers(sites)
    rng = np.random.default_rng(seed)
    names = [site.city if rule == "city" else site.area for site in sites]
    if rule == "random":
        side = _assign(user, fractions, rng)
        _warn_of_copies(sites, side)
    elif rule == "spatial":
        side = _assign(_blocks(sites, site_of, user, block), fractions, rng)
    elif rule == "time":
        side = _assign_in_time(sites, fractions)
    else:
        first = {name: i for i, name in reversed(list(enumerate(names)))}
        group = ground_numbers(sites) if rule == "area" else np.array([first[name] for name in names])
        side = _assign_groups(sites, site_of, user, group, names, fractions, block, holdout, rng)
    _leave_out_straddling(user, side)
    masks = (side == 0, side == 1, side == 2)
    for name, mask, share in zip(SIDES, masks, fractions, strict=True):
        if not mask.any() and (share > 0 or name == "train"):
            held, keys = f"{len(site_of)} links of {len(sites)} sites", "data.fractions or data.block"
            if rule in ("area", "city"):
                held, keys = f"the {rule} {shown(sorted(set(names)))}", "data.fractions or data.holdout"
            raise InputError(
                f"the {name} side of the `{rule}` split is empty, as the data hold {held}: change data.split, {keys}, "
                "or add data"
            )
    return masks


def current_name(rule: Rule) -> Rule:
    """Return the current name of a rule, with a warning for a former one.

    Raises:
        InputError: There is no such rule.
    """
    check_choice("data.split", rule, Rule)
    if rule != "site":
        return rule
    warnings.warn("the split `site` is now called `area`: write data.split: area", FutureWarning, stacklevel=3)
    return "area"


def guard_band(sites: Sequence[Site], masks: Masks, width: float) -> NDArray[np.bool_]:
    """Return the links of the train side whose user is too near to a user of another side.

    Horizontal distances are compared between users of the same area and of overlapping areas, for all base stations and
    variants. Links without any path are ignored.

    Args:
        sites: The sites.
        masks: Output of `split_links`.
        width: Least distance [m]; 0 disables the guard band.

    Returns:
        Mask over all links.
    """
    from scipy.spatial import cKDTree

    barred = np.zeros(len(masks[0]), dtype=bool)
    if width <= 0:
        return barred
    position = np.concatenate([site.links.position.numpy()[:, :2] for site in sites])
    served = torch.cat([site.links.has_path for site in sites]).numpy()
    ground = np.repeat(ground_numbers(sites), [len(site) for site in sites])
    train, other = masks[0] & served, (masks[1] | masks[2]) & served
    for here in rows_by_number(ground):
        near, links = here[other[here]], here[train[here]]
        if len(near) and len(links):
            distance, _ = cKDTree(position[near]).query(position[links], distance_upper_bound=width)
            barred[links] = np.isfinite(distance)
    user = user_numbers(sites)
    return masks[0] & np.isin(user, user[barred])


def _leave_out_straddling(user: NDArray[np.int64], side: NDArray[np.int8]) -> None:
    """Set the side of links of users that are on several sides to 3 (none), in place."""
    count = user.max(initial=0) + 1
    on = np.stack([np.bincount(user[side == number], minlength=count) > 0 for number in range(3)])
    side[(on.sum(0) > 1)[user]] = 3


def _warn_of_copies(sites: Sequence[Site], side: NDArray[np.int8]) -> None:
    """Warn of validation and test links that are exact copies of training links."""
    key = np.concatenate([content_keys(site.links.content()) for site in sites])
    served = np.concatenate([site.links.has_path.numpy() for site in sites])
    trained, other = key[(side == 0) & served], key[(side != 0) & served]
    count = int(np.isin(other, trained).sum())
    if count:
        warnings.warn(
            f"{count} of {len(other)} validation and test links of the `random` split are exact copies of training "
            "links: remove the copies from the data, or choose another data.split",
            stacklevel=3,
        )


def _assign(unit: NDArray[np.int64], fractions: Fractions, rng: np.random.Generator) -> NDArray[np.int8]:
    """Assign permuted units (one number for each link) to the sides by their fractions of links; return the sides."""
    units, inverse, counts = np.unique(unit, return_inverse=True, return_counts=True)
    order = rng.permutation(len(units))
    # a unit goes where its middle falls, so that large units do not all spill over to one side
    middle = np.cumsum(counts[order]) - counts[order] / 2
    edges = np.cumsum(fractions)[:2] * counts.sum()
    side = np.empty(len(units), dtype=np.int8)
    side[order] = np.searchsorted(edges, middle, side="right")
    return side[inverse]


def _assign_in_time(sites: Sequence[Site], fractions: Fractions) -> NDArray[np.int8]:
    """Assign links to train, validation and test in temporal order; return the sides, 3 for none.

    A side ends with the last link that is complete at a time given by the fractions. The next side begins later by the
    duration of the longest link, so that overlapping windows of one device cannot share a snapshot.
    """
    spans = []
    for site in sites:
        stamps = site.links.timestamps
        if stamps is None:
            raise InputError(
                f"the `time` split needs timestamps, and site {site.name} has none: set another data.split"
            )
        stamps = stamps.reshape(len(site), -1)
        spans.append(torch.stack((stamps[:, 0], stamps[:, -1]), 1).numpy())
    begin, end = np.concatenate(spans).T
    order = np.sort(begin)
    side = np.full(len(begin), 3, dtype=np.int8)
    start = -np.inf
    for number, share in enumerate(np.cumsum(fractions)):
        last = round(share * len(order))
        stop = order[last] if last < len(order) else np.inf
        side[(begin >= start) & (end < stop)] = number
        start = stop + (end - begin).max()
    return side


def _blocks(
    sites: Sequence[Site], site_of: NDArray[np.int64], user: NDArray[np.int64], block: float
) -> NDArray[np.int64]:
    """Return the number of the map block of each link, common to all base stations of an area."""
    if block <= 0:
        raise InputError(f"data.block must be positive [m], got {block}")
    position = np.concatenate([site.links.position.numpy()[:, :2] for site in sites])
    if not np.isfinite(position).all():
        raise InputError(
            "the `spatial` split needs the positions of all users, and some are unknown: set data.split to "
            "`time`, where there are timestamps, or to `random`"
        )
    # where its first link has it: stored twice, a user may lie a rounding error beyond the edge of a block
    _, first, number_of = np.unique(user, return_index=True, return_inverse=True)
    cell = np.floor(position[first] / block).astype(np.int64)[number_of]
    return number_rows(ground_numbers(sites)[site_of], *cell.T)


def _assign_groups(
    sites: Sequence[Site],
    site_of: NDArray[np.int64],
    user: NDArray[np.int64],
    group: NDArray[np.int64],
    names: list[str],
    fractions: Fractions,
    block: float,
    holdout: Sequence[str],
    rng: np.random.Generator,
) -> NDArray[np.int8]:
    """Assign whole groups of sites to the test side, and part of the others to validation."""
    held = {name for pattern in holdout for name in fnmatch.filter(set(names), pattern)}
    unknown = [pattern for pattern in holdout if not fnmatch.filter(held, pattern)]
    if unknown:
        raise InputError(
            f"data.holdout names {', '.join(unknown)}, but the data hold {shown(sorted(set(names)))}: name some "
            "of these, or change data.split"
        )
    if holdout:
        test = np.isin(group, group[[name in held for name in names]])[site_of]
    else:
        test = _assign(group[site_of], (1 - fractions[2], 0.0, fractions[2]), rng) == 2
    share = fractions[1] / (fractions[0] + fractions[1]) if fractions[0] + fractions[1] else 0.0
    # whole areas validate if about that share of them can be assigned, otherwise blocks of the training areas: the
    # windows of one city overlap and form few large groups
    area = ground_numbers(sites)[site_of]
    assigned = _assign(area[~test], (1 - share, share, 0.0), rng)
    if not 0.5 * share <= (assigned == 1).mean() <= 2 * share:
        assigned = _assign(_blocks(sites, site_of, user, block)[~test], (1 - share, share, 0.0), rng)
    side = np.full(len(site_of), 2, dtype=np.int8)
    side[~test] = assigned
    return side
