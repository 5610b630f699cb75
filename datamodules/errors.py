"""The exception for invalid user input, and functions that check values and raise it."""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args

_FULL = {errno.ENOSPC, errno.EDQUOT}
#: errors of the file system that the user can resolve
_OF_THE_DISK = _FULL | {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
}  # fmt: skip
#: complex values that a codebook or the channel of a link may have
_MOST = 2**27
#: negative numbers on a command line, of which argparse would take -1e-3 as an option
NEGATIVE_NUMBER = re.compile(r"-(\.?\d|inf|nan)")


class InputError(ValueError):
    """Invalid user input. The message is one line with the key, file or value at fault and the remedy.

    The command line prints the message without traceback and exits with status 2.
    """


class DatasetNotFoundError(InputError, FileNotFoundError):
    """Missing data. The message names the data, the folder that was searched and the argument to change."""


def remedied(error: BaseException) -> str | None:
    """Return the message, one line, of invalid input or of a file or disk that cannot be used; None for a bug."""
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    if isinstance(error, FileNotFoundError):
        return text if error.filename is None else f"{error.filename} does not exist"
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        # what is written to a full disk has no name
        if error.filename is not None or error.errno in _FULL:
            where = "" if error.filename is None else f"{error.filename}: "
            return f"{where}{error.strerror}: give another folder, or free the disk"
    return None


def shown(names: Sequence[str]) -> str:
    """Return a list of at most ten names, for a message."""
    return (", ".join(names[:10]) or "none") + f" and {len(names) - 10} more" * (len(names) > 10)


def check_positive(owner: str, **values: float | None) -> None:
    """Raise an `InputError` for the first value that is not positive, or infinite; None is ignored."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{owner}: {name} must be positive{' and finite' * (value == math.inf)}, got {value}")


def check_not_negative(owner: str, **values: float | None) -> None:
    """Raise an `InputError` for the first value that is negative, NaN or infinite; None is ignored."""
    for name, value in values.items():
        if value is not None and not 0 <= value < math.inf:
            said = "be infinite" if value == math.inf else "be negative"
            raise InputError(f"{owner}: {name} must not {said}, got {value}")


def check_whole(owner: str, **values: Any) -> None:
    """Raise an `InputError` for the first value that is no integer of at least 1."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise InputError(f"{owner}: {name} must be a whole number of 1 or more, got {value!r}")


def check_size(values: int, what: str) -> None:
    """Raise an `InputError` if complex values, which are held at once, take more than 1 GiB."""
    if values > _MOST:
        raise InputError(f"{what} would take {8 * values / 2**30:,.0f} GiB: ask for less")


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise an `InputError` if the value is none of the values of a `Literal`."""
    known = get_args(choices)
    if value not in known:
        raise InputError(f"{name} must be one of {', '.join(map(str, known))}, got {value}")


def check_finite(owner: str, **values: Any) -> None:
    """Raise an `InputError` for the first value that is no finite number; None is ignored."""
    for name, value in values.items():
        if value is not None and not _is_finite(value):
            raise InputError(f"{owner}: {name} must be a finite number, got {value!r}")


def finite_numbers(name: str, values: Any, *parts: str) -> tuple[float, ...]:
    """Return finite numbers, given as any sequence, as a tuple.

    Args:
        name: Name of the argument, for the message.
        values: The numbers.
        *parts: Name of each number, for the message.

    Raises:
        InputError: The values are no sequence of that many finite numbers.
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
    """Context of imports of optional dependencies, which an extra of the package installs.

    Args:
        extra: Name of the extra.
        purpose: Feature that needs it, the beginning of the message.

    Raises:
        InputError: The extra is not installed; the message has the command that installs it.
    """
    try:
        yield
    except ImportError as error:
        raise InputError(f"{purpose}: pip install 'csi-foundation[{extra}]' ({error})") from error


def refuse_pointer(file: Path) -> None:
    """Check that a file is not a pointer of Git LFS.

    Raises:
        InputError: It is a pointer.
    """
    if file.is_file():
        with file.open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                raise InputError(f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` where it lies")


_POINTER = b"version https://git-lfs.github.com/spec/"
