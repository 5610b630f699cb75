"""Sequences: how users move while their channel is sampled, and what is to be predicted.

How a user moves depends on the seed, its area and its row there alone: not on the base station or the variant of a twin
that sees it, its batch, the epoch, the rank, the device or what other data there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from datamodules.channel.draws import uniform
from datamodules.errors import InputError, check_finite, check_positive, check_whole, finite_numbers

Mobility = Literal["static", "pedestrian", "vehicular"]
#: the classes in order of their codes 0, 1, 2
MOBILITIES: tuple[Mobility, ...] = get_args(Mobility)
#: lowest and highest speed of each class [m/s]: 0, 3-6 km/h, 30-120 km/h (ConTwin appendix B)
SPEEDS: dict[Mobility, tuple[float, float]] = {
    "static": (0.0, 0.0),
    "pedestrian": (3 / 3.6, 6 / 3.6),
    "vehicular": (30 / 3.6, 120 / 3.6),
}
#: time between snapshots of rays, unless said otherwise [s]
_INTERVAL = 5e-3


class Motion(NamedTuple):
    """How the users of a batch move.

    Attributes:
        velocity: Shape (B, 3) [m/s], horizontal.
        times: Snapshot instants with those to predict, shape (N + H,) [s]; float64.
        mobility: Class, an index into `MOBILITIES`, shape (B,), int64.
    """

    velocity: Tensor
    times: Tensor
    mobility: Tensor


@dataclass(frozen=True)
class Sequence:
    """Snapshots of a link while its user moves in a straight line.

    Args:
        snapshots: Number N of snapshots that a model sees. With the default interval, 5 fill ConTwin's 25 ms window.
        interval: Time between snapshots [s]; by default that of a recording, and 5 ms for rays, as CSI-RS come every
            5 ms (ConTwin section 2).
        mobility: Weights of the classes `static`, `pedestrian` and `vehicular`; a link's class is drawn by them, and
            its speed uniformly over the range of the class (`SPEEDS`). By default equal weights.
        speed: Range (lowest, highest) the speed [m/s] of every link is drawn from, instead of `mobility`.
        horizon: Number H of snapshots after those, the ones to predict; 0 for none.
        window: Longest time from the window of N snapshots to a second one of the same user [s], see
            `ChannelDataModule`; 25 ms in ConTwin (section 3). By default there is no second window.

    Raises:
        InputError: An argument cannot be used.
    """

    snapshots: int = 5
    interval: float | None = None
    mobility: dict[Mobility, float] | None = None
    speed: tuple[float, float] | None = None
    horizon: int = 1
    window: float | None = None

    def __post_init__(self) -> None:
        check_whole("sequence", snapshots=self.snapshots)
        if self.horizon != 0:
            check_whole("sequence", horizon=self.horizon)
        check_finite("sequence", interval=self.interval, window=self.window)
        check_positive("sequence", interval=self.interval, window=self.window)
        if self.mobility is not None:
            if self.speed is not None:
                raise InputError("sequence takes mobility or speed, not both")
            if not isinstance(self.mobility, dict):
                raise InputError(f"sequence.mobility must be a weight for each class by name, got {self.mobility!r}")
            unknown = sorted(set(self.mobility) - set(MOBILITIES))
            if unknown:
                raise InputError(f"sequence.mobility knows {', '.join(MOBILITIES)}, not {', '.join(unknown)}")
            weights = finite_numbers("sequence.mobility", self.mobility.values(), *self.mobility)
            if min(weights, default=0) < 0 or not sum(weights) > 0:
                raise InputError(f"sequence.mobility must be weights with a positive sum, got {self.mobility}")
        if self.speed is not None:
            low, high = finite_numbers("sequence.speed", self.speed, "lowest", "highest")
            if not 0 <= low <= high:
                raise InputError(f"sequence.speed must be (lowest, highest) [m/s], got {tuple(self.speed)}")

    @property
    def times(self) -> Tensor:
        """Snapshot instants with those to predict [s], shape (N + H,), float64."""
        return torch.arange(self.snapshots + self.horizon, dtype=torch.float64) * (self.interval or _INTERVAL)

    @property
    def steps(self) -> int:
        """Most snapshots of a recording that its second window begins after the first; 0 without a window."""
        return int((self.window or 0.0) / (self.interval or _INTERVAL) + 1e-6)

    @property
    def length(self) -> int:
        """Number of recorded snapshots that hold both windows and what is to be predicted."""
        return self.snapshots + max(self.horizon, self.steps)


def draw_motion(sequence: Sequence, area: Tensor, user: Tensor, seed: int = 0, span: Tensor | None = None) -> Motion:
    """Draw how the user of each link moves: its class, its speed, and a uniform horizontal direction.

    Args:
        sequence: What to draw from.
        area: A number that tells each link's area apart, say the CRC-32 of its name, shape (B,), integer.
        user: Row of each link's user in its area, shape (B,), integer.
        seed: Draws.
        span: Range (lowest, highest) of each link's speed [m/s] where its site fixes it, NaN elsewhere, shape (B, 2);
            see `domains.speed_spans`.

    Returns:
        The motion, on the device of `user`; what `synthesize` takes as `velocity` and `times`.
    """
    pick, share, turn = uniform(seed, area, user, count=3).unbind(1)
    if sequence.speed is None:
        weights = [1.0] * len(MOBILITIES)
        if sequence.mobility is not None:
            weights = [float(sequence.mobility.get(name, 0)) for name in MOBILITIES]
        edges = torch.tensor(weights, device=pick.device).cumsum(0) / sum(weights)
        # the last class with a weight takes what rounding leaves above the last edge
        last = max(i for i, weight in enumerate(weights) if weight > 0)
        known = torch.searchsorted(edges, pick.contiguous(), right=True).clamp_max(last)
        ranges = torch.tensor([SPEEDS[name] for name in MOBILITIES], device=pick.device)[known]
    else:
        ranges = torch.tensor(sequence.speed, device=pick.device).expand(len(pick), 2)
    if span is not None:
        ranges = torch.where(span.isnan(), ranges, span.to(ranges))
    low, high = ranges.unbind(1)
    speed = low + (high - low) * share
    azimuth = 2 * math.pi * turn
    velocity = torch.stack((speed * azimuth.cos(), speed * azimuth.sin(), torch.zeros_like(speed)), 1)
    return Motion(velocity, sequence.times.to(pick.device), mobility_class(speed))


def mobility_class(speed: Tensor) -> Tensor:
    """Return the class of speeds [m/s], an index into `MOBILITIES`, int64.

    A user at rest is `static`, one as fast as the slowest vehicle `vehicular`, and all between are `pedestrian`.
    """
    # half a percent below, so that a vehicle drawn at the slowest speed stays one in single precision
    vehicular = speed >= 0.995 * SPEEDS["vehicular"][0]
    return (speed > 0).long() + vehicular.long()


def split_next(csi: Tensor, horizon: int = 1) -> tuple[Tensor, Tensor]:
    """Split the last snapshots off, as the target of prediction.

    Args:
        csi: Shape (B, N + H, R, T, K).
        horizon: Number H of snapshots to predict.

    Returns:
        `csi` (B, N, R, T, K) and `next_csi` (B, H, R, T, K), views of the input.

    Raises:
        InputError: There is no time axis, or no snapshot before those to predict.
    """
    if csi.ndim != 5 or csi.shape[1] <= horizon:
        raise InputError(
            f"{horizon} to predict needs sequences of at least {horizon + 1} snapshots, got CSI of shape "
            f"{tuple(csi.shape)}: set data.sequence for rays, or record more snapshots"
        )
    return csi[:, :-horizon], csi[:, -horizon:]
