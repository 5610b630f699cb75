"""Maps and geometry vectors of env_channel section IV-A, by hand."""

from typing import Any

import numpy as np
import pytest
import shapely
import torch
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.maps.area_maps import AreaMaps
from datamodules.maps.raster import BS_PIXEL, USER_PIXEL, Entry, geometry, map_frame, map_image, rasterize, trace
from datamodules.sites.environment import Environment
from datamodules.sites.paths import Paths
from datamodules.sites.site import Site

SQUARE = np.array([[16.0, 8.0], [48.0, 8.0], [48.0, 24.0], [16.0, 24.0]])


def place(*footprints: NDArray[Any], bounds: tuple[float, float, float, float]) -> Environment:
    return Environment(footprints, np.full(len(footprints), 10.0), bounds)


def random_buildings(count: int, extent: tuple[float, float]) -> list[NDArray[Any]]:
    rng = np.random.default_rng(1)
    buildings = []
    for i in range(count):
        turn, (w, h) = rng.uniform(0, np.pi), rng.uniform(8, 40, 2) / 2
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        corners = np.array([[-w, -h], [w, -h], [w, h], [-w, h]]) @ rotation + rng.uniform((0, 0), extent)
        buildings.append(corners if i % 2 else corners[::-1])  # both senses of rotation, overlapping
    return buildings


@pytest.mark.parametrize("reverse", [False, True])
def test_a_rectangle_becomes_its_outline(reverse: bool) -> None:
    # 64 m x 32 m is filled to 64 m x 64 m with 16 m of open ground above and below, at one pixel a metre
    environment = place(SQUARE[::-1] if reverse else SQUARE, bounds=(0, 0, 64, 32))
    filled = torch.zeros(64, 64)
    filled[24:40, 16:48] = 1  # y from 8 to 24 m lies 24 to 40 m below the top of the square
    outline = filled.clone()
    outline[25:39, 17:47] = 0
    image, scale = map_image(environment)
    assert scale == 1
    assert image.shape == (1, 64, 64)
    assert image.dtype == torch.float32
    assert torch.equal(image[0], outline)
    assert torch.equal(map_image(environment, edges=False)[0][0], filled)


def test_resolution_changes_the_scale_and_not_the_place() -> None:
    environment = place(SQUARE + 100, bounds=(100, 100, 164, 132))
    image, scale = map_image(environment, size=32, edges=False)
    assert scale == 0.5
    expected = torch.zeros(32, 32)
    expected[12:20, 8:24] = 1
    assert torch.equal(image[0], expected)


def test_a_pixel_is_building_when_half_of_it_is() -> None:
    thin = np.array([[0.0, 0.0], [64.0, 0.0], [64.0, 0.5], [0.0, 0.5]])
    thinner = thin * (1, 0.7) + (0, 10)
    image, _ = map_image(place(thin, thinner, bounds=(0, 0, 64, 64)))
    assert image.sum() == 64
    assert image[0, 63].all()


def test_buildings_beyond_the_bounds_are_not_drawn_into_the_filling() -> None:
    tall = np.array([[10.0, -50.0], [20.0, -50.0], [20.0, 90.0], [10.0, 90.0]])
    image, _ = map_image(place(tall, bounds=(0, 0, 64, 32)), edges=False)
    assert image.sum() == 10 * 32
    assert image[0, 16:48, 10:20].all()


def test_open_fields_and_single_points_have_maps() -> None:
    image, scale = map_image(Environment.empty(np.array([[3.0, 4.0, 1.5]])))
    assert not image.any()
    assert scale == 64
    offset, _ = map_frame(Environment.empty(np.array([[3.0, 4.0, 1.5]])))
    assert offset.tolist() == [2.5, 4.5]


@pytest.mark.parametrize(("size", "bounds"), [(0, (0, 0, 1, 1)), (64, (0, 0, float("nan"), 1))])
def test_maps_that_cannot_be_drawn_are_refused(size: int, bounds: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match="a map needs"):
        map_image(place(bounds=bounds), size=size)


def test_rasterizing_is_a_point_in_polygon_test() -> None:
    buildings = random_buildings(60, (200, 150))
    x, y = np.meshgrid(np.arange(400) / 2 + 0.25, 150 - np.arange(300) / 2 - 0.25)
    expected = shapely.contains_xy(shapely.union_all([shapely.Polygon(b) for b in buildings]), x, y)
    np.testing.assert_array_equal(rasterize(buildings, (0, 0, 200, 150), (300, 400)), expected)


def test_tracing_undoes_rasterizing() -> None:
    bounds = (10.0, 20.0, 210.0, 170.0)
    mask = rasterize([b + np.array([10, 20]) for b in random_buildings(12, (200, 150))], bounds, (300, 400))
    outlines = trace(mask, bounds)
    again = rasterize(outlines, bounds, (300, 400))
    assert (again != mask).mean() < 0.01
    assert sum(len(outline) for outline in outlines) < 20 * len(outlines)


@pytest.mark.parametrize(
    "rows",
    [
        ["#"],
        ["#.", ".#"],
        ["######", "#....#", "#.##.#", "#....#", "######"],  # a courtyard with a building in it
        ["######", "#.##.#", "#.##.#", "######"],  # two courtyards
        ["......", ".####.", ".#....", ".####.", "......"],
    ],
)
def test_small_buildings_and_courtyards_are_kept_exactly(rows: list[str]) -> None:
    mask = np.array([[pixel == "#" for pixel in row] for row in rows])
    bounds = (0.0, 0.0, 0.5 * mask.shape[1], 0.5 * mask.shape[0])
    np.testing.assert_array_equal(rasterize(trace(mask, bounds), bounds, (len(rows), len(rows[0]))), mask)


def test_an_open_mask_has_no_outline() -> None:
    assert trace(np.zeros((3, 4), dtype=bool), (0, 0, 4, 3)) == ()


def test_geometry_by_hand() -> None:
    # the frame of a 64 m x 32 m area at (100, 200): 64 m x 64 m with its corner at (100, 248)
    offset, scale = map_frame(place(bounds=(100, 200, 164, 232)))
    assert (offset.tolist(), scale) == ([100, 248], 1)
    bs, ue = torch.tensor([[116.0, 216.0, 6.0]]).expand(3, 3), torch.tensor([[164.0, 200.0, 1.5]]).expand(3, 3)
    los = torch.tensor([1, 0, -1], dtype=torch.int8)
    vector = geometry(bs, ue, los, offset.expand(3, 2), torch.full((3,), scale))
    row = [0.25, 0.5, 0.6, 1.0, 0.75, 0.15]
    torch.testing.assert_close(
        vector, torch.tensor([[*row, 0.0, 100 / 64], [*row, 1.0, 100 / 64], [*row, 0.5, 100 / 64]])
    )
    hidden = geometry(bs, ue, los, offset.expand(3, 2), torch.full((3,), scale), with_los=False)
    assert hidden[:, 6].tolist() == [0.5] * 3
    assert torch.equal(hidden[:, :6], vector[:, :6])


def test_a_user_at_a_corner_is_at_that_pixel_of_the_map() -> None:
    environment = place(SQUARE, bounds=(0, 0, 64, 32))
    image, scale = map_image(environment, size=64)
    offset, _ = map_frame(environment, size=64)
    corner = torch.tensor([[16.5, 23.5, 1.5]])  # half a metre inside the upper left corner
    vector = geometry(corner, corner, torch.ones(1), offset[None], torch.tensor([scale]), size=64)
    column, row = (vector[0, :2] * 64).floor().long().tolist()
    assert image[0, row, column] == 1
    assert image[0, row - 1, column] == image[0, row, column - 1] == 0


def test_geometry_does_not_depend_on_the_resolution() -> None:
    environment = place(bounds=(0, 0, 300, 200))
    points = torch.tensor([[10.0, 20.0, 6.0]])
    vectors = []
    for size in (32, 64):
        offset, scale = map_frame(environment, size)
        vectors.append(geometry(points, points, torch.ones(1), offset[None], torch.tensor([scale]), size))
    torch.testing.assert_close(*vectors)


def test_maps_are_drawn_once_an_area_and_indexed_in_batches() -> None:
    position = torch.tensor([[1.0, 2.0, 1.5]])
    zeros = torch.zeros(1, 1)
    angles = torch.zeros(1, 1, 2)
    paths = Paths.build(gain=zeros, delay=zeros, aod=angles, aoa=angles, position=position, bounces=zeros)
    places = {"a": place(SQUARE, bounds=(0, 0, 64, 32)), "b": place(SQUARE, bounds=(0, 0, 128, 128))}
    bs = torch.tensor([16.0, 16.0, 6.0])
    sites = [Site(f"{area}{i}", paths, bs, 28e9, area, area, places[area]) for i, area in enumerate("aba")]
    maps = AreaMaps.draw(sites).to("cpu")
    assert maps.images.shape == (2, 1, 64, 64)
    assert maps.images.dtype == torch.uint8
    batch = torch.tensor([1, 2, 0, 1])
    for image, site in zip(maps.map(batch), batch, strict=True):
        assert torch.equal(image, map_image(sites[site].environment)[0])
    ones = torch.ones(4)
    vectors = maps.geometry(batch, bs.expand(4, 3), position.expand(4, 3), ones)
    torch.testing.assert_close(vectors[:, 7], torch.tensor([100 / 128, 100 / 64, 100 / 64, 100 / 128]))
    torch.testing.assert_close(vectors[1, :2], torch.tensor([0.25, 0.5]))
    torch.testing.assert_close(vectors[0, :2], torch.tensor([0.125, 0.875]))


def test_the_entries_of_the_vector_have_names():
    offset, scale = map_frame(place(bounds=(0, 0, 100, 100)))
    bs, ue = torch.tensor([[10.0, 80.0, 6.0]]), torch.tensor([[30.0, 60.0, 1.5]])
    (vector,) = geometry(bs, ue, torch.zeros(1), offset[None], torch.tensor([scale]))
    expected = {
        Entry.BS_COLUMN: 0.1, Entry.BS_ROW: 0.2, Entry.BS_HEIGHT: 0.6, Entry.USER_COLUMN: 0.3, Entry.USER_ROW: 0.4,
        Entry.USER_HEIGHT: 0.15, Entry.LOS: 1.0, Entry.SCALE: 1.0,
    }  # fmt: skip
    assert {entry: round(float(vector[entry]), 4) for entry in Entry} == expected
    assert vector[BS_PIXEL].tolist() == vector[[Entry.BS_COLUMN, Entry.BS_ROW]].tolist()
    assert vector[USER_PIXEL].tolist() == vector[[Entry.USER_COLUMN, Entry.USER_ROW]].tolist()
