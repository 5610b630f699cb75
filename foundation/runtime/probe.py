"""Monitoring of pre-training: an online probe and a collapse alarm."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from foundation.gather import gather
from heads import LOS, Head


class OnlineProbe(Callback):
    """Trains a linear head on detached features during pre-training, and logs its metrics.

    The steps of the model must return `features`. No gradient reaches the model. Every process takes the same step, on
    the features of all processes.

    Args:
        in_features: Number D of features.
        head: The head, by default linear LOS.
        lr: Learning rate of the optimizer of the probe.
    """

    def __init__(self, in_features: int, head: Head | None = None, lr: float = 1e-3) -> None:
        self.head = head or LOS(in_features, hidden=None)
        self.name = type(self.head).__name__.lower()
        # features of any scale are as good: what is probed is their content
        self.net = nn.Sequential(_Norm(in_features, affine=False), self.head)
        self.optimizer = AdamW(self.head.parameters(), lr=lr)
        self.metrics = self.head.metrics()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the probe for a resumed run."""
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the probe."""
        self.net.load_state_dict(state_dict["net"])
        self.optimizer.load_state_dict(state_dict["optimizer"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the label statistics of the head."""
        if stage == "fit" and trainer.datamodule is not None:  # type: ignore[attr-defined]
            self.head.prepare(trainer.datamodule.statistics())  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set equal initial weights on all processes, on the device of the model."""
        start = {name: value.cpu() for name, value in self.net.state_dict().items()}
        self.net.load_state_dict(trainer.strategy.broadcast(start))
        self._follow(pl_module)
        # a checkpoint is read before there is a device; loading moves the moments to where their parameters are
        self.optimizer.load_state_dict(self.optimizer.state_dict())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the probe to the device of the model, also without fitting."""
        self._follow(pl_module)

    def _follow(self, module: LightningModule) -> None:
        self.net.to(module.device)
        self.metrics.to(module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take one step of the probe."""
        features = gather(outputs["features"].detach().float())
        rows = {key: gather(batch[key]) for key in dict.fromkeys((*self.head.inputs, *self.head.requires))}
        with torch.enable_grad():
            self.net.train()
            loss = self.head.loss(self._answer(features, rows), rows)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Update the metrics of the probe."""
        self.net.eval()
        self.metrics.update(self._answer(outputs["features"].float(), batch), batch)

    def _answer(self, features: Tensor, batch: Mapping[str, Any]) -> Tensor:
        norm, head = self.net
        assert isinstance(head, Head)
        return head.answer(norm(features), batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics of the probe."""
        for name, value in self.metrics.compute().items():
            pl_module.log(f"val/probe/{self.name}/{name}", value, batch_size=1, sync_dist=True)
        self.metrics.reset()


class _Norm(nn.BatchNorm1d):
    """Batch normalisation that uses its running statistics for batches of one."""

    running_mean: Tensor
    running_var: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Return features (B, D) standardised."""
        if not self.training or len(input) > 1:
            return super().forward(input)
        with torch.no_grad():
            share = self.momentum or 0.0
            self.running_var.lerp_((input[0] - self.running_mean).square(), share)
            self.running_mean.lerp_(input[0], share)
        return F.batch_norm(input, self.running_mean, self.running_var, eps=self.eps)


class CollapseAlarm(Callback):
    """Warns once when the embeddings of different links are nearly equal.

    Args:
        monitor: Logged name of the embedding spread, sqrt(D) times the mean standard deviation, 1 if uniform.
        threshold: Spread below which a warning is given.
    """

    def __init__(self, monitor: str, threshold: float = 0.1) -> None:
        self.monitor, self.threshold, self.warned = monitor, threshold, False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the spread."""
        spread = trainer.callback_metrics.get(self.monitor)
        # a single link has no spread: NaN is no collapse
        if spread is None or trainer.sanity_checking or self.warned or not spread < self.threshold:
            return
        self.warned = True
        warnings.warn(
            f"the embeddings have collapsed: {self.monitor} is {spread:.3f} (below {self.threshold}); "
            "lower the learning rate, enlarge the batch, or look at the views",
            stacklevel=2,
        )
