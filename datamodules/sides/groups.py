"""Groups of links of one user: to the base stations of its area, or in the variants of a twin."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.errors import InputError, check_choice
from datamodules.sites.site import Site, area_numbers

#: attribute in which the links of a row differ
Group = Literal["station", "variant"]


def group_links(
    sites: Sequence[Site], group: Group, base_stations: int | None = None, variants: Sequence[str] = ()
) -> NDArray[np.int64]:
    """Return the grouped links of every user, shape (users, G).

    Args:
        sites: The sites; those of one area share their users, row by row.
        group: Attribute in which the links of a row differ. Variants of a twin have a row for each base station.
        base_stations: Number S of base stations, the first of each area; by default all.
        variants: Names of the variants, in order; output of `variant_names`.

    Raises:
        InputError: The group is unknown, or the areas differ in base stations or variants, or these do not share their
            users.
    """
    check_choice("data.group", group, Group)
    starts = np.cumsum([0, *(len(site) for site in sites)])
    rows = []
    for numbers in _sites_by_group(sites, group).values():
        chosen, area = numbers, sites[numbers[0]].area
        if group == "station":
            chosen = numbers[:base_stations]
        else:
            of = [sites[number].domain.get("variant") for number in numbers]
            if any(of.count(name) != 1 for name in variants):
                raise InputError(
                    f"data.variants are {', '.join(variants)}, but a base station of area {area} has "
                    f"{', '.join(map(str, of))}: choose among those that every one has"
                )
            chosen = [numbers[of.index(name)] for name in variants]
        if base_stations is not None and len(chosen) < base_stations:
            raise InputError(f"data.base_stations is {base_stations}, but area {area} has {len(chosen)}")
        position = sites[chosen[0]].links.position
        # also of base stations that are not selected, whose users would be omitted without notice
        if any(not torch.equal(position, sites[n].links.position) for n in (numbers if group == "station" else chosen)):
            what, hint = {
                "station": ("base stations", "of a DeepMIMO scenario set unserved to true"),
                "variant": ("variants", "take the source MatchedUsers"),
            }[group]
            raise InputError(f"the {what} of area {area} do not share their users, which data.group needs: {hint}")
        rows.append(starts[chosen] + np.arange(len(position))[:, None])
    sizes = sorted({row.shape[1] for row in rows})
    if len(sizes) > 1:
        raise InputError(f"areas have {' or '.join(map(str, sizes))} base stations: set data.base_stations")
    return np.concatenate(rows)


def variant_names(sites: Sequence[Site], wanted: Sequence[str] | None = None) -> list[str]:
    """Return the variants of a group in order: the given ones, or all in the order of the sites.

    Raises:
        InputError: The sites have no variants or not the given ones, or a variant is given twice.
    """
    known = list(dict.fromkeys(site.domain["variant"] for site in sites if "variant" in site.domain))
    if not known:
        raise InputError("data.group is variant, but the data have no variants: take the source Twins or MatchedUsers")
    names = known if wanted is None else list(wanted)
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise InputError(f"data.variants must name some of {', '.join(known)}, each once, got {names}")
    return names


def _sites_by_group(sites: Sequence[Site], group: Group) -> dict[Hashable, list[int]]:
    """Return groups of site numbers that differ in the attribute of the group alone."""
    couples: dict[Hashable, list[int]] = {}
    for number, (site, area) in enumerate(zip(sites, area_numbers(sites), strict=True)):
        where = (*site.bs_position.tolist(), *site.bs_orientation.tolist())
        couples.setdefault((area, site.domain.get("variant") if group == "station" else where), []).append(number)
    return couples
