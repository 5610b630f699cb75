"""Users that several sources have in common, as variants of a twin."""

from dataclasses import replace

import pytest
import torch

from datamodules import DeepMIMO, MatchedUsers, write_deepmimo
from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM
from datamodules.errors import InputError
from datamodules.module import ChannelDataModule
from foundation.models.calibration import TwinCalibration
from tests.datamodules.rays import random_site

#: rows of the first source of which the second has users, in its order
SEEN = torch.tensor([7, 3, 11, 20, 5, 30, 2, 40, 41])


@pytest.fixture
def root(tmp_path):
    """Two scenarios of one place: the second has some of the users in another order, weaker, and one of its own."""
    city = random_site("city", 60)
    other = city.links[SEEN]
    moved = other.position.clone()
    moved[-1] += 3.0
    other = replace(other, position=moved + 1e-3, gain=other.gain * 0.5)
    write_deepmimo([city], tmp_path, "city")
    twin = replace(city, name="twin", links=other, bs_orientation=torch.tensor([1.0, 0.0, 0.0]))
    write_deepmimo([twin], tmp_path, "twin")
    return tmp_path


def scenario(root, name):
    return DeepMIMO(name, str(root), unserved=True, cache=str(root / "sites"))


@pytest.fixture
def source(root):
    return MatchedUsers({"high": scenario(root, "city"), "low": scenario(root, "twin")})


def test_variants_have_the_users_of_both_row_by_row(source, root):
    high, low = source.sites()
    assert [high.name, low.name] == ["city_bs1_high", "city_bs1_low"]
    kept = SEEN[:-1].sort()
    city, twin = scenario(root, "city").sites()[0].links, scenario(root, "twin").sites()[0].links
    assert torch.equal(high.links.gain, city.gain[kept.values])
    assert torch.equal(low.links.gain, twin.gain[kept.indices])
    assert torch.equal(high.links.position, low.links.position)
    assert torch.equal(high.links.position, city.position[kept.values])
    assert torch.equal(low.bs_orientation, high.bs_orientation)
    assert high.area == low.area
    assert [site.domain["variant"] for site in (high, low)] == ["high", "low"]


def test_a_calibrator_takes_them(source):
    data = ChannelDataModule(source, bs=Array(1, 8), ofdm=OFDM(4), group="variant", variants=["low", "high"],
                             split="random", fractions=(0.5, 0.25, 0.25))  # fmt: skip
    data.prepare_data()
    data.setup()
    batch = data.finish(data.sides["all"].__getitems__([0, 1, 2]))
    links = TwinCalibration(antennas=8).links(batch)
    assert links["low"].shape == links["high"].shape == (3, 1, 8, 4)
    ratio = links["low"].abs().sum((1, 2, 3)) / links["high"].abs().sum((1, 2, 3))
    assert ratio.tolist() == pytest.approx([0.5] * 3, rel=1e-4), "a user and its own twin"


def test_changed_sources_are_matched_anew(source, root):
    before = [recipe.digest for recipe in source.recipes()]
    source.variants["low"].max_paths = 3
    after = [recipe.digest for recipe in source.recipes()]
    assert all(a != b for a, b in zip(before, after, strict=True))


def test_sources_in_another_order_are_matched_anew(root):
    # the first gives positions, rows and area
    one, other = scenario(root, "city"), scenario(root, "twin")
    digests = [{recipe.digest for recipe in MatchedUsers(variants).recipes()}
               for variants in ({"a": one, "b": other}, {"b": other, "a": one})]  # fmt: skip
    assert not digests[0] & digests[1]


def test_what_cannot_be_matched_is_named(root):
    with pytest.raises(InputError, match="at least two variants"):
        MatchedUsers({"low": scenario(root, "twin")})
    apart = random_site("apart", 5)
    apart = replace(apart, links=replace(apart.links, position=apart.links.position + 50))
    write_deepmimo([apart], root, "apart")
    with pytest.raises(InputError, match=r"city_bs1 and apart_bs1 have no user in common within 0\.01 m"):
        MatchedUsers({"a": scenario(root, "city"), "b": scenario(root, "apart")}).sites()
    two = random_site("two", 5, bs_orientation=torch.zeros(3))
    write_deepmimo([two, replace(two, bs_position=two.bs_position + 9)], root, "two")
    with pytest.raises(InputError, match="a has 1, b has 2: set base_stations"):
        MatchedUsers({"a": scenario(root, "city"), "b": scenario(root, "two")}).sites()
