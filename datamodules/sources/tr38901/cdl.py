"""The clustered delay lines of 3GPP TR 38.901: link-level channels over a grid of conditions."""

from __future__ import annotations

import importlib.metadata
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from datamodules.channel.motion import MOBILITIES, mobility_class
from datamodules.errors import InputError, check_positive, needs
from datamodules.sites.environment import Environment
from datamodules.sites.site import Site
from datamodules.sources.base import Recipe, Source
from datamodules.sources.tr38901.cdl_rays import ANGLES, MODELS, Model, drop_cdl
from datamodules.sources.tr38901.rays import NEEDS_SIONNA, Release

#: version of the source, to be raised when its output changes, so that cached sites are rebuilt
_VERSION = 2


@dataclass(frozen=True)
class _Line:
    """One cell of the grid of conditions."""

    model: Model
    delay_spread: float
    speed: float

    @property
    def name(self) -> str:
        return f"cdl_{self.model.lower()}_{self.delay_spread * 1e9:g}ns_{self.speed:g}mps".replace(".", "p")


class CDL(Source):
    """Links of the clustered delay lines CDL-A to E of TR 38.901 (clause 7.7.1), with Sionna PHY's tables.

    There is one site for every combination of `models`, `delay_spreads` and `speeds`, its own area, with `links` links
    that differ in the phases of their rays and in the random coupling of departure and arrival rays. A, B and C are
    NLOS, D and E are LOS. The mean power of a channel is one. The model has no distances and no map, and all positions
    are zero, so that positioning and spatial splits do not apply.

    Sites contain paths, with arrays, subcarriers and snapshots of the datamodule.

    Args:
        models: Some of A, B, C, D and E; by default all.
        delay_spreads: Root mean square delay spreads [s]: 30 ns short, 100 ns nominal, 300 ns long (Table 7.7.3-1).
        speeds: User speeds [m/s]; directions are uniform and horizontal.
        frequency: Carrier [Hz].
        links: Number of links of each site.
        angle_spreads: Root mean square angle spread [rad] to scale the rays of a table to, by name (`aod`, `aoa`,
            `zod`, `zoa`; clause 7.7.5.1); by default, and for names left out, the table's own.
        polarization: `single`, vertical, or `dual`, with the cross-polarisation ratio of the table, for arrays with
            `polarization: cross` or `vh`; it takes twice the space.
        doppler: Angles that the Doppler shifts follow: of `arrival` at the user, or of `departure` from the base
            station, a fault of Sionna PHY 1 with its direction `uplink`, for comparison with data made by it. Then the
            arrival angles of rays are those of departure, which suits a user with one isotropic antenna.
        release: Version of the tables, 16.1 or 19.2.
        seed: Random seed, combined with the conditions of each site.
        cache: Folder of finished sites, see `Source`.

    Raises:
        InputError: An argument is invalid.
    """

    def __init__(
        self,
        models: list[Model] | None = None,
        delay_spreads: list[float] | None = None,
        speeds: list[float] | None = None,
        frequency: float = 3.5e9,
        links: int = 500,
        angle_spreads: dict[str, float] | None = None,
        polarization: Literal["single", "dual"] = "single",
        doppler: Literal["arrival", "departure"] = "arrival",
        release: Release = "16.1",
        seed: int = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__(cache)
        check_positive("CDL", links=links, frequency=frequency)
        unknown = sorted(set(models or ()) - set(MODELS))
        if unknown or models == []:
            raise InputError(f"models must be some of {', '.join(MODELS)}, got {', '.join(unknown) or 'none'}")
        if release not in ("16.1", "19.2"):
            raise InputError(f"release must be 16.1 or 19.2, got {release}")
        if polarization not in ("single", "dual"):
            raise InputError(f"polarization must be single or dual, got {polarization}")
        if doppler not in ("arrival", "departure"):
            raise InputError(f"doppler must be arrival or departure, got {doppler}")
        spreads = dict(angle_spreads or {})
        if not (set(spreads) <= set(ANGLES) and all(0 < value < math.pi for value in spreads.values())):
            raise InputError(f"angle_spreads must be of {', '.join(ANGLES)} and in (0, pi) [rad], got {spreads}")
        grid = itertools.product(
            dict.fromkeys(models or MODELS),
            _numbers("delay_spreads", delay_spreads or [100e-9], 1e-5, "s"),
            _numbers("speeds", speeds or [0.0], 1e3, "m/s"),
        )
        self.lines = [_Line(*conditions) for conditions in grid]
        if len({line.name for line in self.lines}) < len(self.lines):
            raise InputError("two delay_spreads or speeds agree in six digits: leave one of them out")
        self.frequency, self.links, self.angle_spreads = float(frequency), links, spreads
        self.release, self.seed, self.polarization, self.doppler = release, seed, polarization, doppler

    def recipes(self) -> list[Recipe]:
        """List one recipe for each site."""
        recipes = []
        for line in self.lines:
            made = {key: getattr(self, key) for key in ("frequency", "links", "angle_spreads", "release", "seed")}
            # sites by the defaults keep the key of earlier releases
            if self.polarization == "dual":
                made["polarization"] = self.polarization
            if self.doppler == "departure":
                made["doppler"] = self.doppler
            with needs("tr38901", NEEDS_SIONNA):
                versions = {"version": _VERSION, "sionna-no-rt": importlib.metadata.version("sionna-no-rt")}
            conditions = {"model": line.model, "delay_spread": line.delay_spread, "speed": line.speed}
            parameters = {"source": "cdl", **versions, **conditions, **made}
            recipes.append(Recipe((line.name,), parameters, partial(self._make, line, parameters)))
        return recipes

    def _make(self, line: _Line, parameters: dict[str, Any], work: Path) -> Iterator[Site]:
        key = zlib.crc32(f"{self.seed} {line.name}".encode())
        polarized = self.polarization == "dual"
        paths = drop_cdl(line.model, line.delay_spread, self.links, key, self.release, self.angle_spreads, polarized)
        if self.doppler == "departure":
            paths = replace(paths, aoa=paths.aod.clone())
        yield Site(
            name=line.name,
            links=paths,
            bs_position=torch.zeros(3),
            carrier_frequency=self.frequency,
            area=line.name,
            city=f"cdl_{line.model.lower()}",
            environment=Environment.empty(paths.position.numpy()),
            domain={
                "scenario": f"cdl_{line.model.lower()}",
                "los": "los" if int(paths.los[0]) else "nlos",
                "mobility": MOBILITIES[int(mobility_class(torch.tensor(line.speed)))],
                "speed": [line.speed, line.speed],
                "frequency": self.frequency,
            },
            provenance=parameters,
        )


def _numbers(key: str, values: Sequence[float], most: float, unit: str) -> list[float]:
    """Return the numbers without duplicates."""
    if not all(0 <= value <= most for value in values):
        raise InputError(f"{key} must lie in [0, {most:g}] [{unit}], got {list(values)}")
    return list(dict.fromkeys(map(float, values)))
