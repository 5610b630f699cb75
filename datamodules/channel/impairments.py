"""Impairments: random observations of a channel, which serve as views of contrastive learning.

Each is a callable on complex CSI (B, ..., R, T, K) and the random numbers of the links. Position and LOS status of the
user are invariant under all of them, the best beam under all but `AntennaPermutation`.
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
    """Additive white complex Gaussian noise, at one SNR for each link.

    Args:
        snr_db: Range (lowest, highest) of the SNR [dB] relative to the mean power of the link.
    """

    def __init__(self, snr_db: Range = (0.0, 30.0)) -> None:
        self.snr_db = _ordered("snr_db", snr_db)

    def __call__(self, csi: Tensor, draws: LinkDraws) -> Tensor:
        """Add noise."""
        snr_db = _uniform(csi, self.snr_db, draws)
        power = csi.abs().square().mean(tuple(range(1, csi.ndim)), keepdim=True)
        return csi + draws.normal(*csi.shape[1:]) * (power * torch.pow(10.0, -snr_db / 10)).sqrt()


class CommonPhase(View):
    """A random phase, common to all antennas and subcarriers of a link."""

    def __call__(self, csi: Tensor, draws: LinkDraws) -> Tensor:
        """Multiply every link by a uniformly distributed phase."""
        phase = _uniform(csi, (0.0, 2 * math.pi), draws)
        return csi * torch.polar(torch.ones_like(phase), phase)


class PartialSubcarriers(View):
    """Observation of a random subset of the subcarriers; the others are zero.

    Args:
        keep: Range (lowest, highest) of the fraction of observed subcarriers, in (0, 1]. Amplitudes are divided by its
            square root, which preserves the mean power.
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
    """A random timing offset: a delay common to all paths of a link.

    Args:
        cycles: Range (lowest, highest) of the offset in delay taps.
    """

    def __init__(self, cycles: Range = (0.0, 2.0)) -> None:
        self.cycles = _ordered("cycles", cycles)

    def __call__(self, csi: Tensor, draws: LinkDraws) -> Tensor:
        """Apply the phase ramp of the offset over subcarriers."""
        offset = _uniform(csi, self.cycles, draws)
        tones = torch.arange(csi.shape[-1], device=csi.device) / csi.shape[-1]
        phase = -2 * math.pi * offset * tones
        return csi * torch.polar(torch.ones_like(phase), phase)


class TimeShift(View):
    """A random shift of a sequence to later snapshots, padded by repetition of the last one.

    Args:
        snapshots: Largest shift in snapshots.
    """

    def __init__(self, snapshots: int = 2) -> None:
        check_whole("TimeShift", snapshots=snapshots)
        self.snapshots = snapshots

    def __call__(self, csi: Tensor, draws: LinkDraws) -> Tensor:
        """Shift the snapshots of (B, N, R, T, K)."""
        _check_sequence("TimeShift", csi)
        shift = (draws.uniform(1) * (self.snapshots + 1)).long()
        later = (torch.arange(csi.shape[1], device=csi.device) + shift).clamp_max(csi.shape[1] - 1)
        return csi[torch.arange(len(csi), device=csi.device).unsqueeze(1), later]


class AntennaPermutation(View):
    """A random permutation of the base-station antennas. It removes the information on angles and beams."""

    def __call__(self, csi: Tensor, draws: LinkDraws) -> Tensor:
        """Permute the antennas of (B, ..., R, T, K), by one permutation for each link."""
        order = draws.uniform(csi.shape[-2]).argsort(1)
        index = order.reshape(len(csi), *[1] * (csi.ndim - 3), csi.shape[-2], 1)
        return csi.gather(-2, index.expand(csi.shape))


class PhaseJitter(View):
    """Phase noise: a normally distributed phase of each snapshot, common to all antennas and subcarriers.

    Args:
        std: Standard deviation of the phase [rad].
    """

    def __init__(self, std: float = 0.1) -> None:
        check_positive("PhaseJitter", std=std)
        self.std = std

    def __call__(self, csi: Tensor, draws: LinkDraws) -> Tensor:
        """Multiply each snapshot of (B, [N,] R, T, K) by its phase."""
        snapshots = csi.shape[1:-3]
        # the real part of a complex normal variable has half of its variance
        phase = self.std * math.sqrt(2) * draws.normal(*snapshots, 1, 1, 1).real
        return csi * torch.polar(torch.ones_like(phase), phase)


class AmplitudeScaling(View):
    """A random receiver gain.

    Args:
        factor: Range (lowest, highest) of the amplitude factor of a link.
    """

    def __init__(self, factor: Range = (0.9, 1.1)) -> None:
        self.factor = _ordered("factor", factor)
        if not factor[0] > 0:
            raise InputError(f"factor must be positive, got {factor}")

    def __call__(self, csi: Tensor, draws: LinkDraws) -> Tensor:
        """Multiply each link by its factor."""
        return csi * _uniform(csi, self.factor, draws)


def observe(csi: Tensor, views: list[View], draws: LinkDraws) -> Tensor:
    """Apply impairments in order to CSI (B, ..., R, T, K)."""
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
    """Draw one number for each link, shape (B, 1, ..., 1)."""
    low, high = span
    return low + (high - low) * draws.uniform(*[1] * (csi.ndim - 1))
