import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from datamodules.errors import InputError
from foundation.nets.autoencoder import Quantizer
from foundation.nets.csinet import CsiNet
from foundation.nets.csinetplus import CSINetPlus
from foundation.nets.swin_autoencoder import SwinAutoencoder

SMALL = {"code_size": 6, "rows": 8, "antennas": 4}


@pytest.fixture
def csi():
    return torch.randn(3, 1, 4, 16, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)) * 1e-6


def count(net):
    return sum(p.numel() for p in net.parameters())


# figures of the networks' authors; those of CSINet+ at 32 are in the twin-feedback authors' checkpoint
@pytest.mark.parametrize(
    ("code_size", "plus", "plain", "operations"),
    [
        (512, 2_122_068, 2_103_120, 24.57e6),
        (128, 548_820, 529_872, 23.00e6),
        (64, 286_612, 267_664, 22.74e6),
        (32, 155_508, 136_560, 22.61e6),
    ],
)
def test_sizes_are_those_published(code_size, plus, plain, operations):
    net = CSINetPlus(code_size).eval()
    assert count(net) == plus
    assert count(CsiNet(code_size)) == plain
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.rebuild(net.compress(torch.zeros(1, 2, 32, 32)))
    assert counter.get_total_flops() / 2 == pytest.approx(operations, rel=5e-4)


@pytest.mark.parametrize("kind", [CSINetPlus, CsiNet, SwinAutoencoder])
def test_code_and_channel_have_their_shapes(kind, csi):
    net = kind(**SMALL)
    code = net(csi)
    assert code.shape == (3, 6) == (3, net.num_features)
    channel = net.decode(code)
    assert channel.shape == (3, 8, 4)
    assert torch.linalg.vector_norm(channel.flatten(1), dim=1).tolist() == pytest.approx([1] * 3, rel=1e-5)
    (channel - net.observe(csi)[0]).abs().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_the_size_of_the_swin_autoencoder_is_the_one_stated():
    net = SwinAutoencoder()
    assert f"{count(net):,} parameters" in SwinAutoencoder.__doc__
    assert count(SwinAutoencoder(**net.hparams)) == count(net)


def test_the_swin_autoencoder_learns_a_channel(csi):
    torch.manual_seed(0)
    net = SwinAutoencoder(**SMALL, width=16)
    target, optimizer = net.observe(csi)[0], torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        error = (net.decode(net.encode_channel(target)) - target).abs().square().sum((1, 2)).mean()
        error.backward()
        optimizer.step()
    assert error < 0.1, "three channels in six numbers"


def test_sides_of_the_image_that_patches_do_not_divide_are_named():
    with pytest.raises(InputError, match="2 \\* patch = 8 does not divide 12 taps by 32 antenna pairs"):
        SwinAutoencoder(rows=12, patch=4)
    with pytest.raises(InputError, match="width must be a multiple of 16, got 24"):
        SwinAutoencoder(width=24)


@pytest.mark.parametrize("kind", [CSINetPlus, CsiNet])
def test_first_estimate_is_signed(kind):
    net = kind(**SMALL)
    pixels = net.rebuild(torch.randn(64, 6, generator=torch.Generator().manual_seed(0)))
    assert pixels.min() < -0.1
    assert pixels.max() > 0.1


def test_blocks_refine_and_keep_what_they_refine(csi):
    net = CSINetPlus(**SMALL).eval()
    code = net(csi)
    for block in net.rebuilder[4:]:
        for parameter in block.parameters():
            torch.nn.init.zeros_(parameter)
    assert torch.allclose(net.rebuild(code), net.rebuilder[:4](code))


def test_what_is_decoded_is_laid_out_as_what_is_encoded(csi):
    net = CSINetPlus(code_size=64, rows=8, antennas=4)
    net.compress, net.rebuild = lambda pixels: pixels.flatten(1), lambda code: 3 * code.reshape(-1, 2, 8, 4)
    channel = net.observe(csi)[0]
    torch.testing.assert_close(net.decode(net.encode_channel(channel)), channel)


def test_an_autoencoder_is_rebuilt_from_its_settings():
    net = CSINetPlus(code_size=6, rows=8, antennas=4, reference="first", bits=3, blocks=2)
    again = CSINetPlus(**net.hparams)
    assert count(again) == count(net)
    assert (again.reference, again.feedback_bits) == ("first", 18)
    assert CsiNet(**CsiNet(6, 8, 4, bits=2).hparams).feedback_bits == 12
    assert CsiNet(6, 8, 4).feedback_bits == 192


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_quantized_code_has_so_many_levels_and_a_gradient(bits):
    quantizer = Quantizer(bits)
    code = torch.linspace(-4, 4, 20001, requires_grad=True)
    received = quantizer(code)
    indices = quantizer.indices(code)
    assert indices.unique().tolist() == list(range(2**bits))
    assert torch.allclose(received, quantizer.levels(indices), atol=1e-6)
    assert (received - torch.tanh(code)).abs().max() <= 2**-bits + 1e-6
    received.sum().backward()
    assert torch.allclose(code.grad, 1 - torch.tanh(code.detach()) ** 2, atol=1e-6)


@pytest.mark.parametrize("bits", [0, 1, 9])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(InputError, match=f"bits must be 2 to 8, got {bits}"):
        CSINetPlus(bits=bits)


def test_sizes_that_are_none_are_refused():
    with pytest.raises(InputError, match="CSINetPlus: blocks must not be negative, got -1"):
        CSINetPlus(blocks=-1)
    with pytest.raises(InputError, match="CsiNet: code_size must be a whole number of 1 or more, got 0"):
        CsiNet(0)


def test_data_of_another_shape_are_named(csi):
    with pytest.raises(InputError, match=r"\(1, 4, 16\), but the autoencoder has 32 antenna pairs and 8 taps"):
        CSINetPlus(rows=8)(csi)
    with pytest.raises(InputError, match="17 taps"):
        CSINetPlus(rows=17, antennas=4)(csi)
    with pytest.raises(InputError, match="reads csi of axes"):
        CSINetPlus(rows=8, antennas=4)(csi[:, None])
    with pytest.raises(InputError, match="set its antennas and rows"):
        CSINetPlus(rows=8, antennas=4).observe(csi[:, None])


def test_a_code_in_bfloat16_is_quantised_to_all_levels():
    quantizer, code = Quantizer(8), torch.linspace(-3, 3, 4001).bfloat16()
    assert torch.equal(quantizer(code), quantizer(code.float()))
    assert torch.equal(quantizer.indices(code), quantizer.indices(code.float()))
