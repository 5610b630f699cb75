"""Picture of twin calibration: cosine similarity and hit rate over the number of transmitted codewords."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from datamodules.plots.style import empty_figure
from foundation.evaluation.twin_pictures import REFERENCES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from foundation.studies.rows import Row

#: scores over the number of codewords, with the label of their axis
_SCORES = {"cosine": "cosine similarity to the true channel", "hit_rate": "share of links whose best beam is sent"}
_SWEPT = re.compile(rf"(?P<source>\w+_)?(?P<score>{'|'.join(_SCORES)})_of_(?P<count>\d+)")
#: variants of the study by name, with their name in the figure and their line
_VARIANTS = {
    "full": ("calibrated, labels of the whole channel", {"color": "#0072b2", "marker": "o"}),
    "top4": ("calibrated, labels of reported codewords", {"color": "#009e73", "marker": "s"}),
    "position_alone": ("calibrator without its twin", {"color": "#8c564b", "linestyle": "--"}),
    "twin_alone": ("calibrator without the position", {"color": "#bcbd22", "linestyle": "--"}),
}

#: mean score by number of codewords, by name of the variant or prefix of the reference
Lines = Mapping[str, Mapping[int, float]]


def swept(rows: Sequence[Row]) -> dict[tuple[str, str], Lines]:
    """Return the scores over the number of codewords, by split and score, means over seeds.

    References are those beside the first variant of each split: with labels of reported codewords the nearest training
    users know no others.
    """
    values: dict[tuple[str, str], dict[str, dict[int, list[float]]]] = {}
    first: dict[str, str] = {}
    for row in rows:
        found = _SWEPT.fullmatch(row.metric)
        if found is None or (found["source"] and first.setdefault(row.split, row.variant) != row.variant):
            continue
        name = found["source"] or row.variant.removesuffix("_spatial")
        lines = values.setdefault((row.split, found["score"]), defaultdict(lambda: defaultdict(list)))
        lines[name][int(found["count"])].append(row.value)
    return {
        key: {name: {count: float(np.mean(v)) for count, v in sorted(line.items())} for name, line in lines.items()}
        for key, lines in values.items()
    }


def plot_sweep(found: Mapping[tuple[str, str], Lines]) -> Figure:
    """Draw the return value of `swept`, a column for each split."""
    styles = {prefix: (name, {"color": color, "linestyle": ":"}) for prefix, name, color in REFERENCES if prefix}
    styles |= _VARIANTS
    splits, known = (list(dict.fromkeys(keys)) for keys in zip(*found, strict=True))
    scores = [score for score in _SCORES if score in known]  # older results have no hit rate
    figure = empty_figure(4.6 * len(splits), 1.6 + 3.0 * len(scores), dpi=120)
    panels = figure.subplots(len(scores), len(splits), squeeze=False, sharex=True, sharey="row")
    for score, axes_of_score in zip(scores, panels, strict=True):
        axes_of_score[0].set_ylabel(_SCORES[score])
        for split, axes in zip(splits, axes_of_score, strict=True):
            lines = found.get((split, score), {})
            for name in (name for name in styles if name in lines):
                shown, style = styles[name]
                axes.plot(list(lines[name]), list(lines[name].values()), label=shown, markersize=4, **style)
            axes.grid(alpha=0.3)
    for split, axes in zip(splits, panels[0], strict=True):
        axes.set_title(f"split: {split}", fontsize="small", color="0.3")
    for axes in panels[-1]:
        axes.set_xlabel("codewords sent to a user")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", fontsize="small", ncols=2)
    return figure
