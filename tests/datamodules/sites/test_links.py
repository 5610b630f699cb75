"""What rays and recorded CSI have in common."""

import inspect

import pytest
import torch

from datamodules.sites.links import Links
from datamodules.sites.paths import Paths
from datamodules.sites.recording import Recording
from tests.datamodules.rays import random_paths

COMMON = [name for name, value in vars(Links).items() if isinstance(value, property) or inspect.isfunction(value)]


def recording(snapshots: int | None = None) -> Recording:
    shape = (6, 2, 4, 8) if snapshots is None else (6, snapshots, 2, 4, 8)
    csi = torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    csi[1] = 0
    return Recording.build(csi, torch.zeros(6, 3), interval=0.0 if snapshots is None else 1e-3)


@pytest.mark.parametrize("kind", [Paths, Recording])
def test_both_offer_all_that_links_do(kind: type) -> None:
    assert {"has_rays", "amplitude", "rows", "content"} <= set(COMMON)
    assert [name for name in COMMON if not name.startswith("_") and not hasattr(kind, name)] == []


def test_rays() -> None:
    paths = random_paths(6, 3)
    assert paths.has_rays
    assert paths.shape is None
    assert paths.timestamps is None
    torch.testing.assert_close(paths.amplitude[2], paths.gain[2].sum().abs())
    batch = paths.rows(torch.tensor([4, 1]), num_paths=5)
    assert batch["gain"].shape == (2, 5)
    assert torch.equal(batch["gain"][:, :3], paths.gain[[4, 1]])


def test_the_scale_of_a_recording_is_its_largest_magnitude() -> None:
    links = recording()
    torch.testing.assert_close(links.scale, links.csi().abs().flatten(1).amax(1), rtol=2e-3, atol=0)
    assert links.pairs.abs().max() <= 1


@pytest.mark.parametrize("snapshots", [None, 3])
def test_recorded(snapshots: int | None) -> None:
    links = recording(snapshots)
    csi = links.csi()
    assert not links.has_rays
    assert links.shape == csi.shape[1:]
    torch.testing.assert_close(links.amplitude, csi[..., 0, 0, 0].abs())
    assert links.amplitude[1].sum() == 0
    batch = links.rows(torch.tensor([4, 1]), num_paths=0)
    assert torch.equal(batch["recorded"], csi[[4, 1]])
    assert batch["los"].shape == (2,)


def test_equal_content_is_of_equal_channels() -> None:
    for links in (random_paths(6, 3), recording(), recording(3)):
        parts = links.content()
        assert all(len(part) == 6 for part in parts)
        for link in range(2, 5):
            assert not all(torch.equal(part[link], part[5]) for part in parts)
    long = Recording.build(torch.randn(2, 8, 32, 64, dtype=torch.complex64), torch.zeros(2, 3))
    assert sum(part[0].numel() for part in long.content()) == 1 + 4 * 64
