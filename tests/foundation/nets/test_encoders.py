import numpy as np
import pytest
import torch

from datamodules.channel.transforms import image, level_image, power_db, to_delay, unit_power
from datamodules.errors import InputError
from foundation import ChannelTransformer, PositionFeatures
from foundation.nets.handcrafted import HandFeatures
from foundation.nets.resnet import ResNet


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


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResNet("resnet18", normalize="global", width=0.25),
        lambda: ResNet("resnet18", normalize="link", width=0.25),
        lambda: HandFeatures(8, 16, "profiles"),
        lambda: HandFeatures(8, 16, "power"),
        lambda: HandFeatures(8, 16, "raw"),
    ],
)
def test_links_without_power_count_in_no_statistic(csi, make):
    few, all_of_them = make(), make()
    few.prepare({"csi": csi})
    all_of_them.prepare({"csi": torch.cat([csi, torch.zeros_like(csi)])})
    assert torch.equal(few.mean, all_of_them.mean)
    assert torch.equal(few.std, all_of_them.std)


def test_hand_features_are_standardised_sums_over_angle_and_delay(csi):
    csi = csi.numpy().astype(complex)
    unit = csi / np.sqrt((abs(csi) ** 2).mean((1, 2, 3), keepdims=True))
    bins = abs(np.fft.fft(np.fft.ifft(unit, norm="ortho"), axis=2, norm="ortho")).mean(1)
    level = 10 * np.log10((abs(csi) ** 2).mean((1, 2, 3)))[:, None]
    raw = unit.mean(1).reshape(len(unit), -1)
    expected = {
        "profiles": np.concatenate([bins.sum(1), bins.sum(2), level], 1),  # over angles, over delays
        "power": level,
        "raw": np.stack([raw.real, raw.imag], -1).reshape(len(unit), -1),
    }
    given = torch.from_numpy(csi).to(torch.complex64)
    for kind, values in expected.items():
        hand = HandFeatures(csi.shape[2], csi.shape[3], kind)
        hand.prepare({"csi": given})
        standard = (values - values.mean(0)) / values.std(0, ddof=1)
        np.testing.assert_allclose(hand(given), standard, atol=2e-3)


def test_a_link_without_power_does_not_outweigh_the_others(csi):
    hand, net = HandFeatures(8, 16), ResNet("resnet18", normalize="link", width=0.25)
    silent = torch.zeros_like(csi)
    for encoder in (hand, net):
        encoder.prepare({"csi": csi})
    assert torch.equal(hand(silent)[:, -1], torch.full((6,), -4.0))
    assert torch.equal(net._image(silent)[:, 2], torch.full((6, 16, 16), -4.0))


def test_levels_over_angle_and_delay_know_no_phase_and_show_weak_paths_beside_strong_ones():
    antenna, tone = torch.arange(16.0).reshape(-1, 1), torch.arange(32.0)

    def path(angle, delay):
        return torch.polar(torch.ones(16, 32), 2 * torch.pi * (angle * antenna / 16 - delay * tone / 32))

    csi = (path(3.5, 5.5) + 0.0015 * path(10, 20)).reshape(1, 1, 16, 32)  # between the bins: side lobes all over
    planes = level_image(csi)
    assert planes.shape == (1, 2, 16, 32)
    assert torch.allclose(level_image(csi * torch.tensor(3e-5j)), planes, atol=1e-4)
    plain, windowed = planes[0, :, 7:14, 12:28]  # away from the strong path
    weak = (10 - 7) * 16 + (20 - 12)
    assert windowed.argmax() == weak
    assert plain.argmax() != weak


def test_a_tower_of_levels_wants_links_of_unit_power(csi):
    net = ResNet("resnet18", "angle_delay_level", "link", width=0.25, norm="group").eval()
    net.prepare({"csi": csi})
    assert net(csi).shape == (6, net.num_features)
    with pytest.raises(InputError, match="normalize: link"):
        ResNet("resnet18", "angle_delay_level")
    with pytest.raises(
        InputError, match="backbone must be a ResNet of timm, such as resnet18 or resnet50, got 'resnt18'"
    ):
        ResNet("resnt18")


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


def test_a_call_takes_what_users_have(csi):
    net = ResNet("resnet18", width=0.25).eval()
    expected = net(csi)
    assert torch.equal(net(csi.to(torch.complex128)), expected)
    assert torch.equal(net(csi.numpy()), expected)
    assert torch.equal(net(csi=csi.numpy().astype(np.complex128)), expected)
    assert torch.equal(net.encode({"csi": csi.to(torch.complex128)}), expected)
    assert net.double()(csi.to(torch.complex128)).dtype == torch.float64
    user, station = np.zeros((2, 3)), torch.ones(2, 3)
    assert PositionFeatures()(user, station).dtype == torch.float32


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda csi: csi[0], r"ResNet reads csi of axes \(B R T K\), got shape \(2, 8, 16\): a single link is a batch"),
        (
            lambda csi: csi[:, None],
            r"reads csi of axes \(B R T K\), got shape \(6, 1, 2, 8, 16\).*leave data.sequence out .*base_stations",
        ),
        (lambda csi: csi.real, "reads complex csi, got torch.float32"),
        (lambda csi: csi.abs().numpy(), "reads complex csi, got torch.float32"),
        (lambda csi: csi * torch.nan, "csi has entries that are NaN or infinite"),
    ],
)
def test_a_call_refuses_what_it_cannot_read(csi, made, message):
    net = ResNet("resnet18", width=0.25).eval()
    with pytest.raises(InputError, match=message) as caught:
        net(made(csi))
    assert "\n" not in str(caught.value)


def test_nan_is_not_looked_for_in_training(csi, monkeypatch):
    net = ResNet("resnet18", width=0.25)
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda *_: pytest.fail("a pass over the CSI in every step"))
    net(csi)
    net.eval().encode({"csi": csi})


@pytest.mark.parametrize("kind", ["profiles", "raw"])
def test_other_antennas_or_subcarriers_are_named(csi, kind):
    for size in ((4, 16), (8, 12), (1, 16), (8, 1)):
        with pytest.raises(InputError, match=r"CSI of \(T, K\) = \(8, 16\), but HandFeatures was made for .*data\.bs"):
            HandFeatures(*size, kind).prepare({"csi": csi})
    assert HandFeatures(4, 16, "power")(csi).shape == (6, 1)


def test_the_channel_tower_names_its_size(csi):
    sizes = {"patch": (4, 4), "width": 16, "layers": 1, "shared_layers": 0, "heads": 2}
    assert ChannelTransformer(16, 16, **sizes)(csi).shape == (6, 128)
    for size in ((8, 16), (16, 8), (32, 32)):
        tower = ChannelTransformer(*size, **sizes)
        for read in (tower.encode, tower.tokens):
            with pytest.raises(InputError, match=r"\(R, T, K\) = \(2, 8, 16\), but the channel tower .*\(R\*T, K\)"):
                read({"csi": csi})
