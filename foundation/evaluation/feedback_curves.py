"""Figures 4 and 5 of twin feedback, from the results of a study, with the authors' published curves."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from foundation.evaluation.twin_pictures import distributions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from foundation.studies.rows import Row

#: the authors' results, drawn in the same axes
PUBLISHED = Path("experiments/published/twin_feedback.csv")
#: colour of a curve, by its name in the study and by its name in the paper
_COLORS = {
    "target": "#000000", "twin": "#0072b2", "station": "#56b4e9", "city": "#999999", "random": "#e69f00",
    "high_NMSE": "#d55e00", "rehearsal_high_NMSE": "#009e73", "twin_longer": "#cc79a7",
}  # fmt: skip
_AUTHORS = {
    "other city": "city", "refined, random": "random", "refined, high NMSE": "high_NMSE",
    "rehearsal, high NMSE": "rehearsal_high_NMSE",
}  # fmt: skip
#: the number of training or refinement samples in the name of a variant
_CURVE = re.compile(r"(?P<name>.+)-n(?P<count>\d+)")


def published(file: Path = PUBLISHED) -> dict[str, list[float]]:
    """Read the authors' curves: `samples`, and NMSE [dB] by name."""
    lines = [line.split(";") for line in file.read_text().splitlines() if not line.startswith("#")]
    return {name: [float(value) for value in values] for name, *values in zip(*lines, strict=True)}


def figure4(rows: Sequence[Row], theirs: Mapping[str, Sequence[float]]) -> Figure:
    """Draw NMSE against the number of samples, ours over the authors' (twin feedback figure 4).

    A variant `<name>-n<count>` is a point of a curve; `target`, `twin`, `station` or `city` without a count is drawn at
    its number of training links.

    Args:
        rows: Results of a study; means over seeds are drawn, with the lowest and the highest.
        theirs: The return value of `published`; may be empty.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 5.0), layout="constrained", dpi=120)
    axes = figure.subplots()
    for name in (name for name in theirs if name != "samples"):
        color = _COLORS[_AUTHORS.get(name, name)]
        axes.plot(theirs["samples"], theirs[name], ":", color=color, linewidth=1.2, label=f"{name} [authors]")
    curves: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found = _CURVE.fullmatch(row.variant)
        if row.metric == "nmse_db" and (found or row.variant in _COLORS):
            name, count = (found["name"], int(found["count"])) if found else (row.variant, row.n_train)
            curves[name][count].append(row.value)
    for number, (name, points) in enumerate(curves.items()):
        counts = sorted(points)
        means = [float(np.mean(points[count])) for count in counts]
        spread = np.abs([(np.min(points[c]), np.max(points[c])) for c in counts] - np.array(means)[:, None]).T
        color = _COLORS.get(name, f"C{number}")
        axes.errorbar(counts, means, spread, fmt="o-", color=color, capsize=2, label=f"{name.replace('_', ' ')}, ours")
    axes.set(xscale="log", xlabel="samples", ylabel="NMSE on the target world [dB]")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize="x-small", ncols=3)
    return figure


def figure5(correlations: Sequence[Mapping[str, Sequence[float]]]) -> Figure:
    """Draw the distributions of the correlation of chosen and random links with the twin (twin feedback figure 5).

    Args:
        correlations: For each seed, the largest correlation of each link with the links of the twin (eq 14), by the
            rule that chose the links; seeds are pooled.
    """
    names = dict.fromkeys(name for of_seed in correlations for name in of_seed)
    curves = {name: torch.tensor([value for of_seed in correlations for value in of_seed[name]]) for name in names}
    return distributions(curves, "largest correlation with the twin", ("#d55e00", "#e69f00"))
