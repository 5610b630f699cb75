"""`FoundationTask`: base class of all models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any, ClassVar, Literal, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from datamodules.errors import InputError, check_choice, check_not_negative, check_positive
from datamodules.progress import activity
from foundation.checkpoint import check_fit, load_model, load_part, read_checkpoint
from foundation.contract import describe_data, with_earlier
from foundation.encoder import Encoder
from foundation.gather import mean
from foundation.names import current_paths, current_weights, public_path
from foundation.optim.muon import Muon, hidden_matrices, parameter_groups
from foundation.optim.schedules import RESTARTS, Schedule, cosine, plateau
from heads import Head

OptimizerName = Literal["adamw", "muon"]
StartFrom = str | dict[str, str] | None


class DivergedError(InputError):
    """A training whose loss is no number any more."""


class FoundationTask(LightningModule):
    """Base class of all models: optimizer, schedule, input statistics, and checkpoints that `load_encoder` reads.

    Args:
        lr: Learning rate.
        weight_decay: Weight decay, not applied to biases, norms and scalars.
        schedule: Learning-rate schedule, see `foundation.optim.schedules`.
        optimizer: `adamw`, or `muon`, which differs for the matrices of attention blocks, see `Muon`.
        start_from: Checkpoint of the initial weights; or, for each part by name, such as `decoder`, the checkpoint of
            this part under the same name.

    Attributes:
        monitor: Logged name of the value that selects the best checkpoint.
        monitor_mode: Whether a small (`min`) or a large (`max`) value is better.

    Raises:
        InputError: The learning rate is not positive, or the weight decay negative.
    """

    monitor: str = "val/loss"
    monitor_mode: Literal["min", "max"] = "min"
    #: encoders by name in checkpoints, with their attributes; the first is the default
    towers: ClassVar[dict[str, str]] = {"encoder": "encoder"}
    #: other parts by name in checkpoints, with their attributes
    parts: ClassVar[dict[str, str]] = {}
    #: description of the training data in checkpoints, see `describe_data`
    trained_on: dict[str, Any] | None = None

    def __init__(
        self,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        schedule: Schedule = "cosine",
        optimizer: OptimizerName = "adamw",
        start_from: StartFrom = None,
    ) -> None:
        super().__init__()
        check_positive(type(self).__name__, lr=lr)
        check_not_negative(type(self).__name__, weight_decay=weight_decay)
        self.lr, self.weight_decay, self.schedule = lr, weight_decay, schedule
        self.optimizer, self.start_from = optimizer, start_from

    @property
    def datamodule(self) -> Any:
        """The datamodule of the trainer; None without one."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def describe(self) -> dict[str, Any]:
        """Return the names of model, head and mode, for the summary of the run."""
        return {"model": type(self).__name__, "head": None, "mode": "pretrain"}

    def prepare_from(self, datamodule: Any) -> None:
        """Set statistics of inputs and labels from the train side; those of a checkpoint loaded later replace them."""

    def setup(self, stage: str) -> None:
        """Check the data; before training, set statistics and load the weights of `start_from`.

        Raises:
            InputError: The data lack something, the weights of `start_from` are of another model, or a part that it
                names does not exist.
        """
        self.check_settings(self.datamodule, stage)
        for head in (getattr(self, attribute) for attribute in self.parts.values()):
            if isinstance(head, Head):
                self.fit_head(head, check=stage != "predict")
        if stage != "fit":
            return
        if self.datamodule is not None:
            with activity("taking statistics of the training data"):
                self.prepare_from(self.datamodule)
                described = describe_data(self.datamodule)
                self.trained_on = with_earlier(described, (read_checkpoint(c).get("data", {}) for c in self.origins()))
        if isinstance(self.start_from, str):
            load_model(self, self.start_from)
        for part, checkpoint in (self.start_from if isinstance(self.start_from, dict) else {}).items():
            self._start_part(part, checkpoint)
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy):
            vars(strategy).pop("configure_ddp", None)  # that of an earlier model of the trainer
            if not self.learns:
                # DDP refuses a model without a trained parameter, whose processes have no gradients to exchange
                strategy.configure_ddp = lambda: None  # type: ignore[method-assign]

    @property
    def learns(self) -> bool:
        """Whether any parameter is trained, as none of a classical predictor is."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def origins(self) -> list[str]:
        """Return the checkpoints of the initial weights."""
        start = self.start_from or {}
        return [start] if isinstance(start, str) else list(start.values())

    def _start_part(self, part: str, checkpoint: str) -> None:
        held = self.held_parts()
        if part not in held:
            raise InputError(f"model.start_from names {part!r}, but {type(self).__name__} has {', '.join(held)}")
        module = self.get_submodule(held[part])
        training = module.training
        load_part(checkpoint, part, module).train(training)

    def check_settings(self, datamodule: Any, stage: str) -> None:
        """Check whether the model can take the batches of a datamodule, as far as its settings tell.

        Called when both are built, before any data are made, and again in `setup`.

        Args:
            datamodule: The datamodule, or None.
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            InputError: It cannot.
        """

    def fit_head(self, head: Head, check: bool = True) -> None:
        """Configure a head for the size of the channel, and check labels and sizes of the data, if there are any.

        Args:
            head: The head.
            check: Whether labels and sizes are checked; else only that sequences are long enough.

        Raises:
            InputError: Labels are missing, or sizes differ.
        """
        datamodule = self.datamodule
        if datamodule is None:
            return
        statistics = datamodule.statistics()
        try:
            if "csi_shape" in statistics:
                receive, transmit, subcarriers = statistics["csi_shape"].tolist()
                head.configure(receive * transmit, subcarriers)
            sequence, past = getattr(datamodule, "sequence", None), {}
            if sequence is not None:
                past = {"snapshots": torch.tensor(sequence.snapshots)}
                statistics |= {**past, "horizon": torch.tensor(sequence.horizon)}
            head.check(statistics if check else past)
        except ValueError as error:
            raise InputError(str(error)) from error

    def on_after_backward(self) -> None:
        """Check in the first step under DDP that every trained parameter has a gradient, which DDP requires.

        Raises:
            InputError: A parameter has none.
        """
        if self.global_step:
            return
        wrapped = self.trainer.strategy.model
        if not isinstance(wrapped, DistributedDataParallel) or wrapped.find_unused_parameters:
            return
        unused = [name for name, value in self.named_parameters() if value.requires_grad and value.grad is None]
        if unused:
            raise InputError(
                f"{unused[0]}{f' and {len(unused) - 1} more' * (len(unused) > 1)} had no gradient in a training step, "
                "which several processes need of every parameter: leave them out of the encoder, return them in its "
                "beyond_tokens where the head reads tokens, or set trainer.strategy to ddp_find_unused_parameters_true"
            )

    def held_parts(self) -> dict[str, str]:
        """Return the parts of the model by name in checkpoints, with their attributes."""
        named = {**self.towers, **self.parts}
        return {name: attribute for name, attribute in named.items() if getattr(self, attribute) is not None}

    def on_train_epoch_end(self) -> None:
        """Check that the loss is a number, before checkpoints of the epoch are written.

        Raises:
            DivergedError: It is NaN or infinite.
        """
        loss = self.trainer.callback_metrics.get("train/loss")
        if loss is not None and not loss.isfinite():
            raise DivergedError(
                f"train/loss is {float(loss)} after epoch {self.current_epoch + 1}: lower the learning rate, or look "
                "for NaN in the data"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add a description of parts and training data to the checkpoint; remove hyperparameters that are objects."""
        checkpoint["parts"] = {name: self._entry(attribute) for name, attribute in self.held_parts().items()}
        if self.trained_on:
            checkpoint["data"] = self.trained_on
        # plain settings on the command line; a model built in Python has modules as hyperparameters
        settings = checkpoint.get("hyper_parameters", {})
        checkpoint["hyper_parameters"] = current_paths({k: v for k, v in settings.items() if not _is_live(v)})

    def _entry(self, attribute: str) -> dict[str, Any]:
        module = self.get_submodule(attribute)
        entry = {"class": public_path(type(module)), "prefix": f"{attribute}.", "model": self.describe()["model"]}
        if isinstance(module, Encoder | Head):
            settings = dict(module.hparams if isinstance(module, Encoder) else module.settings)
            entry |= {} if _is_live(settings) else {"init_args": settings}
        return entry

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the weights are of this model; rename weights of older releases."""
        checkpoint["state_dict"] = current_weights(checkpoint.get("state_dict", {}))
        check_fit(self, checkpoint)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """Return the model of a checkpoint, which may have class paths of older releases.

        Args:
            checkpoint_path: Its path.
            **kwargs: Arguments of the model that are not in the checkpoint, and those of Lightning.
        """
        content = read_checkpoint(checkpoint_path)
        content["hyper_parameters"] = current_paths(content.get("hyper_parameters", {}))
        rewritten = BytesIO()
        torch.save(content, rewritten)
        rewritten.seek(0)
        model: Self = super().load_from_checkpoint(rewritten, **{**kwargs, "weights_only": True})
        return model

    def configure_optimizers(self) -> Any:
        """Return the optimizer of all parameters, and the schedule."""
        return self.optimizers_with([(self, self.lr)])

    def optimizers_with(self, groups: Iterable[tuple[nn.Module, float]], stages: Sequence[float] = (1.0,)) -> Any:
        """Return the optimizer with its schedule.

        Args:
            groups: Modules with their learning rates; parameters without gradient are omitted.
            stages: Ends of the stages of training, as fractions of its steps; each has a `cosine` schedule.

        Raises:
            InputError: The schedule or the optimizer is unknown.
        """
        check_choice("schedule", self.schedule, Schedule)
        check_choice("optimizer", self.optimizer, OptimizerName)
        kind = Muon if self.optimizer == "muon" else AdamW
        settings = parameter_groups(groups, self.weight_decay, hidden_matrices(self) if kind is Muon else ())
        # fused is one pass over the parameters; with mixed precision Lightning could not clip its gradients
        fused = self._trainer is None or "mixed" not in str(self.trainer.precision)
        result: Optimizer = kind(settings, fused=fused)
        if self.schedule == "constant":
            return result
        if self.schedule == "plateau":
            # stepped where there is a new score: at a validation
            often = self.trainer.check_val_every_n_epoch or 1
            scheduling = {"scheduler": plateau(result, self.monitor_mode), "monitor": self.monitor, "frequency": often}
        else:
            steps = self.trainer.estimated_stepping_batches
            scheduling = {
                "scheduler": cosine(result, steps, RESTARTS if self.schedule == "restarts" else stages),
                "interval": "step",
            }
        return {"optimizer": result, "lr_scheduler": scheduling}

    def log_training(self, **values: Tensor) -> None:
        """Log values of a training batch as `train/<name>`, averaged over processes with equal batches."""
        # one collective a step: Lightning's `sync_dist` would take two, one of them a barrier, for each value
        averaged = mean(torch.stack([value.detach().float() for value in values.values()]))
        for name, value in zip(values, averaged, strict=True):
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=1)

    def log_whole(self, values: Mapping[str, Tensor | float], *shown: str) -> None:
        """Log values of a whole side, equal on all processes, by their full names; those `shown` also in the bar.

        Not to be called in a step: for batches of different sizes the mean of `sync_dist` over processes is not exact,
        since Lightning rounds the mean batch size down.
        """
        for name, value in values.items():
            self.log(name, value, prog_bar=name in shown, batch_size=1, sync_dist=True, add_dataloader_idx=False)


def _is_live(value: object) -> bool:
    """Whether a hyperparameter is an object rather than plain data that `weights_only` loading accepts."""
    if isinstance(value, dict):
        return any(_is_live(v) for v in value.values())
    if isinstance(value, list | tuple):
        return any(_is_live(v) for v in value)
    return not isinstance(value, str | int | float | bool | type(None) | torch.Tensor)


def link_identity(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return labels and identity of the links of a batch for `predict_step`, by which figures colour features."""
    return {key: batch[key] for key in ("position", "site", "user", "los", "beam", "domain") if key in batch}
