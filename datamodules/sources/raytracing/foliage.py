"""Street trees: positions of canopies, and the attenuation of paths through them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.sources.raytracing import scenes
from datamodules.sources.raytracing.scene_geometry import open_geometry

#: a base station has at least this much air between it and the nearest leaf [m]
_CLEARANCE = 1.0


@dataclass(frozen=True)
class Foliage:
    """Trees in rows along the facades of a city, each a canopy in the shape of an ellipsoid.

    A canopy is a lossy material: a ray loses `attenuation` dB for every metre inside. As a radio material of relative
    permittivity 1.05, which is mostly air, 0.64 dB/m at 3.5 GHz is a conductivity of 0.4 mS/m, and 1.16 dB/m at 28 GHz
    one of 0.7 mS/m. Reflection by canopies (-38 dB at normal incidence), refraction and trunks are neglected. Trees
    change the power of paths alone: users, angles, delays and line of sight are the same with and without trees, and
    canopies do not count as interactions of a path.

    Streets narrower than twice `setback` have no trees.

    Args:
        spacing: Distance between the trees of a row [m].
        setback: Distance of the row from the facade [m].
        share: Fraction of these positions with a tree, drawn at random.
        radius: Least and largest horizontal radius of a canopy [m].
        bottom: Height of the lowest leaf above the ground [m], above the users.
        top: Least and largest height of the topmost leaf above the ground [m].
        attenuation: Specific attenuation [dB/m]; by default that of `attenuation_at` the carrier.
        seed: Random seed.

    Raises:
        InputError: An argument is out of range.
    """

    spacing: float = 10.0
    setback: float = 4.0
    share: float = 0.8
    radius: tuple[float, float] = (1.5, 3.0)
    bottom: float = 2.5
    top: tuple[float, float] = (6.0, 10.0)
    attenuation: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.radius[0] <= self.radius[1] < self.setback:
            raise InputError(f"foliage radius must be a range between 0 and setback ({self.setback:g} m)")
        if not self.bottom < self.top[0] <= self.top[1]:
            raise InputError(f"foliage top must be a range above bottom ({self.bottom:g} m)")
        if not 0 < self.spacing < math.inf or not 0 < self.share <= 1 or not 0 <= (self.attenuation or 0) < math.inf:
            raise InputError("foliage needs a positive spacing, a share in (0, 1], and attenuation of at least 0 dB/m")

    def canopies(self, file: Path) -> NDArray[np.float64]:
        """Plant a whole scene: centres and half axes (x, y, z, horizontal, vertical) [m], shape (K, 5)."""
        return _plant(self, file, scenes.stamp(file))


def attenuation_at(frequency: float) -> float:
    """Return the attenuation by trees in leaf [dB/m] at a carrier [Hz]: 0.64 at 3.5 GHz, 1.16 at 28 GHz.

    Weissberger's modified exponential decay for less than 14 m of leaves, from 230 MHz to 95 GHz: 0.45 f^0.284 with f
    in GHz (M. A. Weissberger, ESD-TR-81-101, 1982).
    """
    return float(0.45 * (frequency / 1e9) ** 0.284)


@lru_cache(maxsize=8)
def _plant(foliage: Foliage, file: Path, _: int) -> NDArray[np.float64]:
    geometry = open_geometry(file)
    rng = np.random.default_rng([foliage.seed, 2])
    rows = shapely.union_all(geometry.buildings.polygons).buffer(foliage.setback, quad_segs=2).boundary
    # rows of one tree or none are backyards and corners
    lines = [line for line in shapely.get_parts(rows) if line.length > foliage.spacing]
    spots = [
        shapely.line_interpolate_point(line, np.arange(foliage.spacing / 2, line.length, foliage.spacing))
        for line in lines
    ]
    xy = np.concatenate([np.zeros((0, 2)), *map(shapely.get_coordinates, spots)])
    xy = xy[rng.random(len(xy)) < foliage.share]
    xy = xy[geometry.is_outdoors(xy)]
    radius = rng.uniform(*foliage.radius, len(xy))
    half = (rng.uniform(*foliage.top, len(xy)) - foliage.bottom) / 2
    return np.column_stack([xy, geometry.ground(xy) + foliage.bottom + half, radius, half])


def clear_of(canopies: NDArray[np.float64], stations: NDArray[Any]) -> NDArray[np.float64]:
    """Remove the canopies (K, 5) at or near base stations (S, 3) [m]."""
    step = stations[:, None] - canopies[None, :, :3]
    half = canopies[:, [3, 3, 4]] + _CLEARANCE
    inside = ((step / half) ** 2).sum(-1) < 1
    return np.asarray(canopies[~inside.any(0)])


def chords(canopies: NDArray[np.float64], start: NDArray[Any], end: NDArray[Any]) -> NDArray[np.float64]:
    """Return the length of straight lines inside canopies.

    Args:
        canopies: Centres and half axes (x, y, z, horizontal, vertical) [m], shape (K, 5).
        start: One end of each line [m], shape (N, 3).
        end: The other end [m], shape (N, 3).

    Returns:
        Length inside [m], summed over canopies, shape (N,).
    """
    start, end = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    total = np.zeros(len(start))
    if not len(canopies) or not len(start):
        return total
    lines = shapely.linestrings(np.stack([start[:, :2], end[:, :2]], axis=1))
    reach = float(canopies[:, 3].max())
    line, tree = shapely.STRtree(shapely.points(canopies[:, :2])).query(lines, predicate="dwithin", distance=reach)
    half = canopies[tree][:, [3, 3, 4]]
    # in units of the half axes the canopy is a unit sphere, which the line p + t d enters and leaves at |p + t d| = 1
    p, d = (start[line] - canopies[tree, :3]) / half, (end[line] - start[line]) / half
    square, slope = (d * d).sum(1), (p * d).sum(1)
    root = np.sqrt(np.maximum(slope**2 - square * ((p * p).sum(1) - 1), 0))
    square = np.where(square > 0, square, 1.0)
    share = np.clip((root - slope) / square, 0, 1) - np.clip((-root - slope) / square, 0, 1)
    np.add.at(total, line, share * np.linalg.norm(end[line] - start[line], axis=1))
    return total


def lengths_inside(
    traced: Any, stations: NDArray[Any], users: NDArray[Any], canopies: NDArray[np.float64]
) -> NDArray[Any]:
    """Return the length of every traced path inside canopies.

    Args:
        traced: A `sionna.rt.Paths`, traced with `synthetic_array=True`.
        stations: Base-station positions [m], shape (S, 3).
        users: User positions [m], shape (U, 3).
        canopies: Centres and half axes [m], shape (K, 5).

    Returns:
        Length inside [m], shape (U, S, P).
    """
    valid = np.asarray(traced.valid)
    rows = np.nonzero(valid)
    user, station, _ = rows
    inside, last = np.zeros(len(user)), stations[station]
    for interaction, vertex in zip(np.asarray(traced.interactions), np.asarray(traced.vertices), strict=True):
        # a path with fewer interactions waits for its last step, to the user
        point = np.where(interaction[rows][:, None] != 0, vertex[rows], last)
        inside += chords(canopies, last, point)
        last = point
    length = np.zeros(valid.shape)
    length[rows] = inside + chords(canopies, last, users[user])
    return length
