"""CSI feedback: reconstruction of the channel from a short code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torchmetrics import MetricCollection

from datamodules.channel.transforms import aligned, received, to_angle, to_delay, unit_power
from heads.base import Head, check_at_least, statistic
from heads.figures import cdf_figure, channel_figure
from heads.layers import attention_blocks
from heads.metrics import MeanDb, RatioOfSums, decibels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Feedback(Head):
    """Reconstructs the CSI from features: the CRNN of environment-channel section III-A2, for any encoder.

    The features are the code fed back by the user. A linear layer maps them to tokens, residual attention blocks
    process the tokens, and a linear layer maps each token to a patch of the channel in the angle-delay domain, where
    the channel is sparse. Targets are normalised to unit power, so that all links have equal weight, and to a common
    phase that makes the strongest entry real, because a precoder does not depend on it. With noisy observations the
    target is the noise-free channel, and of a sequence its last snapshot.

    Args:
        in_features: Number D of features of a sample, the length of the code without `code_size`.
        num_antennas: Antenna pairs R*T; by default those of the data, see `configure`.
        num_subcarriers: Subcarriers K, likewise.
        patch: Antennas and delay taps of a patch, divisors of the size of the channel. Not used when `rank` is
            positive.
        rank: With 0 every token becomes a patch, as in the paper. Otherwise the channel is a sum of `rank` outer
            products of an angle profile and a delay profile, one for each token, which is the form of a sum of paths
            and converges in fewer steps.
        width: Width of the tokens.
        layers: Attention blocks.
        heads: Attention heads of a block.
        code_size: Real numbers M of the code, to which a linear layer maps the features; by default the features are
            the code.

    Raises:
        ValueError: An argument is out of range, or the patch does not divide the channel.
    """

    target_key: ClassVar[str] = "csi"
    requires: ClassVar[tuple[str, ...]] = ("csi",)
    monitor: ClassVar[str] = "nmse_db"
    monitor_mode: ClassVar[Literal["min", "max"]] = "min"

    def __init__(
        self,
        in_features: int,
        num_antennas: int | None = None,
        num_subcarriers: int | None = None,
        patch: tuple[int, int] = (8, 4),
        rank: int = 0,
        width: int = 256,
        layers: int = 6,
        heads: int = 8,
        code_size: int | None = None,
    ) -> None:
        super().__init__(in_features)
        self.code_size = in_features if code_size is None else code_size
        check_at_least("code_size", self.code_size, 1)
        self.compress = nn.Identity() if code_size is None else nn.Linear(in_features, code_size)
        for name, value in {"patch": min(patch), "width": width, "heads": heads}.items():
            check_at_least(name, value, 1)
        check_at_least("layers", layers, 0)
        check_at_least("rank", rank, 0)
        self.expand: nn.Linear | None = None
        self.rank, self.width, self.depth, self.heads = rank, width, layers, heads
        self.patch = (int(patch[0]), int(patch[1]))
        self.num_antennas, self.num_subcarriers = num_antennas, num_subcarriers
        if num_antennas is not None and num_subcarriers is not None:
            self.configure(num_antennas, num_subcarriers)

    def configure(self, num_antennas: int, num_subcarriers: int) -> None:
        """Build the layers, for the given size of the channel unless the arguments gave another.

        Raises:
            ValueError: The patch does not divide the channel, or a size is below 1.
        """
        if self.expand is not None:
            return
        num_antennas, num_subcarriers = self.num_antennas or num_antennas, self.num_subcarriers or num_subcarriers
        check_at_least("num_antennas", num_antennas, 1)
        check_at_least("num_subcarriers", num_subcarriers, 1)
        rank, width, patch = self.rank, self.width, self.patch
        if not rank and (num_antennas % patch[0] or num_subcarriers % patch[1]):
            raise ValueError(f"a patch of {tuple(patch)} does not divide a channel of {num_antennas, num_subcarriers}")
        self.num_antennas, self.num_subcarriers = num_antennas, num_subcarriers
        self.settings |= {"num_antennas": num_antennas, "num_subcarriers": num_subcarriers}
        self.grid = (num_antennas // patch[0], num_subcarriers // patch[1])
        tokens = rank or self.grid[0] * self.grid[1]
        values = num_antennas + num_subcarriers if rank else patch[0] * patch[1]
        self.expand = nn.Linear(self.code_size, tokens * width)
        self.position = nn.Parameter(torch.randn(tokens, width) * width**-0.5)
        self.blocks = attention_blocks(self.depth, width, self.heads)
        self.norm = nn.LayerNorm(width)
        self.unpatch = nn.Linear(width, 2 * values)
        # zero is the best constant prediction; larger initial weights are first shrunk, and gradients with them. With a
        # rank the output is a product of two of these outputs, whose gradient at zero is zero: start near it
        nn.init.normal_(self.unpatch.weight, std=0.02 if rank else 0.0)
        nn.init.zeros_(self.unpatch.bias)

    def check(self, statistics: dict[str, Tensor]) -> None:
        """Check that the data have as many antenna pairs and subcarriers as the head."""
        super().check(statistics)
        if "csi_shape" in statistics:
            receive, transmit, subcarriers = statistic(statistics, "csi_shape", 3).tolist()
            made = (self.num_antennas or receive * transmit, self.num_subcarriers or subcarriers)
            _check_size(made, (receive * transmit, subcarriers))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D) to normalised channels in the angle-delay domain, (B, R*T, K) complex64."""
        if self.expand is None:
            raise ValueError("the size of the channel is not set: give the head num_antennas and num_subcarriers")
        tokens = (
            rearrange(self.expand(self.compress(features)), "b (n d) -> b n d", n=len(self.position)) + self.position
        )
        patches = self.unpatch(self.norm(self.blocks(tokens)))
        if self.rank:
            profiles = torch.view_as_complex(rearrange(patches.float(), "b n (v c) -> b n v c", c=2).contiguous())
            return profiles[..., : self.num_antennas].mT @ profiles[..., self.num_antennas :]
        pairs = rearrange(
            patches, "b (h w) (p q c) -> b (h p) (w q) c", h=self.grid[0], p=self.patch[0], q=self.patch[1], c=2
        )
        return torch.view_as_complex(pairs.float().contiguous())

    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean squared error of unit-power channels (environment-channel eq 11): the linear NMSE."""
        return mean_of_counted(error_terms(prediction, batch)).squeeze(0)

    def labelled(self, batch: dict[str, Tensor]) -> int:
        """Return the number of links with nonzero power."""
        return int(_nonzero_power(batch).sum())

    def metrics(self) -> MetricCollection:
        """Return `nmse_db` [dB] and `cosine`, the mean cosine similarity in [0, 1]."""
        return MetricCollection({"nmse_db": NMSE(), "cosine": CosineSimilarity()}, compute_groups=False)

    def figures(self, prediction: Tensor, batch: dict[str, Tensor]) -> dict[str, Figure]:
        """Draw the distribution of the NMSE over links, and the reconstruction of the link of median error."""
        nonzero = _nonzero_power(batch)
        error = relative_error(prediction, batch)[nonzero]
        if not len(error):
            return {}
        middle = int(error.argsort()[len(error) // 2])
        target, guess = target_channel(batch)[nonzero][middle], prediction[nonzero][middle]
        title = f"Median link: NMSE {float(decibels(error[middle])):.1f} dB"
        return {
            "nmse_cdf": cdf_figure(decibels(error), "CSI feedback", "NMSE of a link", "dB"),
            "reconstruction": channel_figure(target, guess, title),
        }


def target_channel(batch: dict[str, Tensor]) -> Tensor:
    """Return the noise-free channels in the angle-delay domain, normalised in power and phase, (B, R*T, K)."""
    return aligned(unit_power(to_angle(to_delay(_clean_csi(batch))).flatten(1, 2)))


def _clean_csi(batch: dict[str, Tensor]) -> Tensor:
    """Return the noise-free CSI to reconstruct, (B, R, T, K); of a sequence (B, N, R, T, K) the last snapshot."""
    csi = batch.get("clean_csi", batch["csi"])
    return csi[:, -1] if csi.ndim == 5 else csi


def _nonzero_power(batch: dict[str, Tensor]) -> Tensor:
    """Return a mask of the links with nonzero power, (B,); the others count in no loss or metric."""
    return received(_clean_csi(batch))


def relative_error(prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return the NMSE of each link, linear, (B,); of a link without power the power of the prediction."""
    target = target_channel(batch)
    _check_size(prediction.shape[1:], target.shape[1:])
    return torch.view_as_real(prediction - target).square().sum(-1).mean((1, 2))


def error_terms(prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return terms (B, 2) for `mean_of_counted`: the NMSE of each link, linear, and 1; zeros for one without power."""
    counted = _nonzero_power(batch)
    return torch.stack([torch.where(counted, relative_error(prediction, batch), 0.0), counted.float()], dim=1)


def mean_of_counted(terms: Tensor) -> Tensor:
    """Return means over the links that count, (n,).

    Args:
        terms: Values of each link and, in the last column, 1, shape (B, n + 1); all are zero for a link that does not
            count. Where none counts the means are zero.
    """
    *sums, counted = terms.sum(0).unbind()
    return torch.stack(sums) / counted.clamp_min(1)


def _check_size(made: Sequence[int], held: Sequence[int]) -> None:
    """Raise a ValueError when the channels (R*T, K) of head and data differ in size."""
    if tuple(made) != tuple(held):
        raise ValueError(
            f"the feedback head is for channels of (R*T, K) = {tuple(made)}, but the data hold {tuple(held)}: set its "
            "num_antennas and num_subcarriers, or data.bs, data.ue and data.ofdm"
        )


class NMSE(MeanDb):
    """Normalised mean squared error [dB]: mean over links of error power over channel power, then converted to dB."""

    def update(self, prediction: Tensor, batch: dict[str, Tensor]) -> None:
        """Add channels (B, R*T, K) and their batch."""
        self.add(relative_error(prediction, batch)[_nonzero_power(batch)])


class CosineSimilarity(RatioOfSums):
    """Mean over links of |<x, y>| / (|x| |y|) of reconstructed and true channel (R*T, K); 1 is optimal."""

    higher_is_better = True

    def update(self, prediction: Tensor, batch: dict[str, Tensor]) -> None:
        """Add channels (B, R*T, K) and their batch."""
        target = target_channel(batch)
        inner = (prediction.conj() * target).sum((1, 2)).abs()
        norms = torch.linalg.vector_norm(prediction, dim=(1, 2)) * torch.linalg.vector_norm(target, dim=(1, 2))
        self.add((inner / norms.clamp_min(torch.finfo(norms.dtype).tiny))[_nonzero_power(batch)])
