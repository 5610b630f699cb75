"""Augmentation by rotation, reflection and scaling of positions, paths and maps.

Rotation by quarter turns and reflection transform the angles of the paths, scaling their delays. With unchanged arrays
the synthesised channel is a new one, consistent with the transformed map, positions and labels. This requires paths and
is not possible with stored CSI.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datamodules.channel.draws import LinkDraws
from datamodules.channel.ofdm import SPEED_OF_LIGHT
from datamodules.channel.transforms import constant
from datamodules.errors import InputError, finite_numbers
from datamodules.maps.raster import Entry


@dataclass(frozen=True)
class WorldSymmetry:
    """Distribution of the symmetries of training links.

    Args:
        turn: Random rotation by quarter turns about the vertical axis.
        mirror: Reflection of east and west, for half of the links.
        stretch: Range (lowest, highest) of a factor of all lengths, applied to delays, positions, map size and the
            phase of every path at the carrier. Relative path losses are unchanged, which is exact for reflection and
            approximate for diffraction.

    Raises:
        InputError: The range is not two finite numbers, not ordered or not positive.
    """

    turn: bool = True
    mirror: bool = True
    stretch: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        low, high = finite_numbers("stretch", self.stretch, "smallest", "largest")
        if not 0 < low <= high:
            raise InputError(f"stretch must be (smallest, largest), both positive, got {(low, high)}")

    def draw(self, draws: LinkDraws) -> World:
        """Draw one symmetry for each link."""
        turn, mirror, length = draws.uniform(3).unbind(1)
        low, high = self.stretch
        quarters = (turn * (4 if self.turn else 1)).long()
        return World(quarters, mirror < (0.5 if self.mirror else 0.0), low + (high - low) * length)


@dataclass(frozen=True)
class World:
    """Symmetry of each link: reflection (x to -x), then counter-clockwise rotation, then scaling.

    Attributes:
        quarters: Number of quarter turns, shape (B,), int64.
        mirrored: Whether east and west are exchanged, shape (B,), bool.
        stretch: Factor of all lengths, shape (B,).
    """

    quarters: Tensor
    mirrored: Tensor
    stretch: Tensor

    def move(self, rows: dict[str, Any], wavelength: Tensor) -> dict[str, Any]:
        """Return the transformed rows of a `ChannelDataset`.

        Args:
            rows: The rows.
            wavelength: Carrier wavelength of each link [m], shape (B,).
        """
        paths = dict(rows["paths"])
        extra = (self.stretch.double() - 1)[:, None] * paths["delay"].double()
        turns = (extra * (SPEED_OF_LIGHT / wavelength.double())[:, None]).frac()
        phase = (-2 * math.pi * turns).float()
        paths["gain"] = paths["gain"] * torch.polar(1 / self.stretch[:, None].expand_as(phase), phase)
        paths["delay"] = paths["delay"] * self.stretch[:, None]
        for side in ("aod", "aoa"):
            azimuth, zenith = paths[side].unbind(-1)
            azimuth = torch.where(self.mirrored[:, None], math.pi - azimuth, azimuth)
            azimuth = azimuth + self.quarters[:, None] * (math.pi / 2)
            azimuth = torch.remainder(azimuth + math.pi, 2 * math.pi) - math.pi
            paths[side] = torch.where(paths["mask"][..., None], torch.stack((azimuth, zenith), -1), 0.0)
        if "polarization" in paths:  # reflection turns the direction of growing azimuth
            kept = paths["polarization"]
            sign = constant(((1, -1), (-1, 1)), kept.device, kept.dtype)
            paths["polarization"] = torch.where(self.mirrored[:, None, None, None], sign * kept, kept)
        moved = {key: self._point(rows[key]) for key in ("position", "bs_position")}
        paths["position"] = moved["position"]
        return {**rows, **moved, "paths": paths}

    def map(self, image: Tensor) -> Tensor:
        """Return the transformed maps (B, 1, size, size), with row 0 in the north."""
        image = torch.where(self.mirrored[:, None, None, None], image.flip(-1), image)
        # all links by all turns: to choose the links of one turn would wait for a GPU
        turned = torch.stack([torch.rot90(image, quarter, (-2, -1)) for quarter in range(4)])
        return turned[self.quarters, torch.arange(len(image), device=image.device)]

    def geometry(self, vector: Tensor) -> Tensor:
        """Return the transformed geometry vectors (B, 8), see `geometry`."""
        vector = vector.clone()
        for column, row in ((Entry.BS_COLUMN, Entry.BS_ROW), (Entry.USER_COLUMN, Entry.USER_ROW)):
            # columns run east and rows south, from the corner of the map
            east, north = vector[:, column] - 0.5, 0.5 - vector[:, row]
            east, north = self._rotate(east, north)
            vector[:, column], vector[:, row] = east + 0.5, 0.5 - north
        vector[:, Entry.BS_HEIGHT] *= self.stretch
        vector[:, Entry.USER_HEIGHT] *= self.stretch
        vector[:, Entry.SCALE] /= self.stretch
        return vector

    def _point(self, position: Tensor) -> Tensor:
        x, y = self._rotate(position[:, 0], position[:, 1])
        return torch.stack((x, y, position[:, 2]), -1) * self.stretch[:, None]

    def _rotate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.where(self.mirrored, -x, x)
        cosine = constant((1.0, 0.0, -1.0, 0.0), x.device, x.dtype)[self.quarters]
        sine = constant((0.0, 1.0, 0.0, -1.0), x.device, x.dtype)[self.quarters]
        return cosine * x - sine * y, sine * x + cosine * y
