"""Figures 4 and 5 of twin feedback, from the results of a study, with the authors' published curves."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datamodules.plots.style import empty_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from foundation.studies.rows import Row

#: the authors' results, drawn in the same axes
PUBLISHED = Path("experiments/published/twin_feedback.csv")
#: worlds that a model is trained on from scratch, by their name in a study
_WORLDS = {"target": "target", "twin": "twin", "station": "other station", "city": "other city"}
#: curves by their name in a study, with their name in the figure
_NAMES = {
    **_WORLDS, "random": "refined, random", "high_NMSE": "refined, high NMSE", "rehearsal_random": "rehearsal, random",
    "rehearsal_high_NMSE": "rehearsal, high NMSE", "rehearsal_mixed": "rehearsal, high NMSE, mixed",
    "twin_longer": "twin, trained longer",
}  # fmt: skip
#: colour of a curve, ours and the authors', by its name in the figure
_COLORS = dict(zip(_NAMES.values(), (
    "#000000", "#0072b2", "#56b4e9", "#999999", "#e69f00", "#d55e00", "#8c564b", "#009e73", "#bcbd22", "#cc79a7",
), strict=True))  # fmt: skip
#: names in the figure of curves over links that a model was refined by
_REFINED = set(_NAMES.values()) - set(_WORLDS.values())
#: colours of curves of other names
_OTHERS = ("#882255", "#332288", "#ddcc77", "#aa4499")
#: names of the rules that chose the links of figure 5
_RULES = {"high_NMSE": "links of largest NMSE", "random": "random links"}
#: the number of training or refinement samples in the name of a variant
_CURVE = re.compile(r"(?P<name>.+)-n(?P<count>\d+)")


def published(file: Path = PUBLISHED) -> dict[str, list[float]]:
    """Read the authors' curves: `samples`, and NMSE [dB] by name."""
    lines = [line.split(";") for line in file.read_text().splitlines() if not line.startswith("#")]
    return {name: [float(value) for value in values] for name, *values in zip(*lines, strict=True)}


def curves(rows: Sequence[Row]) -> dict[str, dict[int, list[float]]]:
    """Return the NMSE [dB] of each seed, by name of the curve and number of samples.

    A variant `<name>-n<count>` is a point of a curve; so is `target`, `twin`, `station` or `city` without a count.
    These have their number of training links as samples, refinements the links chosen from the target.
    """
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.metric == "nmse_db" and (name := _curve(row)):
            count = row.n_train if name in _WORLDS else int(row.variant.rpartition("-n")[2])
            found[name][count].append(row.value)
    order = [*_NAMES, *found]
    return {name: dict(found[name]) for name in sorted(found, key=order.index)}


def _curve(row: Row) -> str:
    """Return the name of the curve of a run; empty for a run that is on none, such as one tested in another world."""
    named = _CURVE.fullmatch(row.variant)
    return named["name"] if named else row.variant if row.variant in _WORLDS else ""


def figure4(rows: Sequence[Row], theirs: Mapping[str, Sequence[float]]) -> Figure:
    """Draw NMSE against the number of samples, ours over the authors' (twin feedback figure 4).

    Matching pursuit and chance are lines across; the title states seeds and split. The authors' curves of refined
    models are drawn beside refined models of ours alone.

    Args:
        rows: Results of a study, see `curves`; means over seeds are drawn, with the lowest and the highest.
        theirs: The return value of `published`; may be empty.
    """
    from matplotlib.lines import Line2D

    figure = empty_figure(7.5, 6.0, dpi=120)
    axes = figure.subplots()
    for key, name in (("pursuit_nmse_db", "matching pursuit, as many numbers"), ("chance_nmse_db", "chance")):
        if level := [row.value for row in rows if row.metric == key and _curve(row)]:
            axes.axhline(float(np.mean(level)), color="0.6", linewidth=0.8, linestyle="-.")
            place = (0.995, float(np.mean(level)))
            axes.annotate(name, place, xycoords=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize="x-small")
    ours, drawn = curves(rows), dict[str, str]()
    refined = {name for name in ours if _NAMES.get(name) in _REFINED}
    refined |= {_curve(row) for row in rows if row.metric == "replaces"}
    shown_of_theirs = [name for name in theirs if name != "samples" and (refined or name not in _REFINED)]
    for name in shown_of_theirs:
        axes.plot(theirs["samples"], theirs[name], ":", color=_COLORS[name], linewidth=1.2, label=f"{name} [authors]")
    for number, (name, points) in enumerate(ours.items()):
        counts = sorted(points)
        means = [float(np.mean(points[count])) for count in counts]
        spread = np.abs([(np.min(points[c]), np.max(points[c])) for c in counts] - np.array(means)[:, None]).T
        shown = _NAMES.get(name, name.replace("_", " "))
        drawn[shown] = _COLORS.get(shown, _OTHERS[number % len(_OTHERS)])
        axes.errorbar(
            counts, means, spread, fmt="s-" if name in refined else "o-", color=drawn[shown],
            # the twin's curve may lie on that of the target
            linewidth=3.0 if name == "target" else 1.5, markersize=5, capsize=2, label=f"{shown}, ours",
        )  # fmt: skip
    samples = "links of the world trained on"
    axes.set(
        xscale="log", ylabel="NMSE on target links in no training set [dB]",
        xlabel=f"{samples} (circles), or target links of the refinement (squares)" if refined else samples,
    )  # fmt: skip
    axes.grid(alpha=0.3)
    drawn |= {name: _COLORS[name] for name in shown_of_theirs}
    lines = [Line2D([], [], color=color, linewidth=3, label=name) for name, color in drawn.items()]
    styles = [Line2D([], [], color="0.3", marker="o", label="ours")]
    styles += [Line2D([], [], color="0.3", linestyle=":", label="the authors', random split")] if theirs else []
    figure.legend(handles=[*styles, *lines], loc="outside lower center", fontsize="small", ncols=3, frameon=False)
    axes.set_title(_facts(rows, ours), fontsize="small", color="0.3")
    return figure


def _facts(rows: Sequence[Row], ours: Mapping[str, Mapping[int, Sequence[float]]]) -> str:
    sizes = sorted({len(values) for points in ours.values() for values in points.values()})
    seeds = " to ".join(dict.fromkeys(str(size) for size in (sizes[0], sizes[-1]))) if sizes else "0"
    splits = ", ".join(dict.fromkeys(row.split for row in rows if row.split))
    noun = "seed" if seeds == "1" else "seeds"
    return f"mean of {seeds} {noun}, bars from the lowest to the highest; split: {splits or 'not recorded'}"


def figure5(correlations: Sequence[Mapping[str, Sequence[float]]]) -> Figure:
    """Draw the distributions of the correlation of chosen and random links with the twin (twin feedback figure 5).

    Args:
        correlations: For each seed, the largest correlation of each link with the links of the twin (eq 14), by the
            rule that chose the links; seeds are pooled.
    """
    import torch

    from foundation.evaluation.twin_pictures import distributions  # imported late, as the import is slow

    names = dict.fromkeys(name for of_seed in correlations for name in of_seed)
    pooled = {name: torch.tensor([value for of_seed in correlations for value in of_seed[name]]) for name in names}
    told = {f"{_RULES.get(name, name)}, {len(values):,}, mean {values.mean():.2f}": values
            for name, values in pooled.items()}  # fmt: skip
    label = "largest correlation of a target link with the twin's training links"
    figure = distributions(told, label, [_COLORS[_NAMES[name]] for name in names])
    seeds = len(correlations)
    figure.supxlabel(f"links of {seeds} seed{'s' * (seeds != 1)}", fontsize="x-small", color="0.3")
    return figure


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw figure 4 from the results of a study, and figure 5 from `correlation-s<seed>.json` in its folder.

    Args:
        rows: Results of the study.
        folder: Folder of its runs; the pictures go to `plots/` in it.

    Returns:
        The pictures; one for which there are no results is left out.
    """
    figures = {}
    if curves(rows):
        figures["figure4"] = figure4(rows, published() if PUBLISHED.is_file() else {})
    if chosen := [json.loads(file.read_text()) for file in sorted(folder.glob("correlation-s*.json"))]:
        figures["figure5"] = figure5(chosen)
    files = []
    for name, figure in figures.items():
        files.append(folder / "plots" / f"{name}.png")
        files[-1].parent.mkdir(exist_ok=True)
        figure.savefig(files[-1], dpi=150, bbox_inches="tight")
    return files
