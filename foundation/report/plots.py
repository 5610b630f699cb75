"""Figures of a run: their data, and scaled images of figures without data."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.progress import Progress

#: largest numbers of test and training users on a map, to keep the page small and legible
_USERS, _TRAINED = 600, 200
#: widths of an image [pixels] with their WebP quality, tried in order
_SIZES = ((720, 75), (480, 60), (320, 50))


def read_plots(folder: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """Return the data of the figures of a run, and the image files of figures without data.

    Raises:
        ValueError: A file of data is damaged.
    """
    data, pictures = [], []
    for picture in sorted((folder / "plots").glob("*.png")):
        beside = picture.with_suffix(".json")
        if beside.exists():
            data.append({"name": picture.stem, **_checked(json.loads(beside.read_text()))})
        else:
            pictures.append(picture)
    return data, pictures


def _checked(plot: Any) -> dict[str, Any]:
    """Return the data drawn by the page, of bounded size."""
    try:
        kind, title = str(plot["kind"]), str(plot["title"])
        drawn = {"kind": kind, "title": title, "label": str(plot.get("label", "")), "unit": str(plot.get("unit", ""))}
        if kind == "cdf":
            return drawn | {"quantiles": _listed(_array(plot["quantiles"], 1))}
        if kind == "confusion":
            counts = _array(plot["counts"], 2)
            return drawn | {"classes": [str(name) for name in plot["classes"]], "counts": counts.astype(int).tolist()}
        if kind == "map":
            return drawn | _map(plot)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"no data of a picture ({error})") from error
    raise ValueError(f"a picture of an unknown kind, {kind}")


def _map(plot: dict[str, Any]) -> dict[str, Any]:
    users = np.concatenate([_array(plot["position"], 2), _array(plot["value"], 1)[:, None]], axis=1)
    trained = sample(_array(plot.get("train_position", []), 2), _TRAINED)
    columns = dict(zip(("x", "y", "value"), sample(users, _USERS).T, strict=True))
    for name, points in (("stations", _array(plot["stations"], 2)), ("trained", trained)):
        columns |= {f"{name}_x": points[:, 0], f"{name}_y": points[:, 1]}
    walls = _array(plot.get("walls", []), 3).reshape(-1, 4)
    known = users[np.isfinite(users[:, 2]), 2]
    limit = float(np.quantile(known, 0.95)) if len(known) else 0.0
    return {name: _listed(column) for name, column in columns.items()} | {"limit": limit, "walls": walls.tolist()}


def _array(values: Any, axes: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=float)
    if not array.size:
        return np.empty((0,) + (2,) * (axes - 1))
    if array.ndim != axes:
        raise TypeError(f"{array.ndim} axes, not {axes}")
    return array


def _listed(values: NDArray[Any]) -> list[float | None]:
    return [round(float(v), 4) if np.isfinite(v) else None for v in values]


def sample(rows: NDArray[Any], most: int) -> NDArray[Any]:
    """Return at most the given number of evenly spaced rows."""
    if len(rows) <= most:
        return rows
    kept: NDArray[Any] = rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]
    return kept


def shrink(pictures: Sequence[Path], budget: int) -> dict[Path, str]:
    """Return images as data URIs of a total size; one that cannot be read, or scaled to fit, is omitted.

    Args:
        pictures: The files.
        budget: Total size of the URIs [bytes].
    """
    share = budget // max(len(pictures), 1)
    small: dict[Path, str] = {}
    with Progress(len(pictures), "making pictures small", "picture", leave=False) as progress:
        for file in pictures:
            uri = _small(file, share)
            if uri is not None:
                small[file] = uri
            progress.update()
    return small


def _small(file: Path, most: int) -> str | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return None
    for width, quality in _SIZES:
        part = min(1.0, width / picture.width)
        size = (max(1, round(picture.width * part)), max(1, round(picture.height * part)))
        buffer = io.BytesIO()
        picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2).save(buffer, "WEBP", quality=quality, method=2)
        if buffer.tell() * 4 // 3 <= most:
            return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return None


def content_hash(content: Any) -> str:
    """Return a short hash, equal for equal content."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
