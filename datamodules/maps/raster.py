"""Rasterisation of buildings, its inverse, and pixel coordinates: the maps of environment-channel section IV-A.

Images have row 0 at the largest y and column 0 at the smallest x, as environment.png of WAIR-D.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.errors import InputError
from datamodules.sites.environment import Environment

#: a height of this many metres is 1 in the geometry vector, so that WAIR-D's 6 m and 1.5 m become 0.6 and 0.15
HEIGHT_UNIT = 10.0
#: a map this many metres wide has scale factor 1 in the geometry vector; areas of 0.1 to 1 km give 1 to 0.1
SIDE_UNIT = 100.0
#: LOS status of a user whose status is withheld, or who has no path
UNKNOWN_LOS = 0.5
#: samples a pixel along each axis when coverage is measured
_SUPERSAMPLE = 8
#: a pixel is building where buildings cover at least this share of it: neither walls grow nor streets close
_COVERAGE = 0.5
#: farthest that a traced outline may leave the pixel edges [pixels]: enough to see a wall behind its steps
_TOLERANCE = 1.25
#: share of its area that smoothing may take from a building or add to it
_AREA_CHANGE = 0.05


class Entry(IntEnum):
    """The entries of the geometry vector, see `geometry`."""

    BS_COLUMN = 0
    BS_ROW = 1
    BS_HEIGHT = 2
    USER_COLUMN = 3
    USER_ROW = 4
    USER_HEIGHT = 5
    LOS = 6
    SCALE = 7


#: column and row of the base station and of the user in the geometry vector
BS_PIXEL, USER_PIXEL = slice(Entry.BS_COLUMN, Entry.BS_HEIGHT), slice(Entry.USER_COLUMN, Entry.USER_HEIGHT)

Bounds = tuple[float, float, float, float]
Outline = NDArray[np.float64]


def map_image(environment: Environment, size: int = 64, edges: bool = True) -> tuple[Tensor, float]:
    """Rasterise the top view of an area (environment-channel section IV-A and Fig. 4).

    The map is padded symmetrically to a square, scaled to `size` x `size` pixels, binarised, and reduced to the
    outlines of buildings. The paper states no edge operator: here an outline pixel is a building pixel with at least
    one of its four neighbours outside buildings.

    Args:
        environment: Buildings and bounds, to which the map is clipped.
        size: Pixels a side.
        edges: Whether to keep the outlines only, rather than the filled buildings.

    Returns:
        The image (1, size, size), 1 on buildings and 0 elsewhere, and the scale factor [pixels per metre].

    Raises:
        InputError: `size` is not positive, or the bounds are not finite.
    """
    image, _, scale = _draw(environment, size, edges)
    return torch.from_numpy(image).float()[None], scale


def map_frame(environment: Environment, size: int = 64) -> tuple[Tensor, float]:
    """Return the corner (x_min, y_max) of the square map [m], shape (2,), and its scale [pixels per metre].

    A point is in column (x - x_min) * scale and row (y_max - y) * scale.

    Raises:
        InputError: `size` is not positive, or the bounds are not finite.
    """
    x_min, y_min, x_max, y_max = environment.bounds
    extent = (x_max - x_min, y_max - y_min)
    if size < 1 or not np.isfinite(extent).all() or min(extent) < 0:
        raise InputError(f"a map needs a positive size and finite bounds, got size {size}, bounds {environment.bounds}")
    # a lone user in an open field has bounds of no extent
    side = max(extent) or 1.0
    corner = ((x_min + x_max - side) / 2, (y_min + y_max + side) / 2)
    return torch.tensor(corner), size / side


def geometry(
    bs_position: Tensor,
    position: Tensor,
    los: Tensor,
    offset: Tensor,
    scale: Tensor,
    size: int = 64,
    with_los: bool = True,
) -> Tensor:
    """Return the geometry vector of environment-channel section IV-A, on the device of its arguments.

    | entry | value |
    |---|---|
    | 0, 1 | base station: column / size, row / size; in [0, 1] on the map |
    | 2 | base station: height / HEIGHT_UNIT |
    | 3, 4, 5 | user: the same |
    | 6 | LOS status: 0 line of sight, 1 none, UNKNOWN_LOS if withheld or without paths |
    | 7 | scale factor: scale * SIDE_UNIT / size, that is SIDE_UNIT over the side of the map |

    The planar coordinates are the pixel coordinates of the paper divided by the size of the image, so that neither they
    nor the scale factor depend on the resolution of the map.

    Args:
        bs_position: Base stations [m], shape (B, 3).
        position: Users [m], shape (B, 3).
        los: 1 line of sight, 0 none, -1 no path, shape (B,).
        offset: Upper left corner of each map [m], shape (B, 2), from `map_frame`.
        scale: Scale of each map [pixels per metre], shape (B,).
        size: Pixels a side of the maps of `scale`.
        with_los: Whether entry 6 is the LOS status; otherwise it is UNKNOWN_LOS.

    Returns:
        Shape (B, 8), float32.
    """
    per_side = (scale / size).unsqueeze(-1)
    pixels = [
        torch.stack((p[:, 0] - offset[:, 0], offset[:, 1] - p[:, 1]), dim=-1) * per_side
        for p in (bs_position, position)
    ]
    unknown = torch.full_like(scale, UNKNOWN_LOS)
    status = torch.where(los < 0, unknown, 1 - los.to(scale)) if with_los else unknown
    parts = (
        pixels[0],
        bs_position[:, 2:] / HEIGHT_UNIT,
        pixels[1],
        position[:, 2:] / HEIGHT_UNIT,
        status.unsqueeze(-1),
        per_side * SIDE_UNIT,
    )
    return torch.cat(parts, dim=-1).float()


def _draw(environment: Environment, size: int, edges: bool) -> tuple[NDArray[np.uint8], Tensor, float]:
    """Return the image (size, size), uint8, and its frame."""
    corner, scale = map_frame(environment, size)
    fine = size * _SUPERSAMPLE
    left, top = corner.double().tolist()
    side = size / scale
    x_min, y_min, x_max, y_max = environment.bounds
    covered = rasterize(environment.footprints, (left, top - side, left + side, top), (fine, fine))
    centre = (np.arange(fine) + 0.5) * side / fine
    covered &= ((left + centre >= x_min) & (left + centre <= x_max))[None, :]
    covered &= ((top - centre >= y_min) & (top - centre <= y_max))[:, None]
    share = covered.reshape(size, _SUPERSAMPLE, size, _SUPERSAMPLE).mean((1, 3))
    image = share >= _COVERAGE
    if edges:
        framed = np.pad(image, 1)
        image &= ~(framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:])
    return image.astype(np.uint8), corner, scale


def rasterize(footprints: Sequence[Outline], bounds: Bounds, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Sample the union of buildings at pixel centres.

    Each outline adds +1 or -1 to a row where it crosses its centre line; the cumulative sum along the row is the number
    of buildings at a pixel. All outlines are processed together, without the dilation by half a pixel of drawing
    libraries.

    Args:
        footprints: Outlines (V, 2) [m], not closed.
        bounds: Extent of the image (x_min, y_min, x_max, y_max) [m].
        shape: Rows and columns of the image.

    Returns:
        Building mask of that shape, bool, row 0 at y_max.
    """
    rows, cols = shape
    x_min, y_min, x_max, y_max = bounds
    to_pixels = np.array([cols / (x_max - x_min), rows / (y_min - y_max)])
    outlines = [(np.asarray(outline) - (x_min, y_max)) * to_pixels for outline in footprints if len(outline) > 2]
    turns = np.zeros((rows, cols + 1), dtype=np.int32)
    if outlines:
        start = np.concatenate(outlines)
        end = np.concatenate([np.roll(outline, -1, axis=0) for outline in outlines])
        # the same sense of rotation for all, or two overlapping buildings could cancel
        area = np.concatenate([np.full(len(outline), _signed_area(outline)) for outline in outlines])
        sign = np.sign(area) * np.sign(end[:, 1] - start[:, 1])
        # centre line r + 0.5 is crossed when it lies in [low, high): a corner on it counts once
        span = np.sort(np.stack((start[:, 1], end[:, 1])), axis=0) - 0.5
        low, high = np.clip(np.ceil(span), 0, rows).astype(np.int64)
        count = high - low
        edge = np.repeat(np.arange(len(start)), count)
        row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + low[edge]
        slope = (end[edge, 0] - start[edge, 0]) / (end[edge, 1] - start[edge, 1])
        column = np.ceil(start[edge, 0] + (row + 0.5 - start[edge, 1]) * slope - 0.5)
        np.add.at(turns, (row, np.clip(column, 0, cols).astype(np.int64)), sign[edge].astype(np.int32))
    inside: NDArray[np.bool_] = np.cumsum(turns[:, :cols], axis=1) != 0
    return inside


def trace(mask: NDArray[np.bool_], bounds: Bounds) -> tuple[Outline, ...]:
    """Convert a building mask to outlines, the inverse of `rasterize`.

    Buildings that touch in the image are merged. Outlines are simplified with a tolerance of 1.25 pixels. Since an
    outline has no holes, a building with a courtyard is divided there into parts that share a side.

    Args:
        mask: Building mask (rows, columns), bool, row 0 at y_max.
        bounds: Extent of the image (x_min, y_min, x_max, y_max) [m].

    Returns:
        Outlines (V, 2) [m], not closed.
    """
    rows, cols = mask.shape
    x_min, y_min, x_max, y_max = bounds
    change = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, left = np.nonzero(change == 1)
    right = np.nonzero(change == -1)[1]
    merged = shapely.union_all(shapely.box(left, row, right, row + 1))
    whole = shapely.get_parts(shapely.simplify(merged, 0.0))
    smooth = shapely.simplify(whole, _TOLERANCE)
    # a building one or two pixels wide would become a triangle
    faithful = np.abs(shapely.area(smooth) - shapely.area(whole)) <= _AREA_CHANGE * shapely.area(whole)
    buildings = np.where(faithful, smooth, whole)
    scale = np.array([(x_max - x_min) / cols, (y_min - y_max) / rows])
    parts = (part for building in buildings for part in _without_holes(building))
    return tuple(shapely.get_coordinates(part.exterior)[:-1] * scale + (x_min, y_max) for part in parts)


def _signed_area(outline: Outline) -> float:
    """Return the signed area of an outline (V, 2), positive for counter-clockwise order."""
    x, y = outline.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _without_holes(polygon: shapely.Polygon) -> Iterator[shapely.Polygon]:
    """Divide a polygon through its holes into parts without holes."""
    if not polygon.interiors:
        yield polygon
        return
    x_min, y_min, x_max, y_max = polygon.bounds
    cut = shapely.Polygon(polygon.interiors[0]).representative_point().x
    for half in (shapely.box(x_min, y_min, cut, y_max), shapely.box(cut, y_min, x_max, y_max)):
        for part in shapely.get_parts(shapely.intersection(polygon, half)):
            if isinstance(part, shapely.Polygon):
                yield from _without_holes(part)
