"""Limits of linear channel prediction: linear MMSE predictors of known paths, of all bins and of each bin alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from datamodules.channel.arrays import Array, unit_vector
from datamodules.channel.linear_prediction import to_bins, to_csi
from datamodules.channel.ofdm import OFDM
from datamodules.channel.response import link_factors
from datamodules.sites.paths import Paths


class Signatures(NamedTuple):
    """Factors of the paths of moving users, by which the channel is a sum of known signatures with unknown phases.

    Attributes:
        space: Response of the antenna pairs, the gain of the path included, shape (B, P, R, T), complex128.
        tones: Response of the subcarriers, shape (B, P, K), complex128.
        turns: Doppler rotation at the N observed and the H predicted instants, shape (B, P, N + H), complex128.
    """

    space: Tensor
    tones: Tensor
    turns: Tensor

    @classmethod
    def of(
        cls,
        paths: Paths,
        bs: Array,
        ue: Array,
        ofdm: OFDM,
        velocity: Tensor,
        times: Tensor,
        wavelength: float,
        mount: Tensor | None = None,
    ) -> Signatures:
        """Return the signatures of the paths of B links.

        Args:
            paths: Their paths.
            bs: Array of the base station.
            ue: Array of the user.
            ofdm: Subcarrier grid.
            velocity: User velocity [m/s], shape (B, 3).
            times: N + H instants [s], float64; evenly spaced for `bin_limit`.
            wavelength: Carrier wavelength [m].
            mount: As in `synthesize`.
        """
        space, tones = (
            factor.permute(1, 2, 0).to(torch.complex128) for factor in link_factors(paths, bs, ue, ofdm, mount)
        )
        arrival = unit_vector(paths.aoa.double())
        doppler = torch.einsum("upx,ux->up", arrival, velocity.double()) / wavelength
        turns = torch.exp(2j * math.pi * doppler.unsqueeze(-1) * times.to(doppler))
        return cls(rearrange(space, "b p (r t) -> b p r t", t=bs.num_elements), tones, turns)


@torch.no_grad()
def limit(past: Tensor, known: Signatures, noise: Tensor) -> Tensor:
    r"""Predict by the linear MMSE predictor of the true covariance over time, antennas and subcarriers of each link.

    The channel is a sum over paths of known signatures a_p over (N, R, T, K), of known power |gain|^2 and unknown
    phase. Its covariance is A A^H, with the gains in A, and from y = A c + noise

    .. math:: \hat c = (A^H A + \sigma^2 I)^{-1} A^H y

    which is applied to the signatures at the future instants. A^H A is the elementwise product of the Gram matrices of
    time, space and frequency, so that the covariance is never formed.

    Args:
        past: Noisy observations (B, N, R, T, K).
        known: Signatures of the same B links.
        noise: Noise power of an entry, (B,).

    Returns:
        Shape (B, H, R, T, K).
    """
    count = past.shape[1]
    space, tones = known.space.flatten(2), known.tones
    seen, unseen = known.turns[..., :count], known.turns[..., count:]
    gram = (seen.conj() @ seen.mT) * (space.conj() @ space.mT) * (tones.conj() @ tones.mT)
    flat = past.flatten(2, 3).to(torch.complex128)
    matched = torch.einsum("bnsk,bpk->bnsp", flat, tones.conj())
    matched = torch.einsum("bnsp,bps,bpn->bp", matched, space.conj(), seen.conj())
    # padding has zero gain, and without noise the system is singular
    sigma = _regularised(noise, gram.diagonal(dim1=1, dim2=2).real.amax(1))
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    amplitude = torch.linalg.solve(gram + sigma[:, None, None] * eye, matched.unsqueeze(-1)).squeeze(-1)
    future = torch.einsum("bps,bph,bp->bhsp", space, unseen, amplitude) @ tones.unsqueeze(1)
    return future.reshape(len(past), -1, *past.shape[2:]).to(past.dtype)


@torch.no_grad()
def bin_limit(past: Tensor, known: Signatures, noise: Tensor) -> Tensor:
    r"""Predict each angle-delay bin by the linear MMSE predictor of its own past and true covariance over time.

    An autoregression of each link, or of each bin as in PAD, estimates this predictor from the past that it is applied
    to; what separates it from `limit` is what the other bins tell. The power of path p in bin m is that of its gain and
    of the transforms of its signatures over both arrays and the subcarriers; with Doppler shift f_p, the covariance of
    the bin is

    .. math:: C_m(\tau) = \sum_p |g_p|^2 |a_{pm}|^2 e^{2 \pi j f_p \tau}

    Args:
        past: Noisy observations (B, N, R, T, K).
        known: Signatures of the same B links.
        noise: Noise power of an entry, (B,).

    Returns:
        Shape (B, H, R, T, K).
    """
    count = past.shape[1]
    angles = torch.fft.fftn(known.space, dim=(-2, -1), norm="ortho").flatten(2).abs().square()
    taps = torch.fft.ifft(known.tones, dim=-1, norm="ortho").abs().square()
    turns = known.turns / known.turns[..., :1]
    instants = torch.arange(turns.shape[-1], device=past.device)
    lag = instants[:count].unsqueeze(1) - instants
    bins = to_bins(past.to(turns.dtype))
    future = torch.empty(*bins.shape[:2], turns.shape[-1] - count, dtype=bins.dtype, device=bins.device)
    for link, turn in enumerate(turns):  # one by one: the covariances of all bins of many links would not fit
        weighted = angles[link].to(turn.dtype).T.unsqueeze(1) * turn.T
        lags = rearrange(weighted @ taps[link].to(turn.dtype), "s n k -> (s k) n")
        covariance = torch.where(lag < 0, lags[:, lag.abs()].conj(), lags[:, lag.abs()])
        sigma = _regularised(noise[link], lags[:, 0].real.amax())
        eye = torch.eye(count, dtype=lags.dtype, device=lags.device)
        weights = torch.linalg.solve(covariance[..., :count] + sigma * eye, covariance[..., count:])
        future[link] = torch.einsum("mnh,mn->mh", weights.conj(), bins[link])
    return to_csi(future, past).to(past.dtype)


def _regularised(noise: Tensor, level: Tensor) -> Tensor:
    """Return the noise power, or -120 dB of a level if that is more, so that a system has a solution."""
    return torch.maximum(noise.double(), 1e-12 * level).clamp_min(1e-300)
