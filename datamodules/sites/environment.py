"""`Environment`: the buildings around a base station."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from datamodules.errors import InputError


@dataclass(frozen=True)
class Environment:
    """Building footprints with heights, in the coordinates of the users.

    Attributes:
        footprints: Outline corners of each building [m], a (V, 2) float array, not closed; the outer outline for a
            building with courtyards.
        heights: Height of each building above the ground [m], shape (number of buildings,).
        bounds: The area of interest (x_min, y_min, x_max, y_max) [m].
    """

    footprints: tuple[NDArray[np.float64], ...]
    heights: NDArray[np.float64]
    bounds: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        if len(self.footprints) != len(self.heights):
            raise InputError(f"{len(self.footprints)} footprints but {len(self.heights)} heights")

    @classmethod
    def empty(cls, position: NDArray[np.floating]) -> Environment:
        """Return an environment without buildings around user positions (U, 2 or 3) [m]."""
        if len(position) == 0:
            return cls((), np.zeros(0), (0.0, 0.0, 0.0, 0.0))
        low, high = position[:, :2].min(0), position[:, :2].max(0)
        return cls((), np.zeros(0), (float(low[0]), float(low[1]), float(high[0]), float(high[1])))

    @property
    def polygons(self) -> list[shapely.Polygon]:
        """The footprints as valid shapely polygons."""
        return [shapely.make_valid(shapely.Polygon(corners)) for corners in self.footprints]

    @cached_property
    def digest(self) -> bytes:
        """Hash of 16 bytes, equal for equal environments."""
        parts = (np.asarray(self.bounds, dtype=np.float64), self.heights, *self.footprints)
        sizes = np.array([len(part) for part in parts])
        return hashlib.sha256(b"".join(part.tobytes() for part in (sizes, *parts))).digest()[:16]

    def clip(self, bounds: tuple[float, float, float, float]) -> Environment:
        """Keep the buildings that touch a window (x_min, y_min, x_max, y_max) [m], and make it the bounds."""
        window = shapely.box(*bounds)
        keep = [i for i, polygon in enumerate(self.polygons) if polygon.intersects(window)]
        return Environment(tuple(self.footprints[i] for i in keep), self.heights[keep], bounds)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, rounded to 1 mm."""
        return {
            "footprints": [np.round(corners, 3).tolist() for corners in self.footprints],
            "heights": np.round(self.heights, 3).tolist(),
            "bounds": list(self.bounds),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Environment:
        """Return the environment of the output of `to_json`."""
        footprints = tuple(np.asarray(corners, dtype=np.float64).reshape(-1, 2) for corners in data["footprints"])
        x_min, y_min, x_max, y_max = (float(value) for value in data["bounds"])
        return cls(footprints, np.asarray(data["heights"], dtype=np.float64), (x_min, y_min, x_max, y_max))
