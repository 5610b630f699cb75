"""Projections of the features that `lightning predict` wrote, and attributes to colour them by."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.files import write_whole
from datamodules.sides.domains import AXES, UNKNOWN
from foundation.report.plots import sample

#: features and embeddings in the order shown, without normalised copies
_FEATURES = ("features", "environment_embedding", "cir_embedding", "code")
#: attributes by which points are coloured
_COLOURED_BY = ("los", "position", "beam", "site", "domain", "prediction", "nmse")
#: largest number of projected links of a run; with many runs the page shows fewer
_LINKS = 1000
#: attributes of sites by which points are coloured
_OF_SITES = ("site", "area", "city", "variant", "scenario", "tilt", "frequency")


def project(features: NDArray[Any]) -> tuple[NDArray[np.float64], str]:
    """Project features (M, D), normalised to unit length as in contrastive losses, to the plane.

    Returns:
        The points (M, 2), and the method: `UMAP`, or `PCA` if `umap` is not installed or there are few links.
    """
    rows = np.nan_to_num(features.reshape(len(features), -1).astype(np.float32))
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    if len(rows) > 10 and has_umap():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a single thread with a seed, and of equal neighbours
            from umap import UMAP

            plane = UMAP(n_neighbors=min(15, len(rows) - 1), metric="cosine", random_state=0, n_jobs=1)
            return np.asarray(plane.fit_transform(rows), dtype=float), "UMAP"
    centred = rows - rows.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    points = np.zeros((len(rows), 2))
    points[:, : len(axes)] = centred @ axes.T
    return points, "PCA"


def has_umap() -> bool:
    """Whether the extra `umap` is installed."""
    try:
        return importlib.util.find_spec("umap") is not None
    except ValueError:  # a module that is None in sys.modules
        return False


def embeddings_of(folder: Path, announce: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Return the embeddings of a run, one for each of its encoders; empty without features.

    They are stored in `embeddings.json` beside the features, and computed again when those change or UMAP is installed.

    Args:
        folder: The run.
        announce: Called with a description of slow steps.

    Raises:
        InputError: The features cannot be read.
    """
    file = folder / "predictions.safetensors"
    if not file.exists():
        return []
    stamp = f"{file.stat().st_size}-{file.stat().st_mtime_ns}-{_LINKS}-{has_umap()}"
    kept = folder / "embeddings.json"
    try:
        known = json.loads(kept.read_text())
        if known["made_of"] == stamp:
            return list(known["embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    announce(f"projecting the features of {folder}")
    made = _embeddings(*_read(file))
    try:
        write_whole(kept, json.dumps({"made_of": stamp, "embeddings": made}))
    except OSError as error:  # a read-only folder: they are computed again the next time
        warnings.warn(f"{kept} cannot be written: {error.strerror}", stacklevel=2)
    return made


def _read(file: Path) -> tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]:
    """Return the tensors of a file by name, of at most `_LINKS` links, and the metadata of the sites."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as opened:
            shapes = {key: opened.get_slice(key).get_shape() for key in opened.keys()}
            known = [key for key in shapes if key in (*_FEATURES, *_COLOURED_BY)]
            # a prediction may be a whole channel, of complex numbers
            rows = {key: opened.get_tensor(key) for key in known if key != "prediction" or len(shapes[key]) == 1}
            sites = json.loads((opened.metadata() or {}).get("sites", "[]"))
    except (SafetensorError, OSError, ValueError, TypeError) as error:  # TypeError: a type that NumPy lacks
        raise InputError(f"{file.name} cannot be read ({error})") from error
    return {key: sample(value, _LINKS) for key, value in rows.items()}, sites


def _embeddings(rows: dict[str, NDArray[Any]], sites: list[dict[str, Any]]) -> list[dict[str, Any]]:
    shown = [name for name in _FEATURES if name in rows and rows[name].ndim > 1 and len(rows[name]) > 2]
    colours = list(_colours(rows, sites)) if shown else []
    made = []
    for name in shown:
        points, method = project(rows[name])
        x, y = (_rounded(column) for column in points.T)
        made.append({"name": name, "method": method, "x": x, "y": y, "colours": colours, "of": len(rows[name])})
    return made


def _colours(rows: Mapping[str, NDArray[Any]], sites: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the attributes by which links are coloured: classes with their names, or numbers."""
    if "los" in rows:
        yield _classes("line of sight", rows["los"], {-1: "no path", 0: "NLOS", 1: "LOS"})
    position = rows.get("position")
    if position is not None and position.ndim == 2 and np.isfinite(position).any():
        yield from (_numbers(f"position {axis} [m]", column) for axis, column in zip("xy", position.T, strict=False))
    if "beam" in rows:
        yield _numbers("best beam", np.where(rows["beam"] < 0, np.nan, rows["beam"]))
    if "site" in rows:
        for key in _OF_SITES:
            labels = [str(site.get("name" if key == "site" else key, "")) for site in sites]
            values = rows["site"].astype(int)
            if not labels and key != "site":
                continue
            unknown = "unknown" if key != "site" else None
            names = [labels[value] if value < len(labels) else unknown or str(value) for value in values]
            if len(set(names)) > 1:
                order = sorted(set(names))
                numbers = np.array([order.index(name) for name in names])
                yield _classes(key, numbers, dict(enumerate(order)))
    if "domain" in rows and rows["domain"].ndim == 2:
        for axis, column in zip(AXES, rows["domain"].T, strict=False):
            if axis != "los" and len(found := np.unique(column)) > 1:
                yield _classes(f"domain: {axis}", column, {int(v): "unknown" for v in found if v == UNKNOWN})
    prediction = rows.get("prediction")
    if prediction is not None and prediction.ndim == 1 and prediction.dtype.kind in "if":
        yield _numbers("prediction", prediction)
    if "nmse" in rows:
        yield _numbers("NMSE [dB]", 10 * np.log10(np.maximum(rows["nmse"], 1e-12)))


def _classes(name: str, values: NDArray[Any], names: dict[int, str]) -> dict[str, Any]:
    found = sorted({int(value) for value in values})
    index = {value: place for place, value in enumerate(found)}
    labels = [names.get(value, str(value)) for value in found]
    return {"name": name, "classes": labels, "values": [index[int(value)] for value in values]}


def _numbers(name: str, values: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "values": _rounded(values)}


def _rounded(values: NDArray[Any]) -> list[float | None]:
    return [round(float(value), 3) if np.isfinite(value) else None for value in values]


def thinned(embedding: dict[str, Any], most: int) -> dict[str, Any]:
    """Return an embedding of at most the given number of links."""

    def some(values: list[Any]) -> list[Any]:
        return [values[i] for i in sample(np.arange(len(values)), most)]

    colours = [{**colour, "values": some(colour["values"])} for colour in embedding["colours"]]
    return {**embedding, "x": some(embedding["x"]), "y": some(embedding["y"]), "colours": colours}
