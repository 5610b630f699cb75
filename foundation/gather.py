"""Rows, sums and means over all processes.

All functions are collective operations, which all processes must call equally often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor

Rows = dict[str, Tensor]

_all_gather: Callable[[Tensor], tuple[Tensor, ...]] = differentiable.all_gather


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    """Return the number W of processes."""
    return dist.get_world_size() if _several() else 1


def gather(value: Tensor) -> Tensor:
    """Concatenate a tensor over processes, with gradients; the shapes must be equal."""
    return torch.cat(_all_gather(value)) if _several() else value


def gather_rows(rows: Rows) -> Rows:
    """Return the rows of all processes on each of them, in the order of a single process.

    Args:
        rows: Rows of this process of an evaluated side, by name, each (n, ...), with n different among processes or 0.

    Returns:
        All rows, on the devices of `rows`.
    """
    if not _several():
        return rows
    shares: list[Any] = [None] * world_size()
    # as objects on the CPU, since gathering tensors requires equal shapes and supports not every dtype
    dist.all_gather_object(shares, {key: value.detach().cpu() for key, value in rows.items()})
    return {key: value.to(rows[key].device) for key, value in interleaved(shares).items()}


def interleaved(shares: Sequence[Rows]) -> Rows:
    """Merge the rows of processes with every W-th link each into the order of the links (see `ShardedSampler`)."""
    counts = [len(next(iter(share.values()))) for share in shares]
    place = torch.cat([torch.arange(count) * len(shares) + number for number, count in enumerate(counts)])
    order = place.argsort()
    return {key: torch.cat([share[key] for share in shares])[order] for key in shares[0]}


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Concatenate batches by name along their first axis."""
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def total(values: Tensor) -> Tensor:
    """Return the sum of a tensor over processes; the shapes must be equal."""
    values = values.detach().clone()
    if _several():
        dist.all_reduce(values)
    return values


def mean(values: Tensor) -> Tensor:
    """Return the mean of a tensor over processes; the shapes must be equal."""
    return total(values) / world_size()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
