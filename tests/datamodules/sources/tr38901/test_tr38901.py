"""TR 38.901 sites: conditions, bytes, sizes, faults, and what a kill leaves."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.motion import Sequence, draw_motion
from datamodules.channel.ofdm import OFDM
from datamodules.errors import InputError
from datamodules.module import ChannelDataModule
from datamodules.sides.domains import speed_spans
from datamodules.sites.paths import Paths
from datamodules.sites.recording import Recording
from datamodules.sites.site import Site
from datamodules.sources.tr38901 import source as tr38901
from datamodules.sources.tr38901.rays import drop
from datamodules.sources.tr38901.source import TR38901

SMALL: dict[str, Any] = {"bs": Array(2, 2), "ofdm": OFDM(8, 10e6)}


def source(cache: Path, **settings: Any) -> TR38901:
    settings = {"scenarios": ["umi"], "los": ["mixed"], "speeds": ["static"], "sequences": 20, **SMALL, **settings}
    return TR38901(**settings, cache=str(cache))


def test_sionna_phy_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    line = r"^channels of TR 38.901 are drawn by Sionna PHY: pip install 'csi-foundation\[tr38901\]' \(.+\)$"
    monkeypatch.setitem(sys.modules, "sionna.phy", None)
    monkeypatch.setitem(sys.modules, "sionna", None)
    with pytest.raises(InputError, match=line):
        drop("umi", "mixed", 3.5e9, 2, seed=0, release="16.1")
    missing = importlib.metadata.PackageNotFoundError("sionna-no-rt")
    monkeypatch.setattr(importlib.metadata, "version", Mock(side_effect=missing))
    with pytest.raises(InputError, match=line):
        source(tmp_path).sites()


def made(cache: Path, **settings: Any) -> Site:
    (site,) = source(cache, **settings).sites()
    return site


def test_a_link_takes_the_bytes_that_are_stated(tmp_path):
    link = source(tmp_path, sequences=1, snapshots=10, bs=Array(4, 4), ofdm=OFDM(64))
    stated = re.search(r"(\d+) kB for ten snapshots of a 4 x 4 array on 64 subcarriers", TR38901.__doc__)
    assert float(stated[1]) == pytest.approx(link.size / 1e3, rel=0.02)


def digest(cache: Path) -> str:
    (file,) = cache.glob("tr38901*/*.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- as sites


def test_sites_say_under_which_conditions_they_were_drawn(tmp_path: Path) -> None:
    made = source(
        tmp_path, scenarios=["umi", "inh"], los=["los", "nlos"], speeds=["pedestrian", 30.0], downtilts=[0, 0.2],
        frequencies=[3.5e9, 28e9], sequences=2,
    )  # fmt: skip
    sites = made.sites()
    assert len({site.name for site in sites}) == len({site.area for site in sites}) == 2 * 2 * 2 * 2 * 2
    for site, domain in zip(sites, made.domains, strict=True):
        assert site.city == site.domain["scenario"] == domain.scenario
        assert site.domain["los"] == domain.sight
        assert site.links.los.tolist() == [int(domain.sight == "los")] * 2
        assert site.domain["mobility"] == ("vehicular" if domain.speed == 30 else "pedestrian")
        assert site.domain["tilt"] == pytest.approx(float(site.bs_orientation[1])) == domain.downtilt
        assert site.domain["frequency"] == site.carrier_frequency == domain.frequency
        assert site.bs_position[2] == {"umi": 10, "inh": 3}[domain.scenario]
    assert sites[0].domain["speed"] == pytest.approx([3 / 3.6, 6 / 3.6])
    assert sites[0].name == "tr38901_umi_los_pedestrian_0deg_3p5ghz"


def test_no_two_sites_of_a_place_stand_on_the_same_ground(tmp_path: Path) -> None:
    sites = source(tmp_path, scenarios=["inh"], los=["los", "nlos", "mixed"], sequences=200).sites()
    bounds = sorted(site.environment.bounds for site in sites)
    assert all(left[2] < right[0] for left, right in itertools.pairwise(bounds))
    module = ChannelDataModule(
        source(tmp_path, scenarios=["inh"], los=["los", "nlos", "mixed"], sequences=200),
        split="area", holdout=[sites[1].area], bs=SMALL["bs"], ofdm=SMALL["ofdm"],
    )  # fmt: skip
    module.setup()
    assert len(module.sides["test"]) == 200


@pytest.mark.parametrize("keep", ["csi", "rays"])
def test_same_seed_same_bytes(tmp_path: Path, keep: Any) -> None:
    for name, seed, disturbance in (("a", 1, 0), ("b", 1, 99), ("c", 2, 0)):
        torch.manual_seed(disturbance)
        made(tmp_path / name, seed=seed, keep=keep)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_random_numbers_of_others_are_left_alone(tmp_path: Path) -> None:
    from sionna.phy import config

    torch.manual_seed(7)
    before = torch.get_rng_state(), config.torch_rng("cpu").get_state(), config.seed
    made(tmp_path)
    after = torch.get_rng_state(), config.torch_rng("cpu").get_state(), config.seed
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert before[2] == after[2]


@pytest.mark.slow
def test_first_import_of_sionna_leaves_the_seed_of_the_training() -> None:
    code = (
        "import torch; torch.manual_seed(3)\n"
        "from datamodules.sources.tr38901.rays import drop\n"
        "drop('umi', 'los', 3.5e9, 2, 0, '16.1'); print(torch.rand(1).item())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(out.split()[-1]) == pytest.approx(float(torch.rand(1, generator=torch.Generator().manual_seed(3))))


def test_snapshots_turn_with_the_speed(tmp_path: Path) -> None:
    still, moving = source(tmp_path, speeds=["static", 30.0], los=["los"], snapshots=4, interval=1e-3).sites()
    assert isinstance(still.links, Recording)
    assert isinstance(moving.links, Recording)
    assert still.links.interval == moving.links.interval == 1e-3
    assert still.links.csi().shape == (20, 4, 1, 4, 8)
    csi = still.links.csi()
    torch.testing.assert_close(csi, csi[:, :1].expand_as(csi))
    csi = moving.links.csi()
    # at 30 m/s and 3.5 GHz a path turns by at most 0.35 rounds/ms
    assert ((csi[:, 1:] - csi[:, :-1]).flatten(1).norm(dim=1) / csi.flatten(1).norm(dim=1)).median() > 0.2


def test_speeds_of_a_range_are_drawn_for_each_link(tmp_path: Path) -> None:
    sites = source(tmp_path, speeds=["static", [0.0, 30.0], (10.0, 20.0)], keep="rays")
    still, wide, fast = sites.sites()
    assert "0to30mps" in wide.name
    assert (still.domain["mobility"], fast.domain["mobility"]) == ("static", "vehicular")
    assert "mobility" not in wide.domain
    assert wide.domain["speed"] == [0.0, 30.0]
    data = ChannelDataModule(sites, bs=SMALL["bs"], ofdm=SMALL["ofdm"], split="random", sequence=Sequence(2, 1e-3))
    data.setup()
    rows = data.sides["all"].__getitems__(range(60))
    speed = draw_motion(data.sequence, rows["site"], rows["user"], span=speed_spans([still, wide, fast])[rows["site"]])
    drawn = speed.velocity.norm(dim=1)
    of_wide = drawn[rows["site"] == 1]
    assert 0 < of_wide.min() < 9 < 25 < of_wide.max() < 30
    assert 10 <= drawn[rows["site"] == 2].min() < drawn[rows["site"] == 2].max() <= 20


def test_a_site_of_rays_gives_the_csi_that_is_kept_otherwise(tmp_path: Path) -> None:
    bs = Array(4, 2, pattern="tr38901")
    rays, csi = (made(tmp_path / keep, bs=bs, downtilts=[0.2], keep=keep) for keep in ("rays", "csi"))
    assert isinstance(csi.links, Recording)
    again = source(tmp_path / "rays", bs=bs, downtilts=[0.2], keep="rays")
    module = ChannelDataModule(again, bs=bs, ofdm=SMALL["ofdm"], split="random")
    module.setup()
    batch = module.finish(module.sides["all"].__getitems__(range(20)))
    kept = csi.links.csi()
    assert ((batch["csi"] - kept).abs().amax((1, 2, 3)) / kept.abs().amax((1, 2, 3))).max() < 2e-3
    assert torch.equal(rays.paths.los, csi.links.los)


def test_two_polarisations_reach_a_batch(tmp_path: Path) -> None:
    """Stored CSI equals that of stored rays, which without their polarisation are refused."""
    bs = Array(2, 2, polarization="cross")
    grid = {"bs": bs, "ue": Array(), "ofdm": OFDM(8, 10e6), "split": "random", "num_beams": 8}
    batches = {}
    for keep in ("csi", "rays"):
        data = ChannelDataModule(source(tmp_path / keep, bs=bs, keep=keep, polarization="dual"), **grid)
        data.prepare_data()
        data.setup()
        batches[keep] = data.finish(data.sides["all"].__getitems__(range(20)))
    csi, rays = (batches[keep]["csi"] for keep in ("csi", "rays"))
    assert rays.shape == (20, 1, 8, 8)
    assert (csi - rays).norm() / rays.norm() < 1e-3
    assert torch.equal(batches["csi"]["beam"], batches["rays"]["beam"])
    assert made(tmp_path / "csi", bs=bs).links.bs_shape == (4, 2)  # type: ignore[union-attr]
    alone = ChannelDataModule(source(tmp_path / "single", keep="rays"), **grid)
    alone.prepare_data()
    with pytest.raises(InputError, match="rays of site tr38901_umi_mixed_static_0deg_3p5ghz the vertical one alone"):
        alone.setup()
    assert "polarization" not in str(source(tmp_path).recipes()[0].parameters), "the key of earlier releases"


@pytest.mark.parametrize("keep", ["csi", "rays"])
def test_size_is_known_before(tmp_path: Path, keep: Any) -> None:
    settings: dict[str, Any] = {
        "bs": Array(4, 4), "ofdm": OFDM(64, 20e6), "snapshots": 10, "los": ["nlos"], "keep": keep
    }  # fmt: skip
    site = made(tmp_path, **settings)
    (file,) = tmp_path.glob("tr38901*/*.safetensors")
    size = source(tmp_path, **settings).size
    assert 0.9 * size < file.stat().st_size < size + 1000
    # 20,000 such sequences
    assert file.stat().st_size / len(site) * 20_000 < {"csi": 0.9e9, "rays": 0.3e9}[keep]
    with pytest.raises(InputError, match=r"2 sites of 60000 links would take 4\.58 GiB, more than max_gib 4"):
        source(tmp_path, **{**settings, "los": ["los", "nlos"], "keep": "csi"}, sequences=60_000)


# --- when something goes wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scenarios": ["umx"]}, "scenarios must be some of umi, uma, rma, inh, got umx"),
        ({"los": []}, "los must be some of los, nlos, mixed, got none"),
        ({"speeds": ["fast"]}, "speeds must be some of static, pedestrian, vehicular, got fast"),
        ({"speeds": [[3.0, 1.0]]}, r"speeds must have ranges \(lowest, highest\) within \[0, 1000\] \[m/s\], got"),
        ({"speeds": [-1.0]}, r"speeds must lie in \[0, 1000\] \[m/s\], got \[-1.0\]"),
        ({"downtilts": [15.0]}, r"downtilts must lie in \[-1.5708, 1.5708\] \[rad\], got \[15.0\]"),
        ({"frequencies": [3.5]}, "frequencies must lie in"),
        ({"scenarios": ["rma"], "frequencies": [60e9]}, "rma is defined up to 30 GHz, not 60 GHz"),
        ({"downtilts": [0.1, 0.1 + 1e-12]}, "agree in six digits"),
        ({"sequences": 0}, "sequences must be at least 1, got 0"),
        ({"interval": 0.0}, "interval must be positive"),
        ({"bs": Array(orientation=(0, 0.1, 0))}, "give downtilts"),
        ({"keep": "all"}, "keep must be some of csi, rays, got all"),
        ({"release": "17"}, "release must be some of 16.1, 19.2, got 17"),
    ],
)
def test_bad_arguments(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        source(tmp_path, **settings)
    assert "\n" not in str(caught.value)


def test_drawing_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tr38901, "_CHUNK", 4)
    made(tmp_path / "whole")
    counts: list[int] = []

    def fails_at_the_third(*args: Any) -> Paths:
        counts.append(args[3])
        if len(counts) == 3:
            raise KeyboardInterrupt
        return drop(*args)

    monkeypatch.setattr(tr38901, "drop", fails_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "cut")
    (partial,) = (tmp_path / "cut").glob(".*.partial")
    first, second = sorted(partial.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1])  # a chunk that is not sound is drawn anew
    counts.clear()
    counts += [0] * 3
    made(tmp_path / "cut")
    assert counts[3:] == [4, 4, 4, 4]
    assert not second.exists()
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


@pytest.mark.slow
def test_killed_while_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"sequences": 2000, "snapshots": 4, "bs": Array(4, 4), "ofdm": OFDM(32, 10e6)}
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.datamodules.sources.tr38901.test_tr38901 import Array, OFDM, made\n"
        f"made(Path(sys.argv[1]), **{settings!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "cut")], stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[4]
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("cut/.*.partial/*.safetensors"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(tmp_path.glob("cut/tr38901*"))
    drawn = []

    def count(*args: Any) -> Paths:
        drawn.append(args[3])
        return drop(*args)

    monkeypatch.setattr(tr38901, "drop", count)
    made(tmp_path / "cut", **settings)
    assert sum(drawn) <= 2000 - 2 * 256
    made(tmp_path / "whole", **settings)
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")
    assert not list(tmp_path.glob("cut/.*.partial"))
