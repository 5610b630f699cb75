import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from foundation.csiclip import CSICLIP
from foundation.nets.resnet import ResNet

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


def batch(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(24, 1, 8, 16, dtype=torch.complex64, generator=generator).to(dtype.to_complex()) * 1e-5


def gradients(loss: Loss) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in loss.named_parameters()}


def rank_main(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results = []
    for dtype in BOUNDS:
        wrapped = DistributedDataParallel(Loss(dtype))
        value = wrapped(batch(dtype).chunk(2)[rank])
        value.backward()
        mean = value.detach().clone()
        dist.all_reduce(mean)
        results.append({"loss": mean / 2, "gradients": gradients(wrapped.module)})
    if rank == 0:
        torch.save(results, out)
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = str(tmp_path / "rank0.pt")
    mp.spawn(rank_main, (port, out), nprocs=2)
    for (dtype, bound), two in zip(BOUNDS.items(), torch.load(out, weights_only=True), strict=True):
        one = Loss(dtype)
        value = one(batch(dtype))
        value.backward()
        assert two["loss"].dtype == dtype
        assert torch.allclose(two["loss"], value, rtol=bound, atol=0)
        ours = gradients(one)
        assert ours.keys() == two["gradients"].keys()
        flat, other = (torch.cat([g[name].flatten() for name in ours]) for g in (ours, two["gradients"]))
        error = (other - flat).norm() / flat.norm()
        assert error <= bound, f"gradients of two ranks are off by {error:.1e} in {dtype}"
