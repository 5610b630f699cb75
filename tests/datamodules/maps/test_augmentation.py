"""The turned, mirrored and stretched world against free space, where everything can be written down anew."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.draws import LinkDraws
from datamodules.channel.ofdm import OFDM, SPEED_OF_LIGHT
from datamodules.channel.synthesis import synthesize
from datamodules.errors import InputError
from datamodules.maps.area_maps import AreaMaps
from datamodules.maps.augmentation import World, WorldSymmetry
from datamodules.maps.raster import geometry, map_frame, map_image
from datamodules.sites.environment import Environment
from datamodules.sites.paths import Paths
from datamodules.sites.recording import Recording
from tests.datamodules.rays import random_site
from tests.datamodules.test_module import build, first

FREQUENCY = 3.5e9
BOUNDS = (-100.0, -100.0, 100.0, 100.0)


def test_symmetries_are_drawn_evenly():
    draws = LinkDraws(0, torch.arange(8000))
    world = WorldSymmetry(stretch=(0.8, 1.2)).draw(draws)
    assert ((torch.bincount(world.quarters, minlength=4) / 8000) - 0.25).abs().max() < 0.02
    assert world.mirrored.float().mean() == pytest.approx(0.5, abs=0.02)
    assert ((torch.histc(world.stretch, 4, 0.8, 1.2) / 8000) - 0.25).abs().max() < 0.02
    joint = torch.stack([world.quarters.float(), world.mirrored.float(), world.stretch])
    assert (torch.corrcoef(joint) - torch.eye(3)).abs().max() < 0.05
    still = WorldSymmetry(turn=False, mirror=False).draw(draws)
    assert not still.quarters.any()
    assert not still.mirrored.any()
    assert (still.stretch == 1).all()


def free_space(position: torch.Tensor, station: torch.Tensor) -> Paths:
    """Return the direct ray of every user, from the closed form."""
    away = (position - station).double()
    length = away.norm(dim=1)
    delay = length / SPEED_OF_LIGHT
    gain = torch.polar(SPEED_OF_LIGHT / (4 * math.pi * FREQUENCY * length), -2 * math.pi * (FREQUENCY * delay).frac())

    def angles(v: torch.Tensor) -> torch.Tensor:
        return torch.stack((torch.atan2(v[:, 1], v[:, 0]), torch.acos(v[:, 2] / v.norm(dim=1))), -1)[:, None]

    return Paths.build(
        gain=gain[:, None], delay=delay[:, None], aod=angles(away), aoa=angles(-away), position=position,
        bounces=torch.zeros(len(position), 1),
    )  # fmt: skip


def rows_of(position: torch.Tensor, station: torch.Tensor) -> dict:
    paths = free_space(position, station)
    return {
        "paths": paths.as_dict(), "los": paths.los, "position": position,
        "bs_position": station.expand(len(position), 3), "site": torch.zeros(len(position), dtype=torch.long),
    }  # fmt: skip


def by_hand(points: np.ndarray, quarters: int, mirrored: bool, stretch: float) -> np.ndarray:
    points = np.array(points, dtype=np.float64)
    if mirrored:
        points[:, 0] *= -1
    angle = quarters * math.pi / 2
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points[:, :2] = points[:, :2] @ turn.T
    return points * stretch


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("stretch", [1.0, 1.25])
def test_free_space_equals_free_space_in_the_new_world(quarters, mirrored, stretch):
    draw = torch.Generator().manual_seed(0)
    count = 20
    position = torch.rand(count, 3, generator=draw) * torch.tensor([180.0, 180.0, 1.0]) - torch.tensor(
        [90.0, 90.0, -1.0]
    )
    station = torch.tensor([12.0, -30.0, 8.0])
    rows = rows_of(position, station)
    world = World(torch.full((count,), quarters), torch.full((count,), mirrored), torch.full((count,), stretch))
    moved = world.move(rows, torch.full((count,), SPEED_OF_LIGHT / FREQUENCY))
    there = torch.from_numpy(by_hand(position.numpy(), quarters, mirrored, stretch)).float()
    station_there = torch.from_numpy(by_hand(station[None].numpy(), quarters, mirrored, stretch)).float()[0]
    assert torch.allclose(moved["position"], there, atol=1e-4)
    assert torch.allclose(moved["bs_position"][0], station_there, atol=1e-4)
    arrays = {"bs": Array(2, 8), "ue": Array(1, 2), "ofdm": OFDM(16, 20e6)}
    ours = synthesize(Paths.from_dict(moved["paths"]), **arrays)
    expected = synthesize(free_space(there, station_there), **arrays)
    # float32 metres of 1e-5 turn a carrier of 8.6 cm by 1e-3 rad
    assert ((ours - expected).norm() / expected.norm()) < 3e-3


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_map_and_vector_equal_those_of_the_new_world(quarters, mirrored):
    house = np.array([[10.0, 20.0], [50.0, 20.0], [50.0, 35.0], [30.0, 35.0], [30.0, 60.0], [10.0, 60.0]])
    stretch = 1.2
    position, station = torch.tensor([[70.0, -20.0, 1.5]]), torch.tensor([[-40.0, 55.0, 6.0]])
    environment = Environment((house,), np.array([10.0]), BOUNDS)
    image, _ = map_image(environment)
    corner, scale = map_frame(environment)
    los = torch.tensor([1])
    vector = geometry(station, position, los, corner[None], torch.tensor([scale]))
    world = World(torch.tensor([quarters]), torch.tensor([mirrored]), torch.tensor([stretch]))

    def moved(points: np.ndarray) -> np.ndarray:
        return by_hand(np.column_stack([points, np.zeros(len(points))]), quarters, mirrored, stretch)[:, :2]

    there = Environment((moved(house),), np.array([12.0]), tuple(stretch * b for b in BOUNDS))
    assert torch.equal(world.map(image[None].clone()), map_image(there)[0][None])
    corner_there, scale_there = map_frame(there)
    user, mast = (
        torch.from_numpy(by_hand(p.numpy(), quarters, mirrored, stretch)).float() for p in (position, station)
    )
    expected = geometry(mast, user, los, corner_there[None], torch.tensor([scale_there]))
    assert torch.allclose(world.geometry(vector), expected, atol=1e-6)


def test_nothing_is_drawn_where_nothing_is_asked_for():
    world = WorldSymmetry(turn=False, mirror=False).draw(LinkDraws(0, torch.arange(50)))
    assert not world.quarters.any()
    assert not world.mirrored.any()
    assert (world.stretch == 1).all()


@pytest.mark.parametrize("stretch", [(0.0, 1.0), (1.2, 1.1)])
def test_stretch_out_of_range(stretch):
    with pytest.raises(ValueError, match="stretch must be"):
        WorldSymmetry(stretch=stretch)


def test_training_alone_sees_new_worlds_and_each_epoch_another(tmp_path):
    module = build(tmp_path, extras=["map", "geometry"], symmetry=WorldSymmetry(stretch=(0.8, 1.25)), num_beams=4)
    plain = build(tmp_path, extras=["map", "geometry"], num_beams=4)
    rows = next(iter(module.train_dataloader()))
    assert torch.equal(module.finish(rows)["csi"], plain.finish(rows)["csi"])
    one, again, other = (module.finish(rows, epoch, training=True) for epoch in (0, 0, 1))
    for key in ("csi", "geometry", "beam_power"):
        assert torch.equal(one[key], again[key])
        assert not torch.equal(one[key], other[key])
        assert not torch.equal(one[key], plain.finish(rows)[key])
    assert torch.equal(one["los"], plain.finish(rows)["los"])


def test_recorded_csi_cannot_be_turned(tmp_path):
    links = Recording.build(torch.randn(40, 1, 4, 8, dtype=torch.complex64), torch.rand(40, 3))
    with pytest.raises(InputError, match="symmetry transforms paths"):
        build(tmp_path, [dataclasses.replace(random_site(), links=links)], symmetry=WorldSymmetry())


def test_a_recording_of_other_arrays_is_refused(tmp_path):
    links = Recording.build(torch.randn(40, 1, 4, 8, dtype=torch.complex64), torch.rand(40, 3))
    with pytest.raises(InputError, match=r"data\.bs is 1 x 8, but recording site has T = 4"):
        build(tmp_path, [dataclasses.replace(random_site(), links=links)], bs=Array(1, 8))


# --- several base stations


def three_stations():
    site = random_site("bs0", 80, area="one")
    others = [
        dataclasses.replace(
            random_site(f"bs{n}", 80, seed=n, area="one"), bs_position=torch.tensor([20.0 * n, 5.0, 10.0])
        )
        for n in (1, 2)
    ]
    share = [dataclasses.replace(o, links=dataclasses.replace(o.paths, position=site.paths.position)) for o in others]
    return [site, *share]


def test_base_stations_come_together(tmp_path):
    sites = three_stations()
    module = build(tmp_path, sites, base_stations=3, split="random", num_beams=4)
    batch = first(module)
    assert batch["csi"].shape == (27, 3, 1, 4, 8)
    for row in range(3):
        for station, site in enumerate(sites):
            user = int(batch["user"][row])
            expected = synthesize(site.paths[user : user + 1], module.bs, module.ue, module.ofdm)[0]
            assert torch.allclose(batch["csi"][row, station], expected, atol=1e-10)
        assert torch.equal(batch["position"][row], sites[0].paths.position[user])
        assert batch["los"][row] == max(int(site.paths.los[user]) for site in sites)
    assert torch.equal(batch["bs_position"], sites[0].bs_position.expand(27, 3))
    assert batch["beam"].shape == (27,)
    statistics = module.statistics()
    assert torch.allclose(statistics["position_mean"][2], torch.tensor(1.5 - 10.0), atol=1e-3)
    # a user whom one station does not reach is still served; the first of `random_site` is reached by none
    assert sum(len(module.sides[side]) for side in ("train", "validation", "test")) == 79


def test_too_few_base_stations(tmp_path):
    with pytest.raises(InputError, match="base_stations is 4, but area one has 3"):
        build(tmp_path, three_stations(), base_stations=4)


def test_base_stations_with_users_of_their_own(tmp_path):
    sites = [random_site("a", 50, seed=0, area="one"), random_site("b", 50, seed=1, area="one")]
    sites[1] = dataclasses.replace(sites[1], environment=sites[0].environment)
    with pytest.raises(InputError, match="do not share their users"):
        build(tmp_path, sites, base_stations=2)


def test_maps_are_indexed_by_site():
    sites = [random_site("a", 10, area="x"), random_site("b", 10, seed=1, area="y")]
    maps = AreaMaps.draw(sites)
    assert maps.map(torch.tensor([0, 1, 1])).shape == (3, 1, 64, 64)
