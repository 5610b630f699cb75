"""Beam selection: the beam of a codebook with the largest received power."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.functional.classification import multiclass_confusion_matrix

from heads.base import UNLABELLED, Head, check_at_least, class_target, keep_labelled
from heads.figures import cdf_figure, confusion_figure
from heads.layers import mlp
from heads.metrics import RatioOfSums, TopK, decibels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: least relative power, -100 dB: smaller values are rounding errors of float32, and zero has no logarithm
_FLOOR = 1e-10


class Beam(Head):
    """Selects the best of Q codebook beams (CSI-CLIP III-B 3, environment-channel eq 16).

    Two fully connected layers; `hidden=64` on 128 features is the pluggable network of environment-channel Table III.
    Besides top-k accuracy, the metrics give the beamforming gain and the spectral efficiency of the selected beam,
    since a beam adjacent to the best one loses little power.

    Args:
        in_features: Number D of features of a sample.
        num_beams: Number Q of beams of the codebook.
        hidden: Width between the layers; None makes it one linear layer.
        loss: `cross_entropy`, or `focal`, which weights links of low predicted probability more.
        gamma: Focusing parameter of the focal loss; 0 makes it the cross-entropy.
        snr_db: SNR of each link on its best beam, for `se_ratio` [dB].

    Raises:
        ValueError: If an argument is out of range.
    """

    target_key: ClassVar[str] = "beam"
    requires: ClassVar[tuple[str, ...]] = ("beam", "beam_power")
    monitor: ClassVar[str] = "top1"
    monitor_mode: ClassVar[Literal["min", "max"]] = "max"

    def __init__(
        self,
        in_features: int,
        num_beams: int = 64,
        hidden: int | None = 256,
        loss: Literal["cross_entropy", "focal"] = "cross_entropy",
        gamma: float = 2.0,
        snr_db: float = 10.0,
    ) -> None:
        super().__init__(in_features)
        check_at_least("num_beams", num_beams, 2)
        check_at_least("gamma", gamma, 0)
        if loss not in ("cross_entropy", "focal"):
            raise ValueError(f"loss must be 'cross_entropy' or 'focal', got {loss!r}")
        if not math.isfinite(snr_db):
            raise ValueError(f"snr_db must be finite, got {snr_db}")
        self.num_beams = num_beams
        self.gamma = gamma if loss == "focal" else 0.0
        self.snr_db = snr_db
        self.layers = mlp(in_features, hidden, num_beams)

    def check(self, statistics: dict[str, Tensor]) -> None:
        """Check that the data have beam labels, and as many beams as the head."""
        super().check(statistics)
        if "beam_counts" in statistics:
            _check_size(self.num_beams, len(statistics["beam_counts"]))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D) to logits (B, Q)."""
        logits: Tensor = self.layers(features)
        return logits

    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean cross-entropy or focal loss of logits (B, Q), in nat."""
        check_codebook(prediction, batch["beam_power"])
        target = class_target(batch["beam"])
        return focal_loss(prediction, target, self.gamma).sum() / (target != UNLABELLED).sum().clamp_min(1)

    def metrics(self) -> MetricCollection:
        """Return `top1`, `top3`, `top5` (fractions), `gain_db` [dB] and `se_ratio` (fraction)."""
        hits = {f"top{k}": TopK(k, "beam") for k in (1, 3, 5)}
        return MetricCollection(
            {**hits, "gain_db": BeamGain(), "se_ratio": SpectralEfficiencyRatio(self.snr_db)}, compute_groups=False
        )

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the index (B,) int64 of the most likely beam, from logits (B, Q)."""
        return prediction.argmax(-1)

    def figures(self, prediction: Tensor, batch: dict[str, Tensor]) -> dict[str, Figure]:
        """Draw the confusion matrix of logits (B, Q) and the distribution of their beamforming loss [dB]."""
        gain = relative_power(prediction, batch)
        target, logits = keep_labelled(batch["beam"], prediction)
        if len(gain) == 0:
            return {}
        confusion = multiclass_confusion_matrix(logits, target, self.num_beams)
        loss_db = -decibels(gain, _FLOOR)
        return {
            "confusion": confusion_figure(confusion, "Beam selection"),
            "gain_loss_cdf": cdf_figure(loss_db, "Gain lost by the selected beam", "below the best beam", "dB"),
        }


def focal_loss(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Return the focal loss of each sample, -(1 - q)^gamma log q with q the probability of the true class.

    Environment-channel eq 16, before its mean over samples; gamma = 0 is the cross-entropy.

    Args:
        logits: Logits (n, C).
        target: True class (n,) int64; the loss of one that is `UNLABELLED` is 0.
        gamma: Focusing parameter, 0 or more.

    Returns:
        The losses (n,), in nat.
    """
    cross_entropy = F.cross_entropy(logits, target, ignore_index=UNLABELLED, reduction="none")
    if gamma == 0:
        return cross_entropy
    # expm1 keeps 1 - q accurate as q -> 1; clamped above zero, where the power gamma < 1 has no finite gradient
    miss = -torch.expm1(-cross_entropy)
    return miss.clamp_min(torch.finfo(miss.dtype).tiny) ** gamma * cross_entropy


def check_codebook(logits: Tensor, beam_power: Tensor) -> None:
    """Raise a ValueError when logits (B, Q) and beam powers (B, Q) differ in the number of beams Q."""
    _check_size(logits.shape[-1], beam_power.shape[-1])


def _check_size(num_beams: int, given: int) -> None:
    if num_beams != given:
        raise ValueError(
            f"the beam head has num_beams={num_beams} but the data have {given} beams: "
            "set model.head.num_beams and data.num_beams to the same value"
        )


def relative_power(prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return the received power of the predicted beam over that of the best one, in [0, 1].

    Args:
        prediction: Logits (B, Q).
        batch: Holds `beam` (B,) and `beam_power` (B, Q) [W].

    Returns:
        The ratio (n,) for the n labelled links with nonzero received power.
    """
    check_codebook(prediction, batch["beam_power"])
    _, logits, power = keep_labelled(batch["beam"], prediction, batch["beam_power"])
    best = power.amax(-1)
    chosen = power.gather(-1, logits.argmax(-1, keepdim=True)).squeeze(-1)
    received = best > 0
    return chosen[received] / best[received]


class BeamGain(RatioOfSums):
    """Mean over links of the received power of the predicted beam over that of the best beam [dB].

    0 dB is optimal. A link whose predicted beam has no power counts as -100 dB.
    """

    higher_is_better = True

    def update(self, prediction: Tensor, batch: dict[str, Tensor]) -> None:
        """Add logits (B, Q) and their batch."""
        self.add(decibels(relative_power(prediction, batch), _FLOOR))


class SpectralEfficiencyRatio(RatioOfSums):
    """Spectral efficiency of the predicted beams over that of the best beams, a ratio of sums over links; 1 is optimal.

    sum log2(1 + snr p / p_best) / sum log2(1 + snr). Every link has the same SNR on its best beam, as under power
    control, so that the ratio does not depend on path loss.

    Args:
        snr_db: SNR of each link on its best beam [dB].
    """

    higher_is_better = True

    def __init__(self, snr_db: float) -> None:
        super().__init__()
        self.snr = 10 ** (snr_db / 10)

    def update(self, prediction: Tensor, batch: dict[str, Tensor]) -> None:
        """Add logits (B, Q) and their batch."""
        ratio = relative_power(prediction, batch)
        self.numerator += torch.log1p(self.snr * ratio).sum()  # the base of the logarithm cancels
        self.denominator += ratio.numel() * math.log1p(self.snr)
