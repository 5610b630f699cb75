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
    """Several heads on the same features: the task-general model of environment-channel section IV-C.

    Each head keeps its layers, loss and metrics; the losses are added. The metric of the first head selects the best
    checkpoint. The predictions of all heads are concatenated as real numbers, complex ones as real and imaginary parts.

    Args:
        in_features: Number D of features of a sample.
        heads: Constructors of the heads, called with the number of features.

    Raises:
        ValueError: There is no head, two heads are of one class, or two metrics have one name.
    """

    target_key: ClassVar[str] = ""
    #: set for each instance from its heads
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
        """Configure every head for the size of the channel."""
        for head in self._heads():
            head.configure(num_antennas, num_subcarriers)

    def check(self, statistics: dict[str, Tensor]) -> None:
        """Check the data for every head."""
        for head in self._heads():
            head.check(statistics)

    def prepare(self, statistics: dict[str, Tensor]) -> None:
        """Set the statistics of every head."""
        for head in self._heads():
            head.prepare(statistics)

    def forward(self, features: Tensor, *inputs: Tensor) -> Tensor:
        """Map features (B, D) and the values of `inputs` to the concatenated predictions of all heads, (B, C)."""
        read = dict(zip(self.inputs, inputs, strict=True))
        predictions = [head.answer(features, read) for head in self._heads()]
        self.parts.measure(predictions)
        return torch.cat([_flat(prediction) for prediction in predictions], dim=1)

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the concatenated results of all heads, (B, n) real: positions [m], class indices and so on."""
        answers = (head.predict(share) for head, share in self._shares(prediction))
        return torch.cat([_flat(answer).to(prediction) for answer in answers], dim=1)

    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the sum of the heads' losses."""
        # not from `terms`, whose numbers of samples wait for a GPU
        return torch.stack([head.loss(share, batch) for head, share in self._shares(prediction)]).sum()

    def terms(self, prediction: Tensor, batch: dict[str, Tensor]) -> list[tuple[Tensor, int]]:
        """Return the loss of every head and the number of samples over which it is averaged."""
        return [term for head, share in self._shares(prediction) for term in head.terms(share, batch)]

    def metrics(self) -> MetricCollection:
        """Return the metrics of all heads under their names."""
        metrics: dict[str, Metric | MetricCollection] = {}
        for number, head in enumerate(self._heads()):
            metrics |= {str(name): _Part(self.parts, number, metric) for name, metric in head.metrics().items()}
        return MetricCollection(metrics, compute_groups=False)

    def figures(self, prediction: Tensor, batch: dict[str, Tensor]) -> dict[str, Figure]:
        """Return the figures of all heads, with the name of the head as a prefix."""
        drawn = zip(self.heads, self._shares(prediction), strict=True)
        return {f"{name}_{key}": f for name, (head, share) in drawn for key, f in head.figures(share, batch).items()}

    def _shares(self, prediction: Tensor) -> list[tuple[Head, Tensor]]:
        """Return every head with its part of the concatenated predictions (B, C)."""
        return [(head, part.of(prediction)) for head, part in zip(self._heads(), self.parts, strict=True)]

    def _heads(self) -> list[Head]:
        return [head for head in self.heads.values() if isinstance(head, Head)]


class _Shape(NamedTuple):
    """Position, shape and type of the prediction of one head within the concatenated predictions."""

    start: int
    stop: int
    shape: tuple[int, ...]
    is_complex: bool

    def of(self, prediction: Tensor) -> Tensor:
        """Return the prediction (B, *shape) of this head from the concatenated predictions (B, C)."""
        share = prediction[:, self.start : self.stop]
        if not self.is_complex:
            return share.reshape(len(share), *self.shape)
        return torch.complex(*share.reshape(len(share), *self.shape, 2).unbind(-1))


class _Parts(list[_Shape]):
    """Positions of all predictions, known after the first forward pass; copies of a metric share one instance."""

    def measure(self, predictions: list[Tensor]) -> None:
        """Set the positions from the predictions (B, ...) of all heads."""
        self.clear()
        for prediction in predictions:
            start = self[-1].stop if self else 0
            shape = tuple(prediction.shape[1:])
            size = math.prod(shape) * (2 if prediction.is_complex() else 1)
            self.append(_Shape(start, start + size, shape, prediction.is_complex()))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Parts:
        """Return the same instance."""
        return self


def _flat(prediction: Tensor) -> Tensor:
    """Return a prediction (B, ...) as real numbers, (B, C)."""
    real = torch.view_as_real(prediction) if prediction.is_complex() else prediction
    return real.reshape(len(real), math.prod(real.shape[1:]))


class _Part(Metric):
    """A metric of one head, updated with its part of the concatenated predictions."""

    full_state_update = False

    def __init__(self, parts: _Parts, number: int, metric: Metric) -> None:
        super().__init__()
        self.parts, self.number, self.metric = parts, number, metric

    def update(self, prediction: Tensor, batch: dict[str, Tensor]) -> None:
        """Update the metric with the part of its head."""
        self.metric.update(self.parts[self.number].of(prediction), batch)

    def compute(self) -> Any:
        """Return the value of the metric."""
        return self.metric.compute()

    def reset(self) -> None:
        """Reset the metric."""
        super().reset()
        self.metric.reset()
