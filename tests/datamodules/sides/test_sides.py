"""Which links the sides of a datamodule hold: worlds, labels by world, files of links, the guard band."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from datamodules.channel.motion import MOBILITIES, Sequence
from datamodules.errors import InputError
from datamodules.sides.splits import Rule
from datamodules.sites.link_file import read_links, save_links
from tests.datamodules.rays import random_site
from tests.datamodules.test_module import build


def twins(users=200):
    """A twin and its target world: the same users of two base stations, in two cities of one area each."""
    sites = []
    for city in ("munich", "etoile"):
        of_city = random_site("any", users, seed=len(city)).paths.position
        for variant in ("twin", "target"):
            for station in range(2):
                name = f"{city}_{variant}_bs{station}"
                domain = {"variant": variant, "scenario": city}
                site = random_site(name, users, seed=len(sites), area=city, city=city, domain=domain)
                paths = dataclasses.replace(site.paths, position=of_city)
                frequency = 28e9 if station else 3.5e9
                sites.append(dataclasses.replace(site, links=paths, carrier_frequency=frequency))
    return sites


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sites")


def words(module, side, word):
    """Return what the links of a side say of the site they are of."""
    dataset = module.sides[side]
    numbers = np.searchsorted(dataset.starts, dataset.links.reshape(-1), side="right") - 1
    return [word(dataset.sites[number]) for number in numbers]


def variants(module, side):
    return words(module, side, lambda site: site.domain["variant"])


def users(module, side):
    dataset = module.sides[side]
    numbers = np.searchsorted(dataset.starts, dataset.links, side="right") - 1
    rows = dataset.links - dataset.starts[numbers]
    return {(dataset.sites[n].area, row) for n, row in zip(numbers, rows, strict=True)}


RULES: tuple[Rule, ...] = ("random", "spatial", "area", "city")


@pytest.mark.parametrize("rule", RULES)
def test_no_test_user_was_seen_in_any_world(folder, rule):
    module = build(folder, twins(), split=rule, fractions=(0.5, 0.1, 0.4),
        train_on={"variant": "twin"}, validate_on={"variant": ["twin", "target"]}, test_on={"variant": "target"},
    )  # fmt: skip
    assert set(variants(module, "train")) == {"twin"}
    assert set(variants(module, "validation")) == {"twin", "target"}
    assert set(variants(module, "test")) == {"target"}
    sides = [users(module, side) for side in ("train", "validation", "test")]
    assert all(not one & other for i, one in enumerate(sides) for other in sides[:i])
    told = module.describe()
    assert (told["train_on"], told["test_on"]) == ({"variant": "twin"}, {"variant": "target"})


@pytest.mark.parametrize(
    ("conditions", "holds"),
    [
        ({"city": "munich"}, lambda site, los: site.city == "munich"),
        ({"area": "m*", "variant": "twin"}, lambda site, los: site.name.startswith("munich_twin")),
        ({"scenario": ["munich", "etoile"]}, lambda site, los: True),
        ({"los": 0}, lambda site, los: los == 0),
        ({"los": 1, "frequency": 3500}, lambda site, los: los == 1 and site.carrier_frequency < 4e9),
        ({"frequency": [3000, 4000.0]}, lambda site, los: site.carrier_frequency < 4e9),
        ({"frequency": 28000.0}, lambda site, los: site.carrier_frequency > 4e9),
        ({"tilt": [-1, 1]}, lambda site, los: True),
    ],
)
def test_conditions_choose_what_they_say(folder, conditions, holds):
    whole, part = build(folder, twins()), build(folder, twins(), train_on=conditions)
    dataset = whole.sides["train"]
    numbers = np.searchsorted(dataset.starts, dataset.links, side="right") - 1
    los = torch.cat([site.paths.los for site in dataset.sites]).numpy()[dataset.links]
    wanted = [holds(dataset.sites[number], seen) for number, seen in zip(numbers, los, strict=True)]
    assert np.array_equal(part.sides["train"].links, dataset.links[wanted])
    for side in ("validation", "test"):
        assert np.array_equal(part.sides[side].links, whole.sides[side].links)


def test_mobility_is_what_the_batch_says(folder):
    settings = {"sequence": Sequence(snapshots=2), "extras": ["domain"], "seed": 3}
    module = build(folder, twins(), train_on={"mobility": "static"}, test_on={"mobility": "vehicular"}, **settings)
    for side, name in (("train", "static"), ("test", "vehicular")):
        batch = module._make.labels(module.sides[side].__getitems__(range(len(module.sides[side]))))
        assert set(batch["domain"][:, 2].tolist()) == {MOBILITIES.index(name)}
    everything = build(folder, twins(), **settings)
    assert len(module.sides["train"]) < 0.5 * len(everything.sides["train"])


def test_labels_may_be_counted_a_world(folder):
    module = build(folder, twins(), num_labels={"twin": 120, "target": 7})
    assert [variants(module, "train").count(name) for name in ("twin", "target")] == [120, 7]
    assert module.describe()["num_labels"] == {"twin": 120, "target": 7}
    fewer = build(folder, twins(), num_labels={"target": 7, "twin": 20})
    assert set(fewer.sides["train"].links) < set(module.sides["train"].links)
    cities = build(folder, twins(), num_labels={"munich": 5})
    whole = words(build(folder, twins()), "train", lambda site: site.city)
    found = words(cities, "train", lambda site: site.city)
    assert [found.count(name) for name in ("munich", "etoile")] == [5, whole.count("etoile")]
    bands = build(folder, twins(), num_labels={"28000": 4, "3500": 6})
    assert len(bands.sides["train"]) == 10


@pytest.mark.parametrize("name", ["links.json", "links.safetensors"])
def test_a_file_names_the_training_links(folder, tmp_path, name):
    sites, file = twins(), tmp_path / name
    whole = build(folder, sites)
    chosen = whole.sides["train"].links[5:300:7]
    save_links(file, sites, chosen[::-1])
    assert np.array_equal(read_links(file, sites), chosen)
    # by the name of the site: other sites before it do not matter
    module = build(folder, [random_site("first", 30, area="x", city="x"), *sites], train_links=str(file),
                   num_labels=9, split="city", holdout=["x"], fractions=(1.0, 0.0, 0.0))  # fmt: skip
    assert len(module.sides["train"]) == 9
    assert set(module.sides["train"].links - 30) < set(chosen)
    module = build(folder, sites, train_links=str(file))
    assert np.array_equal(module.sides["train"].links, chosen)
    assert np.array_equal(module.sides["test"].links, whole.sides["test"].links)
    assert module.describe()["train_links"] == str(file)
    save_links(file, sites, whole.sides["test"].links[:3])
    with pytest.raises(
        InputError, match=r"3 of the 3 links that .* names are not on the train side, first row .* of site"
    ):
        build(folder, sites, train_links=str(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"nowhere": [1]}', "names the site nowhere, which the data lack"),
        ('{"munich_twin_bs0": [1, 200]}', "names row 200 of site munich_twin_bs0, which has 200 links"),
        ('{"munich_twin_bs0": [-1]}', "names row -1 of site"),
        ('{"munich_twin_bs0": [0.5]}', "must be whole numbers"),
        ('{"munich_twin_bs0": ["a"]}', "cannot read links from"),
        ('["munich_twin_bs0"]', "cannot read links from"),
        ("{", "cannot read links from"),
        ("{}", "0 of the 0 links"),
    ],
)
def test_a_file_of_links_that_cannot_be_used_says_why(folder, tmp_path, content, message):
    (tmp_path / "links.json").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        build(folder, twins(), train_links=str(tmp_path / "links.json"))
    assert "\n" not in str(caught.value)


def test_other_files_of_links_are_refused(tmp_path):
    for name, message in (("no.json", "cannot read links from"), ("a.pt", "is .json or .safetensors")):
        with pytest.raises(InputError, match=message):
            read_links(tmp_path / name, twins())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_on": {"varant": "twin"}}, "data.train_on names the axis varant: choose among variant, city,"),
        ({"test_on": {"variant": "twinn"}}, r"data.test_on.variant names twinn, but the data hold target, twin"),
        ({"validate_on": {"mobility": "static"}}, "data.validate_on.mobility names static, but the data hold none"),
        ({"train_on": {"frequency": [1, 2]}}, "frequency names 1 to 2, but the data hold 28000, 3500"),
        ({"train_on": {"frequency": ["a", 2]}}, "frequency must be numbers, got 'a'"),
        ({"train_on": {"variant": []}}, "variant names nothing"),
        ({"num_labels": {"twin": 10_000}}, "num_labels.twin is 10000, but the train side holds"),
        ({"num_labels": {"twin": 0}}, "num_labels.twin must be positive, got 0"),
        ({"num_labels": {"twin": 1, "munich": 2}}, "no labels of one axis; the data hold variant target, twin;"),
        (
            {"train_on": {"city": "munich"}, "split": "city", "holdout": ["munich"]},
            "that data.train_on lets through on the train side of the `city` split: change .* or data.train_on,",
        ),
        ({"guard": -1.0}, "guard must not be negative"),
        ({"guard": 1e4, "split": "spatial"}, "is 10000 m from those of other sides: lower data.guard"),
    ],
)  # fmt: skip
def test_sides_that_cannot_be_made_say_why(folder, settings, message):
    with pytest.raises(InputError, match=message):
        build(folder, twins(), **settings)


def test_the_guard_band_is_dropped_and_counted(folder):
    told = {}
    for guard in (0.0, 4.0, None):
        given = {} if guard is None else {"guard": guard}
        module = build(folder, twins(), split="spatial", **given)
        told[guard] = module.describe()
        spot = [module.sides[side].positions(0)[:, :2].double() for side in ("train", "validation", "test")]
        assert torch.cdist(spot[0], torch.cat(spot[1:])).min() >= told[guard]["guard"]
    assert told[None]["guard"] == 5
    assert 0 == told[0.0]["dropped_guard"] < told[4.0]["dropped_guard"] < told[None]["dropped_guard"]
    for facts in told.values():
        assert facts["n_train"] + facts["dropped_guard"] == told[0.0]["n_train"]
        assert facts["n_test"] == told[0.0]["n_test"]
    assert "guard" not in build(folder, twins()).describe(), "only blocks of the map have edges"


def test_labels_beyond_the_train_side_say_what_the_guard_band_dropped(folder):
    facts = build(folder, twins(), split="spatial").describe()
    held, dropped = facts["n_train"], facts["dropped_guard"]
    message = (
        f"holds {held} links, and the guard band has dropped {dropped}: ask for fewer, lower data.guard from 5 m, or"
    )
    with pytest.raises(InputError, match=message):
        build(folder, twins(), split="spatial", num_labels=held + 1)
    assert len(build(folder, twins(), split="spatial", num_labels=held).sides["train"]) == held
    half = f"num_labels.twin is 9999, but the train side holds {held // 2} links, and .* dropped {dropped // 2}: "
    with pytest.raises(InputError, match=half):  # each link of the twin has one in the target
        build(folder, twins(), split="spatial", num_labels={"twin": 9999})
    with pytest.raises(InputError, match=half.replace("num_labels.twin", "num_labels")):
        build(folder, twins(), split="spatial", num_labels=9999, train_on={"variant": "twin"})
    with pytest.raises(InputError, match=r"holds \d+ links: ask for fewer, or raise the share"):
        build(folder, twins(), num_labels=9999)


def test_rows_of_several_stations_are_in_sight_of_any(folder):
    sites = [site for site in twins() if site.domain["variant"] == "twin"]
    module = build(folder, sites, base_stations=2, train_on={"los": 1}, test_on={"los": 0})
    for side, seen in (("train", 1), ("test", 0)):
        batch = module.finish(module.sides[side].__getitems__(range(len(module.sides[side]))))
        assert set(batch["los"].tolist()) == {seen}


def test_links_of_sites_of_one_name_are_not_mixed_up(tmp_path):
    sites = twins()
    sites[1] = dataclasses.replace(sites[1], name=sites[0].name)  # such as two bands of one scene
    with pytest.raises(InputError, match="2 sites of the data are named munich_twin_bs0"):
        save_links(tmp_path / "a.json", sites, [3, 1, 205])
    save_links(tmp_path / "a.json", sites, [405])
    assert read_links(tmp_path / "a.json", sites).tolist() == [405]
    (tmp_path / "b.json").write_text('{"munich_twin_bs0": [1]}')
    with pytest.raises(InputError, match="2 sites of the data are named munich_twin_bs0"):
        read_links(tmp_path / "b.json", sites)


def test_a_file_is_plain_json(tmp_path):
    sites = twins()
    save_links(tmp_path / "a.json", sites, [3, 1, 205])
    assert json.loads((tmp_path / "a.json").read_text()) == {"munich_twin_bs0": [1, 3], "munich_twin_bs1": [5]}
