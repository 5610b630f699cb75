"""Checks of settings of the trainer, which Lightning takes as they are."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace

from datamodules.errors import InputError

#: largest seed that NumPy takes
_SEED = 2**32 - 1
#: settings that leave a side without a batch, and what is lost, by what is done
_NOTHING = {
    "fit": (("max_epochs", "max_steps", "limit_train_batches"), "trains nothing"),
    "validate": (("limit_val_batches",), "validates nothing"),
    "test": (("limit_test_batches",), "tests nothing"),
    "predict": (("limit_predict_batches",), "predicts nothing"),
}
#: settings with their least values, below which Lightning divides by zero or ascends the gradient
_LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
}


def check_settings(config: Any, command: str) -> None:
    """Check seed and trainer of a command.

    Args:
        config: Parsed settings of the command.
        command: `fit`, `validate`, `test` or `predict`.

    Raises:
        InputError: A number is out of range, or the command would have no result.
    """
    seed = config.get("seed_everything")
    if seed is not None and not 0 <= seed <= _SEED:
        raise InputError(f"seed_everything must be 0 to {_SEED}, got {seed}")
    trainer = config.trainer
    if not isinstance(trainer, Namespace):
        raise InputError(f"'trainer' must be a mapping or a file, got '{trainer}'")
    for key, least in _LEAST.items():
        value = trainer.get(key)
        if value is not None and not value >= least:
            raise InputError(f"trainer.{key} must be {least} or more, got {value}")
    if trainer.fast_dev_run:
        return
    for each in (command, *["test"] * bool(command == "fit" and config.get("then_test"))):
        keys, lost = _NOTHING[each]
        if given := [key for key in keys if trainer.get(key) == 0]:
            raise InputError(f"trainer.{given[0]} 0 {lost}: give 1 or more")
