"""Figures that several heads use.

matplotlib is imported when a figure is drawn: it is slow to import, and few commands draw. `Figure` is used without
pyplot, so there is no global state and no display.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(title: str) -> tuple[Figure, Any]:
    """Return an empty figure and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def keep_data(figure: Figure, kind: str, **data: Any) -> Figure:
    """Keep with a figure what it draws, as plain data, so that a page can draw several runs into one.

    Args:
        figure: The figure, which gets the attribute `plot_data`.
        kind: `cdf`, `confusion` or `map`.
        **data: What JSON can hold, arrays and tensors.
    """
    figure.plot_data = {  # type: ignore[attr-defined]
        "kind": kind,
        **{key: value.tolist() if hasattr(value, "tolist") else value for key, value in data.items()},
    }
    return figure


def cdf_figure(values: Tensor, title: str, label: str, unit: str) -> Figure:
    """Draw the empirical distribution function of values (n,), with its median and 90th percentile marked.

    Args:
        values: The values (n,) with n >= 1, in `unit`.
        title: Title of the figure.
        label: Name of the value.
        unit: Its unit, without brackets.

    Returns:
        The figure.
    """
    figure, axes = new_figure(title)
    probability = np.linspace(0, 1, 1001)  # a curve of bounded size, whatever the number of samples
    quantiles = np.quantile(values.numpy(), probability)
    axes.plot(quantiles, probability)
    for mark in (0.5, 0.9):
        quantile = quantiles[round(1000 * mark)]
        axes.plot(quantile, mark, "o", color="black", markersize=4)
        axes.axhline(mark, color="0.8", linewidth=0.8, zorder=0)
        axes.annotate(f"{mark:.0%}: {quantile:.2f} {unit}", (quantile, mark), (6, -10), textcoords="offset points")
    axes.set(xlabel=f"{label} [{unit}]", ylabel="fraction of samples", ylim=(0, 1.01))
    axes.grid(alpha=0.3)
    percentiles = np.round(quantiles[::10], 4)
    return keep_data(figure, "cdf", title=title, label=label, unit=unit, quantiles=percentiles)


def confusion_figure(confusion: Tensor, title: str, classes: Sequence[str] | None = None) -> Figure:
    """Draw a confusion matrix, each row as fractions of its true class; grey where a class has no sample.

    Args:
        confusion: Counts (C, C), true class by row.
        title: Title of the figure.
        classes: Names of the classes; given, they label the axes and each cell shows its fraction and count.

    Returns:
        The figure.
    """
    figure, axes = new_figure(title)
    counts = confusion.numpy()
    totals = counts.sum(1, keepdims=True)
    fraction = np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)  # NaN is not drawn
    axes.set_facecolor("0.85")
    picture = axes.imshow(fraction, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    unseen = " (grey: no sample)" if (totals == 0).any() else ""
    figure.colorbar(picture, label=f"fraction of the true class{unseen}")
    axes.set(xlabel="predicted", ylabel="true")
    if classes is None:
        axes.locator_params(integer=True)
    else:
        axes.set_xticks(range(len(classes)), classes)
        axes.set_yticks(range(len(classes)), classes)
        for row, column in np.ndindex(*counts.shape):
            share = fraction[row, column]
            text = f"{share:.1%}\n({counts[row, column]})" if totals[row] else "no sample"
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", color=color)
    return keep_data(figure, "confusion", title=title, classes=list(classes or ()), counts=counts)


def channel_figure(true: Tensor, rebuilt: Tensor, title: str, name: str = "rebuilt") -> Figure:
    """Draw the magnitudes of a channel (rows, columns) and of its reconstruction of that name over angle and delay."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.5), layout="constrained")
    figure.suptitle(title)
    limit = float(true.abs().max())
    for axes, which, channel in zip(figure.subplots(1, 2), ("true", name), (true, rebuilt), strict=True):
        picture = axes.imshow(channel.abs().numpy(), vmin=0, vmax=limit, aspect="auto", cmap="viridis")
        axes.set(title=which, xlabel="delay tap", ylabel="angle bin")
    figure.colorbar(picture, label="magnitude")
    return figure
