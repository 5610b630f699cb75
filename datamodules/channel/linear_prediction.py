"""Linear prediction of a channel by autoregression in the angle-delay domain.

`M` is the number of bins of a link, its entries over antennas and delays, and `O` the order of a filter. A prediction
is the sum of weights times past snapshots, the latest first. The prediction of zeros is zero.
"""

from __future__ import annotations

import functools
import math

import torch
from einops import rearrange, reduce
from torch import Tensor

#: bins of less power than this multiple of the noise power are excluded from the autoregression of a link
WEAK = 2.0
#: ridge regularisation of the autoregression of a link and of a bin, as a multiple of the noise power
RIDGE, BIN_RIDGE = 0.1, 0.3


def angle_delay(csi: Tensor) -> Tensor:
    """Return the unitary DFT of CSI (..., R, T, K) over both arrays, and inverse DFT over subcarriers."""
    taps: Tensor = torch.fft.ifft(csi, dim=-1, norm="ortho")
    angles: Tensor = torch.fft.fftn(taps, dim=(-3, -2), norm="ortho")
    return angles


def from_angle_delay(bins: Tensor) -> Tensor:
    """Return the CSI (..., R, T, K) of its `angle_delay` transform."""
    taps: Tensor = torch.fft.ifftn(bins, dim=(-3, -2), norm="ortho")
    csi: Tensor = torch.fft.fft(taps, dim=-1, norm="ortho")
    return csi


def to_bins(past: Tensor) -> Tensor:
    """Return the time series (B, M, N) of the angle-delay bins of CSI (B, N, R, T, K)."""
    return rearrange(angle_delay(past), "b n r t k -> b (r t k) n")


def to_csi(bins: Tensor, like: Tensor) -> Tensor:
    """Return CSI (B, H, R, T, K) of predicted bins (B, M, H), with R, T and K of `like` (B, N, R, T, K)."""
    r, t, k = like.shape[-3:]
    return from_angle_delay(rearrange(bins, "b (r t k) h -> b h r t k", r=r, t=t, k=k))


def noise_power(bins: Tensor) -> Tensor:
    """Estimate the noise power of an entry, (B,), from angle-delay bins (B, M, N).

    The estimate assumes that paths occupy less than three quarters of the bins, and is too high otherwise. It divides
    the lower quartile of the bin powers by that of a mean of N exponential variables of mean 1, in the approximation of
    Wilson and Hilferty (PNAS 1931).
    """
    count = bins.shape[2]
    quartile = (1 - 1 / (9 * count) - 0.67449 / (3 * math.sqrt(count))) ** 3
    return power(bins).quantile(0.25, dim=1) / quartile


def power(bins: Tensor) -> Tensor:
    """Return the mean power over snapshots (B, M) of bins (B, M, N)."""
    return reduce(bins.abs().square(), "b m n -> b m", "mean")


def autoregression(bins: Tensor, order: int, ridge: Tensor) -> Tensor:
    """Fit one autoregression to all bins of a link by the modified covariance method.

    It minimises the sum over bins m and instants n of |x_m(n) - sum_o w_o x_m(n - 1 - o)|^2, plus the same sum for the
    time-reversed, conjugated series, which has the same covariance.

    Args:
        bins: Time series, shape (B, M, N); zero for excluded bins.
        order: Number O of taps, below N.
        ridge: Regularisation added to the power of a tap, summed over bins, for each window, shape (B,).

    Returns:
        Weights w, shape (B, O), complex.
    """
    return _solve(torch.einsum("bma,bmc->bac", bins, bins.conj()), order, ridge)


def autoregression_per_bin(bins: Tensor, order: int, ridge: Tensor) -> Tensor:
    """Fit an `autoregression` to each bin separately; weights (B, M, O), ridge (B, M)."""
    count = _windows(bins.shape[2], order)
    x = bins.unbind(-1)
    block: dict[tuple[int, int], Tensor] = {}
    for lag in range(order + 1):
        products = [x[n] * x[n + lag].conj() for n in range(len(x) - lag)]
        for i in range(order + 1 - lag):
            block[i, i + lag] = functools.reduce(torch.add, products[i : i + count])
            block[i + lag, i] = block[i, i + lag].conj()
    taps = range(order)
    past = [[block[order - 1 - b, order - 1 - a] + block[a + 1, b + 1] for b in taps] for a in taps]
    target = [block[order, order - 1 - a] + block[a + 1, 0] for a in taps]
    extra = _ridge(functools.reduce(torch.add, [past[a][a].real for a in taps]) / order, count, ridge)
    for a in taps:
        past[a][a] = past[a][a] + extra
    # so many and so small matrices take LAPACK, one by one, ten times as long as their elimination all at once
    for a in taps:
        # what is positive semidefinite and a ridge has no smaller pivot
        past[a][a] = torch.maximum(past[a][a].real, extra)
        for b in range(a + 1, order):
            factor = past[b][a] / past[a][a]
            past[b][a + 1 :] = [past[b][c] - factor * past[a][c] for c in range(a + 1, order)]
            target[b] = target[b] - factor * target[a]
    weights: list[Tensor] = []
    for a in reversed(taps):
        left = [past[a][a + 1 + n] * weight for n, weight in enumerate(weights)]
        weights.insert(0, functools.reduce(torch.sub, left, target[a]) / past[a][a])
    return torch.stack(weights, -1)


def _solve(gram: Tensor, order: int, ridge: Tensor) -> Tensor:
    """Return weights (..., O) from the products of snapshots (..., N, N), the second conjugated."""
    windows = range(_windows(gram.shape[-1], order))
    blocks = [gram[..., n : n + order + 1, n : n + order + 1] for n in windows]
    block = torch.stack(blocks).sum(0)
    past = block[..., :-1, :-1].mT.flip(-1, -2) + block[..., 1:, 1:]
    target = block[..., -1, :-1].flip(-1) + block[..., 1:, 0]
    extra = _ridge(past.diagonal(dim1=-2, dim2=-1).real.mean(-1), len(windows), ridge)
    eye = torch.eye(order, dtype=past.dtype, device=past.device)
    # not `solve`, which asks a GPU whether the matrix is singular, which the ridge prevents
    weights: Tensor = torch.linalg.solve_ex(past + extra[..., None, None] * eye, target.unsqueeze(-1)).result
    return weights.squeeze(-1)


def _windows(count: int, order: int) -> int:
    """Return how many windows of O + 1 there are among so many snapshots."""
    if not 0 < order < count:
        raise ValueError(f"an autoregression of order {order} needs more than {order} snapshots, got {count}")
    return count - order


def _ridge(level: Tensor, windows: int, ridge: Tensor) -> Tensor:
    """Return what is added to a diagonal of that mean: without power it would be singular, and rounding needs some."""
    extra = 2 * windows * ridge + torch.finfo(level.dtype).eps * level
    return torch.where(level > 0, extra, 1.0)


def ahead(weights: Tensor, horizons: int) -> Tensor:
    """Return the weights of predictions 1 to H steps ahead, (..., H, O), from those one step ahead (..., O).

    Predictions are iterated: each is used as the snapshot that it predicts.
    """
    rows = [weights]
    for _ in range(horizons - 1):
        last = rows[-1]
        # the first tap applies to a snapshot that is itself a prediction
        rows.append(last[..., :1] * weights + torch.nn.functional.pad(last[..., 1:], (0, 1)))
    return torch.stack(rows, dim=-2)


def apply(weights: Tensor, bins: Tensor) -> Tensor:
    """Return predictions (B, M, H) of bins (B, M, N) with weights (B, H, O) of links or (B, M, H, O) of bins."""
    past = bins.flip(-1)[..., : weights.shape[-1]]
    if weights.ndim == 3:
        return torch.einsum("bho,bmo->bmh", weights, past)
    return torch.einsum("bmho,bmo->bmh", weights, past)


def strong_bins(bins: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bins (B, M, N) with weak ones set to zero, and the ridge (B,) of an autoregression of the link.

    Args:
        bins: Shape (B, M, N).
        noise: Noise power of an entry, (B,).
    """
    strong = power(bins) > WEAK * noise.unsqueeze(1)
    return bins * strong.unsqueeze(-1), RIDGE * noise * strong.sum(1)


def link_order(count: int) -> int:
    """Return the default order of the autoregression of a link on N snapshots: 10, or N - 2 if less."""
    return max(1, min(10, count - 2))
