import dataclasses
import warnings

import numpy as np
import pytest
import torch

from datamodules.errors import InputError
from datamodules.sides.splits import guard_band, split_links
from datamodules.sites.recording import Recording
from datamodules.sites.user_matching import user_numbers
from tests.datamodules.rays import random_site


def moved(site, x):
    paths = dataclasses.replace(site.paths, position=site.paths.position + torch.tensor([x, 0.0, 0.0]))
    return dataclasses.replace(site, links=paths)


def test_sides_are_whole_and_apart():
    sites = [random_site("a", 300), random_site("b", 200, seed=1, area="other")]
    for rule in ("random", "spatial"):
        masks = split_links(sites, rule)
        assert np.sum(masks, axis=0).tolist() == [1] * 500
        shares = [mask.mean() for mask in masks]
        assert np.allclose(shares, (0.7, 0.1, 0.2), atol=0.04), (rule, shares)


@pytest.mark.parametrize("recorded", [False, True])
def test_copies_on_both_sides_of_a_random_split_are_counted(recorded):
    # the very channels again, of users elsewhere
    sites = [random_site("a", 100), random_site("b", 100, city="y"), random_site("c", 100, seed=1)]
    sites[1] = dataclasses.replace(moved(sites[1], 1e3), area="b")
    if recorded:
        csi = torch.randn(100, 1, 4, 64, dtype=torch.complex64)
        csi[0] = 0
        csi[1:50, ..., 1:] = 1.0  # alike but for one value
        channels = (csi, csi, torch.randn_like(csi))
        kept = [Recording.build(each, site.paths.position) for each, site in zip(channels, sites, strict=True)]
        sites = [dataclasses.replace(site, links=links) for site, links in zip(sites, kept, strict=True)]
    with pytest.warns(UserWarning, match="validation and test links of the `random` split are exact copies") as caught:
        masks = split_links(sites, "random")
    row, served = np.tile(np.arange(100), 3), np.concatenate([site.links.has_path.numpy() for site in sites])
    copied = (np.arange(300) < 200) & served
    trained = set(row[masks[0] & copied])
    count = sum(number in trained for number in row[~masks[0] & copied])
    assert str(caught[0].message).startswith(f"{count} of {(~masks[0] & served).sum()} ")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split_links([sites[0], sites[2]], "random")
        split_links(sites, "spatial")


def test_spatial_blocks_go_whole_to_one_side_for_all_base_stations():
    sites = [random_site("a", 300), random_site("b", 300, seed=1)]
    masks = split_links(sites, "spatial", block=25.0)
    position = np.concatenate([site.paths.position.numpy()[:, :2] for site in sites])
    side = np.argmax(masks, axis=0)
    blocks = {}
    for cell, number in zip(map(tuple, np.floor(position / 25.0)), side, strict=True):
        assert blocks.setdefault(cell, number) == number


def test_a_seed_draws_one_split():
    sites = [random_site("a", 300)]
    first, again, other = (split_links(sites, "spatial", seed=seed)[2] for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_city_holds_out_whole_cities():
    sites = [random_site(f"s{i}", 50, i, area=f"a{i}", city=f"city{i % 3}") for i in range(6)]
    train, validation, test = split_links(sites, "city", holdout=["city1"])
    city = np.repeat([site.city for site in sites], 50)
    assert set(city[test]) == {"city1"}
    assert "city1" not in set(city[train | validation])
    assert validation.any()


def test_area_draws_areas_and_keeps_overlapping_ones_together():
    # areas 0 and 1 lie on one another, the others 1 km apart
    xs = (0, 50, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000)
    sites = [moved(random_site(f"s{i}", 50, i, area=f"a{i}"), x) for i, x in enumerate(xs)]
    for seed in range(8):
        masks = split_links(sites, "area", seed=seed)
        test = masks[2].reshape(10, 50)
        assert (test == test[:, :1]).all(), "an area straddles"
        assert test[0, 0] == test[1, 0], "overlapping areas straddle"
        assert test.any()
        assert not test.all()


def test_the_old_word_for_area_is_read_with_a_warning():
    sites = [moved(random_site(f"s{i}", 50, i, area=f"a{i}"), 1e3 * i) for i in range(10)]
    with pytest.warns(FutureWarning, match="`site` is now called `area`"):
        old = split_links(sites, "site")
    assert np.array_equal(old, split_links(sites, "area"))


def worlds(kind, users=200):
    """Four sites of the same users on ground of their own, twice in each of three cities."""
    sites = []
    for city in range(3):
        for block in range(2):
            area = f"{city}{block}"
            of_area = random_site(area, users, seed=10 * city + block)
            for number in range(4):
                site = random_site(f"{area}_{number}", users, seed=100 + len(sites), area=area, city=f"city{city}")
                paths = dataclasses.replace(site.paths, position=of_area.paths.position)
                if kind == "served users only":
                    keep = np.random.default_rng(len(sites)).permutation(users)[: users // 2]
                    paths = paths[torch.from_numpy(keep)]
                elif kind == "bands":
                    area = f"{city}{block}_{number}"
                    # on the edges of blocks, where a rounding error moves half of them into the next one
                    edge = torch.tensor([1e-6 * (-1) ** number, 0.0, 0.0])
                    x, y, z = paths.position.unbind(1)
                    position = torch.stack([(x / 20).round() * 20, y, z], 1) + edge
                    paths = dataclasses.replace(paths, position=position)
                elif kind == "recorded":
                    csi = torch.randn(users, 1, 2, 4, dtype=torch.complex64)
                    stamps = torch.rand(users, dtype=torch.float64) * 0.3 + torch.arange(users)
                    paths = dataclasses.replace(Recording.build(csi, paths.position), timestamps=stamps)
                site = dataclasses.replace(site, links=paths, area=area, environment=of_area.environment)
                sites.append(moved_links(site, 1e4 * city + 1e3 * block))
    return sites


def moved_links(site, x):
    links = dataclasses.replace(site.links, position=site.links.position + torch.tensor([x, 0.0, 0.0]))
    return dataclasses.replace(site, links=links)


@pytest.mark.parametrize("rule", ["random", "spatial", "time", "area", "city"])
@pytest.mark.parametrize("kind", ["twins", "served users only", "bands", "recorded"])
def test_no_rule_parts_the_links_of_a_user(rule, kind):
    if (rule == "time") != (kind == "recorded") and rule == "time":
        pytest.skip("rays have no time")
    sites = worlds(kind)
    for seed in range(3):
        masks = split_links(sites, rule, (0.4, 0.3, 0.3), seed=seed)
        spot = np.concatenate([site.links.position.numpy().round(2) for site in sites])
        _, user, count = np.unique(spot, axis=0, return_inverse=True, return_counts=True)
        assert (count > 1).any()
        on = np.stack([np.bincount(user.reshape(-1)[mask], minlength=len(count)) > 0 for mask in masks])
        assert on.sum(0).max() == 1, "a user is on two sides"
        assert on.any(1).all()


def test_users_are_numbered_by_row_or_by_spot():
    twins = [random_site("a", 5), random_site("b", 5)]
    assert user_numbers(twins).tolist() == [*range(5)] * 2
    still = random_site("still", 3, area="still", city="elsewhere")
    still = dataclasses.replace(still, links=dataclasses.replace(still.paths, position=torch.zeros(3, 3)))
    assert user_numbers([*twins, still]).tolist() == [*range(5)] * 2 + [5, 6, 7], "snapshots of one device stay apart"
    few = dataclasses.replace(twins[1], links=twins[1].paths[torch.tensor([4, 2])])
    assert user_numbers([twins[0], few]).tolist() == [*range(5), 4, 2]
    unknown = [
        dataclasses.replace(site, links=dataclasses.replace(site.paths, position=torch.full((5, 3), torch.nan)))
        for site in twins
    ]
    assert user_numbers(unknown).tolist() == [*range(5)] * 2, "an area shares its users row by row"


def test_the_guard_band_is_what_a_search_over_all_pairs_finds():
    sites = worlds("twins", 400)[:12]
    masks = split_links(sites, "spatial", (0.6, 0.2, 0.2))
    position = np.concatenate([site.paths.position.numpy()[:, :2] for site in sites]).astype(np.float64)
    served = np.concatenate([site.paths.has_path.numpy() for site in sites])
    other = position[(masks[1] | masks[2]) & served]
    near = np.array([(np.hypot(*(other - spot).T) < 5).any() for spot in position])
    barred = guard_band(sites, masks, 5.0)
    assert 0 < barred.sum() < masks[0].sum()
    assert np.array_equal(barred & served, masks[0] & near & served)
    assert not guard_band(sites, masks, 0.0).any()


def test_the_guard_band_of_a_street_is_what_one_reads_off_it():
    #  at [m]    0      4     50      52      100     103 (on a roof)
    sides = ["train", "test", "train", "test", "train", "validation"]
    place = torch.tensor([[x, 0.0, 1.5] for x in (0.0, 4.0, 50.0, 52.0, 100.0, 103.0)])
    place[5, 2] = 30.0
    served = {"a0": [1, 1, 1, 0, 1, 1], "a1": [0, 0, 1, 0, 1, 1], "b0": [1, 1, 1, 1, 1, 1]}
    sites = []
    for name, reached in served.items():
        site = random_site(name, 6, area=name[0], city=name[0])
        los = torch.where(torch.tensor(reached) == 1, 0, -1).to(torch.int8)
        sites.append(dataclasses.replace(site, links=dataclasses.replace(site.paths, position=place, los=los)))
    # users of another city, whose own coordinates are the same, are all on the train side
    of = np.array([*sides, *sides, *["train"] * 6])
    masks = tuple(of == side for side in ("train", "validation", "test"))
    barred = guard_band(sites, masks, 5.0).reshape(3, 6)
    wanted = [True, False, False, False, True, False]  # the test user at 52 m has no path at all
    assert barred.tolist() == [wanted, wanted, [False] * 6]


def test_a_side_in_time_ends_with_the_last_whole_window():
    # 20 windows of 1.5 s, one a second: cuts at 8 and 14 s, and a gap of a window after each
    begin = torch.arange(20, dtype=torch.float64)
    csi = torch.ones(20, 2, 1, 1, 4, dtype=torch.complex64)
    links = Recording.build(csi, torch.zeros(20, 3), interval=1.5)
    links = dataclasses.replace(links, timestamps=torch.stack([begin, begin + 1.5], 1))
    masks = split_links([dataclasses.replace(random_site("a", 20), links=links)], "time", (0.4, 0.3, 0.3))
    assert [np.flatnonzero(mask).tolist() for mask in masks] == [[*range(7)], [10, 11, 12], [16, 17, 18, 19]]


def test_the_share_of_validation_is_that_of_all_areas():
    xs = [1000.0 * i for i in range(16)]
    sites = [moved(random_site(f"s{i}", 20, i, f"a{i}", "there" if i < 4 else "here"), x) for i, x in enumerate(xs)]
    for seed in range(3):
        masks = split_links(sites, "city", (0.5, 0.25, 0.25), holdout=["there"], seed=seed)
        assert [mask.reshape(16, 20).all(1).sum() for mask in masks] == [8, 4, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"rule": "city"},
            r"(train|test) side of the `city` split is empty, as the data hold the city \w+: change data.split, ",
        ),
        (
            {"rule": "spatial", "block": 1e6},
            "side of the `spatial` split is empty, as the data hold .* data.fractions or data.block",
        ),
        ({"rule": "city", "holdout": ["atlantis"]}, "names atlantis, but the data hold city"),
        ({"rule": "random", "holdout": ["city"]}, "data.holdout is for data.split `area` or `city`, not `random`"),
        ({"rule": "random", "fractions": (0.5, 0.1, 0.1)}, "three numbers of sum 1"),
        ({"rule": "random", "fractions": (0.8, 0.2)}, "three numbers of sum 1"),
        ({"rule": "spatial", "block": 0.0}, "block must be positive"),
    ],
)
def test_bad_splits_say_why(arguments, message):
    with pytest.raises(InputError, match=message):
        split_links([random_site()], **arguments)
