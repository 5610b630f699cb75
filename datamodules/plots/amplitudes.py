"""Amplitude distributions of channels by condition, and their differences (ConTwin section 4, Fig. 2c, 2d and 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.plots.style import PALETTE, empty_figure
from datamodules.sites.paths import Paths
from datamodules.sites.site import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = ("-", "--", ":", "-.")
_SIGHT = {1: ", LOS", 0: ", NLOS", -1: ""}
#: most conditions whose mismatch is written into the matrix
_WRITTEN = 12


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


def fading(sites: Sequence[Site]) -> dict[int, NDArray[np.float64]]:
    """Return the small-scale fading of the links of several sites, by LOS status (1, 0, or -1 where unknown).

    It is the amplitude of the first antennas at one subcarrier over the root mean square of the link: without path
    loss and shadowing, which the norm of `amplitudes` contains.
    """
    found: dict[int, list[NDArray[np.float64]]] = {}
    for site in sites:
        amplitude, power = site.links.amplitude.double(), site.links.power.double()
        amplitude = amplitude if amplitude.ndim == 1 else amplitude[:, 0]
        for state in (1, 0, -1):
            heard = (power > 0) & site.links.has_path & (site.links.los == state)
            if heard.any():
                found.setdefault(state, []).append((amplitude[heard] / power[heard].sqrt()).numpy())
    return {state: np.concatenate(parts) for state, parts in sorted(found.items(), reverse=True)}


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
    """Draw CDFs and histograms of the amplitudes of links, their small-scale fading with fits, and `mismatch`.

    Colours denote scenarios, line styles downtilts, or in the panel of the fading LOS and NLOS.

    Args:
        sites: One or more sites.

    Raises:
        InputError: No site has two links with a channel.
    """
    held = {site.name: (site, values) for site in sites if len(values := amplitudes(site)) > 1}
    if not held:
        raise InputError("no site with two users that have a path: there are no statistics to plot")
    scenarios = list(dict.fromkeys(_scenario(site) for site, _ in held.values()))
    tilts = sorted({_tilt(site) for site, _ in held.values()})
    figure = empty_figure(12.0, 9.0, dpi=120)
    (cdf, histogram), (small, matrix) = figure.subplots(2, 2)
    names = []
    for site, values in held.values():
        look: dict[str, Any] = {
            "color": PALETTE[scenarios.index(_scenario(site)) % len(PALETTE)],
            "linestyle": _STYLES[tilts.index(_tilt(site)) % len(_STYLES)],
        }
        names.append(f"{_scenario(site)}, {_tilt(site):g}°")
        level = 20 * np.log10(np.sort(values))
        cdf.plot(level, np.arange(1, len(level) + 1) / len(level), label=names[-1], **look)
        p = max(fit.p for fit in fits(values))
        histogram.hist(level, bins=40, density=True, histtype="step", label=f"{names[-1]}: p {_p_value(p)}", **look)
    for scenario in scenarios:
        of_scenario = [site for site, _ in held.values() if _scenario(site) == scenario]
        for state, values in fading(of_scenario).items():
            if len(values) < 2:
                continue
            told = "; ".join(f"{fit.name} p {_p_value(fit.p)}" for fit in fits(values))
            small.hist(
                values / np.sqrt(np.mean(values**2)),
                bins=np.linspace(0, 3, 31).tolist(),
                density=True,
                histtype="step",
                color=PALETTE[scenarios.index(scenario) % len(PALETTE)],
                linestyle="-" if state == 1 else "--",
                label=f"{scenario}{_SIGHT[state]}: {told}",
            )
    grid = np.linspace(0, 3, 200)
    small.plot(grid, 2 * grid * np.exp(-(grid**2)), color="black", linewidth=0.8, label="Rayleigh")
    cdf.set(title="Links, path loss and shadowing included", xlabel="amplitude [dB]", ylabel="share of links below")
    histogram.set(title="The same; p of Rayleigh or Rice, the better", xlabel="amplitude [dB]", ylabel="density [1/dB]")
    small.set(
        title="Fading at one antenna and subcarrier", xlabel="amplitude over its root mean square", ylabel="density"
    )
    small.set(xlim=(0, 3))
    histogram.set_ylim(top=1.3 * histogram.get_ylim()[1])  # room for the legend
    for axes, columns in ((cdf, 1), (histogram, 3), (small, 1)):
        axes.legend(fontsize="x-small", ncols=columns)
        axes.grid(alpha=0.3)
    gaps = mismatch([values for _, values in held.values()])
    image = matrix.imshow(gaps, vmin=0, vmax=1, cmap="viridis")
    matrix.set_title("Mismatch of the distributions of links")
    matrix.set_xticks(range(len(names)), names, rotation=90, fontsize="x-small")
    matrix.set_yticks(range(len(names)), names, fontsize="x-small")
    if len(names) <= _WRITTEN:
        for (row, column), gap in np.ndenumerate(gaps):
            color = "white" if gap < 0.6 else "black"
            matrix.text(column, row, f"{gap:.2f}", ha="center", va="center", color=color, fontsize="x-small")
    figure.colorbar(image, ax=matrix, label="largest gap of the CDFs")
    return figure


def _p_value(p: float) -> str:
    return "< 1e-6" if p < 1e-6 else f"= {p:.2g}"


def _scenario(site: Site) -> str:
    return str(site.domain.get("scenario", site.city))


def _tilt(site: Site) -> float:
    """Return the downtilt of a site [degrees]."""
    known = site.domain.get("tilt", float(site.bs_orientation[1]))
    return round(math.degrees(float(torch.as_tensor(known))))
