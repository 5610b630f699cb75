import numpy as np
import pytest
import torch

from foundation.nets.hand import HandFeatures
from foundation.nets.resnet import ResNet
from foundation.representations import image, power_db, to_delay, unit_power


@pytest.fixture
def csi():
    return torch.randn(6, 2, 8, 16, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)) * 1e-4


def test_image_lays_antenna_pairs_over_subcarriers(csi):
    pixels = image(csi)
    assert pixels.shape == (6, 2, 16, 16)
    assert torch.equal(pixels[1, 1, 8 * 1 + 3], csi[1, 1, 3].imag)


def test_delay_is_the_unitary_inverse_dft(csi):
    assert np.allclose(to_delay(csi).numpy(), np.fft.ifft(csi.numpy()) * 4, atol=1e-8)


def test_power_and_its_removal(csi):
    assert power_db(csi)[0].item() == pytest.approx(10 * np.log10((np.abs(csi[0].numpy()) ** 2).mean()), rel=1e-5)
    assert torch.allclose(power_db(unit_power(csi)), torch.zeros(6), atol=1e-4)
    assert unit_power(torch.zeros(1, 1, 2, 2, dtype=torch.complex64)).abs().max() == 0


@pytest.mark.parametrize("domain", ["csi", "cir", "angle_delay"])
@pytest.mark.parametrize("normalize", ["global", "link"])
def test_resnet_takes_any_size_and_standardises(csi, domain, normalize):
    net = ResNet("resnet18", domain, normalize, width=0.25, norm="group").eval()
    net.prepare({"csi": csi})
    assert net(csi).shape == (6, net.num_features)
    assert net(csi[:, :1, :, :12]).shape == (6, net.num_features), "other antenna and subcarrier counts"
    pixels = net._image(csi)
    assert pixels.shape[1] == (2 if normalize == "global" else 3)
    assert pixels.mean().abs() < 0.2
    assert pixels[:, :2].std() == pytest.approx(1 if normalize == "global" else 0.5**0.5, rel=0.05)


def test_global_scaling_is_min_max_then_standardisation(csi):
    net = ResNet("resnet18", width=0.25)
    net.prepare({"csi": csi})
    values = image(csi)
    scaled = (values - values.min()) / (values.max() - values.min())
    assert torch.allclose(net._image(csi), (scaled - scaled.mean()) / scaled.std(), atol=1e-4)


def test_paper_tower_has_two_channels_and_2048_features():
    net = ResNet()
    assert net.net.conv1.in_channels == 2
    assert net.num_features == 2048


def test_hand_features_are_profiles_and_power(csi):
    net = HandFeatures(8, 16)
    assert net.num_features == 25
    channel = unit_power(csi)[2].numpy()
    spectrum = np.abs(np.fft.fft(np.fft.ifft(channel, norm="ortho"), axis=1, norm="ortho")).mean(0)
    expected = np.concatenate([spectrum.sum(0), spectrum.sum(1), [power_db(csi)[2].item()]])
    assert np.allclose(net(csi)[2].numpy(), expected, rtol=1e-4, atol=1e-4)
    net.prepare({"csi": csi})
    assert torch.allclose(net(csi).mean(0), torch.zeros(25), atol=1e-4)
    assert HandFeatures(8, 16, "power")(csi).shape == (6, 1)
    assert HandFeatures(8, 16, "raw")(csi).shape == (6, 256)
