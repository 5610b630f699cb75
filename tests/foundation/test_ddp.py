import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from foundation.csiclip import CSICLIP
from foundation.nets.resnet import ResNet

SETTINGS = {"backbone": "resnet18", "normalize": "link", "width": 0.25, "norm": "group"}


class Loss(torch.nn.Module):
    """What a training step computes, as a module that DDP can wrap."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = CSICLIP(ResNet(**SETTINGS), ResNet(**SETTINGS, domain="cir"), embed_dim=16)

    def forward(self, csi: torch.Tensor) -> torch.Tensor:
        _, a, b = self.model(csi)
        return self.model.loss(a, b)


def batch() -> torch.Tensor:
    return torch.randn(24, 1, 8, 16, dtype=torch.complex64, generator=torch.Generator().manual_seed(1)) * 1e-5


def gradients(loss: Loss) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in loss.named_parameters()}


def rank_main(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    wrapped = DistributedDataParallel(Loss())
    value = wrapped(batch().chunk(2)[rank])
    value.backward()
    mean = value.detach().clone()
    dist.all_reduce(mean)
    if rank == 0:
        torch.save({"loss": mean / 2, "gradients": gradients(wrapped.module)}, out)
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = str(tmp_path / "rank0.pt")
    mp.spawn(rank_main, (port, out), nprocs=2)
    two = torch.load(out, weights_only=True)
    one = Loss()
    value = one(batch())
    value.backward()
    assert torch.allclose(two["loss"], value, rtol=1e-5)
    ours = gradients(one)
    flat = {
        who: torch.cat([g[name].flatten() for name in ours]) for who, g in (("one", ours), ("two", two["gradients"]))
    }
    assert (flat["two"] - flat["one"]).norm() <= 1e-5 * flat["one"].norm()
