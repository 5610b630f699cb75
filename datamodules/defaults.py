"""Defaults of a datamodule that depend on its sites: arrays, subcarriers, snapshot interval and split rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from datamodules.channel.arrays import Array, is_polarized
from datamodules.channel.motion import Sequence as Snapshots
from datamodules.channel.ofdm import OFDM
from datamodules.errors import InputError, check_size
from datamodules.sides.splits import Rule, current_name
from datamodules.sites.paths import Paths
from datamodules.sites.recording import Recording, same_interval
from datamodules.sites.site import Site

_BS, _UE, _OFDM = Array(rows=1, cols=32), Array(), OFDM()


def grid_of(sites: Sequence[Site], bs: Array | None, ue: Array | None, ofdm: OFDM | None) -> tuple[Array, Array, OFDM]:
    """Return the arrays and subcarriers of a datamodule.

    Args:
        sites: The sites, all with rays or all recorded with equal (R, T, K).
        bs: Base-station array; by default that of the recordings, or 1 x 32 for paths.
        ue: User array; by default that of the recordings, or a single antenna for paths.
        ofdm: Subcarriers; by default those of the recordings, or 64 on 10 MHz for paths.

    Raises:
        InputError: A recording differs from the given settings, recordings differ from each other, an array has two
            polarisations and a site with rays the vertical one alone, or a channel does not fit memory.
    """
    for site in sites if is_polarized(*filter(None, (bs, ue))) else ():
        if isinstance(site.links, Paths) and site.links.polarization is None:
            raise InputError(
                f"data.bs or data.ue has two polarisations, but the rays of site {site.name} the vertical one alone: "
                "set its polarization to single, or take a source with `polarization: dual`, such as CDL"
            )
    recorded = [(site.name, site.links) for site in sites if isinstance(site.links, Recording)]
    for name, links in recorded[:1]:
        users, antennas, subcarriers = links.pairs.shape[-4:-1]
        bs = _array("data.bs", bs, "T", antennas, links.bs_shape, name)
        ue = _array("data.ue", ue, "R", users, links.ue_shape, name)
        ofdm = _grid(ofdm, subcarriers, links.bandwidth, name)
    for name, links in recorded[1:]:
        _compare(*recorded[0], name, links)
    bs, ue, ofdm = bs or _BS, ue or _UE, ofdm or _OFDM
    sizes = ue.num_elements, bs.num_elements, ofdm.num_subcarriers
    check_size(math.prod(sizes), f"a channel of (R, T, K) = {sizes}, by data.ue, data.bs and data.ofdm,")
    return bs, ue, ofdm


def sequence_of(sites: Sequence[Site], sequence: Snapshots | None) -> Snapshots | None:
    """Return the sequence settings, with the interval of the recordings if there are any.

    Raises:
        InputError: Recordings differ in their interval, among each other or from the settings, or are too short; or
            speeds are given, but all users have those of their source or recording.
    """
    if sequence is None:
        return None
    speeds = [name for name in ("speed", "mobility") if getattr(sequence, name) is not None]
    if speeds and all("speed" in site.domain or isinstance(site.links, Recording) for site in sites):
        raise InputError(
            f"data.sequence.{speeds[0]} is given, but all users have the speeds of their source or recording: leave it "
            "out, or set the speeds of data.source"
        )
    for site in sites:
        links = site.links
        if not isinstance(links, Recording):
            continue
        if links.interval > 0:
            if sequence.interval is not None and not same_interval(sequence.interval, links.interval):
                raise InputError(
                    f"data.sequence.interval is {sequence.interval:.4g} s, but the snapshots of recording {site.name} "
                    f"are {links.interval:.4g} s apart: leave it out, or use recordings of one interval"
                )
            sequence = replace(sequence, interval=sequence.interval or links.interval)
            if sequence.window is not None and not sequence.steps:
                raise InputError(
                    f"data.sequence.window is {sequence.window:.4g} s, but the snapshots of recording {site.name} are "
                    f"{links.interval:.4g} s apart: make it at least that, or leave it out"
                )
        if not links.is_series:
            held = links.pairs.shape[1] if links.pairs.ndim == 6 else 1
            if held < sequence.length:
                advice = " (a recording of one device is imported with axes that name N and no U)" * (held == 1)
                raise InputError(
                    f"data.sequence asks for {sequence.length} snapshots, but recording {site.name} has {held}{advice}"
                )
    return sequence


def rule_of(sites: Sequence[Site], split: Rule | None) -> Rule:
    """Return the given split rule, by default `spatial` if all positions are known, otherwise `time`.

    Raises:
        InputError: Neither all positions nor all timestamps are known.
    """
    if split is not None:
        return current_name(split)
    if all(site.is_located for site in sites):
        return "spatial"
    if all(site.links.timestamps is not None for site in sites):
        return "time"
    raise InputError(
        "the data have neither positions of all users nor timestamps: set data.split to `random`, or to `area` with "
        "several files"
    )


def _compare(first: str, one: Recording, second: str, other: Recording) -> None:
    """Raise an `InputError` when two recordings cannot be used together."""
    for word, a, b in (
        ("(R, T, K)", tuple(one.pairs.shape[-4:-1]), tuple(other.pairs.shape[-4:-1])),
        ("rows and columns at the base station", one.bs_shape, other.bs_shape),
        ("rows and columns at the user", one.ue_shape, other.ue_shape),
        ("bandwidth [Hz]", one.bandwidth, other.bandwidth),
    ):
        if a != b and a is not None and b is not None:
            raise InputError(
                f"recordings {first} and {second} differ in {word}, {a} and {b}: use one of them at a time"
            )


def _array(key: str, given: Array | None, axis: str, elements: int, shape: tuple[int, int] | None, name: str) -> Array:
    if given is None:
        return Array(*(shape or (1, elements)))
    if given.num_elements != elements or shape not in (None, given.shape):
        held = f"{axis} = {elements}" + (f" antennas in {shape[0]} rows and {shape[1]} columns" if shape else "")
        raise InputError(
            f"{key} is {given.shape[0]} x {given.shape[1]}, but recording {name} has {held}: leave {key} out (null)"
        )
    return given


def _grid(given: OFDM | None, subcarriers: int, bandwidth: float | None, name: str) -> OFDM:
    if given is None:
        if bandwidth is None:
            raise InputError(f"recording {name} has no bandwidth: set data.ofdm")
        return OFDM(subcarriers, bandwidth)
    known = given.bandwidth if bandwidth is None else bandwidth
    if given.num_subcarriers != subcarriers or abs(given.bandwidth / known - 1) > 1e-6:
        raise InputError(
            f"data.ofdm has {given.num_subcarriers} subcarriers on {given.bandwidth:g} Hz, but recording {name} has "
            f"K = {subcarriers} on {known:g} Hz: leave data.ofdm out (null)"
        )
    return given
