"""`FoundationTask`: what every LightningModule of the suite shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from datamodules.errors import InputError
from foundation.checkpoint import described, mismatch
from foundation.encoder import Encoder
from foundation.gather import mean
from foundation.optim.muon import Muon, hidden_matrices
from foundation.optim.schedules import Schedule, cosine, plateau
from heads import Head

OptimizerName = Literal["adamw", "muon"]


class FoundationTask(LightningModule):
    """Base of all models: optimizer, schedule, input statistics, and checkpoints that `load_encoder` reads.

    Attributes:
        monitor: Logged name of the value that picks the best checkpoint.
        monitor_mode: Whether a small (`min`) or a large (`max`) value is good.
    """

    monitor: str = "val/loss"
    monitor_mode: Literal["min", "max"] = "min"
    #: encoders that a checkpoint offers by name, and the attributes that hold them; the first is the default
    towers: ClassVar[dict[str, str]] = {"encoder": "encoder"}

    def describe(self) -> dict[str, Any]:
        """Return the model's, head's and mode's name for the run's summary."""
        return {"model": type(self).__name__, "head": None, "mode": "pretrain"}

    def prepare_from(self, datamodule: Any) -> None:
        """Take statistics of inputs and labels from the train side; a checkpoint loaded later overrides them."""

    def setup(self, stage: str) -> None:
        """Take the statistics before training; all other stages find them in the checkpoint."""
        if stage == "fit" and self.trainer.datamodule is not None:  # type: ignore[attr-defined]
            self.prepare_from(self.trainer.datamodule)  # type: ignore[attr-defined]

    def check_head(self, head: Head) -> None:
        """Let a head refuse the data, where a datamodule says what they hold.

        Raises:
            InputError: It does.
        """
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if datamodule is None:
            return
        try:
            head.check(datamodule.statistics())
        except ValueError as error:
            raise InputError(str(error)) from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which encoders the checkpoint holds, and keep live objects out of it."""
        held = {name: attribute for name, attribute in self.towers.items() if getattr(self, attribute) is not None}
        checkpoint["towers"] = {name: self._tower_entry(attribute) for name, attribute in held.items()}
        # under the command line these are plain settings; a model built in Python carries modules, which are none
        settings = checkpoint.get("hyper_parameters", {})
        checkpoint["hyper_parameters"] = {k: v for k, v in settings.items() if not _is_live(v)}

    def _tower_entry(self, attribute: str) -> dict[str, Any]:
        encoder: Encoder = getattr(self, attribute)
        return {
            "class": f"{type(encoder).__module__}.{type(encoder).__qualname__}",
            "init_args": dict(encoder.hparams),
            "prefix": f"{attribute}.",
            "model": self.describe()["model"],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another model in one line."""
        problem = mismatch(self.state_dict(), checkpoint.get("state_dict", {}))
        if problem:
            made = described(checkpoint).get("model", "another program")
            raise InputError(f"the checkpoint, of {made}, does not fit this {self.describe()['model']}: {problem}")

    def optimizers_with(
        self,
        groups: Iterable[tuple[nn.Module | Iterable[nn.Parameter], float]],
        weight_decay: float,
        schedule: Schedule,
        first: float = 0.0,
        optimizer: OptimizerName = "adamw",
    ) -> Any:
        """Return an optimizer with a schedule.

        Args:
            groups: Modules with their learning rates; parameters without gradient are left out.
            weight_decay: Not applied to biases, norms and scalars.
            schedule: See `foundation.optim.schedules`.
            first: Share of the steps of a first stage of training; a `cosine` is run once for it and once for the rest.
            optimizer: `adamw`, or `muon`, which differs for the matrices of attention blocks, see `Muon`.
        """
        hidden = set(hidden_matrices(self)) if optimizer == "muon" else set()
        settings = []
        for module, lr in groups:
            parameters = [p for p in (module.parameters() if isinstance(module, nn.Module) else module)]
            parameters = [p for p in parameters if p.requires_grad]
            for decay, orthogonal, chosen in (
                (weight_decay, True, [p for p in parameters if p in hidden]),
                (weight_decay, False, [p for p in parameters if p.ndim > 1 and p not in hidden]),
                (0.0, False, [p for p in parameters if p.ndim <= 1]),
            ):
                if chosen:
                    settings.append({"params": chosen, "lr": lr, "weight_decay": decay, "orthogonal": orthogonal})
        # fused is one pass over the parameters; with mixed precision Lightning could not clip its gradients
        fused = self._trainer is None or "mixed" not in str(self.trainer.precision)
        result: Optimizer = (Muon if optimizer == "muon" else AdamW)(settings, fused=fused)
        if schedule == "constant":
            return result
        if schedule == "plateau":
            scheduling = {"scheduler": plateau(result, self.monitor_mode), "monitor": self.monitor}
        else:
            steps = self.trainer.estimated_stepping_batches
            scheduling = {"scheduler": cosine(result, steps, schedule, first), "interval": "step"}
        return {"optimizer": result, "lr_scheduler": scheduling}

    def log_training(self, **values: Tensor) -> None:
        """Log values of a training batch as `train/<name>`, averaged over processes, of which all have as many."""
        # one collective a step: Lightning's `sync_dist` would take two, one of them a barrier, for each value
        averaged = mean(torch.stack([value.detach().float() for value in values.values()]))
        for name, value in zip(values, averaged, strict=True):
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=1)

    def log_whole(self, values: Mapping[str, Tensor | float], *shown: str) -> None:
        """Log values of a whole side, equal on all processes, by their full names; those `shown` also in the bar.

        Not from a step: of batches of different sizes Lightning's `sync_dist` makes no mean over processes, for it
        rounds the mean size down.
        """
        for name, value in values.items():
            self.log(name, value, prog_bar=name in shown, batch_size=1, sync_dist=True, add_dataloader_idx=False)


def _is_live(value: object) -> bool:
    """Whether a hyperparameter is an object rather than plain data that `weights_only` loading admits."""
    if isinstance(value, dict):
        return any(_is_live(v) for v in value.values())
    if isinstance(value, list | tuple):
        return any(_is_live(v) for v in value)
    return not isinstance(value, str | int | float | bool | type(None) | torch.Tensor)
