"""3GPP TR 38.901: random channels of urban, rural and indoor cells over a grid of conditions."""

from __future__ import annotations

import importlib.metadata
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from datamodules.channel.arrays import Array, is_polarized
from datamodules.channel.motion import MOBILITIES, SPEEDS, Mobility, draw_motion, mobility_class
from datamodules.channel.motion import Sequence as Snapshots
from datamodules.channel.ofdm import OFDM, SPEED_OF_LIGHT
from datamodules.channel.synthesis import synthesize
from datamodules.errors import InputError, finite_numbers, needs
from datamodules.progress import Progress
from datamodules.sites.environment import Environment
from datamodules.sites.paths import Paths
from datamodules.sites.recording import Recording
from datamodules.sites.site import Site
from datamodules.sources.base import Recipe, Source, restore_chunk, store_chunk
from datamodules.sources.tr38901.rays import CELLS, NEEDS_SIONNA, Release, Scenario, Sight, drop

Keep = Literal["csi", "rays"]
#: a class, a speed [m/s], or a range of speeds
Speed = Mobility | float | tuple[float, float]
#: version of the source, to be raised when its output changes, so that cached sites are rebuilt
_VERSION = 1
#: number of links drawn in one chunk, which an interrupted run keeps
_CHUNK = 256
#: complex values of the largest factor of one synthesis call: 128 MB
_CALL_SIZE = 2**24
#: bytes of one ray, of one with both polarisations, and most rays of a link: 20 in each cluster of Table 7.5-6, and
#: line of sight
_RAY_BYTES, _DUAL_BYTES, _RAYS = 30, 62, {"umi": 380, "uma": 400, "rma": 221, "inh": 380}


@dataclass(frozen=True)
class _Domain:
    """One cell of the grid of conditions."""

    scenario: Scenario
    sight: Sight
    speed: Speed
    downtilt: float
    frequency: float

    @property
    def name(self) -> str:
        low, high = self.span
        speed = self.speed if isinstance(self.speed, str) else f"{low:g}mps" if low == high else f"{low:g}to{high:g}mps"
        tilt, carrier = math.degrees(self.downtilt), self.frequency / 1e9
        return f"tr38901_{self.scenario}_{self.sight}_{speed}_{tilt:g}deg_{carrier:g}ghz".replace(".", "p")

    @property
    def span(self) -> tuple[float, float]:
        """Return the lowest and highest speed [m/s]."""
        if isinstance(self.speed, tuple):
            return self.speed
        return SPEEDS[self.speed] if isinstance(self.speed, str) else (float(self.speed), float(self.speed))

    @property
    def labels(self) -> dict[str, Any]:
        """Return the domain labels of the site."""
        classes = {MOBILITIES[int(code)] for code in mobility_class(torch.tensor(self.span))}
        motion: dict[str, Any] = {"mobility": next(iter(classes))} if len(classes) == 1 else {}
        motion["speed"] = list(self.span)
        return {
            "scenario": self.scenario,
            "los": self.sight,
            **motion,
            "tilt": self.downtilt,
            "frequency": self.frequency,
        }


class TR38901(Source):
    """Links of the 3GPP TR 38.901 system-level model (clause 7.5), by Sionna PHY.

    There is one site for every combination of `scenarios`, `los`, `speeds`, `downtilts` and `frequencies`, with
    `sequences` links. Each site is a separate area without overlap, so that a split by `area` holds out conditions; its
    city is the scenario. Path loss and shadow fading are part of the channel. There is no map, and large-scale
    parameters are independent between links: positions determine angles, distances and the probability of line of sight
    alone.

    Users are outdoors (`inh`: in the office), without penetration loss. They are uniformly distributed in the 120
    degree sector of the base station, in the cells of Tables 7.2-1 to 7.2-3 (`rays.CELLS`).

    Sites contain CSI with 4 bytes for each value, 41 kB for ten snapshots of a 4 x 4 array on 64 subcarriers. With 20
    rays for each cluster a link has up to 400 paths, twenty times those of a traced link, so that synthesis would be
    slow. `keep: rays` stores paths, 12 kB for each link, with arrays, subcarriers and snapshots of the datamodule.

    Args:
        scenarios: `umi`, `uma`, `rma` (up to 30 GHz) and `inh` (open office); by default all.
        los: `los` and `nlos` force the state of all links, `mixed` draws it by Table 7.4.2-1; by default `los` and
            `nlos`.
        speeds: User speeds, each a number [m/s], or a range [m/s] such as [0.0, 30.0] or a class, `static`,
            `pedestrian` (3-6 km/h) or `vehicular` (30-120 km/h), for a speed drawn for each link; by default all
            classes. A site whose range spans several classes has no mobility label. Directions are uniform and
            horizontal.
        downtilts: Downtilts of the base-station array [rad].
        frequencies: Carriers [Hz].
        sequences: Number of links of each site.
        snapshots: Snapshots N of a link; 1 leaves out the axis N.
        interval: Time between snapshots [s].
        bs: Base-station array; its downtilt is that of `downtilts`.
        ue: User array.
        ofdm: Subcarrier grid.
        keep: Content of a site, `csi` or `rays`; `rays` ignores `snapshots`, `interval`, `bs`, `ue` and `ofdm`.
        polarization: `single`, or `dual` for rays of both polarisations, which arrays of two need; stored CSI has the
            polarisations of `bs` and `ue`.
        release: Version of TR 38.901: 16.1, that of ConTwin and most others, or 19.2, which has other spreads in Table
            7.5-6, refitted for 7-24 GHz.
        max_gib: Largest size of all sites on disk [GiB].
        seed: Random seed, combined with the conditions of each site.
        cache: Folder of finished sites, see `Source`.

    Raises:
        InputError: An argument is invalid, or the sites would exceed `max_gib`.
    """

    def __init__(
        self,
        scenarios: list[Scenario] | None = None,
        los: list[Sight] | None = None,
        speeds: list[Speed] | None = None,
        downtilts: list[float] | None = None,
        frequencies: list[float] | None = None,
        sequences: int = 500,
        snapshots: int = 1,
        interval: float = 5e-3,
        bs: Array = Array(rows=4, cols=4),  # noqa: B008 (frozen)
        ue: Array = Array(),  # noqa: B008 (frozen)
        ofdm: OFDM = OFDM(),  # noqa: B008 (frozen)
        keep: Keep = "csi",
        polarization: Literal["single", "dual"] = "single",
        release: Release = "16.1",
        max_gib: float = 4.0,
        seed: int = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__(cache)
        for key, value, least in (("sequences", sequences, 1), ("snapshots", snapshots, 1), ("seed", seed, 0)):
            if value < least:
                raise InputError(f"{key} must be at least {least}, got {value}")
        if not 0 < interval < math.inf:
            raise InputError(f"interval must be positive [s], got {interval}")
        if any(bs.orientation):
            raise InputError(f"bs.orientation must be left out, got {bs.orientation}: give downtilts")
        _among("keep", [keep], get_args(Keep))
        _among("polarization", [polarization], ("single", "dual"))
        _among("release", [release], get_args(Release))
        grid = itertools.product(
            _among("scenarios", scenarios, get_args(Scenario)),
            _among("los", ["los", "nlos"] if los is None else los, get_args(Sight)),
            _speeds(MOBILITIES if speeds is None else speeds),
            _within("downtilts", [0.0] if downtilts is None else downtilts, -math.pi / 2, math.pi / 2, "rad"),
            _within("frequencies", [3.5e9] if frequencies is None else frequencies, 0.5e9, 100e9, "Hz"),
        )
        self.domains = [_Domain(*conditions) for conditions in grid]
        if len({domain.name for domain in self.domains}) < len(self.domains):
            raise InputError("two speeds, downtilts or frequencies agree in six digits: leave one of them out")
        for domain in self.domains:
            highest = CELLS[domain.scenario].highest
            if domain.frequency > highest:
                raise InputError(
                    f"{domain.scenario} is defined up to {highest / 1e9:g} GHz, not {domain.frequency / 1e9:g} GHz: "
                    "change scenarios or frequencies"
                )
        self.sequences, self.snapshots, self.interval = sequences, snapshots, float(interval)
        self.bs, self.ue, self.ofdm = bs, ue, ofdm
        self.keep, self.release, self.seed = keep, release, seed
        self.polarized = polarization == "dual" if keep == "rays" else is_polarized(bs, ue)
        if self.size > max_gib * 2**30:
            raise InputError(
                f"{len(self.domains)} sites of {sequences} links would take {self.size / 2**30:.2f} GiB, more than "
                f"max_gib {max_gib:g}: ask for fewer, or raise max_gib"
            )

    @property
    def size(self) -> int:
        """Return the size of all sites on disk [bytes]; an upper bound with `keep: rays`."""
        if self.keep == "rays":
            size = _DUAL_BYTES if self.polarized else _RAY_BYTES
            return sum(self.sequences * _RAYS[domain.scenario] * size for domain in self.domains)
        values = self.snapshots * self.ue.num_elements * self.bs.num_elements * self.ofdm.num_subcarriers
        # two half-precision numbers per value; scale, position and line of sight per link
        return len(self.domains) * self.sequences * (4 * values + 17)

    def recipes(self) -> list[Recipe]:
        """List one recipe for each site."""
        recipes = []
        for place, domains in itertools.groupby(self.domains, lambda domain: domain.scenario):
            for number, domain in enumerate(domains):
                origin = 1.5 * number * CELLS[place].reach
                parameters = self._parameters(domain, origin)
                recipes.append(Recipe((domain.name,), parameters, partial(self._make, domain, origin, parameters)))
        return recipes

    def _parameters(self, domain: _Domain, origin: float) -> dict[str, Any]:
        made: dict[str, Any] = {key: getattr(self, key) for key in ("sequences", "keep", "release", "seed")}
        if self.keep == "csi":
            made |= {"snapshots": self.snapshots, "interval": self.interval}
            made |= {key: asdict(getattr(self, key)) for key in ("bs", "ue", "ofdm")}
            for array in (made["bs"], made["ue"]):
                if array["polarization"] == "single":  # the key of earlier releases
                    del array["polarization"]
        elif self.polarized:
            made["polarization"] = "dual"
        with needs("tr38901", NEEDS_SIONNA):
            versions = {"version": _VERSION, "sionna-no-rt": importlib.metadata.version("sionna-no-rt")}
        return {"source": "tr38901", **versions, **asdict(domain), "x": origin, **made}

    def _make(self, domain: _Domain, origin: float, parameters: dict[str, Any], work: Path) -> Iterator[Site]:
        shift = torch.tensor([origin, 0.0, 0.0])
        links = self._draw(domain, shift, work)
        yield Site(
            name=domain.name,
            links=links,
            bs_position=shift + torch.tensor([0.0, 0.0, CELLS[domain.scenario].bs_height]),
            carrier_frequency=domain.frequency,
            area=domain.name,
            city=domain.scenario,
            bs_orientation=torch.tensor([0.0, domain.downtilt, 0.0]),
            environment=Environment.empty(links.position.numpy()),
            domain=domain.labels,
            provenance=parameters,
        )

    def _draw(self, domain: _Domain, shift: Tensor, work: Path) -> Paths | Recording:
        """Draw the links in chunks, stored in `work`."""
        parts: list[dict[str, Tensor]] = []
        with Progress(self.sequences, domain.name, "link", leave=False) as progress:
            for first in range(0, self.sequences, _CHUNK):
                part = restore_chunk(work, first)
                if part is None:
                    part = self._chunk(domain, first, min(_CHUNK, self.sequences - first)).as_dict()
                    store_chunk(work, first, part, "drawn")
                parts.append({**part, "position": part["position"] + shift})
                progress.update(len(part["los"]))
        if self.keep == "rays":
            return Paths.cat([Paths.from_dict(part) for part in parts])
        fields = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return Recording(
            **fields,
            interval=self.interval if self.snapshots > 1 else 0.0,
            bs_shape=self.bs.shape,
            ue_shape=self.ue.shape,
            bandwidth=self.ofdm.bandwidth,
        )

    def _chunk(self, domain: _Domain, first: int, count: int) -> Paths | Recording:
        key = zlib.crc32(f"{self.seed} {domain.name} {first}".encode())
        paths = drop(domain.scenario, domain.sight, domain.frequency, count, key, self.release, self.polarized)
        if self.keep == "rays":
            return paths
        sequence = Snapshots(self.snapshots, self.interval, speed=domain.span, horizon=0)
        user = torch.arange(first, first + count)
        motion = draw_motion(sequence, torch.full_like(user, zlib.crc32(domain.name.encode())), user, self.seed)
        bs = replace(self.bs, orientation=(0.0, domain.downtilt, 0.0))
        wide = max(self.snapshots * self.ue.num_elements * bs.num_elements, self.ofdm.num_subcarriers)
        step = max(1, _CALL_SIZE // (wide * paths.num_paths))
        make = partial(synthesize, bs=bs, ue=self.ue, ofdm=self.ofdm, times=motion.times)
        length = SPEED_OF_LIGHT / domain.frequency
        rows = [slice(start, start + step) for start in range(0, count, step)]
        csi = torch.cat([make(paths[part], velocity=motion.velocity[part], wavelength=length) for part in rows])
        if self.snapshots == 1:
            return Recording.build(csi[:, 0], paths.position, paths.los)
        return Recording.build(csi, paths.position, paths.los, self.interval)


def _among(key: str, values: Sequence[Any] | None, known: tuple[Any, ...]) -> list[Any]:
    """Return the values without duplicates, or all known ones for None."""
    values = known if values is None else values
    unknown = [str(value) for value in values if value not in known]
    if unknown or not values:
        raise InputError(f"{key} must be some of {', '.join(known)}, got {', '.join(unknown) or 'none'}")
    return list(dict.fromkeys(values))


def _within(key: str, values: Sequence[float], low: float, high: float, unit: str) -> list[float]:
    """Return the numbers without duplicates."""
    if not values or not all(low <= value <= high for value in values):
        raise InputError(f"{key} must lie in [{low:g}, {high:g}] [{unit}], got {list(values)}")
    return list(dict.fromkeys(map(float, values)))


def _speeds(values: Sequence[Speed]) -> list[Speed]:
    """Return the classes, then the numbers, then the ranges, without duplicates."""
    classes = [value for value in values if isinstance(value, str)]
    ranges = [value for value in values if isinstance(value, (tuple, list))]
    numbers = [value for value in values if not isinstance(value, (str, tuple, list))]
    chosen: list[Speed] = _among("speeds", classes, MOBILITIES) if classes or not (numbers or ranges) else []
    chosen += _within("speeds", numbers, 0.0, 1e3, "m/s") if numbers else []
    for low, high in (finite_numbers("speeds", span, "lowest", "highest") for span in ranges):
        if not 0 <= low < high <= 1e3:
            raise InputError(f"speeds must have ranges (lowest, highest) within [0, 1000] [m/s], got {(low, high)}")
        chosen.append((low, high))
    return list(dict.fromkeys(chosen))
