import dataclasses

import numpy as np
import pytest
import torch

from datamodules.errors import InputError
from datamodules.splits import split_links
from tests.datamodules.rays import random_site


def moved(site, x):
    paths = dataclasses.replace(site.paths, position=site.paths.position + torch.tensor([x, 0.0, 0.0]))
    return dataclasses.replace(site, links=paths)


def test_sides_are_whole_and_apart():
    sites = [random_site("a", 300), random_site("b", 200, seed=1)]
    for rule in ("random", "spatial"):
        masks = split_links(sites, rule)
        assert np.sum(masks, axis=0).tolist() == [1] * 500
        shares = [mask.mean() for mask in masks]
        assert np.allclose(shares, (0.7, 0.1, 0.2), atol=0.04), (rule, shares)


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


def test_city_holds_out_whole_places():
    sites = [random_site(f"s{i}", 50, i, area=f"a{i}", place=f"city{i % 3}") for i in range(6)]
    train, validation, test = split_links(sites, "city", holdout=["city1"])
    place = np.repeat([site.place for site in sites], 50)
    assert set(place[test]) == {"city1"}
    assert "city1" not in set(place[train | validation])
    assert validation.any()


def test_site_draws_areas_and_keeps_overlapping_ones_together():
    # areas 0 and 1 lie on one another, the others 1 km apart
    xs = (0, 50, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000)
    sites = [moved(random_site(f"s{i}", 50, i, area=f"a{i}"), x) for i, x in enumerate(xs)]
    for seed in range(8):
        masks = split_links(sites, "site", seed=seed)
        test = masks[2].reshape(10, 50)
        assert (test == test[:, :1]).all(), "an area straddles"
        assert test[0, 0] == test[1, 0], "overlapping areas straddle"
        assert test.any()
        assert not test.all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "city"}, "train side of the `city` split is empty|test side of the `city` split is empty"),
        ({"rule": "spatial", "block": 1e6}, "side of the `spatial` split is empty"),
        ({"rule": "city", "holdout": ["atlantis"]}, "names atlantis, but the data hold place"),
        ({"rule": "random", "holdout": ["place"]}, "holdout is for the splits"),
        ({"rule": "random", "fractions": (0.5, 0.1, 0.1)}, "three shares of 1"),
        ({"rule": "spatial", "block": 0.0}, "block must be positive"),
    ],
)
def test_bad_splits_say_why(arguments, message):
    with pytest.raises(InputError, match=message):
        split_links([random_site()], **arguments)
