"""Amplitude distributions of channels by condition, and their differences (ConTwin section 4, Fig. 2c, 2d and 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.sites.paths import Paths
from datamodules.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_STYLES = ("-", "--", ":", "-.")


class Fit(NamedTuple):
    """A distribution fitted to amplitudes.

    Attributes:
        name: `Rayleigh` or `Rice`.
        scale: Scale parameter, in the unit of the amplitudes.
        shape: Ratio b of the constant component to the scale; 0 for a Rayleigh distribution.
        p: p-value of the Kolmogorov-Smirnov test, biased upwards as the parameters are fitted to the same values.
    """

    name: str
    scale: float
    shape: float
    p: float


def amplitudes(site: Site) -> NDArray[np.float64]:
    """Return the amplitude of every link with a channel: the norm over antennas and subcarriers (section 4.1).

    For rays it is the root mean square over random phases for one antenna pair and subcarrier: the root of the sum of
    path powers.
    """
    served = torch.nonzero(site.links.has_path).squeeze(1)
    if isinstance(site.links, Paths):
        power = site.links.gain[served].abs().double().square().sum(1)
    else:
        csi = site.links.csi(served)
        power = (csi[:, 0] if csi.ndim == 5 else csi).abs().double().square().flatten(1).sum(1)
    values: NDArray[np.float64] = power.sqrt().numpy()
    return values[values > 0]


def fits(values: NDArray[np.float64]) -> list[Fit]:
    """Fit a Rayleigh and a Rice distribution to amplitudes (n,), from zero, by maximum likelihood."""
    from scipy import stats

    unit = values / np.sqrt(np.mean(values**2))  # unit scale, at which the search starts
    scale = math.sqrt(0.5)  # maximum likelihood in closed form
    found = [Fit("Rayleigh", scale, 0.0, float(stats.kstest(unit, stats.rayleigh(scale=scale).cdf).pvalue))]
    shape, _, spread = stats.rice.fit(unit, 1.0, floc=0, scale=0.5)
    p = float(stats.kstest(unit, stats.rice(shape, scale=spread).cdf).pvalue)
    found.append(Fit("Rice", float(spread), float(shape), p))
    level = float(np.sqrt(np.mean(values**2)))
    return [fit._replace(scale=fit.scale * level) for fit in found]


def mismatch(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the largest difference of the CDFs of each pair of conditions (Kolmogorov-Smirnov), (n, n) in [0, 1].

    The paper's Fig. 4 shows a loss of performance under such shifts without defining the metric.
    """
    from scipy import stats

    return np.array([[float(stats.ks_2samp(one, other).statistic) for other in values] for one in values])


def plot_amplitudes(sites: Sequence[Site]) -> Figure:
    """Draw the CDFs and histograms of amplitudes, with fits and their p-values, and the matrix of `mismatch`.

    Colours denote scenarios, line styles downtilts.

    Args:
        sites: One or more sites.

    Raises:
        InputError: No site has two links with a channel.
    """
    from matplotlib.figure import Figure

    held = {site.name: (site, values) for site in sites if len(values := amplitudes(site)) > 1}
    if not held:
        raise InputError("no site with two users that have a path: there are no statistics to plot")
    scenarios = list(dict.fromkeys(str(site.domain.get("scenario", site.city)) for site, _ in held.values()))
    tilts = sorted({_tilt(site) for site, _ in held.values()})
    figure = Figure(figsize=(15.0, 4.8), layout="constrained", dpi=120)
    cdf, histogram, matrix = figure.subplots(1, 3)
    names = []
    for site, values in held.values():
        scenario = str(site.domain.get("scenario", site.city))
        colour = _COLOURS[scenarios.index(scenario) % len(_COLOURS)]
        style = _STYLES[tilts.index(_tilt(site)) % len(_STYLES)]
        names.append(f"{scenario}, {_tilt(site):g}°")
        level = 20 * np.log10(np.sort(values))
        cdf.plot(level, np.arange(1, len(level) + 1) / len(level), style, color=colour, label=names[-1])
        found = "; ".join(f"{fit.name} p = {fit.p:.2g}" for fit in fits(values))
        unit = values / np.sqrt(np.mean(values**2))
        edges = np.linspace(0, 3, 41).tolist()
        histogram.hist(
            unit,
            bins=edges,
            density=True,
            histtype="step",
            color=colour,
            linestyle=style,
            label=f"{names[-1]}: {found}",
        )
    grid = np.linspace(0, 3, 200)
    histogram.plot(grid, 2 * grid * np.exp(-(grid**2)), color="black", linewidth=0.8, label="Rayleigh")
    cdf.set(xlabel="amplitude [dB]", ylabel="share of links below", ylim=(0, 1))
    histogram.set(xlabel="amplitude over its root mean square", ylabel="density", xlim=(0, 3))
    for axes in (cdf, histogram):
        axes.legend(fontsize="x-small")
        axes.grid(alpha=0.3)
    gaps = mismatch([values for _, values in held.values()])
    image = matrix.imshow(gaps, vmin=0, vmax=1, cmap="viridis")
    matrix.set_xticks(range(len(names)), names, rotation=90, fontsize="x-small")
    matrix.set_yticks(range(len(names)), names, fontsize="x-small")
    figure.colorbar(image, ax=matrix, label="largest gap of the CDFs")
    return figure


def _tilt(site: Site) -> float:
    """Return the downtilt of a site [degrees]."""
    known = site.domain.get("tilt", float(site.bs_orientation[1]))
    return round(math.degrees(float(torch.as_tensor(known))))
