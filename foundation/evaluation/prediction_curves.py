"""Pictures of the studies of prediction: NMSE over test conditions, f_D T, SNR, horizons and the share of labels.

`make results` writes them into `docs/`.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.errors import InputError
from datamodules.plots.style import PALETTE, empty_figure
from foundation.runtime.stopping import exit_status
from foundation.studies.rows import Row, collect
from foundation.studies.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: the studies: over test conditions, and over horizons
STUDIES = ("prediction", "prediction_horizon")
#: classical predictors of which the best is drawn
_CLASSICAL = ("ar1", "kalman", "wiener", "link_ar", "pad", "pad_vector")
#: line styles of predictors without learned weights
_GIVEN = {"hold": ":", "classical": "--", "limit_bin": "-.", "limit": "-"}
_WORDS = {
    "hold": "the last snapshot", "classical": "best classical predictor",
    "limit_bin": "limit of a bin's own past, the rays known", "limit": "limit, the rays known",
}  # fmt: skip
#: cells that differ in f_D T alone, beside those named `doppler_...`
_DOPPLER = ("pedestrian", "fast")
#: a variant with another number of labels: the name of the base variant and a percentage
_SHARE = re.compile(r"(.+?)(_\d+)?")
#: the variant whose encoder is trained with the head, on all labels
_SCRATCH = "scratch"
#: captions of the pictures by name
CAPTIONS = {
    "prediction_cells": "NMSE of the next channel in every cell, of the main variants beside what is not learned",
    "prediction_curves": "NMSE over the Doppler shift, the SNR and the horizon",
    "prediction_labels": "NMSE over the share of labels that a frozen encoder is given, beside training from scratch",
}
_MARKERS = "osD^v<>"

#: lines of points (value, NMSE [dB]) by predictor
Lines = dict[str, list[tuple[float, float]]]


def cells(rows: Sequence[Row], metric: str = "nmse_db") -> dict[str, dict[str, float]]:
    """Return the NMSE [dB] by name of the data and of the predictor, means over seeds.

    In addition to the variants: `hold`; `classical`, the best classical predictor on those data; `limit_bin` and
    `limit`, where they were computed; and the conditions `fd_t` and `snr_db` [dB]. These are means over variants as
    well as seeds.

    Args:
        rows: Rows of one study.
        metric: `nmse_db`, or `nmse_db_1` and so on for one of several horizons.
    """
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row.data and (row.metric.endswith(metric) or row.metric in ("fd_t", "snr_db")):
            name = row.variant if row.metric == metric else row.metric.removesuffix(f"_{metric}")
            values[row.data, name].append(row.value)
    found: dict[str, dict[str, float]] = {}
    variants = sorted({row.variant for row in rows if row.metric == metric})
    for data in dict.fromkeys(data for data, _ in values):
        held = {name: statistics.fmean(each) for (where, name), each in values.items() if where == data}
        scored = [held[name] for name in _CLASSICAL if name in held]
        classical = {"classical": min(scored)} if scored else {}
        kept = {name: held[name] for name in (*variants, *_GIVEN, "fd_t", "snr_db") if name in held}
        found[data] = kept | classical
    return found


def main_variants(names: Sequence[str]) -> list[str]:
    """Return the variants that are not another one with a suffix, such as `filter_20` and `filter_los` of `filter`."""
    return [name for name in names if not any(name.startswith(f"{other}_") for other in names)]


def plot_cells(found: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the NMSE of the main variants: a group of points for each cell, with its f_D T and SNR."""
    variants = main_variants(_variants(found))
    figure = empty_figure(2.0 + 0.8 * len(found), 5.0)
    axes = figure.add_subplot()
    for name, style in _GIVEN.items():
        spots = [(number, cell[name]) for number, cell in enumerate(found.values()) if name in cell]
        if spots:
            where, levels = zip(*spots, strict=True)
            ends = [number - 0.4 for number in where], [number + 0.4 for number in where]
            axes.hlines(levels, *ends, color="black", linestyle=style, label=_WORDS[name])
    for rank, name in enumerate(variants):
        offset = 0.6 * ((rank + 0.5) / len(variants) - 0.5)
        points = [(number + offset, cell[name]) for number, cell in enumerate(found.values()) if name in cell]
        axes.plot(*zip(*points, strict=True), linestyle="", label=name, **_style(rank))
    names = [
        f"{data}: $f_D T$ {cell.get('fd_t', float('nan')):.2f}, {cell.get('snr_db', float('nan')):.0f} dB"
        for data, cell in found.items()
    ]
    axes.set_xticks(range(len(found)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize="small")
    axes.set(ylabel="NMSE of the next channel [dB]")
    axes.grid(axis="y", alpha=0.3)
    _legend(figure)
    return figure


def curves(rows: Sequence[Row]) -> dict[str, Lines]:
    """Return the lines over f_D T, SNR and horizons, by the label of the horizontal axis.

    `f_D T` has a point for each cell that differs in it alone, `SNR [dB]` one for each cell named `snr_...`; there is
    an axis of steps ahead for each cell in which several horizons were predicted.

    Args:
        rows: Rows of `STUDIES`.
    """
    lines: dict[str, Lines] = {}
    found = cells([row for row in rows if row.experiment == STUDIES[0]])
    names = [*main_variants(_variants(found)), *_GIVEN]
    moving = [data for data in found if data in _DOPPLER or data.startswith("doppler_")]
    noisy = [data for data in found if data.startswith("snr_")]
    for axis, key, chosen in (("f_D T", "fd_t", moving), ("SNR [dB]", "snr_db", noisy)):
        for name in names:
            points = [(found[data][key], found[data][name]) for data in chosen if {key, name} <= found[data].keys()]
            if len(points) > 1:
                lines.setdefault(axis, {})[name] = sorted(points)
    far = [row for row in rows if row.experiment == STUDIES[1]]
    steps = sorted({int(row.metric.removeprefix("nmse_db_")) for row in far if row.metric.startswith("nmse_db_")})
    by_step = {step: cells(far, f"nmse_db_{step}") for step in steps}
    for data in dict.fromkeys(row.data for row in far if row.data):
        for name in (*_variants(cells(far)), *_GIVEN):
            scored = [(float(n), each[data][name]) for n, each in by_step.items() if name in each.get(data, {})]
            if len(scored) > 1:
                lines.setdefault(f"steps ahead, {data}", {})[name] = scored
    return lines


def plot_curves(lines: Mapping[str, Lines]) -> Figure:
    """Draw the lines of `curves`, one panel for each horizontal axis; black lines are not learned."""
    columns = min(3, len(lines))
    height = -(-len(lines) // columns)
    figure = empty_figure(4.2 * columns, 0.6 + 3.6 * height)
    names = list(dict.fromkeys(name for by_name in lines.values() for name in by_name if name not in _GIVEN))
    for number, (axis, by_name) in enumerate(lines.items(), 1):
        axes = figure.add_subplot(height, columns, number)
        for name, points in by_name.items():
            given = {"color": "black", "linestyle": _GIVEN.get(name)}
            style = given if name in _GIVEN else _style(names.index(name))
            axes.plot(*zip(*points, strict=True), label=_WORDS.get(name, name), **style)
        axes.set(xlabel=axis.replace("f_D T", "$f_D T$"), ylabel="NMSE [dB]")
        if axis.startswith("steps"):
            axes.set_xticks(sorted({step for points in by_name.values() for step, _ in points}))
        axes.grid(alpha=0.3)
    _legend(figure)
    return figure


def shares(rows: Sequence[Row]) -> dict[str, dict[str, dict[int, list[float]]]]:
    """Return the NMSE [dB] of every seed by data, variant and number of labels.

    Variants are those of several numbers of labels, under the name of the base variant, and `scratch`; data without
    any of the former are left out. Beside them stands `classical`, the mean over seeds, with the number 0.
    """
    held: dict[str, dict[str, dict[int, list[float]]]] = {}
    for row in rows:
        base = _SHARE.fullmatch(row.variant)
        if row.data and row.metric == "nmse_db" and base:
            by_count = held.setdefault(row.data, {}).setdefault(base[1], {})
            by_count.setdefault(row.n_train, []).append(row.value)
    found = {}
    for data, cell in cells([row for row in rows if row.experiment == STUDIES[0]]).items():
        drawn = {name: each for name, each in held.get(data, {}).items() if len(each) > 1}
        if drawn:
            drawn |= {name: each for name, each in held[data].items() if name == _SCRATCH}
            found[data] = drawn | ({"classical": {0: [cell["classical"]]}} if "classical" in cell else {})
    return found


def plot_shares(found: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]]) -> Figure:
    """Draw the lines of `shares`, one panel for each cell: means over seeds, with the lowest and the highest."""
    columns = min(5, len(found))
    height = -(-len(found) // columns)
    figure = empty_figure(2.7 * columns, 0.6 + 2.3 * height)
    whole = max(count for each in found.values() for by_count in each.values() for count in by_count)
    known = list(dict.fromkeys(name for each in found.values() for name in each if name not in _GIVEN))
    for number, (data, each) in enumerate(found.items(), 1):
        axes = figure.add_subplot(height, columns, number)
        for name, by_count in each.items():
            if name in _GIVEN:
                axes.axhline(by_count[0][0], color="black", linestyle=_GIVEN[name], label=_WORDS[name])
                continue
            counts = sorted(by_count)
            means = [statistics.fmean(by_count[count]) for count in counts]
            below = [mean - min(by_count[count]) for mean, count in zip(means, counts, strict=True)]
            above = [max(by_count[count]) - mean for mean, count in zip(means, counts, strict=True)]
            label = "encoder trained with the head, all labels" if name == _SCRATCH else f"{name}, frozen encoder"
            where = [100 * count / whole for count in counts]
            axes.errorbar(where, means, (below, above), capsize=2, label=label, **_style(known.index(name)))
        ticks = sorted({100 * n / whole for name, by_count in each.items() if name not in _GIVEN for n in by_count})
        axes.set(xscale="log", title=data)
        axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
        axes.minorticks_off()
        axes.autoscale_view(scalex=False)  # a line across alone does not widen the axis, and may lie on its border
        axes.title.set_fontsize("small")
        axes.tick_params(labelsize="small")
        axes.grid(alpha=0.3)
    figure.supxlabel("share of the training labels [%]", fontsize="medium")
    figure.supylabel("NMSE [dB]", fontsize="medium")
    _legend(figure)
    return figure


def pictures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Return the pictures that rows suffice for, by name; rows of other studies than `STUDIES` are ignored."""
    near = [row for row in rows if row.experiment == STUDIES[0]]
    found, lines, parts = cells(near), curves(rows), shares(near)
    drawn = {"prediction_cells": plot_cells(found)} if found else {}
    drawn |= {"prediction_curves": plot_curves(lines)} if lines else {}
    return drawn | ({"prediction_labels": plot_shares(parts)} if parts else {})


def _variants(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    names = dict.fromkeys(name for cell in found.values() for name in cell)
    return [name for name in names if name not in (*_GIVEN, "fd_t", "snr_db")]


def _style(rank: int) -> dict[str, Any]:
    return {"color": PALETTE[rank % len(PALETTE)], "marker": _MARKERS[rank % len(_MARKERS)], "markersize": 5}


def _legend(figure: Figure) -> None:
    """Draw one legend of all panels above them."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    columns = min(5, len(named))
    figure.legend(list(named.values()), list(named), loc="outside upper center", ncols=columns, fontsize="small")


def main() -> None:
    """Draw the NMSE of the studies of prediction, from their runs, and print it."""
    parser = argparse.ArgumentParser(prog="python -m foundation.evaluation.prediction_curves", description=main.__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--out", type=Path, default=Path(), help="folder to write pictures to")
    options = parser.parse_args()
    sys.exit(exit_status(lambda: draw(options.runs, options.out)))


def draw(runs: Path, out: Path) -> None:
    """Print the cells of the first study, and write the pictures.

    Args:
        runs: Folder of all runs.
        out: Folder of the pictures.

    Raises:
        InputError: There is no tested run.
    """
    rows = [row for name in STUDIES for row in collect(runs, Study.named(name))]
    found = pictures(rows)
    if not found:
        raise InputError(f"no tested cell in {runs / STUDIES[0]}: run `make study STUDY={STUDIES[0]}` first")
    for data, cell in cells([row for row in rows if row.experiment == STUDIES[0]]).items():
        print(data, *(f"{name} {value:.3f}" for name, value in cell.items()))
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in found.items():
        figure.savefig(out / f"{name}.png")
        print(out / f"{name}.png")


if __name__ == "__main__":
    main()
