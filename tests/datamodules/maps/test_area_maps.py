"""Maps are kept beside the sites."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datamodules.maps import area_maps
from datamodules.maps.area_maps import AreaMaps
from datamodules.sites.environment import Environment
from tests.datamodules.rays import random_site
from tests.datamodules.test_module import build

SITES = [random_site("a", 10, area="x"), random_site("b", 10, seed=1, area="y"), random_site("c", 10, area="x")]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Environment]:
    """What is drawn, from here on."""
    seen: list[Environment] = []
    draw: Callable[..., tuple[torch.Tensor, float]] = area_maps.map_image

    def watched(environment: Environment, *args: object) -> tuple[torch.Tensor, float]:
        seen.append(environment)
        return draw(environment, *args)

    monkeypatch.setattr(area_maps, "map_image", watched)
    return seen


def test_a_second_setup_draws_nothing(tmp_path: Path, drawn: list[Environment]) -> None:
    maps = [build(tmp_path, SITES, extras=["map", "geometry"])._make.maps for _ in range(2)]
    assert len(drawn) == 2  # sites a and c are of one area
    for one, other in zip(*(vars(each).values() for each in maps), strict=True):
        assert torch.equal(one, other)


def test_what_decides_a_map_decides_its_file(tmp_path: Path, drawn: list[Environment]) -> None:
    for size, edges in ((64, True), (32, True), (64, False), (64, True)):
        assert torch.equal(AreaMaps.draw(SITES, size, edges, tmp_path).images, AreaMaps.draw(SITES, size, edges).images)
    assert len(drawn) == 4 * 2 + 3 * 2  # without a cache each time, with one for each of three kinds


@pytest.mark.parametrize("harm", [
    lambda data: data[: len(data) // 2],
    lambda data: b"",
    lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
    lambda data: data.replace(b"image", b"other"),
], ids=["cut", "empty", "a bit", "a name"])  # fmt: skip
def test_a_damaged_map_is_drawn_anew(tmp_path: Path, drawn: list[Environment], harm: Callable[[bytes], bytes]) -> None:
    whole = AreaMaps.draw(SITES, cache=tmp_path)
    file = min((tmp_path / "maps").iterdir())
    sound = file.read_bytes()
    file.write_bytes(harm(sound))
    drawn.clear()
    assert torch.equal(AreaMaps.draw(SITES, cache=tmp_path).images, whole.images)
    assert len(drawn) == 1
    assert file.read_bytes() == sound


def test_a_map_that_cannot_be_kept_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    assert torch.equal(AreaMaps.draw(SITES, cache=tmp_path).images, AreaMaps.draw(SITES).images)
    assert list((tmp_path / "maps").iterdir()) == []
