"""A datamodule on recordings alone: arrays, grid, interval, windows and split come from what was recorded."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.motion import Sequence
from datamodules.channel.ofdm import OFDM
from datamodules.defaults import grid_of
from datamodules.errors import InputError
from datamodules.module import ChannelDataModule
from datamodules.sides.splits import split_links
from datamodules.sites.site import Site
from datamodules.sources.recorded.file import read_recording
from datamodules.sources.recorded.source import Recorded
from tests.datamodules.sources.recorded.test_recorded import K, N, R, T, U, draw, links, open_site, tensors, write

SHAPES = {"bs_rows": 2, "bs_cols": 2, "ue_rows": 1, "ue_cols": 2}


def serve(file: Path, **settings: Any) -> ChannelDataModule:
    files = str(file) if file.suffix else str(file / "*.safetensors")
    module = ChannelDataModule(Recorded(files, cache=str(file.parent / "cache")), batch_size=4, **settings)
    module.prepare_data()
    module.setup()
    return module


def series(file: Path, snapshots: int = 60, gap: int | None = None, **changed: Any) -> Path:
    """Write 60 snapshots of one device, 0.1 s apart, with a pause of 2 s before snapshot `gap`."""
    stamps = 1.7e9 + 0.1 * torch.arange(snapshots, dtype=torch.float64)
    if gap is not None:
        stamps[gap:] += 2.0
    given = {"position": None, "los": None, "timestamps": stamps[None], **changed}
    return write(file, given.pop("metadata", None), csi=draw(1, snapshots, R, T, K), **given)


# --- arrays and grid


def test_arrays_and_grid_come_from_the_recording(tmp_path: Path) -> None:
    module = serve(write(tmp_path / "a.safetensors", SHAPES), num_beams=16)
    assert (module.bs, module.ue, module.ofdm) == (Array(2, 2), Array(1, 2), OFDM(K, 20e6))
    assert module.sample()["csi"].shape[1:] == (R, T, K)
    assert module.sample()["beam_power"].shape[1:] == (16,)
    assert module.describe()["split"] == "spatial"
    plain = serve(write(tmp_path / "b.safetensors"))
    assert (plain.bs, plain.ue, plain.ofdm) == (Array(1, T), Array(1, R), OFDM(K, 20e6))


def test_geometry_needs_the_positions_of_all_users(tmp_path: Path) -> None:
    position = torch.rand(U, 3)
    file = write(tmp_path / "a.safetensors", position=position)
    assert serve(file, split="random", extras=["geometry"]).sample()["geometry"].isfinite().all()
    position[2] = torch.nan
    file = write(tmp_path / "b.safetensors", position=position)
    with pytest.raises(InputError, match=r"data\.extras: geometry needs the positions .* some of site b are unknown"):
        serve(file, split="random", extras=["geometry"])
    assert serve(file, split="random", extras=["map"]).sample()["map"].isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bs": Array(1, 8)}, "data.bs is 1 x 8, but recording a has T = 4 antennas in 2 rows and 2 columns: leave"),
        ({"bs": Array(1, 4)}, "data.bs is 1 x 4, but recording a has T = 4 antennas in 2 rows and 2 columns: leave"),
        ({"ue": Array(2, 1)}, "data.ue is 2 x 1, but recording a has R = 2 antennas in 1 rows and 2 columns: leave"),
        ({"ofdm": OFDM(9, 20e6)}, "data.ofdm has 9 subcarriers on 2e.07 Hz, but recording a has K = 8 on 2e.07 Hz"),
        ({"ofdm": OFDM(8, 10e6)}, "data.ofdm has 8 subcarriers on 1e.07 Hz, but recording a has K = 8 on 2e.07 Hz"),
    ],
)
def test_settings_that_contradict_the_recording(tmp_path: Path, settings: Any, message: str) -> None:
    file = write(tmp_path / "a.safetensors", SHAPES)
    with pytest.raises(InputError, match=message):
        serve(file, **settings)
    assert serve(file, bs=Array(2, 2), ue=Array(1, 2), ofdm=OFDM(8, 20e6)).describe()["dropped_no_path"] == 0


def test_recordings_that_differ_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.safetensors", SHAPES)
    write(tmp_path / "data" / "b.safetensors")  # says nothing of its arrays
    assert serve(tmp_path / "data").bs == Array(2, 2)
    write(tmp_path / "data" / "c.safetensors", {"bandwidth": 40e6})
    with pytest.raises(InputError, match=r"recordings a and c differ in bandwidth \[Hz\]"):
        serve(tmp_path / "data")


def test_a_site_made_before_knows_its_interval_alone(tmp_path: Path) -> None:
    site = open_site(write(tmp_path / "a.safetensors", {"interval": 5e-3}, csi=draw(U, N, R, T, K), timestamps=None))
    folder = tmp_path / "old"
    site.save(folder)
    facts = json.loads((folder / "site.json").read_text())
    del facts["facts_sha256"]
    facts["interval"] = facts.pop("recording")["interval"]
    (folder / "site.json").write_text(json.dumps(facts))
    assert links(Site.load(folder)).interval == 5e-3
    with pytest.raises(InputError, match=r"has no bandwidth: set data\.ofdm"):
        grid_of([Site.load(folder)], None, None, None)


# --- time


def test_the_interval_is_the_recordings(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", {"interval": 0.1}, csi=draw(U, N, R, T, K), timestamps=None)
    module = serve(file, sequence=Sequence(snapshots=4))
    assert module.sequence.times.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert serve(file, sequence=Sequence(4, interval=0.1005)).sequence.interval == 0.1005
    with pytest.raises(
        InputError, match=r"data.sequence.interval is 0.005 s, but the snapshots of recording a are 0.1"
    ):
        serve(file, sequence=Sequence(snapshots=4, interval=5e-3))
    with pytest.raises(InputError, match=r"data\.sequence asks for 6 snapshots, but recording a has 5$"):
        serve(file, sequence=Sequence(snapshots=5))
    with pytest.raises(InputError, match=r"recording a has 1 \(a recording of one device is imported with axes that"):
        serve(write(tmp_path / "a.safetensors"), sequence=Sequence(snapshots=5))
    assert Sequence().times[1] == 5e-3  # of rays


STEPS = torch.arange(U * N, dtype=torch.float64).reshape(U, N)


@pytest.mark.parametrize(
    ("stamps", "metadata", "expected"),
    [
        (
            STEPS * 3.4722e-6,
            {},
            "would be 3.472e-06 s apart, if timestamps are in seconds: set time_unit to one of s,",
        ),
        (738000 + STEPS * 3.4722e-6, {}, "look like days of MATLAB, not seconds: set time_unit"),
        (STEPS * 300, {}, "would be 300 s apart, if timestamps are in seconds: set time_unit"),
        (1.7e12 + STEPS * 300, {}, "look like milliseconds since 1970"),
        (1.7e15 + STEPS * 3e5, {}, "look like microseconds since 1970"),
        ((1.7e18 + STEPS * 3e8).long(), {}, "look like nanoseconds since 1970"),
        (STEPS * 300, {"interval": 0.3}, "said to be 0.3 s, but the timestamps are 300 s apart if they are in seconds"),
        (STEPS * 0.3, {"interval": 0.1}, "said to be 0.1 s, but the timestamps are 0.3 s apart"),
        (
            STEPS * 300,
            {"interval": 3.0, "time_unit": "ms"},
            "said to be 3 s, but the timestamps are 0.3 s apart: leave",
        ),
        (STEPS, {"time_unit": "h"}, "time_unit must be one of s, ms, us, ns, day, got 'h'"),
        (738000 + STEPS * 3.472222222e-6, {"time_unit": "day"}, 0.3),
        (1.7e12 + STEPS * 300, {"time_unit": "ms"}, 0.3),
        (STEPS * 300, {"time_unit": "s"}, 300),
        ((1.7e18 + STEPS * 3e8).long(), {"time_unit": "ns"}, 0.3),
        (STEPS * 0.3, {"interval": 0.301}, 0.301),
    ],
)
def test_units_of_time(tmp_path: Path, stamps: Any, metadata: Any, expected: Any) -> None:
    file = write(tmp_path / "a.safetensors", metadata, csi=draw(U, N, R, T, K), timestamps=stamps)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            open_site(file)
    else:
        assert links(open_site(file)).interval == pytest.approx(expected, rel=1e-4)


def test_an_interval_needs_snapshots(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="say an interval, but csi has no axis N"):
        open_site(write(tmp_path / "a.safetensors", {"interval": 0.1}))


# --- one device for long


def test_a_long_recording_is_many_links(tmp_path: Path) -> None:
    csi = draw(1, 60, R, T, K)
    position = torch.rand(1, 60, 3) * 50
    los = torch.arange(60)[None] % 2
    site = open_site(series(tmp_path / "a.safetensors", position=position, los=los, gap=20))
    assert len(site) == 60
    assert links(site).is_series
    assert links(site).interval == pytest.approx(0.1)
    torch.testing.assert_close(links(site).csi(), csi[0], rtol=0, atol=float(csi.abs().max()) * 6e-4)
    assert torch.equal(site.links.position, position[0])
    assert site.links.los.tolist() == los[0].tolist()
    standing = series(
        tmp_path / "b.safetensors", position=torch.ones(1, 3), metadata={"interval": 0.1}, timestamps=None
    )
    assert open_site(standing).links.position.tolist() == [[1, 1, 1]] * 60
    assert links(open_site(standing)).timestamps.tolist() == pytest.approx([0.1 * n for n in range(60)])


@pytest.mark.parametrize("record", [write, series])
def test_large_files_are_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Any) -> None:
    whole, _ = read_recording(record(tmp_path / "a.safetensors"))
    monkeypatch.setattr("datamodules.sources.recorded.file._READ_SIZE", 7 * R * T * K)
    pieces, _ = read_recording(tmp_path / "a.safetensors")
    assert torch.equal(whole.pairs, pieces.pairs)
    assert torch.equal(whole.scale, pieces.scale)


@pytest.mark.parametrize(("gap", "starts"), [(None, range(0, 60, 6)), (20, [0, 6, 12, 20, 26, 32, 38, 44, 50])])
def test_windows_do_not_reach_over_gaps(tmp_path: Path, gap: int | None, starts: Any) -> None:
    file = series(tmp_path / "a.safetensors", gap=gap)
    module = serve(file, sequence=Sequence(snapshots=5), fractions=(0.4, 0.3, 0.3))
    site = module.sides["all"].sites[0]
    assert links(site).csi().shape == (len(starts), 6, R, T, K)
    csi, scale = draw(1, 60, R, T, K)[0], 6e-4 * float(draw(1, 60, R, T, K).abs().max())
    expected = torch.stack([csi[start : start + 6] for start in starts])
    torch.testing.assert_close(links(site).csi(), expected, rtol=0, atol=scale)
    torch.testing.assert_close(links(site).power, expected.abs().square().mean((1, 2, 3, 4)), rtol=1e-2, atol=0)
    assert (links(site).timestamps.diff(dim=1) < 0.2).all()
    batch = module.finish(module.sides["all"].__getitems__([1, 3]))
    torch.testing.assert_close(batch["csi"], expected[[1, 3], :5], rtol=0, atol=scale)
    torch.testing.assert_close(batch["next_csi"], expected[[1, 3], 5:], rtol=0, atol=scale)
    with pytest.raises(InputError, match=r"site a: the recording has no 61 snapshots in a row that are 0\.1 s apart"):
        serve(file, sequence=Sequence(snapshots=60))
    alone = serve(file)
    assert len(alone.sides["all"]) == 60
    assert alone.sample()["csi"].shape[1:] == (R, T, K)


# --- the split in time


def test_without_positions_time_splits(tmp_path: Path) -> None:
    module = serve(write(tmp_path / "a.safetensors", position=None))
    assert module.describe()["split"] == "time"
    train, validation, test = (module.sides[side].links.tolist() for side in ("train", "validation", "test"))
    assert (train, validation, test) == (list(range(21)), list(range(21, 24)), list(range(24, 30)))
    with pytest.raises(InputError, match=r"neither positions of all users nor timestamps: set data\.split to `random`"):
        serve(write(tmp_path / "a.safetensors", position=None, timestamps=None))
    with pytest.raises(InputError, match=r"split needs the positions of all users.* set data\.split to `time`"):
        serve(write(tmp_path / "a.safetensors", position=None), split="spatial")
    with pytest.raises(InputError, match="`time` split needs timestamps, and site a has none"):
        serve(write(tmp_path / "a.safetensors", timestamps=None), split="time")


def test_windows_on_both_sides_of_a_cut_are_a_window_apart(tmp_path: Path) -> None:
    module = serve(series(tmp_path / "a.safetensors", 600), sequence=Sequence(snapshots=5))
    site = module.sides["all"].sites[0]
    spans = [links(site).timestamps[module.sides[side].links] for side in ("train", "validation", "test")]
    assert [len(span) for span in spans] == [70, 9, 19]
    for before, after in itertools.pairwise(spans):
        assert after.min() - before.max() >= 0.6, "less than a window between the sides"


def test_time_is_one_for_all_sites() -> None:
    first, second = (series_site(name, start) for name, start in (("a", 0.0), ("b", 3.05)))
    sides = split_links([first, second], "time", (0.5, 0.2, 0.3))
    begin = np.concatenate([links(site).timestamps[:, 0] for site in (first, second)])
    end = np.concatenate([links(site).timestamps[:, -1] for site in (first, second)])
    assert not (np.sum(sides, axis=0) > 1).any()
    assert end[sides[0]].max() < begin[sides[1]].min()
    assert end[sides[1]].max() < begin[sides[2]].min()


def series_site(name: str, start: float) -> Site:
    from datamodules.sites.environment import Environment
    from datamodules.sites.recording import Recording

    stamps = start + 0.1 * torch.arange(60, dtype=torch.float64)
    recording = Recording.build(draw(60, R, T, K), torch.full((60, 3), torch.nan), interval=0.1)
    recording = replace(recording, timestamps=stamps)
    empty = Environment.empty(np.zeros((0, 3)))
    return Site(name, recording, torch.zeros(3), 3.5e9, name, name, empty).windows(6)


def test_shapes_of_the_recording_are_kept(tmp_path: Path) -> None:
    site = open_site(write(tmp_path / "a.safetensors", {**SHAPES, "num_subcarriers": K}))
    assert (links(site).bs_shape, links(site).ue_shape, links(site).bandwidth) == ((2, 2), (1, 2), 20e6)
    assert torch.equal(links(site).timestamps, tensors()["timestamps"])
