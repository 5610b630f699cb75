"""Line-of-sight identification."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.functional.classification import multiclass_confusion_matrix

from heads.base import UNLABELLED, Head, class_target, keep_labelled, statistic
from heads.figures import confusion_figure
from heads.layers import mlp
from heads.metrics import Accuracy, BalancedAccuracy, MacroF1

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LOS(Head):
    """Classifies links as LOS (1) or NLOS (0) by cross-entropy (CSI-CLIP eq 3, environment-channel eq 15).

    Links without any path (los -1) are excluded. `f1` is the macro F1 over both classes, not that of LOS alone.

    Args:
        in_features: Number D of features of a sample.
        hidden: Width between the two fully connected layers. None makes it one linear layer: 258 parameters on 128
            features, the pluggable network of environment-channel Fig. 13.
        balanced: Whether classes are weighted by the inverse of their number of training samples.

    Raises:
        ValueError: If a width is below 1.
    """

    target_key: ClassVar[str] = "los"
    requires: ClassVar[tuple[str, ...]] = ("los",)
    monitor: ClassVar[str] = "balanced_accuracy"
    monitor_mode: ClassVar[Literal["min", "max"]] = "max"

    class_weight: Tensor

    def __init__(self, in_features: int, hidden: int | None = 256, balanced: bool = False) -> None:
        super().__init__(in_features)
        self.balanced = balanced
        self.layers = mlp(in_features, hidden, 2)
        self.register_buffer("class_weight", torch.ones(2))

    def prepare(self, statistics: dict[str, Tensor]) -> None:
        """Set the class weights from `los_counts`, so that their mean over the train samples is 1."""
        if not self.balanced:
            return
        counts = statistic(statistics, "los_counts", 2).to(self.class_weight)
        present = counts > 0
        # a class without training samples keeps weight 1, since an infinite weight would dominate the validation loss
        self.class_weight.copy_(torch.where(present, counts.sum() / (present.sum() * counts), 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D) to logits (B, 2) of NLOS and LOS."""
        logits: Tensor = self.layers(features)
        return logits

    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean cross-entropy of logits (B, 2), in nat.

        The sum is divided by the number of samples, not by the sum of their class weights, so that means over batches
        and processes equal the loss of the whole data set.
        """
        target, weight = class_target(batch["los"]), self.class_weight.to(prediction.dtype)
        total = F.cross_entropy(prediction, target, weight=weight, ignore_index=UNLABELLED, reduction="sum")
        return total / (target != UNLABELLED).sum().clamp_min(1)

    def metrics(self) -> MetricCollection:
        """Return `accuracy`, `balanced_accuracy` and `f1` (macro), fractions."""
        metrics = {"accuracy": Accuracy(2, "los"), "balanced_accuracy": BalancedAccuracy(2, "los")}
        return MetricCollection({**metrics, "f1": MacroF1(2, "los")}, compute_groups=False)

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the more likely class (B,) int64 of logits (B, 2): 1 LOS, 0 NLOS."""
        return prediction.argmax(-1)

    def figures(self, prediction: Tensor, batch: dict[str, Tensor]) -> dict[str, Figure]:
        """Draw the confusion matrix of logits (B, 2)."""
        target, logits = keep_labelled(batch["los"], prediction)
        if len(target) == 0:
            return {}
        confusion = multiclass_confusion_matrix(logits, target.long(), 2)
        return {"confusion": confusion_figure(confusion, "LOS identification", ("NLOS", "LOS"))}
