"""Areas written in WAIR-D's layout and read back."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM
from datamodules.channel.synthesis import synthesize
from datamodules.errors import InputError
from datamodules.export.waird import write_waird
from datamodules.maps.raster import rasterize
from datamodules.sites.environment import Environment
from datamodules.sites.paths import Paths
from datamodules.sites.site import Site
from tests.datamodules.sources.waird.released_waird import read, relative_error

FC = 28e9


def random_area(seed: int, num_bs: int, users: int, height: float) -> list[Site]:
    """Sites with an origin, heights and path counts that are not WAIR-D's."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    position = torch.cat((uniform(users, 2) * 80 - 30, torch.full((users, 1), 1.5 if height == 6 else 2.0)), dim=1)
    corners = np.array([[-20.0, 5.0], [10.0, 5.0], [10.0, 25.0], [-20.0, 25.0]])
    environment = Environment((corners,), np.array([30.0]), (-30.0, -30.0, 50.0, 50.0))
    sites = []
    for b in range(num_bs):
        gain = torch.polar(uniform(users, 4) * 1e-5, 6 * uniform(users, 4))
        gain[uniform(users, 4) < 0.3] = 0
        directions = [torch.stack((6 * uniform(users, 4) - 3, 3 * uniform(users, 4)), dim=-1) for _ in range(2)]
        paths = Paths.build(
            gain=gain,
            delay=uniform(users, 4) * 1e-6,
            aod=directions[0],
            aoa=directions[1],
            position=position,
            bounces=(4 * uniform(users, 4)).to(torch.uint8),
            los=uniform(users) < 0.5,  # the flag need not follow from the paths that are kept
        )
        bs = torch.tensor([10.0 * b, -15.0, height])
        sites.append(Site(f"s{b}", paths, bs, FC, "area", "city", environment))
    return sites


@pytest.mark.parametrize(
    ("scenario", "num_bs", "users", "height"),
    [(1, 5, 30, 6.0), (1, 3, 50, 24.0), (1, 1, 4, 6.0), (1, 2, 1, 6.0), (2, 1, 11, 6.0)],
)
def test_an_area_written_and_read_back_is_the_same(
    tmp_path: Path, scenario: Any, num_bs: int, users: int, height: float
) -> None:
    areas = [random_area(seed, num_bs, users, height) for seed in (1, 2)]
    folders = write_waird(areas, tmp_path, scenario, first_id=8)
    assert [folder.name for folder in folders] == ["00008", "00009"]
    assert (folders[0] / "Height.npy").exists() == (height != 6)
    assert np.load(folders[0] / "Info.npy").size == 2 + (4 * num_bs * users if scenario == 1 else 2 + 2 * users)
    back = read(tmp_path, tmp_path / "cache", scenario=scenario)
    array, ofdm = Array(2, 4), OFDM(32, 100e6)
    for site, original in zip(back, [site for area in areas for site in area], strict=True):
        ours = synthesize(site.paths, array, array, ofdm).numpy()
        assert relative_error(ours, synthesize(original.paths, array, array, ofdm).numpy()) < 1e-5
        assert torch.equal(site.paths.los, original.paths.los)
        assert torch.equal(site.paths.bounces[site.paths.mask], original.paths.bounces[original.paths.mask])
        low = torch.tensor([-30.0, -30.0, 0.0])
        torch.testing.assert_close(site.paths.position, original.paths.position - low)
        torch.testing.assert_close(site.bs_position, original.bs_position - low)
        assert site.environment.polygons[0].bounds == (10, 35, 40, 55)


def test_the_writer_refuses_what_is_no_area(tmp_path: Path) -> None:
    area = random_area(1, 2, 5, 6.0)
    with pytest.raises(InputError, match="exactly one base station"):
        write_waird([area], tmp_path, scenario=2)
    with pytest.raises(InputError, match="share their users"):
        write_waird([[area[0], random_area(2, 2, 5, 6.0)[1]]], tmp_path)
    bare = dataclasses.replace(area[1].environment, footprints=(), heights=np.zeros(0))
    with pytest.raises(InputError, match="share their users, carrier and environment"):
        write_waird([[area[0], dataclasses.replace(area[1], environment=bare)]], tmp_path)
    with pytest.raises(InputError, match=r"steps of 0\.1 GHz"):
        write_waird([[dataclasses.replace(area[0], carrier_frequency=28.55e9)]], tmp_path)
    write_waird([area], tmp_path)
    with pytest.raises(InputError, match="exists"):
        write_waird([area], tmp_path)
    with pytest.warns(UserWarning, match="orientation"):
        write_waird([[dataclasses.replace(area[0], bs_orientation=torch.ones(3))]], tmp_path, first_id=2)
    assert sorted(path.name for path in (tmp_path / "scenario_1").iterdir()) == ["00001", "00002"]


def test_buildings_survive_an_image_of_coarser_pixels(tmp_path: Path) -> None:
    sites = random_area(1, 1, 5, 6.0)
    write_waird([sites], tmp_path, pixel_size=2.0)
    back = read(tmp_path, tmp_path / "cache")[0].environment
    moved = [corners + 30 for corners in sites[0].environment.footprints]
    grid = (0.0, 0.0, 80.0, 80.0), (40, 40)
    np.testing.assert_array_equal(rasterize(back.footprints, *grid), rasterize(moved, *grid))


def test_two_base_stations_may_share_a_mast(tmp_path: Path) -> None:
    area = random_area(1, 2, 5, 6.0)
    area[1] = dataclasses.replace(area[1], bs_position=area[0].bs_position)
    write_waird([area], tmp_path)
    back = read(tmp_path, tmp_path / "cache")
    for site, original in zip(back, area, strict=True):
        torch.testing.assert_close(site.paths.power, original.paths.power)
