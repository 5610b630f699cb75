"""Sequences: motion of users during snapshots, and snapshots to predict.

The motion of a user depends on the seed, its area and its row there alone, and is the same for all base stations and
twin variants, batches, epochs, processes and devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from datamodules.channel.draws import uniform
from datamodules.channel.transforms import constant
from datamodules.errors import InputError, check_finite, check_positive, check_whole, finite_numbers

Mobility = Literal["static", "pedestrian", "vehicular"]
Directions = Literal["horizontal", "any"]
#: the classes in order of their codes 0, 1, 2
MOBILITIES: tuple[Mobility, ...] = get_args(Mobility)
#: lowest and highest speed of each class [m/s]: 0, 3-6 km/h, 30-120 km/h (ConTwin appendix B)
SPEEDS: dict[Mobility, tuple[float, float]] = {
    "static": (0.0, 0.0),
    "pedestrian": (3 / 3.6, 6 / 3.6),
    "vehicular": (30 / 3.6, 120 / 3.6),
}
#: default time between snapshots of paths [s]
_INTERVAL = 5e-3


class Motion(NamedTuple):
    """Motion of the users of a batch.

    Attributes:
        velocity: Shape (B, 3) [m/s].
        times: Instants of observed and predicted snapshots, shape (N + H,) [s]; float64.
        mobility: Class, an index into `MOBILITIES`, shape (B,), int64.
    """

    velocity: Tensor
    times: Tensor
    mobility: Tensor


@dataclass(frozen=True)
class Sequence:
    """Snapshots of a link whose user moves at constant velocity.

    Args:
        snapshots: Number N of observed snapshots. With the default interval, 5 last the 25 ms of ConTwin's window.
        interval: Time between snapshots [s]; by default that of a recording, or 5 ms for paths, the period of CSI-RS
            (ConTwin section 2).
        mobility: Weights of the classes `static`, `pedestrian` and `vehicular`; a link's class is drawn by them, and
            its speed uniformly over the range of the class (`SPEEDS`). By default equal weights. Users of a source with
            speeds of its own (`TR38901`, `CDL`) have those.
        speed: Range (lowest, highest) of the speed [m/s] of every such link, instead of `mobility`.
        horizon: Number H of following snapshots to predict; 0 for none.
        window: Largest time from the first window of N snapshots to a second one of the same user [s], see
            `ChannelDataModule`; 25 ms in ConTwin (section 5). By default there is no second window.
        directions: `horizontal`, uniform in azimuth, or `any`, uniform in azimuth and in zenith as Sionna's CDL moves.

    Raises:
        InputError: An argument is out of range.
    """

    snapshots: int = 5
    interval: float | None = None
    mobility: dict[Mobility, float] | None = None
    speed: tuple[float, float] | None = None
    horizon: int = 1
    window: float | None = None
    directions: Directions = "horizontal"

    def __post_init__(self) -> None:
        check_whole("sequence", snapshots=self.snapshots)
        if self.horizon != 0:
            check_whole("sequence", horizon=self.horizon)
        if self.directions not in get_args(Directions):
            raise InputError(f"sequence.directions must be horizontal or any, got {self.directions!r}")
        check_finite("sequence", interval=self.interval, window=self.window)
        check_positive("sequence", interval=self.interval, window=self.window)
        if self.mobility is not None:
            if self.speed is not None:
                raise InputError("sequence takes mobility or speed, not both")
            if not isinstance(self.mobility, dict):
                raise InputError(f"sequence.mobility must be a weight for each class by name, got {self.mobility!r}")
            unknown = sorted(set(self.mobility) - set(MOBILITIES))
            if unknown:
                raise InputError(f"sequence.mobility has the classes {', '.join(MOBILITIES)}, not {', '.join(unknown)}")
            weights = finite_numbers("sequence.mobility", self.mobility.values(), *self.mobility)
            if min(weights, default=0) < 0 or not sum(weights) > 0:
                raise InputError(f"sequence.mobility must be weights with a positive sum, got {self.mobility}")
        if self.speed is not None:
            low, high = finite_numbers("sequence.speed", self.speed, "lowest", "highest")
            if not 0 <= low <= high:
                raise InputError(f"sequence.speed must be (lowest, highest) [m/s], got {tuple(self.speed)}")

    @property
    def instants(self) -> tuple[float, ...]:
        """Instants of the N observed and H predicted snapshots [s]."""
        return tuple(number * (self.interval or _INTERVAL) for number in range(self.snapshots + self.horizon))

    @property
    def times(self) -> Tensor:
        """The instants as a tensor, shape (N + H,), float64."""
        return torch.tensor(self.instants, dtype=torch.float64)

    @property
    def steps(self) -> int:
        """Largest offset of the second window of a recording in snapshots; 0 without a second window."""
        return int((self.window or 0.0) / (self.interval or _INTERVAL) + 1e-6)

    @property
    def length(self) -> int:
        """Number of recorded snapshots of both windows and of the prediction."""
        return self.snapshots + max(self.horizon, self.steps)


def draw_motion(sequence: Sequence, area: Tensor, user: Tensor, seed: int = 0, span: Tensor | None = None) -> Motion:
    """Draw mobility class, speed and direction (`Sequence.directions`) of the user of each link.

    Args:
        sequence: Distribution of the motion.
        area: Unique number of the area of each link, such as the CRC-32 of its name, shape (B,), integer.
        user: Row of the user of each link in its area, shape (B,), integer.
        seed: Random seed.
        span: Range (lowest, highest) of the speed [m/s] given by the site of each link, NaN if not given, shape
            (B, 2); see `domains.speed_spans`.

    Returns:
        The motion, on the device of `user`, with `velocity` and `times` of `synthesize`.
    """
    pick, share, turn, rise = uniform(seed, area, user, count=4).unbind(1)
    if sequence.speed is None:
        weights = [1.0] * len(MOBILITIES)
        if sequence.mobility is not None:
            weights = [float(sequence.mobility.get(name, 0)) for name in MOBILITIES]
        edges = constant(tuple(weights), pick.device).cumsum(0) / sum(weights)
        # rounding may leave the last edge below 1: clamp to the last class of nonzero weight
        last = max(i for i, weight in enumerate(weights) if weight > 0)
        known = torch.searchsorted(edges, pick.contiguous(), right=True).clamp_max(last)
        ranges = constant(tuple(SPEEDS[name] for name in MOBILITIES), pick.device)[known]
    else:
        ranges = constant(tuple(sequence.speed), pick.device).expand(len(pick), 2)
    if span is not None:
        ranges = torch.where(span.isnan(), ranges, span.to(ranges))
    low, high = ranges.unbind(1)
    speed = low + (high - low) * share
    azimuth = 2 * math.pi * turn
    level, height = speed, torch.zeros_like(speed)
    if sequence.directions == "any":
        level, height = speed * (math.pi * rise).sin(), speed * (math.pi * rise).cos()
    velocity = torch.stack((level * azimuth.cos(), level * azimuth.sin(), height), 1)
    times = constant(sequence.instants, pick.device, torch.float64)
    return Motion(velocity, times, mobility_class(speed))


def mobility_class(speed: Tensor) -> Tensor:
    """Return the class of speeds [m/s], an index into `MOBILITIES`, int64.

    Users at rest are `static`, those at least as fast as the slowest vehicle `vehicular`, others `pedestrian`.
    """
    # tolerance of half a percent for rounding in single precision
    vehicular = speed >= 0.995 * SPEEDS["vehicular"][0]
    return (speed > 0).long() + vehicular.long()


def split_next(csi: Tensor, horizon: int = 1) -> tuple[Tensor, Tensor]:
    """Split a sequence into observed snapshots and snapshots to predict.

    Args:
        csi: Shape (B, N + H, R, T, K).
        horizon: Number H of snapshots to predict.

    Returns:
        `csi` (B, N, R, T, K) and `next_csi` (B, H, R, T, K), views of the input.

    Raises:
        InputError: The CSI has no time axis, or too few snapshots.
    """
    if csi.ndim != 5 or csi.shape[1] <= horizon:
        raise InputError(
            f"a horizon of {horizon} needs sequences of at least {horizon + 1} snapshots, got CSI of shape "
            f"{tuple(csi.shape)}: set data.sequence for rays, or record more snapshots"
        )
    return csi[:, :-horizon], csi[:, -horizon:]
