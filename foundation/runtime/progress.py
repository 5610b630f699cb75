"""The progress of a run: one bar over all of its epochs, with loss and time left."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from datamodules.progress import SHARED, Part, Progress, activity


class RunProgress(ProgressBar):
    """One progress bar of a run on a terminal, or a line every ten seconds in a log: epoch, metrics, remaining time.

    The bar of Lightning restarts every epoch, without the remaining time of the run, and floods log files.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Progress | Part | None = None

    def enable(self) -> None:
        """Enable the bar."""
        self._enabled = True

    def disable(self) -> None:
        """Disable the bar; Lightning calls this on all processes except the first."""
        self._enabled = False

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics logged with `prog_bar`, without the version number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar, for a resumed run at its current step."""
        batches, epochs, steps = trainer.num_training_batches, trainer.max_epochs or -1, trainer.max_steps
        total = min(batches * epochs if epochs > 0 else math.inf, steps if steps > 0 else math.inf)
        done = min(batches * trainer.current_epoch, total)
        self._start(total, "training", "batch", initial=0 if math.isinf(done) else int(done))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the epoch."""
        self._describe(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar."""
        if self._bar is None:
            return
        if self._bar.due:  # not in every batch, since reading a value synchronises with the GPU
            metrics = {name: float(value) for name, value in self.get_metrics(trainer, pl_module).items()}
            if not any("loss" in name for name in metrics) and isinstance(outputs, dict) and "loss" in outputs:
                metrics["loss"] = float(outputs["loss"])
            self._bar.set_postfix(metrics, refresh=False)
        self._bar.update()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show a validation during training, or start its bar."""
        if trainer.state.fn != "fit":
            self._start(_number(trainer.num_val_batches), "validating", "batch")
        elif self._bar is not None and not trainer.sanity_checking:
            self._bar.set_description_str(f"epoch {trainer.current_epoch + 1}, validating")

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Advance the bar."""
        if trainer.state.fn != "fit":
            self._step()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the training again, or close the bar."""
        if trainer.state.fn != "fit":
            self._end()
        elif not trainer.sanity_checking:
            self._describe(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar with the last values."""
        metrics = {name: float(value) for name, value in self.get_metrics(trainer, pl_module).items()}
        if self._bar is not None and metrics:
            self._bar.set_postfix(metrics, refresh=False)
        self._end()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar."""
        self._start(_number(trainer.num_test_batches), "testing", "batch")

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        """Advance the bar."""
        self._step()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the elapsed time while the model scores and draws."""
        self._end()
        if self._enabled:
            self._bar = activity("scoring and drawing")

    def on_test_end(self, *_: Any) -> None:
        """Close the bar."""
        self._end()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar."""
        self._start(_number(trainer.num_predict_batches), "predicting", "batch")

    def on_predict_batch_end(self, *_: Any, **__: Any) -> None:
        """Advance the bar."""
        self._step()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error begins on a new line."""
        self._end()

    def _start(self, total: float, name: str, unit: str, initial: int = 0) -> None:
        self._end()
        if not self._enabled:
            return
        shared, known = SHARED.get(), None if math.isinf(total) else total
        self._bar = shared.part(known, name, initial) if shared else Progress(known, name, unit, initial=initial)

    def _describe(self, trainer: Trainer) -> None:
        if self._bar is not None:
            last = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
            self._bar.set_description_str(f"epoch {trainer.current_epoch + 1}{last}", refresh=False)

    def _step(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


def _number(batches: list[int | float] | int | float) -> float:
    return sum(batches) if isinstance(batches, list) else batches
