"""Ray-traced channels of shipped city scenes and of custom scenes, by Sionna RT."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.errors import DatasetNotFoundError, InputError, check_choice, refuse_pointer
from datamodules.progress import Progress
from datamodules.sites.paths import Paths
from datamodules.sites.site import Site
from datamodules.sources.base import Recipe, Source, restore_chunk, store_chunk
from datamodules.sources.raytracing import scenes
from datamodules.sources.raytracing.scene_geometry import PLACING, Mount, SceneGeometry, in_text, open_geometry
from datamodules.sources.raytracing.tracing import Tracer

Users = Literal["grid", "disc", "random", "points"]
#: samples x interactions x base stations x users of one call; Sionna's deterministic solver takes 50 bytes for each
_CALL_SIZE = 10_000_000
#: arguments of the positions, except `points`
_PLACING = (
    "name", "base_stations", "bs_mount", "bs_height", "bs_orientation", "sectors", "users", "window", "spacing",
    "radius", "num_users", "user_height", "chunk",
)  # fmt: skip


class SionnaRT(Source):
    """Ray tracing in a shipped city or in a custom scene.

    Users are outdoors: on the ground, under open sky, outside building outlines and courtyards. Users without paths are
    kept, with los = -1. Antennas are isotropic and vertically polarised; arrays are applied at synthesis.

    With n sectors, each is a separate site: sector i has its boresight at azimuth `bs_orientation[0]` + 2 pi i / n and
    the users within pi / n of it.

    Args:
        scene: Name of a shipped scene (etoile, munich, florence, san_francisco, simple_street_canyon, ...), or path of
            a Mitsuba XML file.
        name: Name of the area, the prefix of site names; by default that of the scene.
        base_stations: Positions [x, y, z] [m], or a number of random positions (within `window`, by default in the
            central half of the scene) that cover most outdoor ground, within `radius` for a disc.
        bs_mount: Whether random base stations are on roofs or at street level.
        bs_height: Height of random base stations above roof or street [m].
        bs_orientation: Array orientation (alpha, beta, gamma) about z, y, x [rad].
        sectors: Sectors of each base station.
        users: `grid` every `spacing` over the window; `disc` likewise within `radius` of the first base station;
            `random` `num_users` uniformly over the window; `points` as given.
        window: Window of the users (x_min, y_min, x_max, y_max) [m]; by default the whole scene.
        spacing: Distance between the users of a grid or disc [m].
        radius: Horizontal radius of the disc [m].
        num_users: Number of users drawn at random; by default all of a grid or disc.
        points: User positions as a list of [x, y] or [x, y, z] [m], or a .npy or .csv file of them.
        user_height: Height above the ground [m] of users given without z.
        frequency: Carrier [Hz].
        max_depth: Largest number of interactions of a path.
        los: Whether to trace the direct path; without it no user is in line of sight.
        specular: Whether to trace specular reflections.
        diffraction: Whether to trace first-order diffraction.
        scattering: Scattering coefficient in [0, 1] of the materials that state none (in the shipped scenes all); 0
            disables diffuse reflection.
        samples: Rays launched from each base station.
        max_paths: Largest number of paths of a link, the strongest ones.
        chunk: Users traced at a time, by default for about 0.5 GB of memory. An interrupted run continues after the
            last chunk.
        seed: Random seed.
        cache: Folder of finished sites.

    Raises:
        InputError: An argument is out of range.
    """

    def __init__(
        self,
        scene: str = "etoile",
        name: str | None = None,
        base_stations: int | list[list[float]] = 1,
        bs_mount: Mount = "roof",
        bs_height: float = 5.0,
        bs_orientation: tuple[float, float, float] = (0.0, 0.0, 0.0),
        sectors: int = 1,
        users: Users = "disc",
        window: tuple[float, float, float, float] | None = None,
        spacing: float = 5.0,
        radius: float = 200.0,
        num_users: int | None = None,
        points: list[list[float]] | str | None = None,
        user_height: float = 1.5,
        frequency: float = 3.5e9,
        max_depth: int = 4,
        los: bool = True,
        specular: bool = True,
        diffraction: bool = False,
        scattering: float = 0.0,
        samples: int = 50_000,
        max_paths: int = 20,
        chunk: int | None = None,
        seed: int = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__(cache)
        check_choice("users", users, Users)
        check_choice("bs_mount", bs_mount, Mount)
        for key, value, least in (
            ("sectors", sectors, 1),
            ("num_users", num_users, 1),
            ("max_depth", max_depth, 0),
            ("samples", samples, 1),
            ("max_paths", max_paths, 1),
            ("chunk", chunk, 1),
            ("seed", seed, 0),
        ):
            if value is not None and value < least:
                raise InputError(f"{key} must be at least {least}, got {value}")
        for key, size in (("spacing", spacing), ("radius", radius), ("frequency", frequency)):
            if not size > 0:
                raise InputError(f"{key} must be positive, got {size}")
        if not 0 <= scattering <= 1:
            raise InputError(f"scattering must lie in [0, 1], got {scattering}")
        if window is not None and not (window[0] < window[2] and window[1] < window[3]):
            raise InputError(f"window must be (x_min, y_min, x_max, y_max) with min below max, got {tuple(window)}")
        if (users == "points") != (points is not None):
            raise InputError("users: points needs points, and nothing else takes them")
        if users == "random" and num_users is None:
            raise InputError("users: random needs num_users")
        positions = [[0.0] * 3] * base_stations if isinstance(base_stations, int) else base_stations
        if not positions or any(len(position) != 3 for position in positions):
            raise InputError(f"base_stations must be [x, y, z] positions [m] or their number, got {base_stations}")

        self.tracer = Tracer(
            scenes.find(scene), frequency, max_depth, los, specular, diffraction, scattering, samples, max_paths, seed
        )
        self.name = name or self.tracer.file.stem
        self.base_stations, self.num_stations = base_stations, len(positions)
        self.bs_mount, self.bs_height, self.bs_orientation = bs_mount, bs_height, bs_orientation
        self.sectors = sectors
        self.users, self.window, self.spacing, self.radius = users, window, spacing, radius
        self.num_users, self.points, self.user_height = num_users, points, user_height
        self.chunk = chunk or max(1, min(400, _CALL_SIZE // (samples * max(max_depth, 1) * len(positions))))
        self.seed = seed

    @property
    def site_names(self) -> tuple[str, ...]:
        """Name of every sector of every base station, `<name>_bs<i>` or `<name>_bs<i>_s<j>`."""
        suffixes = [f"_s{sector}" for sector in range(self.sectors)] if self.sectors > 1 else [""]
        return tuple(f"{self.name}_bs{station}{suffix}" for station in range(self.num_stations) for suffix in suffixes)

    def recipes(self) -> list[Recipe]:
        """List the single recipe of all sites, which are traced together."""
        return [Recipe(self.site_names, self._parameters(), self._make)]

    def _parameters(self) -> dict[str, Any]:
        tracing = {**dataclasses.asdict(self.tracer), "file": scenes.fingerprint(self.tracer.file)}
        placing = {key: getattr(self, key) for key in _PLACING}
        if self.points is not None:
            points = self._given_points()
            placing["points"] = hashlib.sha256(f"{points.shape}".encode() + points.tobytes()).hexdigest()
        version = importlib.metadata.version("sionna-rt")
        versions = {"sionna-rt": version, "placing": PLACING}
        return {"source": "sionna_rt", **versions, "scene": self.tracer.file.stem, **tracing, **placing}

    def _make(self, work: Path) -> Iterator[Site]:
        geometry = open_geometry(self.tracer.file)
        stations = self._place_stations(geometry)
        users = self._place_users(geometry, stations[0, :2])
        members = self._share_out(stations, users)
        everyone = np.concatenate([stations[:, :2], users[:, :2]])
        extent = (*everyone.min(0).tolist(), *everyone.max(0).tolist())
        environment = geometry.buildings.clip(self.window or extent)
        alpha, beta, gamma = self.bs_orientation
        parameters = self._parameters()
        links = self._trace(stations, users, work)
        for i, (name, own) in enumerate(zip(self.site_names, members, strict=True)):
            station, sector = divmod(i, self.sectors)
            yield Site(
                name=name,
                links=links[station][torch.from_numpy(own)],
                bs_position=torch.from_numpy(stations[station]),
                carrier_frequency=self.tracer.frequency,
                area=self.name,
                city=geometry.name,
                bs_orientation=torch.tensor([alpha + 2 * np.pi * sector / self.sectors, beta, gamma]),
                environment=environment,
                domain={"scenario": geometry.name, "frequency": self.tracer.frequency},
                provenance=parameters,
            )

    def _share_out(self, stations: NDArray[Any], users: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the users of each site, as indices."""
        members = []
        for station, position in enumerate(stations):
            x, y = (users[:, :2] - position[:2]).T
            turns = (np.arctan2(y, x) - self.bs_orientation[0]) / (2 * np.pi)
            nearest = np.floor(turns * self.sectors + 0.5).astype(int) % self.sectors
            for sector in range(self.sectors):
                members.append(np.flatnonzero(nearest == sector))
                if len(members[-1]) == 0:
                    raise InputError(f"sector {sector} of base station {station} has no user: use fewer sectors")
        return members

    def _trace(self, stations: NDArray[Any], users: NDArray[Any], work: Path) -> list[Paths]:
        """Trace all links in chunks, stored in `work`; return the links of each base station."""
        parts: list[list[Paths]] = []
        with Progress(len(users) * len(stations), f"tracing {self.name}", "link") as progress:
            for index, start in enumerate(range(0, len(users), self.chunk)):
                chunk = users[start : start + self.chunk]
                done = _restore(work, index, len(stations))
                if done is None:
                    done = self.tracer(stations, chunk)
                    _store(work, index, done)
                parts.append(done)
                progress.update(len(chunk) * len(stations))
        return [Paths.cat([part[station] for part in parts]) for station in range(len(stations))]

    def _place_stations(self, geometry: SceneGeometry) -> NDArray[np.float32]:
        """Return the base-station positions [m], shape (S, 3)."""
        if isinstance(self.base_stations, int):
            low, high = np.reshape(geometry.bounds, (2, 2))
            margin = (high - low) / 4
            window = self.window or (*(low + margin).tolist(), *(high - margin).tolist())
            rng = np.random.default_rng([self.seed, 0])
            reach = self.radius if self.users == "disc" else np.inf
            drawn = geometry.stations(
                self.num_stations, window, self.bs_mount, self.bs_height, reach, self.tracer.sees, rng
            )
            return drawn.astype(np.float32)
        stations = np.asarray(self.base_stations, dtype=np.float32)
        return geometry.check_stations(stations)

    def _place_users(self, geometry: SceneGeometry, centre: NDArray[Any]) -> NDArray[np.float32]:
        """Return the user positions [m], shape (U, 3); `centre` (2,) is that of a disc."""
        rng = np.random.default_rng([self.seed, 1])
        window = self.window or geometry.bounds
        if self.users == "points":
            users = geometry.check_points(self._given_points(), self.user_height)
        else:
            if self.users == "random":
                xy = geometry.scatter(window, self.num_users or 0, rng)
            elif self.users == "grid":
                xy = geometry.lattice(window, self.spacing)
            else:
                reach = self.radius // self.spacing * self.spacing
                (x, y), last = centre.tolist(), reach + self.spacing / 2
                xy = geometry.lattice((x - reach, y - reach, x + last, y + last), self.spacing)
                xy = xy[np.hypot(*(xy - centre).T) <= self.radius]
                xy = xy[((xy >= window[:2]) & (xy <= window[2:])).all(1)]
            if len(xy) == 0:
                where = f"{self.users} of users in window {in_text(window)} of scene {geometry.name}"
                raise InputError(f"no outdoor user in the {where}: move or widen it")
            users = np.column_stack([xy, geometry.ground(xy) + self.user_height])
        if self.num_users is not None and self.num_users > len(users):
            raise InputError(f"num_users is {self.num_users}, but only {len(users)} users are outdoors: ask for fewer")
        if self.num_users is not None and self.num_users < len(users):
            users = users[np.sort(rng.choice(len(users), self.num_users, replace=False))]
        return users.astype(np.float32)

    def _given_points(self) -> NDArray[Any]:
        """Return `points` as an array of shape (U, 2) or (U, 3)."""
        try:
            if isinstance(self.points, str):
                file = Path(self.points).expanduser()
                refuse_pointer(file)
                points = np.load(file) if file.suffix == ".npy" else np.loadtxt(file, delimiter=",", ndmin=2)
            else:
                points = np.asarray(self.points, dtype=np.float64)
        except FileNotFoundError as error:
            raise DatasetNotFoundError(f"points file {self.points} does not exist") from error
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"points {str(self.points)[:80]} are not rows of [x, y] or [x, y, z]: {error}") from error
        if points.ndim != 2 or points.shape[1] not in (2, 3) or not np.isfinite(points).all():
            raise InputError(f"points must be finite [x, y] or [x, y, z] rows, got shape {points.shape}")
        return points


def _store(work: Path, index: int, parts: list[Paths]) -> None:
    tensors = {f"{i}.{key}": value for i, part in enumerate(parts) for key, value in part.as_dict().items()}
    store_chunk(work, index, tensors, "traced")


def _restore(work: Path, index: int, num_stations: int) -> list[Paths] | None:
    tensors = restore_chunk(work, index)
    if tensors is None:
        return None
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(num_stations)]
    for key, value in tensors.items():
        station, name = key.split(".")
        parts[int(station)][name] = value
    return [Paths.from_dict(part) for part in parts]
