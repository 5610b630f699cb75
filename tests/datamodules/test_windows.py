"""What a sequence holds: the past with noise, what follows without, and two windows of one user."""

import dataclasses

import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.impairments import AmplitudeScaling, CommonPhase, Noise
from datamodules.channel.motion import Sequence
from datamodules.channel.ofdm import OFDM
from datamodules.channel.synthesis import synthesize
from datamodules.errors import InputError
from datamodules.sites.recording import Recording
from tests.datamodules.rays import random_paths, random_site
from tests.datamodules.test_module import build

WHOLE = {"fractions": (1.0, 0.0, 0.0)}


def served(module, count=20, epoch=0):
    return module.finish(module.sides["train"].__getitems__(range(count)), epoch)


def numbered(links=30, snapshots=12):
    """Recorded sequences whose snapshot says its own number, and of which link it is."""
    number = torch.arange(links)[:, None] / 100 + torch.arange(1, 1 + snapshots)
    csi = number[:, :, None, None, None].expand(-1, -1, 1, 4, 8).to(torch.complex64)
    links = Recording.build(csi, torch.randn(links, 3), torch.ones(links), interval=5e-3)
    return dataclasses.replace(random_site("a"), links=links)


@pytest.mark.parametrize("horizon", [1, 3])
def test_the_past_is_noisy_and_what_follows_clean(tmp_path, horizon):
    site, settings = random_site("a", 40), {"sequence": Sequence(4, horizon=horizon), **WHOLE}
    clean = served(build(tmp_path, [site], **settings))
    noisy = served(build(tmp_path, [site], observation=[Noise((0.0, 0.0))], **settings))
    assert clean["csi"].shape == (20, 4, 1, 4, 8)
    assert clean["next_csi"].shape == (20, horizon, 1, 4, 8)
    assert torch.equal(clean["next_csi"], noisy["next_csi"])
    assert torch.equal(clean["csi"], noisy["clean_csi"])
    error = (noisy["csi"] - clean["csi"]).abs().square().sum() / clean["csi"].abs().square().sum()
    assert error == pytest.approx(1.0, rel=0.1)
    longer = served(build(tmp_path, [site], sequence=Sequence(4 + horizon, horizon=0), **WHOLE))
    assert "next_csi" not in longer
    torch.testing.assert_close(torch.cat([clean["csi"], clean["next_csi"]], 1), longer["csi"])


def test_times_may_be_those_of_each_link():
    paths, velocity = random_paths(5), torch.randn(5, 3) * 10
    times = torch.rand(5, 3, dtype=torch.float64) * 0.1

    def make(paths, velocity, times):
        return synthesize(paths, Array(1, 4), Array(), OFDM(8), velocity=velocity, times=times, wavelength=0.1)

    whole = make(paths, velocity, times)
    for link in range(5):
        alone = make(paths[link : link + 1], velocity[link], times[link])
        torch.testing.assert_close(whole[link], alone[0], rtol=1e-4, atol=1e-9)


def test_views_are_of_two_windows_of_one_user(tmp_path):
    settings = {"sequence": Sequence(3, window=25e-3, speed=(5.0, 5.0)), "views": [], **WHOLE}
    site = dataclasses.replace(random_site("a", 40), links=random_paths(40, num_paths=1))
    module = build(tmp_path, [site], **settings)
    batch = served(module)
    first, second = batch["views"]
    assert torch.equal(first, batch["csi"])
    assert second.shape == first.shape == (20, 3, 1, 4, 8)
    # with a single path, the time between the windows turns all by one phase, at the rate that the snapshots show
    rate = (batch["csi"][:, 1] / batch["csi"][:, 0])[:, 0, 0, 0].angle().double() / 5e-3
    turn = (second / first)[:, 0, 0, 0, 0].angle().double()
    turned = (rate.abs() > 1) & (rate.abs() * 25e-3 < torch.pi)
    after = (turn / rate)[turned]
    assert turned.sum() > 5
    assert 0 <= after.min() < 8e-3 < 17e-3 < after.max() <= 25e-3 * 1.001
    assert after.unique().numel() == len(after), "users share their time"
    assert not torch.equal(second, served(module, epoch=1)["views"][1])
    twin = dataclasses.replace(site, name="other")
    both = build(tmp_path, [site, twin], base_stations=2, **settings)
    torch.testing.assert_close(*served(both)["views"][1].unbind(1))


def test_impairments_come_on_top_of_windows(tmp_path):
    settings = {"sequence": Sequence(3, window=25e-3), **WHOLE}
    plain, turned = (build(tmp_path, views=views, **settings) for views in ([], [CommonPhase()]))
    for one, other in zip(served(plain)["views"], served(turned)["views"], strict=True):
        torch.testing.assert_close(one.abs(), other.abs(), rtol=1e-3, atol=1e-9)
        assert not torch.allclose(one, other)
    assert "views" not in served(build(tmp_path, **settings))


def test_recorded_windows_are_of_one_row(tmp_path):
    module = build(tmp_path, [numbered()], sequence=Sequence(3, window=26e-3), views=[], **WHOLE)
    batch = served(module, 30)
    first, second = (view[:, :, 0, 0, 0].real for view in batch["views"])
    begin = (second - first).round()
    assert begin.min() == 1
    assert begin.max() == 5, "25 ms are five snapshots"
    assert (begin == begin[:, :1]).all()
    assert ((second - first - begin).abs() < 0.02).all(), "windows of two links"
    assert batch["next_csi"].shape[1] == 1


def test_windows_are_drawn_apart_from_impairments(tmp_path):
    """Also where a site has the name of its area, as those of TR 38.901 have."""
    site, sequence = dataclasses.replace(numbered(), area="a"), Sequence(3, window=25e-3)
    first, second = served(build(tmp_path, [site], sequence=sequence, views=[], **WHOLE))["views"]
    begin = (second - first)[:, 0, 0, 0, 0].real.round() - 1
    scaled = served(build(tmp_path, [site], sequence=sequence, views=[AmplitudeScaling((1.0, 2.0))], **WHOLE))["views"]
    drawn = (scaled[0] / first)[:, 0, 0, 0, 0].real - 1
    assert not torch.equal(begin, (drawn * sequence.steps).floor()), "the factor tells the window"


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (Sequence(3, window=4e-3), r"window is 0.004 s, but the snapshots of recording a are 0.005 s apart"),
        (Sequence(8, window=25e-3), r"data.sequence asks for 13 snapshots, but recording a has 12$"),
        (Sequence(8, horizon=5), r"data.sequence asks for 13 snapshots, but recording a has 12$"),
    ],
)
def test_recordings_too_short_or_too_slow(tmp_path, sequence, message):
    with pytest.raises(InputError, match=message):
        build(tmp_path, [numbered()], sequence=sequence)


@pytest.mark.parametrize("given", [{"speed": (3.0, 4.0)}, {"mobility": {"static": 1}}])
def test_speeds_are_refused_where_all_users_have_their_own(given, tmp_path):
    moving = random_site("a", 40, domain={"speed": [1.0, 2.0]})
    with pytest.raises(InputError, match=rf"data\.sequence\.{next(iter(given))} .* set the speeds of data\.source"):
        build(tmp_path, [moving], sequence=Sequence(3, **given))
    with pytest.raises(InputError, match=rf"data\.sequence\.{next(iter(given))} "):
        build(tmp_path, [numbered()], sequence=Sequence(3, **given))
    mixed = build(tmp_path, [moving, random_site("b", 40, seed=1)], sequence=Sequence(3, **given))
    assert mixed.sequence == Sequence(3, **given), "of the others they are"
