"""Channels, labels and views computed on a GPU are those of the CPU."""

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from datamodules import OFDM, Array, synthesize
from datamodules.channel.codebook import beam_power, beam_power_of_paths, dft_codebook, least_norm_channel, precoder
from datamodules.channel.draws import LinkDraws
from datamodules.channel.impairments import (
    AmplitudeScaling,
    AntennaPermutation,
    CommonPhase,
    Noise,
    PartialSubcarriers,
    TimeShift,
    TimingOffset,
)
from datamodules.channel.motion import Sequence
from datamodules.channel.transforms import delay_angular, level_image, to_angle, to_csi, to_delay
from datamodules.maps.augmentation import WorldSymmetry
from tests.datamodules.rays import random_paths
from tests.datamodules.test_module import build
from tests.gpu import DEVICE, near, requires_device, town_site

pytestmark = requires_device

ARRAYS = {
    "upa": (Array(8, 8), Array(2, 2), None),
    "turned": (Array(4, 4, pattern="tr38901", orientation=(0.3, 0.2, 0.0)), Array(1, 2, pattern="dipole"), None),
    "mounted": (Array(1, 32), Array(), torch.tensor([0.4, 0.1, 0.0])),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_channels_are_those_of_the_cpu(case):
    from datamodules.channel.arrays import rotation_matrix

    bs, ue, turn = ARRAYS[case]
    paths, ofdm = random_paths(300, 25, max_delay=2e-5), OFDM(256, 100e6)
    mount = None if turn is None else rotation_matrix(turn.expand(300, 3)).float()
    there = paths.to(DEVICE), bs, ue, ofdm
    mounted = None if mount is None else mount.to(DEVICE)
    expected = synthesize(paths, bs, ue, ofdm, mount=mount)
    near(synthesize(*there, mount=mounted), expected)
    out = torch.empty_like(expected, device=DEVICE)
    assert synthesize(*there, mount=mounted, out=out) is out
    near(out, expected)
    motion = {"velocity": torch.tensor([30.0, 4.0, 0.0]), "times": torch.arange(4) * 5e-3, "wavelength": 0.01}
    near(synthesize(*there, mount=mounted, **motion), synthesize(paths, bs, ue, ofdm, mount=mount, **motion))
    codebook = dft_codebook(bs)
    power = beam_power_of_paths(paths, bs, ue, ofdm, codebook, mount)
    near(beam_power_of_paths(*there, codebook.to(DEVICE), mounted), power)
    near(beam_power(out, codebook.to(DEVICE)), power, 1e-4)


def test_gradients_are_those_of_the_cpu():
    found = []
    for device in ("cpu", DEVICE):
        paths = random_paths(20).to(device)
        paths.gain.requires_grad_(), paths.delay.requires_grad_()
        synthesize(paths, Array(1, 8), Array(), OFDM(16)).abs().square().sum().backward()
        found.append((paths.gain.grad.cpu(), paths.delay.grad.cpu()))
    near(found[1], found[0], 1e-4)


def test_transforms_are_those_of_the_cpu():
    csi = synthesize(random_paths(40, 9), Array(1, 16), Array(1, 2), OFDM(64))
    functions = (to_delay, to_angle, level_image, delay_angular, lambda x: to_csi(*delay_angular(x)[:1], 64, 2))
    for function in functions:
        near(function(csi.to(DEVICE)), function(csi))
    csi = csi[1:]  # any vector is singular where there is no path
    beams, codebook = precoder(csi), dft_codebook(Array(1, 16))
    near(precoder(csi.to(DEVICE)).abs(), beams.abs(), 1e-3)
    chosen = torch.arange(4).expand(39, 4)
    parts = torch.einsum("brtk,bpt->brpk", csi, codebook[chosen])
    near(least_norm_channel(*(x.to(DEVICE) for x in (parts, codebook, chosen))),
         least_norm_channel(parts, codebook, chosen))  # fmt: skip


SETTINGS = {
    "views": {"views": [CommonPhase(), PartialSubcarriers(), TimingOffset(), AntennaPermutation(), AmplitudeScaling()]},
    "labels": {"num_beams": 8, "extras": ["map", "geometry", "domain"], "symmetry": WorldSymmetry()},
    "sequence": {"sequence": Sequence(4, 1e-3, window=0.01, horizon=2), "views": [TimeShift()], "num_beams": 4},
    "stations": {"base_stations": 2, "num_beams": 4, "extras": ["map", "geometry"]},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_batches_are_those_of_the_cpu(case, tmp_path):
    sites = [town_site(name) for name in "ab"]
    data = build(tmp_path, sites, **SETTINGS[case])
    rows = next(iter(data.train_dataloader()))
    expected = data.finish(rows, 3, True)
    near(data.finish(move_data_to_device(rows, torch.device(DEVICE)), 3, True), expected)
    near(data.finish(rows, 3, True), expected)  # the maps have come back


def test_noise_is_normal_on_every_device():
    keys = torch.arange(64, device=DEVICE)
    values = LinkDraws(0, keys).normal(4096)
    assert values.dtype == torch.complex64
    assert float(values.abs().square().mean()) == pytest.approx(1, abs=0.01)
    csi = torch.ones(64, 1, 8, 64, dtype=torch.complex64, device=DEVICE)
    noisy = Noise((10.0, 10.0))(csi, LinkDraws(0, keys))
    assert float((noisy - csi).abs().square().mean()) == pytest.approx(0.1, rel=0.05)
