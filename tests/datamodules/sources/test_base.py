import pytest

from datamodules import WAIRD, DeepMIMO, DeepMIMOCatalogue, DeepMIMOv3, Recorded
from datamodules.errors import InputError
from datamodules.module import ChannelDataModule
from datamodules.sites.inventory import cache_folder
from datamodules.sites.link_file import read_links
from datamodules.sources.base import Recipe
from tests.datamodules.rays import random_site

SOURCES = {
    "deepmimo": lambda **where: DeepMIMO("a", **where),
    "deepmimo_v3": lambda **where: DeepMIMOv3("a", **where),
    "recorded": lambda **where: Recorded("a", **where),
    "waird": WAIRD,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_data_lie_where_the_user_says_by_argument_or_by_environment(kind, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CSI_DATA", "~/all")
    assert SOURCES[kind]().root == tmp_path / "all" / kind
    assert SOURCES[kind](root="~/own").root == tmp_path / "own"
    monkeypatch.delenv("CSI_DATA")
    assert str(SOURCES[kind]().root) == f"data/{kind}"


def test_sites_lie_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CSI_CACHE", "~/sites")
    assert Recorded("a").cache == cache_folder(None) == tmp_path / "sites"
    assert Recorded("a", cache="~/own").cache == tmp_path / "own"
    monkeypatch.setenv("CSI_CACHE", "")
    assert str(Recorded("a").cache) == str(cache_folder(None)) == "data/sites"


def test_files_of_a_home_folder_are_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "campaign").mkdir()
    for name in "ab":
        (tmp_path / "campaign" / f"{name}.safetensors").touch()
    names = [name for recipe in Recorded("~/campaign/*.safetensors").recipes() for name in recipe.names]
    assert names == ["a", "b"]
    (tmp_path / "links.json").write_text('{"site": [3, 1]}')
    assert read_links("~/links.json", [random_site("site", 5)]).tolist() == [1, 3]


def test_no_source_is_named():
    with pytest.raises(InputError, match=r"data\.source names no source"):
        ChannelDataModule([])


@pytest.mark.parametrize("name", ["a/b", "../a", ".a", ""])
def test_a_site_is_named_by_what_can_name_a_folder(name):
    with pytest.raises(InputError, match="cannot name a site"):
        Recipe((name,), {}, lambda work: [])


def test_a_catalogue_lies_with_its_scenarios(monkeypatch, tmp_path):
    monkeypatch.setenv("CSI_DATA", str(tmp_path))
    assert DeepMIMOCatalogue().root == DeepMIMO("a").root
