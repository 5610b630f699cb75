import pytest
import torch

from datamodules.errors import InputError
from foundation.nets.contwin import CNNTransformer, past_image
from foundation.nets.swincfnet import SwinCFNet

SMALL = {"snapshots": 3, "num_antennas": 8, "num_subcarriers": 16}


def past(snapshots=3, batch=4):
    g = torch.Generator().manual_seed(0)
    return torch.randn(batch, snapshots, 2, 4, 16, dtype=torch.complex64, generator=g) * 1e-5


def encoders():
    return {
        "cnn": CNNTransformer(**SMALL, channels=8, width=32, layers=2),
        "swin": SwinCFNet(**SMALL, width=16, heads=(2, 2), embed_dim=24),
    }


@pytest.mark.parametrize("name", ["cnn", "swin"])
def test_features_and_tokens_have_the_shapes_they_state(name):
    encoder = encoders()[name].eval()
    features, tokens = encoder(past()), encoder.tokens({"csi": past()})
    assert encoder.csi_size == (8, 16)
    assert features.shape == (4, encoder.num_features)
    assert tokens.shape == (4, *encoder.token_shape)
    assert features.std(0).min() > 0, "features tell links apart"


@pytest.mark.parametrize("name", ["cnn", "swin"])
def test_a_batch_of_no_links_has_no_features(name):
    encoder, empty = encoders()[name].eval(), {"csi": past(batch=0)}
    assert encoder.encode(empty).shape == (0, encoder.num_features)
    assert encoder.tokens(empty).shape == (0, *encoder.token_shape)


@pytest.mark.parametrize("name", ["cnn", "swin"])
def test_path_loss_is_taken_out_and_every_snapshot_and_weight_counts(name):
    torch.manual_seed(0)
    encoder = encoders()[name]
    for drop in encoder.modules():
        if isinstance(drop, torch.nn.Dropout):
            drop.p = 0.0
    csi = past().requires_grad_()
    out = encoder(csi)
    torch.testing.assert_close(encoder(past() * 1e-3), out, rtol=1e-3, atol=1e-4)
    (out * torch.randn_like(out)).sum().backward()
    assert (csi.grad.abs().sum((0, 2, 3, 4)) > 0).all()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


@pytest.mark.parametrize("name", ["cnn", "swin"])
def test_data_of_another_shape_are_refused(name):
    encoder = encoders()[name]
    with pytest.raises(InputError, match="takes 3 snapshots, the data hold 2: set snapshots"):
        encoder(past(2))
    with pytest.raises(InputError, match="set num_antennas and num_subcarriers"):
        encoder(past()[..., :8])
    with pytest.raises(InputError, match=r"csi of axes \(B N R T K\)"):
        encoder(past()[:, 0])


def test_the_image_shows_snapshots_as_channels():
    csi = torch.zeros(1, 3, 2, 4, 16, dtype=torch.complex64)
    csi[0, 1, 1, 2] = 1j
    pixels = past_image(csi, 3, (8, 16), "csi")
    assert pixels.shape == (1, 6, 8, 16)
    assert pixels.nonzero()[:, 1].unique().tolist() == [3], "the imaginary part of the second snapshot"
    assert pixels.nonzero()[:, 2].unique().tolist() == [6]
    assert past_image(csi, 3, (8, 16), "cir").abs().amax((0, 1, 2)).argmax() == 0, "a flat channel has no delay"
    assert pixels.square().mean() == pytest.approx(0.5), "unit power over the whole past"


def test_encoder_of_table_6_has_as_many_parameters_as_it_should():
    convolutions = 9 * 32 * (20 + 3 * 32) + 4 * 2 * 32
    patches = 32 * 4 * 5 * 256 + 256 + 4 * 13 * 256
    layer = 2 * 2 * 256 + (256 + 1) * 3 * 256 + (256 + 1) * 256 + (256 + 1) * 1024 + (1024 + 1) * 256
    encoder = CNNTransformer()
    assert sum(p.numel() for p in encoder.parameters()) == convolutions + patches + 4 * layer + 2 * 256 == 3_370_624
    assert encoder.token_shape == (52, 256)
    assert encoder.num_features == 256


def test_swincfnet_has_as_many_parameters_as_before():
    assert sum(p.numel() for p in SwinCFNet().parameters()) == 4_731_224


@pytest.mark.parametrize(
    ("net", "name", "value"),
    [
        (CNNTransformer, "snapshots", 0),
        (CNNTransformer, "layers", -1),
        (SwinCFNet, "window", 0),
        (SwinCFNet, "patch", 0),
    ],
)
def test_numbers_that_nothing_can_be_built_of_are_named(net, name, value):
    with pytest.raises(InputError, match=rf"{net.__name__}: {name} must (not )?be (positive|negative), got {value}"):
        net(**{name: value})


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(InputError, match="width 256 must be a multiple of the number of attention heads 3"):
        CNNTransformer(heads=3)
    with pytest.raises(InputError, match=r"2 \* patch = 4 does not divide an image of"):
        SwinCFNet(num_antennas=6)
