"""WAIR-D's reader against a data set made from DATA.md section 2 alone."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM
from datamodules.channel.synthesis import synthesize
from datamodules.errors import DatasetNotFoundError, InputError
from datamodules.sites.paths import Paths
from datamodules.sources.waird.source import WAIRD
from tests.datamodules.sources.waird.released_waird import (
    EMPTY,
    SIZE,
    load,
    read,
    read_area,
    relative_error,
    save_python2,
    write_area,
)

FC, BANDWIDTH, NUM_TONES = 28e9, 46.08e6, 64


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("waird")
    for number, seed in ((1, 1), (32, 2), (1500, 3)):
        write_area(root / "data" / "scenario_1" / f"{number:05d}", 1, seed)
    write_area(root / "data" / "scenario_2" / "00032", 2, 4)
    return root


@pytest.fixture
def area(tmp_path: Path) -> Path:
    folder = tmp_path / "scenario_1" / "00007"
    write_area(folder, 1, 5)
    return folder


def released_cfr(
    ray: dict[str, Any], gain: NDArray[Any], bs: tuple[int, int, int], ue: tuple[int, int, int]
) -> NDArray[Any]:
    """DATA.md 2.3 without its power factor: (Nt, Nr, S), elements in C order over x, y, z."""

    def response(angles: NDArray[Any], shape: tuple[int, int, int]) -> NDArray[Any]:
        zenith, azimuth = angles.T
        direction = np.stack((np.sin(zenith) * np.cos(azimuth), np.sin(zenith) * np.sin(azimuth), np.cos(zenith)))
        axes = [0.5 * (np.arange(n) - (n - 1) / 2) for n in shape]
        place = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        steering: NDArray[Any] = np.exp(2j * np.pi * place @ direction)
        return steering

    tones_ghz = (FC + np.linspace(-BANDWIDTH / 2, BANDWIDTH / 2, NUM_TONES)) / 1e9
    delayed = gain[:, None] * np.exp(-2j * np.pi * ray["taud"][:, None] * tones_ghz)
    cfr: NDArray[Any] = np.einsum("tp,rp,ps->trs", response(ray["dod"], bs), response(ray["doa"], ue), delayed)
    return cfr


def our_cfr(paths: Paths, bs: Array, ue: Array) -> NDArray[Any]:
    """The same from `synthesize`, whose first tone is the carrier and whose last lies one spacing below the bandwidth.

    The released grid starts B/2 lower and has the spacing B / (S - 1): turn every gain by e^{+j 2 pi (B/2) delay}, and
    widen the bandwidth to B S / (S - 1).
    """
    turned = paths.gain * torch.exp(1j * torch.pi * BANDWIDTH * paths.delay.double())
    ofdm = OFDM(NUM_TONES, BANDWIDTH * NUM_TONES / (NUM_TONES - 1))
    csi = synthesize(dataclasses.replace(paths, gain=turned.to(torch.complex64)), bs, ue, ofdm, reference="center")
    released_order: NDArray[Any] = csi.permute(0, 2, 1, 3).numpy()
    return released_order


# the released default, lines of antennas along x: our horizontal array turned by -90 degrees; and a plane in y and z,
# which the data set numbers with z fastest and we with y fastest
@pytest.mark.parametrize(
    ("bs_shape", "ue_shape", "bs", "ue"),
    [
        (
            (32, 1, 1),
            (2, 1, 1),
            Array(1, 32, orientation=(-np.pi / 2, 0, 0)),
            Array(1, 2, orientation=(-np.pi / 2, 0, 0)),
        ),
        ((1, 4, 2), (1, 1, 1), Array(2, 4), Array()),
    ],
)
@pytest.mark.parametrize("scenario", [1, 2])
def test_channels_are_the_released_ones(
    released: Path,
    tmp_path: Path,
    scenario: int,
    bs_shape: tuple[int, int, int],
    ue_shape: tuple[int, int, int],
    bs: Array,
    ue: Array,
) -> None:
    number = 1 if scenario == 1 else 32
    folder = released / "data" / f"scenario_{scenario}" / f"{number:05d}"
    rays, gains = load(folder / "Path.npy"), load(folder / "H_28_0_G.npy")
    sites = read(released, tmp_path, scenario=scenario, areas=[number])
    assert [site.name for site in sites] == [f"waird{scenario}_{number:05d}_bs{b}" for b in range(len(sites))]
    for b, site in enumerate(sites):
        ours = our_cfr(site.paths, bs, ue)
        for u in range(len(site)):
            key = f"bs{b}_ue{u}" if scenario == 1 else f"bs{b}_ue{u:05d}"
            if key == EMPTY and scenario == 1:
                assert not ours[u].any()
                assert site.paths.los[u] == -1
                continue
            theirs = released_cfr(rays[key], gains[key], bs_shape, ue_shape)
            if bs_shape[2] > 1:
                theirs = theirs.reshape(4, 2, 1, -1).swapaxes(0, 1).reshape(8, 1, -1)
            assert relative_error(ours[u], theirs) < 1e-5
            assert site.paths.los[u] == ((b + u) % 2 == 0)


def test_geometry_is_in_metres_and_agrees_with_the_angles(released: Path, tmp_path: Path) -> None:
    site = read(released, tmp_path, areas=[1])[2]
    info = np.frombuffer((released / "data" / "scenario_1" / "00001" / "Info.npy").read_bytes()[128:])
    torch.testing.assert_close(site.bs_position, torch.tensor([*info[2 + 4 * 60 : 4 + 4 * 60] / 2, 6.0]).float())
    torch.testing.assert_close(site.paths.position[3], torch.tensor([*info[16:18] / 2, 1.5]).float())
    line = (site.paths.bounces == 0) & site.paths.mask
    assert line.sum(1).tolist() == (site.paths.los == 1).int().tolist()
    users = torch.nonzero(site.paths.los == 1).squeeze(1)
    step = site.paths.position[users] - site.bs_position
    distance = step.norm(dim=1)
    torch.testing.assert_close(site.paths.delay[line], distance / 3e8)
    for angles, direction in ((site.paths.aod[line], step), (site.paths.aoa[line], -step)):
        torch.testing.assert_close(angles[:, 0], torch.atan2(direction[:, 1], direction[:, 0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(angles[:, 1], torch.acos(direction[:, 2] / distance), atol=1e-5, rtol=0)


def test_buildings_keep_their_place_and_their_side_of_the_map(released: Path, tmp_path: Path) -> None:
    environment = read(released, tmp_path, areas=[1])[0].environment
    assert environment.bounds == (0, 0, 120, 90)
    assert [polygon.bounds for polygon in environment.polygons] == [(10, 70, 50, 85)]
    assert environment.heights.tolist() == [10]


def test_plain_lists_in_place_of_arrays_are_read(area: Path) -> None:
    before = read_area(area)
    for name in ("Path.npy", "H_28_0_G.npy"):
        table = load(area / name)
        for key, value in table.items():
            table[key] = {k: v.tolist() for k, v in value.items()} if isinstance(value, dict) else list(value)
        save_python2(area / name, table)
    for site, original in zip(read_area(area), before, strict=True):
        assert all(
            torch.equal(a, b)
            for a, b in zip(site.paths.as_dict().values(), original.paths.as_dict().values(), strict=True)
        )


def test_only_the_first_path_is_the_straight_one(area: Path) -> None:
    rays, gains = load(area / "Path.npy"), load(area / "H_28_0_G.npy")
    key = "bs0_ue0"
    grazing = rays[key]["taud"].min() + 0.5e-3 / 0.3  # half a millimetre longer
    rays[key] = {"taud": np.append(rays[key]["taud"], grazing)} | {
        name: np.vstack((rays[key][name], [1.0, 2.0])) for name in ("dod", "doa")
    }
    gains[key] = np.append(gains[key], 1e-3)
    save_python2(area / "Path.npy", rays)
    save_python2(area / "H_28_0_G.npy", gains)
    paths = read_area(area)[0].paths
    assert paths.bounces[0, : len(gains[key])].tolist() == [1, 0] + [1] * (len(gains[key]) - 2)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "LA"])
@pytest.mark.parametrize("size", [SIZE, (480, 360), (120, 90)])
def test_any_image_mode_and_pixel_size_gives_the_same_buildings(area: Path, mode: str, size: tuple[int, int]) -> None:
    file = area / "environment.png"
    with Image.open(file) as image:
        image.resize(size, Image.Resampling.NEAREST).convert(mode, dither=Image.Dither.NONE).save(file)
    environment = read_area(area)[0].environment
    assert [polygon.bounds for polygon in environment.polygons] == [(10, 70, 50, 85)]


def test_a_transparent_ground_is_open(area: Path) -> None:
    pixels = np.zeros((SIZE[1], SIZE[0], 4), dtype=np.uint8)
    pixels[10:40, 20:100, 3] = 255
    Image.fromarray(pixels).save(area / "environment.png")
    assert [polygon.bounds for polygon in read_area(area)[0].environment.polygons] == [(10, 70, 50, 85)]


@pytest.mark.parametrize(("colour", "buildings"), [(255, []), (0, [(0.0, 0.0, 120.0, 90.0)])])
def test_a_map_of_one_pixel_is_read(area: Path, colour: int, buildings: list[tuple[float, ...]]) -> None:
    Image.new("L", (1, 1), colour).save(area / "environment.png")
    assert [polygon.bounds for polygon in read_area(area)[0].environment.polygons] == buildings


def test_scenario_1_leaves_out_what_scenario_2_holds(released: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="1 WAIR-D areas are left out"):
        guarded = WAIRD(root=str(released), cache=str(tmp_path)).recipes()
    assert [recipe.names[0] for recipe in guarded] == ["waird1_00001_bs0", "waird1_01500_bs0"]
    assert len(WAIRD(root=str(released), exclude_scenario_2=False).recipes()) == 3
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(InputError, match="no WAIR-D area is left"),
    ):
        WAIRD(root=str(released), areas=[32]).recipes()
    first = read(released, tmp_path, areas=[32], exclude_scenario_2=False)
    second = read(released, tmp_path, areas=[32], scenario=2)
    assert {site.area for site in first + second} == {"waird_00032"}


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize(
    ("areas", "numbers"),
    [
        ("1-1000", [1]),
        ("paper-test", [1]),
        ("paper-train", [1500]),
        (" 1 , 1400-2000", [1, 1500]),
        ([1500, 1], [1, 1500]),
    ],
)
def test_areas_are_chosen_by_range_list_and_name(released: Path, areas: Any, numbers: list[int]) -> None:
    recipes = WAIRD(root=str(released), areas=areas).recipes()
    assert [recipe.parameters["area"] for recipe in recipes] == [f"waird_{number:05d}" for number in numbers]


@pytest.mark.parametrize("areas", ["", "1-", "-5", "a-b", "10-1", "1--3", "1;2", "paper", [-1], ["x"]])
def test_areas_that_cannot_be_read_are_refused(areas: Any) -> None:
    with pytest.raises(InputError, match="areas must be like"):
        WAIRD(areas=areas)


def test_missing_data_say_where_they_were_looked_for(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DatasetNotFoundError, match="area 00003 of WAIR-D scenario 1 is not in"):
        WAIRD(root=str(released), areas=[1, 3]).recipes()
    with pytest.raises(DatasetNotFoundError, match="area 02000"):
        WAIRD(root=str(released), areas="2000-3000").recipes()
    monkeypatch.setenv("CSI_DATA", str(tmp_path))
    with pytest.raises(DatasetNotFoundError, match=rf"no WAIR-D scenario 2 in {tmp_path}/waird: fetch it from https"):
        WAIRD(scenario=2).recipes()
    monkeypatch.delenv("CSI_DATA")
    assert WAIRD().root == Path("data/waird")


def test_the_broken_area_is_skipped(area: Path) -> None:
    (area.parent / "09117").mkdir()
    with pytest.warns(UserWarning, match="09117 is skipped"):
        assert len(read_area(area)) == 5


def test_the_cache_follows_the_contents_and_not_the_place(area: Path, tmp_path: Path) -> None:
    def digest(root: Path, **options: Any) -> str:
        return WAIRD(root=str(root), **options).recipes()[0].digest

    before = digest(tmp_path)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "scenario_1").rename(moved / "scenario_1")
    assert digest(moved) == before
    assert digest(moved, max_paths=3) != before
    file = moved / "scenario_1" / "00007" / "H_28_0_G.npy"
    content = file.read_bytes()
    for place in (1000, -1000):
        file.write_bytes(bytes(byte ^ (i == place % len(content)) for i, byte in enumerate(content)))
        assert digest(moved) != before
    file.write_bytes(content)
    assert digest(moved) == before


def test_recipes_travel_to_worker_processes(released: Path, tmp_path: Path) -> None:
    recipe = WAIRD(root=str(released), areas=[1]).recipes()[0]
    assert len(list(pickle.loads(pickle.dumps(recipe)).make(tmp_path))) == 5


def test_paths_are_cut_to_the_strongest_and_keep_their_flag(released: Path, tmp_path: Path) -> None:
    every, one = (read(released, tmp_path, areas=[1], max_paths=n)[0].paths for n in (20, 1))
    assert one.num_paths == 1
    assert torch.equal(one.gain, every.gain[:, :1])
    assert torch.equal(one.los, every.los)


def test_the_data_yaml_is_the_source() -> None:
    file = Path(__file__).parents[4] / "experiments" / "data" / "waird.yaml"
    source = yaml.safe_load(file.read_text())["data"]["init_args"]["source"]
    assert source["class_path"] == "WAIRD"
    assert WAIRD(**source["init_args"]).frequency == 28e9
