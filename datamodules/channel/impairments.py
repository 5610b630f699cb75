"""Views: what a receiver could have observed of the same channel.

Each is a callable on complex CSI of shape (B, ..., R, T, K) and the random numbers of its links, named for what it
simulates. None changes the user's position, its line of sight or its best beam beyond what the noise hides.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from datamodules.channel.draws import LinkDraws
from datamodules.errors import InputError, check_positive, check_whole, finite_numbers

Range = tuple[float, float]


class View(ABC):
    """A random observation of a channel."""

    @abstractmethod
    def __call__(self, csi: Tensor, draws: LinkDraws) -> Tensor:
        """Return an observation of `csi`, same shape (B, ..., R, T, K), complex64."""


class Noise(View):
    """Thermal noise: white and complex normal, at one SNR for each link.

    Args:
        snr_db: Range (lowest, highest) the SNR [dB] is drawn from, relative to the link's mean power.
    """

    def __init__(self, snr_db: Range = (0.0, 30.0)) -> None:
        self.snr_db = _ordered("snr_db", snr_db)

    def __call__(self, csi: Tensor, draws: LinkDraws) -> Tensor:
        """Add noise."""
        snr_db = _uniform(csi, self.snr_db, draws)
        power = csi.abs().square().mean(tuple(range(1, csi.ndim)), keepdim=True)
        return csi + draws.normal(*csi.shape[1:]) * (power * torch.pow(10.0, -snr_db / 10)).sqrt()


class CommonPhase(View):
    """An unknown oscillator phase, common to all antennas and subcarriers of a link."""

    def __call__(self, csi: Tensor, draws: LinkDraws) -> Tensor:
        """Rotate every link by one uniform phase."""
        phase = _uniform(csi, (0.0, 2 * math.pi), draws)
        return csi * torch.polar(torch.ones_like(phase), phase)


class PartialSubcarriers(View):
    """Pilots on a random part of the subcarriers; the others read zero.

    Args:
        keep: Range (lowest, highest) of the share that is kept, in (0, 1]; kept amplitudes grow by its inverse root so
            that the power stays.
    """

    def __init__(self, keep: Range = (0.5, 1.0)) -> None:
        self.keep = _ordered("keep", keep)
        if not 0 < keep[0] <= keep[1] <= 1:
            raise InputError(f"keep must lie in (0, 1], got {keep}")

    def __call__(self, csi: Tensor, draws: LinkDraws) -> Tensor:
        """Zero a random set of subcarriers of each link."""
        share = _uniform(csi, self.keep, draws)
        order = draws.uniform(csi.shape[-1]).argsort(1).argsort(1)
        kept = (share * csi.shape[-1]).round().clamp_min(1)
        order = order.reshape(csi.shape[0], *[1] * (csi.ndim - 2), csi.shape[-1])
        return csi * ((order < kept) * (csi.shape[-1] / kept).sqrt())


class TimingOffset(View):
    """An unknown sampling instant: a delay common to all paths of a link.

    Args:
        cycles: Range of the offset in periods of the whole band, that is delay taps.
    """

    def __init__(self, cycles: Range = (0.0, 2.0)) -> None:
        self.cycles = _ordered("cycles", cycles)

    def __call__(self, csi: Tensor, draws: LinkDraws) -> Tensor:
        """Turn every subcarrier by its share of the offset."""
        offset = _uniform(csi, self.cycles, draws)
        tones = torch.arange(csi.shape[-1], device=csi.device) / csi.shape[-1]
        phase = -2 * math.pi * offset * tones
        return csi * torch.polar(torch.ones_like(phase), phase)


class TimeShift(View):
    """An observation of a sequence that begins some snapshots later; the last one is repeated to its end.

    Args:
        snapshots: Most snapshots that it begins later.
    """

    def __init__(self, snapshots: int = 2) -> None:
        check_whole("TimeShift", snapshots=snapshots)
        self.snapshots = snapshots

    def __call__(self, csi: Tensor, draws: LinkDraws) -> Tensor:
        """Move the snapshots of (B, N, R, T, K)."""
        _check_sequence("TimeShift", csi)
        shift = (draws.uniform(1) * (self.snapshots + 1)).long()
        later = (torch.arange(csi.shape[1], device=csi.device) + shift).clamp_max(csi.shape[1] - 1)
        return csi[torch.arange(len(csi), device=csi.device).unsqueeze(1), later]


class AntennaPermutation(View):
    """The antennas of the base station in an unknown order. Angles, and the best beam, are lost."""

    def __call__(self, csi: Tensor, draws: LinkDraws) -> Tensor:
        """Exchange the antennas of (B, ..., R, T, K), each link in one order."""
        order = draws.uniform(csi.shape[-2]).argsort(1)
        index = order.reshape(len(csi), *[1] * (csi.ndim - 3), csi.shape[-2], 1)
        return csi.gather(-2, index.expand(csi.shape))


class PhaseJitter(View):
    """Phase noise of the oscillator: a normal offset of each snapshot, common to all antennas and subcarriers.

    Args:
        std: Standard deviation of the offsets [rad].
    """

    def __init__(self, std: float = 0.1) -> None:
        check_positive("PhaseJitter", std=std)
        self.std = std

    def __call__(self, csi: Tensor, draws: LinkDraws) -> Tensor:
        """Turn each snapshot of (B, [N,] R, T, K)."""
        snapshots = csi.shape[1:-3]
        # half of the power of a complex normal number is that of its real part
        phase = self.std * math.sqrt(2) * draws.normal(*snapshots, 1, 1, 1).real
        return csi * torch.polar(torch.ones_like(phase), phase)


class AmplitudeScaling(View):
    """An unknown gain of the receiver.

    Args:
        factor: Range (lowest, highest) that the amplitude of a link is multiplied by.
    """

    def __init__(self, factor: Range = (0.9, 1.1)) -> None:
        self.factor = _ordered("factor", factor)
        if not factor[0] > 0:
            raise InputError(f"factor must be positive, got {factor}")

    def __call__(self, csi: Tensor, draws: LinkDraws) -> Tensor:
        """Scale each link."""
        return csi * _uniform(csi, self.factor, draws)


def observe(csi: Tensor, views: list[View], draws: LinkDraws) -> Tensor:
    """Apply views in order."""
    for view in views:
        csi = view(csi, draws)
    return csi


def _check_sequence(view: str, csi: Tensor) -> None:
    if csi.ndim != 5:
        raise InputError(
            f"{view} is for sequences of snapshots, got CSI of shape {tuple(csi.shape)}: set data.sequence"
        )


def _ordered(name: str, values: Range) -> Range:
    low, high = finite_numbers(name, values, "lowest", "highest")
    if not low <= high:
        raise InputError(f"{name} must be (lowest, highest), got {values}")
    return low, high


def _uniform(csi: Tensor, span: Range, draws: LinkDraws) -> Tensor:
    """Draw one number a link, shape (B, 1, ..., 1)."""
    low, high = span
    return low + (high - low) * draws.uniform(*[1] * (csi.ndim - 1))
