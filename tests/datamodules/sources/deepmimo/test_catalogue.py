"""The list of CSI-CLIP's scenarios, and what is done about those that are missing."""

from pathlib import Path

import pytest
import yaml

from datamodules.errors import DatasetNotFoundError, InputError
from datamodules.module import ChannelDataModule
from datamodules.sources.deepmimo import catalogue
from datamodules.sources.deepmimo.catalogue import DeepMIMOCatalogue, read_catalogue

FILE = Path(catalogue.__file__).with_name("csiclip_scenarios.yaml")


@pytest.fixture
def own(street, tmp_path):
    """A list of the test scenario, under its second name, and one that is not there."""
    file = tmp_path / "own.yaml"
    file.write_text("- {name: one, scenarios: [street_3p5, Street]}\n- {name: two, scenarios: [avenue]}\n")
    return {"file": str(file), "root": str(street), "cache": str(tmp_path / "sites")}


def test_the_paper_list_adds_up():
    entries = yaml.safe_load(FILE.read_text())
    assert len(entries) == len({entry["name"] for entry in entries}) == 35
    assert 700_000 < sum(entry["train"] + entry["validation"] for entry in entries) < 710_000
    assert {entry["evidence"] for entry in entries} == {"lists", "issues", "script", "guess"}
    assert all(1e9 < entry["frequency"] < 1e12 for entry in entries)
    assert sum(entry["name"].startswith("city_") for entry in entries) == 20
    scenarios = [name for names in read_catalogue(FILE).values() for name in names]
    assert len(set(scenarios)) == len(scenarios)


def test_missing_scenarios_are_named_or_left_out(own):
    with pytest.raises(
        DatasetNotFoundError, match=r"1 of 2 DeepMIMO scenarios are not in .*: avenue\. Put .* set root"
    ):
        DeepMIMOCatalogue(**own).recipes()
    recipes = DeepMIMOCatalogue(**own, missing="skip").recipes()
    assert [recipe.names for recipe in recipes] == [("street_bs1",), ("street_bs2",)]
    with pytest.raises(DatasetNotFoundError, match="1 of 1"):
        DeepMIMOCatalogue(**own, names=["two"], missing="skip").recipes()


def test_missing_scenarios_are_downloaded_when_asked_for(own, monkeypatch):
    asked = []
    monkeypatch.setattr("datamodules.sources.deepmimo.v4._fetch", lambda scenario, folder: asked.append(scenario))
    with pytest.raises(DatasetNotFoundError, match="'avenue'"):
        DeepMIMOCatalogue(**own, missing="download").recipes()
    assert asked == ["avenue"]


def test_a_stratified_sample_is_drawn_from_it(own):
    source = DeepMIMOCatalogue(**own, names=["one"])
    data = ChannelDataModule(source, split="random", max_per_area=50, fractions=(0.8, 0.2, 0.0), seed=1)
    data.prepare_data()
    data.setup()
    assert len(data.sides["train"]) + len(data.sides["validation"]) == 50


def test_lists_that_cannot_be(own, tmp_path):
    with pytest.raises(InputError, match="no scenario three in the list: choose among one, two"):
        DeepMIMOCatalogue(**own, names=["three"])
    with pytest.raises(DatasetNotFoundError, match=r"none\.yaml does not exist"):
        read_catalogue(tmp_path / "none.yaml")
    for text in ("one: two", "- {name: one}", "- [", "- {name: one, scenarios: [a/b]}"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(InputError, match=r"catalogue .*bad.yaml|must be a name"):
            read_catalogue(tmp_path / "bad.yaml")
