"""Ray tracing: closed forms, who stands where, resuming, and the errors a user can make."""

import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import shapely
import torch

from datamodules.channel.ofdm import SPEED_OF_LIGHT
from datamodules.errors import InputError
from datamodules.sources.raytracing import scenes, tracing
from datamodules.sources.raytracing.scene_geometry import open_geometry
from datamodules.sources.raytracing.sionna_rt import SionnaRT
from tests.raytracing import requires_sionna, skip_without_sionna, write_scene

FREQUENCY = 3.5e9
STATION = np.array([[-10.0, 5.0, 20.0]])
CANYON = {"scene": "simple_street_canyon", "base_stations": [[-20, 0, 12]], "samples": 5000, "max_depth": 2}
HOUSE = (10.0, -20.0, 30.0, 20.0, -1.0, 15.0)


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """Flat ground and nothing else."""
    skip_without_sionna()
    return write_scene(tmp_path_factory.mktemp("field"), {})


@pytest.fixture(scope="module")
def village(tmp_path_factory):
    """One house of 15 m on ground that rises by 5 % towards +x."""
    skip_without_sionna()
    return write_scene(tmp_path_factory.mktemp("village"), {"house": HOUSE}, slope=0.05)


@pytest.fixture(scope="module")
def etoile(tmp_path_factory):
    """The paper's three sectors, thinned out to some thirty users."""
    skip_without_sionna()
    cache = str(tmp_path_factory.mktemp("cache"))
    source = SionnaRT(
        "etoile", base_stations=[[0, 0, 30]], sectors=3, spacing=35, radius=120, samples=20_000, cache=cache
    )
    return source.sites()


def test_importing_the_source_imports_no_ray_tracer():
    heavy = "('sionna', 'mitsuba', 'drjit')"
    module = "datamodules.sources.raytracing.sionna_rt"
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_direct_path_has_its_closed_form(field):
    users = np.array([[30.0, 4.0, 1.5], [-10.0, -40.0, 3.0], [-45.0, 45.0, 1.5]])
    [paths] = tracing.Tracer(field, FREQUENCY, specular=False, samples=10)(STATION, users)
    step = users - STATION
    distance = np.linalg.norm(step, axis=1)
    assert paths.los.tolist() == [1, 1, 1]
    assert paths.mask.sum(1).tolist() == [1, 1, 1]
    np.testing.assert_allclose(paths.delay[:, 0], distance / SPEED_OF_LIGHT, rtol=1e-6)
    wavelength = SPEED_OF_LIGHT / FREQUENCY
    np.testing.assert_allclose(paths.gain[:, 0].abs(), wavelength / (4 * math.pi * distance), rtol=1e-5)
    # float32 delays leave a phase of 2 pi f_c tau 6e-8, some milliradians
    turned = paths.gain[:, 0].numpy() * np.exp(2j * np.pi * distance / wavelength)
    np.testing.assert_allclose(np.angle(turned), 0, atol=5e-3)
    azimuth, zenith = np.arctan2(step[:, 1], step[:, 0]), np.arccos(step[:, 2] / distance)
    np.testing.assert_allclose(paths.aod[:, 0], np.stack([azimuth, zenith], 1), atol=1e-5)
    back = np.stack([np.arctan2(-step[:, 1], -step[:, 0]), np.pi - zenith], 1)
    np.testing.assert_allclose(paths.aoa[:, 0], back, atol=1e-5)


def test_ground_reflection_takes_the_mirrored_way(field):
    users = np.array([[30.0, 5.0, 1.5]])
    [paths] = tracing.Tracer(field, FREQUENCY, samples=5000)(STATION, users)
    assert paths.bounces[0].tolist() == [0, 1]
    mirrored = np.linalg.norm(users - STATION * [1, 1, -1])
    np.testing.assert_allclose(paths.delay[0, 1], mirrored / SPEED_OF_LIGHT, rtol=1e-6)
    assert paths.gain[0, 1].abs() < paths.gain[0, 0].abs()


def test_user_that_no_path_reaches_is_kept(village):
    users = np.array([[35.0, 0.0, 3.25], [-20.0, 0.0, 0.5]])
    [paths] = tracing.Tracer(village, FREQUENCY, specular=False, samples=10)(STATION, users)
    assert paths.los.tolist() == [-1, 1]
    assert paths.gain[0].abs().sum() == 0


def test_second_station_and_scattering_add_links_and_paths(village):
    users = np.array([[-40.0, 10.0, 0.0], [-30.0, -10.0, 0.5]])
    stations = np.concatenate([STATION, [[-40.0, -30.0, 10.0]]])
    plain = tracing.Tracer(village, FREQUENCY, samples=2000, max_depth=1)(stations, users)
    rough = tracing.Tracer(village, FREQUENCY, samples=2000, max_depth=1, scattering=0.5)(stations, users)
    assert len(plain) == len(rough) == 2
    assert torch.equal(plain[0].position, plain[1].position)
    assert not torch.equal(plain[0].delay, plain[1].delay)
    assert rough[0].mask.sum() > plain[0].mask.sum()
    assert rough[0].num_paths <= 20


def test_users_stand_on_the_slope_outside_the_house(village, tmp_path):
    facts = {"base_stations": [[-10, 5, 20]], "samples": 500, "max_depth": 1, "cache": str(tmp_path)}
    [site] = SionnaRT(str(village), users="grid", window=(-49, -49, 49, 49), spacing=4, **facts).sites()
    x, y, z = site.paths.position.numpy().T
    np.testing.assert_allclose(z, 0.05 * x + 1.5, atol=2e-3)
    lattice = np.stack(np.meshgrid(np.arange(-49, 49, 4), np.arange(-49, 49, 4)), -1).reshape(-1, 2)
    indoors = (np.abs(lattice[:, 0] - 20) <= 10) & (np.abs(lattice[:, 1]) <= 20)
    assert len(site) == len(lattice) - indoors.sum()
    assert not ((np.abs(x - 20) < 10) & (np.abs(y) < 20)).any()
    [outline] = site.environment.polygons
    assert outline.symmetric_difference(shapely.box(10, -20, 30, 20)).area < 1
    np.testing.assert_allclose(site.environment.heights, 14.0, atol=0.1)
    assert (site.name, site.area, site.city) == ("own_bs0", "own", "own")


def test_no_user_of_a_city_is_indoors(etoile):
    outlines = shapely.union_all(etoile[0].environment.polygons)
    for site in etoile:
        x, y, z = site.paths.position.numpy().T
        assert not shapely.contains_xy(outlines, x, y).any()
        np.testing.assert_allclose(z, 1.5, atol=1e-3)
        assert (np.hypot(x, y) <= 120).all()
    assert len(etoile[0].environment.heights) > 20


def test_line_of_sight_is_that_of_the_profile_below(etoile):
    geometry = open_geometry(scenes.find("etoile"))
    share = np.linspace(0.001, 0.999, 400)[:, None]
    checked = []
    for site in etoile:
        for user, los in zip(site.paths.position.numpy(), site.paths.los.tolist(), strict=True):
            way = site.bs_position.numpy() * (1 - share) + user * share
            clearance = (way[:, 2] - geometry.surface(way[:, :2])).min()
            # grazing rays are left to the ray tracer
            if abs(clearance) > 0.3:
                assert (los == 1) == (clearance > 0)
                checked.append(los)
    assert len(checked) > 20
    assert set(checked) >= {1}
    assert min(checked) < 1


def test_three_sectors_share_out_the_users(etoile):
    assert [site.name for site in etoile] == ["etoile_bs0_s0", "etoile_bs0_s1", "etoile_bs0_s2"]
    assert {site.area for site in etoile} == {"etoile"}
    assert len(torch.cat([site.paths.position for site in etoile]).unique(dim=0)) == sum(map(len, etoile)) > 25
    for i, site in enumerate(etoile):
        assert site.bs_orientation[0].item() == pytest.approx(2 * math.pi * i / 3)
        x, y = site.paths.position[:, :2].numpy().T
        off = (np.arctan2(y, x) - 2 * np.pi * i / 3 + np.pi) % (2 * np.pi) - np.pi
        assert np.abs(off).max() <= np.pi / 3 + 1e-5


def test_drawn_users_and_stations_are_repeatable(tmp_path):
    skip_without_sionna()
    facts = {"users": "random", "num_users": 20, "base_stations": 2, "samples": 500, "max_depth": 1, "seed": 3}
    geometry = open_geometry(scenes.find("simple_street_canyon"))
    drawn = {}
    for mount in ("roof", "street"):
        sites = SionnaRT("simple_street_canyon", bs_mount=mount, **facts, cache=str(tmp_path / mount)).sites()
        stations = torch.stack([site.bs_position for site in sites]).numpy()
        np.testing.assert_allclose(stations[:, 2] - geometry.surface(stations[:, :2]), 5.0, atol=1e-2)
        assert (geometry.is_outdoors(stations[:, :2]) == (mount == "street")).all()
        drawn[mount] = sites[0].paths.position
    assert torch.equal(drawn["roof"], drawn["street"])
    assert geometry.is_outdoors(drawn["roof"][:, :2].numpy()).all()


@requires_sionna
def test_given_points_keep_their_order(tmp_path):
    points = np.array([[5.0, 0.0, 2.0], [-40.0, 3.0, 1.0]])
    np.save(tmp_path / "points.npy", points)
    np.savetxt(tmp_path / "points.csv", points[:, :2], delimiter=",")
    facts = {**CANYON, "users": "points", "cache": str(tmp_path / "cache")}
    [with_z] = SionnaRT(**facts, points=str(tmp_path / "points.npy")).sites()
    np.testing.assert_allclose(with_z.paths.position, points)
    # the canyon's floor lies at -0.03 m
    [without] = SionnaRT(**facts, points=str(tmp_path / "points.csv")).sites()
    np.testing.assert_allclose(without.paths.position, [[5, 0, 1.5], [-40, 3, 1.5]], atol=0.04)


@requires_sionna
def test_points_of_other_shapes_are_other_sites():
    flat = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    digests = {
        recipe.digest
        for points in (flat, np.reshape(flat, (2, 3)).tolist())
        for recipe in SionnaRT(**CANYON, users="points", points=points).recipes()
    }
    assert len(digests) == 2


@requires_sionna
def test_killed_run_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    facts = {**CANYON, "users": "grid", "window": (-40, -8, 40, 8), "spacing": 4, "chunk": 16}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    SionnaRT(**facts, cache=str(whole)).sites()
    code = f"from datamodules import SionnaRT; SionnaRT(**{facts!r}, cache={str(broken)!r}).sites()"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(chunks := sorted(broken.glob(".*.partial/*.safetensors"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(broken.glob("[!.]*_bs0-*"))
    damaged = bytearray(chunks[0].read_bytes())
    damaged[-1] ^= 1
    chunks[0].write_bytes(damaged)

    traced = []
    trace = tracing.Tracer.__call__
    monkeypatch.setattr(tracing.Tracer, "__call__", lambda *args: traced.append(1) or trace(*args))
    SionnaRT(**facts, cache=str(broken)).sites()
    assert 0 < len(traced) <= 5 - 2 + 1
    files = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert len(files) == 2
    for file in files:
        assert (whole / file).read_bytes() == (broken / file).read_bytes()


@requires_sionna
def test_full_disk_is_said_and_leaves_no_site(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datamodules.sources.base.os.replace", refuse)
    with pytest.raises(InputError, match=r"cannot write the traced links to .*No space left"):
        SionnaRT(**CANYON, users="points", points=[[0, 0]], cache=str(tmp_path)).sites()
    assert not list(tmp_path.glob("[!.]*"))


@requires_sionna
def test_a_scene_that_changes_is_another_site(tmp_path):
    facts = {"base_stations": [[-10, 5, 20]], "users": "grid", "spacing": 20, "samples": 100, "cache": str(tmp_path)}
    file = write_scene(tmp_path, {"house": HOUSE})
    before = SionnaRT(str(file), **facts)
    digest, [first] = before.recipes()[0].digest, before.sites()
    assert first.environment.heights[0] == pytest.approx(15, abs=0.1)
    write_scene(tmp_path, {"house": (*HOUSE[:5], 25.0)})
    after = SionnaRT(str(file), **facts)
    assert after.recipes()[0].digest != digest
    assert after.sites()[0].environment.heights[0] == pytest.approx(25, abs=0.1)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"scene": "paris"}, "unknown scene 'paris': choose one of box, .*etoile.*munich"),
        ({"scene": "nowhere/city.xml"}, "scene file nowhere/city.xml does not exist"),
        ({"spacing": 0}, "spacing must be positive"),
        ({"sectors": 0}, "sectors must be at least 1"),
        ({"scattering": 1.5}, "scattering must lie in"),
        ({"window": (10, 0, 0, 10)}, "window must be"),
        ({"base_stations": [[0, 0]]}, "base_stations must be"),
        ({"base_stations": 0}, "base_stations must be"),
        ({"users": "random"}, "needs num_users"),
        ({"users": "points"}, "needs points"),
    ],
)
def test_arguments_that_cannot_be(facts, says):
    with pytest.raises(InputError, match=says) as caught:
        SionnaRT(**facts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"scene": "box"}, "scene box has no ground"),
        ({"frequency": 60e9}, "brick, which ITU-R P.2040 defines for 1-40 GHz, 110-330 GHz, not 60 GHz"),
        ({"base_stations": [[500, 0, 10]]}, "outside scene simple_street_canyon, which spans"),
        ({"base_stations": [[50, 25, 10]]}, "in a building: move it, or raise it above"),
        ({"base_stations": [[0, 0, -3]]}, "under the ground"),
        ({"users": "grid", "window": (40, 15, 60, 30)}, "no outdoor user in the grid"),
        ({"users": "grid", "window": (300, 300, 400, 400)}, "no outdoor user in the grid"),
        ({"users": "grid", "spacing": 20, "num_users": 10_000}, "num_users is 10000, but only"),
        ({"users": "points", "points": [[0, 0], [50, 25]]}, r"1 of 2 points, \(50.0, 25.0\) first"),
        ({"users": "points", "points": [[0, 0, 1], [1]]}, "are not rows of"),
        ({"users": "points", "points": "missing.csv"}, "points file missing.csv does not exist"),
        ({"users": "points", "points": [[-10, 0]], "sectors": 3}, "sector 1 of base station 0 has no user"),
    ],
)
@requires_sionna
def test_wishes_the_scene_cannot_grant(facts, says, tmp_path):
    with pytest.raises(InputError, match=says) as caught:
        SionnaRT(**{**CANYON, **facts}, cache=str(tmp_path)).sites()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("[!.]*_bs0-*"))
