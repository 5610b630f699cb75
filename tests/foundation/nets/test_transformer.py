"""The towers' views: the map along a link and in the axes of the channel, the channel behind a window."""

import numpy as np
import pytest
import torch

from datamodules.channel.transforms import tapered, to_angle, to_delay
from foundation import EnvironmentTransformer
from foundation.nets.environment_tower import corridor, single_bounces, visibility


def test_the_corridor_shows_the_map_along_the_link():
    """Against a NumPy loop that looks up the nearest pixel, and on a wall between the two."""
    image = torch.rand(3, 1, 64, 64)
    image[2] = 0
    image[2, 0, 31:33] = 1  # a wall across the map, midway between a station at the south and a user at the north
    geometry = torch.rand(3, 8) * 0.4 + 0.3
    geometry[2, 0:2], geometry[2, 3:5] = torch.tensor([0.5, 0.9]), torch.tensor([0.5, 0.1])
    strip = corridor(image, geometry, 48)
    assert strip.shape == (3, 1, 16, 48)
    smooth = corridor(torch.linspace(0, 1, 64).expand(3, 1, 64, 64), geometry, 48)
    for b in range(3):
        station, user = geometry[b, 0:2].double().numpy(), geometry[b, 3:5].double().numpy()
        forward = user - station
        for i, j in ((0, 0), (7, 20), (15, 47), (3, 31)):
            ahead, aside = (j + 0.5) / 48 * 1.5 - 0.25, ((i + 0.5) / 16 - 0.5) * 0.75
            column = station[0] + ahead * forward[0] - aside * forward[1]
            inside = 0.5 / 64 < column < 1 - 0.5 / 64
            row = station[1] + ahead * forward[1] + aside * forward[0]
            if inside and 0.5 / 64 < row < 1 - 0.5 / 64:
                # a map whose value is its column, as `linspace` puts it at the centres of pixels
                assert smooth[b, 0, i, j].item() == pytest.approx((column * 64 - 0.5) / 63, abs=1e-5)
    wall = strip[2, 0].amax(0) > 0.5
    # the link runs from 1/6 to 5/6 of the strip, so its middle is the strip's
    assert wall[23:25].all()
    assert not wall[:21].any()
    assert not wall[27:].any()
    diagonal = torch.tensor([[0.1, 0.1, 0, 0.9, 0.9, 0, 0, 1]])
    assert not corridor(torch.ones(1, 1, 64, 64), diagonal, 48)[0, 0, :, 0].any(), "zero outside the map"


def test_single_bounces_lie_where_rays_of_their_length_turn():
    """Against a search along each ray, in metres, for the point whose detour has the length."""
    geometry = torch.rand(3, 8, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    side = 100 / geometry[:, 7].double().numpy()
    ramp = torch.linspace(0, 1, 64).expand(3, 1, 64, 64)  # a map whose value is its column, at the centres of pixels
    plane = single_bounces(ramp, geometry, 16, 32, 300.0)
    assert plane.shape == (3, 4, 16, 32)
    seen = 0
    for b, half, s, j in np.ndindex(3, 2, 16, 32):
        # x east and y north [m] from the upper left corner of the map
        station, user = (geometry[b, [k, k + 1]].double().numpy() * [1, -1] * side[b] for k in (0, 3))
        sine, length = (s + 0.5) / 16 * 2 - 1, (j + 0.5) / 32 * 300
        ray = np.array([(1 - 2 * half) * np.sqrt(1 - sine**2), sine])
        low, high, rise = 0.0, length, 10 * (geometry[b, 5] - geometry[b, 2]).item()
        if np.hypot(np.linalg.norm(user - station), rise) >= length:
            assert plane[b, half, s, j] == 0
            continue
        for _ in range(60):
            middle = (low + high) / 2
            over = np.hypot(middle + np.linalg.norm(station + middle * ray - user), rise) > length
            low, high = (low, middle) if over else (middle, high)
        x, y = (station + low * ray) / side[b]
        inside = 0.5 / 64 < x < 1 - 0.5 / 64 and 0.5 / 64 < -y < 1 - 0.5 / 64
        if inside:
            assert plane[b, half, s, j].item() == pytest.approx((x * 64 - 0.5) / 63, abs=1e-4)
        seen += inside
        if not (-1 / 64 < x < 1 + 1 / 64 and -1 / 64 < -y < 1 + 1 / 64):
            assert plane[b, half, s, j] == 0
    assert seen > 100


def test_the_map_as_a_whole_may_be_left_out():
    image, geometry = torch.rand(2, 1, 64, 64), torch.rand(2, 8) * 0.4 + 0.3
    sizes = {"width": 32, "layers": 1, "shared_layers": 1, "heads": 2, "embed_dim": 16}
    tower = EnvironmentTransformer(map_patch=None, corridor=2, echoes=3, **sizes)
    assert tower.token_shape == (1 + 1 + 2 + 3, 32)
    assert tower.patchify(image, geometry).shape == (2, 6, 32)
    assert not torch.equal(tower(image, geometry), tower(0 * image, geometry)), "the map still counts"
    with pytest.raises(ValueError, match="no input from the map"):
        EnvironmentTransformer(map_patch=None, **sizes)
    with pytest.raises(ValueError, match="corridor must divide 64 and echoes 48, got 3 and 6"):
        EnvironmentTransformer(corridor=3, echoes=6, **sizes)


def test_a_wall_shows_no_bounce_shorter_than_its_reflection():
    """By the method of images: a wall 20 m east of both ends, 60 m and 4.5 m of height apart, reflects half-way."""
    image = torch.zeros(1, 1, 64, 64)
    image[..., 44:46] = 1  # 70 m from the left side of a map of 100 m
    geometry = torch.tensor([[0.5, 0.8, 0.6, 0.5, 0.2, 0.15, 1.0, 1.0]])
    plane = single_bounces(image, geometry, 128, 400, 200.0)[0]
    shortest, sine = np.linalg.norm([60, 40, 4.5]), 60 / np.hypot(60, 40)
    lit = (plane[0] > 0.5).nonzero()
    first = lit[lit[:, 1] == lit[:, 1].min()].float().mean(0)
    assert (first[1] + 0.5) / 2 == pytest.approx(shortest, abs=2)  # a pixel is 1.6 m
    assert (first[0] + 0.5) / 64 - 1 == pytest.approx(sine, abs=0.05)
    assert not plane[1].any(), "nothing stands in the west"


def test_sight_ends_at_walls():
    """Against a walk along each line, a quarter of a pixel at a time; at the edges of shadows they may differ."""
    random = np.random.default_rng(0)
    image = np.zeros((64, 64))
    for row, column in random.integers(4, 52, (9, 2)):
        image[row : row + 8, column : column + 6] = 1
    free = np.argwhere(image == 0)[:, ::-1] + 0.5
    centre, points = free[2000], free[random.integers(0, len(free), 500)]
    east, south = torch.tensor((points - centre) / 32).float()[None, None].unbind(-1)
    seen = visibility(
        torch.tensor(image).float()[None, None],
        torch.tensor(centre / 32 - 1).float()[None],
        torch.hypot(east, south),
        torch.atan2(south, east),
    )[0, 0, 0]
    expected = []
    for point in points:
        steps = np.arange(0, max(np.linalg.norm(point - centre) - 2, 0), 0.25)[:, None]
        walked = (centre + steps * (point - centre) / max(np.linalg.norm(point - centre), 1)).astype(int)
        expected.append(not image[walked[:, 1], walked[:, 0]].any())
    expected, seen = np.array(expected), seen.numpy() > 0.5
    assert 0.2 < expected.mean() < 0.8
    assert (expected == seen).mean() > 0.95


def test_a_bounce_must_be_seen_from_both_ends():
    image = torch.zeros(1, 1, 64, 64)
    image[..., 44:48] = 1  # 69 m from the left side of a map of 100 m
    image[..., 56:60] = 1  # behind it
    geometry = torch.tensor([[0.5, 0.8, 0.6, 0.5, 0.2, 0.15, 1.0, 1.0]])

    def lit(image):
        walls, _, seen, _ = single_bounces(image, geometry, 64, 200, 200.0)[0] > 0.5
        return walls, seen

    (walls, seen), (_, alone) = lit(image), lit(image * (torch.arange(64) < 50))
    assert (seen != alone).sum() < 0.05 * seen.sum(), "the wall behind is hidden"
    assert seen.sum() < 0.7 * walls.sum()
    image[..., 8:20, 34:40] = 1  # between the user and the wall
    image[..., 45:57, 34:40] = 1  # between the base station and the wall
    assert (lit(image)[1] & seen).sum() < 0.4 * seen.sum()


def test_weak_paths_show_beside_strong_ones():
    """A path 40 dB down, at the angle of one that lies between two taps, peaks behind the window alone."""
    k, t = torch.arange(64), torch.arange(32)
    angle = torch.exp(2j * np.pi * 3.5 / 32 * t)
    delays = torch.exp(-2j * np.pi * 10.5 / 64 * k) + 0.01 * torch.exp(-2j * np.pi * 30 / 64 * k)
    csi = torch.outer(angle, delays)[None, None]
    seen, drowned = (to_delay(to_angle(h)).abs()[0, 0, 3, 20:40].argmax() + 20 for h in (tapered(csi), csi))
    assert seen == 30
    assert drowned != 30
    alone = tapered(torch.ones(1, 1, 1, 8))  # one antenna keeps its weight
    torch.testing.assert_close(alone[0, 0, 0], torch.tensor(np.hanning(10)[1:-1]).float())
