import pytest
import torch
from torch import nn

from datamodules.errors import InputError
from foundation.nets.unet1d import UNet1d

# Table I of the paper, in the order of the layers: what goes in and what comes out, but for the batch
N = 32
TABLE = [
    ("embed", (3,), (N,)),
    ("down.0", (2, N), (16, N)),
    ("pool", (16, N), (16, N // 2)),
    ("down.1", (16, N // 2), (32, N // 2)),
    ("pool", (32, N // 2), (32, N // 4)),
    ("down.2", (32, N // 4), (64, N // 4)),
    ("pool", (64, N // 4), (64, N // 8)),
    ("bottom", (64, N // 8), (128, N // 8)),
    ("up.0", (128, N // 8), (64, N // 4)),
    ("merge.0", (64 + 64, N // 4), (64, N // 4)),
    ("up.1", (64, N // 4), (32, N // 2)),
    ("merge.1", (32 + 32, N // 2), (32, N // 2)),
    ("up.2", (32, N // 2), (16, N)),
    ("merge.2", (16 + 16, N), (16, N)),
    ("out", (16, N), (1, N)),
]


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, generator=generator), torch.rand(5, N, generator=generator)


def test_layers_are_those_of_table_1(inputs):
    net, seen = UNet1d(), []
    for name, layer in net.named_modules():
        if name in {row[0] for row in TABLE}:
            layer.register_forward_hook(
                lambda _, given, out, name=name: seen.append((name, tuple(given[0].shape[1:]), tuple(out.shape[1:])))
            )
    assert net(*inputs).shape == (5, N)
    assert seen == TABLE
    kinds = {"pool": (3, 2), "up.0": (3, 2), "down.0.0": (3, 1), "bottom.3": (3, 1), "merge.2.3": (3, 1), "out": (3, 1)}
    for name, (kernel, stride) in kinds.items():
        layer = net.get_submodule(name)
        sizes = [v[0] if isinstance(v, tuple) else v for v in (layer.kernel_size, layer.stride)]
        assert sizes == [kernel, stride], name
    convolutions = {name: sum(isinstance(m, nn.Conv1d) for m in net.get_submodule(name)) for name, *_ in TABLE[1:-1]
                    if "up" not in name and name != "pool"}  # fmt: skip
    assert convolutions == {name: 1 if name == "down.0" else 2 for name in convolutions}


def test_size_is_the_papers_181_k():
    assert sum(p.numel() for p in UNet1d().parameters()) == pytest.approx(181e3, rel=1e-3)


def test_output_is_a_distribution_that_both_inputs_move(inputs):
    net = UNet1d().eval()
    position, weights = inputs
    refined = net(position, weights)
    assert (refined > 0).all()
    assert refined.sum(1).tolist() == pytest.approx([1] * 5)
    assert not torch.allclose(net(position + 1, weights), refined, atol=1e-5)
    assert not torch.allclose(net(position, weights.flip(1)), refined, atol=1e-5)
    refined[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_skips_carry_the_fine_levels(inputs):
    net = UNet1d().eval()
    position, weights = inputs
    for up in net.up:
        for parameter in up.parameters():
            nn.init.zeros_(parameter)
    assert not torch.allclose(net(position, weights.flip(1)), net(position, weights), atol=1e-5)


@pytest.mark.parametrize("beams", [0, 4, 12])
def test_beams_that_cannot_be_halved_are_refused(beams):
    with pytest.raises(InputError, match=f"give a multiple of 8, not {beams}"):
        UNet1d(beams)
