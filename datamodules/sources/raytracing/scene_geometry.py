"""Ground, buildings and outdoor points of a scene, and positions of users and base stations."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.sites.environment import Environment
from datamodules.sources.raytracing import scenes

#: (x_min, y_min, x_max, y_max) [m]
Window = tuple[float, float, float, float]

Mount = Literal["roof", "street"]
#: version of the placement, to be raised when positions change, so that cached sites are rebuilt
PLACING = 2
#: largest height above the ground [m] of roads, kerbs and lawns, which count as ground
_GROUND_TOLERANCE = 0.5
#: half of the largest gap [m] between two outlines that encloses a courtyard
_TOUCHING = 0.1
#: least height of a roof with a base station [m]
_LOWEST_ROOF = 5.0
#: tolerance below a roof [m] within which a base station is moved onto it, and its height above the roof then [m]
_ON_ROOF = 0.1
#: points drawn at a time
_DRAWS = 4096
#: names of ground objects of any size
_GROUND_NAME = re.compile(r"(ground|terrain|floor|plane|land)(?![a-z])", re.IGNORECASE)


class SceneGeometry:
    """Top view of a scene: ground, buildings and outdoor points.

    The ground is every object named ground, terrain, floor, plane or land; without one, every flat object that spans
    more than half of the scene. Other objects more than half a metre above it are buildings.

    Args:
        file: Mitsuba XML file.

    Attributes:
        name: Name of the scene.
        bounds: Extent of the ground (x_min, y_min, x_max, y_max) [m].

    Raises:
        InputError: The scene cannot be read, or has no ground.
    """

    def __init__(self, file: Path) -> None:
        self.name = file.stem
        meshes = scenes.triangles(file)
        ground = {name for name in meshes if _GROUND_NAME.match(name)}
        if not ground:
            half = _plan_area(np.concatenate(list(meshes.values()))) / 2
            ground = {name for name, mesh in meshes.items() if _plan_area(mesh) > half and _is_flat(mesh)}
        if not ground:
            raise InputError(f"scene {file.stem} has no ground object: name it 'ground'")
        self._obstacles = [mesh for name, mesh in meshes.items() if name not in ground]
        everything = np.concatenate([meshes[name] for name in sorted(ground)])
        self._ground = _HeightMap(everything)
        self._roofs = _HeightMap(np.concatenate(self._obstacles or [np.zeros((0, 3, 3))]))
        (x_min, y_min), (x_max, y_max) = _corners(everything).tolist()
        self.bounds: Window = (x_min, y_min, x_max, y_max)

    def ground(self, xy: NDArray[Any]) -> NDArray[Any]:
        """Return the ground's height [m] at points (U, 2), shape (U,); NaN outside the scene."""
        return self._ground.height(xy)

    def surface(self, xy: NDArray[Any]) -> NDArray[Any]:
        """Return the height [m] of the topmost surface, ground or roof, at points (U, 2), shape (U,)."""
        return np.asarray(np.fmax(self._ground.height(xy), self._roofs.height(xy)))

    def is_open(self, xy: NDArray[Any]) -> NDArray[Any]:
        """Return a mask of the points (U, 2) with ground below and only sky above, shape (U,), bool."""
        return np.asarray(self.surface(xy) - self.ground(xy) < _GROUND_TOLERANCE)

    def is_outdoors(self, xy: NDArray[Any]) -> NDArray[Any]:
        """Return a mask of the open points (U, 2) outside courtyards of one or more buildings, shape (U,), bool."""
        return np.asarray(self.is_open(xy) & ~shapely.intersects_xy(self._built_up, xy[:, 0], xy[:, 1]))

    def stations(
        self,
        number: int,
        window: Window,
        mount: Mount,
        height: float,
        reach: float,
        sees: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]],
        rng: np.random.Generator,
    ) -> NDArray[Any]:
        """Draw positions of base stations, and select those that together cover most outdoor ground.

        Args:
            number: Number of base stations.
            window: Window of the positions (x_min, y_min, x_max, y_max) [m].
            mount: On roofs, or outdoors on the ground.
            height: Height above roof or ground [m].
            reach: Largest distance of covered ground [m].
            sees: Returns the line of sight between points (S, 3) and (V, 3), see `Tracer.sees`.
            rng: Random generator.

        Returns:
            Positions [m], shape (number, 3).

        Raises:
            InputError: The window has too few roofs, or too little open ground.
        """
        xy = rng.uniform(window[:2], window[2:], (_DRAWS, 2))
        outdoors, surface = self.is_outdoors(xy), self.surface(xy)
        fit = outdoors if mount == "street" else surface - self.ground(xy) > _LOWEST_ROOF
        spots = np.flatnonzero(fit)[: 256 * number]
        if len(spots) < number or not outdoors.any():
            where = f"no {mount} over open ground in window {in_text(window)} of scene {self.name}"
            raise InputError(f"{where} for {number} base stations: move or widen it, or give base_stations")
        candidates = np.column_stack([xy[spots], surface[spots] + height])
        street = np.flatnonzero(outdoors)[-1024:]
        targets = np.column_stack([xy[street], surface[street] + 1.5])
        distance = np.linalg.norm(candidates[:, None, :2] - targets[None, :, :2], axis=-1)
        seen = sees(candidates, targets) & (distance <= reach)
        chosen: list[int] = []
        for _ in range(number):
            covered = seen[chosen].any(0)
            gain = (seen & ~covered).sum(1)
            gain[chosen] = -1
            chosen.append(int(gain.argmax()))
        return candidates[chosen]

    def check_stations(self, stations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Check base stations (S, 3) [m] against the scene.

        Returns:
            Their positions; one at the height of a roof, or up to 10 cm below, is set 10 cm above it, clear of its
            surface.

        Raises:
            InputError: One stands outside the scene, in a building or under the ground.
        """
        ground, surface = self.ground(stations[:, :2]), self.surface(stations[:, :2])
        for position, low, high in zip(stations.tolist(), ground, surface, strict=True):
            who = f"base station {in_text(position)}"
            if np.isnan(low):
                raise InputError(f"{who} lies outside scene {self.name}, which spans {in_text(self.bounds)}: move it")
            if position[2] <= high - (_ON_ROOF if high > low else 0.0):
                where = "in a building" if high > low else "under the ground"
                raise InputError(f"{who} lies {where}: move it, or raise it above {high:.1f} m")
        placed = stations.copy()
        placed[:, 2] = np.where(stations[:, 2] > surface, stations[:, 2], surface + _ON_ROOF)
        return placed

    def lattice(self, window: Window, spacing: float) -> NDArray[Any]:
        """Return the outdoor points of a square lattice over a window, shape (U, 2).

        The window is half open, so that adjoining windows share no point.
        """
        x, y = np.arange(window[0], window[2], spacing), np.arange(window[1], window[3], spacing)
        xy = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        return np.asarray(xy[self.is_outdoors(xy)])

    def scatter(self, window: Window, number: int, rng: np.random.Generator) -> NDArray[Any]:
        """Return `number` outdoor points, uniform over a window, or fewer if little ground is free, shape (U, 2)."""
        found = np.zeros((0, 2))
        for _ in range(64 + 64 * number // _DRAWS):
            if len(found) >= number:
                break
            xy = rng.uniform(window[:2], window[2:], (_DRAWS, 2))
            found = np.concatenate([found, xy[self.is_outdoors(xy)]])
        return found[:number]

    def check_points(self, points: NDArray[Any], height: float) -> NDArray[Any]:
        """Return points (U, 2) or (U, 3) with their z, `height` above the ground where not given, shape (U, 3).

        Raises:
            InputError: A point is neither in the open nor above all roofs.
        """
        ground, surface = self.ground(points[:, :2]), self.surface(points[:, :2])
        z = points[:, 2] if points.shape[1] == 3 else ground + height
        wrong = np.flatnonzero(~(z > np.where(self.is_open(points[:, :2]), ground, surface)))
        if len(wrong):
            which = f"{len(wrong)} of {len(points)} points, {in_text(points[wrong[0]])} first,"
            raise InputError(f"{which} lie in buildings, under the ground or outside scene {self.name}: move them")
        return np.column_stack([points[:, :2], z])

    @cached_property
    def buildings(self) -> Environment:
        """Outlines of all buildings, to 0.1 m, with heights above the ground [m]; those under 1 m^2 are left out."""
        found = [part for mesh in self._obstacles for part in _outlines(mesh)]
        heights = np.zeros(len(found))
        if found:
            below = self.ground(np.concatenate([outline for outline, _ in found]))
            ends = np.cumsum([len(outline) for outline, _ in found])
            for i, ((_, top), around) in enumerate(zip(found, np.split(below, ends[:-1]), strict=True)):
                heights[i] = top - np.median(around[np.isfinite(around)]) if np.isfinite(around).any() else 0.0
        keep = np.flatnonzero(heights > _GROUND_TOLERANCE)
        return Environment(tuple(found[i][0] for i in keep), heights[keep], self.bounds)

    @cached_property
    def _built_up(self) -> Any:
        """All outlines, with the ground that they enclose."""
        # outlines are true to 0.1 m, so walls that touch may be drawn that far apart
        grown = shapely.get_parts(shapely.union_all(self.buildings.polygons).buffer(_TOUCHING, join_style="mitre"))
        yards = [shapely.Polygon(ring) for part in grown for ring in part.interiors]
        enclosed = shapely.union_all(yards).buffer(_TOUCHING, join_style="mitre")
        union = shapely.union_all([*self.buildings.polygons, enclosed])
        shapely.prepare(union)
        return union


def open_geometry(file: Path) -> SceneGeometry:
    """Return the geometry of a scene file, kept for the next call."""
    return _open_geometry(file, scenes.stamp(file))


@lru_cache(maxsize=4)
def _open_geometry(file: Path, _: int) -> SceneGeometry:
    return SceneGeometry(file)


def in_text(numbers: Sequence[float] | NDArray[Any]) -> str:
    """Return coordinates to 0.1 m, for a message."""
    return "(" + ", ".join(f"{number:.1f}" for number in numbers) + ")"


class _HeightMap:
    """Height map of triangles (N, 3, 3) [m]."""

    def __init__(self, triangles: NDArray[Any]) -> None:
        self._triangles = _without_walls(triangles)
        self._tree = shapely.STRtree(shapely.polygons(self._triangles[..., :2]))

    def height(self, xy: NDArray[Any], lowest: bool = False) -> NDArray[Any]:
        """Return the highest, or lowest, z [m] at points (U, 2), shape (U,); NaN where there is none."""
        point, triangle = self._tree.query(shapely.points(xy), predicate="intersects")
        corner, along, across = (self._triangles[triangle, i] for i in range(3))
        along, across, step = along - corner, across - corner, xy[point] - corner[:, :2]
        area = along[:, 0] * across[:, 1] - along[:, 1] * across[:, 0]
        u = (step[:, 0] * across[:, 1] - step[:, 1] * across[:, 0]) / area
        v = (along[:, 0] * step[:, 1] - along[:, 1] * step[:, 0]) / area
        height = np.full(len(xy), np.nan)
        (np.fmin if lowest else np.fmax).at(height, point, corner[:, 2] + u * along[:, 2] + v * across[:, 2])
        return height


def _without_walls(triangles: NDArray[Any]) -> NDArray[Any]:
    """Remove triangles without area in the top view, such as walls."""
    edges = triangles[:, 1:, :2] - triangles[:, :1, :2]
    area = np.abs(edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]) / 2
    return np.asarray(triangles[area > 1e-3])


def _corners(triangles: NDArray[Any]) -> NDArray[Any]:
    """Return the lowest and the highest (x, y) [m], shape (2, 2)."""
    return np.stack([triangles[..., :2].min((0, 1)), triangles[..., :2].max((0, 1))])


def _plan_area(triangles: NDArray[Any]) -> float:
    return float(np.prod(np.diff(_corners(triangles), axis=0)))


def _is_flat(triangles: NDArray[Any]) -> bool:
    """Return whether a surface has a single layer, unlike a closed solid."""
    heights, (low, high) = _HeightMap(triangles), _corners(triangles)
    share = np.stack(np.meshgrid(*[np.linspace(0.05, 0.95, 8)] * 2), axis=-1).reshape(-1, 2)
    xy = low + share * (high - low)
    thickness = heights.height(xy) - heights.height(xy, lowest=True)
    return bool(np.isfinite(thickness).any() and np.nanmax(thickness) < _GROUND_TOLERANCE)


def _outlines(triangles: NDArray[Any]) -> list[tuple[NDArray[Any], float]]:
    """Project an object on the ground: the outline (V, 2) [m] of each connected part, and the height of its top [m].

    Walls project to nothing, so a building whose walls and roof are two objects counts once, by its roof.
    """
    triangles = _without_walls(triangles)
    if len(triangles) == 0:
        return []
    # the millimetre grid heals the gaps between the triangles of a roof
    parts = shapely.get_parts(shapely.union_all(shapely.polygons(triangles[..., :2]), grid_size=1e-3))
    centres, tops = triangles[..., :2].mean(1), triangles[..., 2].max(1)
    found = []
    for part in parts:
        outline = shapely.Polygon(part.exterior).simplify(0.1)
        if outline.area > 1.0:
            inside = shapely.contains_xy(part.buffer(0.01), centres[:, 0], centres[:, 1])
            found.append((np.asarray(outline.exterior.coords)[:-1], float(tops[inside].max(initial=tops.min()))))
    return found
