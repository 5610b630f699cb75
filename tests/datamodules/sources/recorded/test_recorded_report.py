"""`import`, `show` and `example` say what a recording holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.__main__ import main
from datamodules.sites.recording import Recording
from datamodules.sources.recorded.file import read_recording
from datamodules.sources.recorded.report import report
from datamodules.sources.recorded.source import Recorded
from tests.datamodules.sources.recorded.test_recorded import draw


def made(**changed: Any) -> Recording:
    csi = draw(300, 1, 2, 16)
    csi[..., 3] = 0
    csi[..., 5] = csi[0, ..., 5]
    csi[7] = csi[299] = csi[0]
    csi[9] = 0
    stamps = 0.1 * torch.arange(300, dtype=torch.float64)
    stamps[100:] += 0.5
    stamps[200:] += 2.0
    fields = {"timestamps": stamps, "bandwidth": 16e6, "bs_shape": (1, 2), **changed}
    recording = Recording.build(csi, torch.full((300, 3), torch.nan), interval=0.1)
    return Recording(**recording.as_dict(), interval=0.1, **fields)


def test_what_is_odd_is_said() -> None:
    words = report(made(), 5e9)
    assert words["axes"] == "U 300, R 1, T 2, K 16 (U snapshots of one device)"
    assert words["arrays"] == "T 1 x 2; R 1, of unknown rows and columns"
    assert words["subcarriers"] == "16 on 16 MHz, 1000 kHz apart"
    assert words["carrier"] == "5 GHz at the lowest subcarrier, 5.008 GHz at the middle"
    assert words["time"] == "32.4 s, from 0.000 to 32.400 s, snapshots 0.1 s apart"
    assert words["gaps"] == "2 (0.6 s after link 99, 2.1 s after link 199); 2.7 s in all"
    assert words["duplicates"] == "2 (links that equal an earlier one in every value)"
    assert words["zero subcarriers"] == "1 (6.25 %: 3)"
    assert words["constant subcarriers"] == "none"  # a link without power is not constant
    assert words["power"].endswith("; 1 links without any")
    assert words["positions"] == "0 of 300 links"
    assert report(made(timestamps=None))["time"] == "not recorded, snapshots 0.1 s apart"


def test_constant_subcarriers_are_counted() -> None:
    csi = draw(300, 1, 2, 16)
    csi[..., 5] = csi[0, ..., 5]
    words = report(Recording.build(csi, torch.zeros(300, 3)))
    assert words["constant subcarriers"] == "1 (6.25 %: 5)"
    assert words["duplicates"] == words["zero subcarriers"] == "none"
    assert "gaps" not in words


def test_pairs_the_wrong_way_round_are_noticed() -> None:
    k, delay = torch.arange(32), torch.tensor([0.0, 1.0, 2.0, 3.0])
    weight = draw(200, 1, 1, 4) * torch.tensor([3.0, 1.0, 0.7, 0.5])
    csi = weight @ torch.exp(-2j * torch.pi * delay[:, None] * k / 32).to(torch.complex64)
    nowhere = torch.full((200, 3), torch.nan)
    assert "delays" not in report(Recording.build(csi, nowhere))
    assert "pairs may be (imaginary, real)" in report(Recording.build(1j * csi.conj(), nowhere))["delays"]


def test_import_and_show_say_what_was_made(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    csi = draw(40, 3, 16).numpy()
    csi[..., [0, 8]] = 0
    np.savez("log.npz", csi=csi, t=0.1 * np.arange(40))
    args = ["import", "log.npz", "hall.safetensors", "--axes", "N T K", "--timestamps", "t"]
    args += ["--carrier_frequency", "5.18e9", "--bandwidth", "16e6"]
    assert main(args) == 0
    lines = {line[:22].strip(): line[22:].strip() for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines["axes"] == "U 40, R 1, T 3, K 16 (U snapshots of one device)"
    assert lines["zero subcarriers"] == "2 (12.5 %: 0, 8)"
    assert lines["gaps"] == "none"
    assert main([*args, "--drop_null", "true"]) == 0
    assert "dropped              2 null subcarriers: 0, 8" in capsys.readouterr().out
    Recorded("hall.safetensors", root=".", cache="sites").sites()
    assert main(["show", "hall", "--cache", "sites"]) == 0
    assert "axes                 U 40, R 1, T 3, K 14 (U snapshots of one device)" in capsys.readouterr().out


def test_the_example_is_one_walk_with_a_pause(tmp_path: Path, capsys: Any) -> None:
    assert main(["example", "--out", str(tmp_path / "a")]) == 0
    assert "1 (5.1 s after link 899); 5.1 s in all" in capsys.readouterr().out
    file = tmp_path / "a" / "example.safetensors"
    assert main(["example", "--out", str(tmp_path / "b")]) == 0
    recording, _ = read_recording(file)
    assert torch.equal(recording.pairs, read_recording(tmp_path / "b" / "example.safetensors")[0].pairs)
    assert recording.is_series
    assert recording.csi().shape == (1500, 1, 4, 32)
    assert recording.los.float().mean() == pytest.approx(2 / 3, abs=0.01)
    power = recording.power.log10() * 10
    assert power[recording.los == 1].median() > power[recording.los == 0].median() + 3
    capsys.readouterr()
    assert main(["example", "--out", str(tmp_path / "a")]) == 2
    assert "is there already" in capsys.readouterr().err
