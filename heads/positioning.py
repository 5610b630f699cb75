"""Positioning: the position of the user relative to the base station."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection

from heads.base import Head, check_at_least, keep_labelled, statistic
from heads.figures import cdf_figure, keep_data, new_figure
from heads.layers import mlp
from heads.metrics import Quantile, RatioOfSums

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: width w of the target distribution over the anchors, in standard deviations of the users' coordinates
_NEAR = 0.25


class Positioning(Head):
    """Estimates the user position relative to its base station (CSI-CLIP eq 4, environment-channel eq 14).

    Output and loss of the network are in coordinates standardised over the train split; `forward` returns metres. The
    position is relative because the channel does not depend on the absolute position of the base station.

    With `anchors` the network gives a probability for each of K learned positions, the anchors, and the estimate is
    their mean weighted by these probabilities. A cross-entropy with targets at the anchors near the user is added to
    the loss, see `loss`. This is in neither paper.

    Args:
        in_features: Number D of features of a sample.
        hidden: Width between the two fully connected layers; None makes it one linear layer.
        dims: Number of coordinates: 2 for (x, y), 3 for (x, y, z).
        dropout: Probability with which a hidden unit is dropped in training.
        anchors: Number K of learned positions; 0 for direct regression of coordinates, as in the papers. Anchors need
            some hundreds of labels and a large learning rate; with 100 labels direct regression has the smaller error.
        places: Old name of `anchors`, read with a warning.

    Raises:
        ValueError: If `dims` is neither 2 nor 3, a width is below 1, `dropout` outside [0, 1) or `anchors` below 0.
    """

    target_key: ClassVar[str] = "position"
    requires: ClassVar[tuple[str, ...]] = ("position", "bs_position")
    monitor: ClassVar[str] = "mean_m"
    monitor_mode: ClassVar[Literal["min", "max"]] = "min"

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        in_features: int,
        hidden: int | None = 256,
        dims: int = 2,
        dropout: float = 0.0,
        anchors: int = 0,
        places: int | None = None,
    ) -> None:
        super().__init__(in_features)
        if dims not in (2, 3):
            raise ValueError(f"dims must be 2 or 3, got {dims}")
        if places is not None:
            warnings.warn("`places` of Positioning is now called `anchors`: write anchors", FutureWarning, stacklevel=2)
            anchors = anchors or places
        check_at_least("anchors", anchors, 0)
        self.dims = dims
        self.layers = mlp(in_features, hidden, anchors or dims, dropout)
        self.anchors = nn.Parameter(torch.randn(anchors, dims)) if anchors else None
        self.register_buffer("mean", torch.zeros(dims))
        self.register_buffer("std", torch.ones(dims))

    def prepare(self, statistics: dict[str, Tensor]) -> None:
        """Set mean and standard deviation from `position_mean` and `position_std` of the train split [m]."""
        std = statistic(statistics, "position_std", 3)[: self.dims]
        self.mean.copy_(statistic(statistics, "position_mean", 3)[: self.dims])
        # a constant coordinate (all users at one height) is learned in metres, not divided by zero
        self.std.copy_(torch.where(std > 0, std, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D) to positions (B, dims) relative to the base station [m].

        With anchors, their logits are appended: (B, dims + K).
        """
        # no autocast: bfloat16 would round a position to 1/256 of its distance from the mean
        with torch.autocast(features.device.type, enabled=False):
            answer: Tensor = self.layers(features.to(self.mean.dtype))
            if self.anchors is None:
                return answer * self.std + self.mean
            return torch.cat([answer.softmax(dim=1) @ self.anchors * self.std + self.mean, answer], dim=1)

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the positions (B, dims) relative to the base station [m]."""
        return prediction[:, : self.dims]

    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean squared error of the standardised coordinates, over samples and coordinates.

        With anchors, plus the mean cross-entropy of their logits towards exp(-d^2 / 2 w^2), normalised to sum 1, where
        d is the standardised distance from each anchor to the user and w = 1/4.
        """
        position, target = (
            self._standardised(value) for value in (self.predict(prediction), relative_position(batch, self.dims))
        )
        # the error of an unknown position is zero: a choice of rows would wait for a GPU
        known = target.isfinite().all(1, keepdim=True)
        position, target = (torch.where(known, value, 0.0) for value in (position, target))
        count = known.sum().clamp_min(1)
        total = F.mse_loss(position, target, reduction="sum") / (count * self.dims)
        if self.anchors is not None:
            near = torch.cdist(target, self.anchors.detach()).square().div(-2 * _NEAR**2).softmax(dim=1)
            total = total + F.cross_entropy(prediction[:, self.dims :], near * known, reduction="sum") / count
        return total

    def labelled(self, batch: dict[str, Tensor]) -> int:
        """Return the number of users whose position is known."""
        return len(keep_labelled(relative_position(batch, self.dims))[0])

    def _standardised(self, position: Tensor) -> Tensor:
        return (position - self.mean) / self.std

    def metrics(self) -> MetricCollection:
        """Return `mean_m`, `median_m` and `cdf90_m`, the 90th percentile, of the Euclidean error [m]."""
        return MetricCollection(
            {
                "mean_m": MeanError(self.dims),
                "median_m": ErrorQuantile(0.5, self.dims),
                "cdf90_m": ErrorQuantile(0.9, self.dims),
            },
            compute_groups=False,
        )

    def figures(self, prediction: Tensor, batch: dict[str, Tensor]) -> dict[str, Figure]:
        """Draw the distribution of the position error [m], and the error on the map."""
        target = relative_position(batch, self.dims)
        target, estimate, station = keep_labelled(target, self.predict(prediction).float(), batch["bs_position"])
        if len(target) == 0:
            return {}
        error = torch.linalg.vector_norm(estimate - target, dim=-1)
        figure, axes = new_figure("Position error on the map")
        if "walls" in batch:
            from matplotlib.collections import LineCollection

            walls = LineCollection(list(batch["walls"][..., :2].numpy()), colors="0.6", linewidths=0.6, zorder=0)
            axes.add_collection(walls, autolim=False)
        if "train_position" in batch:
            trained = batch["train_position"][:, :2].T.numpy()
            axes.plot(*trained, "x", color="0.75", markersize=2, label="training users", zorder=1)
        user = target[:, :2] + station[:, :2]
        # the colour scale ends at the 95th percentile, so that outliers do not compress it
        limit = float(error.quantile(0.95))
        points = axes.scatter(*user.T.numpy(), c=error.numpy(), s=6, vmin=0, vmax=limit, rasterized=True)
        figure.colorbar(points, label="error [m]", extend="max")
        stations = np.unique(station[:, :2].numpy(), axis=0)
        axes.plot(*stations.T, "r^", markersize=8, label="base station")
        axes.legend(loc="upper right")
        axes.set(xlabel="x [m]", ylabel="y [m]")
        axes.set_aspect("equal", "datalim")
        places = {"position": user, "value": error, "stations": stations}
        places |= {key: batch[key][..., :2] for key in ("walls", "train_position") if key in batch}
        shown = {key: np.asarray(value, dtype=float).round(1) for key, value in places.items()}
        keep_data(figure, "map", title="Where the error arises", label="error", unit="m", **shown)
        return {"error_cdf": cdf_figure(error, "Positioning error", "error", "m"), "error_map": figure}


def relative_position(batch: dict[str, Tensor], dims: int) -> Tensor:
    """Return the first `dims` coordinates of the users relative to their base station [m], (B, dims)."""
    return (batch["position"] - batch["bs_position"])[:, :dims]


def euclidean_error(prediction: Tensor, batch: dict[str, Tensor], dims: int) -> Tensor:
    """Return the Euclidean error [m] of predictions (B, dims or more), for the n labelled samples, (n,)."""
    target, position = keep_labelled(relative_position(batch, dims), prediction[:, :dims])
    error: Tensor = torch.linalg.vector_norm(position - target, dim=-1)
    return error


class MeanError(RatioOfSums):
    """Mean Euclidean error [m].

    Args:
        dims: Number of coordinates.
    """

    higher_is_better = False

    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        self.dims = dims

    def update(self, prediction: Tensor, batch: dict[str, Tensor]) -> None:
        """Add positions (B, dims or more) relative to the base station [m] and their batch."""
        self.add(euclidean_error(prediction, batch, self.dims))


class ErrorQuantile(Quantile):
    """Quantile of the Euclidean error [m].

    Args:
        probability: 0.5 for the median, 0.9 for the CDF90 of environment-channel IV-D.
        dims: Number of coordinates.
    """

    higher_is_better = False

    def __init__(self, probability: float, dims: int = 2) -> None:
        super().__init__(probability)
        self.dims = dims

    def update(self, prediction: Tensor, batch: dict[str, Tensor]) -> None:
        """Add positions (B, dims or more) relative to the base station [m] and their batch."""
        self.add(euclidean_error(prediction, batch, self.dims))
