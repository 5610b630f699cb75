"""Assignment of links to the train, validation and test sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.dataset import ChannelDataset
from datamodules.defaults import rule_of
from datamodules.errors import InputError, check_positive
from datamodules.sides.domains import Worlds
from datamodules.sides.groups import group_links
from datamodules.sides.splits import SIDES, guard_band, split_links
from datamodules.sites.link_file import read_links
from datamodules.sites.numbering import rows_by_number
from datamodules.sites.site import Site, area_numbers

if TYPE_CHECKING:
    from datamodules.module import ChannelDataModule


def make_sides(data: ChannelDataModule, sites: Sequence[Site]) -> tuple[dict[str, ChannelDataset], dict[str, Any]]:
    """Assign users to the sides, and select the links of each side by its conditions.

    Args:
        data: The datamodule with its settings, after arrays and sequence are set from the sites.
        sites: The sites.

    Returns:
        The sides by name, with `all` for all links, and their description, see `ChannelDataModule.describe`.

    Raises:
        InputError: A side is empty, or has too few links for a setting.
    """
    served = torch.cat([site.links.has_path for site in sites]).numpy()
    rows = _rows(data, sites, served)
    first = rows if rows.ndim == 1 else rows[:, 0]
    rule = rule_of(sites, data.split)
    facts: dict[str, Any] = {"split": rule, "dropped_no_path": int((~served).sum())}
    masks = split_links(sites, rule, data.fractions, data.block, data.holdout, data.split_seed)
    dealt = dict(zip(SIDES, (mask[first] for mask in masks), strict=True))
    dropped: NDArray[np.bool_] = np.zeros(len(rows), dtype=bool)
    if rule == "spatial":
        dropped = dealt["train"] & guard_band(sites, masks, data.guard)[first]
        facts |= {"guard": data.guard, "dropped_guard": int(dropped.sum())}
        dealt["train"] &= ~dropped
        if not dealt["train"].any():
            raise InputError(
                f"no link on the train side is {data.guard:g} m from those of other sides: lower data.guard, or raise "
                f"data.block from {data.block:g} m"
            )
    worlds = Worlds(sites, rows, data.bs, data.sequence, data.seed)
    given = {"train_on": data.train_on, "validate_on": data.validate_on, "test_on": data.test_on}
    for (side, mask), share, (key, conditions) in zip(dealt.items(), data.fractions, given.items(), strict=True):
        if conditions:
            chosen = worlds.select(f"data.{key}", conditions)
            mask &= chosen
            dropped &= chosen | (side != "train")
            facts[key] = conditions
        if not mask.any() and (share > 0 or side == "train"):
            seen = f" that data.{key} lets through" if conditions else ""
            raise InputError(
                f"no link with a path{seen} on the {side} side of the `{rule}` split: change data.fractions, "
                f"data.block or data.{key}, or add data"
            )
    keep = np.flatnonzero(dealt["train"])
    if data.train_links is not None:
        keep = _named(data.train_links, sites, rows, keep)
        facts["train_links"] = str(data.train_links)
    if data.num_labels is not None:
        keep = _drawn(data, worlds, keep, np.flatnonzero(dropped))
        facts["num_labels"] = data.num_labels
    dealt["train"] = np.isin(np.arange(len(rows)), keep)
    sides = {side: ChannelDataset(sites, rows[mask]) for side, mask in dealt.items()}
    return {**sides, "all": ChannelDataset(sites, rows)}, facts


def _rows(data: ChannelDataModule, sites: Sequence[Site], served: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the numbers of the links, (n,), or of groups of links, (n, G).

    Rows without any path, and those beyond `max_per_area`, are omitted.
    """
    rows = np.flatnonzero(served)
    if data.group is not None:
        rows = group_links(sites, data.group, data.base_stations, data.variants or ())
        rows = rows[served[rows].any(1)]
    if data.max_per_area is None:
        return rows
    area = np.repeat(area_numbers(sites), [len(site) for site in sites])[rows if rows.ndim == 1 else rows[:, 0]]
    rng = np.random.default_rng([data.seed, 1])  # not the order that the split draws
    chosen = [rng.permutation(here)[: data.max_per_area] for here in rows_by_number(area)]
    kept: NDArray[np.int64] = rows[np.sort(np.concatenate(chosen))]
    return kept


def _named(file: str, sites: Sequence[Site], rows: NDArray[np.int64], train: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of the train side of which the file names any link."""
    links = read_links(file, sites)
    named = train[np.isin(rows[train], links).reshape(len(train), -1).any(1)]
    strange = links[~np.isin(links, rows[named])]
    if len(strange) or not len(links):
        starts = np.cumsum([0, *(len(site) for site in sites)])
        number = int(np.searchsorted(starts, strange[0], side="right") - 1) if len(strange) else 0
        first = f", first row {strange[0] - starts[number]} of site {sites[number].name}" if len(strange) else ""
        raise InputError(
            f"data.train_links: {len(strange)} of the {len(links)} links that {file} names are not on the train "
            f"side{first}: choose among its links, with the same data.split and data.split_seed"
        )
    return named


def _drawn(
    data: ChannelDataModule, worlds: Worlds, train: NDArray[np.int64], dropped: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Draw a number of rows of the train side, or of each given label; keep rows of other labels.

    Args:
        data: The datamodule, with `num_labels`.
        worlds: Domain labels of the rows.
        train: Rows of the train side.
        dropped: Rows that would be on the train side but for the guard band, for messages.
    """
    if isinstance(data.num_labels, int):
        return _draw(data, "data.num_labels", data.num_labels, train, len(dropped))
    counts = data.num_labels or {}
    if not counts:
        raise InputError("data.num_labels names no label: give a number for each, such as {twin: 40}, or null")
    masks = worlds.split_by("data.num_labels", [str(name) for name in counts])
    kept = [train[~np.any(masks, axis=0)[train]]]
    for (name, number), mask in zip(counts.items(), masks, strict=True):
        kept.append(_draw(data, f"data.num_labels.{name}", number, train[mask[train]], int(mask[dropped].sum())))
    return np.concatenate(kept)


def _draw(data: ChannelDataModule, key: str, count: int, rows: NDArray[np.int64], dropped: int) -> NDArray[np.int64]:
    check_positive("data", **{key.removeprefix("data."): count})
    if count > len(rows):
        held, advice = f"{len(rows)} links", "or raise the share of the train side in data.fractions"
        if dropped:
            held += f", and the guard band has dropped {dropped}"
            advice = f"lower data.guard from {data.guard:g} m, or raise data.block from {data.block:g} m"
        raise InputError(f"{key} is {count}, but the train side holds {held}: ask for fewer, {advice}")
    return np.random.default_rng(data.seed).permutation(rows)[:count]
