"""Results out of run summaries: rows, tables, and the two files that are built from them."""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

#: per metric: decimals, and factor before rounding
_FORMAT = {"accuracy": (1, 100), "balanced_accuracy": (1, 100), "f1": (3, 1), "se_ratio": (3, 1), "gain_db": (2, 1)}
_FORMAT |= {"nmse_db": (2, 1), "cosine": (3, 1)}
_FORMAT |= {f"top{k}": (1, 100) for k in (1, 3, 5)} | {f"{name}_m": (2, 1) for name in ("mean", "median", "cdf90")}
_UNITS = {"accuracy": "%", "balanced_accuracy": "%", "top1": "%", "top3": "%", "top5": "%", "gain_db": "dB"}
_UNITS |= {"mean_m": "m", "median_m": "m", "cdf90_m": "m", "nmse_db": "dB"}
#: zero-shot tasks, each with its chance level beside it
_TASKS: tuple[str, ...] = ("los_accuracy", "los_chance", "scale_accuracy", "scale_chance", "map_accuracy", "map_chance")
_TASKS += ("match_user", "match_user_chance", "match_area", "match_area_chance")
_FORMAT |= {name: (1, 100) for name in _TASKS}
_UNITS |= {name: "%" for name in _TASKS}
_TOWERS = ("channel", "environment")  # one head on two towers scores under the name of each
_FORMAT |= {f"{tower}_{name}": form for tower in _TOWERS for name, form in list(_FORMAT.items())}
_UNITS |= {f"{tower}_{name}": unit for tower in _TOWERS for name, unit in list(_UNITS.items())}


@dataclass(frozen=True)
class Row:
    """One metric of one run; the columns of `results.csv`."""

    experiment: str
    variant: str
    head: str
    mode: str
    split: str
    train_place: str
    test_place: str
    seed: int
    metric: str
    value: float
    n_train: int
    params_total: int
    params_trained: int
    wall_s: float
    hardware: str
    commit: str


def rows_of(summary: dict[str, Any]) -> list[Row]:
    """Return the rows of a `summary.json`; none when the run was not tested."""
    head, mode, seed = summary.get("head") or "", summary.get("mode") or "", summary.get("seed") or 0
    hardware = summary.get("hardware", {})
    common = {
        "experiment": summary["experiment"],
        "variant": variant_of(summary["run_id"], head, mode),
        "head": head,
        "mode": mode,
        "split": summary.get("split", ""),
        "train_place": "+".join(summary.get("train_places", [])),
        "test_place": "+".join(summary.get("test_places", [])),
        "seed": seed,
        "n_train": summary.get("n_train", 0),
        "params_total": summary.get("params_total", 0),
        "params_trained": summary.get("params_trained", 0),
        "wall_s": summary.get("wall_s") or 0.0,
        "hardware": hardware.get("gpu") or f"{hardware.get('cores')} cores {hardware.get('cpu')}",
        "commit": (summary.get("commit") or "")[:10] + ("+" if summary.get("dirty") else ""),
    }
    metrics = {key.rsplit("/", 1)[-1]: value for key, value in summary.get("metrics", {}).items() if value is not None}
    return [Row(metric=name, value=value, **common) for name, value in metrics.items()]


def variant_of(run_id: str, head: str, mode: str) -> str:
    """Return the name of a run without mode, place and seed, and without its task where the head says it."""
    name = re.sub(r"(-@[^-]+)?-s\d+$", "", run_id)
    return name.removesuffix(f"-{mode}").removesuffix(f"-{head}").removeprefix("pretrain-")


def collect(runs: Path, experiment: str) -> list[Row]:
    """Return the rows of all tested runs of an experiment."""
    files = sorted((runs / experiment).glob("*/summary.json"))
    return [row for file in files for row in rows_of(json.loads(file.read_text()))]


def read(file: Path) -> list[Row]:
    """Read `results.csv`."""
    if not file.exists():
        return []
    kinds = {field.name: field.type for field in fields(Row)}
    cast = {"str": str, "int": int, "float": float}
    with file.open(newline="") as stream:
        return [Row(**{k: cast[str(kinds[k])](v) for k, v in row.items()}) for row in csv.DictReader(stream)]


def write(file: Path, rows: Iterable[Row]) -> None:
    """Write `results.csv`; the only writer."""
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def table(rows: Iterable[Row]) -> str:
    """Return a Markdown table for each head: a line a variant and mode, mean and deviation over seeds."""
    by_head: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_head[row.head].append(row)
    return "\n\n".join(_table(head, group) for head, group in by_head.items())


def _table(head: str, rows: list[Row]) -> str:
    metrics = list(dict.fromkeys(row.metric for row in rows))
    cells: dict[tuple[str, str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    facts: dict[tuple[str, str, int], Row] = {}
    for row in rows:
        key = (row.variant, row.mode, row.n_train)
        cells[key][row.metric].append(row.value)
        facts[key] = row
    names = [f"{metric} [{_UNITS[metric]}]" if metric in _UNITS else metric for metric in metrics]
    lines = [
        f"| {head or 'zero-shot'} | mode | labels | " + " | ".join(names) + " | trained parameters | split | runs |",
        "|" + "---|" * (len(metrics) + 6),
    ]
    for key, values in cells.items():
        row = facts[key]
        shown = [_cell(metric, values[metric]) for metric in metrics]
        seeds = len(next(iter(values.values())))
        lines.append(
            f"| {row.variant} | {row.mode} | {row.n_train:,} | " + " | ".join(shown)
            + f" | {row.params_trained:,} | {row.split} | {seeds} |"
        )  # fmt: skip
    return "\n".join(lines)


def _cell(metric: str, values: list[float]) -> str:
    if not values:
        return ""
    decimals, factor = _FORMAT.get(metric, (3, 1))
    mean = factor * statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.{decimals}f}"
    return f"{mean:.{decimals}f} ± {factor * statistics.stdev(values):.{decimals}f}"


def publish(rows: list[Row], folder: Path, page: Path) -> None:
    """Merge rows into `results.csv`, an experiment replacing its earlier rows, and write `RESULTS.md` from it."""
    experiments = {row.experiment for row in rows}
    merged = [row for row in read(folder / "results.csv") if row.experiment not in experiments] + rows
    write(folder / "results.csv", merged)
    parts = ["# Results", "", "Built from `experiments/results.csv` by `make results`; no figure is typed.", ""]
    for experiment in dict.fromkeys(row.experiment for row in merged):
        group = [row for row in merged if row.experiment == experiment]
        note = folder / "studies" / f"{experiment}.yaml"
        comment = (
            [line.removeprefix("#").strip() for line in note.read_text().splitlines() if line.startswith("#")]
            if note.exists()
            else []
        )
        places = " -> ".join(dict.fromkeys([group[0].train_place, group[0].test_place]))
        hours = sum(wall_s for *_, wall_s in {(r.variant, r.head, r.mode, r.seed, r.wall_s) for r in group}) / 3600
        parts += [
            f"## {experiment}",
            "",
            *comment,
            "",
            f"`make study STUDY={experiment}`: {places}; {hours:.1f} h of training in all on {group[0].hardware}.",
            "",
            table(group),
            "",
        ]
    page.write_text("\n".join(parts))


def main() -> None:
    """Collect experiments into `experiments/results.csv` and `RESULTS.md`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("experiments", nargs="*", help="experiments to collect; none rebuilds RESULTS.md alone")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    rows = [row for name in options.experiments for row in collect(options.runs, name)]
    publish(rows, Path("experiments"), Path("RESULTS.md"))


if __name__ == "__main__":
    main()
