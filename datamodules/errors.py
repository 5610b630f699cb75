"""The one exception for input a user can mend, and the checks of numbers that raise it."""

from __future__ import annotations


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
