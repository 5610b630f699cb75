import pytest

from datamodules import WAIRD, DeepMIMO, DeepMIMOCatalogue, DeepMIMOv3, Recorded

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


def test_a_catalogue_lies_with_its_scenarios(monkeypatch, tmp_path):
    monkeypatch.setenv("CSI_DATA", str(tmp_path))
    assert DeepMIMOCatalogue().root == DeepMIMO("a").root
