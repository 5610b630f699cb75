"""DeepMIMO 4 scenarios that are missing, half written, damaged or empty, and their download."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike

from datamodules.errors import DatasetNotFoundError, InputError
from datamodules.sources.deepmimo.v3 import DeepMIMOv3
from datamodules.sources.deepmimo.v4 import DeepMIMO
from tests.data.deepmimo.data import BASE_STATIONS, trace, write_scenario

LINK = "t001_tx000_r000"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenario(tmp_path / "scenarios", "street_3p5", num_users=200, seed=0)
    return tmp_path / "scenarios"


def source(
    root: Path, scenario: str = "street_3p5", base_stations: list[int] | None = None, download: bool = False
) -> DeepMIMO:
    return DeepMIMO(scenario, str(root), base_stations, download=download, cache=str(root.parent / "cache"))


def test_unknown_base_station(root: Path) -> None:
    with pytest.raises(InputError, match=r"base stations \[1, 2\], not \[7\]: change base_stations"):
        source(root, base_stations=[7]).sites()


def test_not_finite_values_are_masked(root: Path) -> None:
    expected = source(root).sites()[0]
    served = int(np.flatnonzero(np.load(root / "street_3p5" / f"delay_{LINK}.npz")["delay"][:, 1] > 0)[0])
    for key, value in (("delay", np.inf), ("power", -np.inf), ("aoa_az", np.nan)):
        file = root / "street_3p5" / f"{key}_{LINK}.npz"
        array = np.load(file)[key]
        array[served, 1] = value
        write_array(file, key, array)
    site = source(root).sites()[0]
    assert site.paths.mask.sum() == expected.paths.mask.sum() - 1
    assert all(torch.isfinite(value).all() for value in site.paths.as_dict().values())


def test_paths_of_unknown_interactions_are_no_line_of_sight(root: Path) -> None:
    before = source(root).sites()[0].paths
    file = root / "street_3p5" / f"inter_{LINK}.npz"
    write_array(file, "inter", np.full_like(np.load(file)["inter"], np.nan))
    paths = source(root).sites()[0].paths
    assert (before.los == 1).any()
    assert torch.equal(paths.mask, before.mask)
    assert (paths.los == 0).all()


def remove(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def truncate(file: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / file, (folder / file).stat().st_size // 2)


def overwrite(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(content)


def flip(file: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / file).read_bytes())
        content[len(content) // 2] ^= 0xFF
        (folder / file).write_bytes(content)

    return damage


def save(file: str, array: ArrayLike, key: str | None = None) -> Callable[[Path], None]:
    return lambda folder: write_array(folder / file, key or file.removesuffix(f"_{LINK}.npz"), array)


def write_array(file: Path, key: str, array: ArrayLike) -> None:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{key}.npy", content.getvalue())


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        params = json.loads((folder / "params.json").read_text())
        change(params)
        (folder / "params.json").write_text(json.dumps(params))

    return damage


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (remove("params.json"), "params.json is missing"),
        (remove(f"phase_{LINK}.npz"), f"phase_{LINK}.npz is missing"),
        (remove(f"tx_pos_{LINK}.npz"), f"tx_pos_{LINK}.npz is missing"),
        (remove("vertices.npz"), "vertices.npz is missing"),
        (remove("objects.json"), "objects.json is missing"),
        (truncate(f"power_{LINK}.npz"), f"power_{LINK}.npz is damaged"),
        (flip(f"delay_{LINK}.npz"), f"delay_{LINK}.npz is damaged"),
        (truncate("vertices.npz"), "vertices.npz is damaged"),
        (truncate("params.json"), "params.json is damaged"),
        (overwrite("params.json", b"\xff\xfe{}"), "params.json is damaged"),
        (overwrite("params.json", b"[]"), "params.json is damaged or incomplete"),
        (overwrite("objects.json", b'[{"label": "buildings"}]'), "objects.json is damaged"),
        (overwrite(f"inter_{LINK}.npz", b""), f"inter_{LINK}.npz is damaged"),
        (save(f"aoa_az_{LINK}.npz", np.zeros((200, 4)), "other"), f"aoa_az_{LINK}.npz is damaged"),
        (save(f"aoa_el_{LINK}.npz", np.zeros((199, 4))), rf"aoa_el_{LINK}.npz has shape \(199, 4\)"),
        (save(f"rx_pos_{LINK}.npz", np.zeros((200, 2))), rf"rx_pos_{LINK}.npz has shape \(200, 2\)"),
        (save(f"rx_pos_{LINK}.npz", np.full((200, 3), np.nan)), f"rx_pos_{LINK} holds positions"),
        (save(f"tx_pos_{LINK}.npz", np.zeros((2, 3))), f"tx_pos_{LINK} must hold one finite position"),
        (edit(lambda p: p["rt_params"].pop("frequency")), r"params.json is damaged or incomplete \(KeyError\('freq"),
        (edit(lambda p: p["rt_params"].update(frequency=0)), "params.json gives no usable frequency"),
        (edit(lambda p: p["txrx_sets"].pop("txrx_set_0")), "params.json has no users"),
        (edit(lambda p: p["scene"].update(num_scenes=4)), "street_3p5 is dynamic"),
    ],
)
def test_half_written_scenario_names_the_file(damage: Callable[[Path], object], named: str, root: Path) -> None:
    damage(root / "street_3p5")
    with pytest.raises(InputError, match=named) as caught:
        source(root).sites()
    assert "\n" not in str(caught.value)
    assert not list((root.parent / "cache").glob("street*"))


def test_the_exact_name_wins_over_other_cases(root: Path) -> None:
    shutil.copytree(root / "street_3p5", root / "Street_3p5")
    with np.load(root / "street_3p5" / f"delay_{LINK}.npz") as arrays:
        write_array(root / "Street_3p5" / f"delay_{LINK}.npz", "delay", arrays["delay"] + 1e-6)
    low, high = (source(root, name).sites()[0].paths.delay for name in ("street_3p5", "Street_3p5"))
    assert high.max() > low.max() + 0.9e-6
    with pytest.raises(InputError, match="any of Street_3p5, street_3p5 in"):
        source(root, "STREET_3P5").sites()


def test_a_home_folder_is_expanded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    assert DeepMIMO("street_3p5", "~/scenarios", download=False, cache=str(root.parent / "cache")).sites()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["params.mat", "BS1_UE_0-9.mat"], "is a scenario of DeepMIMO v3: read it with the source DeepMIMOv3"),
        (["O1_60.params.mat", "O1_60.1.CIR.mat"], "of DeepMIMO v1 or v2, which no source reads"),
        (["other/params.json"], "set root to .*other and scenario to other"),
        (["scene_0/params.json", "scene_1/params.json"], "scenario to one of scene_0 to scene_1"),
    ],
)
def test_a_folder_of_another_layout_is_told_apart(root: Path, files: list[str], says: str) -> None:
    for file in files:
        (root / "other" / file).parent.mkdir(parents=True, exist_ok=True)
        (root / "other" / file).write_bytes(b"")
    with pytest.raises(InputError, match=says):
        source(root, "other").sites()


def test_a_scenario_of_version_4_is_none_of_version_3(root: Path) -> None:
    with pytest.raises(InputError, match="of DeepMIMO 4: read it with the source DeepMIMO"):
        DeepMIMOv3("street_3p5", str(root), cache=str(root.parent / "cache")).sites()


def test_a_snapshot_of_a_dynamic_scenario_is_a_scenario(root: Path) -> None:
    shutil.copytree(root / "street_3p5", root / "walk" / "scene_0")
    shutil.copy(root / "street_3p5" / "params.json", root / "walk")
    edit(lambda p: p["scene"].update(num_scenes=1 + 1))(root / "walk")
    with pytest.raises(InputError, match=r"set root to .*walk and scenario to one of scene_0 to scene_0"):
        source(root, "walk").sites()
    assert source(root / "walk", "scene_0").sites()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was run",))


def test_pickles_are_refused(root: Path) -> None:
    save(f"power_{LINK}.npz", np.array([Bomb()], dtype=object))(root / "street_3p5")
    with pytest.raises(InputError, match=f"power_{LINK}.npz is damaged"):
        source(root).sites()


def test_no_user_has_a_path(root: Path) -> None:
    for key, value in trace(BASE_STATIONS[0], np.full((200, 3), 1e9), 3.5e9).items():
        write_array(root / "street_3p5" / f"{key}_{LINK}.npz", key, value * np.nan)
    with pytest.raises(InputError, match="no user of street_3p5_bs1 has a path: leave this base station out"):
        source(root).sites()
    assert len(source(root, base_stations=[2]).sites()) == 1


@pytest.mark.parametrize("scenario", ["", "..", "a/b", "/abs/city_0_newyork_3p5"])
def test_scenario_is_a_name(scenario: str) -> None:
    with pytest.raises(InputError, match="scenario must be a name"):
        DeepMIMO(scenario)


def test_missing_scenario(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DatasetNotFoundError,
        match=r"'nowhere' is not in .*scenarios, which holds street_3p5: set scenario, root .*, or download",
    ):
        source(root, scenario="nowhere").sites()
    monkeypatch.setenv("CSI_DATA", str(root))
    with pytest.raises(DatasetNotFoundError, match=r"scenarios/deepmimo: set scenario, root"):
        DeepMIMO("nowhere", download=False).recipes()


def test_nothing_asks_on_stdin(root: Path) -> None:
    """With stdin closed, a missing scenario is an error and a present one loads; deepmimo is not even imported."""
    program = (
        "import sys\n"
        "from datamodules.errors import DatasetNotFoundError\n"
        "from datamodules.sources.deepmimo.v4 import DeepMIMO\n"
        f"make = lambda name: DeepMIMO(name, root={str(root)!r}, cache={str(root.parent)!r}, download=False).sites()\n"
        "assert len(make('street_3p5')) == 2\n"
        "assert 'deepmimo' not in sys.modules\n"
        "try:\n    make('nowhere')\nexcept DatasetNotFoundError:\n    print('raised')\n"
    )
    command = f'exec {sys.executable} -c "$PROGRAM" <&-'
    environment = {**os.environ, "PROGRAM": program}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "raised\n"), done.stderr


class Server:
    """Answers `requests.get` as DeepMIMO's server does: first with a redirect, then with the archive."""

    def __init__(self, archive: bytes | Exception) -> None:
        self.archive = archive
        self.headers = {"content-length": "0"}

    def __call__(self, url: str, **_: object) -> Server:
        if isinstance(self.archive, Exception):
            raise self.archive
        return self

    def raise_for_status(self) -> None:
        pass

    def json(self) -> dict[str, str]:
        return {"redirectUrl": "/archive.zip"}

    def iter_content(self, chunk_size: int) -> list[bytes]:
        assert isinstance(self.archive, bytes)
        return [self.archive[i : i + chunk_size] for i in range(0, len(self.archive), chunk_size)]


def test_download(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", root, "street_3p5")
    monkeypatch.setattr("requests.get", Server(Path(archive).read_bytes()))
    import deepmimo

    folder = deepmimo.config.get("scenarios_folder")
    capsys.readouterr()
    sites = source(tmp_path / "empty" / "deepmimo", download=True).sites()
    assert [len(site) for site in sites] == [len(site) for site in source(root).sites()]
    assert [entry.name for entry in (tmp_path / "empty" / "deepmimo").iterdir()] == ["street_3p5"]
    assert deepmimo.config.get("scenarios_folder") == folder
    assert capsys.readouterr().out == ""


def test_another_process_downloads_the_same(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(scenario: str, folder: Path) -> None:
        for place in (folder, tmp_path / "empty"):
            shutil.copytree(root / scenario, place / scenario)

    monkeypatch.setattr("datamodules.sources.deepmimo.v4._fetch", fetch)
    assert len(source(tmp_path / "empty", download=True).recipes()) == len(source(root).recipes())


def test_download_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import deepmimo
    import requests

    folder = deepmimo.config.get("scenarios_folder")
    empty, broken = io.BytesIO(), b"not an archive"
    zipfile.ZipFile(empty, "w").close()
    for answer in (requests.ConnectionError("network is\nunreachable"), broken, empty.getvalue()):
        monkeypatch.setattr("requests.get", Server(answer))
        with pytest.raises(
            DatasetNotFoundError, match=r"'nowhere' is not in .*could not be downloaded .*: set scenario, or root to"
        ) as caught:
            source(tmp_path / "deepmimo", scenario="nowhere", download=True).sites()
        assert "\n" not in str(caught.value)
        assert ("unreachable" in str(caught.value)) == isinstance(answer, Exception)
        assert list((tmp_path / "deepmimo").iterdir()) == []
    assert deepmimo.config.get("scenarios_folder") == folder
