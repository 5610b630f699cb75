import dataclasses

import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.motion import Sequence
from datamodules.channel.ofdm import OFDM
from datamodules.channel.synthesis import synthesize
from datamodules.errors import InputError
from datamodules.sides.groups import group_links, variant_names
from datamodules.sites.environment import Environment
from tests.datamodules.rays import random_site
from tests.datamodules.test_module import build

VARIANTS = ("high", "low", "trees")


def twins(area="town", users=30, stations=2, variants=VARIANTS, seed=0):
    """Sites as `Twins` makes them: variant after variant, each with all base stations, users row by row the same."""
    sites = []
    position = random_site("users", users, seed=seed).paths.position
    for number, variant in enumerate(variants):
        for station in range(stations):
            site = random_site(f"{area}_{variant}_bs{station}", users, 10 * number + station, area)
            environment = Environment.empty(position.numpy())
            paths = dataclasses.replace(site.paths, position=position)
            place = torch.tensor([9.0 * station, 0.0, 10.0])
            facts = {"domain": {"variant": variant}, "bs_position": place, "environment": environment}
            sites.append(dataclasses.replace(site, links=paths, **facts))
    return sites


def whole(module):
    return module.finish(module.sides["all"].__getitems__(range(len(module.sides["all"]))))


@pytest.mark.parametrize("wanted", [None, ["low", "high"], ["trees"]])
def test_variants_of_a_user_stand_side_by_side_in_the_order_of_their_names(tmp_path, wanted):
    sites = twins() + twins("village", users=20, stations=1, seed=4)
    module = build(tmp_path, sites, group="variant", variants=wanted, num_beams=4, split="spatial")
    names = wanted or list(VARIANTS)
    assert module.variants == names
    batch = whole(module)
    assert batch["csi"].shape[1] == len(names) == module.group_size
    for row, (site, user) in enumerate(zip(batch["site"].tolist(), batch["user"].tolist(), strict=True)):
        for axis, name in enumerate(names):
            seen = [
                s for s in sites
                if s.area == sites[site].area and s.domain["variant"] == name
                and torch.equal(s.bs_position, batch["bs_position"][row])
            ]  # fmt: skip
            assert len(seen) == 1
            assert torch.equal(seen[0].paths.position[user], batch["position"][row])
            expected = synthesize(seen[0].paths[user : user + 1], Array(1, 4), Array(), OFDM(8))[0]
            torch.testing.assert_close(batch["csi"][row, axis], expected)
    assert {sites[number].domain["variant"] for number in batch["site"].tolist()} == {names[0]}, (
        "labels are the first's"
    )
    links = [set(module.sides[side].links.ravel().tolist()) for side in ("train", "validation", "test")]
    assert sum(map(len, links)) == len(set().union(*links))


def test_the_line_of_sight_of_a_group_is_that_of_any_link(tmp_path):
    sites = twins(users=20, stations=1, variants=("low", "high"))
    los = torch.stack([site.paths.los for site in sites])
    assert (los[0] != los[1]).any()
    settings = {"group": "variant", "fractions": (1.0, 0.0, 0.0)}
    batch = whole(build(tmp_path, sites, **settings))
    assert torch.equal(batch["los"], los.amax(0)[batch["user"]])
    assert torch.equal(whole(build(tmp_path, sites, variants=["high"], **settings))["los"], los[1][los[1] >= 0])


def test_stations_are_those_of_one_variant(tmp_path):
    sites = twins()
    for settings in ({"group": "station"}, {"base_stations": 2}, {"group": "station", "base_stations": 1}):
        module = build(tmp_path, sites, **settings)
        links = module.sides["all"].links
        assert links.shape[1] == settings.get("base_stations", 2) == module.group_size
        of = [{sites[link // 30].domain["variant"] for link in row} for row in links]
        assert all(len(variants) == 1 for variants in of)
        assert len(set.union(*of)) == 3
        assert (links % 30 == links[:, :1] % 30).all()


def test_a_user_moves_alike_in_all_variants(tmp_path):
    one, other = twins(stations=1, variants=("low", "high"))
    sites = [one, dataclasses.replace(other, links=one.paths)]
    csi = whole(build(tmp_path, sites, group="variant", sequence=Sequence(3), split="spatial"))["csi"]
    assert csi.shape[1:3] == (2, 3)
    torch.testing.assert_close(csi[:, 0], csi[:, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group": "variant", "variants": ["low", "best"]}, "variants must name some of high, low, trees, each once"),
        ({"group": "variant", "variants": ["low", "low"]}, "each once, got"),
        ({"group": "variant", "base_stations": 2}, "base_stations belongs to data.group: station, not to variant"),
        ({"variants": ["low"]}, "variants belongs to data.group: variant, not to None"),
        ({"group": "station", "base_stations": 3}, "base_stations is 3, but area town has 2"),
    ],
)
def test_groups_that_cannot_be(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        build(tmp_path, twins(), **settings)


def test_sites_that_make_no_group():
    with pytest.raises(InputError, match="the data have no variants"):
        variant_names([random_site("a")])
    sites = twins()
    with pytest.raises(InputError, match="a base station of area town has high, low: choose"):
        group_links(sites[:4], "variant", variants=["low", "trees"])
    moved = dataclasses.replace(sites[5].paths, position=sites[5].paths.position + 1)
    sites[5] = dataclasses.replace(sites[5], links=moved, environment=sites[0].environment)
    for group in ("station", "variant"):
        with pytest.raises(InputError, match="of area town do not share their users"):
            group_links(sites, group, variants=["low", "trees"])
    with pytest.raises(InputError, match="areas have 1 or 2 base stations: set data"):
        group_links(twins() + twins("village", stations=1, seed=4), "station")
