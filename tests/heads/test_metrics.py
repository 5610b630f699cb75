"""Metrics over ranks, and their bad arguments."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torchmetrics import Metric, MetricCollection

from heads import LOS, Beam, Head, Positioning
from heads.metrics import Accuracy, TopK
from heads.positioning import ErrorQuantile
from tests.heads.conftest import D, Q, make_batch

Scores = dict[str, dict[str, Tensor]]


def score(sizes_and_seeds: list[tuple[int, int]]) -> Scores:
    """Return the metrics of every head over batches that depend on their seed alone."""
    return {name: metrics.compute() for name, metrics in accumulate(sizes_and_seeds).items()}


def accumulate(sizes_and_seeds: list[tuple[int, int]]) -> dict[str, MetricCollection]:
    heads: dict[str, tuple[Head, int]] = {
        "positioning": (Positioning(D), 2),
        "beam": (Beam(D, num_beams=Q), Q),
        "los": (LOS(D), 2),
    }
    collections = {}
    for name, (head, width) in heads.items():
        collections[name] = head.metrics()
        for size, seed in sizes_and_seeds:
            prediction = torch.randn(size, width, generator=torch.Generator().manual_seed(seed))
            collections[name].update(prediction, make_batch(size, seed))
    return collections


def rank_main(rank: int, port: int, shares: list[list[tuple[int, int]]], folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(shares))
    torch.save(score(shares[rank]), folder / f"{rank}.pt")
    dist.destroy_process_group()


#: (size, seed) of the batches of two ranks: another number of batches and of samples each
SHARES = [[(9, 0), (5, 1)], [(2, 2)]]


def test_merged_states_equal_one_process() -> None:
    first, second = (accumulate(share) for share in SHARES)
    for name, expected in score(SHARES[0] + SHARES[1]).items():
        for metric, value in expected.items():
            first[name][metric].merge_state(second[name][metric])
            torch.testing.assert_close(first[name][metric].compute(), value)


@pytest.mark.slow
def test_uneven_ranks_equal_one_process(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(rank_main, (port, SHARES, tmp_path), nprocs=2)
    expected = score(SHARES[0] + SHARES[1])
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), expected)


def test_confusion_matrix_has_the_truth_by_row() -> None:
    target, predicted = torch.tensor([0, 0, 2], dtype=torch.int8), torch.tensor([0, 1, 2])
    metric = Accuracy(3, "los")
    metric.update(torch.eye(3)[predicted], {"los": target})
    assert metric.confusion.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TopK(0, "beam"), "k must be at least 1, got 0"),
        (lambda: Accuracy(1, "los"), "num_classes must be at least 2, got 1"),
        (lambda: ErrorQuantile(90), r"probability must be in \[0, 1\], got 90"),
    ],
)
def test_bad_arguments(build: Callable[[], Metric], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        build()
