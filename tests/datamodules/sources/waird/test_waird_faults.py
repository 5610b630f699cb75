"""Damaged, incomplete and hostile WAIR-D files: each is named in one line, and none is run."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from datamodules.errors import DatasetNotFoundError, InputError
from datamodules.sources.waird.source import WAIRD
from tests.datamodules.sources.waird.released_waird import load, read, read_area, save_python2, write_area


@pytest.fixture
def area(tmp_path: Path) -> Path:
    folder = tmp_path / "scenario_1" / "00007"
    write_area(folder, 1, 5)
    return folder


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["Info.npy", "Path.npy", "H_28_0_G.npy"])
def test_a_pickle_bomb_is_refused_and_not_run(area: Path, tmp_path: Path, name: str) -> None:
    marker = tmp_path / "exploded"
    np.save(area / name, np.array({"bs0_ue0": Bomb(marker)}, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=rf"{name} is refused: it would run \w+\.mkdir") as caught:
        read_area(area)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    load(area / name)
    assert marker.exists()  # the bomb was live


@pytest.mark.parametrize(
    "call",
    [
        b"cbuiltins\neval\n(V1\ntR.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.",
    ],
)
def test_only_arrays_may_be_named(area: Path, call: bytes) -> None:
    content = (area / "Path.npy").read_bytes()
    (area / "Path.npy").write_bytes(content[:128] + call)
    with pytest.raises(InputError, match=r"Path\.npy is refused"):
        read_area(area)


@pytest.mark.parametrize(
    "state",
    [
        (1, (3,), np.dtype("O"), False, [1]),  # crashes the process when NumPy itself unpickles it
        (1, (10**9,), np.dtype("f8"), False, b"12345678"),
        (1, (-1,), np.dtype("f8"), False, b"12345678"),
        (1, (1,), np.dtype([("a", "f8")]), False, b"12345678"),
        (1, (1,), np.dtype("M8[s]"), False, b"12345678"),
        None,
    ],
)
def test_forged_arrays_are_refused(area: Path, state: Any) -> None:
    class Forged:
        def __reduce__(self) -> tuple[Any, ...]:
            return (*np.zeros(0).__reduce__()[:2], *([state] if state else []))

    np.save(area / "Path.npy", np.array({"bs0_ue0": Forged()}, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"Path\.npy is damaged"):
        read_area(area)


@pytest.mark.parametrize("name", ["Info.npy", "Path.npy", "H_28_0_G.npy", "environment.png"])
@pytest.mark.parametrize("keep", [0, 60, 0.5, 0.95])
def test_truncated_files_are_named(area: Path, name: str, keep: float) -> None:
    content = (area / name).read_bytes()
    (area / name).write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    with pytest.raises(InputError, match=name) as caught:
        read_area(area)
    assert "\n" not in str(caught.value)
    assert not list((area.parents[1] / "cache").glob("waird*"))


@pytest.mark.parametrize("name", ["Info.npy", "Path.npy", "H_28_0_G.npy", "environment.png"])
def test_missing_files_are_named(area: Path, name: str) -> None:
    (area / name).unlink()
    with pytest.raises(DatasetNotFoundError, match=name):
        read_area(area)


def test_a_frequency_that_is_not_there_says_which_are(area: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"H_2_6_G\.npy is missing.*H_28_0_G\.npy"):
        read(area.parents[1], area.parents[1] / "cache", frequency=2.6e9)
    with pytest.raises(InputError, match="28 GHz is 28e9"):
        WAIRD(frequency=28)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rays: rays.pop("bs3_ue4"), "no link bs3_ue4"),
        (lambda rays: rays["bs3_ue4"].pop("doa"), "link bs3_ue4 has no 'doa', only taud, dod"),
        (lambda rays: rays.update(bs3_ue4=[1]), "link bs3_ue4 cannot be read"),
        (
            lambda rays: rays["bs3_ue4"].update(taud=np.zeros(9)),
            "link bs3_ue4 cannot be read .its numbers of paths disagree",
        ),
        (lambda rays: rays["bs3_ue4"].update(taud=["x"]), "link bs3_ue4 cannot be read"),
        (lambda rays: rays["bs3_ue4"].update(dod=np.zeros(3)), "link bs3_ue4 cannot be read"),
    ],
)
def test_wrong_keys_and_sizes_name_file_and_link(area: Path, change: Any, message: str) -> None:
    rays = load(area / "Path.npy")
    change(rays)
    save_python2(area / "Path.npy", rays)
    with pytest.raises(InputError, match=rf"Path\.npy.*{message}"):
        read_area(area)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (np.arange(1, 602.0), "601 values"),
        (np.arange(1, 603.0), "does not pair every base station"),
        (np.full(602, np.nan), "not finite"),
        (np.zeros(602), "extent that is not positive"),
        (np.array(["a"] * 602), "holds no numbers"),
    ],
)
def test_wrong_positions_name_the_file(area: Path, info: NDArray[Any], message: str) -> None:
    np.save(area / "Info.npy", info)
    with pytest.raises(InputError, match=rf"Info\.npy.*{message}"):
        read_area(area)


def test_paths_that_are_not_finite_are_dropped_with_a_warning(area: Path) -> None:
    rays, gains = load(area / "Path.npy"), load(area / "H_28_0_G.npy")
    gains["bs0_ue0"][:] = np.nan
    rays["bs0_ue2"]["dod"][:, 1] = np.inf
    count = len(gains["bs0_ue0"]) + len(gains["bs0_ue2"])
    save_python2(area / "Path.npy", rays)
    save_python2(area / "H_28_0_G.npy", gains)
    with pytest.warns(UserWarning, match=rf"00007: {count} paths of bs0 are not finite in Path.npy and H_28_0_G.npy"):
        paths = read_area(area)[0].paths
    assert paths.los[[0, 2]].tolist() == [-1, -1]
    assert all(torch.isfinite(value).all() for value in paths.as_dict().values())
