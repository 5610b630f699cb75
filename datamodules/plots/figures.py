"""Figures of sites and of CSI.

Every function returns a new `matplotlib.figure.Figure`, made without pyplot: there is no global state, and
`figure.savefig(file)` works without a display.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.plots.maps import decibel, draw_map, extent
from datamodules.plots.style import PALETTE, empty_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from datamodules.sites.paths import Paths
    from datamodules.sites.site import Site

#: dynamic range of the drawn power [dB]
_FLOOR = -60.0


def plot_site(site: Site, color: Literal["los", "power"] = "los") -> Figure:
    """Draw a map: buildings shaded by height, users, and the base station with its boresight.

    Args:
        site: The site.
        color: Quantity shown by colour: line of sight (three states), or received power for 1 W transmitted [dB].

    Raises:
        InputError: Unknown `color`.
    """
    low, high = extent(site)
    height = 1.2 + 6.2 * (high[1] - low[1]) / (high[0] - low[0])
    figure = empty_figure(8.5 if color == "los" else 10.0, min(max(height, 3.0), 9.0), dpi=120)
    draw_map(figure.add_subplot(), site, color)
    return figure


def plot_csi(
    csi: Tensor, ofdm_bandwidth: float | None = None, prediction: Tensor | None = None, phase: bool = False
) -> Figure:
    """Draw one CSI sample over antennas and subcarriers, and its delay profile.

    The profile is the power of the inverse DFT over subcarriers, averaged over antennas.

    Args:
        csi: CSI, shape (R, T, K) or (T, K), complex64.
        ofdm_bandwidth: Bandwidth [Hz] that gives the profile an axis in nanoseconds; without it, taps.
        prediction: A second CSI of the same shape, drawn next to the first on the same scale, with its NMSE.
        phase: Whether to draw the phase as well.

    Raises:
        InputError: `csi` has another number of axes, or `prediction` has another shape than `csi`.
    """
    if csi.ndim not in (2, 3) or (prediction is not None and prediction.shape != csi.shape):
        other = "" if prediction is None else f" and {tuple(prediction.shape)}"
        raise InputError(
            f"CSI must have shape (R, T, K) or (T, K), the prediction alike, got {tuple(csi.shape)}{other}"
        )
    samples = {"CSI": csi} if prediction is None else {"CSI": csi, "prediction": prediction}
    grids = {
        name: value.detach().cpu().reshape(-1, value.shape[-1]).to(torch.complex64) for name, value in samples.items()
    }
    levels = {name: decibel(grid.abs().square()) for name, grid in grids.items()}
    top = max(level.max() for level in levels.values())
    bottom = min(max(min(level.min() for level in levels.values()), top - 40), top - 10)
    rows = 2 if phase else 1
    figure = empty_figure(4.2 * (len(grids) + 1), 3.6 * rows, dpi=120)
    table = figure.subplots(rows, len(grids) + 1, squeeze=False)
    for column, (name, grid) in enumerate(grids.items()):
        axes = table[0][column]
        image = axes.imshow(levels[name], vmin=bottom, vmax=top, cmap="viridis", **_IMAGE)
        axes.set_title(name if name == "CSI" else f"{name}, NMSE {_nmse_db(grids['CSI'], grid):.1f} dB")
        _label_antennas(axes, csi)
        figure.colorbar(image, ax=axes, label="|CSI|² [dB]")
        if phase:
            axes = table[1][column]
            image = axes.imshow(grid.angle().numpy(), vmin=-math.pi, vmax=math.pi, cmap="twilight", **_IMAGE)
            _label_antennas(axes, csi)
            figure.colorbar(image, ax=axes, label="phase [rad]")
    for axes in table[1:, -1]:
        axes.set_axis_off()
    _draw_profile(table[0][-1], grids, ofdm_bandwidth)
    return figure


def plot_statistics(sites: Sequence[Site]) -> Figure:
    """Draw a map of the first site, and distributions of amplitudes, delay spreads and numbers of paths.

    Up to six sites are drawn separately; more are pooled. The amplitude is the channel gain at the carrier between the
    first antennas [dB]; the delay spread is the root mean square, weighted by power. Recorded CSI has amplitudes only.

    Args:
        sites: One or more sites.

    Raises:
        InputError: There is no site, or no link with a channel.
    """
    served = [site for site in sites if site.links.has_path.any()]
    if not served:
        raise InputError("no site with a user that has a path: there are no statistics to plot")
    figure = empty_figure(11.0, 7.4, dpi=120)
    (map_axes, amplitude_axes), (spread_axes, count_axes) = figure.subplots(2, 2)
    if torch.isfinite(sites[0].links.position).any():
        draw_map(map_axes, sites[0], "los")
    else:
        _annotate(map_axes, "positions unknown")
    for (name, amplitude), line in zip(_pool({s.name: _amplitude(s) for s in served}).items(), PALETTE, strict=False):
        level, share = np.sort(decibel(amplitude.square())), np.arange(1, len(amplitude) + 1) / len(amplitude)
        amplitude_axes.plot(level, share, color=line, label=f"{name} ({len(amplitude):,})")
    amplitude_axes.set(xlabel="amplitude at the carrier [dB]", ylabel="share of links below", ylim=(0, 1))
    amplitude_axes.legend(fontsize="small", loc="upper left")
    rays = {s.name: s.paths[s.links.has_path] for s in served if s.links.has_rays}
    _draw_histograms(spread_axes, count_axes, rays)
    for axes in (amplitude_axes, spread_axes, count_axes):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_histograms(spread_axes: Axes, count_axes: Axes, rays: dict[str, Paths]) -> None:
    """Draw the delay spreads [ns] and the numbers of paths of links that have one."""
    spread_axes.set(xlabel="delay spread [ns]", ylabel="links [%]")
    count_axes.set(xlabel="paths a link", ylabel="links [%]")
    if not rays:
        for axes in (spread_axes, count_axes):
            _annotate(axes, "recorded CSI: no rays")
        return
    spreads = _pool({name: 1e9 * paths.delay_spread for name, paths in rays.items()})
    counts = _pool({name: paths.mask.sum(1) for name, paths in rays.items()})
    # few long delay spreads would compress the histogram into its first bin
    widest = max(1.0, float(np.percentile(torch.cat(list(spreads.values())).numpy(), 99)))
    spread_axes.set(xlabel=f"delay spread [ns] (above {widest:.0f} ns in the last bin)", xlim=(0, widest * 1.02))
    edges = np.arange(0.5, max(int(count.max()) for count in counts.values()) + 1.5)
    for name, line in zip(spreads, PALETTE, strict=False):
        share = np.full(len(spreads[name]), 100 / len(spreads[name]))
        style: dict[str, Any] = {"weights": share, "histtype": "step", "color": line, "linewidth": 1.5}
        spread_axes.hist(spreads[name].clamp(max=widest).numpy(), bins=np.linspace(0, widest, 41).tolist(), **style)
        count_axes.hist(counts[name].numpy(), bins=edges.tolist(), **style)


def _annotate(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color="grey")


def _pool(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pool the values of all sites where there are too many to draw separately."""
    if len(values) <= len(PALETTE):
        return values
    return {f"{len(values)} sites": torch.cat(list(values.values()))}


def _amplitude(site: Site) -> Tensor:
    """Return the magnitude at the first antennas and subcarrier of every link with a channel, and snapshot."""
    return site.links.amplitude[site.links.has_path].flatten()


_IMAGE: dict[str, Any] = {"aspect": "auto", "origin": "lower", "interpolation": "nearest"}


def _label_antennas(axes: Axes, csi: Tensor) -> None:
    axes.set_xlabel("subcarrier")
    if csi.ndim == 2 or csi.shape[0] == 1:
        axes.set_ylabel("antenna")
        return
    num_rx, num_tx = csi.shape[:2]
    axes.set_ylabel(f"receive antenna, {num_tx} transmit antennas each")
    axes.set_yticks([num_tx * (r + 0.5) - 0.5 for r in range(num_rx)], [str(r) for r in range(num_rx)])
    for r in range(1, num_rx):
        axes.axhline(num_tx * r - 0.5, color="white", linewidth=0.8)


def _draw_profile(axes: Axes, grids: dict[str, Tensor], bandwidth: float | None) -> None:
    peak = 0.0
    for (name, grid), line, style in zip(grids.items(), PALETTE, ("-", "--"), strict=False):
        profile = torch.fft.ifft(grid, dim=-1).abs().square().mean(0)
        peak = peak or float(profile.max())
        taps = np.arange(len(profile)) * (1.0 if bandwidth is None else 1e9 / bandwidth)
        level = decibel(profile / max(peak, 1e-30)).clip(_FLOOR)
        axes.plot(taps, level, style, color=line, label=name, linewidth=1.5)
    axes.set(xlabel="delay [taps]" if bandwidth is None else "delay [ns]", ylabel="power relative to the peak [dB]")
    axes.set(title="delay profile", xlim=(0, None), ylim=(_FLOOR, 3))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(grids) > 1:
        axes.legend(fontsize="small")


def _nmse_db(csi: Tensor, prediction: Tensor) -> float:
    error = (csi - prediction).abs().square().sum() / csi.abs().square().sum().clamp_min(1e-30)
    return 10 * math.log10(max(float(error), 1e-30))
