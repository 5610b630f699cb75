"""Adaptation: an encoder and a head, from scratch, frozen, or fine-tuned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules.errors import InputError
from foundation.checkpoint import load_encoder, read_checkpoint, rebuild
from foundation.encoder import Encoder
from foundation.figures import log_figures
from foundation.task import FoundationTask, Schedule
from heads import Head

Mode = Literal["scratch", "probe", "finetune", "control"]


class FineTune(FoundationTask):
    """Trains a head on the features of an encoder.

    Args:
        head: Makes the head from the width of the features; in YAML a head's class with its arguments.
        encoder: The encoder; by default as the checkpoint describes it.
        checkpoint: Pre-trained weights for the modes `probe` and `finetune`.
        mode: `scratch` trains everything from new weights; `probe` trains the head alone, the encoder frozen and in
            eval mode; `finetune` trains both; `control` is a probe of an encoder that was never trained, or has nothing
            to train: what the pre-training must beat.
        lr: Learning rate of the head, and of everything in mode `scratch`.
        encoder_lr: Learning rate of the encoder in mode `finetune`.
        weight_decay: Weight decay of AdamW.
        schedule: Learning-rate schedule, see `FoundationTask.optimizers_with`.

    Raises:
        InputError: The mode needs a checkpoint or an encoder and has none, or the checkpoint does not fit.
    """

    def __init__(
        self,
        head: Callable[[int], Head],
        encoder: Encoder | None = None,
        checkpoint: str | None = None,
        mode: Mode = "finetune",
        lr: float = 1e-3,
        encoder_lr: float = 3e-4,
        weight_decay: float = 0.01,
        schedule: Schedule = "cosine",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if mode in ("probe", "finetune"):
            if checkpoint is None:
                raise InputError(f"mode `{mode}` needs model.checkpoint, the path of a pre-trained .ckpt file")
            self.encoder = load_encoder(checkpoint, encoder)
        elif encoder is not None:
            self.encoder = encoder
        elif checkpoint is not None:
            self.encoder = rebuild(read_checkpoint(checkpoint), checkpoint)
        else:
            raise InputError(f"mode `{mode}` needs model.encoder, or model.checkpoint to build the same encoder anew")
        self.model_name = "none" if checkpoint is None else _model_name(checkpoint)
        self.head = head(self.encoder.num_features)
        self.mode, self.lr, self.encoder_lr = mode, lr, encoder_lr
        self.weight_decay, self.schedule = weight_decay, schedule
        self.name = type(self.head).__name__.lower()
        self.monitor, self.monitor_mode = f"val/{self.name}/{self.head.monitor}", self.head.monitor_mode
        self.val_metrics = self.head.metrics().clone(prefix=f"val/{self.name}/")
        self.test_metrics = self.head.metrics().clone(prefix=f"test/{self.name}/")
        self.encoder.requires_grad_(not self.frozen)
        self._tested: list[dict[str, Tensor]] = []

    @property
    def frozen(self) -> bool:
        """Whether the encoder stays as it is."""
        return self.mode in ("probe", "control")

    def describe(self) -> dict[str, Any]:
        """Return the names of the encoder's model, the head and the mode."""
        model = type(self.encoder).__name__ if self.mode in ("scratch", "control") else self.model_name
        return {"model": model, "head": self.name, "mode": self.mode}

    def setup(self, stage: str) -> None:
        """Check that the data hold the head's labels, then take statistics."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        missing = [key for key in self.head.requires if datamodule is not None and key not in datamodule.batch_keys]
        if missing and stage != "predict":
            hint = ": set data.num_beams" if "beam" in missing else ""
            raise InputError(f"head {type(self.head).__name__} needs {', '.join(missing)}, which the data lack{hint}")
        super().setup(stage)

    def prepare_from(self, datamodule: Any) -> None:
        """Take label statistics, and those of the input unless pre-training brought them."""
        if self.mode in ("scratch", "control"):
            self.encoder.prepare(datamodule.sample())
        self.head.prepare(datamodule.statistics())

    def train(self, mode: bool = True) -> FineTune:
        """Switch to training; a frozen encoder stays in eval mode, or its norms would drift."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Return the head's raw predictions for a batch."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.encoder.encode(batch)
        prediction: Tensor = self.head(features)
        return prediction

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the head's loss."""
        prediction = self(batch)
        loss = self.head.loss(prediction, batch)
        self.log_value("train/loss", loss, len(prediction), prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Score the validation side."""
        prediction = self(batch)
        self.log_value("val/loss", self.head.loss(prediction, batch), len(prediction))
        self.val_metrics.update(prediction, batch)
        self.log_dict(self.val_metrics, batch_size=len(prediction))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Score the test side, and keep what the pictures need."""
        prediction = self(batch)
        self.test_metrics.update(prediction, batch)
        self.log_dict(self.test_metrics, batch_size=len(prediction))
        keys = {*self.head.requires, "los", "position", "bs_position"}
        self._tested.append({"prediction": prediction.cpu(), **{key: batch[key].cpu() for key in keys}})

    def on_test_epoch_end(self) -> None:
        """Draw this process's share of the test side."""
        tested = {key: torch.cat([part[key] for part in self._tested]) for key in self._tested[0]}
        self._tested.clear()
        if self.trainer.is_global_zero:
            log_figures(self.trainer, self.head.figures(tested.pop("prediction"), tested))

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return features and predictions, with where they belong."""
        features = self.encoder.encode(batch)
        prediction = self.head.predict(self.head(features))
        where = {key: batch[key] for key in ("position", "site", "user", "los")}
        return {"features": features, "prediction": prediction, **where}

    def configure_optimizers(self) -> Any:
        """Return AdamW with a learning rate each for encoder and head."""
        encoder_lr = self.lr if self.mode == "scratch" else self.encoder_lr
        return self.optimizers_with(
            [(self.encoder, encoder_lr), (self.head, self.lr)], self.weight_decay, self.schedule
        )


def _model_name(checkpoint: str) -> str:
    """Return the name of the model that wrote a checkpoint."""
    return str(read_checkpoint(checkpoint).get("encoder", {}).get("model", "unknown"))
