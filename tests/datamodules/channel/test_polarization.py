"""Arrays of two polarisations: against the formulas of TR 38.901 in NumPy, and everything that reads paths."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.codebook import beam_power, beam_power_of_paths, dft_codebook
from datamodules.channel.ofdm import OFDM, SPEED_OF_LIGHT
from datamodules.channel.synthesis import synthesize
from datamodules.dataset import ChannelDataset, to_paths
from datamodules.defaults import grid_of
from datamodules.errors import InputError
from datamodules.maps.augmentation import World
from datamodules.sites.paths import Paths
from datamodules.sites.site import Site
from tests.datamodules.rays import random_paths, random_site

TONES = OFDM(8, 20e6)


def polarized(seed: int = 0, num_users: int = 6) -> Paths:
    paths = random_paths(num_users, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(*paths.gain.shape, 2, 2, dtype=torch.complex64, generator=generator)
    matrix[..., 0, 0] = 1
    return dataclasses.replace(paths, polarization=matrix * paths.mask[..., None, None])


def rotation(orientation):
    a, b, c = orientation
    rz = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rx = np.array([[1, 0, 0], [0, np.cos(c), -np.sin(c)], [0, np.sin(c), np.cos(c)]])
    return rz @ ry @ rx


def element(array, azimuth, zenith, slant):
    """Position phase and field (zenith, azimuth) of each element, by eq 7.1-7, 7.1-8, 7.1-15, 7.3-4 and 7.3-5."""
    (a, b, c), frame = array.orientation, rotation(array.orientation)
    u = np.array([np.sin(zenith) * np.cos(azimuth), np.sin(zenith) * np.sin(azimuth), np.cos(zenith)])
    x, y, z = frame.T @ u
    down, across = math.degrees(math.acos(z)), math.degrees(math.atan2(y, x))
    power_db = 0.0
    if array.pattern == "tr38901":
        power_db = 8 - min(min(12 * ((down - 90) / 65) ** 2, 30) + min(12 * (across / 65) ** 2, 30), 30)
    amplitude = 10 ** (power_db / 20)
    own = amplitude * np.array([np.cos(slant), np.sin(slant)])
    psi = np.angle(
        np.sin(c) * np.cos(zenith) * np.sin(azimuth - a)
        + np.cos(c) * (np.cos(b) * np.sin(zenith) - np.sin(b) * np.cos(zenith) * np.cos(azimuth - a))
        + 1j * (np.sin(c) * np.cos(azimuth - a) + np.sin(b) * np.cos(c) * np.sin(azimuth - a))
    )
    field = np.array([[np.cos(psi), -np.sin(psi)], [np.sin(psi), np.cos(psi)]]) @ own
    place = np.array([(0, col, row) for row in range(array.rows) for col in range(array.cols)]) * 0.5
    return np.exp(2j * np.pi * place @ np.array([x, y, z])), field


def by_hand(paths, bs, ue, link):
    slants = {"single": [0], "cross": [-np.pi / 4, np.pi / 4], "vh": [0, np.pi / 2]}
    out = np.zeros((ue.num_elements, bs.num_elements, TONES.num_subcarriers), complex)
    for p in range(paths.num_paths):
        if not paths.mask[link, p]:
            continue
        tone = np.exp(-2j * np.pi * np.arange(8) * 20e6 / 8 * float(paths.delay[link, p]))
        parts = [
            [element(array, *map(float, angles[link, p]), slant) for slant in slants[array.polarization]]
            for array, angles in ((ue, paths.aoa), (bs, paths.aod))
        ]
        matrix = paths.polarization[link, p].numpy()
        rows = [[r[1] @ matrix @ t[1] * np.outer(r[0], t[0]) for t in parts[1]] for r in parts[0]]
        out += complex(paths.gain[link, p]) * np.block(rows)[..., None] * tone
    return out


@pytest.mark.parametrize(
    ("bs", "ue"),
    [
        (Array(2, 3, polarization="cross"), Array()),
        (Array(1, 2, polarization="cross", pattern="tr38901", orientation=(0.4, 0.3, -0.2)), Array(2, 1)),
        (Array(2, 2, orientation=(0.0, 0.26, 0.0)), Array(1, 2, polarization="vh", orientation=(-2.0, 0.5, 1.0))),
        (Array(polarization="vh"), Array(polarization="cross")),
    ],
)
def test_channel_equals_the_formulas_element_by_element(bs, ue):
    paths = polarized()
    csi = synthesize(paths, bs, ue, TONES)
    for link in (1, 3, 5):
        expected = by_hand(paths, bs, ue, link)
        np.testing.assert_allclose(csi[link], expected, atol=3e-6 * np.abs(expected).max())
    assert not csi[0].any(), "a link without paths"


def test_vertical_elements_are_those_of_single_polarisation():
    paths, ue = polarized(), Array(1, 2)
    dual = synthesize(paths, Array(2, 2, polarization="vh"), ue, TONES)
    assert torch.allclose(dual[:, :, :4], synthesize(paths, Array(2, 2), ue, TONES), rtol=1e-4, atol=1e-10)


def test_snapshots_gradients_and_mounts():
    paths, bs, ue = polarized(), Array(2, 2, polarization="cross"), Array(1, 2)
    turned = Array(2, 2, polarization="cross", orientation=(0.7, 0.2, 0.0))
    motion = {"velocity": torch.tensor([3.0, 4.0, 0.0]), "times": torch.arange(3) * 1e-3, "wavelength": 0.1}
    csi = synthesize(paths, bs, ue, TONES, **motion)
    assert csi.shape == (6, 3, 2, 8, 8)
    assert torch.allclose(csi[:, 0], synthesize(paths, bs, ue, TONES), rtol=1e-4, atol=1e-10)
    frame = torch.from_numpy(rotation(turned.orientation)).float().expand(6, 3, 3)
    mounted = synthesize(paths, bs, ue, TONES, mount=frame)
    assert torch.allclose(mounted, synthesize(paths, turned, ue, TONES), rtol=1e-3, atol=1e-9)
    gain = paths.gain.clone().requires_grad_()
    synthesize(dataclasses.replace(paths, gain=gain), bs, ue, TONES).abs().square().sum().backward()
    assert gain.grad is not None
    assert gain.grad.isfinite().all()
    assert gain.grad[1].any()
    matrix = paths.polarization.clone().requires_grad_()
    synthesize(dataclasses.replace(paths, polarization=matrix), bs, ue, TONES).abs().square().sum().backward()
    assert matrix.grad is not None
    assert matrix.grad[1].any()


def test_paths_whose_polarization_is_no_number_are_removed():
    paths = polarized()
    fields = paths.as_dict() | {"polarization": paths.polarization.clone()}
    fields["polarization"][2, 1, 0, 1] = complex(math.nan, 0)
    del fields["mask"]
    built = Paths.build(**fields)
    assert built.mask.sum() == paths.mask.sum() - 1
    assert synthesize(built, Array(2, 2, polarization="cross"), Array(), TONES).isfinite().all()


@pytest.mark.parametrize("ue", [Array(), Array(1, 2, polarization="cross")])
def test_beams(ue):
    paths, bs = polarized(), Array(2, 4, polarization="cross")
    codebook = dft_codebook(bs)
    assert codebook.shape == (16, 16)
    torch.testing.assert_close(codebook @ codebook.mH, torch.eye(16, dtype=torch.complex64), atol=1e-5, rtol=0)
    assert dft_codebook(bs, 64).shape == (64, 16)
    power = beam_power_of_paths(paths, bs, ue, TONES, codebook)
    torch.testing.assert_close(power, beam_power(synthesize(paths, bs, ue, TONES), codebook))
    with pytest.raises(ValueError, match="no DFT codebook of 9 beams for an array of 2 x 4 of two polarisations"):
        dft_codebook(bs, 9)


def test_paths_keep_their_polarisation():
    paths = polarized()
    assert torch.equal(paths[2:4].polarization, paths.polarization[2:4])
    assert paths.pad(20).polarization.shape == (6, 20, 2, 2)
    assert torch.equal(paths.narrow(3).polarization, paths.polarization[:, :3])
    joined = Paths.cat([paths, polarized(1).pad(9)])
    assert torch.equal(joined.polarization[:6, :7], paths.polarization)
    assert Paths.cat([paths, random_paths()]).polarization is None
    again = Paths.build(
        gain=paths.gain.flip(1), delay=paths.delay.flip(1), aod=paths.aod.flip(1), aoa=paths.aoa.flip(1),
        position=paths.position, bounces=paths.bounces.flip(1), polarization=paths.polarization.flip(1),
    )  # fmt: skip
    assert torch.equal(again.polarization, paths.polarization)
    with pytest.raises(InputError, match=r"Paths\.polarization must be torch\.complex64 of shape"):
        dataclasses.replace(paths, polarization=paths.polarization[:, :2])


def test_sites_with_and_without_it_are_stored_and_read_together(tmp_path):
    plain, dual = random_site("plain", 4), random_site("dual", 6)
    dual = dataclasses.replace(dual, links=polarized())
    dual.save(tmp_path / "dual")
    read = Site.load(tmp_path / "dual")
    assert torch.equal(read.paths.polarization, dual.paths.polarization)
    alone = to_paths(ChannelDataset([read]).__getitems__([5, 1]))
    assert torch.equal(alone.polarization, dual.paths.polarization[[5, 1]])
    mixed = to_paths(ChannelDataset([plain, read]).__getitems__([0, 5]))
    assert mixed.polarization is None


def test_reflection_turns_what_is_horizontal():
    # reflected arrays see the reflected world as the others see this one: columns in reverse order, slants exchanged
    paths = polarized()
    rows = {"paths": paths.as_dict(), "position": paths.position, "bs_position": torch.zeros(6, 3)}
    world = World(torch.full((6,), 2), torch.ones(6, dtype=torch.bool), torch.ones(6))  # y to -y
    moved = Paths.from_dict(world.move(rows, torch.full((6,), SPEED_OF_LIGHT / 3.5e9))["paths"])
    bs, ue = Array(1, 3, polarization="cross"), Array(polarization="vh")
    there = synthesize(moved, bs, ue, TONES, reference="center").unflatten(2, (2, 3))
    here = synthesize(paths, bs, ue, TONES, reference="center").unflatten(2, (2, 3)).flip(2, 3)
    sign = torch.tensor([1, -1])[:, None, None, None]
    assert torch.allclose(there, sign * here, rtol=1e-3, atol=2e-9)


def test_rays_of_one_polarisation_are_refused():
    dual = Array(2, 2, polarization="cross")
    with pytest.raises(InputError, match="an array has two polarisations, but the paths hold the vertical one alone"):
        synthesize(random_paths(), dual, Array(), TONES)
    site = random_site("munich_bs0")
    with pytest.raises(InputError, match="but the rays of site munich_bs0 the vertical one alone: set its polari"):
        grid_of([site], dual, None, None)
    with pytest.raises(InputError, match="unknown polarization 'dual': choose one of single, cross, vh"):
        Array(2, 2, polarization="dual")
