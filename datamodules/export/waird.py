"""Areas of any source, written in the released layout of WAIR-D."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from datamodules.errors import InputError
from datamodules.files import replacing
from datamodules.maps.raster import Bounds, rasterize
from datamodules.sites.site import Site
from datamodules.sources.waird.area import BS_HEIGHT, HEIGHT_FILE, MAP_UNIT, UE_HEIGHT, frequency_tag


def write_waird(
    areas: Sequence[Sequence[Site]],
    root: Path | str,
    scenario: Literal[1, 2] = 1,
    first_id: int = 1,
    pixel_size: float = MAP_UNIT,
) -> list[Path]:
    """Write areas as `root/scenario_N/<id>/` with Info.npy, Path.npy, H_*.npy and environment.png.

    `WAIRD(root=...)` and the tools made for WAIR-D read the result; the latter expect 5 base stations x 30 users in
    scenario 1 and 1 x 10,000 in scenario 2. Positions are moved so that the area's lower left corner is the origin.
    Not part of the layout: city names, domain labels, array orientation, and the buildings' heights. Added are
    `bounces` and `los` of every link in Path.npy, and Height.npy where a base station is not at 6 m or a user not at
    1.5 m; other readers ignore them.

    Args:
        areas: Areas, each the sites of its base stations, which share their users.
        root: Folder to write into.
        scenario: 1, any number of base stations, or 2, exactly one.
        first_id: Number of the first area; numbers are consecutive.
        pixel_size: Side of a pixel of environment.png [m].

    Returns:
        The folder of each area.

    Raises:
        InputError: The sites of an area do not share their users, carrier and environment, the layout cannot name an
            area or carrier, or a folder exists.
    """
    if scenario not in (1, 2):
        raise InputError(f"scenario must be 1 or 2, got {scenario!r}")
    if first_id < 0 or first_id + len(areas) > 100_000:
        raise InputError(f"WAIR-D numbers areas with five digits: {len(areas)} areas from {first_id} on do not fit")
    if pixel_size <= 0:
        raise InputError(f"pixel_size must be positive, got {pixel_size}")
    folders = [Path(root) / f"scenario_{scenario}" / f"{first_id + i:05d}" for i in range(len(areas))]
    for sites, folder in zip(areas, folders, strict=True):
        _check(sites, scenario)
        if folder.exists():
            raise InputError(f"{folder} exists: remove it, or change root or first_id")
    for sites, folder in zip(areas, folders, strict=True):
        try:
            with replacing(folder) as temporary:
                temporary.mkdir(parents=True)
                _write_area(sites, temporary, scenario, pixel_size)
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error}") from error
    return folders


def _check(sites: Sequence[Site], scenario: int) -> None:
    """Raise an `InputError` where sites do not form an area."""
    if not sites or (scenario == 2 and len(sites) != 1):
        raise InputError(f"an area of scenario {scenario} needs {'a' if scenario == 1 else 'exactly one'} base station")
    first = sites[0]
    if len(first) == 0:
        raise InputError(f"site {first.name} has no users")
    frequency_tag(first.carrier_frequency)
    for site in sites[1:]:
        facts = [(each.carrier_frequency, each.environment.digest) for each in (site, first)]
        if facts[0] != facts[1] or not torch.equal(site.paths.position, first.paths.position):
            raise InputError(
                f"sites {first.name} and {site.name} do not share their users, carrier and environment: not one area"
            )
    for site in sites:
        if site.bs_orientation.any():
            warnings.warn(f"WAIR-D cannot hold the array orientation of site {site.name}: it is lost", stacklevel=3)


def _write_area(sites: Sequence[Site], folder: Path, scenario: int, pixel_size: float) -> None:
    """Write the files of one area."""
    first = sites[0]
    bs = torch.stack([site.bs_position for site in sites]).double().numpy()
    ue = first.paths.position.double().numpy()
    x_min, y_min, x_max, y_max = first.environment.bounds
    everything = np.concatenate((bs[:, :2], ue[:, :2], [(x_min, y_min), (x_max, y_max)]))
    low = everything.min(0)
    # whole pixels, so that image and positions have the same scale
    cols, rows = (max(1, math.ceil(extent / pixel_size - 1e-6)) for extent in everything.max(0) - low)
    bounds = (low[0], low[1], low[0] + cols * pixel_size, low[1] + rows * pixel_size)

    flat_bs, flat_ue = ((position[:, :2] - low) / MAP_UNIT for position in (bs, ue))
    if scenario == 1:
        pairs = np.concatenate((np.repeat(flat_bs, len(ue), axis=0), np.tile(flat_ue, (len(bs), 1))), axis=1)
    else:
        pairs = np.concatenate((flat_bs, flat_ue))
    extent = np.array([cols, rows]) * pixel_size / MAP_UNIT
    np.save(folder / "Info.npy", np.concatenate((extent, pairs.reshape(-1))))

    height = np.concatenate((bs[:, 2], ue[:, 2]))
    if (height != np.array([BS_HEIGHT] * len(bs) + [UE_HEIGHT] * len(ue))).any():
        np.save(folder / HEIGHT_FILE, height)

    rays: dict[str, dict[str, Any]] = {}
    gains: dict[str, NDArray[np.complex128]] = {}
    for b, site in enumerate(sites):
        for user in range(len(site)):
            key = f"bs{b}_ue{user}" if scenario == 1 else f"bs{b}_ue{user:05d}"
            rays[key], gains[key] = _link(site, user)
    np.save(folder / "Path.npy", np.array(rays, dtype=object), allow_pickle=True)
    channel = f"H_{frequency_tag(first.carrier_frequency)}_G.npy"
    np.save(folder / channel, np.array(gains, dtype=object), allow_pickle=True)
    _draw(sites, bounds, (rows, cols)).save(folder / "environment.png")


def _link(site: Site, user: int) -> tuple[dict[str, Any], NDArray[np.complex128]]:
    """Return one link in WAIR-D's units: delays [ns], angles (zenith, azimuth) [rad]; gains without propagation."""
    paths = site.paths
    keep = paths.mask[user]
    delay = paths.delay[user, keep].double().numpy()
    turns = delay * site.carrier_frequency
    ray = {
        "taud": delay * 1e9,
        "dod": paths.aod[user, keep].double().flip(-1).numpy(),
        "doa": paths.aoa[user, keep].double().flip(-1).numpy(),
        "bounces": paths.bounces[user, keep].numpy(),
        "los": int(paths.los[user]),
    }
    return ray, paths.gain[user, keep].to(torch.complex128).numpy() * np.exp(2j * np.pi * (turns - np.floor(turns)))


def _draw(sites: Sequence[Site], bounds: Bounds, shape: tuple[int, int]) -> Image.Image:
    """Draw dark buildings on white ground."""
    mask = rasterize(sites[0].environment.footprints, bounds, shape)
    return Image.fromarray(np.where(mask[..., None], np.uint8(64), np.uint8(255)).repeat(3, axis=-1))
