"""Checkpoints written atomically, and exact resumption of training."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.errors import InputError
from foundation.checkpoint import read_checkpoint
from foundation.runtime.runs import Run


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces a checkpoint atomically, so that an interrupted run has either the old or the new one.

    Lightning writes to the temporary folder of the system and moves the file, which is not atomic between disks.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write to a temporary file in the same folder, then rename it.

        Raises:
            OSError: The file cannot be written; the error names it.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # after a power cut, too, the name must not point to a file without its bytes
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error

    def load_checkpoint(self, path: str | Path, *options: Any, **named: Any) -> dict[str, Any]:
        """Read a checkpoint, a folder of `lightning export`, or a file of an address such as s3://.

        Raises:
            InputError: The address is of an unknown kind, or one whose library is not installed.
        """
        try:
            folder = "://" not in str(path) and Path(path).is_dir()
            content = read_checkpoint(path) if folder else super().load_checkpoint(path, *options, **named)
        except (ImportError, ValueError) as error:
            if "://" not in str(path):
                raise
            raise InputError(f"checkpoint {path} cannot be read ({error}): give a file") from error
        # what has weights alone does not say by which version it was written
        return {"pytorch-lightning_version": lightning.__version__, **content}


class _RunCheckpoint(ModelCheckpoint):
    """Writes one checkpoint of a run under a fixed name."""

    def __init__(self, path: Path, **settings: Any) -> None:
        super().__init__(path.parent, path.stem, enable_version_counter=False, **settings)
        self._path = path

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, also for a run that was moved or copied; a new run has none."""
        if not self._path.exists():
            return
        best = state_dict["best_model_path"] and str(Path(str(self.dirpath)) / self._path.name)
        scores = dict.fromkeys([best] * bool(state_dict.get("best_k_models")), state_dict["best_model_score"])
        paths = {"dirpath": self.dirpath, "best_model_path": best, "kth_best_model_path": best if scores else ""}
        super().load_state_dict({**state_dict, **paths, "best_k_models": scores, "last_model_path": ""})


class BestCheckpoint(_RunCheckpoint):
    """Writes `checkpoints/best.ckpt`; without a validation to choose by, that of the last epoch.

    Args:
        run: The run.
        monitor: Metric that selects the checkpoint; None selects the latest.
        mode: Whether a small (`min`) or a large (`max`) value is better.
    """

    def __init__(self, run: Run, monitor: str | None, mode: str) -> None:
        super().__init__(run.checkpoint("best"), monitor=monitor, mode=mode)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint if there was no validation: tests, adaptation and refinement read it by name."""
        super().on_train_end(trainer, pl_module)
        if self.best_model_path or not trainer.global_step:
            return
        if trainer.is_global_zero:
            often = f"trainer.check_val_every_n_epoch {trainer.check_val_every_n_epoch}"
            print(
                f"no validation has chosen a checkpoint (trainer.max_epochs {trainer.max_epochs}, {often}): "
                f"{self._path.name} is the last one",
                flush=True,
            )
        # in the folder of the first process, which Lightning gives to all: another may have named its run otherwise
        path = Path(str(self.dirpath)) / self._path.name
        trainer.save_checkpoint(path)
        self.best_model_path = str(path)


class LastCheckpoint(_RunCheckpoint):
    """Writes `checkpoints/last.ckpt` at the end of every epoch.

    With `save_last=True`, Lightning 2.6 writes it only when the best checkpoint changes.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run.checkpoint("last"), save_on_train_epoch_end=True)


class ExactResume(Callback):
    """Makes the training steps of a resumed run equal to those of an uninterrupted one.

    The random numbers of every epoch are seeded by seed, epoch and rank. `ReduceLROnPlateau` is stepped by Lightning
    after the last hook of an epoch, so that a checkpoint of that epoch lacks the step: its metric is stored in the
    checkpoint, and the step is repeated on resumption.

    The data loader must have a separate `generator`, not the global one, and an order that depends on seed and epoch.

    Args:
        seed: Seed of the run; False does not seed the random numbers.
    """

    def __init__(self, seed: int | bool) -> None:
        self._seed = seed
        self._missed: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed the random numbers of the epoch."""
        self._seed_epoch(trainer)

    def _seed_epoch(self, trainer: Trainer) -> None:
        if self._seed is False:
            return
        sequence = np.random.SeedSequence([int(self._seed), trainer.current_epoch, trainer.global_rank])
        for_torch, for_numpy, for_python = (int(word) for word in sequence.generate_state(3))
        torch.manual_seed(for_torch)
        np.random.seed(for_numpy)  # noqa: NPY002 - third-party augmentations draw from the global stream
        random.seed(for_python)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the metrics of the next step of plateau schedulers."""
        progress = trainer.fit_loop.epoch_progress.current.state_dict()
        if progress["processed"] > progress["completed"]:
            checkpoint["plateau_metrics"] = {
                key: float(trainer.callback_metrics[key])
                for key in _plateau_monitors(trainer)
                if key in trainer.callback_metrics
            }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read the stored metrics."""
        self._missed = checkpoint.get("plateau_metrics", {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Repeat the step of plateau schedulers; seed the rest of an epoch, of which Lightning calls no start."""
        self._seed_epoch(trainer)
        for config in trainer.lr_scheduler_configs:
            if config.reduce_on_plateau and config.monitor in self._missed:
                pl_module.lr_scheduler_step(config.scheduler, self._missed[config.monitor])
        self._missed = {}


def _plateau_monitors(trainer: Trainer) -> list[str]:
    return [
        config.monitor
        for config in trainer.lr_scheduler_configs
        if config.reduce_on_plateau
        and config.monitor is not None
        and config.interval == "epoch"
        and (trainer.current_epoch + 1) % config.frequency == 0
    ]


def first_step_after(checkpoint: dict[str, Any]) -> int | None:
    """Return the first step that a run resumed from a checkpoint logs, None if unknown."""
    step = checkpoint.get("global_step")
    return step if isinstance(step, int) else None
