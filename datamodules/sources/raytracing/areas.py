"""Windows of cities with base stations and users, in place of the 10,000 areas of WAIR-D."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.sites.site import Site
from datamodules.sources.base import Recipe, Source, renamed
from datamodules.sources.raytracing import scenes
from datamodules.sources.raytracing.ray_launching import StreetTracer
from datamodules.sources.raytracing.scene_geometry import PLACING, SceneGeometry, Window, in_text, open_geometry

#: an area has at least this share of outdoor ground, and of ground under buildings
_OUTDOORS, _BUILT = 0.2, 0.1
#: what stands at least this high above the ground is a building [m]
_LOWEST = 2.5
#: points that measure the shares, and windows tried before a city is given up
_POINTS, _TRIES = 1024, 64
#: Roberts' R2 sequence: its points spread over a square as evenly as they come, and the first n stay as n grows
_R2 = np.array([0.7548776662466927, 0.5698402909980532])


class Areas(Source):
    """Random square windows of cities with outdoor base stations and users (environment-channel section IV-A).

    Each area has one site for each base station, `<scene>_<number>_bs<i>`. The sites of an area share its users; users
    without paths are kept, with los = -1. Antennas are isotropic and vertically polarised. Windows of one city may
    overlap; the splits assign overlapping windows to one side. The first areas of a city do not depend on the number of
    areas.

    Args:
        cities: Names of shipped scenes, or paths of Mitsuba XML files; by default etoile, munich, florence and
            san_francisco.
        areas_per_city: Number of areas of each city, or a list with a number for each city; 20 by default.
        size: Shortest and longest side of an area [m]; drawn uniformly between them.
        base_stations: Base stations of each area.
        users: Users of each area.
        bs_height: Height of the base stations above the ground [m].
        user_height: Height of the users above the ground [m].
        frequency: Carrier [Hz].
        max_depth: Largest number of interactions of a path.
        diffraction: Whether to trace first-order diffraction.
        scattering: Scattering coefficient in [0, 1] of the materials that state none; 0 disables diffuse reflection.
        samples: Rays launched from each base station.
        max_paths: Largest number of paths of a link, the strongest ones.
        seed: Random seed.
        cache: Folder of finished sites.
        places: Old name of `cities`.
        areas_per_place: Old name of `areas_per_city`.

    Raises:
        InputError: An argument is out of range, or a scene does not exist.
    """

    def __init__(
        self,
        cities: list[str] | None = None,
        areas_per_city: int | list[int] | None = None,
        size: tuple[float, float] = (100.0, 250.0),
        base_stations: int = 5,
        users: int = 30,
        bs_height: float = 6.0,
        user_height: float = 1.5,
        frequency: float = 28e9,
        max_depth: int = 3,
        diffraction: bool = True,
        scattering: float = 0.0,
        samples: int = 20_000,
        max_paths: int = 20,
        seed: int = 0,
        cache: str | None = None,
        places: list[str] | None = None,
        areas_per_place: int | list[int] | None = None,
    ) -> None:
        super().__init__(cache)
        cities = renamed("Areas", "places", places, "cities", cities)
        areas_per_city = renamed("Areas", "areas_per_place", areas_per_place, "areas_per_city", areas_per_city)
        cities = ["etoile", "munich", "florence", "san_francisco"] if cities is None else cities
        per_city: int | list[int] = 20 if areas_per_city is None else areas_per_city
        counts = [per_city] * len(cities) if isinstance(per_city, int) else [*per_city]
        if len(counts) != len(cities):
            raise InputError(f"areas_per_city has {len(counts)} numbers for {len(cities)} cities: give one for each")
        for key, value, least in (
            ("areas_per_city", min(counts, default=0), 1),
            ("base_stations", base_stations, 1),
            ("users", users, 1),
            ("max_depth", max_depth, 0),
            ("samples", samples, 1),
            ("max_paths", max_paths, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise InputError(f"{key} must be at least {least}, got {value}")
        for key, metres in (("bs_height", bs_height), ("user_height", user_height), ("frequency", frequency)):
            if not metres > 0:
                raise InputError(f"{key} must be positive, got {metres}")
        if not 0 < size[0] <= size[1]:
            raise InputError(f"size must be the shortest and the longest side of an area [m], got {tuple(size)}")
        if not 0 <= scattering <= 1:
            raise InputError(f"scattering must lie in [0, 1], got {scattering}")
        files = [scenes.find(city) for city in cities]
        if len({file.stem for file in files}) < len(files):
            raise InputError(f"cities {', '.join(cities)} share a name: areas are named by the file of the scene")
        self.counts = dict(zip(files, counts, strict=True))
        self.size, self.base_stations, self.users = (float(size[0]), float(size[1])), base_stations, users
        self.bs_height, self.user_height = bs_height, user_height
        self.seed = seed
        self.tracers = {
            file: StreetTracer(
                file,
                frequency,
                max_depth,
                diffraction=diffraction,
                scattering=scattering,
                samples=samples,
                max_paths=max_paths,
                seed=seed,
            )
            for file in files
        }

    def recipes(self) -> list[Recipe]:
        """List one recipe for each area, with the sites of its base stations."""
        return [self._recipe(file, index) for file, count in self.counts.items() for index in range(count)]

    def _recipe(self, file: Path, index: int) -> Recipe:
        area = f"{file.stem}_{index:04d}"
        parameters = {
            "source": "areas",
            "sionna-rt": importlib.metadata.version("sionna-rt"),
            "placing": PLACING,
            "scene": file.stem,
            **dataclasses.asdict(self.tracers[file]),
            "file": scenes.fingerprint(file),
            "index": index,
            "size": self.size,
            "base_stations": self.base_stations,
            "users": self.users,
            "bs_height": self.bs_height,
            "user_height": self.user_height,
        }
        names = tuple(f"{area}_bs{station}" for station in range(self.base_stations))
        return Recipe(names, parameters, partial(self._make, file, index, area, parameters))

    def _make(self, file: Path, index: int, area: str, parameters: dict[str, Any], work: Path) -> Iterator[Site]:
        geometry, tracer = open_geometry(file), self.tracers[file]
        window, stations, users = self.lay_out(geometry, index)
        environment = geometry.buildings.clip(window)
        for station, links in enumerate(tracer(stations, users)):
            yield Site(
                name=f"{area}_bs{station}",
                links=links,
                bs_position=torch.from_numpy(stations[station]),
                carrier_frequency=tracer.frequency,
                area=area,
                city=geometry.name,
                environment=environment,
                domain={"scenario": geometry.name, "frequency": tracer.frequency},
                provenance=parameters,
            )

    def lay_out(self, geometry: SceneGeometry, index: int) -> tuple[Window, NDArray[np.float32], NDArray[np.float32]]:
        """Draw the window of an area, and its base stations and users.

        Args:
            geometry: The city.
            index: Number of the area among those of the city.

        Returns:
            The window (x_min, y_min, x_max, y_max), base stations (S, 3) and users (U, 3) [m].

        Raises:
            InputError: No window of the size holds both buildings and enough outdoor ground.
        """
        key = zlib.crc32(geometry.name.encode())
        rng = np.random.default_rng([self.seed, key, index])
        low, high = np.reshape(geometry.bounds, (2, 2))
        longest = min(self.size[1], float((high - low).min()))
        if longest < self.size[0]:
            raise InputError(
                f"scene {geometry.name} spans {in_text(geometry.bounds)}, too little for a window of "
                f"{self.size[0]:g} m: lower size"
            )
        spot = (np.random.default_rng([self.seed, key]).random(2) + index * _R2) % 1
        for _ in range(_TRIES):
            side = rng.uniform(self.size[0], longest)
            corner = low + spot * (high - low - side)
            window = (*corner.tolist(), *(corner + side).tolist())
            if self._is_suitable(geometry, window, rng):
                xy = geometry.scatter(window, self.base_stations + self.users, rng)
                if len(xy) == self.base_stations + self.users:
                    above = np.repeat([self.bs_height, self.user_height], [self.base_stations, self.users])
                    spots = np.column_stack([xy, geometry.ground(xy) + above]).astype(np.float32)
                    return window, spots[: self.base_stations], spots[self.base_stations :]
            spot = rng.random(2)
        raise InputError(
            f"no window of {self.size[0]:g} to {self.size[1]:g} m in scene {geometry.name} has buildings and outdoor "
            f"ground for {self.base_stations} base stations and {self.users} users: change size"
        )

    def _is_suitable(self, geometry: SceneGeometry, window: Window, rng: np.random.Generator) -> bool:
        """Return whether a window has both streets and buildings."""
        xy = rng.uniform(window[:2], window[2:], (_POINTS, 2))
        built = geometry.surface(xy) - geometry.ground(xy) > _LOWEST
        return bool(built.mean() >= _BUILT and geometry.is_outdoors(xy).mean() >= _OUTDOORS)
