"""Encoders of the environment: a transformer over map patches and geometry, and a linear layer over positions."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.channel.transforms import deviation
from datamodules.errors import check_not_negative, check_positive
from datamodules.maps.raster import BS_PIXEL, HEIGHT_UNIT, SIDE_UNIT, USER_PIXEL, Entry
from foundation.encoder import Encoder
from foundation.nets.transformer import Pool, Tower

#: pixels of the map strip along a link: across and along
_ACROSS, _ALONG = 16, 64
#: samples of the plane of single reflections: sines of the angle of departure, for both signs of the cosine, and
#: lengths
_SINES, _LENGTHS = 32, 48
#: samples of a visibility map: directions, distances, and largest distance in sides of the map
_DIRECTIONS, _DISTANCES, _SIDES = 128, 32, 1.5


class EnvironmentTransformer(Tower):
    """EPNN, the environment tower: a transformer over patches of the map and tokens of the geometry vector.

    Environment-channel sections III-A1 and IV-A. The map becomes patches by a strided convolution, the vector of
    positions, LOS status and scale becomes tokens by a linear layer.

    Args:
        map_size: Pixels a side of the map.
        map_patch: Pixels a side of a patch. With None the whole map is no input, only the parts of it that `corridor`
            and `echoes` extract for each link, which avoids overfitting to the maps of few areas.
        geometry_tokens: Number of tokens of the geometry vector.
        frequencies: With 0 the linear layer reads the 8 values alone, as in the paper. With F it also reads Fourier
            features, sine and cosine of F octaves, of the vector from base station to user [100 m], the length of the
            direct path and its direction, which improve the resolution of small networks.
        corridor: Number of tokens of a map strip along the link; 0 as in the paper. The strip is resampled such that
            base station and user have the same pixel coordinates in it for every link.
        echoes: Number of tokens of the plane of single reflections, see `single_bounces`; 0 as in the paper. The plane
            has the axes of the channel, angle of departure and path length, so that walls appear where their
            reflections do and the map scale acts as a scale of the delays. It is computed twice, with all walls and
            with those visible from both ends of the link alone.
        reach: Largest path length [m] of that plane.
        width: Width of the tokens.
        layers: Blocks of this tower alone.
        shared_layers: Number of blocks that the other tower may share.
        heads: Attention heads of a block.
        embed_dim: Dimension of the embedding, the features.
        pool: Pooling of the tokens, see `Tower`.

    Raises:
        ValueError: `map_patch`, `corridor` or `echoes` is no divisor, or all three are absent.
    """

    input_keys: ClassVar[tuple[str, ...]] = ("map", "geometry")
    octaves: Tensor

    def __init__(
        self,
        map_size: int = 64,
        map_patch: int | None = 8,
        geometry_tokens: int = 1,
        frequencies: int = 0,
        corridor: int = 0,
        echoes: int = 0,
        reach: float = 312.0,
        width: int = 256,
        layers: int = 6,
        shared_layers: int = 3,
        heads: int = 8,
        embed_dim: int = 128,
        pool: Pool = "class",
    ) -> None:
        check_positive("EnvironmentTransformer", map_size=map_size, map_patch=map_patch, reach=reach)
        counts = {"frequencies": frequencies, "corridor": corridor, "echoes": echoes}
        check_not_negative("EnvironmentTransformer", **counts, geometry_tokens=geometry_tokens)
        if map_patch and map_size % map_patch:
            raise ValueError(f"a patch of {map_patch} pixels does not divide a map of {map_size}")
        if not (map_patch or corridor or echoes):
            raise ValueError("the tower has no input from the map: give map_patch, corridor or echoes")
        if (corridor and _ALONG % corridor) or (echoes and _LENGTHS % echoes):
            raise ValueError(f"corridor must divide {_ALONG} and echoes {_LENGTHS}, got {corridor} and {echoes}")
        num_patches = (map_size // map_patch) ** 2 if map_patch else 0
        tokens = num_patches + geometry_tokens + corridor + echoes
        super().__init__(tokens, width, layers, shared_layers, heads, embed_dim, pool)
        self.save_hyperparameters()
        self.frequencies, self.geometry_tokens = frequencies, geometry_tokens
        self.corridor, self.echoes, self.reach = corridor, echoes, reach
        self.patches = nn.Conv2d(1, width, map_patch, stride=map_patch, bias=False) if map_patch else None
        # 8 values, and sine and cosine of 5 numbers at each frequency
        self.vector = nn.Linear(8 + 10 * frequencies, geometry_tokens * width)
        if corridor:
            self.pieces = nn.Linear(_ACROSS * _ALONG // corridor, width, bias=False)
        if echoes:
            self.bounces = nn.Linear(4 * _SINES * _LENGTHS // echoes, width, bias=False)
        self.register_buffer("octaves", math.pi * 2.0 ** torch.arange(frequencies), persistent=False)

    def forward(self, map: Tensor, geometry: Tensor) -> Tensor:
        """Return embeddings (B, D) of maps (B, 1, 64, 64) and geometry vectors (B, 8), see `AreaMaps.geometry`."""
        return self.embed(self.patchify(map, geometry))

    def patchify(self, map: Tensor, geometry: Tensor) -> Tensor:
        """Return patches (B, num_tokens, width) of maps (B, 1, 64, 64) and geometry vectors (B, 8)."""
        values = self._with_fourier_features(geometry) if self.frequencies else geometry
        tokens = [rearrange(self.vector(values), "b (n d) -> b n d", n=self.geometry_tokens)]
        if self.corridor:
            strip = corridor(map, geometry, _ALONG)
            tokens.append(self.pieces(rearrange(strip, "b 1 h (n w) -> b n (h w)", n=self.corridor)))
        if self.echoes:
            plane = single_bounces(map, geometry, _SINES, _LENGTHS, self.reach)
            tokens.append(self.bounces(rearrange(plane, "b s a (n l) -> b n (s a l)", n=self.echoes)))
        if self.patches is not None:
            tokens.append(rearrange(self.patches(map), "b d h w -> b (h w) d"))
        return torch.cat(tokens, dim=1)

    def _with_fourier_features(self, geometry: Tensor) -> Tensor:
        """Return the geometry vector (B, 8) with Fourier features of the link appended."""
        # the scale is 100 m over the side of the map
        between = (geometry[:, USER_PIXEL] - geometry[:, BS_PIXEL]) / geometry[:, Entry.SCALE, None].clamp_min(1e-3)
        offset = torch.cat([between, _relative_height(geometry) / SIDE_UNIT], dim=1)
        length = torch.linalg.vector_norm(offset, dim=1, keepdim=True)
        direction = between / length.clamp_min(1e-3)  # the quantities that determine a path in the channel
        numbers = torch.cat([between, length, direction], dim=1)
        angles = (numbers.unsqueeze(-1) * self.octaves).flatten(1)
        return torch.cat([geometry, angles.sin(), angles.cos()], dim=1)


def corridor(map: Tensor, geometry: Tensor, along: int) -> Tensor:
    """Resample the map along each link: a strip from behind the base station to behind the user.

    Args:
        map: Maps (B, 1, size, size).
        geometry: Geometry vectors (B, 8), see `AreaMaps.geometry`.
        along: Pixels of the strip along the link.

    Returns:
        Strips (B, 1, 16, along) of 3/4 by 3/2 of the length of the link. The base station is a sixth of the strip from
        the left side, the user a sixth from the right side. Zero outside the map.
    """
    station, user = geometry[:, BS_PIXEL], geometry[:, USER_PIXEL]
    forward = user - station
    sideways = torch.stack([-forward[:, 1], forward[:, 0]], dim=-1)
    # pixel centres in units of the length of the link
    ahead = (torch.arange(along, device=map.device) + 0.5) / along * 1.5 - 0.25
    aside = ((torch.arange(_ACROSS, device=map.device) + 0.5) / _ACROSS - 0.5) * 0.75
    points = rearrange(ahead, "w -> 1 1 w 1") * rearrange(forward, "b c -> b 1 1 c")
    points = points + rearrange(aside, "h -> 1 h 1 1") * rearrange(sideways, "b c -> b 1 1 c")
    points = points + rearrange(station, "b c -> b 1 1 c")
    return F.grid_sample(map, 2 * points.to(map) - 1, align_corners=False)


def single_bounces(map: Tensor, geometry: Tensor, sines: int, lengths: int, reach: float) -> Tensor:
    """Resample the map at the reflection points of single-bounce paths, by angle of departure and path length.

    In the horizontal plane, an angle of departure and a path length determine one reflection point, on an ellipse with
    both ends as foci. With the vector d of the link, the unit vector u of the departure and the length l its distance
    from the base station is (l^2 - |d|^2) / 2 (l - u d). A wall becomes a curve whose shortest path is the specular
    reflection.

    Args:
        map: Maps (B, 1, size, size).
        geometry: Geometry vectors (B, 8), see `AreaMaps.geometry`.
        sines: Samples of the sine of the azimuth, from -1 (south) to 1 (north), which an array along the north axis
            resolves. The geometry vector does not contain the orientation of the array.
        lengths: Samples of the path length, from 0 to `reach`.
        reach: Largest path length [m], with the height difference of both ends as of a vertical wall.

    Returns:
        Planes (B, 4, sines, lengths): east and west of the base station, which such an array cannot distinguish, and
        both again multiplied by the visibility from both ends of the link. Zero where the path length is below that of
        the link, and outside the map.
    """
    sine = (torch.arange(sines, device=map.device) + 0.5) / sines * 2 - 1
    cosine = (1 - sine.square()).sqrt()
    # map columns increase to the east, rows to the south
    direction = torch.stack([torch.stack([cosine, -sine], dim=-1), torch.stack([-cosine, -sine], dim=-1)]).flatten(0, 1)
    station, user = _half_sides(geometry[:, BS_PIXEL]), _half_sides(geometry[:, USER_PIXEL])
    link = user - station
    metres = (torch.arange(lengths, device=map.device) + 0.5) / lengths * reach
    level = (metres.square() - _relative_height(geometry).square()).clamp_min(0).sqrt()
    length = level / SIDE_UNIT * 2 * geometry[:, Entry.SCALE, None]
    detour = (length.square() - link.square().sum(1, keepdim=True)).clamp_min(0)
    ahead = (link.unsqueeze(1) * direction).sum(-1)  # a matrix product would be rounded by autocast
    away = 2 * (length.unsqueeze(1) - ahead.unsqueeze(2))
    distance = detour.unsqueeze(1) / away.clamp_min(1e-6)
    bounce = torch.addcmul(-link[:, None, None], distance.unsqueeze(-1), direction[:, None])  # from the user
    points = (bounce + user[:, None, None]).to(map)
    plane = F.grid_sample(map, points, align_corners=False) * (detour > 0)[:, None, None]
    azimuth = torch.atan2(direction[:, 1:], direction[:, :1]).expand_as(distance)
    seen = plane * visibility(map, station, distance, azimuth)
    seen = seen * visibility(map, user, bounce.norm(dim=-1), torch.atan2(bounce[..., 1], bounce[..., 0]))
    return rearrange([plane, seen], "n b 1 (s a) l -> b (n s) a l", s=2)


def visibility(map: Tensor, centre: Tensor, distance: Tensor, azimuth: Tensor) -> Tensor:
    """Return the visibility of points from a centre: 1 in line of sight, 0 behind a wall.

    Args:
        map: Maps (B, 1, size, size).
        centre: Viewpoints (B, 2), east and south of the centre of the map in half sides.
        distance: Distances of the points from the viewpoint (B, H, W), in half sides; the front of a wall is visible.
        azimuth: Directions of the points, from east to south, in [-pi, pi] [rad], (B, H, W).

    Returns:
        Visibility (B, 1, H, W) in [0, 1].
    """
    turn = ((torch.arange(_DIRECTIONS, device=map.device) + 0.5) / _DIRECTIONS * 2 - 1) * math.pi
    away = (torch.arange(_DISTANCES, device=map.device) + 0.5) / _DISTANCES * 2 * _SIDES
    rays = away[:, None] * torch.stack([turn.cos(), turn.sin()], dim=-1)[:, None]
    walls = F.grid_sample(map, (centre[:, None, None] + rays).to(map), align_corners=False)
    free = (1 + walls - walls.cumsum(-1)).clamp_min(0)
    # two pixels before the point, since the wall on which it lies would hide it
    grid = torch.stack([(distance - 4 / map.shape[-1]) / _SIDES - 1, azimuth / math.pi], dim=-1)
    return F.grid_sample(free, grid.to(map), align_corners=False, padding_mode="border")


def _half_sides(position: Tensor) -> Tensor:
    """Return positions (B, 2) of a geometry vector in the coordinates of `grid_sample`, [-1, 1] over the map."""
    return 2 * position - 1


def _relative_height(geometry: Tensor) -> Tensor:
    """Return the height of the user above the base station [m], (B, 1), from geometry vectors (B, 8)."""
    return (geometry[:, Entry.USER_HEIGHT] - geometry[:, Entry.BS_HEIGHT]).unsqueeze(1) * HEIGHT_UNIT


class PositionFeatures(Encoder):
    """One linear layer with ReLU on the user position relative to its base station.

    The reference of environment-channel section IV-C: with a head of widths 128, 64 and 32 it has 10,720 parameters.

    Args:
        width: Number of features.
    """

    input_keys: ClassVar[tuple[str, ...]] = ("position", "bs_position")
    mean: Tensor
    std: Tensor

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.num_features = width
        self.layers = nn.Sequential(nn.Linear(2, width), nn.ReLU())
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("std", torch.ones(2))

    def prepare(self, batch: Any) -> None:
        """Set mean and standard deviation of the known positions from a sample of the train side."""
        offset = _offset(batch["position"], batch["bs_position"])
        offset = offset[offset.isfinite().all(1)]
        self.mean.copy_(offset.mean(0))
        self.std.copy_(deviation(offset).clamp_min(1e-3))

    def forward(self, position: Tensor, bs_position: Tensor) -> Tensor:
        """Return features (B, D) of positions of users and base stations, (B, 3) [m] each."""
        features: Tensor = self.layers((_offset(position, bs_position) - self.mean) / self.std)
        return features


def _offset(position: Tensor, bs_position: Tensor) -> Tensor:
    return (position - bs_position)[:, :2]
