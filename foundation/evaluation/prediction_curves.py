"""The pictures of a study of prediction: its errors over the cells that it was tested in."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.errors import InputError
from foundation.studies.rows import Row, collect
from foundation.studies.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: classical predictors whose best is drawn
_CLASSICAL = ("ar1", "kalman", "wiener", "link_ar", "pad")
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


def cells(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Return the error [dB] by the name of the data and by what predicts, means over seeds.

    Beside the variants there are `hold`, `classical`, the best of the classical predictors there, `limit` where
    it is known, and `fd_t` and `snr_db`, which are no errors. All of them are means over the variants too.
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
        classical = {"classical": min(held[name] for name in _CLASSICAL if name in held)}
        kept = {name: held[name] for name in (*variants, "hold", "limit", "fd_t", "snr_db") if name in held}
        found[data] = kept | classical
    return found


def plot_cells(found: dict[str, dict[str, float]]) -> Figure:
    """Draw the errors: one group of points a cell, with its f_D T and SNR; black lines are not learned."""
    from matplotlib.figure import Figure

    facts = ("fd_t", "snr_db", "hold", "limit", "classical")
    variants = list(dict.fromkeys(name for cell in found.values() for name in cell if name not in facts))
    figure = Figure(figsize=(2.0 + 0.9 * len(found), 5.5), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    for name, style in (("hold", ":"), ("classical", "--"), ("limit", "-")):
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


def main() -> None:
    """Draw the errors of a study of prediction over its cells, and print them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("experiment", nargs="?", default="prediction", help="name of the study [prediction]")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--out", type=Path, default=Path("prediction.png"), help="picture to write")
    options = parser.parse_args()
    try:
        found = cells(collect(options.runs, Study.named(options.experiment)))
        if not found:
            raise InputError(f"no tested cell in {options.runs / options.experiment}: run the study first")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for data, cell in found.items():
        print(data, *(f"{name} {value:.3f}" for name, value in cell.items()))
    plot_cells(found).savefig(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
