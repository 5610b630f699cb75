"""The environment tower: a transformer over patches of a map with a vector, and a layer over positions."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.errors import check_not_negative, check_positive
from datamodules.maps.raster import BS_PIXEL, HEIGHT_UNIT, SIDE_UNIT, USER_PIXEL, Entry
from foundation.encoder import Encoder
from foundation.nets.transformer import Pool, Tower

#: pixels of the strip of map along a link: across and along
_ACROSS, _ALONG = 16, 64
#: a plane of single bounces: sines of the angle of departure, each ahead and behind, and lengths of the path
_SINES, _LENGTHS = 32, 48
#: what is seen from a point of the map: directions all around, and distances, up to this many sides of the map
_DIRECTIONS, _DISTANCES, _SIDES = 128, 32, 1.5


class EnvironmentTransformer(Tower):
    """EPNN, the environment tower: a transformer over patches of the map and tokens of the geometry vector.

    Environment-channel sections III-A1 and IV-A. The map becomes patches by a strided convolution, the vector of
    positions, LOS status and scale becomes tokens by a linear layer.

    Args:
        map_size: Pixels a side of the map.
        map_patch: Pixels a side of a patch. None leaves out the map as a whole, by which few areas are known by heart,
            and keeps what `corridor` and `echoes` show of it around each link.
        geometry_tokens: Tokens that the vector becomes.
        frequencies: With 0 the linear layer reads the 8 values as they are, as in the paper. With F it also reads the
            vector from base station to user [100 m], the length of the direct path and its direction as sine and cosine
            of F octaves, which small networks need to tell metres apart.
        corridor: Pieces of the map along the link, a token each; the paper has none. The strip is resampled from the
            map so that base station and user lie at the same pixels of it whatever the link, and so does what stands
            between them.
        echoes: Pieces of the plane in which the map shows what one bounce would, a token each; the paper has none. The
            plane has the axes of the channel, angle of departure and length of the path, so that walls stand where
            their echoes do, and another scale of the map moves them as it moves delays. It is given twice, with all
            walls and with those alone that both ends see.
        reach: Longest path [m] of that plane.
        width: Width of the tokens.
        layers: Blocks of this tower alone.
        shared_layers: Blocks that the other tower may share.
        heads: Attention heads of a block.
        embed_dim: Width of the embedding, the features.
        pool: What the embedding is made of, see `Tower`.

    Raises:
        ValueError: Patch or pieces do not divide what they are cut from, or nothing shows the map.
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
            raise ValueError("nothing shows the map: give map_patch, corridor or echoes")
        if (corridor and _ALONG % corridor) or (echoes and _LENGTHS % echoes):
            raise ValueError(f"{corridor} and {echoes} pieces do not divide {_ALONG} pixels and {_LENGTHS} lengths")
        num_patches = (map_size // map_patch) ** 2 if map_patch else 0
        tokens = num_patches + geometry_tokens + corridor + echoes
        super().__init__(tokens, width, layers, shared_layers, heads, embed_dim, pool)
        self.save_hyperparameters()
        self.frequencies, self.geometry_tokens = frequencies, geometry_tokens
        self.corridor, self.echoes, self.reach = corridor, echoes, reach
        self.patches = nn.Conv2d(1, width, map_patch, stride=map_patch, bias=False) if map_patch else None
        # 8 values, and sine and cosine of 5 numbers
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
        values = self._waves(geometry) if self.frequencies else geometry
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

    def _waves(self, geometry: Tensor) -> Tensor:
        """Return the vector (B, 8) with the link that it draws, in octaves, beside it."""
        # the scale is 100 m over the side of the map
        between = (geometry[:, USER_PIXEL] - geometry[:, BS_PIXEL]) / geometry[:, Entry.SCALE, None].clamp_min(1e-3)
        length = torch.linalg.vector_norm(torch.cat([between, _rise(geometry) / SIDE_UNIT], 1), dim=1, keepdim=True)
        direction = between / length.clamp_min(1e-3)  # the channel shows a path at its length and direction
        numbers = torch.cat([between, length, direction], dim=1)
        angles = (numbers.unsqueeze(-1) * self.octaves).flatten(1)
        return torch.cat([geometry, angles.sin(), angles.cos()], dim=1)


def corridor(map: Tensor, geometry: Tensor, along: int) -> Tensor:
    """Return the map as seen along each link: a strip from behind the base station to behind the user.

    Args:
        map: Maps (B, 1, size, size).
        geometry: Geometry vectors (B, 8), see `AreaMaps.geometry`.
        along: Pixels of the strip along the link.

    Returns:
        Strips (B, 1, 16, along) of 3/4 of the link's length by 3/2 of it, the base station a sixth of the strip from
        its left side and the user as far from its right; zero outside the map.
    """
    station, user = geometry[:, BS_PIXEL], geometry[:, USER_PIXEL]
    forward = user - station
    sideways = torch.stack([-forward[:, 1], forward[:, 0]], dim=-1)
    # centres of the pixels, in lengths of the link
    ahead = (torch.arange(along, device=map.device) + 0.5) / along * 1.5 - 0.25
    aside = ((torch.arange(_ACROSS, device=map.device) + 0.5) / _ACROSS - 0.5) * 0.75
    points = rearrange(ahead, "w -> 1 1 w 1") * rearrange(forward, "b c -> b 1 1 c")
    points = points + rearrange(aside, "h -> 1 h 1 1") * rearrange(sideways, "b c -> b 1 1 c")
    points = points + rearrange(station, "b c -> b 1 1 c")
    return F.grid_sample(map, 2 * points.to(map) - 1, align_corners=False)


def single_bounces(map: Tensor, geometry: Tensor, sines: int, lengths: int, reach: float) -> Tensor:
    """Return what stands where a single bounce would come from, at each angle of departure and length of the path.

    Seen from the base station at an angle there is one point in the plane whose detour has a given length: on the
    ellipse around both ends. With d the link, u the direction and l the length, all in the plane, it is at the distance
    (l^2 - |d|^2) / 2 (l - u d). A wall becomes a curve that is shortest where it reflects.

    Args:
        map: Maps (B, 1, size, size).
        geometry: Geometry vectors (B, 8), see `AreaMaps.geometry`.
        sines: Samples of the sine of the azimuth, from -1 (south) to 1 (north): what an array along the north axis
            tells. The vector does not hold how an array is turned.
        lengths: Samples of the length, from 0 to `reach`.
        reach: Longest path [m], climbing from one end's height to the other's as off an upright wall.

    Returns:
        Planes (B, 4, sines, lengths): east of the base station and west of it, which such an array cannot tell apart,
        and the same where the place is seen from both ends of the link; zero where a path is shorter than the link, and
        outside the map.
    """
    sine = (torch.arange(sines, device=map.device) + 0.5) / sines * 2 - 1
    cosine = (1 - sine.square()).sqrt()
    # columns run east and rows south
    direction = torch.stack([torch.stack([cosine, -sine], dim=-1), torch.stack([-cosine, -sine], dim=-1)]).flatten(0, 1)
    station, user = _half_sides(geometry[:, BS_PIXEL]), _half_sides(geometry[:, USER_PIXEL])
    link = user - station
    metres = (torch.arange(lengths, device=map.device) + 0.5) / lengths * reach
    level = (metres.square() - _rise(geometry).square()).clamp_min(0).sqrt()
    length = level / SIDE_UNIT * 2 * geometry[:, Entry.SCALE, None]
    detour = (length.square() - link.square().sum(1, keepdim=True)).clamp_min(0)
    ahead = (link.unsqueeze(1) * direction).sum(-1)  # not a matrix product: half precision would bend the geometry
    away = 2 * (length.unsqueeze(1) - ahead.unsqueeze(2))
    distance = detour.unsqueeze(1) / away.clamp_min(1e-6)
    bounce = torch.addcmul(-link[:, None, None], distance.unsqueeze(-1), direction[:, None])  # from the user
    points = (bounce + user[:, None, None]).to(map)
    plane = F.grid_sample(map, points, align_corners=False) * (detour > 0)[:, None, None]
    azimuth = torch.atan2(direction[:, 1:], direction[:, :1]).expand_as(distance)
    seen = plane * sight(map, station, distance, azimuth)
    seen = seen * sight(map, user, bounce.norm(dim=-1), torch.atan2(bounce[..., 1], bounce[..., 0]))
    return rearrange([plane, seen], "n b 1 (s a) l -> b (n s) a l", s=2)


def sight(map: Tensor, centre: Tensor, distance: Tensor, azimuth: Tensor) -> Tensor:
    """Return how much of points is seen from another: 1 with nothing between, 0 behind a wall.

    Args:
        map: Maps (B, 1, size, size).
        centre: From where, (B, 2), in half sides from the middle of the map, east and south.
        distance: How far from there the points are, (B, H, W), in half sides; the outside of a wall counts as seen.
        azimuth: And in which direction, from east to south [rad], in [-pi, pi], (B, H, W).

    Returns:
        Shape (B, 1, H, W).
    """
    turn = ((torch.arange(_DIRECTIONS, device=map.device) + 0.5) / _DIRECTIONS * 2 - 1) * math.pi
    away = (torch.arange(_DISTANCES, device=map.device) + 0.5) / _DISTANCES * 2 * _SIDES
    rays = away[:, None] * torch.stack([turn.cos(), turn.sin()], dim=-1)[:, None]
    walls = F.grid_sample(map, (centre[:, None, None] + rays).to(map), align_corners=False)
    free = (1 + walls - walls.cumsum(-1)).clamp_min(0)
    # two pixels short of the point, or the wall that it lies on would hide it
    grid = torch.stack([(distance - 4 / map.shape[-1]) / _SIDES - 1, azimuth / math.pi], dim=-1)
    return F.grid_sample(free, grid.to(map), align_corners=False, padding_mode="border")


def _half_sides(position: Tensor) -> Tensor:
    """Return positions (B, 2) of a geometry vector as `grid_sample` counts: half sides from the middle of the map."""
    return 2 * position - 1


def _rise(geometry: Tensor) -> Tensor:
    """Return how much higher the user is than the base station [m], (B, 1), of geometry vectors (B, 8)."""
    return (geometry[:, Entry.USER_HEIGHT] - geometry[:, Entry.BS_HEIGHT]).unsqueeze(1) * HEIGHT_UNIT


class PositionFeatures(Encoder):
    """One linear layer on the user's position relative to its base station: the first layer of an MLP on positions.

    The benchmark of environment-channel section IV-C: with the head's 128 to 64 to 32 it has 10,720 parameters.

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
        """Take mean and deviation of the coordinates from a sample of the train side, over the known positions."""
        offset = _offset(batch["position"], batch["bs_position"])
        offset = offset[offset.isfinite().all(1)]
        self.mean.copy_(offset.mean(0))
        self.std.copy_(offset.std(0).nan_to_num(1.0).clamp_min(1e-3))

    def forward(self, position: Tensor, bs_position: Tensor) -> Tensor:
        """Return features (B, D) of positions (B, 3) and base stations (B, 3) [m]."""
        features: Tensor = self.layers((_offset(position, bs_position) - self.mean) / self.std)
        return features


def _offset(position: Tensor, bs_position: Tensor) -> Tensor:
    return (position - bs_position)[:, :2]
