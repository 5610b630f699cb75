"""Batches that look like the datamodule's: two of unequal size, some samples without a label."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

Q = 16  # beams
D = 8  # features


def make_batch(size: int, seed: int) -> dict[str, Tensor]:
    """Return a batch of `size` links in which the second of them has no label of any kind."""
    generator = torch.Generator().manual_seed(seed)
    power = torch.rand(size, Q, generator=generator) * 1e-9 + 1e-12
    position = torch.randn(size, 3, generator=generator) * 40 + torch.tensor([300.0, -200.0, 1.5])
    los = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8)
    beam = power.argmax(-1)
    position[1], los[1], beam[1], power[1] = torch.nan, -1, -1, 0.0
    bs_position = torch.tensor([280.0, -150.0, 25.0]).expand(size, 3)
    return {"position": position, "bs_position": bs_position, "los": los, "beam": beam, "beam_power": power}


@pytest.fixture
def batches() -> list[dict[str, Tensor]]:
    return [make_batch(37, seed=0), make_batch(12, seed=1)]


@pytest.fixture
def batch(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return batches[0]


@pytest.fixture
def features(batch: dict[str, Tensor]) -> Tensor:
    return torch.randn(len(batch["los"]), D, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def statistics(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    keep = batch["los"] >= 0
    relative = (batch["position"] - batch["bs_position"])[keep]
    return {
        "position_mean": relative.mean(0),
        "position_std": relative.std(0),
        "los_counts": torch.bincount(batch["los"][keep].long(), minlength=2),
        "beam_counts": torch.bincount(batch["beam"][keep], minlength=Q),
    }
