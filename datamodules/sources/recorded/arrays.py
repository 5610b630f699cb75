"""Numeric arrays from .npy, .npz and .mat files, without unpickling, so that no code in a file is executed."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DatasetNotFoundError, InputError, refuse_pointer

_SUFFIXES = (".npy", ".npz", ".mat")


def locate(source: str, name: str) -> tuple[str, str, bool]:
    """Return the file of an array, its name there, and whether a single array in that file may have another name."""
    if Path(name).suffix in _SUFFIXES:
        return name, Path(name).stem, True
    return source, name, False


def load_array(path: str, name: str, alone: bool = False) -> NDArray[Any]:
    """Read one array of numbers from a file.

    Args:
        path: A .npy, .npz or .mat of any version.
        name: Its name in the file; `Struct.field` for a field of a MATLAB struct. Elements of struct arrays and cell
            arrays are stacked along a new first axis.
        alone: Whether the only array of a file matches any name.

    Raises:
        DatasetNotFoundError: There is no such file.
        InputError: The file cannot be read, or has no such numeric array; the message lists its arrays.
    """
    file = Path(path)
    if not file.is_file():
        raise DatasetNotFoundError(f"{path} does not exist")
    reader = {".npy": _read_npy, ".npz": _read_npz, ".mat": _read_mat}.get(file.suffix)
    if reader is None:
        raise InputError(f"{path} is neither .npy, .npz nor .mat")
    refuse_pointer(file)
    try:
        array = reader(file, name, alone)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        if "pickle" in str(error):
            raise InputError(f"{path} holds Python objects, or no array at all: save plain numbers") from error
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
        raise InputError(f"{name!r} in {path} holds no array of numbers: save plain numbers")
    return array


def _read_npy(file: Path, name: str, alone: bool) -> NDArray[Any]:
    if not alone:
        raise InputError(f"{file} holds one array: give the path of another file for {name!r}")
    array: NDArray[Any] = np.load(file, allow_pickle=False)
    return array


def _read_npz(file: Path, name: str, alone: bool) -> NDArray[Any]:
    with np.load(file, allow_pickle=False) as arrays:
        array: NDArray[Any] = arrays[_choose(file, name, list(arrays.files), list(arrays.files), alone)]
    return array


def _choose(file: Path, name: str, names: Sequence[str], shown: Sequence[str], alone: bool) -> str:
    """Return the array's name among `names`; error messages list `shown`, the names with their fields."""
    if name in names:
        return name
    if alone and len(names) == 1:
        return names[0]
    raise InputError(f"{file} holds no {name!r}, but {', '.join(shown) or 'nothing'}")


# --- MATLAB


def _read_mat(file: Path, name: str, alone: bool) -> Any:
    with file.open("rb") as stream:
        head = stream.read(128)
    if head[:8] == b"\x89HDF\r\n\x1a\n" or b"MATLAB 7.3" in head:
        return _read_hdf5(file, name, alone)
    from scipy.io import loadmat, whosmat

    root, *path = name.split(".")
    try:
        kinds = {entry[0]: entry[2] for entry in whosmat(file)}
        structs = [key for key, kind in kinds.items() if kind in ("struct", "cell")]
        if root not in kinds or (root in structs and not path):
            opened = loadmat(file, variable_names=structs)
            shown = [_shown(key, _fields(opened[key])) if key in structs else key for key in kinds]
            plain = [key for key in kinds if key not in structs or kinds[key] == "cell"]
            root = _choose(file, name, plain, shown, alone and len(kinds) == 1)
        value = loadmat(file, variable_names=[root])[root]
    except InputError:
        raise
    except Exception as error:  # damaged files raise exceptions of many types in SciPy
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    for depth, field in enumerate(path):
        names = _fields(value)
        _choose(file, field, names, [_shown(".".join((root, *path[:depth])), names)], False)
        value = _stack(file, name, [_one(element)[field] for element in value.ravel()])
    if isinstance(value, np.ndarray) and value.dtype == object and not _fields(value):
        value = _stack(file, name, list(value.ravel()))
    return value


def _shown(name: str, fields: Sequence[str]) -> str:
    return f"{name} with the fields {', '.join(f'{name}.{field}' for field in fields)}" if fields else name


def _one(element: Any) -> Any:
    """Return the struct in a 1 x 1 array, as cells contain them."""
    return element.ravel()[0] if isinstance(element, np.ndarray) else element


def _fields(value: Any) -> tuple[str, ...]:
    """Return the field names of a struct array or a cell array of structs; empty for other arrays."""
    if isinstance(value, np.ndarray) and value.dtype == object and value.size:
        value = value.ravel()[0]
    return tuple(value.dtype.names or ()) if isinstance(value, np.ndarray | np.void) else ()


def _stack(file: Path, name: str, values: list[Any]) -> Any:
    """Return a single value, or several stacked along a new first axis."""
    if len(values) == 1:
        return values[0]
    if len({np.shape(value) for value in values}) > 1:
        raise InputError(f"the elements of {name!r} in {file} have different shapes: save one array of numbers")
    if any(_fields(value) for value in values):
        return np.array([_one(value) for value in values], dtype=values[0].dtype)
    stacked: NDArray[Any] = np.stack(values)
    return stacked.squeeze(tuple(range(1, stacked.ndim))) if stacked[0].size == 1 else stacked


def _read_hdf5(file: Path, name: str, alone: bool) -> Any:
    """Read an array from a MATLAB 7.3 file, whose axes are in reverse order in HDF5."""
    import h5py

    def names_of(group: Any) -> list[str]:
        return [key for key in group if not key.startswith("#")]

    def numbers(item: Any) -> Any:
        if item.dtype == h5py.ref_dtype:  # a cell array, or a field of a struct array
            return _stack(file, name, [numbers(opened[reference]) for reference in item[()].ravel()])
        value = item[()]
        if value.dtype.names == ("real", "imag"):
            value = value["real"] + 1j * value["imag"]
        return value.T

    with h5py.File(file, "r") as opened:
        group: Any = opened
        root, *path = name.split(".")
        structs = [key for key in names_of(opened) if isinstance(opened[key], h5py.Group)]
        if root not in opened or (root in structs and not path):
            shown = [_shown(key, names_of(opened[key]) if key in structs else ()) for key in names_of(opened)]
            plain = [key for key in names_of(opened) if key not in structs]
            root = _choose(file, name, plain, shown, alone and not structs)
        group = opened[root]
        for depth, field in enumerate(path):
            names = names_of(group) if isinstance(group, h5py.Group) else []
            group = group[_choose(file, field, names, [_shown(".".join((root, *path[:depth])), names)], False)]
        return numbers(group) if isinstance(group, h5py.Dataset) else None
