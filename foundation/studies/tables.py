"""Tables of rows: means and deviations over seeds, in Markdown."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from foundation.studies.rows import Row

_SHARE, _METRES = (1, 100, "%"), (2, 1, "m")
#: per metric: decimals, factor before rounding, and unit
_KNOWN: dict[str, tuple[int, int, str]] = {
    "macs": (0, 1, ""),
    **dict.fromkeys(("accuracy", "balanced_accuracy", "top1", "top3", "top5", "chance", "match", "replaces"), _SHARE),
    **dict.fromkeys(("mean_m", "median_m", "cdf90_m"), _METRES),
    **dict.fromkeys(("gain_db", "nmse_db", "forgotten_db"), (2, 1, "dB")),
    "snr_db": (0, 1, "dB"),
}

#: computational cost of a model for one link
_COSTS = {"macs": "multiply-adds a link", "cpu_ms": "CPU [ms] a link"}

#: above this number of metrics, a table has separate lines for references
_WIDEST = 12
#: metrics that wide tables omit, which are in `results.csv`: first to last, until a table is narrow enough
_DETAILS = (re.compile(r"_of_\d+$|nmse_db_\d+$"), re.compile(r"_n?los(_p10)?$|nmse_antenna_db$|fd_t_max$|top3$"))
#: the task in the name of a variant, where its YAML is not named after the head
_TASK = re.compile(r"-toft_\w+$")
#: least number of metrics, such as `cosine` and `grid_cosine`, common to run and reference for a separate line
_SHARED = 3
#: metrics of the test data, the same for a run and its references
_OF_DATA = ("snr_db", "fd_t", "fd_t_max")
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
    return "\n\n".join(part for head, group in by_head.items() for part in _tables(head, group))


def _tables(head: str, rows: Sequence[Row]) -> Iterator[str]:
    """Yield the table of the metrics of a head and, where they were measured, that of computational costs."""
    costs = [row for row in rows if row.metric.endswith(tuple(_COSTS))]
    yield _table(head, [row for row in rows if not row.metric.endswith(tuple(_COSTS))])
    if costs:
        known = dict.fromkeys(row.metric for row in costs)
        cut = (name.removesuffix(f"_{cost}") for name in known for cost in _COSTS if name.endswith(f"_{cost}"))
        yield _costs(costs, [*dict.fromkeys(row.variant for row in costs)], [*dict.fromkeys(cut)])


def _side_by_side(rows: Sequence[Row], metric: str) -> str:
    """Return Markdown tables of one metric, a column for each data name, and of the costs of its models.

    Lines are variants, then references.

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
    data = sorted({row.data for row in rows}, key=_number_wise)
    lines = [[f"{_titled(metric)} by data", *data]]
    lines += [[_titled(name), *(cell(name, by_seed(name, groups[place, name])) for place in data)] for name in facts]
    for name in variants:
        own_rows = ([row for row in groups[place, metric] if row.variant == name] for place in data)
        lines.append([name, *(cell(metric, by_seed(metric, group)) for group in own_rows)])
    for name in references:
        values = (by_seed(f"{name}_{metric}", groups[place, f"{name}_{metric}"]) for place in data)
        lines.append([f"*{name}*", *(cell(metric, each) for each in values)])
    lines.append(["seeds", *(str(len({row.seed for row in groups[place, metric]})) for place in data)])
    return f"{ruled(lines)}\n\n{_costs(rows, variants, references)}"


def _number_wise(name: str) -> list[tuple[str, int]]:
    """Return a sort key by which snr_5 comes before snr_10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _costs(rows: Sequence[Row], variants: Sequence[str], references: Sequence[str]) -> str:
    """Return a table of labels, parameters and computational cost by variant, and of the cost of references."""
    known = {row.metric for row in rows}
    costs = {name: words for name, words in _COSTS.items() if name in known}
    lines = [["model", "labels", "parameters", *costs.values()]]
    for variant in variants:
        group = [row for row in rows if row.variant == variant]
        spent = [[row.value for row in group if row.metric == name] for name in costs]
        means = [f"{statistics.fmean(values):.3g}" if values else "" for values in spent]
        lines.append([variant, f"{group[0].n_train:,}", f"{group[0].params_total:,}", *means])
    for reference in references:
        spent = [[row.value for row in rows if row.metric == f"{reference}_{name}"] for name in costs]
        if any(spent):
            means = [f"{statistics.fmean(values):.3g}" if values else "" for values in spent]
            lines.append([f"*{reference}*", "", "", *means])
    return ruled(lines)


def _titled(metric: str) -> str:
    """Return the title of the column of a metric: its name and unit."""
    return f"{metric} [{unit}]" if (unit := _form(metric)[2]) else metric


def _table(head: str, rows: list[Row]) -> str:
    if len({row.metric for row in rows}) > _WIDEST:
        rows = _with_references(rows)
    for detail in _DETAILS:
        if len({row.metric for row in rows}) > _WIDEST:
            rows = [row for row in rows if not detail.search(row.metric)]
    metrics = list(dict.fromkeys(row.metric for row in rows))
    lines: dict[tuple[str, str, str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        lines[row.variant, row.mode, row.data, row.test_cities, row.n_train].append(row)
    with_data, with_places = any(row.data for row in rows), len({row.place for row in rows}) > 1
    untuned = "zero-shot" if any(row.mode == "zeroshot" for row in rows) else "pre-training"
    columns = [head or untuned, "mode", *["data"] * with_data, *["place"] * with_places, "labels"]
    alike = len(columns)
    columns += [*map(_titled, metrics), "trained parameters", "split", "checkpoint", "seeds"]
    shown: list[list[str]] = []
    for group in lines.values():
        row, places, seeds = group[0], shared_places(group), {row.seed for row in group}
        where = f"{len(places)} areas of {row.test_cities}" if len(places) > 1 else next(iter(places))
        values = [cell(metric, by_seed(metric, group)) for metric in metrics]
        start = [
            _TASK.sub("", row.variant),
            row.mode,
            *[row.data] * with_data,
            *[where] * with_places,
            f"{row.n_train:,}" if row.n_train else "",
        ]
        shown.append([*start, *values, f"{row.params_trained:,}", row.split, _choice(group), str(len(seeds))])
    return ruled([columns, *_once(shown, alike)])


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
    beside: dict[str, dict[str, None]] = defaultdict(dict)
    for row in (row for row in rows if row.metric in parts):
        beside[row.run][parts[row.metric][0]] = None
    own = [row for row in rows if row.metric not in parts]
    for row in rows:
        shared = [(name, row.metric) for name in beside[row.run]] if row.metric in _OF_DATA else []
        for name, rest in [parts[row.metric]] if row.metric in parts else shared:
            facts: dict[str, Any] = {"mode": "control", "params_trained": 0, "scored": 0}
            own.append(replace(row, variant=f"{name}{_OF}{row.variant}", metric=rest, **facts))
    return own


def _once(lines: list[list[str]], alike: int) -> list[list[str]]:
    """Merge the lines of a reference with equal scores in several runs into one, under its own name.

    A reference whose scores differ between runs is named with the first run of each line.

    Args:
        lines: Cells of the lines, the name first.
        alike: Number of first cells that identify a line.
    """
    kept: dict[tuple[str, ...], list[str]] = {}
    for name, *cells in lines:
        kept.setdefault((name.partition(_OF)[0] if _OF in name else name, *cells), [name, *cells])
    counts = Counter((line[0].partition(_OF)[0], *line[1:alike]) for line in kept.values())
    for line in kept.values():
        short = line[0].partition(_OF)[0]
        line[0] = line[0] if counts[short, *line[1:alike]] > 1 else short
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
