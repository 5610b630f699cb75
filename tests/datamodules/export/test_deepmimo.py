"""Sites written as DeepMIMO scenarios: what `deepmimo.load` makes of them, and what comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM
from datamodules.channel.synthesis import synthesize
from datamodules.errors import InputError
from datamodules.export.deepmimo import write_deepmimo
from datamodules.sites.environment import Environment
from datamodules.sites.paths import Paths
from datamodules.sites.recording import Recording
from datamodules.sites.site import Site
from datamodules.sources.deepmimo.v3 import DeepMIMOv3
from datamodules.sources.deepmimo.v4 import DeepMIMO
from tests.data.deepmimo.data import load_reference, real_root, write_scenario
from tests.datamodules.channel.test_deepmimo_parity import theirs

BS, UE, GRID = Array(2, 8, orientation=(0.7, 0.2, -0.1)), Array(1, 2), OFDM(64, 20e6)


@pytest.fixture
def sites(tmp_path: Path) -> list[Site]:
    write_scenario(tmp_path / "given", "street_3p5", num_users=160, seed=3, num_base_stations=3)
    return DeepMIMO("street_3p5", str(tmp_path / "given"), download=False, cache=str(tmp_path / "cache")).sites()


def read_back(root: Path, name: str) -> list[Site]:
    return DeepMIMO(name, str(root), max_paths=25, download=False, cache=str(root / "cache")).sites()


def assert_same_channels(sites: list[Site], root: Path, name: str, limit: int = 200) -> None:
    """Hold `compute_channels` of what was written against `synthesize`, user by user."""
    for index, site in enumerate(sites, start=1):
        reference = load_reference(root, name, index)
        rows = {tuple(xyz): row for row, xyz in enumerate(np.asarray(reference["rx_pos"]).tolist())}
        paths = site.paths[:limit]
        users = np.array([rows[tuple(xyz)] for xyz in paths.position.tolist()])
        np.testing.assert_array_equal(np.asarray(reference["los"])[users], paths.los)
        want = synthesize(paths, BS, UE, GRID).numpy()
        got = theirs(reference.trim(idxs=users), BS, UE, GRID)
        assert np.abs(want).max(axis=(1, 2, 3)).min() > 0
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
        error, norm = (np.linalg.norm(value.reshape(len(value), -1), axis=1) for value in (got - want, want))
        assert (error / norm).max() <= 1e-4


def test_deepmimo_computes_the_same_channels(sites: list[Site], tmp_path: Path) -> None:
    assert write_deepmimo(sites, tmp_path / "written", "street") == tmp_path / "written" / "street"
    assert_same_channels(sites, tmp_path / "written", "street")


@pytest.mark.parametrize("kind", ["deepmimo", "deepmimo_v3"])
def test_real_channels(kind: str, tmp_path: Path) -> None:
    root = str(real_root(kind))
    if kind == "deepmimo":
        sites = DeepMIMO("city_0_newyork_3p5", root, download=False, cache=str(tmp_path / "cache")).sites()
    else:
        sites = DeepMIMOv3("city_12_fortworth_28", root, [2, 3], cache=str(tmp_path / "cache")).sites()
    write_deepmimo(sites, tmp_path, "written")
    assert_same_channels(sites, tmp_path, "written")


def test_round_trip(sites: list[Site], tmp_path: Path) -> None:
    write_deepmimo(sites, tmp_path / "written", "street")
    for before, after in zip(sites, read_back(tmp_path / "written", "street"), strict=True):
        order = after.paths.position.double() @ torch.tensor([1e6, 1.0, 0.0], dtype=torch.float64)
        old = before.paths[
            (before.paths.position.double() @ torch.tensor([1e6, 1.0, 0.0], dtype=torch.float64)).argsort()
        ]
        new = after.paths[order.argsort()]
        assert torch.equal(old.position, new.position)
        for key in ("mask", "los", "bounces", "delay"):
            assert torch.equal(getattr(old, key), getattr(new, key)), key
        torch.testing.assert_close(old.gain, new.gain, rtol=1e-5, atol=0)
        torch.testing.assert_close(old.aod, new.aod, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(old.aoa, new.aoa, rtol=1e-6, atol=1e-6)
        assert torch.equal(before.bs_position, after.bs_position)
        assert before.carrier_frequency == after.carrier_frequency
        assert before.environment.heights.tolist() == after.environment.heights.tolist()
        for a, b in zip(before.environment.polygons, after.environment.polygons, strict=True):
            assert a.equals(b)


def test_users_are_shared_between_base_stations(sites: list[Site], tmp_path: Path) -> None:
    write_deepmimo(sites, tmp_path, "street")
    positions = {tuple(xyz) for site in sites for xyz in site.paths.position.tolist()}
    for index, site in enumerate(sites, start=1):
        los = np.asarray(load_reference(tmp_path, "street", index)["los"])
        assert len(los) == len(positions) > len(site)
        assert (los >= 0).sum() == len(site)


def test_users_on_one_spot_stay_apart(sites: list[Site], tmp_path: Path) -> None:
    twice = replace(sites[0], links=sites[0].paths[torch.tensor([4, 7, 4])])
    write_deepmimo([twice, sites[1]], tmp_path, "street")
    (site,) = [site for site in read_back(tmp_path, "street") if len(site) == 3]
    assert torch.equal(site.paths.delay, twice.paths.delay)


def test_direct_path_need_not_be_the_strongest(tmp_path: Path) -> None:
    gain = torch.tensor([[2.0, 1.0], [2.0, 1.0]], dtype=torch.complex64)
    paths = Paths.build(
        gain=gain,
        delay=torch.full((2, 2), 1e-7),
        aod=torch.ones(2, 2, 2),
        aoa=torch.ones(2, 2, 2),
        position=torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        bounces=torch.tensor([[2, 0], [2, 0]]),
        los=torch.tensor([1, 0]),
    )
    site = Site("a", paths, torch.zeros(3), 1e9, "a", "a", Environment((), np.zeros(0), (0, 0, 9, 9)))
    write_deepmimo([site], tmp_path, "a")
    reference = load_reference(tmp_path, "a", 1)
    assert np.asarray(reference["los"]).tolist() == [1, 0]
    np.testing.assert_allclose(reference["power_linear"], [[1, 4], [4, 1]], rtol=1e-6)
    assert np.asarray(reference["inter"]).tolist() == [[0, 11], [11, 1]]


def test_concave_buildings_keep_their_outline(sites: list[Site], tmp_path: Path) -> None:
    corner = np.array([[0.0, 0.0], [30.0, 0.0], [30.0, 10.0], [10.0, 10.0], [10.0, 40.0], [0.0, 40.0]])
    environment = Environment((corner,), np.array([12.5]), sites[0].environment.bounds)
    write_deepmimo([replace(sites[0], environment=environment)], tmp_path, "street")
    (polygon,) = read_back(tmp_path, "street")[0].environment.polygons
    assert polygon.equals(environment.polygons[0])
    scene = load_reference(tmp_path, "street", 1)["scene"]
    heights = {item.name: float(item.height) for item in scene.objects}
    assert heights == {"buildings_0": 12.5, "terrain_0": 0.0}


@pytest.mark.parametrize("name", ["", "Street", "a/b", "a:b", "../a", ".hidden"])
def test_name_that_deepmimo_cannot_read(name: str, sites: list[Site], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot name a DeepMIMO scenario"):
        write_deepmimo(sites, tmp_path / "written", name)
    assert not (tmp_path / "written").exists()


def test_sites_that_do_not_belong_together(sites: list[Site], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one area at one carrier, got no site"):
        write_deepmimo([], tmp_path, "street")
    with pytest.raises(InputError, match=r"got other at 3.5e\+09 Hz, street_3p5 at 3.5e\+09 Hz"):
        write_deepmimo([sites[0], replace(sites[1], area="other")], tmp_path, "street")
    with pytest.raises(InputError, match="one area at one carrier"):
        write_deepmimo([sites[0], replace(sites[1], carrier_frequency=28e9)], tmp_path, "street")


def test_recorded_csi_has_no_rays(sites: list[Site], tmp_path: Path) -> None:
    links = Recording.build(torch.ones(2, 1, 1, 4, dtype=torch.complex64), torch.zeros(2, 3))
    with pytest.raises(InputError, match="'street_3p5_bs1' has recorded CSI, which has no paths"):
        write_deepmimo([replace(sites[0], links=links)], tmp_path / "written", "street")
    assert not list((tmp_path / "written").glob("*"))


def test_nothing_is_overwritten_or_left_half_done(
    sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_deepmimo(sites, tmp_path / "written", "street")
    with pytest.raises(InputError, match="street exists: choose another name or delete it"):
        write_deepmimo(sites, tmp_path / "written", "street")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(InputError, match=r"cannot write scenario 'other' to .*: .*No space left"):
        write_deepmimo(sites, tmp_path / "written", "other")
    assert [entry.name for entry in (tmp_path / "written").iterdir()] == ["street"]
