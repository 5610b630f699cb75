"""Results out of run summaries: rows, tables, and the two files that are built from them."""

from __future__ import annotations

import argparse
import csv
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from foundation.runtime.runs import read_summary

_SHARE, _METRES = (1, 100, "%"), (2, 1, "m")
#: per metric: decimals, factor before rounding, and unit
_KNOWN: dict[str, tuple[int, int, str]] = {
    **dict.fromkeys(("accuracy", "balanced_accuracy", "top1", "top3", "top5", "chance", "match"), _SHARE),
    **dict.fromkeys(("mean_m", "median_m", "cdf90_m"), _METRES),
    **dict.fromkeys(("gain_db", "nmse_db"), (2, 1, "dB")),
    "snr_db": (0, 1, "dB"),
}

#: of more metrics than that, tables leave out the details; `results.csv` has them all
_WIDEST = 24
_DETAIL = re.compile(r"_of_\d+$|_n?los(_p10)?$|rate$")

#: how the id of a study's run ends, see `study._name`
_PLACE_AND_SEED = re.compile(r"(-@(?P<place>.+))?-s\d+$")


@dataclass(frozen=True)
class Row:
    """One metric of one run; the columns of `results.csv`.

    Attributes:
        experiment: Name of the study.
        variant: Name of the run within it, without what other columns say.
        head: Task, empty for zero-shot.
        mode: `scratch`, `probe`, `finetune`, `control` or `zeroshot`.
        split: Split rule, with its guard band where it has one.
        train_place: Cities of the train side, joined by `+`.
        test_place: Those of the test side.
        place: Name that the study gives the data of the run (`Study.data`), empty where it has one for all.
        seed: Seed.
        metric: Name of the metric.
        value: Its value, in SI units or as a fraction.
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
    variant: str
    head: str
    mode: str
    split: str
    train_place: str
    test_place: str
    place: str
    seed: int
    metric: str
    value: float
    n_train: int
    n_validation: int
    scored: int
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
        "split": _split(summary),
        "train_place": "+".join(summary.get("train_places", [])),
        "test_place": "+".join(summary.get("test_places", [])),
        "place": place_of(summary["run_id"]),
        "seed": seed,
        "n_train": summary.get("n_train", 0),
        "n_validation": summary.get("n_validation", 0),
        "scored": summary.get("validations", 0),
        "params_total": summary.get("params_total", 0),
        "params_trained": summary.get("params_trained", 0),
        "wall_s": summary.get("wall_s") or 0.0,
        "hardware": hardware.get("gpu") or f"{hardware.get('cores')} cores {hardware.get('cpu')}",
        "commit": (summary.get("commit") or "")[:10] + ("+" if summary.get("dirty") else ""),
    }
    metrics = {key.rsplit("/", 1)[-1]: value for key, value in summary.get("metrics", {}).items() if value is not None}
    return [Row(metric=name, value=value, **common) for name, value in metrics.items()]


def _split(summary: dict[str, Any]) -> str:
    """Return the split rule and its guard band, if any: `spatial, guard 5 m`."""
    rule, guard = summary.get("split") or "", summary.get("guard")
    return f"{rule}, guard {guard:g} m" if guard else rule


def variant_of(run_id: str, head: str, mode: str) -> str:
    """Return the name of a run without mode, place and seed, and without its task where the head says it."""
    name = _PLACE_AND_SEED.sub("", run_id)
    return name.removesuffix("-zeroshot").removesuffix(f"-{mode}").removesuffix(f"-{head}").removeprefix("pretrain-")


def place_of(run_id: str) -> str:
    """Return the place in the name of a run, empty where it names none."""
    found = _PLACE_AND_SEED.search(run_id)
    return (found and found["place"]) or ""


def collect(runs: Path, experiment: str) -> list[Row]:
    """Return the rows of all tested runs of an experiment."""
    files = sorted((runs / experiment).glob("*/summary.json"))
    return [row for summary in map(read_summary, files) if summary for row in rows_of(summary)]


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
    """Return a Markdown table for each head: a line a variant, mode and city, mean and deviation over seeds.

    Several places of one city, such as ten areas, are averaged within every seed first: how much they differ is no
    spread over seeds.
    """
    by_head: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_head[row.head].append(row)
    return "\n\n".join(_table(head, group) for head, group in by_head.items())


def _table(head: str, rows: list[Row]) -> str:
    metrics = list(dict.fromkeys(row.metric for row in rows))
    if len(metrics) > _WIDEST:
        metrics = [metric for metric in metrics if not _DETAIL.search(metric)]
    lines: dict[tuple[str, str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        lines[row.variant, row.mode, row.test_place, row.n_train].append(row)
    with_places = any(row.place for row in rows)
    names = [f"{metric} [{unit}]" if (unit := _form(metric)[2]) else metric for metric in metrics]
    untuned = "zero-shot" if any(row.mode == "zeroshot" for row in rows) else "pre-training"
    columns = [head or untuned, "mode", *["place"] * with_places, "labels", *names]
    columns += ["trained parameters", "split", "checkpoint", "seeds"]
    shown = []
    for group in lines.values():
        row, places, seeds = group[0], _shared_places(group), {row.seed for row in group}
        where = f"{len(places)} of {row.test_place}" if len(places) > 1 else next(iter(places))
        values = [_cell(metric, _by_seed(metric, group, places)) for metric in metrics]
        start = [row.variant, row.mode, *[where] * with_places, f"{row.n_train:,}"]
        shown.append([*start, *values, f"{row.params_trained:,}", row.split, _choice(group), str(len(seeds))])
    ruled = [f"| {' | '.join(cells)} |" for cells in [columns, *shown]]
    return "\n".join([ruled[0], "|" + "---|" * len(columns), *ruled[1:]])


def _shared_places(rows: list[Row]) -> set[str]:
    """Return the places that every seed has; all of them where there is none."""
    by_seed: dict[int, set[str]] = defaultdict(set)
    for row in rows:
        by_seed[row.seed].add(row.place)
    return set.intersection(*by_seed.values()) or set.union(*by_seed.values())


def _by_seed(metric: str, rows: list[Row], places: set[str]) -> list[float]:
    """Return the mean over places for each seed."""
    values: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row.metric == metric and row.place in places:
            values[row.seed].append(row.value)
    return [statistics.fmean(of_seed) for of_seed in values.values()]


def _choice(rows: list[Row]) -> str:
    """Say which checkpoint of a run was tested, and by how many links it was chosen; nothing where runs differ."""
    scored, links = ({getattr(row, name) for row in rows} for name in ("scored", "n_validation"))
    if len(scored) > 1 or 0 in scored:
        return ""
    if scored == {1}:
        return "last"
    by = f" by {links.pop():,} links" if len(links) == 1 and 0 not in links else ""
    return f"best of {scored.pop()}{by}"


def in_words(metric: str, values: Iterable[float]) -> str:
    """Return mean and deviation of the values of a metric, with its unit."""
    return f"{_cell(metric, list(values))} {_form(metric)[2]}".rstrip()


def _form(metric: str) -> tuple[int, int, str]:
    """Return decimals, factor and unit of a metric: those of the longest end of its name that is known, or its start.

    What a model puts around it, a task or an encoder, changes nothing: `los_accuracy`, `channel_top1`, `match_area`.
    """
    words = metric.split("_")
    names = ["_".join(words[start:]) for start in range(len(words))]
    return next((_KNOWN[name] for name in (*names, words[0]) if name in _KNOWN), (3, 1, ""))


def _cell(metric: str, values: list[float]) -> str:
    if not values:
        return ""
    decimals, factor, _ = _form(metric)
    mean = factor * statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.{decimals}f}"
    return f"{mean:.{decimals}f} ± {factor * statistics.stdev(values):.{decimals}f}"


#: how to read every table
_PREFACE = (
    "Built from `experiments/results.csv` by `make results`; no figure is typed. ± is the standard deviation over",
    "seeds; several places of one city are averaged within each seed first. `labels` is the number of links that a run",
    "learned from. `checkpoint` says which of a run's checkpoints was tested: `last` is the one at its end, `best of 4",
    "by 186 links` the best of 4 on so many labelled links of the validation side, which come on top of `labels`.",
    "`split` is the rule that dealt the users: `spatial, guard 5 m` dropped those of the train side that stood nearer",
    "than that to one of another side; rows that say `spatial` alone have no guard band, which flatters them.",
)


def publish(rows: list[Row], folder: Path, page: Path) -> None:
    """Merge rows into `results.csv`, an experiment replacing its earlier rows, and write `RESULTS.md` from it."""
    experiments = {row.experiment for row in rows}
    merged = [row for row in read(folder / "results.csv") if row.experiment not in experiments] + rows
    write(folder / "results.csv", merged)
    parts = ["# Results", "", *_PREFACE, ""]
    for experiment in dict.fromkeys(row.experiment for row in merged):
        group = [row for row in merged if row.experiment == experiment]
        note = folder / "studies" / f"{experiment}.yaml"
        comment = (
            [line.removeprefix("#").strip() for line in note.read_text().splitlines() if line.startswith("#")]
            if note.exists()
            else []
        )
        sides = ([row.train_place for row in group], [row.test_place for row in group])
        places = " -> ".join(dict.fromkeys(", ".join(dict.fromkeys(side)) for side in sides))
        runs = {(row.variant, row.head, row.mode, row.place, row.seed, row.wall_s) for row in group}
        hours = sum(wall_s for *_, wall_s in runs) / 3600
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
