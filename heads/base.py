"""The base class `Head`, and functions that several heads use."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: class index of a sample without a label in losses
UNLABELLED = -100


class Head(nn.Module, ABC):
    """Base class of task heads: a network from the features of an encoder to the prediction of one task.

    A head defines the label, the loss, the metrics and the figures of its task. Samples without a label are excluded
    from loss and metrics (see `keep_labelled`). A batch is a dict of tensors, described in docs/data.md.

    Args:
        in_features: Number D of features of a sample.

    Raises:
        ValueError: If `in_features` is below 1.

    Attributes:
        target_key: Batch key of the label.
        inputs: Batch keys that `forward` takes after the features, in order, such as the past CSI of a predictor.
        requires: Every batch key that `loss`, `metrics` and `figures` read.
        monitor: Name of the metric that selects the best checkpoint.
        monitor_mode: Whether a small (`min`) or a large (`max`) value of `monitor` is better.
        settings: Constructor arguments, stored in checkpoints to build the head again.
    """

    target_key: ClassVar[str]
    inputs: tuple[str, ...] = ()
    requires: ClassVar[tuple[str, ...]]
    monitor: ClassVar[str]
    monitor_mode: ClassVar[Literal["min", "max"]]
    settings: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Store the constructor arguments in `settings`; arguments that do not fit raise in `__init__`."""
        head = super().__new__(cls)
        with suppress(TypeError):
            bound = inspect.signature(cls.__init__).bind(head, *args, **kwargs)
            object.__setattr__(head, "settings", dict(list(bound.arguments.items())[1:]))
        return head

    def __init__(self, in_features: int) -> None:
        super().__init__()
        check_at_least("in_features", in_features, 1)
        self.in_features = in_features

    def configure(self, num_antennas: int, num_subcarriers: int) -> None:
        """Build the layers that depend on the size of the channel, unless the arguments gave that size.

        Called before weights are loaded and before the optimizer is built. Further calls have no effect.

        Args:
            num_antennas: Antenna pairs R*T.
            num_subcarriers: Subcarriers K.
        """

    def check(self, statistics: dict[str, Tensor]) -> None:
        """Check before training or testing that the data have the labels and sizes that the head needs.

        Args:
            statistics: Statistics of the train split, see `prepare`; of sequences also `snapshots` and `horizon`, the
                numbers N and H of observed and of following snapshots, scalars.

        Raises:
            ValueError: No sample of the train split has one of the labels that the head requires, or the data differ in
                size from the head.
        """
        for key in self.requires:
            if statistics.get(f"labelled_{key}") == 0:
                raise ValueError(
                    f"head {type(self).__name__} needs {key}, which no link of the train side has: choose data with "
                    "that label, or another head"
                )

    def prepare(self, statistics: dict[str, Tensor]) -> None:
        """Set buffers from statistics of the train split, once, before training; checkpoints contain them.

        Args:
            statistics: By name: `position_mean`, `position_std` (3,) of the position relative to the base station [m],
                `los_counts` (2,) of NLOS and LOS samples, `beam_counts` (Q,) when the data have beams; `labelled_los`,
                `labelled_position`, `labelled_beam`, the number of samples with that label; and `csi_shape` (3,), the
                number of receive antennas R, transmit antennas T and subcarriers K.
        """

    @abstractmethod
    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Map features (B, D), and the values of `inputs` after them, to raw predictions (B, ...)."""

    def answer(self, features: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the output of `forward` for features (B, D), with its further `inputs` taken from the batch.

        Batches may be empty, see `of_links`.
        """
        return of_links(self, features, *(batch[key] for key in self.inputs))

    @abstractmethod
    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean loss over the labelled samples, a scalar; a differentiable zero when there are none."""

    def labelled(self, batch: dict[str, Tensor]) -> int:
        """Return the number of samples over which `loss` is averaged."""
        return len(keep_labelled(batch[self.target_key])[0])

    def terms(self, prediction: Tensor, batch: dict[str, Tensor]) -> list[tuple[Tensor, int]]:
        """Return the terms whose sum is `loss`, one for each task: a mean and the number of samples averaged.

        Means of several batches are combined with these numbers as weights, so that the loss of a data set does not
        depend on the batch size.
        """
        return [(self.loss(prediction, batch), self.labelled(batch))]

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Return new, empty metrics, updated as `metrics.update(prediction, batch)` with the output of `forward`.

        Collections are built with `compute_groups=False`: torchmetrics otherwise merges metrics permanently when their
        states are equal after the first batch, which happens to top-1 and top-3 accuracy when all predictions are
        right.
        """

    def predict(self, prediction: Tensor) -> Tensor:
        """Convert the output of `forward` to the result of the task, such as a class index or a position [m]."""
        return prediction

    def figures(self, prediction: Tensor, batch: dict[str, Tensor]) -> dict[str, Figure]:
        """Draw the results of the test split, on the CPU; return no figure when no sample is labelled.

        Of a large test split a uniform subset is drawn: at most 8192 samples and 256 MiB, so some hundreds when
        predictions or labels are whole channels.

        Args:
            prediction: Output of `forward` (B, ...).
            batch: The batch. When all links are of one area it also has `walls` (M, 2, 2), the edges of building
                outlines [m], and `train_position` (n, 3), the positions of the training users [m].
        """
        return {}


def of_links(compute: Callable[..., Tensor], *inputs: Tensor, **named: Any) -> Tensor:
    """Return `compute` of inputs (B, ...), which may have no link, as in evaluation over several processes.

    Since not every layer accepts an empty batch (see `ShardedSampler`), a link of zeros is then computed and removed.
    """
    if inputs and not len(inputs[0]):
        return compute(*(value.new_zeros(1, *value.shape[1:]) for value in inputs), **named)[:0]
    return compute(*inputs, **named)


def check_declared(head: Head) -> None:
    """Check what a head declares of itself.

    Raises:
        ValueError: It lacks an attribute, `requires` or `inputs` is text, or `monitor` is none of its metrics.
    """
    kind = type(head).__name__
    lacking = [name for name in ("target_key", "requires", "monitor", "monitor_mode") if not hasattr(head, name)]
    if lacking:
        raise ValueError(
            f"head {kind} declares no {' and no '.join(lacking)}: set them on the class, see docs/extend.md"
        )
    for name in ("requires", "inputs"):
        if isinstance(getattr(head, name), str):
            raise ValueError(f"{name} of head {kind} must be a tuple of keys, got {getattr(head, name)!r}")
    metrics = [str(name) for name in head.metrics().keys()]
    if head.monitor not in metrics:
        raise ValueError(f"head {kind} monitors {head.monitor!r}, but its metrics are {', '.join(metrics)}")


def keep_labelled(target: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Remove the samples that have no label.

    Args:
        target: Labels (B, ...). An integer label is missing when negative (los -1, beam -1), a real or complex one when
            any of its entries is NaN or infinite.
        *others: Tensors (B, ...) to restrict to the same samples.

    Returns:
        `target` and `others`, without the unlabelled samples.
    """
    real = target.is_floating_point() or target.is_complex()
    labelled = torch.isfinite(target).unsqueeze(-1).flatten(1).all(1) if real else target >= 0
    return target[labelled], *(other[labelled] for other in others)


def class_target(label: Tensor) -> Tensor:
    """Return class labels (B,) as int64, with `UNLABELLED` for a missing one, which `cross_entropy` can ignore.

    Losses use it in place of `keep_labelled`, which waits for a GPU.
    """
    return torch.where(label < 0, UNLABELLED, label.long())


def check_at_least(name: str, value: float, minimum: float) -> None:
    """Raise a ValueError that names the argument when its value is below the minimum, or NaN."""
    if not value >= minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def statistic(statistics: dict[str, Tensor], name: str, size: int) -> Tensor:
    """Return one statistic of the train split after a check of its shape.

    Args:
        statistics: Statistics of the train split, see `Head.prepare`.
        name: Key of the statistic.
        size: Number of entries it must have.

    Raises:
        ValueError: If it is missing or has another shape than (size,).
    """
    if name not in statistics:
        raise ValueError(f"the statistics of the train split have no {name!r}, only {sorted(statistics)}")
    value = statistics[name]
    if value.shape != (size,):
        raise ValueError(f"statistic {name!r} must have shape ({size},), got {tuple(value.shape)}")
    return value
