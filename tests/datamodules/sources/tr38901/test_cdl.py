"""Clustered delay lines: against Sionna's own, the tables, and what a source must do."""

from __future__ import annotations

import importlib.metadata
import math
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM, SPEED_OF_LIGHT
from datamodules.channel.synthesis import synthesize
from datamodules.errors import InputError
from datamodules.sources.tr38901.cdl import CDL
from datamodules.sources.tr38901.cdl_rays import MODELS, drop_cdl, load_table
from datamodules.sources.tr38901.rays import _sionna
from tests.datamodules.sources.tr38901.test_tr38901_rays import panel, sionna_order

FREQUENCY, SPREAD = 3.5e9, 100e-9
BS, UE = Array(2, 3), Array(2, 2)


def sionnas(model: str, release: str, bs: Array = BS, ue: Array = UE) -> Any:
    from sionna.phy.channel.tr38901 import CDL as SionnaCDL

    velocity = torch.tensor([12.0, -7.0, 0.0], dtype=torch.float64)
    facing = [torch.tensor(array.orientation, dtype=torch.float64) for array in (ue, bs)]
    settings = {"spec_version": release, "precision": "double", "device": "cpu"}
    return SionnaCDL(model, SPREAD, FREQUENCY, panel(ue), panel(bs), "downlink", *facing, velocity, **settings)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("bs", "ue"),
    [
        (BS, UE),
        (Array(2, 3, pattern="tr38901", polarization="cross"), Array()),
        (Array(1, 2, polarization="vh", orientation=(0.2, 0.26, 0.1)), Array(2, 1, polarization="cross")),
    ],
    ids=["single", "cross", "both"],
)
def test_channel_equals_that_of_sionnas_own_coefficients(model: Any, bs: Array, ue: Array) -> None:
    """The same rays and phases for moving antennas: elements, polarisations, K factor, delays and Doppler."""
    count, num_times, interval, tones = 4, 3, 5e-3, OFDM(16, 40e6)
    paths = drop_cdl(model, SPREAD, count, 3, "16.1", polarized=bs.num_polarizations > 1)
    velocity = torch.tensor([12.0, -7.0, 0.0]).expand(count, 3)
    ours = synthesize(
        paths,
        bs,
        ue,
        tones,
        velocity=velocity,
        times=torch.arange(num_times) * interval,
        wavelength=SPEED_OF_LIGHT / FREQUENCY,
        reference="center",
    )
    with _sionna(0):
        theirs = sionnas(model, "16.1", bs, ue)
        rays = theirs._create_rays(count)
        topology = theirs._create_topology(count, velocity.double())
        los = load_table(model, "16.1")["los"]
        # our rays in Sionna's order: by cluster, which the delay and the strength of a ray tell; line of sight apart
        clusters, size = theirs._num_clusters, 20
        diffuse = paths.bounces == 1
        assert (diffuse.sum(1) == clusters * size).all()
        key = paths.delay.double() / SPREAD * 1e3 + paths.gain.abs().double()
        wanted = (rays.delays / SPREAD * 1e3)[0, 0, 0] + (rays.powers[0, 0, 0] / size / (1 + theirs._k_factor)).sqrt()
        near = (key.unsqueeze(2) - wanted).abs().argmin(2).masked_fill(~diffuse, clusters)
        order = near.argsort(dim=1, stable=True)[:, : clusters * size]
        assert (near.gather(1, order).reshape(count, clusters, size) == torch.arange(clusters)[:, None]).all()

        def grid(values: torch.Tensor) -> torch.Tensor:
            return values.double().gather(1, order).reshape(count, 1, 1, clusters, size)

        rays.aod, rays.zod = grid(paths.aod[..., 0]), grid(paths.aod[..., 1])
        rays.aoa, rays.zoa = grid(paths.aoa[..., 0]), grid(paths.aoa[..., 1])
        first = torch.stack([grid(paths.gain.angle())] * 4, -1)
        if paths.polarization is not None:
            turn = paths.polarization.flatten(2).angle().unbind(-1)
            first = first + torch.stack([grid(each) for each in turn], -1)
        rays.phases = first
        h, delays = theirs._cir_gen(num_times, 1 / interval, theirs._get_k_factor(count), rays, topology)
    assert los == int(paths.los[0])
    tone = torch.exp(-2j * math.pi * delays[:, 0, 0].unsqueeze(-1) * tones.spacing * torch.arange(16))
    expected = torch.einsum("uprtn,upk->unrtk", h[:, 0, 0], tone)
    expected = expected[:, :, sionna_order(ue)][:, :, :, sionna_order(bs)]
    error = (ours - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert error.max() < 1e-4


@pytest.mark.parametrize("release", ["16.1", "19.2"])
@pytest.mark.parametrize("model", MODELS)
def test_rays_are_those_of_sionna_but_for_what_is_random(model: Any, release: Any) -> None:
    paths = drop_cdl(model, SPREAD, 2, 0, release)
    with _sionna(0):
        theirs = sionnas(model, release)
    diffuse = paths.bounces[0] == 1
    angles = {
        "aod": paths.aod[0, :, 0],
        "aoa": paths.aoa[0, :, 0],
        "zod": paths.aod[0, :, 1],
        "zoa": paths.aoa[0, :, 1],
    }
    for name, values in angles.items():
        expected = getattr(theirs, f"_{name}").flatten().sort().values
        np.testing.assert_allclose(values[diffuse].sort().values, expected, atol=2e-6)
    share = 1 / (1 + theirs._k_factor)
    power = (theirs._powers * share).repeat_interleave(20) / 20
    np.testing.assert_allclose(paths.gain[0, diffuse].abs().square().sort().values, power.sort().values, rtol=1e-5)
    np.testing.assert_allclose(
        paths.delay[0, diffuse].sort().values, theirs._delays.repeat_interleave(20).sort().values, rtol=1e-5
    )
    np.testing.assert_allclose(paths.power, 1.0, rtol=1e-5)


@pytest.mark.parametrize("model", ["A", "B", "C"])
def test_delays_have_the_spread_asked_for(model: Any) -> None:
    paths = drop_cdl(model, 300e-9, 1, 0, "16.1")
    power, delay = paths.gain[0].abs().double().square(), paths.delay[0].double()
    spread = ((power * delay**2).sum() - (power * delay).sum() ** 2).sqrt()
    assert float(spread) == pytest.approx(300e-9, rel=0.02)


@pytest.mark.parametrize(("model", "error"), [("B", 0.03), ("D", 0.1)])
def test_rays_have_the_angle_spread_asked_for_about_the_mean_of_the_table(model: Any, error: float) -> None:
    # clause 7.7.5.1 scales the angles of rays, offsets from their cluster included; the spread of annex A is circular,
    # and not quite proportional to them where they are far apart
    asked = {"aod": 0.05, "aoa": 0.3, "zod": 0.02, "zoa": 0.04}
    found = [drop_cdl(model, SPREAD, 1, 0, "16.1", given) for given in (None, asked)]
    for name, wanted in asked.items():
        means, spreads = [], []
        for paths in found:
            side = paths.aod if name.endswith("d") else paths.aoa
            angle = side[0, :, int(name[0] == "z")].double().numpy()
            power = paths.gain[0].abs().double().square().numpy()
            resultant = (power * np.exp(1j * angle)).sum() / power.sum()
            means.append(np.angle(resultant))
            spreads.append(math.sqrt(-2 * math.log(abs(resultant))))
        assert spreads[1] == pytest.approx(wanted, rel=error)
        assert np.angle(np.exp(1j * (means[1] - means[0]))) == pytest.approx(0, abs=0.03)
    one, other = (drop_cdl(model, SPREAD, 1, 0, "16.1", given) for given in (None, {"aod": 0.05}))
    assert torch.equal(one.aoa, other.aoa)


def test_sionna_phy_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: Any) -> None:
    line = r"pip install 'csi-foundation\[tr38901\]'"
    with monkeypatch.context() as blocked:
        blocked.setitem(sys.modules, "sionna.phy.channel.tr38901", None)
        with pytest.raises(InputError, match=line):
            load_table("A", "16.1")
    missing = importlib.metadata.PackageNotFoundError("sionna-no-rt")
    monkeypatch.setattr(importlib.metadata, "version", Mock(side_effect=missing))
    with pytest.raises(InputError, match=line):
        CDL(cache=str(tmp_path)).sites()


def test_links_differ_and_a_seed_repeats_them() -> None:
    one, again, other = (drop_cdl("A", SPREAD, 3, seed, "16.1") for seed in (1, 1, 2))
    assert torch.equal(one.gain, again.gain)
    assert not torch.equal(one.gain, other.gain)
    assert not torch.allclose(one.gain[0], one.gain[1])


def test_dual_polarisation_changes_nothing_else(tmp_path: Path) -> None:
    single, dual = (CDL(["B", "D"], links=3, polarization=kind, cache=str(tmp_path)) for kind in ("single", "dual"))
    for one, other in zip(single.sites(), dual.sites(), strict=True):
        assert one.paths.polarization is None
        for name, value in one.paths.as_dict().items():
            assert torch.equal(getattr(other.paths, name), value)
        diffuse = other.paths.bounces[0] == 1
        ratio = 10 ** (load_table(other.city[-1].upper(), "16.1")["xpr"] / 10)  # type: ignore[arg-type]
        power = other.paths.polarization.abs().square()[0, diffuse]  # type: ignore[union-attr]
        torch.testing.assert_close(power, torch.tensor([[1, 1 / ratio], [1 / ratio, 1]]).expand_as(power))
    assert "polarization" not in single.recipes()[0].parameters, "the key of sites of earlier releases"


def test_doppler_of_the_base_stations_angles_changes_nothing_else(tmp_path: Path) -> None:
    right, wrong = (CDL(["A", "D"], links=3, doppler=kind, cache=str(tmp_path)) for kind in ("arrival", "departure"))
    for one, other in zip(right.sites(), wrong.sites(), strict=True):
        assert torch.equal(other.paths.aoa, one.paths.aod)
        assert not torch.allclose(one.paths.aoa, one.paths.aod)
        assert all(
            torch.equal(getattr(other.paths, name), getattr(one.paths, name)) for name in ("gain", "aod", "delay")
        )
    assert "doppler" not in right.recipes()[0].parameters, "the key of sites of earlier releases"


def test_sites_say_under_which_conditions_they_were_drawn(tmp_path: Path) -> None:
    source = CDL(["A", "D"], [30e-9, 300e-9], [1.0, 30.0], frequency=2.4e9, links=3, cache=str(tmp_path))
    sites = source.sites()
    assert [site.name for site in sites][:3] == ["cdl_a_30ns_1mps", "cdl_a_30ns_30mps", "cdl_a_300ns_1mps"]
    assert len(sites) == len({site.area for site in sites}) == 8
    last = sites[-1]
    assert last.city == "cdl_d"
    assert last.domain["speed"] == [30.0, 30.0]
    assert (last.domain["los"], last.domain["mobility"]) == ("los", "vehicular")
    assert (sites[0].domain["los"], sites[0].domain["mobility"]) == ("nlos", "pedestrian")
    assert (last.paths.los == 1).all()
    assert last.carrier_frequency == 2.4e9
    again = CDL(["A", "D"], [30e-9, 300e-9], [1.0, 30.0], frequency=2.4e9, links=3, cache=str(tmp_path / "b")).sites()
    assert torch.equal(sites[3].paths.gain, again[3].paths.gain)
    assert not torch.equal(sites[0].paths.gain, sites[1].paths.gain), "every site has links of its own"


def test_random_numbers_of_others_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    CDL(["C"], links=2, cache=str(tmp_path)).sites()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ["F"]}, "models must be some of A, B, C, D, E, got F"),
        ({"models": []}, "models must be some of A, B, C, D, E, got none"),
        ({"delay_spreads": [-1e-9]}, r"delay_spreads must lie in \[0, 1e-05\] \[s\], got"),
        ({"speeds": [math.nan]}, r"speeds must lie in \[0, 1000\] \[m/s\], got"),
        ({"links": 0}, "CDL: links must be positive, got 0"),
        ({"angle_spreads": {"asd": 0.1}}, r"angle_spreads must be of aod, aoa, zod, zoa"),
        ({"polarization": "cross"}, "polarization must be single or dual, got cross"),
        ({"doppler": "uplink"}, "doppler must be arrival or departure, got uplink"),
        ({"release": "17"}, "release must be 16.1 or 19.2, got 17"),
        ({"speeds": [1.0, 1.0000001]}, "agree in six digits"),
    ],
)
def test_bad_arguments(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CDL(cache=str(tmp_path), **settings)


def test_rays_can_be_traced_after_models_were_drawn():
    # Sionna PHY imports the ray tracer, which takes the system's LLVM, whatever it is, unless it is told of ours before
    code = (
        "import os; os.environ.pop('DRJIT_LIBLLVM_PATH', None)\n"
        "from datamodules.sources.tr38901.cdl_rays import load_table; load_table('A', '19.2')\n"
        "print(os.environ.get('DRJIT_LIBLLVM_PATH'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "libLLVM" in done.stdout
