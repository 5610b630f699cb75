"""Rows: what `experiments/results.csv` holds, one metric of one run each, taken from the summaries of runs."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from foundation.runtime.runs import read_summary
from foundation.studies.study import Study

_ZERO_SHOT = re.compile(r"(?P<variant>.+)-zeroshot(-@.+?)?(?P<seed>-s\d+)?")
#: what a summary tells of training
_OF_TRAINING = ("n_train", "n_validation", "train_cities", "train_places", "validations", "wall_s")
#: how the id of a study's run ends, see `study._name`
_DATA_AND_SEED = re.compile(r"(-@(?P<data>.+?))?(-s\d+)?$")


@dataclass(frozen=True)
class Row:
    """One metric of one run; the columns of `results.csv`.

    Attributes:
        experiment: Name of the study.
        run: Id of the run.
        variant: Name of the run within the study, without what other columns say.
        head: Task, empty for zero-shot.
        mode: `scratch`, `probe`, `finetune`, `control` or `zeroshot`.
        split: Split rule, with its guard band where it has one.
        train_cities: Cities of the train side, joined by `+`.
        test_cities: Those of the test side.
        place: Where the run was tested: the area, where the study makes every run in several (`Study.areas`), else the
            cities of the test side.
        data: Name that the study gives the data of the run (`Study.data`), empty where it has one for all.
        tuned_on: By what links sizes, steps and rates were chosen (`Study.tuned_on`).
        seed: Seed.
        metric: Name of the metric.
        value: Its value, in SI units or as a fraction.
        metrics: How many metrics the run has, a row each, by which a missing row is noticed.
        n_train: Labelled links that the run learned from.
        n_validation: Links of the validation side; 0 where it was not written down.
        scored: Checkpoints that were scored on the validation side and the best of them taken; 1 where only the last
            was, so that nothing was chosen; 0 where it was not written down or nothing was trained.
        params_total: Parameters.
        params_trained: Parameters that were trained.
        wall_s: Duration of the training [s].
        hardware: Machine.
        commit: Commit of this repository, with `+` where files differed from it.
    """

    experiment: str
    run: str
    variant: str
    head: str
    mode: str
    split: str
    train_cities: str
    test_cities: str
    place: str
    data: str
    tuned_on: str
    seed: int
    metric: str
    value: float
    metrics: int
    n_train: int
    n_validation: int
    scored: int
    params_total: int
    params_trained: int
    wall_s: float
    hardware: str
    commit: str


def rows_of(summary: dict[str, Any], study: Study) -> list[Row]:
    """Return the rows of a `summary.json` of a study; none when the run was not tested."""
    head, mode, seed = summary.get("head") or "", summary.get("mode") or "", summary.get("seed") or 0
    hardware, run = summary.get("hardware", {}), summary["run_id"]
    name, test = data_of(run), _cities(summary, "test")
    metrics = {key.rsplit("/", 1)[-1]: value for key, value in summary.get("metrics", {}).items() if value is not None}
    common = {
        "experiment": summary["experiment"],
        "run": run,
        "variant": variant_of(run, head, mode),
        "head": head,
        "mode": mode,
        "split": _split(summary),
        "train_cities": _cities(summary, "train"),
        "test_cities": test,
        "place": name if name in study.areas else test,
        "data": "" if name in study.areas else name,
        "tuned_on": study.tuned_on,
        "seed": seed,
        "metrics": len(metrics),
        "n_train": summary.get("n_train", 0),
        "n_validation": summary.get("n_validation", 0),
        "scored": summary.get("validations", 0),
        "params_total": summary.get("params_total", 0),
        "params_trained": summary.get("params_trained", 0),
        "wall_s": summary.get("wall_s") or 0.0,
        "hardware": hardware.get("gpu") or f"{hardware.get('cores')} cores {hardware.get('cpu')}",
        "commit": (summary.get("commit") or "")[:10] + ("+" if summary.get("dirty") else ""),
    }
    return [Row(metric=name, value=value, **common) for name, value in metrics.items()]


def _cities(summary: dict[str, Any], side: str) -> str:
    """Return the cities of a side; they were called its places once."""
    cities: list[str] = summary.get(f"{side}_cities", summary.get(f"{side}_places", []))
    return "+".join(cities)


def _split(summary: dict[str, Any]) -> str:
    """Return the split rule and its guard band, if any: `spatial, guard 5 m`."""
    rule, guard = summary.get("split") or "", summary.get("guard")
    return f"{rule}, guard {guard:g} m" if guard else rule


def variant_of(run_id: str, head: str, mode: str) -> str:
    """Return the name of a run without mode, data and seed, and without its task where the head says it."""
    name = stem(run_id)
    return name.removesuffix("-zeroshot").removesuffix(f"-{mode}").removesuffix(f"-{head}").removeprefix("pretrain-")


def data_of(run_id: str) -> str:
    """Return the name of the data, or of the area, in the id of a run, empty where it has none."""
    found = _DATA_AND_SEED.search(run_id)
    return (found and found["data"]) or ""


def stem(run_id: str) -> str:
    """Return what the ids of runs have in common that differ in data and seed alone."""
    return _DATA_AND_SEED.sub("", run_id)


def collect(runs: Path, study: Study) -> list[Row]:
    """Return the rows of all tested runs of a study; a zero-shot test says of training what its pre-training says."""
    files = sorted((runs / study.name).glob("*/summary.json"))
    summaries = {summary["run_id"]: summary for summary in map(read_summary, files) if summary}
    trained = [_with_training(summary, summaries) for summary in summaries.values()]
    return [row for summary in trained for row in rows_of(summary, study)]


def _with_training(summary: dict[str, Any], summaries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a summary with what it lacks, or has of the data it was tested on, of the training behind it."""
    found = _ZERO_SHOT.fullmatch(summary["run_id"])
    if not found:
        return summary
    names = [f"pretrain-{found['variant']}{seed}" for seed in (found["seed"] or "", "")]
    behind = next((summaries[name] for name in names if name in summaries), {})
    return summary | {key: behind[key] for key in _OF_TRAINING if key in behind}


def read(file: Path) -> list[Row]:
    """Read `results.csv`."""
    if not file.exists():
        return []
    kinds = {field.name: field.type for field in fields(Row)}
    cast = {"str": str, "int": int, "float": float}
    with file.open(newline="") as stream:
        return [Row(**{k: cast[str(kinds[k])](v) for k, v in row.items()}) for row in csv.DictReader(stream)]


def write(file: Path, rows: Iterable[Row]) -> None:
    """Write `results.csv`, whole or not at all; the only writer."""
    temporary = file.with_suffix(".tmp")
    with temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    temporary.replace(file)


def with_run(rows: Iterable[Row], made: Iterable[Row]) -> list[Row]:
    """Return rows with those of one run put in the place of what there was of it: by study, then by run."""
    new = list(made)
    runs = {(row.experiment, row.run) for row in new}
    merged = [row for row in rows if (row.experiment, row.run) not in runs] + new
    order = {name: number for number, name in enumerate(dict.fromkeys(row.experiment for row in merged))}
    return sorted(merged, key=lambda row: (order[row.experiment], row.run))  # stable: metrics keep their order
