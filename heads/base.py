"""The `Head` contract and the few pieces that every head shares."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Head(nn.Module, ABC):
    """A small network from the features of an encoder to the answer of one task.

    A head owns all that is particular to its task: the label it reads, the loss, the metrics, the pictures. Samples
    without a label count in none of them (see `keep_labelled`). The batch is the dict of DESIGN.md section 2.

    Args:
        in_features: Number D of features of a sample.

    Raises:
        ValueError: If `in_features` is below 1.

    Attributes:
        target_key: Batch key of the label.
        inputs: Batch keys that `forward` reads beside the features, in order; a predictor needs the past CSI.
        requires: Every batch key that `loss`, `metrics` and `figures` read.
        monitor: Name of the metric that picks the best checkpoint.
        monitor_mode: Whether a small (`min`) or a large (`max`) value of `monitor` is good.
        settings: Arguments that the head was made with, by which a checkpoint can make it again.
    """

    target_key: ClassVar[str]
    inputs: tuple[str, ...] = ()
    requires: ClassVar[tuple[str, ...]]
    monitor: ClassVar[str]
    monitor_mode: ClassVar[Literal["min", "max"]]
    settings: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments; those that do not fit are left for `__init__` to refuse."""
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
        """Make the layers that depend on the size of the channel, where the arguments left it to the data.

        Called before weights are loaded and before there is an optimizer; more than once does nothing.

        Args:
            num_antennas: Antenna pairs R*T.
            num_subcarriers: Subcarriers K.
        """

    def check(self, statistics: dict[str, Tensor]) -> None:
        """Refuse data that the head cannot be trained or scored on, before it is.

        Args:
            statistics: As `prepare` takes them.

        Raises:
            ValueError: No sample of the train split has one of the labels that the head requires, or what the data hold
                is of another size than the head.
        """
        for key in self.requires:
            if statistics.get(f"labelled_{key}") == 0:
                raise ValueError(
                    f"head {type(self).__name__} needs {key}, which no link of the train side has: choose data with "
                    "that label, or another head"
                )

    def prepare(self, statistics: dict[str, Tensor]) -> None:
        """Fill buffers from statistics of the train split, once, before training; a checkpoint then holds them.

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
        """Return the output of `forward` from the features (B, D) of a batch and what else it reads there."""
        prediction: Tensor = self(features, *(batch[key] for key in self.inputs))
        return prediction

    @abstractmethod
    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean loss over the labelled samples, a scalar; zero, with a graph, when there is none."""

    def labelled(self, batch: dict[str, Tensor]) -> int:
        """Return the number of samples that `loss` is the mean over."""
        return len(keep_labelled(batch[self.target_key])[0])

    def terms(self, prediction: Tensor, batch: dict[str, Tensor]) -> list[tuple[Tensor, int]]:
        """Return what `loss` is the sum of, one entry a task: a mean, and the number of samples that it is over.

        Means of several batches are put together by these numbers: the loss of a whole set depends on no batch.
        """
        return [(self.loss(prediction, batch), self.labelled(batch))]

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Return new, empty metrics, updated as `metrics.update(prediction, batch)` with the output of `forward`.

        Collections are built with `compute_groups=False`: torchmetrics otherwise merges, for good, metrics whose states
        happen to agree after the first batch, as those of top-1 and top-3 do on an easy one.
        """

    def predict(self, prediction: Tensor) -> Tensor:
        """Turn the output of `forward` into what a user wants to read: a class index, metres."""
        return prediction

    def figures(self, prediction: Tensor, batch: dict[str, Tensor]) -> dict[str, Figure]:
        """Draw the results of a test side, or of an even sample of a large one, on the CPU; nothing without a label.

        The sample holds 8192 samples at most, and 256 MiB: some hundreds where prediction or label are whole channels.

        Args:
            prediction: Output of `forward` (B, ...).
            batch: The batch. Where the links are of one area it also holds `walls` (M, 2, 2), the edges of building
                outlines from point to point [m], and `train_position` (n, 3), where users trained [m].
        """
        return {}


def keep_labelled(target: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Drop the samples that have no label.

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


def check_at_least(name: str, value: float, minimum: float) -> None:
    """Raise a ValueError that names the argument when its value is below the minimum, or NaN."""
    if not value >= minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def statistic(statistics: dict[str, Tensor], name: str, size: int) -> Tensor:
    """Return one train-split statistic, checked.

    Args:
        statistics: What `Head.prepare` received.
        name: Key of the statistic.
        size: Number of entries it must have.

    Raises:
        ValueError: If it is missing or has another shape than (size,).
    """
    if name not in statistics:
        raise ValueError(f"the statistics of the train split lack {name!r}; they hold {sorted(statistics)}")
    value = statistics[name]
    if value.shape != (size,):
        raise ValueError(f"statistic {name!r} must have shape ({size},), got {tuple(value.shape)}")
    return value
