"""`synthesize` equals DeepMIMO 4's `compute_channels`, once its 1/sqrt(K) is undone.

DeepMIMO's rotation is [about x, about y, about z] in degrees, ours (alpha, beta, gamma) = (about z, about y, about x)
in radians, both in the convention of 3GPP TR 38.901 clause 7.1.3: rotation = degrees of (gamma, beta, alpha). Its panel
shape is [along y, along z], ours rows along z and columns along y.

Both sides keep angles in float32, whose rounding the far element of a row of 32 turns into 1e-5 of a turn. So the bound
on the largest error is held against `compute_channels` fed with the same numbers in float64, and the bound on the
overall (Frobenius) error against `compute_channels` as it comes.
"""

from __future__ import annotations

import contextlib
import io
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM
from datamodules.channel.synthesis import synthesize
from datamodules.sites.site import Site
from datamodules.sources.deepmimo.v4 import DeepMIMO
from tests.data.deepmimo.data import Reference, load_reference, real_root, write_scenario

#: enough users to meet every kind of path, few enough for 64-antenna panels on a small machine
NUM_USERS = 150
ARRAYS = {
    "ula8": (Array(1, 8), Array()),
    "ula32": (Array(1, 32), Array()),
    "upa8x8_2x2": (Array(8, 8), Array(2, 2)),
    "upa3x5_1x2": (Array(3, 5), Array(1, 2)),
}
ROTATIONS = {
    "plain": ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    "rotated": ((-2.36, 0.26, 0.1), (1.1, -0.4, 0.7)),
}
REAL = [(city, i) for city in ("city_0_newyork_3p5", "city_1_losangeles_3p5") for i in (1, 2, 3)]


@cache
def real_triple(scenario: str, base_station: int, folder: Path) -> tuple[Site, Reference, Reference]:
    return make_triple(real_root("deepmimo"), scenario, base_station, folder)


def make_triple(root: Path, scenario: str, base_station: int, folder: Path) -> tuple[Site, Reference, Reference]:
    """Return a site and DeepMIMO's data set of its users, as it comes and in float64, with all of their paths."""
    (site,) = DeepMIMO(scenario, str(root), [base_station], max_paths=25, download=False, cache=str(folder)).sites()
    reference = load_reference(root, scenario, base_station)
    active = np.flatnonzero(np.asarray(reference["los"]) >= 0)
    users = active[:: stride(site)]
    double = reference.trim(idxs=users)
    for key in ("power", "phase", "delay", "aod_az", "aod_el", "aoa_az", "aoa_el"):
        double[key] = np.asarray(double[key], dtype=np.float64)
    return site, reference.trim(idxs=users), double


def stride(site: Site) -> int:
    return max(1, len(site) // NUM_USERS)


def ours(site: Site, bs: Array, ue: Array, ofdm: OFDM) -> NDArray[np.complex64]:
    return synthesize(site.paths[:: stride(site)], bs, ue, ofdm).numpy()


def theirs(reference: Reference, bs: Array, ue: Array, ofdm: OFDM) -> NDArray[np.complex64]:
    import deepmimo

    def antenna(array: Array) -> dict[str, object]:
        rotation = np.degrees(array.orientation[::-1])
        return {"shape": np.array([array.cols, array.rows]), "spacing": array.spacing[0], "rotation": rotation}

    grid = {
        "subcarriers": ofdm.num_subcarriers,
        "selected_subcarriers": np.arange(ofdm.num_subcarriers),
        "bandwidth": ofdm.bandwidth,
    }
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        parameters = deepmimo.ChannelParameters(bs_antenna=antenna(bs), ue_antenna=antenna(ue), ofdm=grid)
        channel: NDArray[np.complex64] = reference.compute_channels(parameters)
    return channel * np.float32(math.sqrt(ofdm.num_subcarriers))


def assert_parity(site: Site, reference: Reference, double: Reference, arrays: str, rotation: str, ofdm: OFDM) -> None:
    bs, ue = (Array(a.rows, a.cols, orientation=o) for a, o in zip(ARRAYS[arrays], ROTATIONS[rotation], strict=True))
    # DeepMIMO drops paths later than this
    assert site.paths.delay.max() < ofdm.num_subcarriers / ofdm.bandwidth
    got, want, exact = ours(site, bs, ue, ofdm), theirs(reference, bs, ue, ofdm), theirs(double, bs, ue, ofdm)
    assert got.shape == want.shape == (len(got), ue.num_elements, bs.num_elements, ofdm.num_subcarriers)
    assert np.abs(want).max(axis=(1, 2, 3)).min() > 0
    assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()
    assert np.linalg.norm(got - exact) <= 1e-5 * np.linalg.norm(exact)
    assert np.abs(got - exact).max() <= 1e-5 * np.abs(exact).max()
    # and link by link, so that weak users count as much as strong ones
    error, norm = (np.linalg.norm(value.reshape(len(value), -1), axis=1) for value in (got - exact, exact))
    assert (error / norm).max() <= 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("arrays", ARRAYS)
@pytest.mark.parametrize(("scenario", "base_station"), REAL)
def test_real_channels(scenario: str, base_station: int, arrays: str, rotation: str, folder: Path) -> None:
    assert_parity(*real_triple(scenario, base_station, folder), arrays, rotation, OFDM(64, 20e6))


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("arrays", ARRAYS)
def test_fake_channels(arrays: str, rotation: str, tmp_path: Path) -> None:
    write_scenario(tmp_path / "scenarios", "street_3p5", num_users=120, seed=1)
    triple = make_triple(tmp_path / "scenarios", "street_3p5", 2, tmp_path)
    assert_parity(*triple, arrays, rotation, OFDM(50, 20e6))
