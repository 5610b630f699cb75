"""CSI feedback without a network: principal components, and the strongest paths."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

#: NMSE [dB] between two unrelated channels of unit norm: what a network reaches that has learned nothing
CHANCE_DB = 10 * math.log10(2)
#: numbers that tell a path: its place on the grid of delays and angles, and its complex gain
NUMBERS_A_PATH = 3


@dataclass(frozen=True)
class PrincipalComponents:
    """The linear code of so many numbers that loses least over a set of channels.

    Attributes:
        mean: Mean channel as real numbers, shape (2*rows*antennas,).
        basis: Orthonormal components in rows, strongest first, shape (numbers, 2*rows*antennas).
    """

    mean: Tensor
    basis: Tensor

    @classmethod
    def fit(cls, channels: Tensor, numbers: int) -> PrincipalComponents:
        """Learn from training channels (M, rows, antennas), complex; a small set has no more than M components."""
        values = _reals(channels)
        mean = values.mean(0)
        values = values - mean
        # of the two Gram matrices the smaller one; both have the same eigenvalues
        if len(values) < values.shape[1]:
            energy, vectors = torch.linalg.eigh(values @ values.T)
            vectors = values.T @ vectors
        else:
            energy, vectors = torch.linalg.eigh(values.T @ values)
        keep = energy.argsort(descending=True)[:numbers]
        keep = keep[energy[keep] > 1e-6 * energy.max()]
        return cls(mean, torch.nn.functional.normalize(vectors[:, keep].T, dim=1))

    def rebuild(self, channels: Tensor) -> Tensor:
        """Return channels (B, rows, antennas) as they come out of the code."""
        values = (_reals(channels) - self.mean) @ self.basis.T @ self.basis + self.mean
        pairs = rearrange(values, "b (n a c) -> b n a c", n=channels.shape[1], c=2)
        return torch.view_as_complex(pairs.contiguous())


def _reals(channels: Tensor) -> Tensor:
    return torch.view_as_real(channels).flatten(1)


def matching_pursuit(channels: Tensor, paths: int, num_subcarriers: int, oversampling: int = 4) -> Tensor:
    """Rebuild channels of the strongest paths on a grid of delays and angles, found one after another.

    Orthogonal matching pursuit: after every path all gains are fitted anew. `NUMBERS_A_PATH` numbers tell a path, so a
    code of 32 numbers has 10. All links run at once; correlations follow from the Gram matrices of the grid.

    Args:
        channels: Delay-angular channels of single-antenna users and a linear array, shape (B, rows, T).
        paths: How many paths.
        num_subcarriers: Number K of subcarriers that the channels were made of.
        oversampling: Grid points a tap, and a DFT beam.

    Returns:
        Shape (B, rows, T), complex.
    """
    rows, antennas = channels.shape[1:]
    delays, angles = path_grid(rows, antennas, num_subcarriers, oversampling, channels)
    delay_gram, angle_gram = delays.mH @ delays, angles.mH @ angles
    start = delays.mH @ channels @ angles.conj()  # <atom, channel> of every atom d a^T, (B, U, V)
    left, blocked = start, torch.zeros_like(start, dtype=torch.bool)
    weight = delay_gram.diagonal().real.clamp_min(1e-6).rsqrt()[:, None]  # an atom cut at the last row is shorter
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
    """Return how paths of a grid look in the delay-angular domain.

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
