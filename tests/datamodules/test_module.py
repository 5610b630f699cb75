import dataclasses

import numpy as np
import pytest
import torch

import datamodules.module as module_of_data
from datamodules.channel.arrays import Array
from datamodules.channel.codebook import beam_power, dft_codebook
from datamodules.channel.impairments import CommonPhase, Noise, PartialSubcarriers, TimingOffset
from datamodules.channel.motion import Sequence
from datamodules.channel.ofdm import OFDM
from datamodules.dataset import ChannelDataset, ShardedSampler
from datamodules.errors import InputError
from datamodules.maps.augmentation import WorldSymmetry
from datamodules.module import ChannelDataModule
from datamodules.sites.environment import Environment
from datamodules.sites.paths import Paths
from datamodules.sites.recording import Recording
from datamodules.sites.site import area_numbers
from datamodules.sources.base import Recipe, Source
from tests.datamodules.rays import random_site


class Given(Source):
    def __init__(self, sites, cache):
        super().__init__(str(cache))
        self.given = sites

    def recipes(self):
        return [Recipe((site.name,), {"name": site.name}, lambda _, site=site: [site]) for site in self.given]


def build(tmp_path, sites=None, **settings):
    sites = sites or [random_site("a", 150), random_site("b", 100, seed=1)]
    for site in sites:  # one at a time, for which no process is started
        Given([site], tmp_path).sites()
    settings = {"bs": Array(1, 4), "ofdm": OFDM(8), "batch_size": 32, "split": "random", **settings}
    module = ChannelDataModule(Given(sites, tmp_path), **settings)
    module.prepare_data()
    module.setup("fit")
    return module


def first(module, loader="train_dataloader"):
    return module.finish(next(iter(getattr(module, loader)())))


def test_rows_come_in_the_order_asked_for_across_sites():
    sites = [random_site("a", 30), random_site("b", 20, seed=1), random_site("c", 10, seed=2)]
    dataset = ChannelDataset(sites)
    rows = [55, 3, 31, 59, 0, 30, 29]
    batch = dataset.__getitems__(rows)
    every = Paths.cat([site.paths for site in sites])
    for name, value in every.as_dict().items():
        assert torch.equal(batch["paths"][name], value[rows]), name
    assert batch["site"].tolist() == [2, 0, 1, 2, 0, 1, 0]
    assert batch["user"].tolist() == [5, 3, 1, 9, 0, 0, 29]
    assert dataset[31]["user"].tolist() == [1]


def test_many_missing_sites_are_made_by_processes(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module_of_data, "build", lambda sources: asked.append(len(sources)))
    sites = [random_site(name, 20, seed=seed) for seed, name in enumerate("abcd")]
    ChannelDataModule(Given(sites[:3], tmp_path)).prepare_data()
    assert asked == []
    data = ChannelDataModule(Given(sites, tmp_path / "anew"))
    data.prepare_data()
    assert asked == [1]
    data.prepare_data()
    assert asked == [1], "they are there"


def test_a_batch_of_no_links_has_the_keys_and_shapes_of_others(tmp_path):
    settings = {"num_beams": 4, "views": [Noise()], "observation": [Noise()], "extras": ["map", "geometry", "domain"]}
    module = build(tmp_path, **settings)
    none, two = (module.finish(module.sides["all"].__getitems__(rows)) for rows in ([], [0, 1]))
    assert none.keys() == two.keys()
    for key, value in two.items():
        for one, other in zip(*(v if key == "views" else [v] for v in (none[key], value)), strict=True):
            assert (one.shape, one.dtype) == ((0, *other.shape[1:]), other.dtype), key


@pytest.mark.parametrize("training", [False, True])
def test_what_is_observed_depends_on_the_link_alone(tmp_path, training):
    views = [Noise(), CommonPhase(), TimingOffset(), PartialSubcarriers()]
    settings = {"symmetry": WorldSymmetry(stretch=(0.8, 1.2)), "extras": ["map", "geometry"], "observation": [Noise()]}
    module = build(tmp_path, views=views, **settings)
    rows = module.sides["all"].__getitems__
    whole, part = (module.finish(rows(links), epoch=1, training=training) for links in (range(40), range(1, 40, 2)))
    for key in ("csi", "position", "map", "geometry"):
        torch.testing.assert_close(whole[key][1::2], part[key], rtol=1e-5, atol=0)
    for one, other in zip(whole["views"], part["views"], strict=True):
        torch.testing.assert_close(one[1::2], other, rtol=1e-5, atol=1e-10)
    assert not torch.equal(*whole["views"])
    assert whole["views"][0].div(whole["clean_csi"]).abs().sum((1, 2, 3)).unique().numel() == 40, "links draw alike"


@pytest.mark.parametrize("epoch", [0, 1])
def test_two_processes_observe_what_one_does(tmp_path, epoch):
    module = build(tmp_path, observation=[Noise((0.0, 0.0))], sequence=Sequence(2))
    train = module.sides["train"]

    def seen(world):
        samplers = [ShardedSampler(train, 32 // world, True, 0, rank, world) for rank in range(world)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        batches = [module.finish(train.__getitems__(rows), epoch, True) for sampler in samplers for rows in sampler]
        return {
            (int(site), int(user)): csi
            for batch in batches
            for site, user, csi in zip(batch["site"], batch["user"], batch["csi"], strict=True)
        }

    one, two = seen(1), seen(2)
    assert len(one) == len(train) <= len(two) + 1, "a link in excess is left out"
    for link, csi in two.items():
        torch.testing.assert_close(csi, one[link], rtol=1e-4, atol=1e-10)


def test_the_stations_and_the_twins_of_a_user_see_it_move_alike_whatever_else_is_there(tmp_path):
    facts = {"bs_orientation": torch.tensor([0.0, 0.1, 0.0])}
    ours = [random_site(name, 40, area="town", **facts) for name in ("town_real_bs0", "town_twin_bs0", "town_real_bs1")]
    settings = {"sequence": Sequence(3), "observation": [Noise()], "extras": ["domain"], "split": "spatial"}

    def served(sites):
        module = build(tmp_path, sites, **settings)
        batch = module.finish(module.sides["all"].__getitems__(range(len(module.sides["all"]))))
        return [
            {key: value[batch["site"] == number] for key, value in batch.items()}
            for number, site in enumerate(sites)
            if site.area == "town"
        ]

    alone = served(ours)
    for seen in alone[1:]:
        torch.testing.assert_close(seen["clean_csi"], alone[0]["clean_csi"], msg="the users move otherwise")
        assert not torch.allclose(seen["csi"], alone[0]["csi"], rtol=0.1, atol=0), "stations share their noise"
    other = random_site("first", 30, seed=5, area="elsewhere")
    for seen, before in zip(served([other, *ours[::-1]])[::-1], alone, strict=True):
        torch.testing.assert_close(seen["clean_csi"], before["clean_csi"])
        torch.testing.assert_close(seen["csi"], before["csi"])
        assert torch.equal(seen["domain"], before["domain"])


def test_batch_holds_what_it_says(tmp_path):
    module = build(tmp_path, num_beams=8, views=[Noise()])
    batch = first(module)
    assert set(batch) == set(module.batch_keys)
    assert batch["csi"].shape == (28, 1, 4, 8), "172 links in six batches"
    assert (batch["los"] >= 0).all(), "a link without path is served"
    power = beam_power(batch["csi"], dft_codebook(Array(1, 4), 8))
    assert torch.equal(batch["beam"], power.argmax(1))
    assert module.describe()["dropped_no_path"] == 2


def test_labels_come_from_the_clean_channel(tmp_path):
    clean = first(build(tmp_path, num_beams=8))
    noisy = first(build(tmp_path, num_beams=8, observation=[Noise((-20.0, -20.0))]))
    assert torch.equal(clean["beam_power"], noisy["beam_power"])
    ratio = (noisy["csi"] - clean["csi"]).abs().square().mean() / clean["csi"].abs().square().mean()
    assert 10 * torch.log10(ratio) == pytest.approx(20, abs=0.5)


def test_views_are_independent_and_drawn_by_epoch_and_rows(tmp_path):
    module = build(tmp_path, views=[Noise(), CommonPhase()])
    rows = next(iter(module.train_dataloader()))
    again, other = module.finish(rows), module.finish(rows, epoch=1)
    batch = module.finish(rows)
    assert not torch.equal(batch["views"][0], batch["views"][1])
    assert torch.equal(batch["views"][0], again["views"][0])
    assert not torch.equal(batch["views"][0], other["views"][0])


def stations(count=3, users=60, unserved=20):
    """Base stations that share their users, each out of reach of other ones."""
    sites = []
    for number in range(count):
        site = random_site(f"bs{number}", users, seed=number)
        reached = (torch.arange(users) - number * unserved) % users >= unserved
        paths = dataclasses.replace(
            site.paths,
            gain=site.paths.gain * reached[:, None],
            mask=site.paths.mask & reached[:, None],
            los=torch.where(reached & (site.paths.los >= 0), site.paths.los, -1).to(torch.int8),
            position=random_site("any", users).paths.position,
        )
        sites.append(dataclasses.replace(site, links=paths, environment=Environment.empty(paths.position.numpy())))
    return sites


def count(module):
    return sum(len(module.sides[side]) for side in ("train", "validation", "test"))


def test_areas_are_capped(tmp_path):
    one, other = (build(tmp_path, stations(), max_per_area=50, seed=seed) for seed in (0, 1))
    assert count(one) == 50
    kept = [set(module.sides["all"].links.tolist()) for module in (one, other)]
    assert kept[0] != kept[1], "drawn at random"
    assert count(build(tmp_path / "two", max_per_area=50)) == 100, "one name, but other users on other ground"
    module = build(tmp_path, stations(), max_per_area=30, base_stations=3)
    assert count(module) == 30
    assert first(module)["csi"].shape[1] == 3


def test_a_link_without_power_has_no_label(tmp_path):
    module = build(tmp_path, stations(), base_stations=2, num_beams=4, split="random", fractions=(1.0, 0.0, 0.0))
    batch = module.finish(module.sides["train"].__getitems__(range(len(module.sides["train"]))), training=False)
    silent = batch["csi"][:, 0].abs().flatten(1).amax(1) == 0
    assert silent.sum() == 19
    assert (batch["beam"][silent] == -1).all()
    assert batch["beam_power"][silent].isnan().all()
    assert (batch["beam"][~silent] >= 0).all()
    assert (batch["beam_power"][~silent].amax(1) > 0).all()
    statistics = module.statistics()
    assert statistics["beam_counts"].sum() == statistics["labelled_beam"] == (~silent).sum()


@pytest.mark.parametrize("snapshots", [None, Sequence(snapshots=2, interval=5e-3)])
def test_a_recorded_first_snapshot_of_zeros_has_no_label(tmp_path, snapshots):
    csi = torch.randn(40, 3, 1, 4, 8, dtype=torch.complex64)
    csi[:20, 0] = 0
    recording = Recording.build(csi, torch.randn(40, 3), torch.ones(40), interval=5e-3)
    site = dataclasses.replace(random_site("a"), links=recording)
    module = build(tmp_path, [site], num_beams=4, fractions=(1.0, 0.0, 0.0), sequence=snapshots)
    batch = module.finish(module.sides["train"].__getitems__(range(40)))
    assert (batch["beam"] == -1).tolist() == [True] * 20 + [False] * 20
    # a later snapshot of a sequence shows whether there is line of sight
    assert (batch["los"] == -1).tolist() == [snapshots is None] * 20 + [False] * 20


def test_two_scenes_of_one_name_keep_their_maps(tmp_path):
    sites = stations(1)
    square = np.array([[0.0, 0.0], [20.0, 0.0], [20.0, 20.0], [0.0, 20.0]])
    for shift in (500.0, 0.0):
        paths = dataclasses.replace(sites[0].paths, position=sites[0].paths.position + shift)
        bounds = Environment.empty(paths.position.numpy()).bounds
        environment = Environment((square + shift,), np.array([9.0]), bounds)
        bs_position = sites[0].bs_position + shift
        sites.append(dataclasses.replace(sites[0], links=paths, environment=environment, bs_position=bs_position))
    sites = [dataclasses.replace(site, name=f"bs{number}") for number, site in enumerate(sites)]
    assert area_numbers(sites) == [0, 1, 0], "the same users are of one area, whatever stands around them"
    module = build(tmp_path, sites, extras=["map", "geometry"], fractions=(1.0, 0.0, 0.0))
    batch = module.finish(module.sides["train"].__getitems__(range(len(module.sides["train"]))))
    assert ((batch["geometry"][:, [0, 1, 3, 4]] >= 0) & (batch["geometry"][:, [0, 1, 3, 4]] <= 1)).all()
    assert [bool(batch["map"][batch["site"] == number].any()) for number in range(3)] == [False, True, True]
    with pytest.warns(UserWarning, match="exact copies"):  # of the channels, which do not know of the shift
        module = build(tmp_path, [sites[0], sites[1]], base_stations=1)
    assert count(module) == 2 * int(sites[0].links.has_path.sum()), "the users of the second are served too"


def test_a_sample_is_bounded_by_the_bytes_it_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.module._SAMPLE_BYTES", 40_000)
    many = {"sequence": Sequence(snapshots=8, interval=1e-3), "views": [], "observation": [Noise((10, 10))]}
    assert len(build(tmp_path)._draw(4096)["site"]) > len(build(tmp_path).sample()["csi"]) > 100
    for settings in (many, {**many, "group": "station"}):
        sample = build(tmp_path / "many", stations(), **settings).sample()
        held = sum(value.nbytes for key, value in sample.items() if key != "views")
        held += sum(view.nbytes for view in sample["views"])
        assert 20_000 < held <= 40_000


def test_statistics_see_the_train_side_only(tmp_path):
    module = build(tmp_path, num_beams=4)
    statistics = module.statistics()
    links = module.sides["train"].links
    position = torch.cat([site.paths.position for site in module.sides["train"].sites])[links]
    assert torch.allclose(statistics["position_mean"], position.mean(0) - torch.tensor([0, 0, 10.0]), atol=1e-3)
    assert torch.allclose(statistics["position_std"], position.std(0, correction=0), atol=1e-3)
    los = torch.cat([site.paths.los for site in module.sides["train"].sites])[links]
    assert statistics["los_counts"].tolist() == [(los == 0).sum(), (los == 1).sum()]
    assert statistics["beam_counts"].sum() == len(links) == statistics["los_counts"].sum()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_labels": 10_000}, "num_labels is 10000, but the train side holds"),
        ({"split": "city"}, "side of the `city` split is empty"),
    ],
)
def test_impossible_data_say_why(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        build(tmp_path, **settings)


def test_pictures_of_a_site_and_of_a_channel(tmp_path):
    module = build(tmp_path)
    batch = first(module)
    assert len(module.plot(batch, 3).axes) >= 2
    assert module.sides["train"].sites[0].plot("power").axes


def test_data_without_positions_say_so(tmp_path):
    csi = torch.randn(40, 1, 4, 8, dtype=torch.complex64)
    recording = Recording.build(csi, torch.full((40, 3), torch.nan), torch.arange(40) % 2)
    site = dataclasses.replace(random_site("a"), links=recording)
    module = build(tmp_path, [site])
    assert "position" not in module.batch_keys
    assert torch.isfinite(module.statistics()["position_std"]).all()
    with pytest.raises(InputError, match="needs the positions of all users"):
        build(tmp_path, [site], split="spatial")
