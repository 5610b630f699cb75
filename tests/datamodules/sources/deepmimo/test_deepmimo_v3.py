"""DeepMIMO v3 files: held against an independent sum over their paths, and against geometry."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.io import loadmat, savemat

from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM
from datamodules.channel.synthesis import synthesize
from datamodules.errors import DatasetNotFoundError, InputError
from datamodules.sites.site import Site
from datamodules.sources.deepmimo.v3 import DeepMIMOv3
from tests.data.deepmimo.data import BASE_STATIONS, real_root, trace

#: users with at least one path, by city and base station; LWM's downstream tasks are made of the first of Santa Clara,
#: Fort Worth and Oklahoma and the third of Indianapolis
COUNTS = {
    "city_11_santaclara": (2689, 1744, 2489),
    "city_12_fortworth": (1902, 611, 762),
    "city_15_indianapolis": (3401, 3113, 3248),
    "city_19_oklahoma": (3455, 2541, 3170),
}
BANDS = {"3p5": 3.5e9, "28": 28e9}
REAL = [(city, band) for city in COUNTS for band in BANDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@cache
def real_sites(city: str, band: str, folder: Path) -> list[Site]:
    return DeepMIMOv3(f"{city}_{band}", str(real_root("deepmimo_v3")), max_paths=25, cache=str(folder)).sites()


def write_v3(
    root: Path, name: str, num_users: int, split: int | None = None, sent: float = 0.0, num_base_stations: int = 2
) -> Path:
    """Write a scenario in the released layout, users in one file or two."""
    scenario = root / name
    scenario.mkdir(parents=True)
    facts = {"version": 2, "carrier_freq": 3.5e9, "transmit_power": sent, "num_BS": num_base_stations}
    savemat(scenario / "params.mat", facts)
    users = np.full((num_users, 3), 2.0)
    users[:, :2] = np.random.default_rng(0).uniform([-60, -20], [60, 20], size=(num_users, 2))
    users = users.astype(np.float32)
    for number, transmitter in enumerate(BASE_STATIONS[:num_base_stations], start=1):
        arrays = trace(transmitter, users.astype(np.float64), 3.5e9)
        arrays = arrays | {"power": arrays["power"] + sent, "los": (arrays["inter"] == 0).astype(float)}
        keys = ("phase", "delay", "power", "aoa_az", "aoa_el", "aod_az", "aod_el", "los")
        channels = np.empty((1, num_users), dtype=object)
        for user in range(num_users):
            exists = np.isfinite(arrays["power"][user])
            table = np.stack([arrays[key][user, exists] for key in keys]).astype(np.float32)
            channels[0, user] = {"p": table if exists.any() else np.zeros((0, 0))}
        edges = [0, split or num_users, num_users] if split else [0, num_users]
        for first, last in pairwise(edges):
            content = {"channels": channels[:, first:last], "rx_locs": np.pad(users, ((0, 0), (0, 2)))[first:last]}
            savemat(scenario / f"BS{number}_UE_{first}-{last}.mat", {**content, "tx_loc": transmitter[None]})
        savemat(scenario / f"BS{number}_BS.mat", {"tx_loc": transmitter[None]})
    return scenario


def read_tables(file: Path) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the path tables (8, P) and positions of the users with a path, read without the code under test."""
    arrays = loadmat(file)
    tables = [np.asarray(user["p"][0, 0], dtype=np.float64) for user in arrays["channels"][0]]
    served = [table.size > 0 for table in tables]
    return [table for table in tables if table.size], arrays["rx_locs"][served, :3]


def sum_paths(
    table: NDArray[np.float64], rows: int, cols: int, num_subcarriers: int, bandwidth: float
) -> NDArray[np.complex128]:
    """Sum one user's paths into (antennas, subcarriers), one element and path at a time."""
    phase, delay, power, _, _, azimuth, zenith, _ = table
    azimuth, zenith = np.radians(azimuth), np.radians(zenith)
    channel = np.zeros((rows * cols, num_subcarriers), dtype=np.complex128)
    frequency = np.arange(num_subcarriers) * bandwidth / num_subcarriers
    for p in range(table.shape[1]):
        gain = 10 ** (power[p] / 20) * np.exp(1j * np.radians(phase[p]))
        along = np.sin(zenith[p]) * np.sin(azimuth[p]), np.cos(zenith[p])
        for element in range(rows * cols):
            turns = 0.5 * (element % cols * along[0] + element // cols * along[1])
            channel[element] += gain * np.exp(2j * np.pi * (turns - frequency * delay[p]))
    return channel


@pytest.mark.parametrize(("city", "band"), REAL)
def test_real_user_counts(city: str, band: str, folder: Path) -> None:
    sites = real_sites(city, band, folder)
    assert tuple(len(site) for site in sites) == COUNTS[city]
    assert {site.carrier_frequency for site in sites} == {BANDS[band]}
    assert {site.city for site in sites} == {city}
    assert all((site.paths.los >= 0).all() for site in sites)


@pytest.mark.parametrize(("city", "band"), REAL)
def test_real_channels_equal_an_independent_sum(city: str, band: str, folder: Path) -> None:
    array, ofdm = Array(2, 4), OFDM(32, 20e6)
    for number, site in enumerate(real_sites(city, band, folder), start=1):
        (file,) = (real_root("deepmimo_v3") / f"{city}_{band}").glob(f"BS{number}_UE_*.mat")
        tables, positions = read_tables(file)
        users = range(0, len(tables), max(1, len(tables) // 40))
        np.testing.assert_array_equal(site.paths.position, positions)
        want = np.stack([sum_paths(tables[user], 2, 4, 32, 20e6) for user in users])
        got = synthesize(site.paths[torch.tensor(list(users))], array, Array(), ofdm)[:, 0].numpy()
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
        assert (np.linalg.norm(got - want, axis=(1, 2)) <= 1e-5 * np.linalg.norm(want, axis=(1, 2))).all()


def assert_direct_paths_follow_geometry(site: Site) -> None:
    """Check every link with line of sight: angles to 0.01 degrees, delay, and the free-space gain."""
    paths = site.paths[site.paths.los == 1]
    direction = (paths.position - site.bs_position).double()
    distance = direction.norm(dim=1)
    azimuth, zenith = torch.atan2(direction[:, 1], direction[:, 0]), torch.acos(direction[:, 2] / distance)
    opposite = torch.stack((azimuth + torch.pi, torch.pi - zenith), -1)
    for angles, want in ((paths.aod[:, 0], torch.stack((azimuth, zenith), -1)), (paths.aoa[:, 0], opposite)):
        error = torch.remainder(angles.double() - want + torch.pi, 2 * torch.pi) - torch.pi
        assert error.abs().rad2deg().max() < 0.01
    # light in air is 0.03 percent slower than in vacuum
    torch.testing.assert_close(paths.delay[:, 0].double() * 299_792_458, distance, rtol=4e-4, atol=0)
    free_space = 299_792_458 / site.carrier_frequency / (4 * torch.pi * distance)
    torch.testing.assert_close(paths.gain[:, 0].abs().double(), free_space, rtol=5e-3, atol=0)
    assert (paths.bounces[:, 0] == 0).all()
    assert ((site.paths.bounces == 0) & site.paths.mask).sum() == len(paths)


@pytest.mark.parametrize(("city", "band"), REAL)
def test_real_direct_paths_follow_geometry(city: str, band: str, folder: Path) -> None:
    for site in real_sites(city, band, folder):
        assert (site.paths.los == 1).sum() > 400
        assert_direct_paths_follow_geometry(site)


@pytest.mark.parametrize("split", [None, 70])
def test_fake_scenario(split: int | None, tmp_path: Path) -> None:
    scenario = write_v3(tmp_path / "root", "street_3p5", 120, split, sent=10.0)
    sites = DeepMIMOv3("Street_3p5", str(tmp_path / "root"), cache=str(tmp_path)).sites()
    assert [site.name for site in sites] == ["street_3p5_bs1", "street_3p5_bs2"]
    every = DeepMIMOv3("street_3p5", str(tmp_path / "root"), unserved=True, cache=str(tmp_path)).sites()
    for number, site in enumerate(sites, start=1):
        whole = every[number - 1]
        assert len(whole) == 120
        assert torch.equal(whole.links.position, every[0].links.position)
        assert torch.equal(whole.paths[whole.links.has_path].gain, site.paths.gain)
        assert_direct_paths_follow_geometry(site)
        assert set(site.paths.los.tolist()) == {0, 1}
        assert site.provenance["users"] == 120
        assert site.provenance["dropped_no_path"] == 120 - len(site) > 0
        files = sorted(scenario.glob(f"BS{number}_UE_*.mat"))
        assert len(files) == (1 if split is None else 2)
        tables = [table for file in files for table in read_tables(file)[0]]
        want = np.stack([sum_paths(table, 2, 4, 16, 10e6) for table in tables]) * 10**-0.5
        got = synthesize(site.paths, Array(2, 4), Array(), OFDM(16, 10e6))[:, 0].numpy()
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_selection(tmp_path: Path) -> None:
    write_v3(tmp_path / "root", "street_3p5", 120)
    (site,) = DeepMIMOv3("street_3p5", str(tmp_path / "root"), [2], max_paths=2, cache=str(tmp_path)).sites()
    assert site.name == "street_3p5_bs2"
    assert site.paths.num_paths == 2
    with pytest.raises(InputError, match=r"base stations \[1, 2\], not \[3\]"):
        DeepMIMOv3("street_3p5", str(tmp_path / "root"), [3]).recipes()
    with pytest.raises(
        DatasetNotFoundError, match=r"'nowhere' is not in .*, which holds street_3p5: set scenario, or root"
    ):
        DeepMIMOv3("nowhere", str(tmp_path / "root")).recipes()


def shorten(key: str) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        arrays = {k: v for k, v in loadmat(file).items() if not k.startswith("__")}
        savemat(file, {**arrays, key: arrays[key][:-1]})

    return damage


def drop(key: str) -> Callable[[Path], None]:
    return lambda file: savemat(file, {k: v for k, v in loadmat(file).items() if k != key and not k.startswith("__")})


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("params.mat", Path.unlink, "params.mat is missing"),
        ("params.mat", drop("carrier_freq"), r"params.mat is damaged or incomplete \(KeyError"),
        ("params.mat", truncate, "params.mat is damaged"),
        ("BS1_UE_0-120.mat", truncate, "BS1_UE_0-120.mat is damaged"),
        ("BS1_UE_0-120.mat", drop("channels"), r"BS1_UE_0-120.mat is damaged or incomplete \(KeyError\('channels"),
        ("BS1_UE_0-120.mat", drop("tx_loc"), "BS1_UE_0-120.mat is damaged"),
        ("BS1_UE_0-120.mat", shorten("rx_locs"), "BS1_UE_0-120.mat has 120 users but 119 positions"),
        ("BS1_UE_0-120.mat", lambda file: file.write_bytes(b"text"), "BS1_UE_0-120.mat is damaged"),
    ],
)
def test_half_written_scenario_names_the_file(
    name: str, damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    damage(write_v3(tmp_path / "root", "street_3p5", 120) / name)
    with pytest.raises(InputError, match=message) as caught:
        DeepMIMOv3("street_3p5", str(tmp_path / "root"), cache=str(tmp_path)).sites()
    assert "\n" not in str(caught.value)
    assert re.search("root/street_3p5", str(caught.value))
