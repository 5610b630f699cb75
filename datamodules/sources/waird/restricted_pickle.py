"""Reads object arrays in .npy files without executing code in them.

WAIR-D's files contain dicts of arrays, pickled by NumPy under Python 2. Unpickling calls functions named in the file,
which is unsafe for files of unknown origin. Allowing NumPy's own functions is not sufficient: `ndarray.__setstate__`
does not validate its input, and a list too short for its shape crashes the process. The few names that such files need
are therefore mapped to the classes below, which validate their input and build the arrays.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from datamodules.errors import DatasetNotFoundError, InputError, refuse_pointer

#: dtypes of numbers, booleans, text and objects; no records, dates or nested types
_DTYPE = re.compile(r"[<>=|]?(O8?|[biufcSU]\d{0,9})")
#: nesting in WAIR-D has depth four: an array of a dict of dicts of arrays
_MAX_DEPTH = 16


def load_npy(file: Path) -> Any:
    """Read a .npy file that may contain Python objects, without calling functions named in it.

    Args:
        file: A .npy file of plain numbers, or of lists, dicts and arrays pickled by Python 2 or 3.

    Returns:
        The array, or the object itself if the file contains a single one.

    Raises:
        DatasetNotFoundError: There is no such file.
        InputError: The file is damaged, is not a .npy file, or names a function to call; the message names it.
    """
    refuse_pointer(file)
    try:
        with file.open("rb") as stream:
            shape, fortran, dtype = _header(stream)
            if not dtype.hasobject:
                return _numbers(shape, dtype, fortran, stream.read())
            value = _plain(_ArrayUnpickler(stream, encoding="latin1").load())
        if not isinstance(value, np.ndarray):
            raise ValueError("it holds no array")
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"{file} is missing: the download or its unpacking is incomplete") from error
    except _RefusedError as error:
        raise InputError(
            f"{file} is refused: it would run {error} when read, which no array data needs; delete it, and do not load "
            "it with allow_pickle"
        ) from error
    # damaged pickles may raise exceptions of nearly any type, as documented
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{file} is damaged ({reason}): fetch it again") from error
    return value.item() if value.ndim == 0 else value


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of a .npy file: shape, Fortran order, dtype."""
    version = npy.read_magic(stream)  # type: ignore[no-untyped-call]
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the .npy format is unknown")
    with warnings.catch_warnings():
        # headers written by Python 2 may contain 150L for 150, of which NumPy warns
        warnings.simplefilter("ignore", UserWarning)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(stream)  # type: ignore[no-untyped-call]
        return shape, fortran, dtype


class _RefusedError(pickle.UnpicklingError):
    """The file names a function or class that is not allowed."""


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numbers, text, lists and dicts, with stand-ins for arrays."""

    def find_class(self, module: str, name: str) -> type[_StandIn]:
        """Return the stand-in of a class or function named in the file."""
        try:
            # the `numpy.core` of older NumPy is `numpy._core` in NumPy 2
            return _STAND_INS[module.replace("numpy.core.", "numpy._core.", 1), name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None


class _StandIn:
    """Base of the classes that a file may call; refuses to set attributes by `__setstate__`."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise ValueError(f"unexpected pickle state for {type(self).__name__}")


class _Bytes(_StandIn):
    """`_codecs.encode(text, "latin1")`, the form of bytes pickled by Python 3 for Python 2."""

    __slots__ = ()

    def __new__(cls, text: str, encoding: str) -> bytes:  # type: ignore[misc]
        if encoding != "latin1":
            raise ValueError(f"unexpected encoding {encoding!r}")
        return text.encode("latin1")


class _DType(_StandIn):
    """`numpy.dtype(code, align, copy)`, whose state contains the byte order."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, *_: object) -> None:
        if not _DTYPE.fullmatch(code):
            raise ValueError(f"unexpected dtype {code!r}")
        self.dtype = np.dtype(code.replace("O8", "O"))

    def __setstate__(self, state: Any) -> None:
        _, order, *structure = state
        if any(part is not None for part in structure[:3]):
            raise ValueError("unexpected record dtype")
        self.dtype = self.dtype.newbyteorder(order)


class _Scalar(_StandIn):
    """`numpy.core.multiarray.scalar(dtype, bytes)`."""

    __slots__ = ()

    def __new__(cls, dtype: _DType, data: bytes | str) -> Any:
        return _numbers((), dtype.dtype, False, data)[()]


class _Array(_StandIn):
    """`numpy.ndarray`, empty until its state is set; `_plain` replaces it by the array."""

    __slots__ = ("value",)

    value: NDArray[Any]

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not dtype.dtype.hasobject:
            self.value = _numbers(shape, dtype.dtype, fortran, data)
        elif fortran:
            self.value = _objects(data, shape[::-1]).T
        else:
            self.value = _objects(data, shape)


class _Reconstruct(_StandIn):
    """`numpy.core.multiarray._reconstruct(ndarray, (0,), "b")`."""

    __slots__ = ()

    def __new__(cls, kind: type, *_: object) -> _Array:  # type: ignore[misc]
        if kind is not _Array:
            raise ValueError("unexpected array type")
        return _Array()


_STAND_INS: dict[tuple[str, str], type[_StandIn]] = {
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "scalar"): _Scalar,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _Bytes,
}


def _numbers(shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool, data: bytes | str) -> NDArray[Any]:
    """Build a numeric array from its bytes, which Python 2 wrote as text."""
    raw = data.encode("latin1") if isinstance(data, str) else data
    if dtype.hasobject or len(raw) != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array's shape and contents disagree")
    return np.ndarray(shape, dtype, buffer=raw, order="F" if fortran else "C")


def _plain(value: Any, depth: int = 0, done: dict[int, tuple[Any, Any]] | None = None) -> Any:
    """Replace the stand-ins within lists, dicts and object arrays by their arrays.

    Repeated references are converted once, as a small file could otherwise expand without bound. `done` also keeps the
    originals, so that their ids are not reused.
    """
    if not isinstance(value, dict | list | tuple | _Array):
        return value
    done = {} if done is None else done
    if id(value) in done:
        return done[id(value)][1]
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deep")
    result: Any
    if isinstance(value, dict):
        result = {key: _plain(item, depth + 1, done) for key, item in value.items()}
    elif isinstance(value, _Array):
        result = value.value
        if result.dtype.hasobject:
            items = [_plain(item, depth + 1, done) for item in result.flat]
            result = _objects(items, result.shape)
    else:
        result = [_plain(item, depth + 1, done) for item in value]
    done[id(value)] = value, result
    return result


def _objects(items: list[Any], shape: tuple[int, ...]) -> NDArray[np.object_]:
    """Build an array whose elements are exactly `items`, lists included; `reshape` checks their number."""
    array = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        array[index] = item
    return array.reshape(shape)
