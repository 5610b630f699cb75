"""Reads the released files of one WAIR-D area into sites."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from datamodules.errors import DatasetNotFoundError, InputError, refuse_pointer
from datamodules.maps.raster import trace
from datamodules.sites.environment import Environment
from datamodules.sites.paths import Paths
from datamodules.sites.site import Site
from datamodules.sources.waird.restricted_pickle import load_npy

#: unit of length of maps and positions [m]
MAP_UNIT = 0.5
#: heights of base stations and users [m], which are not in the files
BS_HEIGHT, UE_HEIGHT = 6.0, 1.5
#: height of all buildings [m], which is not in the files: known only to exceed base stations
BUILDING_HEIGHT = 10.0
#: speed of light used in the ray tracing of the data set [m/s]
WAIRD_SPEED_OF_LIGHT = 3e8
#: largest error of a straight path's length [m]
LOS_TOLERANCE = 1e-3
#: heights of base stations, then users [m], written by `write_waird` where they differ from the above
HEIGHT_FILE = "Height.npy"
#: pixels of environment.png darker than this are buildings
_DARK = 0.9 * 255


def frequency_tag(frequency: float) -> str:
    """Return a carrier [Hz] as in WAIR-D's file names: "28_0" for 28e9.

    Raises:
        InputError: The carrier is not a positive multiple of 0.1 GHz.
    """
    tenths = round(frequency / 1e8)
    if tenths < 1 or abs(tenths * 1e8 - frequency) > 1:
        raise InputError(f"WAIR-D names carriers in steps of 0.1 GHz, got {frequency} Hz (28 GHz is 28e9)")
    return f"{tenths // 10}_{tenths % 10}"


def read_area(
    _: Path, *, names: tuple[str, ...], folder: Path, channel_file: str, parameters: dict[str, Any]
) -> list[Site]:
    """Read the sites of one area: the `make` of a recipe.

    Args:
        names: Names of the sites, one for each base station.
        folder: The area's released folder.
        channel_file: The file with the gains.
        parameters: Parameters of the recipe, of which scenario, area, frequency [Hz] and max_paths are used.

    Raises:
        DatasetNotFoundError: A file is missing.
        InputError: A file cannot be read; the message names it.
    """
    plan = Plan.read(folder, parameters["scenario"])
    environment = _read_environment(folder / "environment.png", plan.extent)
    links = Links(folder / "Path.npy", folder / channel_file)
    return [
        Site(
            name=name,
            links=links.paths(b, plan.bs[b], plan.ue, parameters["frequency"], parameters["max_paths"]),
            bs_position=torch.from_numpy(plan.bs[b]).float(),
            carrier_frequency=parameters["frequency"],
            area=parameters["area"],
            city=parameters["area"],
            environment=environment,
            domain={"scenario": "waird", "frequency": parameters["frequency"]},
            provenance={**parameters, "building_height": BUILDING_HEIGHT, "versions": {"numpy": np.__version__}},
        )
        for b, name in enumerate(names)
    ]


@dataclass(frozen=True)
class Plan:
    """Geometry of an area: extent (2,), base stations (S, 3) and users (U, 3) [m]."""

    extent: NDArray[np.float64]
    bs: NDArray[np.float64]
    ue: NDArray[np.float64]

    @classmethod
    def read(cls, folder: Path, scenario: int) -> Plan:
        """Read Info.npy: the extent, then rows (bs x, bs y, ue x, ue y) of links, or one base station and the users."""
        file = folder / "Info.npy"
        info = _vector(file)
        values = info[2:].size
        if values < 4 or values % (4 if scenario == 1 else 2):
            raise InputError(f"{file} has {info.size} values, which fits no area of scenario {scenario}")
        if not np.isfinite(info).all() or (info[:2] <= 0).any():
            raise InputError(f"{file} holds positions that are not finite, or an extent that is not positive")
        if scenario == 1:
            bs, ue = _unpair(info[2:].reshape(-1, 4), file)
        else:
            bs, ue = info[None, 2:4], info[4:].reshape(-1, 2)
        height = np.array([BS_HEIGHT] * len(bs) + [UE_HEIGHT] * len(ue))
        if (folder / HEIGHT_FILE).exists():
            height = _vector(folder / HEIGHT_FILE)
            if height.shape != (len(bs) + len(ue),) or not np.isfinite(height).all():
                raise InputError(f"{folder / HEIGHT_FILE} does not hold one finite height a base station and user")
        flat = np.concatenate((bs, ue)) * MAP_UNIT
        position = np.column_stack((flat, height))
        return cls(info[:2] * MAP_UNIT, position[: len(bs)], position[len(bs) :])


def _unpair(rows: NDArray[np.float64], file: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Split the rows (bs x, bs y, ue x, ue y) of every pair into base stations (S, 2) and users (U, 2).

    Released areas have 5 x 30 rows; exported areas have any number, inferred from the first repetition of the users.
    """
    again = np.flatnonzero((rows[:, 2:] == rows[0, 2:]).all(1))[1:]
    for users in (*again.tolist(), len(rows)):
        if len(rows) % users == 0:
            grid = rows.reshape(-1, users, 4)
            bs, ue = grid[:, 0, :2], grid[0, :, 2:]
            if (grid[..., :2] == bs[:, None]).all() and (grid[..., 2:] == ue).all():
                return bs, ue
    raise InputError(f"{file} does not pair every base station with every user in order")


def _vector(file: Path) -> NDArray[np.float64]:
    """Read a numeric array."""
    value = load_npy(file)
    try:
        return np.asarray(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise InputError(f"{file} holds no numbers") from error


class Links:
    """The two tables of an area by link name: delays and angles in Path.npy, complex gains in H_*.npy."""

    def __init__(self, path_file: Path, channel_file: Path) -> None:
        self.tables: list[tuple[Path, dict[str, Any]]] = []
        for file in (path_file, channel_file):
            table = load_npy(file)
            if not isinstance(table, dict):
                raise InputError(f"{file} holds no table of links")
            self.tables.append((file, table))

    def paths(
        self, b: int, bs: NDArray[np.float64], ue: NDArray[np.float64], frequency: float, max_paths: int
    ) -> Paths:
        """Return the rays from base station `b` at `bs` (3,) to the users at `ue` (U, 3) [m]."""
        links = [self._link(b, user, float(np.linalg.norm(ue[user] - bs))) for user in range(len(ue))]
        count = np.array([len(link["delay"]) for link in links])
        filled = np.arange(max(1, count.max())) < count[:, None]

        def pad(name: str) -> torch.Tensor:
            values = np.concatenate([link[name] for link in links])
            table = np.zeros((*filled.shape, *values.shape[1:]), dtype=values.dtype)
            table[filled] = values
            return torch.from_numpy(table)

        delay, gain = pad("delay"), pad("gain")
        broken = int((~pad("finite") & torch.from_numpy(filled)).sum())
        if broken:
            files = " and ".join(file.name for file, _ in self.tables)
            folder = self.tables[0][0].parent
            warnings.warn(f"{folder}: {broken} paths of bs{b} are not finite in {files} and are dropped", stacklevel=2)
        # gains are without the phase of propagation, which needs float64 for 1e5 periods
        phase = -2 * torch.pi * (delay * frequency).frac()
        return Paths.build(
            gain=gain * torch.polar(torch.ones_like(phase), phase),
            delay=delay,
            aod=pad("dod"),
            aoa=pad("doa"),
            position=torch.from_numpy(ue),
            bounces=pad("bounces"),
            los=torch.tensor([bool(link["los"]) for link in links]),
            max_paths=max_paths,
        )

    def _link(self, b: int, user: int, distance: float) -> dict[str, Any]:
        """Return one link in SI units; P may be 0."""
        key, link = self._look_up(0, b, user)
        gain = self._look_up(1, b, user)[1]
        file = self.tables[0][0]
        try:
            ray: dict[str, Any] = {"delay": np.asarray(link["taud"], dtype=np.float64).reshape(-1) * 1e-9}
            ray["gain"] = np.asarray(gain, dtype=np.complex128).reshape(-1)
            for name in ("dod", "doa"):
                zenith, azimuth = np.asarray(link[name], dtype=np.float64).reshape(-1, 2).T
                with np.errstate(invalid="ignore"):  # infinite angles are dropped below
                    azimuth = np.remainder(azimuth + np.pi, 2 * np.pi) - np.pi
                ray[name] = np.stack((azimuth, zenith), axis=-1)
            sizes = {name: len(value) for name, value in ray.items()}
            if len(set(sizes.values())) > 1:
                raise ValueError(f"its numbers of paths disagree: {sizes}")
            straight = np.abs(ray["delay"] * WAIRD_SPEED_OF_LIGHT - distance) < LOS_TOLERANCE
            first = ray["delay"] == np.min(ray["delay"], initial=np.inf, where=np.isfinite(ray["delay"]))
            # `bounces` and `los` are in exported files only, not in released ones
            ray["bounces"] = np.asarray(link.get("bounces", ~(straight & first)), dtype=np.uint8).reshape(-1)
            ray["finite"] = np.isfinite(np.abs(ray["gain"]) + ray["delay"] + (ray["dod"] + ray["doa"]).sum(1))
            seen = ray["finite"] & (ray["gain"] != 0) & (ray["bounces"] == 0)
            ray["los"] = np.asarray(link.get("los", seen.any())) == 1
        except KeyError as error:
            raise InputError(f"{file}: link {key} has no {error}, only {', '.join(map(str, link))}") from error
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            also = self.tables[1][0].name
            raise InputError(f"{file} and {also}: link {key} cannot be read ({error})") from error
        return ray

    def _look_up(self, table: int, b: int, user: int) -> tuple[str, Any]:
        """Return a link's name and entry; names in scenario 2 have five-digit user numbers."""
        file, links = self.tables[table]
        for key in (f"bs{b}_ue{user}", f"bs{b}_ue{user:05d}"):
            if key in links:
                return key, links[key]
        raise InputError(f"{file} has no link bs{b}_ue{user}; its {len(links)} links start with {list(links)[:2]}")


def _read_environment(file: Path, extent: NDArray[np.float64]) -> Environment:
    """Extract building outlines from environment.png, which covers `extent` (2,) [m] at any resolution."""
    refuse_pointer(file)
    try:
        with Image.open(file) as image:
            colour = image.convert("RGBA")
        gray = Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour).convert("L")
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"{file} is missing: the download or its unpacking is incomplete") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{file} is no image that can be read ({error})") from error
    bounds = (0.0, 0.0, float(extent[0]), float(extent[1]))
    footprints = trace(np.asarray(gray) < _DARK, bounds)
    return Environment(footprints, np.full(len(footprints), BUILDING_HEIGHT), bounds)
