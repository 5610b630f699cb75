"""Reads and checks the files of `Recorded`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from datamodules.errors import DatasetNotFoundError, InputError, refuse_pointer
from datamodules.sites.recording import Recording, regular, same_interval

#: number of complex values read at a time: 64 MB
_READ_SIZE = 2**23
_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
#: units of timestamps in seconds
TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "day": 86400.0}
#: range of plausible snapshot intervals [s]; outside of it a unit of the timestamps must be given
_SHORTEST, _LONGEST = 1e-5, 1.0
#: ranges of present-day timestamps in other units: days since year 0 in MATLAB, others since 1970 in UNIX
_CALENDARS = (
    ("days of MATLAB", 7e5, 8e5),
    ("milliseconds since 1970", 1e11, 1e14),
    ("microseconds since 1970", 1e14, 1e17),
    ("nanoseconds since 1970", 1e17, 1e20),
)


def read_recording(file: Path, name: str | None = None) -> tuple[Recording, dict[str, Any]]:
    """Read and check a file of the layout of `Recorded`.

    Args:
        file: The file.
        name: Name of the file in messages, by default its path.

    Returns:
        The links, and the metadata converted to numbers, lists and text.

    Raises:
        DatasetNotFoundError: There is no such file.
        InputError: The file is damaged, or its content is invalid; the message names file and link.
    """
    refuse_pointer(file)
    try:
        with safe_open(file, framework="pt") as opened:
            return _read(opened)
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"recording {name or file} does not exist") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"recording {name or file} is damaged: {error}") from error
    except InputError as error:
        raise InputError(f"recording {name or file}: {error}") from error


def _read(opened: Any) -> tuple[Recording, dict[str, Any]]:
    names = set(opened.keys())
    if "csi" not in names:
        raise InputError(f"holds no csi, but {', '.join(sorted(names)) or 'nothing'}")
    source = opened.get_slice("csi")
    shape, kind = source.get_shape(), source.get_dtype()
    paired = kind in ("F16", "BF16", "F32", "F64")
    if not (paired and shape[-1:] == [2]) and kind != "C64":
        raise InputError(f"csi must be complex64, or real pairs (..., 2), got {kind} of shape {tuple(shape)}")
    shape = shape[:-1] if paired else shape
    if len(shape) not in (4, 5) or 0 in shape:
        raise InputError(f"csi must have shape (U, R, T, K) or (U, N, R, T, K), got {tuple(shape)}")
    facts = _facts(opened.metadata() or {}, shape)
    count, times = shape[0], shape[1] if len(shape) == 5 else None
    # a single long recording: its snapshots become links
    series = count == 1 and (times or 1) > 1
    rows = times if series and times is not None else count

    position = torch.full((rows, 3), torch.nan)
    if "position" in names:
        position = _each(opened.get_tensor("position"), rows, series, 2)
        _expect("position", position, (rows, 3))
        position = position.float()
        _refuse("position", position.isinf().any(1), "infinite")
    los = torch.full((rows,), -1)
    if "los" in names:
        los = _each(opened.get_tensor("los"), rows, series, 1)
        _expect("los", los, (rows,))
        if los.dtype not in _INTEGERS:
            raise InputError(f"los must be integer, got {los.dtype}")
        _refuse("los", (los.long() < -1) | (los.long() > 1), "neither -1, 0 nor 1")
    stamps = opened.get_tensor("timestamps") if "timestamps" in names else None
    stamps, interval = _times(stamps, count, times, facts)

    parts, bad = [], []
    step = max(1, _READ_SIZE * rows // torch.Size(shape).numel())
    for start in range(0, rows, step):
        part = source[0:1, start : start + step].squeeze(0) if series else source[start : start + step]
        csi = torch.view_as_complex(part.float().contiguous()) if paired else part
        bad.append(~torch.isfinite(torch.view_as_real(csi)).flatten(1).all(1))
        if not bad[-1].any():
            some = slice(start, start + step)
            parts.append(Recording.build(csi, position[some], los[some], interval))
    _refuse("csi", torch.cat(bad), "not finite")
    fields: dict[str, Any] = {key: torch.cat([part.as_dict()[key] for part in parts]) for key in parts[0].as_dict()}
    for side in ("bs", "ue"):
        if f"{side}_rows" in facts:
            fields[f"{side}_shape"] = (facts[f"{side}_rows"], facts[f"{side}_cols"])
    return Recording(**fields, interval=interval, timestamps=stamps, bandwidth=facts["bandwidth"]), facts


def _each(value: Tensor, rows: int, series: bool, ndim: int) -> Tensor:
    """Return a tensor with one row per link; of a series, (1, N, ...) or constant (1, ...), one row per snapshot."""
    if not series:
        return value
    value = value[0] if value.ndim == ndim + 1 and len(value) == 1 else value
    return value.expand(rows, *value.shape[1:]) if value.ndim == ndim and len(value) == 1 else value


def _facts(metadata: dict[str, str], shape: list[int]) -> dict[str, Any]:
    """Convert metadata to numbers, lists and text, and check them against the shape of the CSI."""
    facts: dict[str, Any] = {}
    for key, text in metadata.items():
        try:
            facts[key] = text if key in ("area", "city", "place", "time_unit") else json.loads(text)
        except json.JSONDecodeError:
            facts[key] = text
    for key in ("carrier_frequency", "bandwidth", "interval"):
        if key not in facts and key != "interval":
            raise InputError(f"the metadata lack {key} [Hz]")
        if not isinstance(facts.get(key, 1.0), int | float) or not 0 < facts.get(key, 1.0) < float("inf"):
            raise InputError(f"the metadata {key} must be a positive number, got {metadata[key]!r}")
    if facts.get("time_unit", "s") not in TIME_UNITS:
        raise InputError(f"the metadata time_unit must be one of {', '.join(TIME_UNITS)}, got {facts['time_unit']!r}")
    position = facts.get("bs_position", [0.0] * 3)
    if not isinstance(position, list) or len(position) != 3 or not all(isinstance(x, int | float) for x in position):
        raise InputError(f"the metadata bs_position must be [x, y, z] [m], got {metadata['bs_position']!r}")
    if "bs_position" in facts:
        facts["bs_position"] = [float(x) for x in position]
    sizes = {"R": ("ue_rows", "ue_cols"), "T": ("bs_rows", "bs_cols"), "K": ("num_subcarriers",)}
    for (axis, keys), size in zip(sizes.items(), shape[-3:], strict=True):
        said = [facts[key] for key in keys if key in facts]
        if said and (len(said) < len(keys) or not all(isinstance(n, int) for n in said) or math.prod(said) != size):
            words = ", ".join(f"{key} {facts.get(key, 'missing')}" for key in keys)
            raise InputError(f"the metadata say {words}, but csi has {axis} = {size}")
    return facts


def _times(stamps: Tensor | None, count: int, times: int | None, facts: dict[str, Any]) -> tuple[Tensor | None, float]:
    """Return the times of links or snapshots [s] and the interval of snapshots [s], 0 without an axis N.

    Args:
        stamps: Timestamps (U,) or (U, N) in the unit of the file, or None.
        count: Number U of links.
        times: Number N of snapshots, or None.
        facts: The metadata.

    Returns:
        Times (U,) or (U, N), or (N,) of a single link with an axis N; None without timestamps, except for a single
        link, whose snapshots are in order of time.
    """
    stated: float | None = facts.get("interval")
    unit: str | None = facts.get("time_unit")
    series = count == 1 and (times or 1) > 1
    interval = stated or 0.0
    if times is None and stated is not None:
        raise InputError("the metadata say an interval, but csi has no axis N of snapshots: leave the interval out")
    if stamps is not None:
        stamps = stamps.double()
        if unit is None:
            _guess(stamps)
        stamps = stamps * TIME_UNITS[unit or "s"]
        if stamps.ndim == 1 or times is None:
            _expect("timestamps", stamps, (count,))
            _refuse("timestamps", ~(stamps.diff(prepend=stamps[:1] - 1) > 0), "not after the one before")
        else:
            _expect("timestamps", stamps, (count, times))
            steps = stamps.diff(dim=1)
            _refuse("timestamps", ~(steps > 0).all(1), "not rising")
            if times > 1:
                interval = _interval(steps, stated, unit)
            if not series and times > 1:
                _refuse("timestamps", ~regular(steps, interval).all(1), f"not {interval:.4g} s apart")
    if times is None:
        return stamps, 0.0
    if not interval > 0:
        raise InputError("snapshots, the axis N, need timestamps (U, N) or an interval [s]: give either")
    if stamps is None and series:
        stamps = torch.zeros(1, dtype=torch.float64)
    if stamps is not None and stamps.ndim == 1:
        stamps = stamps[:, None] + torch.arange(times, dtype=torch.float64) * interval
    return (stamps[0] if series and stamps is not None else stamps), interval


def _interval(steps: Tensor, stated: float | None, unit: str | None) -> float:
    """Return the interval of snapshots, checked against their time differences `steps`, shape (U, N - 1) [s]."""
    measured = float(steps.median())
    if stated is not None and not same_interval(stated, measured):
        raise InputError(
            f"the interval is said to be {stated:.4g} s, but the timestamps are {measured:.4g} s apart"
            + (" if they are in seconds: set time_unit" if unit is None else ": leave the interval out")
        )
    if unit is None and not _SHORTEST <= measured < _LONGEST:
        raise InputError(
            f"the snapshots would be {measured:.4g} s apart, if timestamps are in seconds: set time_unit to one of "
            f"{', '.join(TIME_UNITS)}"
        )
    return measured if stated is None else stated


def _guess(stamps: Tensor) -> None:
    """Raise an `InputError` for timestamps in the range of present-day times in units other than seconds."""
    last = float(stamps.max()) if stamps.numel() else 0.0
    for unit, low, high in _CALENDARS:
        if low <= last < high:
            raise InputError(
                f"timestamps up to {last:.10g} look like {unit}, not seconds: set time_unit to one of "
                f"{', '.join(TIME_UNITS)}"
            )


def _expect(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape != shape or value.is_complex():
        raise InputError(f"{name} must be real and have shape {shape}, got {value.dtype} of {tuple(value.shape)}")


def _refuse(name: str, bad: Tensor, why: str) -> None:
    """Raise an `InputError` if `bad` (U,) is true for any link."""
    if bad.any():
        count, first = int(bad.sum()), int(bad.int().argmax())
        raise InputError(f"{name} of {count} of {len(bad)} links is {why}, first of link {first}")
