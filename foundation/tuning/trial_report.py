"""Reports the validation metric of a trial to Optuna during training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules.errors import InputError

if TYPE_CHECKING:
    from optuna import Trial


class TrialReport(Callback):
    """Reports a metric after every validation, and stops the training of a trial that Optuna prunes.

    A pruned trial keeps its checkpoints and summary, as with early stopping.

    Args:
        trial: The trial.
        metric: Name of the metric as it is logged.

    Attributes:
        pruned: Whether the training was stopped.
        unlogged: Whether the metric was missing among the logged ones.
    """

    def __init__(self, trial: Trial, metric: str) -> None:
        self._trial = trial
        self._metric = metric
        self.pruned = self.unlogged = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the metric, and stop the training if the trial is pruned.

        Raises:
            InputError: The metric was not logged.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self._metric not in trainer.callback_metrics:
            self.unlogged = True
            known = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
            raise InputError(f"metric {self._metric} is not logged: choose one of {', '.join(known) or 'none'}")
        self._trial.report(float(trainer.callback_metrics[self._metric]), trainer.current_epoch)
        if self._trial.should_prune():
            self.pruned = trainer.should_stop = True
