"""Speed on a GPU: `python -m foundation.evaluation.gpu_bench [--device cuda:1]`, in one to two minutes.

Data are random rays and models have random weights, since only sizes matter. Measured are the synthesis of channels, a
training step (loss, gradients and step of the optimizer on a finished batch that stays on the device), and making such
a batch (channels, labels and views) from its rows. Loader, logging and online probe are not included.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device

import foundation
from datamodules import OFDM, Array, ChannelDataModule, WorldSymmetry, synthesize
from datamodules.channel.impairments import CommonPhase, Noise, PartialSubcarriers, TimeShift
from datamodules.channel.motion import Sequence
from datamodules.errors import InputError
from datamodules.progress import Progress
from foundation.evaluation.bench import RandomLinks
from foundation.evaluation.twin_pictures import markdown
from foundation.nets.contwin import CNNTransformer
from foundation.nets.resnet import Domain
from foundation.runtime.stopping import exit_status
from foundation.task import FoundationTask
from heads import Feedback

#: name: precision of matrix products outside autocast, whether convolutions take TF32, whether autocast is on
MODES = {
    "fp32, convolutions in TF32": ("highest", True, False),  # the default of PyTorch and of this package
    "fp32": ("highest", False, False),
    "TF32": ("high", True, False),
    "bf16-mixed": ("highest", True, True),
}


class Speed(NamedTuple):
    """A measurement: seconds of a step, its peak of GPU memory [MiB], 0 on a CPU, and seconds to make its batch."""

    step: float
    peak: float
    make: float = 0.0


def _csi_clip() -> tuple[FoundationTask, dict[str, Any]]:
    domains: tuple[Domain, Domain] = ("csi", "cir")
    csi, cir = (foundation.ResNet("resnet18", domain, "link", 0.5, "group") for domain in domains)
    return foundation.CSICLIP(csi, cir, schedule="constant"), {"views": [Noise(), CommonPhase(), PartialSubcarriers()]}


def _env_channel() -> tuple[FoundationTask, dict[str, Any]]:
    size: dict[str, Any] = {"width": 192, "layers": 1, "shared_layers": 1, "heads": 4, "pool": "all"}
    map_parts: dict[str, Any] = {"map_patch": None, "corridor": 4, "echoes": 6, "geometry_tokens": 2, "frequencies": 6}
    weights: dict[str, Any] = {"reconstruction": 7.0, "profile": 10.0, "counterfactuals": 8.0, "withheld": 0.25}
    model = foundation.EnvChannel(
        foundation.ChannelTransformer(patch=(32, 4), domain="angle_delay", **size),
        foundation.EnvironmentTransformer(**map_parts, **size),
        lambda d: Feedback(d, 32, 64, rank=8, width=128, layers=1, heads=4),
        **weights, schedule="constant", optimizer="muon",
    )  # fmt: skip
    return model, {"extras": ["map", "geometry"], "symmetry": WorldSymmetry()}


def _contwin() -> tuple[FoundationTask, dict[str, Any]]:
    encoder = CNNTransformer(10, 16, 64, channels=16, width=128, layers=2)
    views = [Noise(), PartialSubcarriers(), TimeShift(), CommonPhase()]
    data = {"bs": Array(4, 4), "ofdm": OFDM(64, 20e6), "sequence": Sequence(10, 5e-4, window=25e-3)}
    return foundation.ConTwin(encoder, schedule="constant"), {"views": views, "extras": ["domain"], **data}


#: name: constructor of the model and settings of its data, and batch of the measurements in all modes
MODELS = {
    "CSI-CLIP": (_csi_clip, 128), "EnvChannel": (_env_channel, 64), "ConTwin": (_contwin, 128),
    "CSINet+": (
        lambda: (foundation.CsiFeedback(foundation.CSINetPlus(), schedule="constant"), {"ofdm": OFDM(256, 10e6)}), 64,
    ),
}  # fmt: skip


def synthesis(count: int, device: str, folder: str) -> Speed:
    """Measure the synthesis of channels of 8x8 by 2x2 antennas and 256 subcarriers from 25 paths; `make` is 0."""
    [site] = RandomLinks(count, folder, paths=25).sites()
    links, arrays = site.paths.to(device), (Array(8, 8), Array(2, 2), OFDM(256, 10e6))
    out = synthesize(links, *arrays)
    return Speed(*_timed(lambda: synthesize(links, *arrays, out=out), device))


def training(name: str, mode: str, batch_size: int, device: str, folder: str) -> Speed:
    """Measure a training step of a model of `MODELS` in a mode of `MODES`, and making its batch."""
    torch.manual_seed(0)
    model, settings = MODELS[name][0]()
    settings = {"bs": Array(1, 32), "ofdm": OFDM(64, 10e6), **settings}
    settings |= {"split": "random", "fractions": (0.8, 0.1, 0.1), "batch_size": batch_size, "num_workers": 0}
    data = ChannelDataModule(RandomLinks(batch_size * 5 // 4, folder), **settings)
    data.prepare_data()
    data.setup("fit")
    model.prepare_from(data)
    model.to(device).train()
    # a trainer would add its loop, loggers and callbacks to the time
    model._trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=0, precision=mode, datamodule=data)  # type: ignore[assignment]
    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    optimizer: Any = model.configure_optimizers()
    rows = move_data_to_device(next(iter(data.train_dataloader())), torch.device(device))
    with _arithmetic(mode) as autocast:
        batch = data.finish(rows, training=True)

        def step() -> None:
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
                loss: Any = model.training_step(batch, 0)
            (loss["loss"] if isinstance(loss, dict) else loss).backward()
            optimizer.step()
            optimizer.zero_grad()

        make, _ = _timed(lambda: data.finish(rows, training=True), device)
        return Speed(*_timed(step, device), make)


@contextmanager
def _arithmetic(mode: str) -> Iterator[bool]:
    products, convolutions, autocast = MODES[mode]
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = convolutions, True
    try:
        yield autocast
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, False


def _timed(work: Callable[[], object], device: str, seconds: float = 0.6) -> tuple[float, float]:
    """Return the seconds of a call, the median of three series after four calls that warm up, and `Speed.peak`."""

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize(device)

    def series(count: int) -> float:
        wait()
        started = time.perf_counter()
        for _ in range(count):
            work()
        wait()
        return (time.perf_counter() - started) / count

    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    series(3)
    count = max(1, int(seconds / 3 / series(1)))
    spent = statistics.median(series(count) for _ in range(3))
    return spent, torch.cuda.max_memory_allocated(device) / 2**20 if device != "cpu" else 0.0


def report(device: str) -> None:
    """Measure and print two Markdown tables; an `InputError` if there is no such GPU."""
    found, gpus = re.fullmatch(r"cuda(?::(\d+))?", device), torch.cuda.device_count()
    if found is None or int(found[1] or 0) >= gpus:
        raise InputError(f"--device {device} must be cuda or cuda:N of a GPU; PyTorch finds {gpus or 'none'}")
    print(f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as folder, Progress(3 + 5 * len(MODELS), "measuring", leave=False) as progress:
        lines = [["links", "links/s", "GB/s of CSI", "peak MiB"]]
        for count in (64, 1024, 8192):
            speed = synthesis(count, device, folder)
            rate = count / speed.step
            lines.append([f"{count}", f"{rate:,.0f}", f"{rate * 2**19 / 1e9:.0f}", f"{speed.peak:.0f}"])
            progress.update()
        print(markdown(lines), end="\n\n")
        lines = [["model", "mode", "batch", "links/s", "step [ms]", "making the batch [ms]", "peak MiB"]]
        for name, (_, size) in MODELS.items():
            for mode, batch in (*((mode, size) for mode in MODES), ("bf16-mixed", 512)):
                speed = training(name, mode, batch, device, folder)
                times = (f"{1e3 * value:.1f}" for value in (speed.step, speed.make))
                lines.append([name, mode, f"{batch}", f"{batch / speed.step:,.0f}", *times, f"{speed.peak:.0f}"])
                progress.update()
        print(markdown(lines))


def main() -> None:
    """Print the speed of synthesis and of training steps on a GPU."""
    parser = argparse.ArgumentParser(prog="python -m foundation.evaluation.gpu_bench", description=main.__doc__)
    parser.add_argument("--device", default="cuda", help="the GPU, cuda or cuda:1 [cuda]")
    device = parser.parse_args().device
    sys.exit(exit_status(lambda: report(device)))


if __name__ == "__main__":
    main()
