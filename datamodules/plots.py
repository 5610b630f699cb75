"""Pictures of sites and of CSI.

Every function returns a `matplotlib.figure.Figure` of its own, made without pyplot: nothing is shown, nothing is
global, and `figure.savefig(file)` works on a machine with no display.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.errors import InputError
from datamodules.paths import Paths
from datamodules.site import Site

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

#: the three line-of-sight states: label, colour (told apart by the colour-blind), size; drawn in this order
_LOS = {-1: ("no path", "#bbbbbb", 2.0), 1: ("line of sight", "#0072b2", 7.0), 0: ("no line of sight", "#e69f00", 7.0)}
_BS_COLOR = "#d62728"
_LINES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
#: weakest value drawn, below the strongest [dB]
_FLOOR = -60.0


def plot_site(site: Site, color: Literal["los", "power"] = "los") -> Figure:
    """Draw a map: buildings shaded by height, users, and the base station with its boresight.

    Args:
        site: The site.
        color: What colours the users: line of sight (three states), or power received for 1 W sent [dB].

    Raises:
        InputError: Unknown `color`.
    """
    low, high = _extent(site)
    # as high as the map needs, within what fits on a page
    figure = _figure(8.5, min(max(1.2 + 6.2 * (high[1] - low[1]) / (high[0] - low[0]), 3.0), 9.0))
    _draw_map(figure.add_subplot(), site, color)
    return figure


def plot_csi(
    csi: Tensor, ofdm_bandwidth: float | None = None, prediction: Tensor | None = None, phase: bool = False
) -> Figure:
    """Draw one CSI sample over antennas and subcarriers, and its delay profile.

    The profile is the power of the inverse DFT over subcarriers, averaged over antennas.

    Args:
        csi: CSI, shape (R, T, K) or (T, K), complex64.
        ofdm_bandwidth: Bandwidth [Hz] that gives the profile an axis in nanoseconds; without it, taps.
        prediction: A second CSI of the same shape, drawn beside the first on the same scale, with its NMSE.
        phase: Whether to draw the phase too.

    Raises:
        InputError: `csi` has another number of axes, or `prediction` another shape.
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
    levels = {name: _decibel(grid.abs().square()) for name, grid in grids.items()}
    top = max(level.max() for level in levels.values())
    bottom = min(max(min(level.min() for level in levels.values()), top - 40), top - 10)
    rows = 2 if phase else 1
    figure = _figure(4.2 * (len(grids) + 1), 3.6 * rows)
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
    """Draw what a source makes: a map of the first site, amplitudes, delay spreads and numbers of paths.

    Up to six sites are drawn apart; more are pooled. Amplitude is that of the sum of all paths at the carrier between
    isotropic antennas, relative to what was sent [dB]; delay spread is the root mean square, weighted by power.

    Args:
        sites: One or more sites.

    Raises:
        InputError: There is no site, or no user with a path.
    """
    paths = {site.name: site.paths[site.paths.has_path] for site in sites}
    paths = {name: part for name, part in paths.items() if len(part)}
    if not paths:
        raise InputError("no site with a user that has a path: there are no statistics to plot")
    if len(paths) > len(_LINES):
        paths = {f"{len(paths)} sites": Paths.cat(list(paths.values()))}
    figure = _figure(11.0, 7.4)
    (map_axes, amplitude_axes), (spread_axes, count_axes) = figure.subplots(2, 2)
    _draw_map(map_axes, sites[0], "los")
    spreads = {name: 1e9 * _delay_spread(part).numpy() for name, part in paths.items()}
    # a few far echoes would squeeze everything else into the first bin
    widest = max(1.0, float(np.percentile(np.concatenate(list(spreads.values())), 99)))
    most = max(part.num_paths for part in paths.values())
    for (name, part), line in zip(paths.items(), _LINES, strict=False):
        amplitude = np.sort(20 * np.log10(part.gain.sum(1).abs().clamp_min(1e-20).numpy()))
        amplitude_axes.plot(
            amplitude, np.arange(1, len(part) + 1) / len(part), color=line, label=f"{name} ({len(part):,})"
        )
        share = np.full(len(part), 100 / len(part))
        style: dict[str, Any] = {"weights": share, "histtype": "step", "color": line, "linewidth": 1.5}
        spread_axes.hist(spreads[name].clip(max=widest), bins=np.linspace(0, widest, 41), **style)
        count_axes.hist(part.mask.sum(1).numpy(), bins=np.arange(0.5, most + 1.5), **style)
    amplitude_axes.set(xlabel="amplitude at the carrier [dB]", ylabel="share of links below", ylim=(0, 1))
    amplitude_axes.legend(fontsize="small", loc="upper left")
    spread_axes.set(
        xlabel=f"delay spread [ns] (above {widest:.0f} ns in the last bin)", ylabel="links [%]", xlim=(0, None)
    )
    count_axes.set(xlabel="paths a link", ylabel="links [%]")
    for axes in (amplitude_axes, spread_axes, count_axes):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


_IMAGE: dict[str, Any] = {"aspect": "auto", "origin": "lower", "interpolation": "nearest"}


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=120)


def _extent(site: Site) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the low and high corner of the map [m]: users, area of interest and base station, and a margin."""
    position = site.paths.position[:, :2].double().numpy()
    corners = np.concatenate(
        [position, np.reshape(site.environment.bounds, (2, 2)), site.bs_position[None, :2].numpy()]
    )
    low, high = corners.min(0), corners.max(0)
    margin = 0.04 * max(1.0, float((high - low).max()))
    return low - margin, high + margin


def _draw_map(axes: Axes, site: Site, color: str) -> None:
    if color not in ("los", "power"):
        raise InputError(f"color must be 'los' or 'power', got {color!r}")
    low, high = _extent(site)
    axes.set(xlabel="x [m]", ylabel="y [m]", xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes.set_title(f"{site.name}, {_hertz(site.carrier_frequency)}, {len(site):,} users", pad=24)
    x, y = site.paths.position[:, :2].T.numpy()
    power = _decibel(site.paths.power)
    for state, (label, shade, size) in _LOS.items():
        chosen = (site.paths.los == state).numpy()
        if chosen.any() and (color == "los" or state == -1):
            axes.scatter(x[chosen], y[chosen], size, shade, linewidths=0, label=f"{label} ({chosen.sum():,})", zorder=2)
    if color == "power":
        served = site.paths.has_path.numpy()
        points = axes.scatter(x[served], y[served], 7.0, power[served], cmap="plasma", linewidths=0, zorder=2)
        _color_bar(axes, points, "received power for 1 W sent [dB]", 1.02)
    if len(site.environment.heights):
        _draw_buildings(axes, site, 1.02 if color == "los" else 1.16)
    _draw_base_station(axes, site, length=0.09 * float((high - low).max()))
    _draw_scale(axes)
    legend = axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize="small")
    for handle in legend.legend_handles:
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([30.0])


def _draw_buildings(axes: Axes, site: Site, left: float) -> None:
    from matplotlib.collections import PolyCollection

    heights = site.environment.heights
    shades = PolyCollection(site.environment.footprints, array=heights, cmap="Greys", zorder=1)
    # neither white, which is the street, nor black, which would drown the outlines
    shades.set_clim(-0.4 * heights.max(), 1.3 * heights.max())
    shades.set_edgecolor("#555555")
    shades.set_linewidth(0.4)
    axes.add_collection(shades, autolim=False)
    _color_bar(axes, shades, "building height [m]", left).set_ylim(0, heights.max())


def _color_bar(axes: Axes, mappable: ScalarMappable, label: str, left: float) -> Axes:
    """Draw a colour bar beside a map, as high as the map; `left` is in widths of the map."""
    bar_axes = axes.inset_axes((left, 0.0, 0.02, 1.0))
    axes.figure.colorbar(mappable, cax=bar_axes, label=label)
    return bar_axes


def _draw_base_station(axes: Axes, site: Site, length: float) -> None:
    """Mark the base station, and its boresight by an arrow of a length [m]."""
    x, y, z = site.bs_position.tolist()
    alpha = float(site.bs_orientation[0])
    tip = (x + length * math.cos(alpha), y + length * math.sin(alpha))
    arrow = {"arrowstyle": "-|>", "color": _BS_COLOR, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=tip, xytext=(x, y), arrowprops=arrow, zorder=4)
    label = f"base station (z = {z:.0f} m), boresight"
    axes.scatter([x], [y], 90.0, _BS_COLOR, marker="^", edgecolors="white", label=label, zorder=5)


def _draw_scale(axes: Axes) -> None:
    """Draw a bar of a round length, about a sixth of the map, into the lower left corner."""
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    length = (x1 - x0) / 6
    unit = 10 ** math.floor(math.log10(length))
    length = max(step * unit for step in (1, 2, 5) if step * unit <= length)
    left, low = x0 + 0.03 * (x1 - x0), y0 + 0.04 * (y1 - y0)
    axes.plot([left, left + length], [low, low], color="black", linewidth=3, solid_capstyle="butt", zorder=6)
    box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}
    text = f"{length:g} m"
    axes.text(
        left + length / 2, low + 0.02 * (y1 - y0), text, ha="center", va="bottom", fontsize="small", bbox=box, zorder=6
    )


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
    for (name, grid), line, style in zip(grids.items(), _LINES, ("-", "--"), strict=False):
        profile = torch.fft.ifft(grid, dim=-1).abs().square().mean(0)
        peak = peak or float(profile.max())
        taps = np.arange(len(profile)) * (1.0 if bandwidth is None else 1e9 / bandwidth)
        level = _decibel(profile / max(peak, 1e-30)).clip(_FLOOR)
        axes.plot(taps, level, style, color=line, label=name, linewidth=1.5)
    axes.set(xlabel="delay [taps]" if bandwidth is None else "delay [ns]", ylabel="power relative to the peak [dB]")
    axes.set(title="delay profile", xlim=(0, None), ylim=(_FLOOR, 3))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(grids) > 1:
        axes.legend(fontsize="small")


def _delay_spread(paths: Paths) -> Tensor:
    """Return the power-weighted standard deviation of the delays [s], shape (U,), float64."""
    weight = paths.gain.abs().double().square()
    weight = weight / weight.sum(1, keepdim=True)
    mean = (weight * paths.delay.double()).sum(1, keepdim=True)
    return (weight * (paths.delay.double() - mean).square()).sum(1).sqrt()


def _decibel(power: Tensor) -> NDArray[np.float64]:
    level: NDArray[np.float64] = 10 * power.double().clamp_min(1e-30).log10().numpy()
    return level


def _nmse_db(csi: Tensor, prediction: Tensor) -> float:
    error = (csi - prediction).abs().square().sum() / csi.abs().square().sum().clamp_min(1e-30)
    return 10 * math.log10(max(float(error), 1e-30))


def _hertz(frequency: float) -> str:
    return f"{frequency / 1e9:g} GHz" if frequency >= 1e9 else f"{frequency / 1e6:g} MHz"
