"""Random drops of the clustered delay lines of 3GPP TR 38.901 (clause 7.7.1), as rays.

The tables are Sionna PHY's; rays, phases and gains are drawn here, so that arrays, phase reference and subcarriers are
those of every other source. A test compares the channels with those of Sionna's own coefficients.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from datamodules.sites.paths import Paths
from datamodules.sources.tr38901.rays import DIRECT_POLARIZATION, Release, importing_sionna, scattered_polarization

Model = Literal["A", "B", "C", "D", "E"]
MODELS: tuple[Model, ...] = get_args(Model)
#: the four angles of a path: of departure and arrival, azimuth and zenith
ANGLES = ("aod", "aoa", "zod", "zoa")

#: angles of the 20 rays of a cluster, in root mean square spreads (Table 7.5-3)
_HALVES = (0.0447, 0.1413, 0.2492, 0.3715, 0.5129, 0.6797, 0.8844, 1.1481, 1.5195, 2.1551)
_OFFSETS = torch.tensor([sign * value for value in _HALVES for sign in (1, -1)], dtype=torch.float64)


def drop_cdl(
    model: Model,
    delay_spread: float,
    count: int,
    seed: int,
    release: Release,
    spreads: dict[str, float] | None = None,
    polarized: bool = False,
) -> Paths:
    """Draw the rays of `count` links of a clustered delay line.

    Clusters are those of the table, the same for every link. Random are the coupling of departure and arrival rays
    within each cluster (step 8 of clause 7.5) and the phases of each ray (step 10).

    Args:
        model: Table 7.7.1-1 to 7.7.1-5.
        delay_spread: Root mean square delay spread [s] that the delays are scaled to (eq 7.7-1).
        count: Number of links.
        seed: Random seed.
        release: Version of the tables.
        spreads: Root mean square angle spread [rad] that the rays are scaled to, by the names of `ANGLES`, about their
            mean (eq 7.7-5); the table's where it is left out.
        polarized: Whether paths have a `polarization`, with the table's cross-polarisation ratio.

    Returns:
        Rays of unit mean power over links. Delays are relative to the first arrival, and positions are zero, as the
        model has no distances.
    """
    table = load_table(model, release)
    generator = torch.Generator().manual_seed(seed)
    power = table["power"] / table["power"].sum()
    clusters, line_of_sight = power[table["los"] :], power[: table["los"]]
    rays = len(_OFFSETS)
    angles = {}
    weights = torch.cat([line_of_sight, (clusters / rays).repeat_interleave(rays)])
    for name in ANGLES:
        direct, mean = table[name][: table["los"]], table[name][table["los"] :]
        around = mean[:, None] + math.radians(table[f"c{name}"]) * _OFFSETS
        if spreads is not None and name in spreads:
            both = scaled(torch.cat([direct, around.flatten()]), weights, spreads[name])
            direct, around = both[: table["los"]], both[table["los"] :].reshape(around.shape)
        order = torch.rand(count, *around.shape, generator=generator).argsort(-1)
        drawn = around.expand(count, -1, -1).gather(2, order).flatten(1)
        angles[name] = torch.cat([direct.expand(count, -1), drawn], 1)
    phase = 2 * math.pi * torch.rand(count, len(clusters) * rays, generator=generator, dtype=torch.float64)
    amplitude = (clusters / rays).sqrt().repeat_interleave(rays)
    gain = torch.polar(amplitude.expand_as(phase), phase)
    polarization = None
    if polarized:
        # drawn last, so that all else is that of single polarisation
        others = 2 * math.pi * torch.rand(*phase.shape, 3, generator=generator, dtype=torch.float64)
        ratio = torch.full_like(phase, 10 ** (table["xpr"] / 10))
        scattered = scattered_polarization(torch.cat([phase.unsqueeze(-1), others], -1), ratio)
        polarization = torch.cat([DIRECT_POLARIZATION.expand(count, len(line_of_sight), 2, 2), scattered], 1)
    ahead = line_of_sight.sqrt().to(gain.dtype).expand(count, -1)
    delay = torch.cat([table["delay"][: table["los"]], table["delay"][table["los"] :].repeat_interleave(rays)])
    bounces = torch.ones(len(delay), dtype=torch.uint8)
    bounces[: table["los"]] = 0
    return Paths.build(
        gain=torch.cat([ahead, gain], 1),
        delay=(delay * delay_spread).expand(count, -1),
        aod=torch.stack([angles["aod"], angles["zod"]], -1),
        aoa=torch.stack([angles["aoa"], angles["zoa"]], -1),
        position=torch.zeros(count, 3),
        bounces=bounces.expand(count, -1),
        polarization=polarization,
        max_paths=len(delay),
    )


def load_table(model: Model, release: Release) -> dict[str, Any]:
    """Return a table: `los` (0 or 1 rows of line of sight, first), `power`, `delay`, `ANGLES` [rad], and the spreads.

    Spreads within a cluster are `caod` and so on [degrees], the cross-polarisation ratio `xpr` [dB], as in the table.
    """
    with importing_sionna():
        from sionna.phy.channel.tr38901 import models
    values = models.load_json(models.parameter_file(f"CDL-{model}.json", release))
    within = {"aod": "cASD", "aoa": "cASA", "zod": "cZSD", "zoa": "cZSA"}
    return {
        "los": int(values["los"]),
        "power": torch.from_numpy(10 ** (np.array(values["powers"]) / 10)),
        "xpr": float(values["xpr"]),
        "delay": torch.tensor(values["delays"], dtype=torch.float64),
        **{name: torch.tensor(values[name], dtype=torch.float64).deg2rad() for name in ANGLES},
        **{f"c{name}": float(values[key]) for name, key in within.items()},
    }


def scaled(angles: Tensor, power: Tensor, spread: float) -> Tensor:
    """Scale angles of rays [rad] about their mean to a root mean square spread (clause 7.7.5.1, annex A).

    They contain the offsets from their cluster, which are scaled as well.
    """
    mean, own = angle_spread(angles, power)
    away = torch.remainder(angles - mean + math.pi, 2 * math.pi) - math.pi
    return mean + spread / own * away


def angle_spread(angles: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
    """Return the circular mean and spread [rad] of angles by their power (TR 38.901 annex A.1 and A.2)."""
    resultant = (torch.polar(power, angles)).sum() / power.sum()
    return resultant.angle(), (-2 * resultant.abs().log()).sqrt()
