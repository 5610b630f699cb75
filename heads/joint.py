"""Several tasks at once on the same features."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from heads.base import Head

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Joint(Head):
    """One network for several tasks: the task-general model of environment-channel section IV-C.

    Each task keeps its own layers, loss and metrics; the losses are added. The first task picks the best checkpoint.
    The predictions of all tasks stand side by side as real numbers, complex ones as two each.

    Args:
        in_features: Number D of features of a sample.
        heads: Make the tasks' heads from the width of the features.

    Raises:
        ValueError: There is no head, or two of a kind, or two metrics of one name.
    """

    target_key: ClassVar[str] = ""
    #: of every instance, from its heads
    requires: tuple[str, ...]  # type: ignore[misc]
    monitor: str  # type: ignore[misc]
    monitor_mode: Literal["min", "max"]  # type: ignore[misc]

    def __init__(self, in_features: int, heads: list[Callable[[int], Head]]) -> None:
        super().__init__(in_features)
        made = [make(in_features) for make in heads]
        names = [type(head).__name__.lower() for head in made]
        if not made or len(set(names)) < len(names):
            raise ValueError(f"Joint needs one or more heads, each of another kind, got {', '.join(names) or 'none'}")
        self.heads = nn.ModuleDict(dict(zip(names, made, strict=True)))
        self.requires = tuple(dict.fromkeys(key for head in made for key in head.requires))
        self.monitor, self.monitor_mode = made[0].monitor, made[0].monitor_mode
        metrics = [str(name) for head in made for name in head.metrics()]
        twice = sorted({name for name in metrics if metrics.count(name) > 1})
        if twice:
            raise ValueError(f"Joint needs metrics of different names, but two of its heads have {', '.join(twice)}")
        self.inputs = tuple(dict.fromkeys(key for head in made for key in head.inputs))
        self.parts = _Parts()

    def configure(self, num_antennas: int, num_subcarriers: int) -> None:
        """Tell every head the size of the channel."""
        for head in self._heads():
            head.configure(num_antennas, num_subcarriers)

    def check(self, statistics: dict[str, Tensor]) -> None:
        """Let every head refuse the data."""
        for head in self._heads():
            head.check(statistics)

    def prepare(self, statistics: dict[str, Tensor]) -> None:
        """Give every head its statistics."""
        for head in self._heads():
            head.prepare(statistics)

    def forward(self, features: Tensor, *inputs: Tensor) -> Tensor:
        """Map features (B, D), and the values of `inputs`, to all heads' predictions side by side, (B, C) real."""
        read = dict(zip(self.inputs, inputs, strict=True))
        predictions = [head.answer(features, read) for head in self._heads()]
        self.parts.measure(predictions)
        return torch.cat([_flat(prediction) for prediction in predictions], dim=1)

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the answers of all heads side by side, (B, n): metres and class indices alike as real numbers."""
        answers = (head.predict(share) for head, share in self._shares(prediction))
        return torch.cat([_flat(answer).to(prediction) for answer in answers], dim=1)

    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the sum of the heads' losses."""
        return torch.stack([loss for loss, _ in self.terms(prediction, batch)]).sum()

    def terms(self, prediction: Tensor, batch: dict[str, Tensor]) -> list[tuple[Tensor, int]]:
        """Return the loss of every head and the number of samples that it is over."""
        return [term for head, share in self._shares(prediction) for term in head.terms(share, batch)]

    def metrics(self) -> MetricCollection:
        """Return the metrics of all heads under their own names."""
        metrics: dict[str, Metric | MetricCollection] = {}
        for number, head in enumerate(self._heads()):
            metrics |= {str(name): _Part(self.parts, number, metric) for name, metric in head.metrics().items()}
        return MetricCollection(metrics, compute_groups=False)

    def figures(self, prediction: Tensor, batch: dict[str, Tensor]) -> dict[str, Figure]:
        """Draw what each head draws, under its name."""
        drawn = zip(self.heads, self._shares(prediction), strict=True)
        return {f"{name}_{key}": f for name, (head, share) in drawn for key, f in head.figures(share, batch).items()}

    def _shares(self, prediction: Tensor) -> list[tuple[Head, Tensor]]:
        """Return every head with its own prediction out of all, (B, C)."""
        return [(head, part.of(prediction)) for head, part in zip(self._heads(), self.parts, strict=True)]

    def _heads(self) -> list[Head]:
        return [head for head in self.heads.values() if isinstance(head, Head)]


class _Shape(NamedTuple):
    """Where one head's prediction stands among those of all, and what it is there: (B, *shape), real or complex."""

    start: int
    stop: int
    shape: tuple[int, ...]
    is_complex: bool

    def of(self, prediction: Tensor) -> Tensor:
        """Return this head's prediction (B, *shape) out of all, (B, C)."""
        share = prediction[:, self.start : self.stop]
        if not self.is_complex:
            return share.reshape(len(share), *self.shape)
        return torch.complex(*share.reshape(len(share), *self.shape, 2).unbind(-1))


class _Parts(list[_Shape]):
    """Where the heads' predictions stand, known from their first on: a copy of a metric must see it as well."""

    def measure(self, predictions: list[Tensor]) -> None:
        """Take the shapes (B, ...) of the predictions of all heads."""
        self.clear()
        for prediction in predictions:
            start = self[-1].stop if self else 0
            shape = tuple(prediction.shape[1:])
            size = math.prod(shape) * (2 if prediction.is_complex() else 1)
            self.append(_Shape(start, start + size, shape, prediction.is_complex()))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Parts:
        """Return the same one."""
        return self


def _flat(prediction: Tensor) -> Tensor:
    """Return a prediction (B, ...) as real numbers, (B, C)."""
    real = torch.view_as_real(prediction) if prediction.is_complex() else prediction
    return real.reshape(len(real), math.prod(real.shape[1:]))


class _Part(Metric):
    """A metric of one of the heads, fed with that head's share of the predictions."""

    full_state_update = False

    def __init__(self, parts: _Parts, number: int, metric: Metric) -> None:
        super().__init__()
        self.parts, self.number, self.metric = parts, number, metric

    def update(self, prediction: Tensor, batch: dict[str, Tensor]) -> None:
        """Pass on the share."""
        self.metric.update(self.parts[self.number].of(prediction), batch)

    def compute(self) -> Any:
        """Return the metric's value."""
        return self.metric.compute()

    def reset(self) -> None:
        """Start anew."""
        super().reset()
        self.metric.reset()
