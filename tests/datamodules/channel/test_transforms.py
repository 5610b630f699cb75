import numpy as np
import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM
from datamodules.channel.synthesis import synthesize
from datamodules.channel.transforms import delay_angular, kept_energy, to_csi
from tests.datamodules.rays import random_paths


@pytest.fixture
def csi():
    return torch.randn(5, 2, 4, 16, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)) * 1e-5


def test_transform_is_the_papers(csi):
    k, t = 16, 4
    f_d = np.exp(-2j * np.pi * np.outer(range(k), range(k)) / k) / np.sqrt(k)
    f_a = np.exp(-2j * np.pi * np.outer(range(t), range(t)) / t) / np.sqrt(t)
    h = csi[0, 1].numpy().T.conj()  # rows h_k^H
    g = (f_d @ h @ f_a.conj().T)[:6]
    ours, scale = delay_angular(csi[:, 1:], rows=6, reference="none")
    assert np.allclose(ours[0].numpy().conj(), g / np.linalg.norm(g), atol=1e-6)
    assert scale[0].item() == pytest.approx(np.linalg.norm(g), rel=1e-5)


@pytest.mark.parametrize("reference", ["first", "strongest", "none"])
def test_round_trip_is_exact_when_nothing_is_cut(csi, reference):
    channel, scale = delay_angular(csi, rows=16, reference=reference)
    assert channel.shape == (5, 16, 8)
    back = to_csi(channel, 16, num_receive=2, scale=scale)
    assert (back - csi).abs().max() < 1e-6 * csi.abs().max()
    assert torch.allclose(kept_energy(csi, 16), torch.ones(5))


def test_a_cut_loses_what_is_reported(csi):
    channel, scale = delay_angular(csi, rows=5)
    lost = (to_csi(channel, 16, 2, scale) - csi).abs().square().sum((1, 2, 3)) / csi.abs().square().sum((1, 2, 3))
    assert torch.allclose(1 - lost, kept_energy(csi, 5), atol=1e-6)
    assert (lost > 0.1).all()


def test_reference_entry_is_real_and_positive_whatever_the_phase(csi):
    turned = csi * torch.polar(torch.ones(5), torch.arange(5.0))[:, None, None, None]
    for reference in ("first", "strongest"):
        channel, _ = delay_angular(csi, 8, reference)
        assert torch.allclose(delay_angular(turned, 8, reference)[0], channel, atol=1e-6)
        flat = channel.flatten(1)
        entry = flat[:, 0] if reference == "first" else flat.gather(1, flat.abs().argmax(1, keepdim=True))[:, 0]
        assert (entry.real > 0).all()
        assert entry.imag.abs().max() < 1e-6
    assert not torch.allclose(delay_angular(turned, 8, "none")[0], delay_angular(csi, 8, "none")[0], atol=1e-2)


def test_zeros_stay_zeros(csi):
    csi[2] = 0
    channel, scale = delay_angular(csi, 8)
    assert channel[2].abs().max() == 0
    assert scale[2] == 0
    assert torch.linalg.vector_norm(channel.flatten(1), dim=1)[[0, 1, 3, 4]].tolist() == pytest.approx([1] * 4)
    assert kept_energy(csi, 8).isnan().tolist() == [False, False, True, False, False]


def test_short_delays_lie_in_the_first_rows():
    paths = random_paths(20, max_delay=1.4e-6)  # the first 32 of 256 taps of 50 ns end at 1.6 us
    csi = synthesize(paths, Array(1, 8), Array(), OFDM(256, 20e6))[1:]
    assert kept_energy(csi, 32).min() > 0.8
    assert kept_energy(csi.conj(), 32).median() < 0.2


def test_more_taps_than_subcarriers_are_refused(csi):
    with pytest.raises(ValueError, match="cannot keep 17 delay taps of 16 subcarriers"):
        delay_angular(csi, 17)
