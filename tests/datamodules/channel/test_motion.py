import math

import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.motion import MOBILITIES, SPEEDS, Sequence, draw_motion, mobility_class, split_next
from datamodules.channel.ofdm import OFDM, SPEED_OF_LIGHT
from datamodules.channel.synthesis import synthesize
from datamodules.errors import InputError
from tests.datamodules.rays import random_paths

COUNT = 20_000
AREA, USER = torch.zeros(COUNT, dtype=torch.long), torch.arange(COUNT)


def test_a_link_moves_alike_in_any_batch() -> None:
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))[:50]
    whole = draw_motion(Sequence(), AREA, USER, seed=4)
    batch = draw_motion(Sequence(), AREA[order], USER[order], seed=4)
    assert torch.equal(batch.velocity, whole.velocity[order])
    assert torch.equal(batch.mobility, whole.mobility[order])
    other = draw_motion(Sequence(), AREA[order], USER[order], seed=5)
    elsewhere = draw_motion(Sequence(), AREA[order] + 1, USER[order], seed=4)
    assert not torch.equal(other.velocity, batch.velocity)
    assert not torch.equal(elsewhere.velocity, batch.velocity)


def test_classes_come_by_weight_and_speeds_lie_in_their_range() -> None:
    motion = draw_motion(Sequence(mobility={"static": 1, "vehicular": 3}), AREA, USER)
    shares = torch.bincount(motion.mobility, minlength=3) / COUNT
    torch.testing.assert_close(shares, torch.tensor([0.25, 0, 0.75]), rtol=0, atol=0.015)
    motion = draw_motion(Sequence(), AREA, USER)
    speed = motion.velocity.norm(dim=1)
    for code, name in enumerate(MOBILITIES):
        low, high = SPEEDS[name]
        drawn = speed[motion.mobility == code]
        assert len(drawn) == pytest.approx(COUNT / 3, rel=0.05)
        assert low * (1 - 1e-6) <= drawn.min() <= drawn.max() <= high * (1 + 1e-6)
        assert float(drawn.mean()) == pytest.approx((low + high) / 2, rel=0.02)


def test_directions_are_horizontal_and_uniform() -> None:
    velocity = draw_motion(Sequence(speed=(10.0, 10.0)), AREA, USER).velocity
    assert (velocity[:, 2] == 0).all()
    azimuth = torch.atan2(velocity[:, 1], velocity[:, 0])
    assert ((torch.histc(azimuth, 8, -math.pi, math.pi) / COUNT) - 0.125).abs().max() < 0.01


def test_directions_of_any_zenith_are_those_of_sionna() -> None:
    level = draw_motion(Sequence(speed=(10.0, 10.0)), AREA, USER).velocity
    velocity = draw_motion(Sequence(speed=(10.0, 10.0), directions="any"), AREA, USER).velocity
    torch.testing.assert_close(velocity.norm(dim=1), torch.full((COUNT,), 10.0))
    zenith = torch.acos(velocity[:, 2] / 10)
    assert ((torch.histc(zenith, 8, 0, math.pi) / COUNT) - 0.125).abs().max() < 0.01, "uniform, not of the sphere"
    turned = velocity[:, :2] / velocity[:, :2].norm(dim=1, keepdim=True)
    torch.testing.assert_close(turned, level[:, :2] / 10, atol=1e-4, rtol=0)


def test_a_site_may_fix_the_speed() -> None:
    span = torch.tensor([[math.nan, math.nan], [3.0, 4.0]])[USER % 2]
    speed = draw_motion(Sequence(mobility={"static": 1}), AREA, USER, span=span).velocity.norm(dim=1)
    assert (speed[::2] == 0).all()
    assert 3 - 1e-5 <= speed[1::2].min() < speed[1::2].max() <= 4 + 1e-5


def test_a_window_is_so_many_whole_intervals() -> None:
    assert [Sequence(3, interval, window=window).steps for interval, window in ((0.1, 0.3), (5e-3, 26e-3))] == [3, 5]
    assert Sequence(3).steps == 0
    assert [Sequence(3, 0.1, window=0.3, horizon=horizon).length for horizon in (0, 1, 5)] == [6, 6, 8]


def test_classes_of_speeds() -> None:
    speed = torch.tensor([0.0, 0.1, 6 / 3.6, 8.0, 30 / 3.6, 33.0])
    assert mobility_class(speed).tolist() == [0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("horizon", [1, 2])
def test_what_is_to_be_predicted_follows_at_the_interval(horizon: int) -> None:
    paths, bs, ofdm = random_paths(6), Array(1, 4), OFDM(8)
    sequence = Sequence(3, 2e-3, speed=(20.0, 20.0), horizon=horizon)
    motion = draw_motion(sequence, torch.zeros(6).long(), torch.arange(6))
    assert motion.times.tolist() == pytest.approx([0, 2e-3, 4e-3, 6e-3, 8e-3][: 3 + horizon])
    wavelength = SPEED_OF_LIGHT / 3.5e9
    whole = synthesize(paths, bs, Array(), ofdm, velocity=motion.velocity, times=motion.times, wavelength=wavelength)
    csi, following = split_next(whole, horizon)
    assert csi.shape == (6, 3, 1, 4, 8)
    assert following.shape == (6, horizon, 1, 4, 8)
    last = synthesize(paths, bs, Array(), ofdm, velocity=motion.velocity, times=motion.times[3:], wavelength=wavelength)
    torch.testing.assert_close(following, last)
    assert len(Sequence(snapshots=3, horizon=0).times) == 3


@pytest.mark.parametrize("shape", [(4, 1, 2, 8), (4, 1, 1, 2, 8)])
def test_nothing_to_predict(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="a horizon of 1 needs sequences of at least 2 snapshots, got CSI of shape"):
        split_next(torch.zeros(shape, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"snapshots": 0}, "snapshots must be a whole number of 1 or more"),
        ({"interval": 0.0}, "interval must be positive"),
        ({"horizon": -1}, "horizon must be a whole number of 1 or more"),
        ({"window": 0.0}, "window must be positive"),
        ({"mobility": {"flying": 1}}, "has the classes static, pedestrian, vehicular, not flying"),
        ({"mobility": {"static": 0}}, "weights with a positive sum"),
        ({"mobility": {}}, "weights with a positive sum"),
        ({"mobility": {"static": -1, "vehicular": 2}}, "weights with a positive sum"),
        ({"speed": (2.0, 1.0)}, r"speed must be \(lowest, highest\)"),
        ({"directions": "up"}, "directions must be horizontal or any, got 'up'"),
        ({"speed": (0.0, 1.0), "mobility": {"static": 1}}, "mobility or speed, not both"),
    ],
)
def test_bad_arguments(settings, message) -> None:
    with pytest.raises(InputError, match=message):
        Sequence(**settings)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same() -> None:
    here = draw_motion(Sequence(), AREA, USER, seed=3)
    there = draw_motion(Sequence(), AREA.cuda(), USER.cuda(), seed=3)
    torch.testing.assert_close(there.velocity.cpu(), here.velocity)
    assert torch.equal(there.mobility.cpu(), here.mobility)
