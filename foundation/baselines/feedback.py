"""CSI feedback without a network: principal components and matching pursuit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from datamodules.channel.arrays import Array

#: NMSE [dB] between two uncorrelated channels of unit norm, that of an untrained network
CHANCE_DB = 10 * math.log10(2)
#: real numbers of a path: its index on the grid of delays and angles, and its complex gain
NUMBERS_A_PATH = 3
#: most paths of matching pursuit as a reference: more take minutes
_MOST_PATHS = 64


@dataclass(frozen=True)
class PrincipalComponents:
    """Principal component analysis of channels: the linear code of least squared error.

    Attributes:
        mean: Mean channel as real numbers, shape (2*rows*antennas,).
        basis: Orthonormal components as rows, in decreasing order of variance, shape (numbers, 2*rows*antennas).
    """

    mean: Tensor
    basis: Tensor

    @classmethod
    def fit(cls, channels: Tensor, numbers: int) -> PrincipalComponents:
        """Fit at most M components to training channels (M, rows, antennas), complex."""
        values = _reals(channels)
        mean = values.mean(0)
        values = values - mean
        # the smaller of the two Gram matrices, which have the same nonzero eigenvalues
        if len(values) < values.shape[1]:
            energy, vectors = torch.linalg.eigh(values @ values.T)
            vectors = values.T @ vectors
        else:
            energy, vectors = torch.linalg.eigh(values.T @ values)
        keep = energy.argsort(descending=True)[:numbers]
        keep = keep[energy[keep] > 1e-6 * energy.max()]
        return cls(mean, torch.nn.functional.normalize(vectors[:, keep].T, dim=1))

    def rebuild(self, channels: Tensor) -> Tensor:
        """Return the reconstruction of channels (B, rows, antennas)."""
        values = (_reals(channels) - self.mean) @ self.basis.T @ self.basis + self.mean
        pairs = rearrange(values, "b (n a c) -> b n a c", n=channels.shape[1], c=2)
        return torch.view_as_complex(pairs.contiguous())


def _reals(channels: Tensor) -> Tensor:
    return torch.view_as_real(channels).flatten(1)


def paths_of(numbers: int, num_receive: int = 1, bs: Array | None = None) -> int:
    """Return the number of paths that so many real numbers describe; 0 where matching pursuit of them is left out.

    That is for users of several antennas and base stations of another than a linear array, whose channels
    `matching_pursuit` does not describe, and where it takes too long.

    Args:
        numbers: Real numbers M of a code.
        num_receive: Number R of receive antennas.
        bs: Array of the base station; by default linear.
    """
    paths = numbers // NUMBERS_A_PATH
    described = num_receive == 1 and (bs is None or bs.is_line)
    return paths if described and paths <= _MOST_PATHS else 0


def matching_pursuit(channels: Tensor, paths: int, num_subcarriers: int, oversampling: int = 4) -> Tensor:
    """Reconstruct channels from their strongest paths on a grid of delays and angles by orthogonal matching pursuit.

    A path takes `NUMBERS_A_PATH` real numbers, so a code of 32 numbers has 10 paths. All links are processed in one
    batch, with correlations from the Gram matrices of the grid.

    Args:
        channels: Delay-angular channels of single-antenna users and a linear array, shape (B, rows, T).
        paths: Number of paths.
        num_subcarriers: Number K of subcarriers of the channels.
        oversampling: Grid points for each delay tap, and for each DFT beam.

    Returns:
        Shape (B, rows, T), complex.
    """
    rows, antennas = channels.shape[1:]
    delays, angles = path_grid(rows, antennas, num_subcarriers, oversampling, channels)
    delay_gram, angle_gram = delays.mH @ delays, angles.mH @ angles
    start = delays.mH @ channels @ angles.conj()  # <atom, channel> of every atom d a^T, (B, U, V)
    left, blocked = start, torch.zeros_like(start, dtype=torch.bool)
    weight = delay_gram.diagonal().real.clamp_min(1e-6).rsqrt()[:, None]  # atoms cut at the last row are shorter
    chosen = torch.zeros(len(channels), 0, dtype=torch.long, device=channels.device)
    gains = torch.zeros(len(channels), 0, dtype=channels.dtype, device=channels.device)
    for _ in range(paths):
        score = (left.abs() * weight).masked_fill(blocked, -1.0).flatten(1)
        best = score.argmax(1, keepdim=True)
        chosen = torch.cat([chosen, best], dim=1)
        blocked = blocked.flatten(1).scatter(1, best, True).reshape(blocked.shape)
        u, v = chosen // angles.shape[1], chosen % angles.shape[1]
        gram = delay_gram[u[:, :, None], u[:, None]] * angle_gram[v[:, :, None], v[:, None]]
        ridge = 1e-6 * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        gains = torch.linalg.solve(gram + ridge, start.flatten(1).gather(1, chosen))
        left = start - (delay_gram[:, u] * gains).permute(1, 0, 2) @ angle_gram[:, v].permute(1, 2, 0)
    u, v = chosen // angles.shape[1], chosen % angles.shape[1]
    return (delays[:, u] * gains).permute(1, 0, 2) @ angles[:, v].permute(1, 2, 0)


def path_grid(rows: int, antennas: int, num_subcarriers: int, oversampling: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the responses of a grid of paths in the delay-angular domain.

    Returns:
        Delay responses (rows, U) and angle responses (T, V), U and V being `oversampling` times `rows` and T. A path is
        the outer product of one of each.
    """
    device, size = like.device, float(oversampling)
    delay = torch.arange(rows * oversampling, dtype=torch.float64, device=device) / size  # [taps]
    angle = torch.arange(antennas * oversampling, dtype=torch.float64, device=device) / size  # [DFT beams]
    tap = torch.arange(rows, dtype=torch.float64, device=device)[:, None]
    beam = torch.arange(antennas, dtype=torch.float64, device=device)[:, None]
    delays = _kernel(tap - delay, num_subcarriers)
    return delays.to(like.dtype), _kernel(angle - beam, antennas).to(like.dtype)


def _kernel(offset: Tensor, count: int) -> Tensor:
    """Return the mean over k of e^{j 2 pi k offset / count}, k = 0 .. count - 1, of any shape, complex128."""
    k = torch.arange(count, dtype=torch.float64, device=offset.device)
    turns = offset[..., None] * k / count
    return torch.polar(torch.ones_like(turns), 2 * torch.pi * (turns % 1)).mean(-1)
