"""Areas: what a window holds, what is traced in it, and windows that cannot be."""

import numpy as np
import pytest
import shapely
import torch

from datamodules.errors import InputError
from datamodules.sides.splits import split_links
from datamodules.sources.llvm import use_llvm
from datamodules.sources.raytracing import scenes, tracing
from datamodules.sources.raytracing.areas import Areas
from datamodules.sources.raytracing.ray_launching import StreetTracer, horizon_lattice, towards_horizon
from datamodules.sources.raytracing.scene_geometry import open_geometry
from tests.datamodules.town import SIDE, write_town
from tests.raytracing import requires_sionna, skip_without_sionna, write_scene

FEW = {"areas_per_city": 3, "size": (60.0, 100.0), "base_stations": 2, "users": 8, "samples": 2000}


@pytest.fixture(scope="module")
def towns(tmp_path_factory):
    skip_without_sionna()
    folder = tmp_path_factory.mktemp("towns")
    return [str(write_town(folder)), str(write_town(folder, houses=3, name="village"))]


@pytest.fixture(scope="module")
def sites(towns, tmp_path_factory):
    return Areas(towns, cache=str(tmp_path_factory.mktemp("cache")), **FEW).sites()


def test_lattice_points_everywhere_and_mostly_along_the_street():
    azimuth, height = horizon_lattice(20_000).T
    cosine = 1 - 2 * height
    assert np.isclose(np.mean(np.abs(cosine) < np.sin(np.radians(7.2))), 0.5, atol=0.01)
    assert cosine.min() < -0.999
    assert cosine.max() > 0.999
    np.testing.assert_allclose(np.histogram(azimuth, 36, (0, 1))[0], 20_000 / 36, rtol=0.02)
    assert len(np.unique(horizon_lattice(20_000), axis=0)) == 20_000


@requires_sionna
def test_lattice_is_what_sionna_shoots_along_and_only_then():
    use_llvm()
    import mitsuba as mi
    import sionna.rt  # noqa: F401
    from sionna.rt.path_solvers import sb_deterministic

    even = sb_deterministic.fibonacci_lattice
    with towards_horizon():
        ray = mi.warp.square_to_uniform_sphere(sb_deterministic.fibonacci_lattice(1000))
    assert sb_deterministic.fibonacci_lattice is even
    azimuth, height = horizon_lattice(1000).T
    np.testing.assert_allclose(ray.z, 1 - 2 * height, atol=1e-6)
    np.testing.assert_allclose(np.asarray(ray.x), np.cos(2 * np.pi * azimuth) * np.hypot(ray.x, ray.y), atol=1e-5)


def test_each_area_is_its_window(sites, towns):
    assert [site.name for site in sites][:4] == ["town_0000_bs0", "town_0000_bs1", "town_0001_bs0", "town_0001_bs1"]
    assert [site.name for site in sites][-1] == "village_0002_bs1"
    for site in sites:
        geometry = open_geometry(scenes.find(towns[site.city == "village"]))
        x_min, y_min, x_max, y_max = site.environment.bounds
        assert x_max - x_min == pytest.approx(y_max - y_min)
        assert 60 <= x_max - x_min <= 100
        assert min(x_min, y_min) >= -SIDE / 2
        assert max(x_max, y_max) <= SIDE / 2
        window = shapely.box(*site.environment.bounds)
        assert all(polygon.intersects(window) for polygon in site.environment.polygons)
        assert len(site.environment.heights) < len(geometry.buildings.heights)
        users = site.paths.position.double().numpy()
        stations = site.bs_position.double().numpy()[None]
        np.testing.assert_allclose(users[:, 2], 1.5, atol=1e-3)
        np.testing.assert_allclose(stations[:, 2], 6.0, atol=1e-3)
        for spots in (users, stations):
            assert geometry.is_outdoors(spots[:, :2]).all()
            assert shapely.contains_xy(window, spots[:, 0], spots[:, 1]).all()
        assert site.carrier_frequency == 28e9
        assert site.domain == {"scenario": site.city, "frequency": 28e9}
        assert site.provenance["source"] == "areas"


def test_base_stations_of_an_area_share_its_users_and_nothing_else(sites):
    for first, second in zip(sites[::2], sites[1::2], strict=True):
        assert first.area == second.area
        assert torch.equal(first.paths.position, second.paths.position)
        assert not torch.equal(first.bs_position, second.bs_position)
    assert len({site.area for site in sites}) == 6
    assert len({site.paths.position.numpy().tobytes() for site in sites}) == 6


def test_line_of_sight_is_what_the_houses_leave(sites, towns):
    """An independent look: a segment above no footprint sees, as all houses are higher than both of its ends."""
    states = set()
    for site in sites:
        union = shapely.union_all(site.environment.polygons)
        for user, los in zip(site.paths.position.numpy(), site.paths.los.tolist(), strict=True):
            line = shapely.LineString([site.bs_position.numpy()[:2], user[:2]])
            assert (los == 1) == (not line.intersects(union))
            states.add(los)
    assert {0, 1} <= states


def test_more_areas_leave_the_first_as_they_are(towns):
    few, many = (Areas(towns, **{**FEW, "areas_per_city": count}) for count in ([1, 2], [5, 2]))
    names = [(recipe.names, recipe.digest) for recipe in few.recipes()]
    assert set(names) < {(recipe.names, recipe.digest) for recipe in many.recipes()}
    other = Areas(towns, **{**FEW, "seed": 1}).recipes()[0]
    assert other.digest != few.recipes()[0].digest


def test_holding_out_a_city(sites):
    train, validation, test = split_links(sites, "city", (0.8, 0.2, 0.0), holdout=["village"])
    city = np.repeat([site.city for site in sites], [len(site) for site in sites])
    assert set(city[test]) == {"village"}
    assert set(city[train | validation]) == {"town"}


def test_areas_that_overlap_stay_on_one_side(sites):
    side = np.argmax(split_links(sites, "area", (1.0, 0.0, 0.0), holdout=["village_0001"]), axis=0)
    starts = np.cumsum([0, *(len(site) for site in sites)])[:-1]
    boxes = [shapely.box(*shapely.MultiPoint(site.paths.position[:, :2].numpy()).bounds) for site in sites]
    overlaps = 0
    for i, a in enumerate(sites):
        for j, b in enumerate(sites[:i]):
            if a.city == b.city and a.area != b.area and boxes[i].intersects(boxes[j]):
                overlaps += 1
                assert side[starts[i]] == side[starts[j]]
    assert overlaps > 0
    assert set(side) == {0, 2}


@requires_sionna
def test_bent_rays_find_more_than_even_ones(towns):
    areas = Areas(towns[:1], **{**FEW, "users": 16})
    [file] = areas.tracers
    _, stations, users = areas.lay_out(open_geometry(file), 0)
    facts = {"frequency": 28e9, "max_depth": 3, "diffraction": True}
    power = {
        name: np.stack([paths.power.numpy() for paths in kind(file, **facts, samples=samples)(stations, users)])
        for name, kind, samples in (
            ("all", tracing.Tracer, 60_000),
            ("even", tracing.Tracer, 2000),
            ("bent", StreetTracer, 2000),
        )
    }
    served = power["all"] > 0
    kept = {name: np.minimum(power[name][served] / power["all"][served], 1).mean() for name in ("even", "bent")}
    assert kept["bent"] > kept["even"]
    assert power["bent"].sum() == pytest.approx(power["all"].sum(), rel=0.02)


@requires_sionna
def test_users_beyond_one_call_are_traced_in_several(towns, monkeypatch):
    areas = Areas(towns[:1], **FEW)
    [(file, tracer)] = areas.tracers.items()
    _, stations, users = areas.lay_out(open_geometry(file), 0)
    whole = tracer(stations, users)
    monkeypatch.setattr("datamodules.sources.raytracing.ray_launching._CALL_SIZE", 2000 * 3 * 2 * 3)
    for a, b in zip(whole, tracer(stations, users), strict=True):
        assert torch.equal(a.los, b.los)
        assert torch.equal(a.position, b.position)
        seen = a.los == 1
        torch.testing.assert_close(a.power[seen], b.power[seen], rtol=0.05, atol=0)


@requires_sionna
def test_scattering_shoots_evenly(towns, monkeypatch):
    monkeypatch.setattr("datamodules.sources.raytracing.ray_launching.horizon_lattice", None)
    areas = Areas(towns[:1], **{**FEW, "scattering": 0.3, "max_depth": 1})
    [(file, tracer)] = areas.tracers.items()
    _, stations, users = areas.lay_out(open_geometry(file), 0)
    assert tracer(stations, users)[0].mask.sum() > 100


@requires_sionna
def test_no_window_without_houses_or_without_streets(tmp_path):
    field, block = tmp_path / "field", tmp_path / "block"
    for folder, boxes in ((field, {}), (block, {"house": (-49, -49, 49, 49, -1, 20)})):
        folder.mkdir()
        source = Areas([str(write_scene(folder, boxes))], areas_per_city=1, size=(50, 90), cache=str(tmp_path))
        with pytest.raises(
            InputError, match=r"no window of 50 to 90 m in scene own has buildings and outdoor ground .* size"
        ):
            source.sites()
        assert not list(tmp_path.glob("own_*"))


@requires_sionna
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"areas_per_city": [1, 2, 3]}, "areas_per_city has 3 numbers for 1 cities"),
        ({"areas_per_city": 0}, "areas_per_city must be at least 1, got 0"),
        ({"places": ["munich"]}, "`places` is the old name of `cities`"),
        ({"users": 0}, "users must be at least 1"),
        ({"size": (100, 50)}, "size must be the shortest and the longest"),
        ({"scattering": 2}, r"scattering must lie in \[0, 1\]"),
        ({"bs_height": -1}, "bs_height must be positive"),
        ({"cities": ["nowhere"]}, "unknown scene 'nowhere'"),
        ({"cities": ["etoile", "etoile"]}, "share a name"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(InputError, match=message):
        Areas(**{"cities": ["etoile"], **arguments})


@requires_sionna
def test_the_old_names_of_its_arguments_are_read():
    with pytest.warns(FutureWarning) as warned:
        old = Areas(places=["munich", "etoile"], areas_per_place=[1, 2])
    assert [str(w.message).split()[-1] for w in warned] == ["cities", "areas_per_city"]
    new = Areas(["munich", "etoile"], [1, 2])
    assert [r.parameters for r in old.recipes()] == [r.parameters for r in new.recipes()]


@requires_sionna
def test_a_scene_smaller_than_any_window(towns, tmp_path):
    with pytest.raises(InputError, match="too little for a window of 500 m: lower size"):
        Areas(towns[:1], areas_per_city=1, size=(500, 600), cache=str(tmp_path)).sites()
