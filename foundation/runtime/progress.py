"""The progress of a run: one bar over all of its epochs, with loss and time left; or one bar over many runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from datamodules.progress import Progress, at_work

#: share of a run that is its training; the rest is for data and test
_TRAINING = 0.9
_ALL = "{desc}: {percentage:.0f} % of all, {elapsed} gone, {remaining} left{postfix}"


class SharedProgress(AbstractContextManager["SharedProgress"]):
    """One bar over many runs, in which every `RunProgress` within shows its epoch and metrics in place of its own.

    Args:
        seconds: How long each run is expected to take, in order; time left is that of all, scaled by how long it took
            so far.
    """

    def __init__(self, seconds: Sequence[float]) -> None:
        self._seconds = list(seconds)
        self._bar = Progress(sum(seconds), "", "s", bar_format=_ALL, smoothing=0, miniters=0)
        self._number, self._run, self._reached = -1, "", 0.0

    def __enter__(self) -> SharedProgress:
        """Take the place of the bars of runs."""
        self._token: Token[SharedProgress | None] = _SHARED.set(self)
        return self

    def __exit__(self, *_: Any) -> None:
        """Give it back, and leave the last state."""
        _SHARED.reset(self._token)
        self._bar.close()

    def begin(self, run: str) -> None:
        """Go to the next run."""
        self._number, self._run = self._number + 1, run
        self._reach(sum(self._seconds[: self._number]))
        self._bar.set_postfix({}, refresh=False)
        self._bar.set_description_str(run)

    def end(self) -> None:
        """Note that the run has come to its end."""
        self._bar.set_description_str(self._run, refresh=False)
        self._reach(sum(self._seconds[: self._number + 1]))

    def part(self, total: float | None, name: str, initial: int) -> _Part:
        """Return what stands for the bar of a part of the run."""
        return _Part(self, total, name, initial)

    @property
    def due(self) -> bool:
        """Whether the next step will be shown."""
        return self._bar.due

    def show(self, text: str, metrics: dict[str, float], share: float) -> None:
        """Show what a run is at.

        Args:
            text: Its epoch, or what else it does.
            metrics: Its latest metrics.
            share: How much of it is done, 0 to 1.
        """
        self._bar.set_description_str(f"{self._run} {text}", refresh=False)
        self._bar.set_postfix(metrics, refresh=False)
        self._reach(sum(self._seconds[: self._number]) + share * self._seconds[self._number])

    def _reach(self, seconds: float) -> None:
        self._bar.update(max(0.0, seconds - self._reached))
        self._reached = max(self._reached, seconds)


_SHARED: ContextVar[SharedProgress | None] = ContextVar("shared", default=None)


class _Part:
    """Stands for the bar of one part of a run, say its training, within a `SharedProgress`."""

    def __init__(self, shared: SharedProgress, total: float | None, name: str, initial: int) -> None:
        self._shared, self._total, self._text, self._done = shared, total, name, initial
        self._training, self._metrics = name == "training", dict[str, float]()

    @property
    def due(self) -> bool:
        """Whether the next step will be shown."""
        return self._shared.due

    def set_postfix(self, metrics: dict[str, float], refresh: bool = True) -> None:
        """Keep the latest metrics."""
        self._metrics = metrics

    def set_description_str(self, text: str, refresh: bool = True) -> None:
        """Keep what is done."""
        self._text = text

    def update(self) -> None:
        """Move on."""
        self._done += 1
        share = min(1.0, self._done / self._total) * _TRAINING if self._total and self._training else _TRAINING
        self._shared.show(self._text, self._metrics, share)

    def close(self) -> None:
        """Nothing: the shared bar goes on."""


class RunProgress(ProgressBar):
    """One bar a run on a terminal, a line every ten seconds in a log: epoch, loss, what the model logs, time left.

    Lightning's own starts anew every epoch, so that it never says when the run will end, and fills a log with its
    redrawings.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Progress | _Part | None = None

    def enable(self) -> None:
        """Show it."""
        self._enabled = True

    def disable(self) -> None:
        """Hide it; Lightning calls this on all processes but the first."""
        self._enabled = False

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what the model logs with `prog_bar`, without the name of the run."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar, where a resumed run went on."""
        batches, epochs, steps = trainer.num_training_batches, trainer.max_epochs or -1, trainer.max_steps
        total = min(batches * epochs if epochs > 0 else math.inf, steps if steps > 0 else math.inf)
        done = min(batches * trainer.current_epoch, total)
        self._start(total, "training", "batch", initial=0 if math.isinf(done) else int(done))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the epoch."""
        self._describe(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on."""
        if self._bar is None:
            return
        if self._bar.due:  # not at every batch: reading a value waits for the GPU
            metrics = {name: float(value) for name, value in self.get_metrics(trainer, pl_module).items()}
            if not any("loss" in name for name in metrics) and isinstance(outputs, dict) and "loss" in outputs:
                metrics["loss"] = float(outputs["loss"])
            self._bar.set_postfix(metrics, refresh=False)
        self._bar.update()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the validation within a training, or start its own bar."""
        if trainer.state.fn != "fit":
            self._start(_number(trainer.num_val_batches), "validating", "batch")
        elif self._bar is not None and not trainer.sanity_checking:
            self._bar.set_description_str(f"epoch {trainer.current_epoch + 1}, validating")

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Move on."""
        if trainer.state.fn != "fit":
            self._step()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to the training, or end."""
        if trainer.state.fn != "fit":
            self._end()
        elif not trainer.sanity_checking:
            self._describe(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End, with the last values."""
        metrics = {name: float(value) for name, value in self.get_metrics(trainer, pl_module).items()}
        if self._bar is not None and metrics:
            self._bar.set_postfix(metrics, refresh=False)
        self._end()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar."""
        self._start(_number(trainer.num_test_batches), "testing", "batch")

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        """Move on."""
        self._step()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the time while the model scores and draws."""
        self._end()
        if self._enabled:
            self._bar = at_work("scoring and drawing")

    def on_test_end(self, *_: Any) -> None:
        """End."""
        self._end()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar."""
        self._start(_number(trainer.num_predict_batches), "predicting", "batch")

    def on_predict_batch_end(self, *_: Any, **__: Any) -> None:
        """Move on."""
        self._step()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End, so that the error stands on a line of its own."""
        self._end()

    def _start(self, total: float, name: str, unit: str, initial: int = 0) -> None:
        self._end()
        if not self._enabled:
            return
        shared, known = _SHARED.get(), None if math.isinf(total) else total
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
