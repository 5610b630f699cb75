"""Tables of rows: means and deviations over seeds, in Markdown."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from foundation.studies.rows import Row

_SHARE, _METRES = (1, 100, "%"), (2, 1, "m")
#: per metric: decimals, factor before rounding, and unit
_KNOWN: dict[str, tuple[int, int, str]] = {
    **dict.fromkeys(("accuracy", "balanced_accuracy", "top1", "top3", "top5", "chance", "match", "replaces"), _SHARE),
    **dict.fromkeys(("mean_m", "median_m", "cdf90_m"), _METRES),
    **dict.fromkeys(("gain_db", "nmse_db", "forgotten_db"), (2, 1, "dB")),
    "snr_db": (0, 1, "dB"),
}

#: computational cost of a model for one link
_COSTS = {"macs": "multiply-adds a link", "cpu_ms": "CPU [ms] a link"}

#: above this number of metrics, tables have separate lines for references and omit details, which are in `results.csv`
_WIDEST = 24
_DETAIL = re.compile(r"_of_\d+$|_n?los(_p10)?$|rate$|nmse_(db_\d+|antenna_db)$")
#: least number of metrics, such as `cosine` and `grid_cosine`, common to run and reference for a separate line
_SHARED = 3
#: separator of a reference and the run that scored it
_OF = " beside "


def table(rows: Sequence[Row], metric: str = "") -> str:
    """Return a Markdown table for each head: mean and standard deviation over seeds by variant, mode, data and city.

    Several areas of one city are averaged within each seed first, so that the deviation is over seeds only.

    Args:
        rows: Rows of one study.
        metric: `Study.metric`, with which there is one table of that metric alone.
    """
    if metric and any(row.metric == metric for row in rows):
        return _side_by_side(rows, metric)
    by_head: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_head[row.head].append(row)
    return "\n\n".join(_table(head, group) for head, group in by_head.items())


def _side_by_side(rows: Sequence[Row], metric: str) -> str:
    """Return one Markdown table of one metric: a line for each data name, a column for each variant and reference.

    Args:
        rows: Rows of runs that were made on several data (`Study.data`).
        metric: The metric shown, such as `nmse_db`; metrics with a prefix, such as `hold_nmse_db`, are references.
            Other metrics that are equal for all variants, such as f_D T, come first.
    """
    rows = [row for row in rows if row.data]
    known = dict.fromkeys(row.metric for row in rows)
    references = [name.removesuffix(f"_{metric}") for name in known if name.endswith(f"_{metric}")]
    variants = list(dict.fromkeys(row.variant for row in rows))
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.data, row.metric].append(row)
    of_reference = tuple(f"{name}_" for name in references)
    varied = {
        name
        for (_, name), group in groups.items()
        if len({(row.seed, row.value) for row in group}) > len({row.seed for row in group})
    }
    own = {metric, *_COSTS, *varied}
    facts = [name for name in known if name not in own and not name.startswith(of_reference)]
    unit = f" [{_form(metric)[2]}]" if _form(metric)[2] else ""
    lines = [["data", *facts, *(f"{name}{unit}" for name in (*variants, *references)), "seeds"]]
    for data in dict.fromkeys(row.data for row in rows):
        shown = [cell(name, by_seed(name, groups[data, name])) for name in facts]
        group = groups[data, metric]
        shown += [cell(metric, by_seed(metric, [row for row in group if row.variant == name])) for name in variants]
        shown += [cell(metric, by_seed(f"{name}_{metric}", groups[data, f"{name}_{metric}"])) for name in references]
        lines.append([data, *shown, str(len({row.seed for row in group}))])
    first = [next(row for row in rows if row.variant == name) for name in variants]
    costs = {"labels": [f"{row.n_train:,}" for row in first], "parameters": [f"{row.params_total:,}" for row in first]}
    for name, words in _COSTS.items():
        spent = [by_seed(name, [r for r in rows if (r.variant, r.metric) == (row.variant, name)]) for row in first]
        if any(spent):
            costs[words] = [f"{statistics.fmean(values):.3g}" if values else "" for values in spent]
    lines += [[words, *[""] * len(facts), *values, *[""] * (len(references) + 1)] for words, values in costs.items()]
    return ruled(lines)


def _table(head: str, rows: list[Row]) -> str:
    if len({row.metric for row in rows}) > _WIDEST:
        rows = _with_references(rows)
    metrics = list(dict.fromkeys(row.metric for row in rows))
    if len(metrics) > _WIDEST:
        metrics = [metric for metric in metrics if not _DETAIL.search(metric)]
    lines: dict[tuple[str, str, str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        lines[row.variant, row.mode, row.data, row.test_cities, row.n_train].append(row)
    with_data, with_places = any(row.data for row in rows), len({row.place for row in rows}) > 1
    names = [f"{metric} [{unit}]" if (unit := _form(metric)[2]) else metric for metric in metrics]
    untuned = "zero-shot" if any(row.mode == "zeroshot" for row in rows) else "pre-training"
    columns = [head or untuned, "mode", *["data"] * with_data, *["place"] * with_places, "labels", *names]
    columns += ["trained parameters", "split", "checkpoint", "seeds"]
    shown: list[list[str]] = []
    for group in lines.values():
        row, places, seeds = group[0], shared_places(group), {row.seed for row in group}
        where = f"{len(places)} areas of {row.test_cities}" if len(places) > 1 else next(iter(places))
        values = [cell(metric, by_seed(metric, group)) for metric in metrics]
        start = [row.variant, row.mode, *[row.data] * with_data, *[where] * with_places, f"{row.n_train:,}"]
        shown.append([*start, *values, f"{row.params_trained:,}", row.split, _choice(group), str(len(seeds))])
    return ruled([columns, *_once(shown)])


def _with_references(rows: list[Row]) -> list[Row]:
    """Return rows in which metrics of a reference, such as `grid_cosine`, belong to a variant of its name."""
    known, parts = {row.metric for row in rows}, {}
    for metric in known:
        words = metric.split("_")
        cuts = (("_".join(words[:at]), "_".join(words[at:])) for at in range(1, len(words)))
        if found := next((cut for cut in cuts if cut[1] in known), None):
            parts[metric] = found
    names = Counter(name for name, _ in parts.values())
    parts = {metric: (name, rest) for metric, (name, rest) in parts.items() if names[name] >= _SHARED}
    own = [row for row in rows if row.metric not in parts]
    for row in (row for row in rows if row.metric in parts):
        name, rest = parts[row.metric]
        facts: dict[str, Any] = {"mode": "control", "params_trained": 0, "scored": 0}
        own.append(replace(row, variant=f"{name}{_OF}{row.variant}", metric=rest, **facts))
    return own


def _once(lines: list[list[str]]) -> list[list[str]]:
    """Merge the lines of a reference with equal scores in several runs into one, under its own name."""
    kept: dict[tuple[str, ...], list[str]] = {}
    for name, *cells in lines:
        reference, of, _ = name.partition(_OF)
        kept.setdefault((reference, *cells) if of else (name, *cells), [reference, *cells])
    return list(kept.values())


def ruled(lines: list[list[str]]) -> str:
    """Return lines of cells, the header first, as a Markdown table."""
    first, *body = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([first, "|" + "---|" * len(lines[0]), *body])


def shared_places(rows: list[Row]) -> set[str]:
    """Return the places that are common to all seeds; all places if there is none."""
    by_seed: dict[int, set[str]] = defaultdict(set)
    for row in rows:
        by_seed[row.seed].add(row.place)
    return set.intersection(*by_seed.values()) or set.union(*by_seed.values())


def by_seed(metric: str, rows: list[Row]) -> list[float]:
    """Return for each seed the mean of a metric over the places common to all seeds; empty without rows."""
    places = shared_places(rows) if rows else set()
    values: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row.metric == metric and row.place in places:
            values[row.seed].append(row.value)
    return [statistics.fmean(of_seed) for of_seed in values.values()]


def _choice(rows: list[Row]) -> str:
    """Return which checkpoint was tested and the number of links that chose it; empty where runs differ."""
    scored, links = ({getattr(row, name) for row in rows} for name in ("scored", "n_validation"))
    if len(scored) > 1 or 0 in scored:
        return ""
    if scored == {1}:
        return "last"
    by = f" by {links.pop():,} links" if len(links) == 1 and 0 not in links else ""
    return f"best of {scored.pop()}{by}"


def format_values(metric: str, values: Iterable[float]) -> str:
    """Return mean and standard deviation of the values of a metric, with its unit."""
    return f"{cell(metric, list(values))} {_form(metric)[2]}".rstrip()


def _form(metric: str) -> tuple[int, int, str]:
    """Return decimals, factor and unit of a metric, by the longest known suffix of its name, or else prefix.

    Prefixes and suffixes of tasks and encoders are ignored: `los_accuracy`, `channel_top1`, `match_area`.
    """
    words = metric.split("_")
    names = ["_".join(words[start:]) for start in range(len(words))]
    return next((_KNOWN[name] for name in (*names, words[0]) if name in _KNOWN), (3, 1, ""))


def cell(metric: str, values: list[float]) -> str:
    """Return mean and standard deviation of the values of a metric, without its unit; empty without values."""
    if not values:
        return ""
    decimals, factor, _ = _form(metric)
    mean = factor * statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.{decimals}f}"
    return f"{mean:.{decimals}f} ± {factor * statistics.stdev(values):.{decimals}f}"
