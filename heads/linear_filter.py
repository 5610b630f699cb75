"""Channel prediction by a learned linear combination of the past of each angle-delay bin."""

from __future__ import annotations

import itertools

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.channel.linear_prediction import (
    BIN_RIDGE,
    ahead,
    apply,
    autoregression,
    autoregression_per_bin,
    link_order,
    noise_power,
    power,
    strong_bins,
    to_bins,
    to_csi,
)

#: lags of the autocorrelation of a link that are inputs of the network
_LAGS = 8


class LinearFilter(nn.Module):
    """Combines two autoregressive predictors and a network that corrects them.

    The first predictor is one autoregression for all bins of a link, the second one for each bin. The inputs of the
    network, for each bin, are its past, normalised to unit power and to a real last sample; its power over the noise
    power; both predictions; the autocorrelation of the link; and the features of the encoder. Its outputs are a convex
    combination of both predictions and weights of a linear combination of the past, which is added. For given features
    the prediction is equivariant to a common scale, a common phase and a common delay of whole taps of the channel, so
    that path loss or downtilt cause no distribution shift.

    In evaluation, the last H snapshots are first predicted from those before them and the features. The three
    predictors are then weighted by least squares against these known snapshots, with weights of at least zero and of a
    sum of at most one: on links where the network generalises badly, such as at speeds outside the training range, its
    weight becomes zero, and where no predictor has skill the prediction is zero.

    Args:
        in_features: Number D of features of a sample.
        horizons: Steps H to predict.
        taps: Length of the linear filter in snapshots.
        hidden: Width of the network.
    """

    def __init__(self, in_features: int, horizons: int, taps: int, hidden: int) -> None:
        super().__init__()
        self.horizons, self.taps = horizons, taps
        inputs = 2 * taps + 4 * horizons + 2 * _LAGS + 1
        self.entry = nn.Linear(inputs, hidden)
        self.link = nn.Linear(in_features, hidden, bias=False)
        # convolution over angle and delay, both circular
        self.mixing = nn.Conv2d(hidden, hidden, 3, groups=hidden)
        self.inner = nn.Linear(hidden, hidden)
        self.exit = nn.Linear(hidden, horizons * (2 * taps + 1))
        # zero: the initial prediction is the mean of both autoregressions
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def forward(self, features: Tensor, csi: Tensor) -> Tensor:
        """Return the channel 1 to H steps ahead, (B, H, R, T, K), from features (B, D) and the past (B, N, R, T, K)."""
        bins = to_bins(csi)
        noise = noise_power(bins)
        grid = (csi.shape[2], csi.shape[3])
        predictions = self.predictions(features, bins, noise, grid)
        if self.training:
            return to_csi(predictions[-1], csi)
        before, after = bins[..., : -self.horizons], bins[..., -self.horizons :]
        trust = combination_weights(torch.stack(self.predictions(features, before, noise, grid)), after)
        return to_csi(torch.einsum("ebh,ebmh->bmh", trust.to(bins.dtype), torch.stack(predictions)), csi)

    def predictions(self, features: Tensor, bins: Tensor, noise: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """Return the predictions (B, M, H) of the autoregression of the link, that of each bin, and the network.

        Args:
            features: Shape (B, D).
            bins: Shape (B, M, N).
            noise: Noise power of an entry, (B,).
            grid: R and T.
        """
        count, level = bins.shape[2], power(bins)
        heard, ridge = strong_bins(bins, noise)
        shared = autoregression(heard, link_order(count), ridge)
        alone = autoregression_per_bin(bins, min(3, count - 1), (BIN_RIDGE * noise).unsqueeze(1).expand_as(level))
        first, second = (apply(ahead(w, self.horizons), b) for w, b in ((shared, heard), (alone, bins)))
        recent = F.pad(bins, (max(0, self.taps - count), 0))[..., -self.taps :]
        size = recent.abs().square().mean(-1, keepdim=True).sqrt()
        floor = torch.finfo(size.dtype).tiny
        last = recent[..., -1:]
        turn = last.conj() / (last.abs() * size).clamp_min(floor)
        correlation = torch.stack(
            [(heard[..., n:] * heard[..., : count - n].conj()).sum((1, 2)) for n in range(count)], 1
        )
        correlation = F.pad(correlation / correlation[:, :1].abs().clamp_min(floor), (0, _LAGS))[:, 1 : _LAGS + 1]
        seen = torch.cat([recent * turn, _bounded(first * turn), _bounded(second * turn)], -1)
        ratio = (level / noise.unsqueeze(1).clamp_min(floor)).clamp(1e-2, 1e6).log() / 4
        whole = torch.view_as_real(correlation).flatten(1).unsqueeze(1).expand(-1, bins.shape[1], -1)
        values = torch.cat([torch.view_as_real(seen).flatten(2), ratio.unsqueeze(-1), whole], -1)
        share, weights = self._network(features, values, grid)
        correction = torch.einsum("bmho,bmo->bmh", weights, recent)
        return [first, second, first + share * (second - first) + correction]

    def _network(self, features: Tensor, values: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the weight of the second prediction (B, M, H), in (0, 1), and the filter (B, M, H, taps)."""
        state = F.gelu(self.entry(values) + self.link(features).unsqueeze(1))
        plane = rearrange(state, "b (r t k) d -> (b r) d t k", r=grid[0], t=grid[1])
        mixed = self.mixing(F.pad(plane, (1, 1, 1, 1), mode="circular"))
        state = state + rearrange(mixed, "(b r) d t k -> b (r t k) d", r=grid[0])
        # complex numbers have no half precision
        out = self.exit(F.gelu(self.inner(F.gelu(state)))).float().unflatten(-1, (self.horizons, -1))
        weights = torch.view_as_complex(out[..., 1:].unflatten(-1, (self.taps, 2)).contiguous())
        return out[..., 0].sigmoid(), weights


def combination_weights(predictions: Tensor, truth: Tensor) -> Tensor:
    """Return the least-squares weights of several predictions, nonnegative and of a sum of at most one.

    A sum above one fits a rise of the channel between the fit and what is predicted, and errs most at the next fade.

    Args:
        predictions: Predictions (E, B, M, H), complex.
        truth: True values (B, M, H), complex.

    Returns:
        Weights (E, B, H), real. Every subset of the predictions is solved, with a sum of exactly one where it would
        exceed one, and the subset of least error with nonnegative weights is taken. The weights are then shrunk by the
        share of the explained energy that as many weights explain by chance.
    """
    count = len(predictions)
    gram = torch.einsum("ebmh,fbmh->bhef", predictions.conj(), predictions).real
    match = torch.einsum("ebmh,bmh->bhe", predictions.conj(), truth).real
    level = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    floor = torch.where(level > 0, 1e-4 * level, 1.0)
    best = torch.zeros_like(match)
    gain = torch.zeros_like(level)
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(count), size):
            part = torch.tensor(chosen, device=gram.device)
            own = gram[..., part[:, None], part] + floor[..., None, None] * torch.eye(size, device=gram.device)
            wanted = match[..., part]
            weights, equal = torch.linalg.solve(own, torch.stack([wanted, torch.ones_like(wanted)], -1)).unbind(-1)
            # the multiplier of the constraint on the sum
            excess = (weights.sum(-1) - 1).clamp_min(0) / equal.sum(-1)
            weights = weights - excess.unsqueeze(-1) * equal
            saved = (weights * (wanted + excess.unsqueeze(-1))).sum(-1)
            better = (weights >= 0).all(-1) & (saved > gain)
            spread = torch.zeros_like(match).index_copy(-1, part, weights)
            best = torch.where(better.unsqueeze(-1), spread, best)
            gain = torch.where(better, saved, gain)
    # energy explained by chance: the residual, weighted by the strength of the prediction
    mixed = torch.einsum("bhe,ebmh->bmh", best.to(truth.dtype), predictions)
    tiny = torch.finfo(level.dtype).tiny
    strength = mixed.abs().square() / mixed.abs().square().sum(1, keepdim=True).clamp_min(tiny)
    chance = (best > 0).sum(-1) * (strength * (truth - mixed).abs().square()).sum(1)
    left = 1 - chance / gain.clamp_min(tiny)
    return rearrange(best * left.clamp_min(0).unsqueeze(-1), "b h e -> e b h")


def _bounded(value: Tensor) -> Tensor:
    """Map complex values smoothly into the disc of radius 4."""
    return value / (1 + value.abs() / 4)
