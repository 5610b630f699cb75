"""Users matched by position."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datamodules.errors import InputError
from datamodules.sites.recording import Recording
from datamodules.sites.site import Site
from datamodules.sites.user_matching import pair
from datamodules.sources.deepmimo.v3 import DeepMIMOv3
from datamodules.sources.deepmimo.v4 import DeepMIMO
from tests.data.deepmimo.data import real_root, write_scenario


@pytest.fixture
def sites(tmp_path: Path) -> list[Site]:
    write_scenario(tmp_path, "street_3p5", num_users=200, seed=0)
    return DeepMIMO("street_3p5", str(tmp_path), download=False, cache=str(tmp_path / "cache")).sites()


def shuffled(site: Site, seed: int, num_users: int) -> Site:
    order = torch.randperm(len(site), generator=torch.Generator().manual_seed(seed))[:num_users]
    paths = site.paths[order]
    return replace(site, links=replace(paths, position=paths.position + 2e-4 * torch.rand(num_users, 3)))


def test_users_match_whatever_their_order(sites: list[Site]) -> None:
    others = [shuffled(site, seed, len(site) - 10) for seed, site in enumerate(sites)]
    for a, b, (first, second) in zip(sites, others, pair(sites, others), strict=True):
        assert len(first) == len(b)
        assert first.dtype == second.dtype == torch.int64
        assert torch.equal(first, first.sort().values)
        assert (a.paths.position[first] - b.paths.position[second]).norm(dim=1).max() < 1e-3
        assert torch.equal(a.paths.gain[first], b.paths.gain[second])


def test_users_of_one_site_only_are_left_out(sites: list[Site]) -> None:
    a = replace(sites[0], links=sites[0].paths[:60])
    b = replace(sites[0], links=sites[0].paths[40:])
    ((first, second),) = pair([a], [b])
    assert first.tolist() == list(range(40, 60))
    assert second.tolist() == list(range(20))
    ((first, second),) = pair([a], [replace(b, links=b.paths[20:])])
    assert first.tolist() == second.tolist() == []


def test_a_user_matches_one_user_alone(sites: list[Site]) -> None:
    paths = sites[0].paths[:3]
    grids = [torch.tensor([[x, 0.0, 1.5] for x in row]) for row in ((0.0, 1.5, 9.0), (0.75, 5.0, 9.0))]
    one, other = (replace(sites[0], links=replace(paths, position=position)) for position in grids)
    with pytest.raises(InputError, match="two users of street_3p5_bs1 are both within 1 m of one of street_3p5_bs1"):
        pair([one], [other], tolerance=1.0)
    ((first, second),) = pair([one], [other], tolerance=0.7)
    assert (first.tolist(), second.tolist()) == ([2], [2])


def test_sites_that_do_not_belong_together(sites: list[Site]) -> None:
    with pytest.raises(InputError, match="cannot pair 2 sites with 1"):
        pair(sites, sites[:1])
    with pytest.raises(
        InputError, match="cannot pair street_3p5_bs1 with street_3p5_bs2: their base stations stand at"
    ):
        pair(sites, sites[::-1])
    twice = replace(sites[0], links=sites[0].paths[torch.tensor([0, 1, 1])])
    with pytest.raises(InputError, match="users of street_3p5_bs1 are nearer than"):
        pair([twice], [twice])
    nowhere = Recording.build(torch.ones(2, 1, 1, 4, dtype=torch.complex64), torch.full((2, 3), torch.nan))
    with pytest.raises(InputError, match="users of street_3p5_bs1 have no known position"):
        pair([sites[0]], [replace(sites[0], links=nowhere)])


def test_real_bands_share_all_users(tmp_path: Path) -> None:
    root = str(real_root("deepmimo_v3"))
    low, high = (DeepMIMOv3(f"city_11_santaclara_{band}", root, cache=str(tmp_path)).sites() for band in ("3p5", "28"))
    for a, b, (first, second) in zip(low, high, pair(low, high), strict=True):
        assert len(first) == len(a) == len(b)
        assert torch.equal(a.paths.position[first], b.paths.position[second])
        assert torch.equal(a.paths.los[first], b.paths.los[second])
        assert a.city == b.city
        assert a.carrier_frequency < b.carrier_frequency
