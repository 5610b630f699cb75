"""Rows of `experiments/results.csv`, each one metric of one run, read from `summary.json` of runs."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from datamodules.files import write_whole
from foundation.runtime.runs import read_summary
from foundation.studies.study import Study

#: the file of all rows
ROWS = Path("experiments/results.csv")
_ZERO_SHOT = re.compile(r"(?P<variant>.+)-zeroshot(-@.+?)?(?P<seed>-s\d+)?")
#: keys of a summary that describe training, with their values where it is not known
_OF_TRAINING = {"n_train": 0, "n_validation": 0, "train_cities": [], "validations": 0, "wall_s": 0.0}
#: suffix of the run ids of a study, see `study._name`
_DATA_AND_SEED = re.compile(r"(-@(?P<data>.+?))?(-s\d+)?$")

#: assumed durations of a run and of a zero-shot test where rows have none to estimate them from [s]
_GUESS, _TEST = 60.0, 20.0
#: start of the id of a pre-training, and end of that of a zero-shot test, see `study._name`
_PRETRAINING, _TESTED_ALONE = "pretrain-", "-zeroshot"


@dataclass(frozen=True)
class Row:
    """One metric of one run; the columns of `results.csv`.

    Attributes:
        experiment: Name of the study.
        run: Id of the run.
        variant: Name of the variant within the study.
        head: Task, empty for zero-shot.
        mode: `scratch`, `probe`, `finetune`, `control` or `zeroshot`.
        split: Split rule, with its guard band where it has one.
        train_cities: Cities of the train side, joined by `+`.
        test_cities: Those of the test side.
        place: Where the run was tested: the area, in studies over several areas (`Study.areas`), else the cities of the
            test side.
        data: Name of the data in `Study.data`, empty in studies on one data set.
        tuned_on: The data on which sizes, steps and learning rates were chosen (`Study.tuned_on`).
        seed: Seed.
        metric: Name of the metric.
        value: Its value, in SI units or as a fraction.
        metrics: Number of metrics of the run, one row each, by which missing rows are found.
        n_train: Number of training links, labelled if the task has labels; 0 if not recorded. Of a zero-shot test, as
            the next two, those of the model's pre-training.
        n_validation: Number of validation links; 0 if not recorded.
        scored: Number of checkpoints scored on the validation side, of which the best was tested; 1 if only the last
            was, without a choice; 0 if not recorded, or without training.
        params_total: Number of parameters.
        params_trained: Number of trained parameters.
        wall_s: Duration of the training [s].
        hardware: Hardware.
        commit: Commit of this repository, with `+` if files differed from it.
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
    """Return the rows of a `summary.json` of a study; none for a run without a test."""
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
    """Return the cities of a side; older summaries call them places."""
    cities: list[str] = summary.get(f"{side}_cities", summary.get(f"{side}_places", []))
    return "+".join(cities)


def _split(summary: dict[str, Any]) -> str:
    """Return the split rule and its guard band, if any: `spatial, guard 5 m`."""
    rule, guard = summary.get("split") or "", summary.get("guard")
    return f"{rule}, guard {guard:g} m" if guard else rule


def variant_of(run_id: str, head: str, mode: str) -> str:
    """Return the variant in a run id, without mode, data, seed and the name of the head."""
    name = stem(run_id)
    return name.removesuffix("-zeroshot").removesuffix(f"-{mode}").removesuffix(f"-{head}").removeprefix("pretrain-")


def data_of(run_id: str) -> str:
    """Return the name of the data or area in a run id, empty if there is none."""
    found = _DATA_AND_SEED.search(run_id)
    return (found and found["data"]) or ""


def stem(run_id: str) -> str:
    """Return a run id without data and seed."""
    return _DATA_AND_SEED.sub("", run_id)


def collect(runs: Path, study: Study) -> list[Row]:
    """Return the rows of all tested runs of a study; zero-shot tests have the training keys of their pre-training."""
    files = sorted((runs / study.name).glob("*/summary.json"))
    summaries = {summary["run_id"]: summary for summary in map(read_summary, files) if summary}
    trained = [_with_training(summary, summaries, runs, study) for summary in summaries.values()]
    return [row for summary in trained for row in rows_of(summary, study)]


def _with_training(
    summary: dict[str, Any], summaries: dict[str, dict[str, Any]], runs: Path, study: Study
) -> dict[str, Any]:
    """Return a summary in which the training keys of a zero-shot test are those of its pre-training.

    The keys of the test itself describe the train side of the data that it is tested on, which no model was trained on.
    """
    found = _ZERO_SHOT.fullmatch(summary["run_id"])
    if not found:
        return summary
    names = [f"pretrain-{found['variant']}{seed}" for seed in (found["seed"] or "", "")]
    behind = next((summaries[name] for name in names if name in summaries), {})
    if folder := study.source_run(runs, found["variant"], data_of(summary["run_id"]), summary.get("seed") or 0):
        behind = read_summary(folder / "summary.json")
    cities = behind.get("train_cities", behind.get("train_places", []))
    return (
        summary | _OF_TRAINING | {key: behind[key] for key in _OF_TRAINING if key in behind} | {"train_cities": cities}
    )


def read(file: Path) -> list[Row]:
    """Read `results.csv`."""
    if not file.exists():
        return []
    kinds = {field.name: field.type for field in fields(Row)}
    cast = {"str": str, "int": int, "float": float}
    with file.open(newline="") as stream:
        return [Row(**{k: cast[str(kinds[k])](v) for k, v in row.items()}) for row in csv.DictReader(stream)]


def write(file: Path, rows: Iterable[Row]) -> None:
    """Write `results.csv` atomically; no other function writes it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_whole(file, text.getvalue())


def with_rows(rows: Iterable[Row], new: Sequence[Row]) -> list[Row]:
    """Return rows in which those of some runs replace their earlier ones, sorted by study, then by run."""
    earlier, runs = list(rows), {(row.experiment, row.run) for row in new}
    order = {name: number for number, name in enumerate(dict.fromkeys(row.experiment for row in [*earlier, *new]))}
    merged = [*(row for row in earlier if (row.experiment, row.run) not in runs), *new]
    return sorted(merged, key=lambda row: (order[row.experiment], row.run))  # stable: metrics keep their order


class Durations:
    """Estimates how long runs take.

    Args:
        rows: Existing rows, which have the durations of their runs.

    Attributes:
        guessed: The part of all estimates so far that no row of such a run supports [s].
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.guessed = 0.0
        self._known: dict[tuple[str, str], list[float]] = defaultdict(list)
        for row in (row for row in rows if row.wall_s > 0):
            name = stem(row.run)  # the duration in a row of a zero-shot test is that of the training behind it
            name = f"{_PRETRAINING}{row.variant}" if name.endswith(_TESTED_ALONE) else name
            self._known[row.experiment, name].append(row.wall_s)

    def of(self, experiment: str, run: str) -> float:
        """Return the estimated duration of a run [s].

        It is the mean of runs of the same name; else of the study's pre-trainings or of its other runs, whichever it is
        one of; else, of a pre-training, the median of all pre-trainings, which take much longer than what follows.
        """
        name = stem(run)
        if known := self._known.get((experiment, name)):
            return statistics.fmean(known)
        pretraining = name.startswith(_PRETRAINING)
        like = {key: each for key, each in self._known.items() if key[1].startswith(_PRETRAINING) == pretraining}
        of_study = [seconds for key, each in like.items() if key[0] == experiment for seconds in each]
        if name.endswith(_TESTED_ALONE):
            guess = _TEST
        elif of_study:
            guess = statistics.fmean(of_study)
        else:
            guess = statistics.median(map(statistics.fmean, like.values())) if pretraining and like else _GUESS
        self.guessed += guess
        return guess
