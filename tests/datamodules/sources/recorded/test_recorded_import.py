"""Recordings from .npy, .npz and .mat: axes in any order, faults named, and nothing unpickled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from datamodules.errors import InputError
from datamodules.sources.recorded.file import read_recording
from datamodules.sources.recorded.importing import import_recording
from tests.datamodules.sources.recorded.test_recorded import FACTS, K, N, R, T, U, draw, tensors, with_value

GIVEN: dict[str, Any] = {**FACTS, "carrier_at": "lowest"}


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    given = tensors()
    return {key: value.numpy() for key, value in given.items()}


@pytest.mark.parametrize(
    ("axes", "reorder", "counts"),
    [
        ("U R T K", lambda csi: csi, {}),
        ("K T R U", lambda csi: csi.transpose(3, 2, 1, 0), {}),
        ("u k (r t)", lambda csi: csi.transpose(0, 3, 1, 2).reshape(U, K, R * T), {"bs_rows": 2, "bs_cols": 2}),
        ("(T R) K U", lambda csi: csi.transpose(2, 1, 3, 0).reshape(T * R, K, U), {"ue_rows": 1, "ue_cols": R}),
        ("C U R T K", lambda csi: np.stack([csi.real, csi.imag]), {}),
        ("U R T K C", lambda csi: np.stack([csi.real, csi.imag], -1).astype(np.float64), {}),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".mat"])
def test_import(tmp_path: Path, axes: str, reorder: Any, counts: dict[str, int], suffix: str) -> None:
    given = arrays()
    source = tmp_path / f"measured{suffix}"
    contents = {**given, "csi": reorder(given["csi"])}
    names: dict[str, Any] = {"position": "position", "los": "los", "timestamps": "timestamps"}
    if suffix == ".npy":
        np.save(source, contents["csi"])
        for key in names:
            np.save(tmp_path / f"{key}.npy", given[key])
            names[key] = str(tmp_path / f"{key}.npy")
    elif suffix == ".npz":
        np.savez_compressed(source, **contents)
    else:
        contents["los"] = given["los"].astype(np.float64)
        scipy.io.savemat(source, contents, oned_as="column")
    out = import_recording(str(source), str(tmp_path / "new" / "a.safetensors"), axes=axes, **GIVEN, **names, **counts)
    recording, facts = read_recording(out)
    scale = np.abs(given["csi"]).max((1, 2, 3), keepdims=True)
    assert (np.abs(recording.csi().numpy() - given["csi"]) / scale).max() < 6e-4
    np.testing.assert_allclose(recording.position, given["position"], rtol=1e-6)
    np.testing.assert_array_equal(recording.los, given["los"])
    assert facts == {**FACTS, **counts}
    assert [path.name for path in out.parent.iterdir()] == ["a.safetensors"]


def test_import_of_sequences_of_one_antenna(tmp_path: Path) -> None:
    csi = draw(U, N, K).numpy()
    np.savez(tmp_path / "a.npz", h=csi, xy=np.ones((U, 2)))
    out = import_recording(
        str(tmp_path / "a.npz"), str(tmp_path / "a.safetensors"), axes="U N K", csi="h", position="xy", interval=5e-3,
        bs_position=[0.0, 0.0, 8.0], area="lab", city="here", **GIVEN,
    )  # fmt: skip
    recording, facts = read_recording(out)
    assert recording.csi().shape == (U, N, 1, 1, K)
    assert recording.interval == 5e-3
    assert recording.position.tolist() == [[1, 1, 0]] * U
    assert (facts["area"], facts["city"], facts["bs_position"]) == ("lab", "here", [0, 0, 8])


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_import_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "exploded"
    bomb = np.array([Bomb(marker)], dtype=object)
    np.save(tmp_path / "a.npy", bomb, allow_pickle=True)
    np.savez(tmp_path / "a.npz", csi=bomb, allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(bomb.dumps())
    scipy.io.savemat(tmp_path / "a.mat", {"csi": {"nested": 1}})
    scipy.io.savemat(tmp_path / "b.mat", {"csi": np.array(["text", 1], dtype=object)})
    for name in ("a.npy", "a.npz", "b.npy", "a.mat", "b.mat"):
        with pytest.raises(
            InputError,
            match=rf"{name}.* (holds Python objects|holds no array of numbers|with the fields|different shapes)",
        ) as caught:
            import_recording(str(tmp_path / name), str(tmp_path / "o.safetensors"), axes="U K", **GIVEN)
        assert "\n" not in str(caught.value)
    assert not marker.exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert marker.exists()  # the bomb was live


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axes": "U T K"}, r"axes 'U T K' do not fit an array of shape \(30, 2, 4, 8\)"),
        ({"axes": "R T K"}, "axes must name U, or N"),
        ({"axes": "U U T K"}, "axes must name U, or N"),
        ({"axes": "U R T X"}, "axes must name U, or N"),
        ({"axes": "U R T K C"}, "name an axis C, of pairs"),
        ({"axes": "U (R T K"}, "do not fit"),
        ({"axes": "U R T K", "bs_rows": 3, "bs_cols": 1}, "T = 3 do not fit an array"),
        ({"position": "where"}, "holds no 'where', but csi, position, los, timestamps"),
        ({"position": "where.npy"}, r"where\.npy does not exist"),
        ({"csi": "position"}, "name no axis C for pairs of real numbers, but .*: save complex numbers, or name"),
        ({"los": "position"}, r"los \(position\) must be -1, 0 or 1"),
        ({"timestamps": "los"}, r"recording .*a\.npz: timestamps of \d+ of 30 links is not after"),
        ({"bandwidth": 0.0}, "the metadata bandwidth must be a positive number"),
        (
            {"carrier_frequency": 5.18, "bandwidth": 16.25, "carrier_at": "middle"},
            "5.18 Hz must be above half of the bandwidth, .*: give both in Hz",
        ),
        ({"out": "a.npz"}, r"out must end in \.safetensors"),
        ({"source": "none.npz"}, r"none\.npz does not exist"),
        ({"source": "a.txt"}, r"a\.txt is neither \.npy, \.npz nor \.mat"),
        ({"source": "cut.npz"}, r"cut\.npz cannot be read"),
        ({"source": "cut.npy"}, r"cut\.npy cannot be read"),
        ({"source": "cut.mat"}, r"cut\.mat cannot be read"),
        ({"source": "hdf5.mat"}, r"hdf5\.mat cannot be read"),
        ({"source": "bad.npz"}, r"recording bad\.npz: csi of 1 of 30 links is not finite, first of link 5"),
    ],
)
def test_import_faults(tmp_path: Path, settings: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = arrays()
    np.savez("a.npz", **given)
    np.savez("bad.npz", csi=with_value(tensors()["csi"], 5, np.nan).numpy())
    np.save("whole.npy", given["csi"])
    scipy.io.savemat("whole.mat", given)
    Path("a.txt").write_text("1 2 3")
    for suffix, whole in ((".npz", "a.npz"), (".npy", "whole.npy"), (".mat", "whole.mat")):
        content = Path(whole).read_bytes()
        Path(f"cut{suffix}").write_bytes(content[: len(content) // 2])
    Path("hdf5.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(600))
    before = sorted(tmp_path.iterdir())
    defaults = {"source": "a.npz", "out": "out.safetensors", "axes": "U R T K", **GIVEN}
    with pytest.raises(InputError, match=message) as caught:
        import_recording(**{**defaults, **settings})
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
