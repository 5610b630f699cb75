"""The search space: keys of a YAML with their ranges, and the metric to optimise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from datamodules.errors import InputError
from datamodules.yaml_file import read_yaml

if TYPE_CHECKING:
    from optuna import Trial

Value = bool | int | float | str | None
Direction = Literal["minimize", "maximize"]
_SCALAR = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Range:
    """Range of the values of one key.

    Attributes:
        choices: List of values, in place of a range.
        low: Smallest value.
        high: Largest value.
        step: Distance between values; by default 1 for integers, and none for others.
        log: Whether values are uniform in their logarithm.
    """

    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False

    @classmethod
    def of(cls, where: str, given: Any) -> Range:
        """Read `{low: , high: , step: , log: }` or `{choices: [...]}`.

        Args:
            where: File and key, the start of error messages.
            given: The value in the YAML.

        Raises:
            InputError: The value is not a valid range.
        """
        if not isinstance(given, dict) or not (given.keys() == {"choices"} or {"low", "high"} <= given.keys()):
            raise InputError(f"{where} must be {{low: 1.0e-4, high: 1.0e-2, log: true}} or {{choices: [32, 64]}}")
        if "choices" in given:
            choices = given["choices"]
            if not isinstance(choices, list) or not choices or not all(isinstance(c, _SCALAR) for c in choices):
                raise InputError(f"{where}.choices must be a list of numbers, words, true, false or null")
            return cls(choices=tuple(choices))
        if unknown := given.keys() - {"low", "high", "step", "log"}:
            raise InputError(f"{where}.{min(unknown)} is unknown: must be one of low, high, step, log")
        low, high = (_number(f"{where}.{name}", given[name]) for name in ("low", "high"))
        step = None if given.get("step") is None else _number(f"{where}.step", given["step"])
        log = given.get("log", False)
        if not isinstance(log, bool):
            raise InputError(f"{where}.log must be true or false, got {log!r}")
        if not low < high or (log and low <= 0) or (step is not None and not step > 0):
            raise InputError(f"{where} must have low < high, above zero with log, and step above zero, got {given}")
        if log and step is not None:
            raise InputError(f"{where} has both log and step: leave one out")
        return cls(low=low, high=high, step=step, log=log)

    def suggest(self, trial: Trial, key: str) -> Value:
        """Draw the value of a trial; a value drawn earlier is kept."""
        if self.choices:
            return trial.suggest_categorical(key, self.choices)
        if all(isinstance(number, int) for number in (self.low, self.high, self.step or 1)):
            return trial.suggest_int(key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)

    @property
    def first(self) -> Value:
        """Return a valid value."""
        return self.choices[0] if self.choices else self.low


def _number(where: str, given: Any) -> float:
    """Return a finite number, integers as int; YAML reads 1e-3 as text."""
    if isinstance(given, str):
        try:
            given = float(given)
        except ValueError:
            pass
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise InputError(f"{where} must be a finite number, got {given!r}")
    return given


@dataclass(frozen=True)
class Search:
    """A YAML of `experiments/tune/`.

    Attributes:
        name: Name of the experiment of its trials: `tune_` and the name of the file.
        metric: The metric to optimise, as logged in validation: `val/...`.
        direction: `minimize` or `maximize`.
        args: Arguments of `lightning fit` of every trial.
        keys: Ranges by key, dotted as on the command line.
    """

    name: str
    metric: str
    direction: Direction
    args: list[str]
    keys: dict[str, Range]

    @classmethod
    def load(cls, file: Path) -> Search:
        """Read a search from a YAML file.

        Raises:
            InputError: There is no such file, or its content is invalid.
        """
        given = read_yaml(file)
        known = ("metric", "direction", "args", "keys")
        if unknown := [key for key in given if key not in known]:
            raise InputError(f"{file}: unknown key '{unknown[0]}': must be one of {', '.join(known)}")
        if missing := [key for key in known if key not in given]:
            raise InputError(f"{file}: '{missing[0]}' is missing")
        metric, direction, args, keys = (given[key] for key in known)
        if not str(metric).startswith("val/"):
            raise InputError(
                f"{file}: metric must be one of validation, such as val/loss, got '{metric}': what is tuned by the "
                "test side is not tested any more"
            )
        if direction not in get_args(Direction):
            raise InputError(f"{file}: direction must be minimize or maximize, got '{direction}'")
        if not isinstance(args, list) or not isinstance(keys, dict) or not keys:
            raise InputError(f"{file}: args must be a list of words, and keys ranges by key")
        ranges = {str(key): Range.of(f"{file}: keys.{key}", each) for key, each in keys.items()}
        return cls(f"tune_{file.stem}", str(metric), direction, [str(arg) for arg in args], ranges)

    def suggest(self, trial: Trial) -> dict[str, Value]:
        """Draw the values of a trial by key."""
        return {key: each.suggest(trial, key) for key, each in self.keys.items()}

    @property
    def asked(self) -> dict[str, Any]:
        """Return the settings of the search as plain data, which identify trials that are comparable."""
        keys = {key: [list(r.choices), r.low, r.high, r.step, r.log] for key, r in self.keys.items()}
        return {"metric": self.metric, "direction": self.direction, "args": self.args, "keys": keys}


def assignments(values: Mapping[str, Value]) -> list[str]:
    """Return values by key as command-line arguments."""
    words: dict[Any, str] = {None: "null", True: "true", False: "false"}
    return [
        f"--{key}={words[value] if value is None or isinstance(value, bool) else value}"
        for key, value in values.items()
    ]
