"""The one exception for input a user can mend, and the checks of numbers that raise it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

#: how a number below zero begins on a command line, where argparse takes -1e-3 for an option
NEGATIVE_NUMBER = re.compile(r"-(\.?\d|inf|nan)")


class InputError(ValueError):
    """Says what in the user's input cannot be used, and what to do about it, in one line.

    The command line prints the message alone and leaves with status 2; in Python it is a `ValueError`.
    """


class DatasetNotFoundError(InputError, FileNotFoundError):
    """Names the data that is missing, the place that was searched and the argument to change."""


def check_positive(owner: str, **values: float | None) -> None:
    """Raise an `InputError` that names the first value that is not above zero; None is no value."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise InputError(f"{owner}: {name} must be positive, got {value}")


def check_not_negative(owner: str, **values: float | None) -> None:
    """Raise an `InputError` that names the first value below zero, or NaN; None is no value."""
    for name, value in values.items():
        if value is not None and not value >= 0:
            raise InputError(f"{owner}: {name} must not be negative, got {value}")


def check_whole(owner: str, **values: Any) -> None:
    """Raise an `InputError` that names the first value that is not a whole number of 1 or more."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise InputError(f"{owner}: {name} must be a whole number of 1 or more, got {value!r}")


def check_finite(owner: str, **values: Any) -> None:
    """Raise an `InputError` that names the first value that is not a finite number; None is no value."""
    for name, value in values.items():
        if value is not None and not _is_finite(value):
            raise InputError(f"{owner}: {name} must be a finite number, got {value!r}")


def finite_numbers(name: str, values: Any, *parts: str) -> tuple[float, ...]:
    """Return finite numbers, given as any sequence, as a tuple.

    Args:
        name: What they are called.
        values: The numbers.
        *parts: What each of them is.

    Raises:
        InputError: They are no sequence, of another length, no numbers, or not finite.
    """
    found = list(values) if hasattr(values, "__iter__") else []
    found = [value.item() if hasattr(value, "item") else value for value in found]  # of tensors and arrays
    if len(found) != len(parts) or not all(map(_is_finite, found)):
        raise InputError(f"{name} must be ({', '.join(parts)}), {len(parts)} finite numbers, got {values!r}")
    return tuple(float(value) for value in found)


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


@contextmanager
def needs(extra: str, purpose: str) -> Iterator[None]:
    """Import inside it what only one of the extras of this package installs.

    Args:
        extra: Name of the extra.
        purpose: What needs it, the beginning of the message.

    Raises:
        InputError: It is not installed; the message says how to install it.
    """
    try:
        yield
    except ImportError as error:
        raise InputError(f"{purpose}: pip install 'csi-foundation[{extra}]' ({error})") from error


def refuse_pointer(file: Path) -> None:
    """Say so where a file is not there but for the pointer that Git LFS leaves in its place.

    Raises:
        InputError: It is a pointer.
    """
    if file.is_file():
        with file.open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                raise InputError(f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` where it lies")


_POINTER = b"version https://git-lfs.github.com/spec/"
