"""Metrics that several heads use: ratios of sums, quantiles, and scores of a confusion matrix.

Except for quantiles their states are sums, so that batches and processes of different sizes give the value of the whole
data set. Without any labelled sample a metric is NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchmetrics.utilities import dim_zero_cat

from heads.base import check_at_least, keep_labelled


def decibels(ratio: Tensor, least: float = 1e-12) -> Tensor:
    """Convert ratios of powers of any shape, and at least `least`, to [dB]."""
    return 10 * ratio.clamp_min(least).log10()


class RatioOfSums(Metric):
    """Base class of metrics sum(a) / sum(b) over all labelled samples; a mean when b is 1."""

    full_state_update = False
    numerator: Tensor
    denominator: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("numerator", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("denominator", torch.tensor(0.0), dist_reduce_fx="sum")

    def add(self, values: Tensor) -> None:
        """Add the values (n,) of n samples, each with weight 1."""
        self.numerator += values.sum(dtype=self.numerator.dtype)
        self.denominator += values.numel()

    def compute(self) -> Tensor:
        """Return the ratio, a scalar; NaN when nothing was added."""
        return self.numerator / self.denominator


class MeanDb(RatioOfSums):
    """Base class of means of a relative error, such as the NMSE, which are converted to decibels."""

    higher_is_better = False

    def compute(self) -> Tensor:
        """Return the mean [dB], a scalar, at least -120 dB."""
        return decibels(super().compute())


class Quantile(Metric):
    """Base class of quantiles with linear interpolation, whose state has one value for each sample.

    Args:
        probability: Such as 0.5 for the median.

    Raises:
        ValueError: If `probability` is outside [0, 1].
    """

    full_state_update = False
    values: list[Tensor]

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {probability}")
        self.probability = probability
        self.add_state("values", [], dist_reduce_fx="cat")

    def add(self, values: Tensor) -> None:
        """Add the values (n,) of n samples."""
        self.values.append(values.detach())

    def compute(self) -> Tensor:
        """Return the quantile, a scalar; NaN when nothing was added."""
        values = dim_zero_cat(self.values) if len(self.values) else torch.empty(0, device=self.device)
        if not values.numel():
            return torch.full((), torch.nan, device=self.device)
        return values.float().quantile(self.probability)


class TopK(RatioOfSums):
    """Fraction of labelled samples whose class is among the k largest logits.

    Args:
        k: Number of classes considered; 1 is the accuracy. With k classes or fewer the metric is 1.
        target_key: Batch key of the class index (B,), negative where unlabelled.

    Raises:
        ValueError: If `k` is below 1.
    """

    higher_is_better = True

    def __init__(self, k: int, target_key: str) -> None:
        super().__init__()
        check_at_least("k", k, 1)
        self.k = k
        self.target_key = target_key

    def update(self, prediction: Tensor, batch: dict[str, Tensor]) -> None:
        """Add logits (B, C) and the labels of their batch."""
        target, logits = keep_labelled(batch[self.target_key], prediction)
        guesses = logits.topk(min(self.k, logits.shape[-1])).indices
        self.add((guesses == target.unsqueeze(-1)).any(-1))


class ConfusionMetric(Metric):
    """Base class of metrics of the confusion matrix, which is the state.

    The macro averages of torchmetrics give a class that is absent from the labels a recall of 0 once it is predicted.
    Here such a class is left out of the mean.

    Args:
        num_classes: Number C of classes.
        target_key: Batch key of the class index (B,), negative where unlabelled.

    Raises:
        ValueError: If `num_classes` is below 2.
    """

    full_state_update = False
    higher_is_better = True
    confusion: Tensor

    def __init__(self, num_classes: int, target_key: str) -> None:
        super().__init__()
        check_at_least("num_classes", num_classes, 2)
        self.num_classes = num_classes
        self.target_key = target_key
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, batch: dict[str, Tensor]) -> None:
        """Add logits (B, C) and the labels of their batch."""
        target, logits = keep_labelled(batch[self.target_key], prediction)
        self.confusion += multiclass_confusion_matrix(logits, target.long(), self.num_classes, validate_args=False)


class Accuracy(ConfusionMetric):
    """Fraction of labelled samples whose predicted class is correct."""

    def compute(self) -> Tensor:
        """Return the fraction, a scalar in [0, 1]."""
        return self.confusion.trace() / self.confusion.sum()


class BalancedAccuracy(ConfusionMetric):
    """Mean recall over the classes that occur among the labels."""

    def compute(self) -> Tensor:
        """Return the mean recall, a scalar in [0, 1]."""
        recall = self.confusion.diagonal() / self.confusion.sum(1)
        return recall.nanmean()  # 0 / 0 = NaN marks a class with no sample


class MacroF1(ConfusionMetric):
    """Unweighted mean over classes of F1 = 2 TP / (2 TP + FP + FN), in the binary case over both classes.

    A class that is predicted but never true has F1 = 0; a class that is neither is left out of the mean.
    """

    def compute(self) -> Tensor:
        """Return the mean F1, a scalar in [0, 1]."""
        f1 = 2 * self.confusion.diagonal() / (self.confusion.sum(0) + self.confusion.sum(1))
        return f1.nanmean()
