"""DeepMIMO 4 scenarios: values held against the `deepmimo` package, and what a site says of itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.errors import InputError
from datamodules.sides.groups import group_links
from datamodules.sites.site import Site
from datamodules.sources.deepmimo.v4 import DeepMIMO, city_of
from tests.data.deepmimo.data import BASE_STATIONS, BUILDINGS, Reference, load_reference, real_root, write_scenario

#: users with line of sight, and with other paths only, by scenario and base station
REAL_COUNTS = {
    ("city_0_newyork_3p5", 1): (711, 205),
    ("city_0_newyork_3p5", 2): (560, 134),
    ("city_0_newyork_3p5", 3): (930, 84),
    ("city_1_losangeles_3p5", 1): (659, 59),
    ("city_1_losangeles_3p5", 2): (937, 159),
    ("city_1_losangeles_3p5", 3): (355, 102),
}
LINK = "t001_tx000_r000"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenario(tmp_path / "scenarios", "street_3p5", num_users=200, seed=0)
    return tmp_path / "scenarios"


def source(
    root: Path, scenario: str = "street_3p5", base_stations: list[int] | None = None, max_paths: int = 20
) -> DeepMIMO:
    return DeepMIMO(scenario, str(root), base_stations, max_paths, download=False, cache=str(root.parent / "cache"))


def assert_equals_reference(site: Site, reference: Reference) -> None:
    """Hold a site made with max_paths=25 against what `deepmimo.load` says of the same users."""
    los = np.asarray(reference["los"])
    active = los >= 0
    paths = site.paths
    assert site.provenance["users"] == len(los)
    assert site.provenance["dropped_no_path"] == (~active).sum()
    assert site.carrier_frequency == reference.rt_params["frequency"]
    np.testing.assert_array_equal(paths.los, los[active])
    np.testing.assert_array_equal(paths.mask.sum(1), np.asarray(reference["num_paths"])[active])
    np.testing.assert_allclose(paths.position, np.asarray(reference["rx_pos"])[active])
    np.testing.assert_allclose(site.bs_position, np.asarray(reference["tx_pos"]).reshape(3))
    mask = paths.mask.numpy()
    degrees = {
        "aod_az": paths.aod[..., 0],
        "aod_el": paths.aod[..., 1],
        "aoa_az": paths.aoa[..., 0],
        "aoa_el": paths.aoa[..., 1],
    }
    for key, value in degrees.items():
        np.testing.assert_allclose(
            np.degrees(value.numpy()[mask]), np.asarray(reference[key])[active][mask], rtol=1e-6, atol=1e-5
        )
    np.testing.assert_array_equal(paths.delay.numpy()[mask], np.asarray(reference["delay"])[active][mask])
    np.testing.assert_array_equal(paths.bounces.numpy()[mask], np.asarray(reference["num_inter"])[active][mask])
    power = np.asarray(reference["power_linear"])[active][mask]
    np.testing.assert_allclose(paths.gain.abs().square().numpy()[mask], power, rtol=2e-6)
    phase = np.exp(1j * np.radians(np.asarray(reference["phase"], dtype=np.float64)))[active][mask]
    np.testing.assert_allclose((paths.gain / paths.gain.abs()).numpy()[mask], phase, atol=1e-6)


@pytest.mark.parametrize("scenario", ["city_0_newyork_3p5", "city_1_losangeles_3p5"])
def test_real_scenario_equals_deepmimo(scenario: str, tmp_path: Path) -> None:
    root = real_root("deepmimo")
    sites = DeepMIMO(scenario, root=str(root), max_paths=25, download=False, cache=str(tmp_path)).sites()
    assert [site.name for site in sites] == [f"{scenario}_bs{i}" for i in (1, 2, 3)]
    for base_station, site in enumerate(sites, start=1):
        assert_equals_reference(site, load_reference(root, scenario, base_station))
        los = site.paths.los
        assert ((los == 1).sum().item(), (los == 0).sum().item()) == REAL_COUNTS[scenario, base_station]
    environment = sites[0].environment
    assert len(environment.heights) == {"city_0_newyork_3p5": 93, "city_1_losangeles_3p5": 61}[scenario]
    assert environment.heights.min() > 0.1
    assert all(polygon.is_valid and polygon.area > 1 for polygon in environment.polygons)


def test_fake_scenario_equals_deepmimo(root: Path) -> None:
    for base_station, site in enumerate(source(root, max_paths=25).sites(), start=1):
        assert_equals_reference(site, load_reference(root, "street_3p5", base_station))


def test_unserved_users_are_kept_where_asked_for(root: Path) -> None:
    """Then the stations of a scenario share their users, and the served ones have the paths they had."""
    plain = source(root).sites()
    sites = DeepMIMO("street_3p5", str(root), unserved=True, cache=str(root.parent / "cache")).sites()
    for site, served in zip(sites, plain, strict=True):
        assert len(site) == 200
        assert site.provenance["dropped_no_path"] == 0
        reached = site.links.has_path
        assert (site.links.los[~reached] == -1).all()
        assert torch.equal(site.links.position, sites[0].links.position)
        assert torch.equal(site.paths[reached].gain, served.paths.gain)
    assert len(group_links(sites, "station", 2)) == 200
    with pytest.raises(InputError, match="set unserved to true"):
        group_links(plain, "station", 2)


def test_site_says_what_it_is(root: Path) -> None:
    first, second = source(root).sites()
    assert (first.name, second.name) == ("street_3p5_bs1", "street_3p5_bs2")
    assert first.area == second.area == "street_3p5"
    assert first.city == "street"
    assert first.domain == {"scenario": "street_3p5", "frequency": 3.5e9}
    assert set(first.paths.los.tolist()) == {0, 1}
    assert first.provenance["users"] - first.provenance["dropped_no_path"] == len(first) < 200
    assert np.sort(first.environment.heights).tolist() == np.sort(BUILDINGS[:, 1, 2]).tolist()
    areas = sorted(polygon.area for polygon in first.environment.polygons)
    np.testing.assert_allclose(areas, np.sort(np.ptp(BUILDINGS[:, :, :2], axis=1).prod(1)))


def test_gain_is_that_of_the_geometry(root: Path) -> None:
    site = source(root).sites()[0]
    direct = site.paths[site.paths.los == 1]
    distance = (direct.position - site.bs_position).double().norm(dim=1)
    turns = 3.5e9 * distance / 299_792_458.0
    gain = 299_792_458.0 / 3.5e9 / (4 * torch.pi * distance) * torch.exp(-2j * torch.pi * turns)
    # float32 positions leave a micrometre, float32 degrees a few microradians
    assert ((direct.gain[:, 0] - gain).abs() / gain.abs()).max() < 1e-3
    torch.testing.assert_close(direct.delay[:, 0].double(), distance / 299_792_458.0, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("scenario", "city"),
    [
        ("city_0_newyork_3p5", "city_0_newyork"),
        ("city_0_newyork_28", "city_0_newyork"),
        ("city_0_newyork_3p5_lwm", "city_0_newyork"),
        ("city_0_newyork", "city_0_newyork"),
        ("i2_28b", "i2"),
        ("boston5g_3p5", "boston5g"),
        ("o1_drone_200", "o1_drone"),
        ("o1b_3p5", "o1"),
        ("officefloor1", "officefloor1"),
    ],
)
def test_city_is_the_scenario_without_frequency(scenario: str, city: str) -> None:
    assert city_of(scenario) == city


def test_selected_base_stations_and_paths(root: Path) -> None:
    (site,) = source(root, base_stations=[2], max_paths=2).sites()
    assert site.name == "street_3p5_bs2"
    assert site.paths.num_paths == 2
    np.testing.assert_allclose(site.bs_position, BASE_STATIONS[1])


def test_names_ignore_case(root: Path) -> None:
    (root / "street_3p5").rename(root / "Street_3P5")
    assert source(root, scenario="STREET_3p5").sites()[0].name == "street_3p5_bs1"


def test_second_call_reads_the_cache(root: Path) -> None:
    first = source(root).sites()
    assert sorted(folder.name for folder in (root.parent / "cache").glob("street*")) == sorted(
        folder.name for recipe in source(root).recipes() for folder in recipe.folders(Path())
    )
    stamp = {f: f.stat().st_mtime_ns for f in (root.parent / "cache").rglob("site.json")}
    again = source(root).sites()
    assert stamp == {f: f.stat().st_mtime_ns for f in (root.parent / "cache").rglob("site.json")}
    assert all(torch.equal(a.paths.gain, b.paths.gain) for a, b in zip(first, again, strict=True))


def test_changed_data_is_read_anew(root: Path) -> None:
    before = [recipe.digest for recipe in source(root).recipes()]
    os.utime(root / "street_3p5" / f"power_{LINK}.npz", ns=(1, 1))
    after = [recipe.digest for recipe in source(root).recipes()]
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_data_of_another_version_of_the_reader_are_read_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {recipe.digest for recipe in source(root).recipes()}
    monkeypatch.setattr("datamodules.sources.deepmimo.v4._VERSION", 2)
    assert not before & {recipe.digest for recipe in source(root).recipes()}


def test_older_extensions(root: Path) -> None:
    from scipy.io import savemat

    expected = source(root).sites()[0]
    for file in sorted((root / "street_3p5").glob(f"*_{LINK}.npz")):
        key = file.name.removesuffix(f"_{LINK}.npz")
        array = np.load(file)[key]
        if key in ("power", "tx_pos"):
            savemat(file.with_suffix(".mat"), {key: array})
        else:
            np.save(file.with_suffix(".npy"), array)
        file.unlink()
    site = source(root).sites()[0]
    assert torch.equal(site.paths.gain, expected.paths.gain)
    assert torch.equal(site.bs_position, expected.bs_position)


def test_lossless_scene_has_the_same_buildings(root: Path) -> None:
    expected = source(root).sites()[0].environment
    folder = root / "street_3p5"
    objects = json.loads((folder / "objects.json").read_text())
    meshes: dict[str, Any] = {}
    for item in objects:
        faces = item.pop("face_vertex_idxs")
        item["mesh_key"] = str(item["id"])
        meshes[item["mesh_key"]] = np.array([[f[0], f[i], f[i + 1]] for f in faces for i in (1, 2)], dtype=np.int32)
    np.savez(folder / "faces.npz", **meshes)
    (folder / "objects.json").write_text(json.dumps(objects))
    environment = source(root).sites()[0].environment
    assert environment.heights.tolist() == expected.heights.tolist()
    assert [a.equals(b) for a, b in zip(environment.polygons, expected.polygons, strict=True)] == [True] * 4


def test_no_scene_files_is_an_open_field(root: Path) -> None:
    for name in ("objects.json", "vertices.npz"):
        (root / "street_3p5" / name).unlink()
    assert source(root).sites()[0].environment.footprints == ()
