"""Measured files as they come: few axes or many, structs, MATLAB 7.3, int8 pairs, null tones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

from datamodules.errors import InputError
from datamodules.sites.recording import Recording
from datamodules.sources.recorded.file import read_recording
from datamodules.sources.recorded.importing import import_recording

U, K = 12, 16
RNG = np.random.default_rng(0)
GRID: dict[str, Any] = {"carrier_frequency": 5.18e9, "bandwidth": 16e6}


def draw(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape) + 1j * RNG.normal(size=shape)


def bring(file: Path, **settings: Any) -> tuple[Recording, dict[str, Any]]:
    return read_recording(import_recording(str(file), str(file.with_suffix(".safetensors")), **{**GRID, **settings}))


def saved(file: Path, array: Any, **more: Any) -> Path:
    if file.suffix == ".npy":
        np.save(file, array)
    elif file.suffix == ".npz":
        np.savez(file, csi=array, **more)
    else:
        scipy.io.savemat(file, {"csi": array, **more} if array is not None else more)
    return file


def agree(recording: Recording, expected: np.ndarray[Any, Any]) -> None:
    assert recording.csi().shape == expected.shape
    assert np.abs(recording.csi().numpy() - expected).max() < 2e-3 * np.abs(expected).max()


# --- few axes


@pytest.mark.parametrize(
    ("axes", "shapes", "shape"),
    [
        ("U T K", {}, (U, 1, 3, K)),  # the access point has three antennas
        ("U R K", {}, (U, 3, 1, K)),  # the device has them
        ("U (T K)", {"bs_rows": 1, "bs_cols": 3}, (U, 1, 3, K)),
        ("U (R K)", {"ue_rows": 3, "ue_cols": 1}, (U, 3, 1, K)),
    ],
)
def test_three_antennas_on_the_axis_of_choice(tmp_path: Path, axes: str, shapes: Any, shape: tuple[int, ...]) -> None:
    csi = draw(U, 3, K)
    given = csi.reshape(U, 3 * K) if "(" in axes else csi
    recording, facts = bring(saved(tmp_path / "a.npy", given), axes=axes, **shapes)
    agree(recording, csi.reshape(shape))
    assert {key: facts[key] for key in shapes} == shapes


def test_one_antenna_and_one_subcarrier(tmp_path: Path) -> None:
    csi = draw(U, K)
    agree(bring(saved(tmp_path / "a.npy", csi), axes="U K")[0], csi[:, None, None])
    agree(bring(saved(tmp_path / "a.npy", csi), axes="U T", narrowband=True)[0], csi[:, None, :, None])
    with pytest.raises(InputError, match="axes 'U T' name no axis K of subcarriers: add it with narrowband"):
        bring(tmp_path / "a.npy", axes="U T")
    with pytest.raises(InputError, match="axes 'U K' name an axis K of subcarriers: but narrowband adds it"):
        bring(tmp_path / "a.npy", axes="U K", narrowband=True)


@pytest.mark.parametrize("stamps", [(1, 40), (40, 1), (40,)])
def test_a_single_device(tmp_path: Path, stamps: tuple[int, ...]) -> None:
    csi, times = draw(40, 3, K), 0.1 * np.arange(40)
    where = RNG.normal(size=(40, 2))
    file = saved(tmp_path / "a.npz", csi, t=times.reshape(stamps), where=where, los=np.arange(40) % 2)
    recording, _ = bring(file, axes="N T K", timestamps="t", position="where", los="los")
    agree(recording, csi[:, None])
    assert recording.is_series
    assert recording.interval == pytest.approx(0.1)
    np.testing.assert_allclose(recording.timestamps, times)
    np.testing.assert_allclose(recording.position, np.pad(where, ((0, 0), (0, 1))), rtol=1e-6)
    assert recording.los.tolist() == [0, 1] * 20
    with pytest.raises(InputError, match=r"said to be 0\.005 s, but the timestamps are 0\.1 s apart"):
        bring(file, axes="N T K", timestamps="t", interval=5e-3)


# --- many axes


def test_seven_axes(tmp_path: Path) -> None:
    csi = draw(U, 5, 2, 3, 4, 2, K)  # users, snapshots, user antennas, rows, columns, polarisations, subcarriers
    file = saved(tmp_path / "a.npy", csi)
    recording, facts = bring(file, axes="U N R T1 T2 P K", polarization="T", interval=5e-3)
    expected = np.concatenate([csi[..., p, :].reshape(U, 5, 2, 12, K) for p in (0, 1)], 3)
    agree(recording, expected)
    assert (facts["bs_rows"], facts["bs_cols"]) == (6, 4)
    agree(bring(file, axes="U N R T1 T2 P K", polarization=1, interval=5e-3)[0], expected[..., 12:, :])
    users = bring(file, axes="U N R T1 T2 P K", polarization="R", interval=5e-3)[0]
    agree(users, np.concatenate([csi[..., p, :].reshape(U, 5, 2, 12, K) for p in (0, 1)], 2))
    for settings, message in (
        ({}, "name an axis P: set polarization to T or R"),
        ({"polarization": 2}, "polarization must be below the 2 that the CSI has, got 2"),
        ({"polarization": "T", "axes": "U N R T1 T P K"}, "must name T, or its rows T1 and columns T2"),
        ({"polarization": "T", "axes": "U N R T1 T2 C K"}, "name an axis C, of pairs of real numbers"),
    ):
        with pytest.raises(InputError, match=message):
            bring(file, **{"axes": "U N R T1 T2 P K", "interval": 5e-3, **settings})


# --- int8 pairs, null tones, carriers


@pytest.mark.parametrize(("axes", "last"), [("U (K C)", True), ("U (C K)", False), ("U K C", True)])
@pytest.mark.parametrize("pairs", ["IQ", "QI"])
def test_int8_pairs_with_null_tones(tmp_path: Path, axes: str, last: bool, pairs: Any) -> None:
    real, imag = RNG.integers(-127, 128, (2, U, K)).astype(np.int8)
    null = [0, 1, 8, 15]
    real[:, null] = imag[:, null] = 0
    both = np.stack([real, imag] if pairs == "IQ" else [imag, real], -1 if last else 1)
    file = saved(tmp_path / "a.npy", both if axes == "U K C" else both.reshape(U, 2 * K))
    expected = (real.astype(float) + 1j * imag)[:, None, None]
    agree(bring(file, axes=axes, pairs=pairs)[0], expected)
    recording, facts = bring(file, axes=axes, pairs=pairs, drop_null=True)
    agree(recording, np.delete(expected, null, -1))
    assert facts["dropped_subcarriers"] == null
    assert facts["bandwidth"] == 12e6
    assert facts["carrier_frequency"] == 5.18e9 - 8e6 + 2e6


def test_the_carrier_is_of_the_middle_or_of_the_lowest(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.npy", draw(U, K))
    assert bring(file, axes="U K")[1]["carrier_frequency"] == 5.18e9 - 8e6
    assert bring(file, axes="U K", carrier_at="lowest")[1]["carrier_frequency"] == 5.18e9


def test_subcarriers_in_the_order_of_an_fft(tmp_path: Path) -> None:
    csi = draw(U, K)
    recording, _ = bring(saved(tmp_path / "a.npy", np.fft.ifftshift(csi, axes=1)), axes="U K", fft_order=True)
    agree(recording, csi[:, None, None])


# --- MATLAB


def struct(csi: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"csi": csi, "rssi": np.arange(U), "info": {"t": 0.1 * np.arange(U)}}


def test_a_struct_is_named_with_its_fields(tmp_path: Path) -> None:
    csi = draw(U, 3, K)
    file = saved(tmp_path / "a.mat", None, Log=struct(csi), other=1.0)
    with pytest.raises(
        InputError, match=r"no 'csi', but Log with the fields Log\.csi, Log\.rssi, Log\.info, other"
    ) as caught:
        bring(file, axes="U T K")
    assert "\n" not in str(caught.value)
    recording, _ = bring(file, axes="U T K", csi="Log.csi", timestamps="Log.info.t")
    agree(recording, csi[:, None])
    np.testing.assert_allclose(recording.timestamps, 0.1 * np.arange(U))
    with pytest.raises(InputError, match=r"holds no 'h', but Log with the fields Log\.csi"):
        bring(file, axes="U T K", csi="Log.h")


def test_struct_and_cell_arrays_are_stacked(tmp_path: Path) -> None:
    csi = draw(U, 3, K)
    packets = np.zeros((1, U), dtype=[("csi", object), ("t", object)])
    cells = np.zeros((1, U), dtype=object)
    for u in range(U):
        packets[0, u] = (csi[u], 0.1 * u)
        cells[0, u] = {"csi": csi[u], "t": 0.1 * u}
    file = saved(tmp_path / "a.mat", None, packets=packets, cells=cells)
    for name in ("packets", "cells"):
        recording, _ = bring(file, axes="U T K", csi=f"{name}.csi", timestamps=f"{name}.t")
        agree(recording, csi[:, None])
        np.testing.assert_allclose(recording.timestamps, 0.1 * np.arange(U))
    cells[0, 3]["csi"] = csi[3, :2]
    saved(tmp_path / "a.mat", None, cells=cells)
    with pytest.raises(InputError, match=r"the elements of 'cells\.csi' in .*a\.mat have different shapes"):
        bring(file, axes="U T K", csi="cells.csi")


def test_matlab_7_3(tmp_path: Path) -> None:
    csi = draw(U, 3, K)
    pairs = np.empty(csi.T.shape, dtype=[("real", "f8"), ("imag", "f8")])
    pairs["real"], pairs["imag"] = csi.T.real, csi.T.imag  # HDF5 has MATLAB's axes the other way round
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as made:
        made["h"] = pairs
        made["Log/csi"] = pairs
        made["Log/t"] = 0.1 * np.arange(U)[:, None]
        made["#refs#/a"], made["#refs#/b"] = pairs[..., :6], pairs[..., 6:]
        made["Log/parts"] = np.array([[made["#refs#/a"].ref], [made["#refs#/b"].ref]], dtype=h5py.ref_dtype)
    with (tmp_path / "a.mat").open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    file = tmp_path / "a.mat"
    agree(bring(file, axes="U T K", csi="h")[0], csi[:, None])
    recording, _ = bring(file, axes="U T K", csi="Log.csi", timestamps="Log.t")
    agree(recording, csi[:, None])
    np.testing.assert_allclose(recording.timestamps, 0.1 * np.arange(U))
    halves = bring(file, axes="N U T K", csi="Log.parts", interval=0.1)[0]
    agree(halves, csi.reshape(2, 6, 1, 3, K).transpose(1, 0, 2, 3, 4))
    with pytest.raises(InputError, match=r"no 'csi', but Log with the fields Log\.csi, Log\.parts, Log\.t, h"):
        bring(file, axes="U T K")
    with pytest.raises(InputError, match=r"holds no 'x', but Log with the fields"):
        bring(file, axes="U T K", csi="Log.x")
