"""Figures of a study of prediction: NMSE over test conditions, f_D T, SNR, labels and horizons."""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.errors import InputError
from foundation.studies.rows import Row, collect
from foundation.studies.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: classical predictors of which the best is drawn
_CLASSICAL = ("ar1", "kalman", "wiener", "link_ar", "pad", "pad_vector")
#: line styles of predictors without learned weights
_GIVEN = {"hold": ":", "classical": "--", "limit": "-"}
#: a variant with another number of labels: the name of the base variant and a percentage
_SHARE = re.compile(r"(.+?)(_\d+)?")
_STEP = re.compile(r"(?:(.+)_)?nmse_db_(\d+)")
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


def cells(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Return the NMSE [dB] by name of the data and of the predictor, means over seeds.

    In addition to the variants: `hold`; `classical`, the best classical predictor on those data; `limit`, where it was
    computed; and the conditions `fd_t` and `snr_db` [dB]. These are means over variants as well as seeds.
    """
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row.data:
            name = row.variant if row.metric == "nmse_db" else row.metric.removesuffix("_nmse_db")
            values[row.data, name].append(row.value)
    found: dict[str, dict[str, float]] = {}
    variants = sorted({row.variant for row in rows if row.metric == "nmse_db"})
    for data in dict.fromkeys(data for data, _ in values):
        held = {name: statistics.fmean(each) for (where, name), each in values.items() if where == data}
        scored = [held[name] for name in _CLASSICAL if name in held]
        classical = {"classical": min(scored)} if scored else {}
        kept = {name: held[name] for name in (*variants, "hold", "limit", "fd_t", "snr_db") if name in held}
        found[data] = kept | classical
    return found


def plot_cells(found: dict[str, dict[str, float]]) -> Figure:
    """Draw the NMSE: one group of points for each cell, with its f_D T and SNR; black lines are not learned."""
    from matplotlib.figure import Figure

    variants = _variants(found)
    figure = Figure(figsize=(2.0 + 0.9 * len(found), 5.5), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    for name, style in _GIVEN.items():
        for number, cell in enumerate(found.values()):
            if name in cell:
                label = {"classical": "best classical predictor"}.get(name, name) if number == 0 else ""
                axes.hlines(cell[name], number - 0.4, number + 0.4, color="black", linestyle=style, label=label)
    for rank, name in enumerate(variants):
        offset = 0.6 * ((rank + 0.5) / len(variants) - 0.5)
        points = [(number + offset, cell[name]) for number, cell in enumerate(found.values()) if name in cell]
        marker = "osD^v<>"[rank // len(_COLOURS) % 7]
        axes.plot(*zip(*points, strict=True), marker, color=_COLOURS[rank % len(_COLOURS)], label=name)
    names = [
        f"{data}\n$f_D T$ {cell.get('fd_t', float('nan')):.3f}, {cell.get('snr_db', float('nan')):.0f} dB"
        for data, cell in found.items()
    ]
    axes.set_xticks(range(len(found)), names, rotation=45, ha="right", fontsize="small")
    axes.set(ylabel="NMSE of the next channel [dB]")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    return figure


def _variants(found: dict[str, dict[str, float]]) -> list[str]:
    names = dict.fromkeys(name for cell in found.values() for name in cell)
    return [name for name in names if name not in (*_GIVEN, "fd_t", "snr_db")]


def curves(rows: list[Row]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return lines of points (value, NMSE [dB]) by the quantity on the horizontal axis and by predictor.

    `SNR [dB]` has a point for each cell named `snr_...`, `f_D T` one for each other cell; `labels` and `steps
    ahead` have means over cells [dB], the latter where several horizons were predicted.
    """
    found = cells(rows)
    names = [name for name in (*_variants(found), *_GIVEN) if any(name in cell for cell in found.values())]
    noisy = {data: cell for data, cell in found.items() if data.startswith("snr_")}
    lines: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(dict)
    for axis, key, chosen in (("f_D T", "fd_t", found.keys() - noisy.keys()), ("SNR [dB]", "snr_db", noisy.keys())):
        for name in names:
            points = [(found[data][key], found[data][name]) for data in chosen if {key, name} <= found[data].keys()]
            if len(points) > 1:
                lines[axis][name] = sorted(points)
    shares: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    steps: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if not row.data:
            continue
        if row.metric == "nmse_db" and (base := _SHARE.fullmatch(row.variant)):
            shares[base[1]][row.n_train].append(row.value)
        if step := _STEP.fullmatch(row.metric):
            steps[step[1] or row.variant][int(step[2])].append(row.value)
    for axis, by_name in (("labels", shares), ("steps ahead", steps)):
        for name, values in by_name.items():
            if len(values) > 1 and (axis == "labels" or name in (*names, *_CLASSICAL)):
                lines[axis][name] = sorted((float(x), statistics.fmean(each)) for x, each in values.items())
    return dict(lines)


def plot_curves(lines: dict[str, dict[str, list[tuple[float, float]]]]) -> Figure:
    """Draw the lines of `curves`, one panel for each horizontal axis; black lines are not learned."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * max(1, len(lines)), 4.2), layout="constrained", dpi=120)
    names = list(dict.fromkeys(name for by_name in lines.values() for name in by_name if name not in _GIVEN))
    for number, (axis, by_name) in enumerate(lines.items(), 1):
        axes = figure.add_subplot(1, len(lines), number)
        for name, points in by_name.items():
            rank = names.index(name) if name in names else 0
            style: dict[str, Any] = (
                {"color": "black", "linestyle": _GIVEN[name]}
                if name in _GIVEN
                else {"color": _COLOURS[rank % len(_COLOURS)], "marker": "osD^v<>"[rank // len(_COLOURS) % 7]}
            )
            axes.plot(*zip(*points, strict=True), label=name, **style)
        axes.set(xlabel=axis, ylabel="NMSE [dB]", xscale="log" if axis == "labels" else "linear")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    return figure


def main() -> None:
    """Draw the NMSE of a study of prediction over its cells, and print it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("experiment", nargs="?", default="prediction", help="name of the study [prediction]")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--out", type=Path, default=Path("prediction.png"), help="picture to write")
    options = parser.parse_args()
    try:
        rows = collect(options.runs, Study.named(options.experiment))
        found = cells(rows)
        if not found:
            raise InputError(f"no tested cell in {options.runs / options.experiment}: run the study first")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for data, cell in found.items():
        print(data, *(f"{name} {value:.3f}" for name, value in cell.items()))
    plot_cells(found).savefig(options.out)
    drawn = options.out.with_stem(f"{options.out.stem}_curves")
    plot_curves(curves(rows)).savefig(drawn)
    print(options.out, drawn)


if __name__ == "__main__":
    main()
