"""Channel prediction: the CSI of the next snapshots from the past ones."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torchmetrics import MetricCollection

from datamodules.channel.transforms import to_angle, to_delay
from heads.base import Head, check_at_least, statistic
from heads.figures import cdf_figure, channel_figure
from heads.linear_filter import LinearFilter
from heads.metrics import MeanDb, decibels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: offset of the relative error in the logarithmic loss, -40 dB: it bounds the gradient of static links
_EXACT = 1e-4


class Prediction(Head):
    """Predicts the channel 1 to H snapshots ahead, in the scale of the data (ConTwin section 5, phase II).

    `forward(features, csi)` takes the past CSI beside the features, because contrastive features are trained to be
    invariant to phase, gain and delay of the channel.

    Args:
        in_features: Number D of features of a sample.
        kind: `filter` predicts each angle-delay bin by a linear combination of its past, see `LinearFilter`; `direct`
            predicts the channel from the features alone, as in the paper, scaled to the power of the past; `given` has
            no parameters and reads the features as the prediction, for classical predictors.
        horizons: Number H of snapshots to predict.
        taps: Length in snapshots of the linear combination of the kind `filter`.
        hidden: Width of the network; by default 64 for `filter`, and 512 as in Table 6 of the paper for `direct`.
        layers: Fully connected layers of the kind `direct`: 4 as in section 5 of the paper, or 2 and a tanh as in its
            Table 6.
        num_antennas: Antenna pairs R*T, of the kind `direct`; by default those of the data, see `configure`.
        num_subcarriers: Subcarriers K, likewise.

    Raises:
        ValueError: An argument is out of range.
    """

    target_key: ClassVar[str] = "next_csi"
    inputs = ("csi",)
    requires: ClassVar[tuple[str, ...]] = ("next_csi",)
    monitor: ClassVar[str] = "nmse_db"
    monitor_mode: ClassVar[Literal["min", "max"]] = "min"

    def __init__(
        self,
        in_features: int,
        kind: Literal["filter", "direct", "given"] = "filter",
        horizons: int = 1,
        taps: int = 8,
        hidden: int | None = None,
        layers: Literal[2, 4] = 4,
        num_antennas: int | None = None,
        num_subcarriers: int | None = None,
    ) -> None:
        super().__init__(in_features)
        if kind not in ("filter", "direct", "given"):
            raise ValueError(f"kind must be 'filter', 'direct' or 'given', got {kind!r}")
        if layers not in (2, 4):
            raise ValueError(f"layers must be 2 or 4, got {layers}")
        hidden = (512 if kind == "direct" else 64) if hidden is None else hidden
        for name, value in {"horizons": horizons, "taps": taps, "hidden": hidden}.items():
            check_at_least(name, value, 1)
        self.network: nn.Module | None = None
        self.kind, self.horizons, self.hidden, self.layers = kind, horizons, hidden, layers
        self.num_antennas, self.num_subcarriers = num_antennas, num_subcarriers
        if kind == "filter":
            self.network = LinearFilter(in_features, horizons, taps, hidden)
        elif kind == "given":
            self.network = nn.Identity()
        elif num_antennas is not None and num_subcarriers is not None:
            self.configure(num_antennas, num_subcarriers)

    def configure(self, num_antennas: int, num_subcarriers: int) -> None:
        """Build the layers of the kind `direct`, for the given size of the channel unless the arguments gave another.

        Raises:
            ValueError: A size is below 1.
        """
        if self.network is not None:
            return
        num_antennas, num_subcarriers = self.num_antennas or num_antennas, self.num_subcarriers or num_subcarriers
        check_at_least("num_antennas", num_antennas, 1)
        check_at_least("num_subcarriers", num_subcarriers, 1)
        self.num_antennas, self.num_subcarriers = num_antennas, num_subcarriers
        self.settings |= {"num_antennas": num_antennas, "num_subcarriers": num_subcarriers}
        outputs = 2 * self.horizons * num_antennas * num_subcarriers
        widths = [self.in_features, *[self.hidden] * (self.layers - 1), outputs]
        self.network = nn.Sequential(*_connected(widths), *([nn.Tanh()] if self.layers == 2 else []))

    def check(self, statistics: dict[str, Tensor]) -> None:
        """Check that the data are sequences of the size and the number of horizons of the head."""
        super().check(statistics)
        if "snapshots" in statistics:
            self._check_past(int(statistics["snapshots"]))
        if "csi_shape" in statistics:
            receive, transmit, subcarriers = statistic(statistics, "csi_shape", 3).tolist()
            self._check_size(self.in_features, receive * transmit, subcarriers)
        if "horizon" in statistics and int(statistics["horizon"]) != self.horizons:
            raise ValueError(
                f"the head predicts {self.horizons} snapshots, but the data hold {int(statistics['horizon'])}: set "
                "horizons of the head, or data.sequence.horizon"
            )

    def _check_past(self, snapshots: int) -> None:
        if self.kind == "filter" and snapshots < self.horizons + 2:
            raise ValueError(
                f"the filter needs a past of {self.horizons + 2} snapshots to predict {self.horizons}, got "
                f"{snapshots}: set data.sequence.snapshots"
            )

    def _check_size(self, features: int, num_antennas: int, num_subcarriers: int) -> None:
        size = 2 * self.horizons * num_antennas * num_subcarriers
        if self.kind == "given" and features != size:
            raise ValueError(
                f"the head reads {size} features as the prediction, but the encoder has {features}: "
                "set its horizons, num_antennas and num_subcarriers"
            )
        if self.kind == "direct" and (num_antennas, num_subcarriers) != (self.num_antennas, self.num_subcarriers):
            raise ValueError(
                f"the head predicts {self.num_antennas} antenna pairs and {self.num_subcarriers} subcarriers, but the "
                f"data hold {num_antennas} and {num_subcarriers}: set num_antennas and num_subcarriers"
            )

    def forward(self, features: Tensor, *inputs: Tensor) -> Tensor:
        """Predict the channel.

        Args:
            features: Shape (B, D).
            *inputs: The past (B, N, R, T, K), complex.

        Returns:
            Shape (B, H, R, T, K), complex.

        Raises:
            ValueError: The past is too short, or differs from the head in size.
        """
        if len(inputs) != 1 or inputs[0].ndim != 5:
            raise ValueError(
                "the head Prediction reads a past (B, N, R, T, K), got "
                f"{[tuple(value.shape) for value in inputs]}: set data.sequence"
            )
        csi = inputs[0]
        if self.network is None:
            raise ValueError("the size of the channel is not set: give the head num_antennas and num_subcarriers")
        r, t, k = csi.shape[2:]
        self._check_past(csi.shape[1])
        self._check_size(features.shape[1], r * t, k)
        if self.kind == "filter":
            predicted: Tensor = self.network(features, csi)
            return predicted
        if self.kind == "given":
            given = rearrange(features, "b (h r t k c) -> b h r t k c", h=self.horizons, r=r, t=t, c=2)
            return torch.view_as_complex(given.contiguous())
        values = rearrange(self.network(features), "b (h r t k c) -> b h r t k c", h=self.horizons, r=r, t=t, c=2)
        power = csi.abs().square()
        level = power.amax((1, 2, 3, 4)) if self.layers == 2 else power.mean((1, 2, 3, 4))
        return torch.view_as_complex(values.float().contiguous()) * level.sqrt().reshape(-1, 1, 1, 1, 1)

    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean over links of the linear NMSE, or for the kind `filter` of its natural logarithm.

        A mean of linear errors is dominated by the links of the fastest users; the logarithm weights all links alike.
        """
        target = _target(prediction, batch)
        counted = _nonzero_power(target)
        # links without power have no part, and no choice of rows waits for a GPU
        error = _error(prediction, target.masked_fill(~counted.reshape(-1, 1, 1, 1, 1), 1.0)).mean(1)
        error = (error + _EXACT).log() if self.kind == "filter" else error
        return torch.where(counted, error, 0.0).sum() / counted.sum().clamp_min(1)

    def labelled(self, batch: dict[str, Tensor]) -> int:
        """Return the number of links with nonzero power at every horizon."""
        return int(_nonzero_power(next_channel(batch)).sum())

    def metrics(self) -> MetricCollection:
        """Return `nmse_db` [dB] over all horizons, also by antenna, and, of several, `nmse_db_1` and so on for each."""
        each = {f"nmse_db_{h + 1}": PredictionNMSE(h) for h in range(self.horizons)} if self.horizons > 1 else {}
        whole = {"nmse_db": PredictionNMSE(), "nmse_antenna_db": PredictionNMSE(antennas=True)}
        return MetricCollection({**whole, **each}, compute_groups=False)

    def figures(self, prediction: Tensor, batch: dict[str, Tensor]) -> dict[str, Figure]:
        """Draw the distribution of the NMSE over links, and the prediction of the median link at the last horizon."""
        target = next_channel(batch)
        nonzero = _nonzero_power(target)
        error = prediction_error(prediction, batch).mean(1)
        if not len(error):
            return {}
        middle = int(error.argsort()[len(error) // 2])
        level = decibels(error)
        title = f"Median link: NMSE {float(level[middle]):.1f} dB"
        truth, guess = (to_delay(to_angle(csi[nonzero][middle, -1])).flatten(0, 1) for csi in (target, prediction))
        return {
            "nmse_cdf": cdf_figure(level, "Channel prediction", "NMSE of a link", "dB"),
            "prediction": channel_figure(truth, guess, title, "predicted"),
        }


class PredictionNMSE(MeanDb):
    """Normalised mean squared error of a prediction [dB]: mean over links of the linear NMSE, then converted to dB.

    Args:
        horizon: Index of the horizon; by default the mean over all horizons.
        antennas: Divide the error of each antenna by its own power, the measure of CSI-4CAST, not by that of the link.
    """

    def __init__(self, horizon: int | None = None, antennas: bool = False) -> None:
        super().__init__()
        self.horizon, self.antennas = horizon, antennas

    def update(self, prediction: Tensor, batch: dict[str, Tensor]) -> None:
        """Add predictions (B, H, R, T, K) and their batch."""
        error = prediction_error(prediction, batch, self.antennas)
        self.add(error.mean(1) if self.horizon is None else error[:, self.horizon])


def next_channel(batch: dict[str, Tensor]) -> Tensor:
    """Return the noise-free snapshots to predict, (B, H, R, T, K); H = 1 for `next_csi` (B, R, T, K)."""
    target = batch["next_csi"]
    return target.unsqueeze(1) if target.ndim == 4 else target


def prediction_error(prediction: Tensor, batch: dict[str, Tensor], antennas: bool = False) -> Tensor:
    """Return the linear NMSE of each of the n links with nonzero power and each horizon, (n, H).

    With `antennas`, it is the mean over antennas with nonzero power of the ratio of each, summed over subcarriers.

    Raises:
        ValueError: Prediction and target differ in shape.
    """
    target = _target(prediction, batch)
    nonzero = _nonzero_power(target)
    return _error(prediction[nonzero], target[nonzero], antennas)


def _target(prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
    target = next_channel(batch)
    if prediction.shape != target.shape:
        raise ValueError(
            f"the head predicts {tuple(prediction.shape[1:])}, but the data hold {tuple(target.shape[1:])}: "
            "set horizons"
        )
    return target


def _error(prediction: Tensor, target: Tensor, antennas: bool = False) -> Tensor:
    error = torch.view_as_real(prediction - target).square().sum((4, 5))
    level = target.abs().square().sum(4)
    if antennas:
        return torch.where(level > 0, error / level, torch.nan).nanmean((2, 3))
    return error.sum((2, 3)) / level.sum((2, 3))


def _nonzero_power(target: Tensor) -> Tensor:
    """Return a mask of the links with finite, nonzero power at every horizon, (B,)."""
    power = target.abs().square().sum((2, 3, 4))
    return (power.isfinite() & (power > 0)).all(1)


def _connected(widths: list[int]) -> list[nn.Module]:
    """Return fully connected layers with a ReLU between."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers[:-1]
