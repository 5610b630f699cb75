"""Several tasks at once on the same features."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from heads.base import Head

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Joint(Head):
    """One network for several tasks: the task-general model of environment-channel section IV-C.

    Each task keeps its own layers, loss and metrics; the losses are added. The first task picks the best checkpoint.

    Args:
        in_features: Number D of features of a sample.
        heads: Make the tasks' heads from the width of the features.

    Raises:
        ValueError: There is no head, or two of a kind.
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
        with torch.no_grad():
            self.sizes = [head(torch.zeros(1, in_features)).shape[1] for head in made]

    def prepare(self, statistics: dict[str, Tensor]) -> None:
        """Give every head its statistics."""
        for head in self._heads():
            head.prepare(statistics)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D) to the predictions of all heads, one after another, (B, C)."""
        return torch.cat([head(features) for head in self._heads()], dim=1)

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the answers of all heads side by side, (B, n): metres and class indices alike as real numbers."""
        parts = torch.split(prediction, self.sizes, dim=1)
        answers = (head.predict(part) for head, part in zip(self._heads(), parts, strict=True))
        return torch.cat([answer.to(prediction).reshape(len(prediction), -1) for answer in answers], dim=1)

    def loss(self, prediction: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the sum of the heads' losses."""
        parts = torch.split(prediction, self.sizes, dim=1)
        return torch.stack([head.loss(part, batch) for head, part in zip(self._heads(), parts, strict=True)]).sum()

    def metrics(self) -> MetricCollection:
        """Return the metrics of all heads under their own names."""
        metrics: dict[str, Metric | MetricCollection] = {}
        ends = list(accumulate(self.sizes))
        for head, size, end in zip(self._heads(), self.sizes, ends, strict=True):
            share = slice(end - size, end)
            metrics |= {str(name): _Part(share, metric) for name, metric in head.metrics().items()}
        return MetricCollection(metrics, compute_groups=False)

    def figures(self, prediction: Tensor, batch: dict[str, Tensor]) -> dict[str, Figure]:
        """Draw what each head draws, under its name."""
        parts = torch.split(prediction, self.sizes, dim=1)
        drawn = zip(self.heads, self._heads(), parts, strict=True)
        return {f"{name}_{key}": f for name, head, part in drawn for key, f in head.figures(part, batch).items()}

    def _heads(self) -> list[Head]:
        return [head for head in self.heads.values() if isinstance(head, Head)]


class _Part(Metric):
    """A metric of one of the heads, fed with that head's share of the predictions."""

    full_state_update = False

    def __init__(self, share: slice, metric: Metric) -> None:
        super().__init__()
        self.share, self.metric = share, metric

    def update(self, prediction: Tensor, batch: dict[str, Tensor]) -> None:
        """Pass on the share."""
        self.metric.update(prediction[:, self.share], batch)

    def compute(self) -> Any:
        """Return the metric's value."""
        return self.metric.compute()

    def reset(self) -> None:
        """Start anew."""
        super().reset()
        self.metric.reset()
