import socket
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from datamodules.errors import InputError
from foundation.adaptation.finetune import FineTune
from foundation.encoder import Encoder
from foundation.models.csiclip import CSICLIP
from foundation.models.envchannel import EnvChannel
from foundation.nets.classical import ClassicalPredictor
from foundation.nets.environment_tower import EnvironmentTransformer
from foundation.nets.resnet import ResNet
from foundation.nets.transformer import ChannelTransformer
from foundation.task import FoundationTask
from heads import LOS, Feedback, Prediction

# float64 shows that the two are one and the same computation, float32 that its rounding does not grow
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5}
SETTINGS = {"backbone": "resnet18", "normalize": "link", "width": 0.25, "norm": "group"}


class Loss(torch.nn.Module):
    """What a training step computes, as a module that DDP can wrap."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = CSICLIP(ResNet(**SETTINGS), ResNet(**SETTINGS, domain="cir"), embed_dim=16).to(dtype)
        # as every training does: or the power in dB swamps the image, all embeddings are nearly one, and their
        # differences, hence the gradients, lose one to two digits in float32
        for tower in (self.model.csi_encoder, self.model.cir_encoder):
            tower.prepare({"csi": batch(dtype)})

    def forward(self, csi: torch.Tensor) -> torch.Tensor:
        _, a, b = self.model(csi)
        return self.model.loss(a, b)


class TwoTowers(torch.nn.Module):
    """The environment-channel loss, all its terms."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"width": 32, "layers": 1, "shared_layers": 1, "heads": 2, "embed_dim": 16}
        self.model = EnvChannel(
            ChannelTransformer(num_antennas=8, num_subcarriers=16, patch=(4, 4), **sizes),
            EnvironmentTransformer(frequencies=2, corridor=2, echoes=2, **sizes),
            lambda width: Feedback(width, 8, 16, (4, 4), 0, 32, 1, 2),
            counterfactuals=1.0,
        ).to(dtype)
        for block in self.model.decoder.modules():  # its output starts at zero, and so would most gradients
            if isinstance(block, torch.nn.Linear) and not block.weight.any():
                torch.nn.init.normal_(block.weight, std=0.1)

    def forward(self, csi: torch.Tensor) -> torch.Tensor:
        rows = (csi[:, 0, 0, 0].real.abs() * 1e9).long() % 1000  # each link its own map and vector, on any rank
        draw = [torch.Generator().manual_seed(int(row)) for row in rows]
        real = csi.real.dtype
        surroundings = {
            "map": torch.stack([torch.rand(1, 64, 64, generator=g) for g in draw]).to(real),
            "geometry": torch.stack([torch.rand(8, generator=g) for g in draw]).to(real),
            "los": rows % 2,
        }
        batch = {"csi": csi, **surroundings}
        losses = self.model._losses(batch, *self.model(batch))
        return torch.stack(list(losses.values())).sum()


def batch(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    # a rank's half holds every kind of counterfactual as often as the whole: they go by eight rows
    return torch.randn(32, 1, 8, 16, dtype=torch.complex64, generator=generator).to(dtype.to_complex()) * 1e-5


def gradients(loss: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}


KINDS = (Loss, TwoTowers)


def rank_main(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results: dict[str, list[dict[str, object]]] = {kind.__name__: [] for kind in KINDS}
    for kind in KINDS:
        for dtype in BOUNDS:
            wrapped = DistributedDataParallel(kind(dtype), find_unused_parameters=True)
            value = wrapped(batch(dtype).chunk(2)[rank])
            value.backward()
            mean = value.detach().clone()
            dist.all_reduce(mean)
            results[kind.__name__].append({"loss": mean / 2, "gradients": gradients(wrapped.module)})
    if rank == 0:
        torch.save(results, out)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Losses and gradients of two processes, by kind."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = str(tmp_path_factory.mktemp("ddp") / "rank0.pt")
    mp.spawn(rank_main, (port, out), nprocs=2)
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one_process(kind, two_ranks):
    for (dtype, bound), two in zip(BOUNDS.items(), two_ranks[kind.__name__], strict=True):
        one = kind(dtype)
        value = one(batch(dtype))
        value.backward()
        assert two["loss"].dtype == dtype
        assert torch.allclose(two["loss"], value, rtol=bound, atol=0)
        ours = gradients(one)
        assert ours.keys() == two["gradients"].keys()
        flat, other = (torch.cat([g[name].flatten() for name in ours]) for g in (ours, two["gradients"]))
        error = (other - flat).norm() / flat.norm()
        assert error <= bound, f"gradients of two ranks are off by {error:.1e} in {dtype}"


class Half(Encoder):
    """An encoder whose author forgot that its last layer has no part in its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features, self.token_shape = 2, (4, 3)
        self.first, self.last = torch.nn.Linear(1, 3), torch.nn.Linear(12, 2)

    def tokens(self, batch):
        return self.first(batch["csi"].abs().flatten(1)[:, :4, None])

    def forward(self, csi):
        return self.last(self.tokens({"csi": csi}).flatten(1))


@pytest.mark.parametrize("tokens", [None, 2])
def test_a_parameter_without_a_gradient_is_named_before_ddp_stops(tokens, tmp_path):
    model = FineTune(LOS, Half(), mode="scratch", tokens=tokens)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        strategy = SimpleNamespace(model=DistributedDataParallel(model))
        model._trainer = SimpleNamespace(global_step=0, strategy=strategy)
        model({"csi": torch.randn(5, 1, 2, 4, dtype=torch.complex64)}).sum().backward()
        unread = nullcontext()
        if tokens:
            unread = pytest.raises(
                InputError, match=r"encoder\.last\.weight and 1 more had no gradient .* beyond_tokens"
            )
        with unread:
            model.on_after_backward()
    finally:
        dist.destroy_process_group()


def test_a_model_is_wrapped_after_one_that_learns_nothing():
    strategy = DDPStrategy()
    idle = FineTune(lambda n: Prediction(n, "given"), ClassicalPredictor("hold"), mode="control")
    for model, wrapped in ((idle, False), (FineTune(LOS, Half(), mode="scratch"), True)):
        model._trainer = SimpleNamespace(strategy=strategy, datamodule=None)
        FoundationTask.setup(model, "fit")
        assert (getattr(strategy.configure_ddp, "__func__", None) is DDPStrategy.configure_ddp) == wrapped
