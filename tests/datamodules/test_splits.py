import dataclasses
import warnings

import numpy as np
import pytest
import torch

from datamodules.errors import InputError
from datamodules.sites.recording import Recording
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


@pytest.mark.parametrize("recorded", [False, True])
def test_copies_on_both_sides_of_a_random_split_are_counted(recorded):
    sites = [random_site("a", 100), random_site("b", 100), random_site("c", 100, seed=1)]
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
