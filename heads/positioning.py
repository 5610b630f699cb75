"""Positioning: where is the user, seen from the base station?"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

from heads.base import Head, keep_labelled, mlp, statistic
from heads.figures import cdf_figure, new_figure
from heads.metrics import RatioOfSums

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Positioning(Head):
    """Finds the user position relative to its base station (CSI-CLIP eq 4, environment-channel eq 14).

    The network works on coordinates standardised over the train split, and so does the loss; `forward` returns metres.
    Relative, because that is what a channel can tell: it says nothing of where on the map its base station stands.

    Args:
        in_features: Number D of features of a sample.
        hidden: Width between the two fully connected layers.
        dims: Number of coordinates to find: 2 for (x, y), 3 for (x, y, z).
        dropout: Probability with which a hidden unit is dropped in training.

    Raises:
        ValueError: If `dims` is neither 2 nor 3, a width is below 1 or `dropout` outside [0, 1).
    """

    target_key: ClassVar[str] = "position"
    requires: ClassVar[tuple[str, ...]] = ("position", "bs_position")
    monitor: ClassVar[str] = "mean_m"
    monitor_mode: ClassVar[Literal["min", "max"]] = "min"

    mean: Tensor
    std: Tensor

    def __init__(self, in_features: int, hidden: int = 256, dims: int = 2, dropout: float = 0.0) -> None:
        super().__init__(in_features)
        if dims not in (2, 3):
            raise ValueError(f"dims must be 2 or 3, got {dims}")
        self.dims = dims
        self.layers = mlp(in_features, hidden, dims, dropout)
        self.register_buffer("mean", torch.zeros(dims))
        self.register_buffer("std", torch.ones(dims))

    def prepare(self, statistics: dict[str, Tensor]) -> None:
        """Keep `position_mean` and `position_std` of the train split [m]."""
        std = statistic(statistics, "position_std", 3)[: self.dims]
        self.mean.copy_(statistic(statistics, "position_mean", 3)[: self.dims])
        # a coordinate without spread (all users at one height) is learned in metres, not divided by zero
        self.std.copy_(torch.where(std > 0, std, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D) to positions (B, dims) relative to the base station [m]."""
        # no autocast: bfloat16 would round a position to 1/256 of its distance from the mean
        with torch.autocast(features.device.type, enabled=False):
            standardised: Tensor = self.layers(features.to(self.mean.dtype))
            return standardised * self.std + self.mean

    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean squared error of the standardised coordinates, over samples and coordinates."""
        target, position = keep_labelled(relative_position(batch, self.dims), prediction)
        total = F.mse_loss((position - self.mean) / self.std, (target - self.mean) / self.std, reduction="sum")
        return total / max(target.numel(), 1)

    def metrics(self) -> MetricCollection:
        """Return `mean_m`, `median_m` and `cdf90_m`, the 90th percentile, of the Euclidean error [m]."""
        return MetricCollection(
            {"mean_m": MeanError(), "median_m": ErrorQuantile(0.5), "cdf90_m": ErrorQuantile(0.9)}, compute_groups=False
        )

    def figures(self, prediction: Tensor, batch: dict[str, Tensor]) -> dict[str, Figure]:
        """Draw the distribution of the error of positions (B, dims) [m] and where on the map it arises."""
        target = relative_position(batch, self.dims)
        target, estimate, station = keep_labelled(target, prediction.float(), batch["bs_position"])
        if len(target) == 0:
            return {}
        error = torch.linalg.vector_norm(estimate - target, dim=-1)
        figure, axes = new_figure("Where the error arises")
        user = target[:, :2] + station[:, :2]
        # full colour at the 95th percentile, or one lost user would wash out all others
        limit = float(error.quantile(0.95))
        points = axes.scatter(*user.T.numpy(), c=error.numpy(), s=4, vmin=0, vmax=limit, rasterized=True)
        figure.colorbar(points, label="error [m]", extend="max")
        axes.plot(*np.unique(station[:, :2].numpy(), axis=0).T, "r^", markersize=8, label="base station")
        axes.legend(loc="upper right")
        axes.set(xlabel="x [m]", ylabel="y [m]")
        axes.set_aspect("equal", "datalim")
        return {"error_cdf": cdf_figure(error, "Positioning error", "error", "m"), "error_map": figure}


def relative_position(batch: dict[str, Tensor], dims: int) -> Tensor:
    """Return the first `dims` coordinates of the users as seen from their base station [m], (B, dims)."""
    return (batch["position"] - batch["bs_position"])[:, :dims]


def euclidean_error(prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return the distance [m] from prediction (B, dims) to truth, for the n labelled samples alone, (n,)."""
    target, position = keep_labelled(relative_position(batch, prediction.shape[-1]), prediction)
    error: Tensor = torch.linalg.vector_norm(position - target, dim=-1)
    return error


class MeanError(RatioOfSums):
    """Mean Euclidean error [m]."""

    higher_is_better = False

    def update(self, prediction: Tensor, batch: dict[str, Tensor]) -> None:
        """Add positions (B, dims) relative to the base station [m] and their batch."""
        self.add(euclidean_error(prediction, batch))


class ErrorQuantile(Metric):
    """A quantile of the Euclidean error [m], interpolated linearly as NumPy's. Keeps one number a sample.

    Args:
        probability: 0.5 for the median, 0.9 for the CDF90 of environment-channel IV-D.

    Raises:
        ValueError: If `probability` is outside [0, 1].
    """

    full_state_update = False
    higher_is_better = False
    errors: list[Tensor]

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {probability}")
        self.probability = probability
        self.add_state("errors", [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, batch: dict[str, Tensor]) -> None:
        """Add positions (B, dims) relative to the base station [m] and their batch."""
        self.errors.append(euclidean_error(prediction, batch))

    def compute(self) -> Tensor:
        """Return the quantile [m], a scalar; NaN when no sample had a label."""
        errors = dim_zero_cat(self.errors) if len(self.errors) else torch.empty(0, device=self.device)
        if errors.numel() == 0:
            return torch.full((), torch.nan, device=self.device)
        return errors.float().quantile(self.probability)
