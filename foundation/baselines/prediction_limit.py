"""The limit of linear channel prediction: the linear MMSE predictor of known paths."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datamodules.channel.arrays import Array, unit_vector
from datamodules.channel.ofdm import OFDM
from datamodules.channel.response import link_factors
from datamodules.sites.paths import Paths


def limit(
    past: Tensor,
    paths: Paths,
    bs: Array,
    ue: Array,
    ofdm: OFDM,
    velocity: Tensor,
    times: Tensor,
    wavelength: float,
    noise: Tensor,
    mount: Tensor | None = None,
) -> Tensor:
    r"""Predict by the linear MMSE predictor of the true covariance over time, antennas and subcarriers of each link.

    The channel is a sum over paths of known signatures a_p over (N, R, T, K), of known power |gain|^2 and unknown
    phase. Its covariance is A A^H, with the gains in A, and from y = A c + noise

    .. math:: \hat c = (A^H A + \sigma^2 I)^{-1} A^H y

    which is applied to the signatures at the future instants. A^H A is the elementwise product of the Gram matrices of
    time, space and frequency, so that the covariance is never formed.

    Args:
        past: Noisy observations (B, N, R, T, K).
        paths: Paths of the same B links.
        bs: Array of the base station.
        ue: Array of the user.
        ofdm: Subcarrier grid.
        velocity: User velocity [m/s], shape (B, 3).
        times: Instants of the N observed and the H predicted snapshots [s], shape (N + H,), float64.
        wavelength: Carrier wavelength [m].
        noise: Noise power of an entry, (B,).
        mount: As in `synthesize`.

    Returns:
        Shape (B, H, R, T, K).
    """
    count = past.shape[1]
    with torch.no_grad():
        space, tones = (
            factor.permute(1, 2, 0).to(torch.complex128) for factor in link_factors(paths, bs, ue, ofdm, mount)
        )
        arrival = unit_vector(paths.aoa.double())
        doppler = torch.einsum("upx,ux->up", arrival, velocity.double()) / wavelength
        # space and tones are (B, P, R*T) and (B, P, K)
        turns = torch.exp(2j * math.pi * doppler.unsqueeze(-1) * times.to(doppler))
        seen, unseen = turns[..., :count], turns[..., count:]
        gram = (seen.conj() @ seen.mT) * (space.conj() @ space.mT) * (tones.conj() @ tones.mT)
        flat = past.flatten(2, 3).to(torch.complex128)
        matched = torch.einsum("bnsk,bpk->bnsp", flat, tones.conj())
        matched = torch.einsum("bnsp,bps,bpn->bp", matched, space.conj(), seen.conj())
        # regularised: padding has zero gain, and without noise the system is singular
        level = gram.diagonal(dim1=1, dim2=2).real.amax(1)
        sigma = torch.maximum(noise.double(), 1e-12 * level).clamp_min(1e-300)
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        amplitude = torch.linalg.solve(gram + sigma[:, None, None] * eye, matched.unsqueeze(-1)).squeeze(-1)
        future = torch.einsum("bps,bph,bp->bhsp", space, unseen, amplitude) @ tones.unsqueeze(1)
    return future.reshape(len(past), -1, *past.shape[2:]).to(past.dtype)
