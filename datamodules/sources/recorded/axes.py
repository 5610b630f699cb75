"""Reorders CSI with axes in any order to that of `Recorded`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import einops
import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError, check_choice

PairOrder = Literal["IQ", "QI"]
Side = Literal["R", "T"]
Polarization = Side | int

_FULL = ("p", "u", "n", "r1", "r2", "t1", "t2", "k", "c")
_SPLIT = {"r": ("r1", "r2"), "t": ("t1", "t2")}


@dataclass(frozen=True)
class Arranged:
    """CSI in the order of `Recorded`.

    Attributes:
        csi: Shape (U, R, T, K) or (U, N, R, T, K), complex64.
        shapes: Rows and columns of the arrays, if known, by `bs` and `ue`.
    """

    csi: NDArray[np.complex64]
    shapes: dict[str, tuple[int, int]]


def arrange(
    array: NDArray[Any],
    axes: str,
    shapes: dict[str, tuple[int, int]],
    pairs: PairOrder = "IQ",
    polarization: Polarization | None = None,
    narrowband: bool = False,
) -> Arranged:
    """Reorder CSI to the axes of `Recorded`; see `import_recording` for the arguments.

    Args:
        array: The CSI.
        axes: Letters of its axes.
        shapes: Given rows and columns of the arrays of one polarisation, by `bs` and `ue`.
        pairs: Order of pairs.
        polarization: Treatment of an axis P.
        narrowband: Whether to add an axis K.

    Raises:
        InputError: The axes are invalid, or do not match the array.
    """
    names = re.findall("[a-z][0-9]*", axes.lower())
    check_choice("pairs", pairs, PairOrder)
    if isinstance(polarization, str):
        check_choice("polarization", polarization, Side)
    _check(names, axes, array, polarization, narrowband)
    # antennas of an axis that is not split are columns
    written = re.sub(r"\b([rt])\b", r"\g<1>2", axes.lower())
    given = {"c": 2} if "c" in names else {}
    for side, letter in (("bs", "t"), ("ue", "r")):
        if side in shapes:
            rows, columns = shapes[side]
            given |= {f"{letter}1": rows, f"{letter}2": columns} if f"{letter}1" in names else {}
            given |= {f"{letter}2": rows * columns} if letter in names else {}
    there = set(re.findall("[a-z][0-9]*", written))
    target = " ".join(name if name in there else "1" for name in _FULL)
    try:
        full: NDArray[Any] = einops.rearrange(array, f"{written} -> {target}", **given)
    except einops.EinopsError as error:
        known = "".join(f", {name.upper().rstrip('2')} = {count}" for name, count in given.items() if name != "c")
        raise InputError(f"axes {axes!r}{known} do not fit an array of shape {array.shape}") from error
    if isinstance(polarization, int):
        if not 0 <= polarization < len(full):
            raise InputError(f"polarization must be below the {len(full)} that the CSI has, got {polarization}")
        full = full[polarization : polarization + 1]
    sizes = dict(zip(_FULL, full.shape, strict=True))
    # a second polarisation becomes further rows of the array
    found = {}
    for side, letter in (("bs", "t"), ("ue", "r")):
        more = sizes["p"] if polarization == letter.upper() else 1
        if side in shapes:
            found[side] = (more * shapes[side][0], shapes[side][1])
        elif f"{letter}1" in names or more > 1:
            found[side] = (more * sizes[f"{letter}1"], sizes[f"{letter}2"])
    full = np.moveaxis(full, 0, 2 if polarization == "R" else 4)  # before r1, or t1
    users, antennas = (sizes[f"{x}1"] * sizes[f"{x}2"] * (sizes["p"] if polarization == x.upper() else 1) for x in "rt")
    snapshots = (sizes["n"],) if "n" in names else ()
    csi = full.reshape(sizes["u"], *snapshots, users, antennas, sizes["k"], sizes["c"])
    if "c" in names:
        csi = csi if pairs == "IQ" else csi[..., ::-1]
        return Arranged(np.ascontiguousarray(csi, dtype=np.float32).view(np.complex64)[..., 0], found)
    return Arranged(csi[..., 0].astype(np.complex64), found)


def _check(
    names: list[str], axes: str, array: NDArray[Any], polarization: Polarization | None, narrowband: bool
) -> None:
    for letter, parts in _SPLIT.items():
        if parts[0] in names and parts[1] in names and letter not in names:
            continue
        if parts[0] in names or parts[1] in names:
            raise InputError(
                f"axes must name {letter.upper()}, or its rows {letter.upper()}1 and columns {letter.upper()}2, "
                f"got {axes!r}"
            )
    known = {*_FULL, *_SPLIT}
    if len(set(names)) < len(names) or not set(names) <= known or not {"u", "n"} & set(names):
        raise InputError(
            "axes must name U, or N of a single device, and K, R, T, P and C where there are such, once each, "
            f"got {axes!r}"
        )
    if ("k" in names) == narrowband:
        why = "but narrowband adds it: leave narrowband out" if narrowband else "add it with narrowband, if it is one"
        raise InputError(f"axes {axes!r} name {'an' if narrowband else 'no'} axis K of subcarriers: {why}")
    if ("c" in names) == (array.dtype.kind == "c"):
        paired = "c" in names
        need = "name an axis C, of" if paired else "name no axis C for"
        remedy = "leave C out" if paired else "save complex numbers, or name the axis of their parts C"
        raise InputError(f"axes {axes!r} {need} pairs of real numbers, but the array is {array.dtype}: {remedy}")
    if ("p" in names) != (polarization is not None):
        raise InputError(
            f"axes {axes!r} name an axis P: set polarization to T or R, whose antennas they become, or to a number"
            if polarization is None
            else f"polarization is {polarization}, but axes {axes!r} name no axis P"
        )
