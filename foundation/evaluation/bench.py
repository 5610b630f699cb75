"""Speed and memory compared with other implementations, in one run: `make bench`."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules import OFDM, Array, ChannelDataModule, DeepMIMO, Paths, SionnaRT, Site, Source, synthesize
from datamodules.channel.response import link_factors
from datamodules.progress import activity
from datamodules.sites.environment import Environment
from datamodules.sources.base import Recipe

RUNS, BATCH = 9, 64
#: name, base-station array, user array, subcarriers
CASES = (
    ("UPA 8x8 by 2x2, 256 subcarriers", Array(8, 8), Array(2, 2), OFDM(256, 10e6)),
    ("ULA 32, 64 subcarriers", Array(1, 32), Array(), OFDM(64, 10e6)),
)


@dataclass(frozen=True)
class Row:
    """One comparison: `ours` of this package, `theirs` of the reference, and `ratio`, ours over theirs."""

    name: str
    ours: float
    theirs: float
    ratio: float
    unit: str


def rates(works: list[Callable[[], None]], count: int) -> list[float]:
    """Return items per second of several functions: medians of alternating runs, so that machine load affects all."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(RUNS):
        for work, times in zip(works, seconds, strict=True):
            work()  # untimed warm-up: thread pools and caches are in the state of the function before
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
    return [count / statistics.median(times) for times in seconds]


def real_site() -> Site:
    """Return ray-traced links of a real city: New York where `$CSI_DATA` has it, else a square in Paris."""
    if (Path(os.environ.get("CSI_DATA", "data")) / "deepmimo" / "city_0_newyork_3p5").is_dir():
        return DeepMIMO("city_0_newyork_3p5", base_stations=[1]).sites()[0]
    return SionnaRT("etoile", base_stations=[[0, 0, 30]], num_users=900).sites()[0]


def synthesis(site: Site) -> list[Row]:
    """Compare synthesis with DeepMIMO's `compute_channels`, and with the matrix product over paths alone."""
    paths = site.paths[site.paths.has_path]
    paths = paths[: len(paths) // BATCH * BATCH]
    batches = [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]
    rows = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        theirs = _deepmimo(site, paths, Path(folder))
    for name, bs, ue, ofdm in CASES:
        out = synthesize(batches[0], bs, ue, ofdm)
        flat = out.view(BATCH, -1, ofdm.num_subcarriers)
        factors = []
        for batch in batches:
            # without columns that are padding in every link, which would slow the reference down
            space, tones = link_factors(batch.narrow(int(batch.mask.any(0).sum())), bs, ue, ofdm)
            factors.append((space.permute(1, 0, 2).contiguous(), tones.permute(1, 2, 0).contiguous()))

        def ours(bs: Array = bs, ue: Array = ue, ofdm: OFDM = ofdm, out: torch.Tensor = out) -> None:
            for batch in batches:
                synthesize(batch, bs, ue, ofdm, out=out)

        def bare(factors: list[tuple[torch.Tensor, torch.Tensor]] = factors, flat: torch.Tensor = flat) -> None:
            for space, tones in factors:
                torch.bmm(space, tones, out=flat)

        peer = theirs(bs, ue, ofdm)
        our_rate, their_rate, bare_rate = rates([ours, peer, bare], len(paths))
        rows.append(_row(f"{name}: DeepMIMO compute_channels", our_rate, their_rate, "channels/s"))
        rows.append(_row(f"{name}: bare matrix product, reused output", our_rate, bare_rate, "channels/s"))
    return rows


def _deepmimo(site: Site, paths: Paths, folder: Path) -> Callable[[Array, Array, OFDM], Callable[[], None]]:
    """Load the links in DeepMIMO and return what computes their channels, in batches."""
    import dataclasses

    import deepmimo

    from datamodules.export.deepmimo import write_deepmimo

    write_deepmimo([dataclasses.replace(site, links=paths)], folder, "bench")
    before = deepmimo.config.get("scenarios_folder")
    deepmimo.config.set("scenarios_folder", str(folder))
    try:
        dataset = deepmimo.load("bench")
    finally:
        deepmimo.config.set("scenarios_folder", before)
    batches = [dataset.trim(idxs=np.arange(i, i + BATCH)) for i in range(0, len(paths), BATCH)]

    def prepared(bs: Array, ue: Array, ofdm: OFDM) -> Callable[[], None]:
        parameters = deepmimo.ChannelParameters(
            bs_antenna={"shape": [bs.cols, bs.rows]},
            ue_antenna={"shape": [ue.cols, ue.rows]},
            num_paths=paths.num_paths,
            ofdm={
                "subcarriers": ofdm.num_subcarriers,
                "selected_subcarriers": np.arange(ofdm.num_subcarriers),
                "bandwidth": ofdm.bandwidth,
            },
        )

        def run() -> None:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                for batch in batches:
                    batch.compute_channels(parameters)

        return run

    return prepared


class RandomLinks(Source):
    """Links of random rays, for benchmarks that depend on the size of the data only.

    Args:
        count: Number of links.
        cache: Folder of finished sites.
        paths: Number of paths of every link.
    """

    def __init__(self, count: int, cache: str, paths: int = 20) -> None:
        super().__init__(cache)
        self.shape = (count, paths)

    def recipes(self) -> list[Recipe]:
        """List the one site."""
        return [Recipe(("random",), {"shape": list(self.shape)}, lambda _: [self._site()])]

    def _site(self) -> Site:
        draw = torch.Generator().manual_seed(0)
        count, shape = self.shape[0], self.shape
        position = torch.rand(count, 3, generator=draw) * 1000
        paths = Paths(
            gain=torch.randn(shape, dtype=torch.complex64, generator=draw) * 1e-5,
            delay=torch.rand(shape, generator=draw) * 3e-6,
            aod=torch.rand(*shape, 2, generator=draw) * 3,
            aoa=torch.rand(*shape, 2, generator=draw) * 3,
            mask=torch.ones(shape, dtype=torch.bool),
            position=position,
            los=torch.randint(0, 2, (count,), generator=draw, dtype=torch.int8),
            bounces=torch.ones(shape, dtype=torch.uint8),
        )
        field = Environment.empty(position.numpy())
        return Site("random", paths, torch.zeros(3), 3.5e9, "random", "random", field)


class EpochTimer(Callback):
    """Times the epochs of a fit, from the start of one to the start of the next, alternating with another loop.

    Each loop runs two epochs, of which the second is timed: the first warms up threads and caches. The set-up of the
    trainer and loaders is not included.

    Args:
        other: Runs an epoch of the other loop.
    """

    def __init__(self, other: Callable[[], None]) -> None:
        self.other, self.started = other, 0.0
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the timer, or stop it and run two epochs of the other loop."""
        now = time.perf_counter()
        if trainer.current_epoch % 2 == 0:
            if trainer.current_epoch > 0:
                self.ours.append(now - self.started)
            self.other()
            started = time.perf_counter()
            self.other()
            self.theirs.append(time.perf_counter() - started)
        self.started = time.perf_counter()


def training_loop(folder: str, probe: bool) -> Row:
    """Compare Lightning's loop, with the logging of this package, with a plain PyTorch loop of the same training.

    Args:
        folder: Cache of the links.
        probe: Whether Lightning also trains the online probe, which the plain loop does not.
    """
    from foundation import CSICLIP, ResNet
    from foundation.nets.resnet import Domain

    domains: tuple[Domain, Domain] = ("csi", "cir")

    def build() -> tuple[CSICLIP, ChannelDataModule]:
        torch.manual_seed(0)
        csi, cir = (ResNet("resnet18", domain, "link", 0.5, "group") for domain in domains)
        data = ChannelDataModule(RandomLinks(1000, folder), split="random", fractions=(0.8, 0.0, 0.2), views=[])
        data.prepare_data()
        data.setup("fit")
        return CSICLIP(csi, cir, schedule="constant"), data

    model, data = build()
    model.prepare_from(data)
    optimizer, loader = model.configure_optimizers(), data.train_dataloader()

    def bare() -> None:
        model.train()
        for rows in loader:
            batch = data.finish(rows)
            loss = model.loss(*model(*batch["views"])[1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.loss.clamp()

    ours, our_data = build()
    if not probe:
        ours.configure_callbacks = list  # type: ignore[method-assign]
    turns = EpochTimer(bare)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2 * RUNS + 1,
        callbacks=[turns],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    trainer.fit(ours, our_data)
    pairs = list(zip(turns.ours, turns.theirs, strict=False))
    links = len(loader.sampler)  # type: ignore[arg-type]
    our_rate, their_rate = (links / statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    name = f"training, CSI-CLIP with two ResNet-18 of half width{', online probe on top' if probe else ''}"
    # ratios of consecutive epochs, so that a change of machine load affects both
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    return Row(f"{name}: bare PyTorch loop", our_rate, their_rate, ratio, "links/s")


def _open_large(folder: str) -> None:
    """Open 700,000 links, load the batches of one epoch, and print seconds and resident bytes added."""
    source = RandomLinks(700_000, folder)
    before = _resident()
    started = time.perf_counter()
    data = ChannelDataModule(source, bs=Array(1, 32), split="spatial", views=[])
    data.prepare_data()
    data.setup("fit")
    seconds = time.perf_counter() - started
    for number, rows in enumerate(data.train_dataloader()):
        if number % 50 == 0:
            data.finish(rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "bytes": peak - before}))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def large_data(folder: str) -> list[Row]:
    """Measure opening and loading 700,000 links in a separate process; `theirs` is the target value."""
    RandomLinks(700_000, folder).sites()
    program = f"from foundation.evaluation.bench import _open_large; _open_large({folder!r})"
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return [
        _row("open 700,000 links of 20 paths, checksums included: bar", found["seconds"], 2.0, "s"),
        _row("load an epoch of them, resident memory added: bar", found["bytes"] / 2**30, 1.5, "GiB"),
    ]


def _row(name: str, ours: float, theirs: float, unit: str) -> Row:
    return Row(name, ours, theirs, ours / theirs, unit)


def main() -> None:
    """Measure speed and memory beside other implementations, print them, and write `runs/bench.json`."""
    argparse.ArgumentParser(prog="make bench", description=main.__doc__).parse_args()  # there are no options
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder:
        with activity("training"):
            loops = [training_loop(folder, probe) for probe in (False, True)]
        with activity("synthesis"):
            rows = [*synthesis(real_site()), *loops]
        with activity("large data"):
            rows += large_data(folder)
    width = max(len(row.name) for row in rows)
    waiting = os.environ.get("OMP_WAIT_POLICY", "not set")
    print(f"{torch.get_num_threads()} threads (OMP_WAIT_POLICY {waiting}), batches of {BATCH}, median of {RUNS}")
    for row in rows:
        print(f"{row.name:{width}}  {row.ours:12,.2f}  {row.theirs:12,.2f}  {row.ratio:6.2f}  {row.unit}")
    Path("runs").mkdir(exist_ok=True)
    Path("runs/bench.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
