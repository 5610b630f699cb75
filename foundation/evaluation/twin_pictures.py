"""Tables and figures at the end of a test of `CsiFeedback` and `TwinCalibration`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from datamodules.plots.maps import draw_buildings, with_margin
from datamodules.plots.style import empty_figure
from datamodules.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: sources of the codewords in the case study of calibration: prefix of the scores (none: the calibrator), name, colour
REFERENCES = (
    ("uncalibrated_", "uncalibrated twin", "#d55e00"),
    ("direct_", "channel of the twin itself", "#e69f00"),
    ("grid_", "nearest training user", "#56b4e9"),
    ("neighbours_", "4 nearest training users", "#cc79a7"),
    ("", "calibrated twin", "#0072b2"),
    ("target_", "true channel (bound)", "#000000"),
)
_SCORES = {
    "cosine": "cosine", "cosine_p10": "10th pct", "cosine_los": "LOS", "cosine_los_p10": "10th pct",
    "cosine_nlos": "NLOS", "cosine_nlos_p10": "10th pct", "rate": "rate [bit/s/Hz]", "hit_rate": "beams hit",
}  # fmt: skip
#: methods that reconstruct the channel in CSI feedback: score and name
_REBUILT = {
    "nmse_db": "network", "pursuit_nmse_db": "strongest paths", "pca_nmse_db": "principal components",
    "chance_nmse_db": "chance",
}  # fmt: skip
_COLORS = ("#0072b2", "#009e73", "#e69f00", "#999999")


def calibration_table(metrics: Mapping[str, float]) -> str:
    """Return the table of the case study: cosine similarities, rate and hit rate of each choice of codewords.

    Args:
        metrics: Scores of `TwinCalibration` by name, without `test/`.
    """
    lines = [["codewords by", *_SCORES.values()]]
    for prefix, name, _ in REFERENCES:
        scores = [metrics.get(f"{prefix}{key}") for key in _SCORES]
        if scores[0] is not None:
            lines.append([name, *("" if score is None else f"{score:.3f}" for score in scores)])
    return markdown(lines)


def feedback_table(metrics: Mapping[str, float], numbers: int, bits: int | None = None) -> str:
    """Return the table of CSI feedback: NMSE of the network and of baselines with the same number of reals.

    Args:
        metrics: Scores of `CsiFeedback` by name, without `test/`.
        numbers: Real numbers of a code.
        bits: Bits of a code, if it is quantised.
    """
    lines = [[f"{numbers} numbers a link" + ("" if bits is None else f", {bits} bits"), "NMSE [dB]"]]
    lines += [[name, f"{metrics[key]:.2f}"] for key, name in _REBUILT.items() if key in metrics]
    kept = f"; the delays kept hold {metrics['kept_energy']:.1%} of the energy" if "kept_energy" in metrics else ""
    whole = f"NMSE of the whole CSI {metrics['csi_nmse_db']:.2f} dB{kept}; " if "csi_nmse_db" in metrics else ""
    rate = ""
    if "se_ratio" in metrics:
        rate = (
            f"rate {metrics['rate']:.2f} bit/s/Hz, {metrics['se_ratio']:.1%} of the {metrics['perfect_rate']:.2f} with "
            "perfect CSI"
        )
    return "\n".join([markdown(lines), f"{whole}{rate}".strip("; ")])


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns; the first line is the header."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    ruled = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    ruled.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled)


def calibration_figures(rows: Mapping[str, Tensor], sites: Sequence[Site]) -> dict[str, Figure]:
    """Draw figures 3 and 4 of twin calibration.

    Args:
        rows: `position` (n, 3) [m]; `site` (n,); `beams` (n, 3, P), indices chosen by the uncalibrated twin, the
            calibrated twin and the true channel, best first; `num_beams` (n,), the size of the codebook; and `cosine`
            (n, 6) in the order of the table.
        sites: The sites, whose buildings are drawn.

    Returns:
        `beams`, for each rank a map of the difference to the true beam index, if positions are known, and `cosine`, the
        distributions.
    """
    known = [(name, rows["cosine"][:, number]) for number, (_, name, _) in enumerate(REFERENCES)]
    curves = {name: values for name, values in known if values.isfinite().any()}
    colors = {name: color for _, name, color in REFERENCES}
    figures = {"cosine": distributions(curves, "cosine similarity to the true channel", [colors[n] for n in curves])}
    located = rows["position"][:, :2].isfinite().all(1)
    if sites and located.any():
        figures["beams"] = _beam_maps({key: value[located] for key, value in rows.items()}, sites)
    return figures


def feedback_figures(errors: Mapping[str, Tensor], target: Tensor, rebuilt: Tensor) -> dict[str, Figure]:
    """Draw the errors of CSI feedback, and some channels with their reconstructions.

    Args:
        errors: NMSE of each link, linear (n,), by name of the score.
        target: Delay-angular channels (n, rows, antennas).
        rebuilt: Their reconstructions by the network, likewise.

    Returns:
        `errors`, the distributions of the NMSE, and `channels`, magnitudes of the links of least, median and largest
        error.
    """
    levels = {_REBUILT[key]: 10 * value.clamp_min(1e-9).log10() for key, value in errors.items()}
    figures = {"errors": distributions(levels, "NMSE of a link [dB]", _COLORS)}
    order = errors["nmse_db"].argsort()
    chosen = [int(order[0]), int(order[len(order) // 2]), int(order[-1])]
    figure = empty_figure(9.0, 5.6, dpi=120)
    axes = figure.subplots(2, 3)
    for column, (which, link) in enumerate(zip(("least", "median", "largest"), chosen, strict=True)):
        top = float(target[link].abs().max())
        for row, (name, values) in enumerate((("channel", target), ("rebuilt", rebuilt))):
            axes[row][column].imshow(values[link].abs().numpy(), vmin=0, vmax=top, aspect="auto", cmap="viridis")
            level = f", NMSE {float(levels['network'][link]):.1f} dB" if row else f" of {which} error"
            axes[row][column].set(title=f"{name}{level}", xlabel="DFT beam", ylabel="delay [taps]")
    return {**figures, "channels": figure}


def distributions(curves: Mapping[str, Tensor], label: str, colors: Sequence[str]) -> Figure:
    """Draw the empirical CDFs of values (n,), by name, without NaN."""
    figure = empty_figure(5.5, 4.2, dpi=120)
    axes = figure.subplots()
    share = np.linspace(0, 1, 501)
    for (name, values), color in zip(curves.items(), colors, strict=False):
        known = values[values.isfinite()].double().numpy()
        if len(known):
            axes.plot(np.quantile(known, share), share, color=color, label=name)
    axes.set(xlabel=label, ylabel="share of links below", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize="small", frameon=False)
    return figure


def _beam_maps(rows: Mapping[str, Tensor], sites: Sequence[Site]) -> Figure:
    """Draw the beam index error of each user by rank, without and with calibration."""
    # the map is of one site, the one with most users
    number = int(rows["site"].mode().values)
    here = rows["site"] == number
    position, beams = rows["position"][here].numpy(), rows["beams"][here]
    count = int(rows["num_beams"][0])
    apart = (beams[:, :2] - beams[:, 2:]).abs()
    difference = torch.minimum(apart, count - apart).numpy()  # indices of DFT beams are circular
    ranks = difference.shape[2]
    figure = empty_figure(2.9 * ranks + 0.8, 6.4, dpi=120)
    axes = figure.subplots(2, ranks, squeeze=False, sharex=True, sharey=True)
    for row, name in enumerate(("uncalibrated", "calibrated")):
        for rank in range(ranks):
            panel = axes[row][rank]
            draw_buildings(panel, sites[number].environment)
            values = difference[:, row, rank]
            points = panel.scatter(*position[:, :2].T, 6.0, values, vmin=0, vmax=count // 2, cmap="plasma", zorder=2)
            panel.set_title(f"{name}, beam {rank + 1}: mean {values.mean():.1f}", fontsize="small")
            low, high = with_margin(position[:, :2])
            panel.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes[1][0].set(xlabel="x [m]", ylabel="y [m]")
    figure.colorbar(points, ax=axes, label="difference to the beam of the true channel [beams]", shrink=0.7)
    return figure
