"""Maps of sites, drawn into Matplotlib axes: buildings, users, base station, scale."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datamodules.errors import InputError
from datamodules.sites.environment import Environment

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

    from datamodules.sites.site import Site

#: label and colour of the three line-of-sight states, in drawing order; safe for colour blindness
_LOS = {-1: ("no path", "#999999"), 1: ("line of sight", "#0072b2"), 0: ("no line of sight", "#e69f00")}
_BS_COLOR = "#d62728"


def extent(site: Site) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return the low and high corner of the map [m]: users, area of interest and base station, and a margin.

    Raises:
        InputError: No user has a known position.
    """
    position = site.links.position[:, :2].double().numpy()
    position = position[np.isfinite(position).all(1)]
    if not len(position):
        raise InputError(f"no user of site {site.name!r} has a position: there is no map to draw")
    corners = np.concatenate(
        [position, np.reshape(site.environment.bounds, (2, 2)), site.bs_position[None, :2].numpy()]
    )
    return with_margin(corners)


def with_margin(points: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return the low and high corner of a map of points (n, 2) [m] with a margin, also around one point."""
    low, high = points.min(0), points.max(0)
    margin = 0.04 * max(1.0, float((high - low).max()))
    return low - margin, high + margin


def draw_map(axes: Axes, site: Site, color: str) -> None:
    """Draw a whole map.

    Args:
        axes: Axes to draw into.
        site: The site.
        color: Quantity that colours the users: `los` or `power`.

    Raises:
        InputError: Unknown `color`, or no user has a known position.
    """
    if color not in ("los", "power"):
        raise InputError(f"color must be 'los' or 'power', got {color!r}")
    low, high = extent(site)
    axes.set(xlabel="x [m]", ylabel="y [m]", xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes.set_title(f"{site.name}, {hertz(site.carrier_frequency)}, {len(site):,} users", pad=24)
    x, y = site.links.position[:, :2].T.numpy()
    served_size, unserved_size = _sizes(len(site))
    for state, (label, shade) in _LOS.items():
        unserved = state == -1 and site.links.has_rays
        size = unserved_size if unserved else served_size
        if state == -1 and not unserved:
            label = "line of sight unknown"
        chosen = (site.links.los == state).numpy()
        if chosen.any() and (color == "los" or unserved):
            axes.scatter(x[chosen], y[chosen], size, shade, linewidths=0, label=f"{label} ({chosen.sum():,})", zorder=2)
    if color == "power":
        served, power = site.links.has_path.numpy(), decibel(site.links.power)
        points = axes.scatter(x[served], y[served], served_size, power[served], cmap="plasma", linewidths=0, zorder=2)
        rays = site.links.has_rays
        _color_bar(axes, points, "received power for 1 W sent [dB]" if rays else "mean |CSI|² [dB]", 1.02)
    shades = draw_buildings(axes, site.environment)
    if shades is not None:
        bar = _color_bar(axes, shades, "building height [m]", 1.02 if color == "los" else 1.16)
        bar.set_ylim(0, site.environment.heights.max())
    _draw_base_station(axes, site, length=0.09 * float((high - low).max()))
    _draw_scale(axes)
    legend = axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize="small")
    for handle in legend.legend_handles:
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([30.0])


def _sizes(users: int) -> tuple[float, float]:
    """Return the marker areas [points^2] of users with paths, and of those without.

    Markers are larger for few users; in large grids those of users without paths are smaller than the others.
    """
    growth = min(4.0, max(1.0, (500 / users) ** 0.5))
    return 7.0 * growth, min(7.0 * growth, 2.0 * growth**2)


def draw_buildings(axes: Axes, environment: Environment) -> ScalarMappable | None:
    """Draw footprints shaded by height; return the mappable of a colour bar, None without buildings."""
    from matplotlib.collections import PolyCollection

    heights = environment.heights
    if not len(heights):
        return None
    shades = PolyCollection(environment.footprints, array=heights, cmap="Greys", zorder=1)
    # greys between white (streets) and black (outlines)
    shades.set_clim(-0.4 * heights.max(), 1.3 * heights.max())
    shades.set_edgecolor("#555555")
    shades.set_linewidth(0.4)
    axes.add_collection(shades, autolim=False)
    return shades


def _color_bar(axes: Axes, mappable: ScalarMappable, label: str, left: float) -> Axes:
    """Draw a colour bar of the height of the map; `left` is its position in widths of the map."""
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
    """Draw a scale bar of round length, about a sixth of the map, in the lower left corner."""
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


def hertz(frequency: float) -> str:
    """Return a frequency [Hz] as text with unit."""
    return f"{frequency / 1e9:g} GHz" if frequency >= 1e9 else f"{frequency / 1e6:g} MHz"


def decibel(power: Tensor) -> NDArray[np.float64]:
    """Return 10 log10 of a power, clipped at -300 dB."""
    level: NDArray[np.float64] = 10 * power.double().clamp_min(1e-30).log10().numpy()
    return level
