"""Converts .npy, .npz and .mat files to the layout of `Recorded`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from datamodules.errors import InputError, check_choice
from datamodules.files import replacing
from datamodules.sources.base import renamed
from datamodules.sources.recorded.arrays import load_array, locate
from datamodules.sources.recorded.axes import PairOrder, Polarization, arrange
from datamodules.sources.recorded.file import read_recording

CarrierAt = Literal["middle", "lowest"]


def import_recording(
    source: str,
    out: str,
    *,
    axes: str,
    carrier_frequency: float,
    bandwidth: float,
    carrier_at: CarrierAt = "middle",
    csi: str = "csi",
    pairs: PairOrder = "IQ",
    polarization: Polarization | None = None,
    narrowband: bool = False,
    fft_order: bool = False,
    drop_null: bool = False,
    position: str | None = None,
    los: str | None = None,
    timestamps: str | None = None,
    time_unit: Literal["s", "ms", "us", "ns", "day"] | None = None,
    interval: float | None = None,
    bs_rows: int | None = None,
    bs_cols: int | None = None,
    ue_rows: int | None = None,
    ue_cols: int | None = None,
    bs_position: list[float] | None = None,
    area: str | None = None,
    city: str | None = None,
    place: str | None = None,
) -> Path:
    """Write a file in the layout of `Recorded` atomically.

    Args:
        source: File with the CSI: .npy, .npz, or .mat of any version.
        out: The .safetensors file to write.
        axes: Order of the axes of the CSI, a letter each: U links, N snapshots, R user antennas, T base-station
            antennas, K subcarriers, P polarisations, C a pair of real numbers. U may be missing for one long recording
            of a single device, R and T for a single antenna. Rows and columns of an array may be separate axes, R1 and
            R2, T1 and T2. Merged axes are in parentheses, the slower one first: `U (R T) K`; interleaved real and
            imaginary parts are `U (K C)`.
        carrier_frequency: Carrier [Hz].
        bandwidth: Bandwidth [Hz] of all K subcarriers: K times the subcarrier spacing.
        carrier_at: Subcarrier at the carrier: `middle`, index K / 2 rounded down, or `lowest`, index 0.
        csi: Name of the CSI in a .npz or .mat with several arrays; `Struct.field` for a field of a MATLAB struct.
        pairs: Order of pairs: `IQ` (real, imaginary) or `QI` (imaginary, real).
        polarization: Treatment of an axis P: `T` or `R` make it further rows of that array, a number selects one.
        narrowband: Adds an axis K of a single subcarrier.
        fft_order: Subcarriers are in FFT order, from the middle of the band, and are sorted by frequency.
        drop_null: Removes subcarriers that are zero in all links, such as guards, and reduces `bandwidth` accordingly.
        position: User positions (U, 3) or (U, 2) [m], (N, 3) or (N, 2) of a single device: a name in `source`, or the
            path of another file.
        los: Line of sight (U,) or (N,), likewise.
        timestamps: Times (U,), (U, N) or (N,), likewise.
        time_unit: Unit of the timestamps; by default seconds, if plausible.
        interval: Time between snapshots [s].
        bs_rows: Rows of the base-station array, of one polarisation.
        bs_cols: Columns of the base-station array.
        ue_rows: Rows of the user array, of one polarisation.
        ue_cols: Columns of the user array.
        bs_position: Base station [x, y, z] [m].
        area: Area, common to files with the same users.
        city: Name of the city or measurement campaign.
        place: Old name of `city`, read with a warning.

    Returns:
        The file written.

    Raises:
        DatasetNotFoundError: There is no such file.
        InputError: A file or an argument is invalid; nothing is written.
    """
    check_choice("carrier_at", carrier_at, CarrierAt)
    city = renamed("import", "place", place, "city", city)
    said = {"bs": (bs_rows, bs_cols), "ue": (ue_rows, ue_cols)}
    for side, shape in said.items():
        if (shape[0] is None) != (shape[1] is None):
            raise InputError(f"{side}_rows and {side}_cols must be given both, or neither")
    known = {side: (rows, cols) for side, (rows, cols) in said.items() if rows is not None and cols is not None}
    made = arrange(load_array(source, csi, alone=True), axes, known, pairs, polarization, narrowband)
    channel = np.fft.fftshift(made.csi, axes=-1) if fft_order else made.csi
    tones = channel.shape[-1]
    kept: np.ndarray[Any, Any] = np.arange(tones)
    if drop_null:
        kept = np.flatnonzero(channel.reshape(-1, tones).any(0))
        if not len(kept):
            raise InputError(f"all {tones} subcarriers of {source} are zero in all links")
        channel = channel[..., kept]
    tensors = {"csi": channel, **_labels(source, channel, position, los, timestamps)}
    spacing = bandwidth / tones
    lowest = carrier_frequency - (spacing * (tones // 2) if carrier_at == "middle" else 0.0)
    if lowest <= 0:
        raise InputError(
            f"carrier_frequency {carrier_frequency:g} Hz must be above half of the bandwidth, {bandwidth:g} Hz: give "
            "both in Hz, such as 5.18e9 and 20e6"
        )
    facts = {
        "carrier_frequency": lowest + spacing * float(kept[0]), "bandwidth": spacing * len(kept), "interval": interval,
        "bs_position": bs_position,
        "dropped_subcarriers": sorted(set(range(tones)) - set(kept.tolist())) or None,
    }  # fmt: skip
    for side, (rows, cols) in made.shapes.items():
        facts |= {f"{side}_rows": rows, f"{side}_cols": cols}
    metadata = {key: json.dumps(value) for key, value in facts.items() if value is not None}
    words = (("area", area), ("city", city), ("time_unit", time_unit))
    metadata |= {key: value for key, value in words if value is not None}

    target = Path(out)
    if target.suffix != ".safetensors":
        raise InputError(f"out must end in .safetensors, got {out}")
    contents = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in tensors.items()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            save_file(contents, temporary, metadata=metadata)
            temporary.chmod(target.parent.stat().st_mode & 0o666)  # safetensors sets permissions for the owner only
            read_recording(temporary, source)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {out}: {error}") from error
    return target


def _labels(
    source: str, csi: np.ndarray[Any, Any], position: str | None, los: str | None, timestamps: str | None
) -> dict[str, np.ndarray[Any, Any]]:
    """Read positions, line of sight and times of the links of CSI, those that are given."""
    labels: dict[str, np.ndarray[Any, Any]] = {}
    if position is not None:
        value = _along(load_array(*locate(source, position)), csi, 2)
        # height zero where none is given
        flat = value.shape[-1:] == (2,)
        labels["position"] = np.concatenate([value, np.zeros_like(value[..., :1])], -1) if flat else value
    if los is not None:
        labels["los"] = _along(_whole(load_array(*locate(source, los)), los), csi, 1)
    if timestamps is not None:
        labels["timestamps"] = _placed(load_array(*locate(source, timestamps)).astype(np.float64), csi)
    return labels


def _placed(stamps: np.ndarray[Any, Any], csi: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return times as (U,) or (U, N), from MATLAB row or column vectors, and from (N,) of a single device."""
    links = csi.shape[:2] if csi.ndim == 5 else csi.shape[:1]
    flat = tuple(size for size in stamps.shape if size > 1)
    if flat == tuple(size for size in links if size > 1):
        return stamps.reshape(links)
    return stamps.reshape(-1) if stamps.ndim == 2 and 1 in stamps.shape else stamps


def _along(value: np.ndarray[Any, Any], csi: np.ndarray[Any, Any], ndim: int) -> np.ndarray[Any, Any]:
    """Return values for each snapshot of a single device, (N, ...), as (1, N, ...)."""
    snapshots = csi.shape[1] if csi.ndim == 5 and len(csi) == 1 else 1
    return value[None] if value.ndim == ndim and snapshots > 1 and len(value) == snapshots else value


def _whole(value: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """Return labels (U,) as integers; MATLAB stores them as floating-point columns."""
    flat = value.reshape(-1)
    if flat.dtype.kind == "c" or not np.isin(flat, (-1, 0, 1)).all():
        raise InputError(f"los ({name}) must be -1, 0 or 1 for each link")
    return flat.astype(np.int8)
