"""Pictures of sites and of CSI.

Every function returns a `matplotlib.figure.Figure` of its own, made without pyplot: nothing is shown, nothing is global,
and `figure.savefig(file)` works on a machine with no display.
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
    figure = _figure(8.0, 5.2)
    axes = figure.add_subplot()
    _draw_map(axes, site, color)
    axes.set_title(f"{site.name}, {_hertz(site.carrier_frequency)}, {len(site):,} users")
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
    top = max(_decibel(grid.abs().square()).max() for grid in grids.values())
    rows = 2 if phase else 1
    figure = _figure(4.2 * (len(grids) + 1), 3.6 * rows)
    table = figure.subplots(rows, len(grids) + 1, squeeze=False)
    for column, (name, grid) in enumerate(grids.items()):
        axes = table[0][column]
        image = axes.imshow(_decibel(grid.abs().square()), vmin=top - 40, vmax=top, cmap="viridis", **_IMAGE)
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
    map_axes.set_title(f"{sites[0].name}, {_hertz(sites[0].carrier_frequency)}")
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


def _draw_map(axes: Axes, site: Site, color: str) -> None:
    if color not in ("los", "power"):
        raise InputError(f"color must be 'los' or 'power', got {color!r}")
    figure = axes.get_figure()
    assert figure is not None
    if len(site.environment.heights):
        from matplotlib.collections import PolyCollection

        shades = PolyCollection(site.environment.footprints, array=site.environment.heights, cmap="Greys", zorder=1)
        # neither white, which is the street, nor black, which would drown the outlines
        shades.set_clim(-0.4 * site.environment.heights.max(), 1.3 * site.environment.heights.max())
        shades.set_edgecolor("#555555")
        shades.set_linewidth(0.4)
        axes.add_collection(shades)
        bar = figure.colorbar(shades, ax=axes, label="building height [m]", shrink=0.8, aspect=30, pad=0.01)
        bar.ax.set_ylim(0, site.environment.heights.max())
    position = site.paths.position.numpy()
    if color == "los":
        for state, (label, shade, size) in _LOS.items():
            chosen = (site.paths.los == state).numpy()
            if chosen.any():
                label = f"{label} ({chosen.sum():,})"
                axes.scatter(*position[chosen, :2].T, s=size, color=shade, linewidths=0, label=label, zorder=2)
    else:
        served = site.paths.has_path.numpy()
        if not served.all():
            label = f"no path ({(~served).sum():,})"
            axes.scatter(*position[~served, :2].T, s=2, color=_LOS[-1][1], linewidths=0, label=label, zorder=2)
        power = _decibel(site.paths.power[site.paths.has_path])
        points = axes.scatter(*position[served, :2].T, c=power, s=7, cmap="plasma", linewidths=0, zorder=2)
        figure.colorbar(points, ax=axes, label="received power for 1 W sent [dB]", shrink=0.8, aspect=30, pad=0.01)
    _draw_base_station(axes, site)
    _draw_scale(axes)
    axes.set(xlabel="x [m]", ylabel="y [m]")
    axes.set_aspect("equal")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, frameon=False, markerscale=2, fontsize="small"
    )


def _draw_base_station(axes: Axes, site: Site) -> None:
    """Mark the base station and its boresight, and set the limits of the map."""
    x, y, z = site.bs_position.tolist()
    x0, y0, x1, y1 = site.environment.bounds
    corners = np.concatenate([site.paths.position.numpy()[:, :2], [[x0, y0], [x1, y1], [x, y]]])
    low, high = corners.min(0), corners.max(0)
    margin = 0.04 * max(1.0, *(high - low))
    axes.set_xlim(low[0] - margin, high[0] + margin)
    axes.set_ylim(low[1] - margin, high[1] + margin)
    alpha = float(site.bs_orientation[0])
    tip = (x + 2.2 * margin * math.cos(alpha), y + 2.2 * margin * math.sin(alpha))
    arrow = {"arrowstyle": "-|>", "color": _BS_COLOR, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=tip, xytext=(x, y), arrowprops=arrow, zorder=4)
    label = f"base station ({z:.0f} m high) and boresight"
    axes.scatter([x], [y], marker="^", s=90, color=_BS_COLOR, edgecolors="white", label=label, zorder=5)


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
    axes.set(xlabel="delay [taps]" if bandwidth is None else "delay [ns]", ylabel="power [dB below the peak]")
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
    return 10 * np.log10(power.double().clamp_min(1e-30).numpy())


def _nmse_db(csi: Tensor, prediction: Tensor) -> float:
    error = (csi - prediction).abs().square().sum() / csi.abs().square().sum().clamp_min(1e-30)
    return 10 * math.log10(max(float(error), 1e-30))


def _hertz(frequency: float) -> str:
    return f"{frequency / 1e9:g} GHz" if frequency >= 1e9 else f"{frequency / 1e6:g} MHz"
