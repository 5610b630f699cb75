"""Metrics over ranks, and their bad arguments."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torchmetrics import Metric

from heads import LOS, Beam, Head, Positioning
from heads.metrics import Accuracy, TopK, confusion_matrix
from heads.positioning import ErrorQuantile
from tests.heads.conftest import D, Q, make_batch

Scores = dict[str, dict[str, Tensor]]


def score(sizes_and_seeds: list[tuple[int, int]]) -> Scores:
    """Return the metrics of every head over batches that depend on their seed alone."""
    heads: list[Head] = [Positioning(D), Beam(D, num_beams=Q), LOS(D)]
    widths = [2, Q, 2]
    scores = {}
    for head, width in zip(heads, widths, strict=True):
        metrics = head.metrics()
        for size, seed in sizes_and_seeds:
            prediction = torch.randn(size, width, generator=torch.Generator().manual_seed(seed))
            metrics.update(prediction, make_batch(size, seed))
        scores[type(head).__name__] = metrics.compute()
    return scores


def rank_main(rank: int, port: int, shares: list[list[tuple[int, int]]], folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(shares))
    torch.save(score(shares[rank]), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_uneven_ranks_equal_one_process(tmp_path: Path) -> None:
    shares = [[(9, 0), (5, 1)], [(2, 2)]]  # another number of batches and of samples a rank
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(rank_main, (port, shares, tmp_path), nprocs=2, start_method="spawn")
    expected = score(shares[0] + shares[1])
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), expected)


def test_confusion_matrix_has_the_truth_by_row() -> None:
    target, predicted = torch.tensor([0, 0, 2], dtype=torch.int8), torch.tensor([0, 1, 2])
    assert confusion_matrix(predicted, target, 3).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


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
