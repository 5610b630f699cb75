"""Random drops of the 3GPP TR 38.901 system-level model, as rays.

Sionna PHY draws line of sight, path loss and large-scale parameters (clause 7.5, steps 2 to 4) and the clusters and
rays (steps 5 to 9). Steps 10 to 12, from rays to a channel, are computed by `synthesize`, so that arrays, phase
reference and subcarriers are those of every other source, in a fraction of the time of Sionna's
`ChannelCoefficientsGenerator`. A test compares the two.

Sionna is imported inside functions only: that takes seconds, and seeds PyTorch's default generator at random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.channel.ofdm import SPEED_OF_LIGHT
from datamodules.errors import InputError, needs
from datamodules.sites.paths import Paths
from datamodules.sources.llvm import use_llvm

Scenario = Literal["umi", "uma", "rma", "inh"]
Sight = Literal["los", "nlos", "mixed"]
Release = Literal["16.1", "19.2"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
#: polarisation of the line of sight, relative to its first entry (eq 7.5-29)
DIRECT_POLARIZATION = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.complex128)
#: message where the extra Sionna PHY is not installed
NEEDS_SIONNA = "channels of TR 38.901 are drawn by Sionna PHY"

#: rays of the sub-clusters of the two strongest clusters, and their delays over the cluster delay spread (Table 7.5-5)
_SUBCLUSTERS = (((0, 1, 2, 3, 4, 5, 6, 7, 18, 19), 0.0), ((8, 9, 10, 11, 16, 17), 1.28), ((12, 13, 14, 15), 2.56))
#: largest angle between user and boresight [rad]: one of three sectors of a base station
_HALF_SECTOR = math.pi / 3


@dataclass(frozen=True)
class Cell:
    """Geometry of base station and users.

    The base station is above the origin with boresight +x.

    Attributes:
        bs_height: Height of the base station [m].
        ut_height: Height of the users [m].
        nearest: Least horizontal distance [m].
        radius: Greatest horizontal distance [m]: to the corner of a hexagon, ISD / sqrt(3) for inter-site distance ISD.
        room: Walls (x_min, y_min, x_max, y_max) [m] that users stay within.
        highest: Highest carrier [Hz] of the path-loss model (Table 7.4.1-1).
    """

    bs_height: float
    ut_height: float
    nearest: float
    radius: float
    room: tuple[float, float, float, float] | None = None
    highest: float = 100e9

    @property
    def reach(self) -> float:
        """Return the largest distance between users along x [m]."""
        return self.radius if self.room is None else self.room[2] - self.room[0]


#: Tables 7.2-1 (UMi with ISD 200 m, UMa 500 m), 7.2-2 (InH) and 7.2-3 (RMa, ISD 1732 m). The indoor base station is the
#: first of Figure 7.2-1's twelve, 10 m and 15 m from two walls of a room of 120 m x 50 m
CELLS: dict[Scenario, Cell] = {
    "umi": Cell(10.0, 1.5, 10.0, 200 / math.sqrt(3)),
    "uma": Cell(25.0, 1.5, 35.0, 500 / math.sqrt(3)),
    "rma": Cell(35.0, 1.5, 35.0, 1732 / math.sqrt(3), highest=30e9),
    "inh": Cell(3.0, 1.0, 0.0, math.inf, room=(-10.0, -15.0, 110.0, 35.0)),
}


def place_users(scenario: Scenario, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw user positions uniformly over the sector in front of the base station, shape (count, 3) [m]."""
    cell = CELLS[scenario]
    x_min, y_min, x_max, y_max = cell.room or (0.0, -cell.radius, cell.radius, cell.radius)
    found = np.zeros((0, 2))
    while len(found) < count:
        xy = rng.uniform((x_min, y_min), (x_max, y_max), (2 * count, 2))
        distance, azimuth = np.hypot(*xy.T), np.arctan2(xy[:, 1], xy[:, 0])
        inside = (cell.nearest <= distance) & (distance <= cell.radius) & (abs(azimuth) <= _HALF_SECTOR)
        found = np.concatenate([found, xy[inside]])
    return np.column_stack([found[:count], np.full(count, cell.ut_height)]).astype(np.float32)


def drop(
    scenario: Scenario,
    sight: Sight,
    frequency: float,
    count: int,
    seed: int,
    release: Release,
    polarized: bool = False,
) -> Paths:
    """Draw the rays of `count` links to a base station at `(0, 0, CELLS[scenario].bs_height)`.

    Args:
        scenario: Scenario, with its parameters and geometry.
        sight: Line of sight for all links, for none, or by the probability of Table 7.4.2-1.
        frequency: Carrier [Hz].
        count: Number of links.
        seed: Random seed.
        release: Version of the tables.
        polarized: Whether paths have a `polarization`.
    """
    return to_paths(*sample(scenario, sight, frequency, count, seed, release), polarized=polarized)


def sample(
    scenario: Scenario, sight: Sight, frequency: float, count: int, seed: int, release: Release
) -> tuple[Any, Any, Any]:
    """Draw a drop with Sionna PHY; arguments as of `drop`.

    Every link is an independent drop: large-scale parameters are not correlated between users.

    Returns:
        Sionna's scenario, large-scale parameters (`LSP`) and rays (`Rays`), with axes (count, 1, 1, ...).
    """
    users = torch.from_numpy(place_users(scenario, count, np.random.default_rng(seed))).unsqueeze(1)
    station = torch.tensor([0.0, 0.0, CELLS[scenario].bs_height]).expand(count, 1, 3).clone()
    still = torch.zeros(count, 1, 3)
    no, yes = torch.zeros(count, 1, dtype=torch.bool), torch.ones(count, 1, dtype=torch.bool)
    with _sionna(seed) as generator:
        from sionna.phy.channel import tr38901

        model = _model(scenario, frequency, release)
        # users are outdoors, neither in buildings nor in cars (RMa), which would add penetration loss
        model.set_topology(
            ut_loc=users,
            bs_loc=station,
            ut_orientations=still,
            bs_orientations=still,
            ut_velocities=still,
            in_state=yes if scenario == "inh" else no,
            los="random" if sight == "mixed" else sight == "los",
            **({"in_car": no} if scenario == "rma" else {}),
        )
        draw_parameters, draw_rays = tr38901.LSPGenerator(model), tr38901.RaysGenerator(model)
        draw_parameters.topology_updated_callback()
        draw_rays.topology_updated_callback()
        parameters = draw_parameters()
        rays = draw_rays(parameters)
        # step 10; the four polarisation combinations, of which vertical ones use the first
        rays.phases = (torch.rand(*rays.aod.shape, 4, generator=generator) - 0.5) * 2 * math.pi
    return model, parameters, rays


def to_paths(model: Any, parameters: Any, rays: Any, polarized: bool = False) -> Paths:
    """Turn a drop of `sample` into rays with gains (clause 7.5, steps 11 and 12).

    Gains are those of the theta-theta entry of eq 7.5-28, which is independent of the cross-polarisation ratio; all
    four entries are the `polarization`, if `polarized`. Delays are absolute: the first cluster has the delay of the
    straight line, without the NLOS excess delay of clause 7.6.9.
    """
    gain_db = -parameters.pathloss[:, 0, 0].double() + 10 * parameters.sf[:, 0, 0].double().log10()
    total = torch.pow(10.0, gain_db / 20)
    los, factor = model.los[:, 0, 0], parameters.k_factor[:, 0, 0].double()
    diffuse = torch.where(los, 1 / (factor + 1), 1.0).sqrt()
    direct = torch.where(los, factor / (factor + 1), 0.0).sqrt()
    distance = (model.ut_loc - model.bs_loc)[:, 0].double().norm(dim=-1)
    first = distance / SPEED_OF_LIGHT

    power = rays.powers[:, 0, 0].double()
    count, num_rays = len(power), rays.aod.shape[-1]
    amplitude = (power / num_rays).sqrt().unsqueeze(-1) * (total * diffuse)[:, None, None]
    gains = torch.polar(amplitude.expand(-1, -1, num_rays), rays.phases[:, 0, 0, ..., 0].double())
    delays = _ray_delays(model, rays) + first[:, None, None]

    # eq 7.5-29: phase of the line of sight by its length; it is the first path, and masked in NLOS links
    turns = distance * model.carrier_frequency.double() / SPEED_OF_LIGHT
    ahead = torch.polar(total * direct, -2 * math.pi * turns.frac()).unsqueeze(1)
    gain = torch.cat([ahead, gains.flatten(1)], 1)
    polarization = None
    if polarized:
        scattered = scattered_polarization(rays.phases[:, 0, 0].double(), rays.xpr[:, 0, 0].double())
        polarization = torch.cat([DIRECT_POLARIZATION.expand(count, 1, 2, 2), scattered.flatten(1, 2)], 1)
    bounces = torch.ones(gain.shape, dtype=torch.uint8)
    bounces[:, 0] = 0
    return Paths.build(
        gain=gain,
        delay=torch.cat([first.unsqueeze(1), delays.flatten(1)], 1),
        aod=_directions(model.los_aod, model.los_zod, rays.aod, rays.zod),
        aoa=_directions(model.los_aoa, model.los_zoa, rays.aoa, rays.zoa),
        position=model.ut_loc[:, 0],
        bounces=bounces,
        los=los.to(torch.int8),
        polarization=polarization,
        # clusters 25 dB below the strongest are dropped (step 6), and LOS links have fewer of them
        max_paths=int((gain.abs() > 0).sum(1).max()) if count else 1,
    )


def scattered_polarization(phases: Tensor, ratio: Tensor) -> Tensor:
    """Return the polarisation of scattered rays relative to its first entry (eq 7.5-28), shape (..., 2, 2), complex.

    Args:
        phases: Phases of the four entries [rad], shape (..., 4).
        ratio: Cross-polarisation ratio, linear, shape (...).
    """
    weak = ratio.rsqrt()
    amplitude = torch.stack([torch.ones_like(weak), weak, weak, torch.ones_like(weak)], -1)
    return torch.polar(amplitude, phases - phases[..., :1]).reshape(*ratio.shape, 2, 2)


def _ray_delays(model: Any, rays: Any) -> Tensor:
    """Return delays after the first cluster [s], shape (U, clusters, rays); with sub-clusters in the two strongest."""
    delays = rays.delays[:, 0, 0].double()
    spread = model.get_param("cDS")[:, 0, 0].double() * 1e-9
    strongest = torch.zeros_like(delays).scatter(1, rays.strongest_cluster_indices[:, 0, 0], 1.0)
    offsets = torch.zeros(rays.aod.shape[-1], dtype=torch.float64)
    for members, offset in _SUBCLUSTERS:
        offsets[list(members)] = offset
    result: Tensor = delays.unsqueeze(-1) + (strongest * spread.unsqueeze(1)).unsqueeze(-1) * offsets
    return result


def _directions(los_azimuth: Tensor, los_zenith: Tensor, azimuth: Tensor, zenith: Tensor) -> Tensor:
    """Join line of sight [degrees] and rays [rad] into (azimuth, zenith) [rad], shape (U, P, 2)."""
    ahead = torch.stack([los_azimuth[:, 0, 0], los_zenith[:, 0, 0]], -1).deg2rad().unsqueeze(1)
    return torch.cat([ahead, torch.stack([azimuth[:, 0, 0], zenith[:, 0, 0]], -1).flatten(1, 2)], 1)


def _model(scenario: Scenario, frequency: float, release: Release) -> Any:
    from sionna.phy.channel import tr38901

    # always on the CPU: random numbers differ by device, and drawing takes a hundredth of the time of training
    shared = {"precision": "single", "device": "cpu"}
    # Sionna requires an array; rays do not depend on it
    element = tr38901.PanelArray(1, 1, "single", "V", "omni", frequency, **shared)
    settings = {"ut_array": element, "bs_array": element, "direction": "downlink", "spec_version": release, **shared}
    if scenario == "rma":
        return tr38901.RMaScenario(frequency, **settings)
    if scenario == "inh":
        return tr38901.InHScenario(frequency, indoor_scenario="open", **settings)
    model = tr38901.UMiScenario if scenario == "umi" else tr38901.UMaScenario
    return model(frequency, o2i_model="low", **settings)


@contextmanager
def importing_sionna() -> Iterator[None]:
    """Import Sionna PHY, whose first import seeds PyTorch's generators, and imports Sionna RT where there is one.

    Raises:
        InputError: Sionna PHY is not installed.
    """
    with suppress(InputError):  # the models of TR 38.901 need no LLVM
        use_llvm()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), needs("tr38901", NEEDS_SIONNA):
        yield


@contextmanager
def _sionna(seed: int) -> Iterator[torch.Generator]:
    """Yield Sionna's generator, seeded, without a change to other generators.

    Setting `sionna.phy.config.seed` would reseed PyTorch's default generators as well, and so change the training.
    """
    with importing_sionna():
        from sionna.phy import config
    generator = config.torch_rng("cpu")
    before = generator.get_state()
    try:
        yield generator.manual_seed(seed)
    finally:
        generator.set_state(before)
