"""The parser of `lightning`: its types, its files, its errors, and checks of what Lightning takes as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Union, get_args

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from datamodules.config_errors import with_known
from datamodules.errors import NEGATIVE_NUMBER, InputError
from foundation.names import current_paths

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
_load_yaml = get_loader("yaml")


def _load_current(text: str) -> Any:
    """Load YAML, with class paths of older releases replaced by current ones."""
    return current_paths(_load_yaml(text))


set_loader("yaml", _load_current, (yaml.YAMLError,))


class Parser(LightningArgumentParser):
    """Parser that raises an `InputError` of one line, and accepts no abbreviated options.

    This also holds for the parsers of nested classes, which are of this class. Numbers such as -1e-3 are values;
    argparse would accept -0.001 alone.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self._negative_number_matcher = NEGATIVE_NUMBER

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:  # type: ignore[override]
        """Parse arguments; of a nested class also a null, which jsonargparse passes on as Python's None."""
        if args is not None and not self.exit_on_error:
            args = [f"{arg.removesuffix('=None')}=null" if arg.endswith("=None") else arg for arg in args]
        return super().parse_args(args, *more, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise an `InputError`."""
        if not self.exit_on_error:
            super().error(with_known(message, self), ex)  # the parser of one nested class
        raise ParserError(message, getattr(ex, "subcommand_parser", None) or self)


class ParserError(Exception):
    """Error of the command line, with the parser that knows its keys."""

    def __init__(self, message: str, parser: Parser) -> None:
        super().__init__(message)
        self.parser = parser


def whole_numbers_first(parser: LightningArgumentParser) -> None:
    """Make a whole number an integer where an option takes integers and floats, such as a number or a share of batches.

    Python remembers `Union[float, int]`, of any other library, as equal to Lightning's `Union[int, float]`:
    --trainer.limit_train_batches 1 would be 1.0, all batches instead of one.
    """
    for action in parser._actions:
        kinds = get_args(getattr(action, "_typehint", None))
        if {int, float} <= set(kinds):
            ordered = tuple(sorted(kinds, key=lambda kind: kind is not int))
            action._typehint = Union[ordered]  # type: ignore[attr-defined] # noqa: UP007


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
