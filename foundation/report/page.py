"""The page: data, scripts and plotting library in one HTML file."""

from __future__ import annotations

import base64
import gzip
import json
import time
import warnings
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.progress import Progress
from foundation.report.embedding import embeddings_of, thinned
from foundation.report.plots import content_hash, read_plots, shrink
from foundation.report.runs import RunRecord, find_runs, read_run
from foundation.report.tuning import read_tunings
from foundation.runtime.tracking import better

#: bytes of all pictures; the library takes 2 MB of the 6 MB that 50 runs may take, their numbers about one
_PICTURES = 2_300_000
#: points of all curves, and of all embeddings
_POINTS, _LINKS = 120_000, 20_000
_STYLES = ("page.css",)
_SCRIPTS = ("state.js", "table.js", "charts.js", "curves.js", "compare.js", "embeddings.js", "tuning.js", "page.js")


def build(folders: Sequence[Path]) -> str:
    """Return the page of all runs below some folders.

    A run that cannot be read is left out, with a warning that names it, here and on the page.

    Raises:
        InputError: There is no run, or none that can be read.
    """
    return render(gather(folders))


def gather(folders: Sequence[Path]) -> dict[str, Any]:
    """Return all that the page shows, as plain data."""
    found = find_runs(folders)
    records: list[RunRecord] = []
    drawn: list[tuple[list[dict[str, Any]], list[Path]]] = []
    embedded: list[list[dict[str, Any]]] = []
    skipped: list[str] = []
    with Progress(len(found), "reading runs", "run", leave=False) as progress:
        for folder in found:
            try:
                record, plots = read_run(folder), read_plots(folder)
                embeddings = embeddings_of(folder, progress.announce)
            except (InputError, OSError, ValueError) as error:
                skipped.append(f"skipped {folder}: {error}")
            else:
                records.append(record)
                drawn.append(plots)
                embedded.append(embeddings)
            progress.update()
    tunings, damaged = read_tunings(dict.fromkeys(path for folder in found for path in folder.parents[:2]))
    skipped += damaged
    for line in skipped:
        warnings.warn(line, stacklevel=2)
    if not records:
        raise InputError(f"none of {len(found)} runs can be read, the first because: {skipped[0]}")
    runs = [_run_data(record) for record in records]
    _add_curves(runs, records)
    _add_pictures(runs, drawn)
    most = _LINKS // max(sum(map(len, embedded)), 1)
    for run, embeddings in zip(runs, embedded, strict=True):
        run["embeddings"] = [thinned(embedding, max(most, 100)) for embedding in embeddings]
    return {
        "runs": runs,
        "tunings": tunings,
        "warnings": skipped,
        "walls": _shared_walls(runs),
        "better": {name: way for name in _names(records) if (way := better(name))},
        "made": time.strftime("%Y-%m-%d %H:%M"),
    }


def _names(records: list[RunRecord]) -> set[str]:
    return {name for record in records for name in (*record.metrics, *record.curves)}


def _run_data(record: RunRecord) -> dict[str, Any]:
    return {
        "id": f"{record.experiment}/{record.name}",
        "experiment": record.experiment,
        "name": record.name,
        "unseeded": record.unseeded,
        "group": content_hash(record.group),
        "metrics": record.metrics,
        "monitor": record.monitor,
        "config": record.config,
        **record.facts,
    }


def _add_curves(runs: list[dict[str, Any]], records: list[RunRecord]) -> None:
    count = sum(len(record.curves) for record in records)
    most = min(400, max(24, _POINTS // max(count, 1)))
    for run, record in zip(runs, records, strict=True):
        thin = {name: curve.thinned(most) for name, curve in record.curves.items() if not name.startswith("test/")}
        run["curves"] = {name: {"s": c.steps, "e": c.epochs, "v": c.values} for name, c in thin.items()}


def _add_pictures(runs: list[dict[str, Any]], drawn: list[tuple[list[dict[str, Any]], list[Path]]]) -> None:
    small = shrink([picture for _, pictures in drawn for picture in pictures], _PICTURES)
    for run, (plots, pictures) in zip(runs, drawn, strict=True):
        run["plots"] = plots
        run["pictures"] = [{"name": p.stem, "src": small[p]} for p in pictures if p in small]


def _shared_walls(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Replace the walls of maps, equal in most runs, by a name, and return them by name."""
    walls: dict[str, Any] = {}
    for plot in (plot for run in runs for plot in run["plots"] if plot.get("walls")):
        name = content_hash(plot["walls"])
        walls[name], plot["walls"] = plot["walls"], name
    return walls


def render(data: dict[str, Any]) -> str:
    """Return the page of the output of `gather`. Library and data are compressed, for browsers since 2023."""
    from plotly.offline import get_plotlyjs

    here = files("foundation.report") / "assets"
    parts = {
        "style": "\n".join((here / name).read_text() for name in _STYLES),
        "script": "\n".join((here / name).read_text() for name in _SCRIPTS),
        "data": _packed(json.dumps(data, separators=(",", ":"))),
        "library": _packed(get_plotlyjs()),
        "title": escape(_title(data)),
    }
    page = (here / "page.html").read_text()
    for name, text in parts.items():
        page = page.replace(f"{{{{{name}}}}}", text, 1)
    return page


def _title(data: dict[str, Any]) -> str:
    names = sorted({run["experiment"] for run in data["runs"]})
    return f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''} ({len(data['runs'])} runs)"


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
