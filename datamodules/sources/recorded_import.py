"""From .npy, .npz and .mat to the layout of `Recorded`. Nothing is unpickled, so nothing in a file can be run."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import einops
import numpy as np
import torch
from safetensors.torch import save_file

from datamodules.errors import DatasetNotFoundError, InputError, refuse_pointer
from datamodules.sources.recorded_file import read_recording

_LETTERS = "UNRTKC"


def import_recording(
    source: str,
    out: str,
    *,
    axes: str,
    carrier_frequency: float,
    bandwidth: float,
    csi: str = "csi",
    position: str | None = None,
    los: str | None = None,
    timestamps: str | None = None,
    interval: float | None = None,
    bs_rows: int | None = None,
    bs_cols: int | None = None,
    ue_rows: int | None = None,
    ue_cols: int | None = None,
    bs_position: list[float] | None = None,
    area: str | None = None,
    place: str | None = None,
) -> Path:
    """Write a recording that `Recorded` reads, whole or not at all.

    Args:
        source: File with the CSI: .npy, .npz, or .mat up to version 7.
        out: The .safetensors file to write.
        axes: Order of the axes of the CSI, a letter each: U links, N snapshots, R user antennas, T base-station
            antennas, K subcarriers, C a pair (real, imaginary). R and T may be missing, for a single antenna. Axes that
            were merged stand in parentheses, the slower first: `U (R T) K`.
        carrier_frequency: Carrier [Hz], at subcarrier 0.
        bandwidth: Bandwidth [Hz] of the K subcarriers.
        csi: Name of the CSI in a .npz or .mat with several arrays.
        position: User positions (U, 3) or (U, 2) [m]: a name in `source`, or the path of another such file.
        los: Line of sight (U,), likewise.
        timestamps: Times (U,) or (U, N) [s], likewise.
        interval: Time between snapshots [s].
        bs_rows: Rows of the base-station array.
        bs_cols: Columns of the base-station array.
        ue_rows: Rows of the user array.
        ue_cols: Columns of the user array.
        bs_position: Base station [x, y, z] [m].
        area: Name that files with the same users share.
        place: Name of the place or campaign.

    Returns:
        The file written.

    Raises:
        DatasetNotFoundError: There is no such file.
        InputError: A file or an argument cannot be used; nothing is written.
    """
    counts = {"r": (ue_rows or 0) * (ue_cols or 0), "t": (bs_rows or 0) * (bs_cols or 0)}
    tensors = {"csi": _arrange(_load(source, csi, alone=True), axes, counts)}
    if position is not None:
        value = _load(*_locate(source, position))
        # on the ground where there is no height
        tensors["position"] = np.pad(value, ((0, 0), (0, 1))) if value.ndim == 2 and value.shape[1] == 2 else value
    if los is not None:
        tensors["los"] = _whole(_load(*_locate(source, los)), los)
    if timestamps is not None:
        value = _load(*_locate(source, timestamps)).astype(np.float64)
        # MATLAB knows no vectors
        tensors["timestamps"] = value.reshape(-1) if value.ndim == 2 and 1 in value.shape else value
    facts = {
        "carrier_frequency": carrier_frequency, "bandwidth": bandwidth, "interval": interval, "bs_rows": bs_rows,
        "bs_cols": bs_cols, "ue_rows": ue_rows, "ue_cols": ue_cols, "bs_position": bs_position,
    }  # fmt: skip
    metadata = {key: json.dumps(value) for key, value in facts.items() if value is not None}
    metadata |= {key: value for key, value in (("area", area), ("place", place)) if value is not None}

    target = Path(out)
    if target.suffix != ".safetensors":
        raise InputError(f"out must end in .safetensors, got {out}")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        contents = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in tensors.items()}
        save_file(contents, temporary, metadata=metadata)
        temporary.chmod(target.parent.stat().st_mode & 0o666)  # safetensors writes for its owner alone
        read_recording(temporary, source)
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _locate(source: str, name: str) -> tuple[str, str, bool]:
    """Return where an array lies: its file, its name there, and whether it may have another name if it is alone."""
    if Path(name).suffix in (".npy", ".npz", ".mat"):
        return name, Path(name).stem, True
    return source, name, False


def _load(path: str, name: str, alone: bool = False) -> np.ndarray[Any, Any]:
    """Read one array of numbers from a file; one that is `alone` in its file needs no name."""
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


def _read_npy(file: Path, name: str, alone: bool) -> np.ndarray[Any, Any]:
    if not alone:
        raise InputError(f"{file} holds one array: give the path of another file for {name!r}")
    array: np.ndarray[Any, Any] = np.load(file, allow_pickle=False)
    return array


def _read_npz(file: Path, name: str, alone: bool) -> np.ndarray[Any, Any]:
    with np.load(file, allow_pickle=False) as arrays:
        array: np.ndarray[Any, Any] = arrays[_choose(file, name, list(arrays.files), alone)]
    return array


def _read_mat(file: Path, name: str, alone: bool) -> np.ndarray[Any, Any]:
    from scipy.io import loadmat, whosmat

    try:
        chosen = _choose(file, name, [entry[0] for entry in whosmat(file)], alone)
        array: np.ndarray[Any, Any] = loadmat(file, variable_names=[chosen])[chosen]
    except NotImplementedError as error:
        raise InputError(f"{file} is of MATLAB version 7.3: save it with -v7, or as .npz") from error
    except InputError:
        raise
    except Exception as error:  # a damaged file fails in any of SciPy's steps, each with an exception of its own
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    return array


def _choose(file: Path, name: str, names: list[str], alone: bool) -> str:
    if name in names:
        return name
    if alone and len(names) == 1:
        return names[0]
    raise InputError(f"{file} holds no {name!r}, but {', '.join(names) or 'nothing'}")


def _whole(value: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """Return flags (U,) as integers; MATLAB keeps them as floating-point columns."""
    flat = value.reshape(-1)
    if flat.dtype.kind == "c" or not np.isin(flat, (-1, 0, 1)).all():
        raise InputError(f"los ({name}) must be -1, 0 or 1 for each link")
    return flat.astype(np.int8)


def _arrange(array: np.ndarray[Any, Any], axes: str, counts: dict[str, int]) -> np.ndarray[Any, Any]:
    """Bring CSI to (U, R, T, K) or (U, N, R, T, K), complex64."""
    letters = re.findall("[A-Za-z]", axes.upper())
    if sorted(set(letters)) != sorted(letters) or not {"U", "K"} <= set(letters) <= set(_LETTERS):
        raise InputError(f"axes must name U and K, and N, R, T and C where there are such, once each, got {axes!r}")
    if ("C" in letters) == (array.dtype.kind == "c"):
        need = "name no axis C for" if "C" not in letters else "name an axis C, of"
        raise InputError(f"axes {axes!r} {need} pairs (real, imaginary), but the array is {array.dtype}")
    order = [letter for letter in _LETTERS if letter in {*letters, *"RT"}]
    target = " ".join(letter.lower() if letter in letters else "1" for letter in order)
    given = {letter: count for letter, count in counts.items() if count and letter.upper() in letters}
    try:
        csi: np.ndarray[Any, Any] = einops.rearrange(array, f"{axes.lower()} -> {target}", **given)
    except einops.EinopsError as error:
        known = "".join(f", {letter.upper()} = {count}" for letter, count in given.items())
        raise InputError(f"axes {axes!r}{known} do not fit an array of shape {array.shape}") from error
    if "C" not in letters:
        return csi.astype(np.complex64)
    if csi.shape[-1] != 2:
        raise InputError(f"axis C of axes {axes!r} must have size 2, got {csi.shape[-1]}")
    return np.ascontiguousarray(csi, dtype=np.float32).view(np.complex64)[..., 0]
