"""The first table of RESULTS.md: the test metric of every model with every head, in cities held out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from foundation.studies.rows import Row
from foundation.studies.tables import by_seed, format_values, ruled

#: the studies that it is built from; the second has the head that reads past snapshots
STUDIES = ("matrix", "matrix_prediction")
#: the metric shown for each head, and whether larger is better
_HEADS = {
    "positioning": ("mean_m", "mean error", False),
    "beam": ("top1", "top-1", True),
    "los": ("balanced_accuracy", "balanced accuracy", True),
    "feedback": ("nmse_db", "NMSE", False),
    "prediction": ("nmse_db", "NMSE", False),
}
#: labels of the lines by variant and mode
_LINES = {
    ("csiclip", "probe"): "CSI-CLIP",
    ("envchannel", "probe"): "environment-channel",
    ("contwin", "probe"): "ConTwin",
    ("csiclip_untrained", "control"): "CSI-CLIP's encoder, untrained",
    ("envchannel_untrained", "control"): "environment-channel's encoder, untrained",
    ("contwin_untrained", "control"): "ConTwin's encoder, untrained",
    ("csiclip_scratch", "scratch"): "CSI-CLIP's encoder, supervised from scratch",
    ("envchannel_scratch", "scratch"): "environment-channel's encoder, supervised from scratch",
    ("contwin_scratch", "scratch"): "ConTwin's encoder, supervised from scratch",
    ("profiles", "control"): "handcrafted profiles",
    ("raw", "control"): "raw CSI, a linear model",
}
#: cells that do not exist, with the reason
_NONE = {("raw", "feedback"): "none: raw CSI is no code"}


def matrix(rows: Sequence[Row]) -> str:
    """Return the matrix as one Markdown table, the best of each city and head in bold.

    Args:
        rows: Rows of any studies; those of `STUDIES` are used.
    """
    cells: dict[tuple[str, str, str, str], list[float]] = {}
    known = [row for row in rows if row.experiment in STUDIES and row.head in _HEADS]
    data = list(dict.fromkeys(row.data for row in known))
    for name in data:
        for head, (metric, _, _) in _HEADS.items():
            for variant, mode in _LINES:
                group = [r for r in known if (r.data, r.head, r.variant, r.mode) == (name, head, variant, mode)]
                if values := by_seed(metric, group):
                    cells[name, head, variant, mode] = values
    lines = [["tested on", "model", *(f"{head}, {words}" for head, (_, words, _) in _HEADS.items())]]
    for name in data:
        best = {}
        for head, (_, _, more) in _HEADS.items():
            means = {key: statistics.fmean(values) for key, values in cells.items() if key[:2] == (name, head)}
            best[head] = max(means, key=lambda key: means[key] * (1 if more else -1)) if means else None
        for (variant, mode), title in _LINES.items():
            shown = []
            for head, (metric, _, _) in _HEADS.items():
                key = (name, head, variant, mode)
                text = format_values(metric, cells[key]) if key in cells else _NONE.get((variant, head), "not made")
                shown.append(f"**{text}**" if key == best[head] else text)
            lines.append([name, title, *shown])
    return ruled(lines)
