"""Runs as shown by a report, read from their folders, which are not changed."""

from __future__ import annotations

import fcntl
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from datamodules.errors import InputError
from foundation.report.curves import Curve, finite, read_curves

#: files that identify a folder as a run
_SIGNS = ("summary.json", "config.yaml", "metrics.csv")
#: settings of the place, time and repetition of a run, rather than of its content
_APART = re.compile(r"^(seed_everything|data\.seed|experiment|run_id|runs|ckpt_path|config)$")
#: end of the id of a run: `-s0`, or date and seed
_SEEDED = re.compile(r"(?:(?<![^/])\d{8}-\d{6})?-?s\d+(?:-\d+)?(?=/|$)")


@dataclass
class RunRecord:
    """One run.

    Attributes:
        experiment: Name of the experiment.
        name: Name of the run within it.
        folder: Its folder.
        facts: Model, head, mode, data, seed and so on, by name; unknown ones are missing.
        metrics: Results by name, those of the test as `test/...`; NaN is None.
        monitor: The metric that selects the best checkpoint; empty without one.
        config: Settings by dotted key, without `init_args`.
        curves: Logged metrics by name.
    """

    experiment: str
    name: str
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    monitor: str = ""
    config: dict[str, str] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """Key that is equal for runs that differ in their seed only."""
        alike = {key: _SEEDED.sub("", value) for key, value in self.config.items() if not _APART.match(key)}
        named = "" if self.config else self.name
        return json.dumps([self.experiment, self.facts.get("state") == "finished", named, sorted(alike.items())])

    @property
    def unseeded(self) -> str:
        """Name without date and seed; if nothing is left, model, head and mode."""
        words = [str(self.facts[key]) for key in ("model", "head", "mode") if self.facts.get(key)]
        return _SEEDED.sub("", self.name).strip("/") or " ".join(words) or self.name


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """List the folders of runs below folders of all experiments, of one, or of a run.

    Raises:
        InputError: There is none.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(
                f"{folder} is no folder of runs: train one with `make demo` or `lightning fit`, or name another"
            )
    found = dict.fromkeys(path for folder in folders for path in _below(folder, 4))
    if not found:
        named = ", ".join(map(str, folders))
        raise InputError(f"no runs below {named}: train one with `make demo` or `lightning fit`, or name their folder")
    return list(found)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if any((folder / name).is_file() for name in _SIGNS):
        yield folder
    if depth and folder.is_dir():
        for path in sorted(folder.iterdir()):
            inner = path.name in ("checkpoints", "plots", "wandb", "export") or path.name.startswith(".")
            if path.is_dir() and not path.is_symlink() and not inner:
                yield from _below(path, depth - 1)


def read_run(folder: Path) -> RunRecord:
    """Read a run, which may be running or stopped.

    Raises:
        InputError: A file of it is damaged.
        OSError: A file of it cannot be read.
    """
    summary = _read(folder / "summary.json", json.loads)
    config = _read(folder / "config.yaml", _load_yaml)
    settings = dict(_flat(config))
    record = RunRecord(*_named(folder, summary), folder, config=settings)
    record.curves = read_curves(folder / "metrics.csv")
    record.facts = {**_configured(config, settings), **_summarised(summary), **_state(folder, summary)}
    record.monitor = next(iter(_mapping(summary.get("best"))), "")
    last = {name: curve.last for name, curve in record.curves.items() if name.startswith(("val/", "test/"))}
    final = {**_mapping(summary.get("validation")), **_mapping(summary.get("best")), **_mapping(summary.get("metrics"))}
    record.metrics = {key: finite(value) for key, value in (last | final).items()}
    return record


def _read(file: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        content = parse(file.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file.name} is damaged ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file.name} is damaged (it holds no settings)")
    return content


def _load_yaml(text: str) -> Any:
    # many files, written by a program: the fast loader rather than the strict one for files of users
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _named(folder: Path, summary: dict[str, Any]) -> tuple[str, str]:
    """Return experiment and name, from the summary or from the folders."""
    if isinstance(summary.get("experiment"), str) and isinstance(summary.get("run_id"), str):
        return summary["experiment"], summary["run_id"]
    path = folder.resolve()
    if path.name.startswith("on-"):  # results on other data than the run's
        return path.parents[1].name, f"{path.parent.name}/{path.name}"
    return path.parent.name, path.name


def _summarised(summary: dict[str, Any]) -> dict[str, Any]:
    facts = {key: summary.get(key) for key in ("model", "head", "mode", "seed", "split", "n_train", "params_total")}
    # `places` in the summaries of older releases
    sides = [summary.get(f"{side}_cities", summary.get(f"{side}_places")) for side in ("train", "test")]
    cities = ["+".join(map(str, side)) for side in sides if isinstance(side, list) and side]
    data = " → ".join(dict.fromkeys(cities))
    facts |= {"data": data, "wall_s": finite(summary.get("wall_s")), "epochs": summary.get("epochs")}
    return {key: value for key, value in facts.items() if value is not None and value != ""}


def _configured(config: dict[str, Any], settings: dict[str, str]) -> dict[str, Any]:
    """Return facts from the configuration, for runs without a summary."""
    source = next(
        (settings[f"data.source.{key}"] for key in ("scenario", "scene") if f"data.source.{key}" in settings), ""
    )
    facts = {
        "model": settings.get("model"),
        "head": settings.get("model.head", "").lower(),
        "mode": settings.get("model.mode"),
        "seed": config.get("seed_everything"),
        "data": source or settings.get("data.source"),
    }
    return {
        key: value for key, value in facts.items() if value not in (None, "", "null") and not isinstance(value, dict)
    }


def _state(folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    state = "finished" if summary else "running" if _is_locked(folder) else "stopped"
    first = min((folder / name).stat().st_mtime for name in _SIGNS if (folder / name).exists())
    return {"state": state, "created": time.strftime("%Y-%m-%d %H:%M", time.localtime(first))}


def _is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of a run, see `Run.claim`; a killed one leaves the file, but no lock."""
    try:
        with (folder / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys and values of a nested configuration; the class is the value of its own key."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            if name == "class_path":
                yield key, str(inner).rsplit(".", 1)[-1]
            else:
                yield from _flat(inner, key if name == "init_args" else f"{key}.{name}".lstrip("."))
    else:
        yield key, value if isinstance(value, str) else json.dumps(value, default=str)
