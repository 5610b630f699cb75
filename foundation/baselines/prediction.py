"""Classical predictors of the channel.

Each takes the past (B, N, R, T, K), complex: noisy observations at equal intervals, the latest snapshot last. It
returns the channel 1 to H snapshots later, (B, H, R, T, K), on the scale of the past; a link without power gives zeros.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from datamodules.channel.linear_prediction import (
    BIN_RIDGE,
    ahead,
    apply,
    autoregression,
    autoregression_per_bin,
    link_order,
    noise_power,
    strong_bins,
    to_bins,
    to_csi,
)


def hold(past: Tensor, horizons: int) -> Tensor:
    """Repeat the last snapshot."""
    return past[:, -1:].expand(-1, horizons, -1, -1, -1)


def zero(past: Tensor, horizons: int) -> Tensor:
    """Predict zeros, an NMSE of 0 dB."""
    return torch.zeros_like(past[:, :1]).expand(-1, horizons, -1, -1, -1)


def fit_ar1(past: Tensor) -> float:
    """Return the rho of ConTwin appendix D: Re(sum <h_t, h_t+1> / sum |h_t|^2) over sequences, clipped to [0, 1].

    Args:
        past: Sequences of the train side, (B, N, R, T, K). Each link is scaled to unit power first.
    """
    unit = past * _scale(past)
    before, after = unit[:, :-1], unit[:, 1:]
    rho = (before.conj() * after).real.sum() / before.abs().square().sum().clamp_min(1e-30)
    return float(rho.clamp(0, 1))


def ar1(past: Tensor, horizons: int, rho: float) -> Tensor:
    """Scale the last snapshot by rho for each step (ConTwin appendix D)."""
    scale = rho ** torch.arange(1, horizons + 1, device=past.device, dtype=past.real.dtype)
    return past[:, -1:] * rearrange(scale, "h -> 1 h 1 1 1")


def kalman(past: Tensor, horizons: int, rho: float, snr: float | Tensor) -> Tensor:
    """Filter an AR(1) state observed with noise, then extrapolate it (ConTwin appendix D).

    State x, F = rho, Q = (1 - rho^2) s, R = noise, from x = 0 of variance s. Only the ratio of s to the noise matters.

    Args:
        past: As of all predictors.
        horizons: Number H.
        rho: Coefficient of `fit_ar1`, fitted to sequences without noise.
        snr: Power of the channel over that of the noise, linear, for each link, (B,), or one for all.
    """
    noise = 1 / torch.as_tensor(snr, device=past.device, dtype=past.real.dtype).expand(len(past))
    state, variance = torch.zeros_like(past[:, 0]), torch.ones_like(noise)
    for snapshot in past.unbind(1):
        state, variance = rho * state, rho**2 * variance + 1 - rho**2
        gain = variance / (variance + noise)
        state = state + rearrange(gain, "b -> b 1 1 1") * (snapshot - state)
        variance = (1 - gain) * variance
    return ar1(state.unsqueeze(1), horizons, rho)


def fit_wiener(past: Tensor, future: Tensor, taps: int | None = None) -> Tensor:
    """Fit one linear predictor to all links of a train side by least squares (pooled Wiener-N).

    Args:
        past: Noisy observations, (B, N, R, T, K).
        future: The snapshots that follow, without noise, (B, H, R, T, K).
        taps: Number of latest snapshots that it reads; by default all N.

    Returns:
        Weights (H, taps), complex, the latest snapshot first. Each link is scaled to unit power before the fit.
    """
    scale = _scale(past)
    seen = rearrange((past * scale).flip(1)[:, :taps], "b n r t k -> n (b r t k)")
    wanted = rearrange(future * scale, "b h r t k -> h (b r t k)")
    gram = seen.conj() @ seen.T
    # the Gram matrix of a static channel without noise has rank one
    floor = 1e-6 * gram.diagonal().real.mean().clamp_min(1e-30)
    weights: Tensor = torch.linalg.solve(
        gram + floor * torch.eye(len(gram), device=gram.device), seen.conj() @ wanted.T
    )
    return weights.T


def wiener(past: Tensor, horizons: int, weights: Tensor) -> Tensor:
    """Apply the weights (H or more, taps) of `fit_wiener`."""
    return torch.einsum("hn,bnrtk->bhrtk", weights[:horizons].to(past.dtype), past.flip(1)[:, : weights.shape[1]])


def link_ar(past: Tensor, horizons: int, order: int | None = None, noise: Tensor | None = None) -> Tensor:
    """Predict by one autoregression for each link, fitted to its own past.

    It is fitted in the angle-delay domain to all strong bins together, forwards and backwards over all windows, and
    iterated over the horizons. Weak bins are excluded from the fit and predicted as zero.

    Args:
        past: As of all predictors.
        horizons: Number H.
        order: Number of taps; by default 10, or N - 2 where that is less.
        noise: Power of the noise in an entry, (B,); by default estimated from the past, see `noise_power`.
    """
    bins = to_bins(past)
    noise = noise_power(bins) if noise is None else noise
    bins, ridge = strong_bins(bins, noise)
    weights = autoregression(bins, link_order(past.shape[1]) if order is None else order, ridge)
    return to_csi(apply(ahead(weights, horizons), bins), past)


def pad(past: Tensor, horizons: int, order: int = 2, noise: Tensor | None = None) -> Tensor:
    """Predict every angle-delay bin by an autoregression of its own: Prony's method in the angle-delay domain, PAD.

    After Yin, Wang, Liu and Gesbert, "Addressing the Curse of Mobility in Massive MIMO with Prony-based Angular-Delay
    Domain Channel Predictions" (JSAC 2020), with a ridge against the noise.

    Args:
        past: As of all predictors.
        horizons: Number H.
        order: Number of taps of the autoregression, the number of paths assumed in each bin.
        noise: As of `link_ar`.
    """
    bins = to_bins(past)
    noise = noise_power(bins) if noise is None else noise
    ridge = (BIN_RIDGE * noise).unsqueeze(1).expand(bins.shape[:2])
    weights = autoregression_per_bin(bins, order, ridge)
    return to_csi(apply(ahead(weights, horizons), bins), past)


def pad_vector(past: Tensor, horizons: int, order: int = 8) -> Tensor:
    """Predict all entries by one filter, fitted to the last snapshot alone: vector Prony, PAD in CSI-4CAST's table.

    Least squares over entries e of |x_e(N) - sum_o w_o x_e(N - o)|^2, without regularisation against noise, as in the
    public code of LLM4CP, with its order of 8.

    Args:
        past: As of all predictors.
        horizons: Number H.
        order: Number of taps; N - 1 where that is less.
    """
    entries = rearrange(past, "b n r t k -> b (r t k) n")
    taps = min(order, past.shape[1] - 1)
    before, last = entries[..., -1 - taps : -1].flip(-1), entries[..., -1:]
    gram = before.mH @ before
    # the snapshots of a static user without noise are equal, and the system is singular
    floor = torch.finfo(past.real.dtype).eps * gram.diagonal(dim1=1, dim2=2).real.mean(1)
    floor = torch.where(floor > 0, floor, 1.0).reshape(-1, 1, 1)
    eye = torch.eye(taps, dtype=past.dtype, device=past.device)
    weights = torch.linalg.solve(gram + floor * eye, before.mH @ last).squeeze(-1)
    return rearrange(apply(ahead(weights, horizons), entries), "b m h -> b h m").reshape(
        len(past), horizons, *past.shape[2:]
    )


def _scale(past: Tensor) -> Tensor:
    """Return the factor that scales each link (B, N, R, T, K) to unit power, (B, 1, 1, 1, 1); 1 without power."""
    level = past.abs().square().mean((1, 2, 3, 4), keepdim=True)
    return torch.where(level > 0, level, torch.ones_like(level)).rsqrt()
