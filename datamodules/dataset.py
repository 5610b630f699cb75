"""Rows of rays out of memory-mapped sites, a batch at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from datamodules.paths import Paths
from datamodules.site import Site

Batch = dict[str, Any]


class ChannelDataset(Dataset[Batch]):
    """Links of one or more sites, fetched in batches straight from the sites' tensors.

    A batch holds `paths` (a dict of the fields of `Paths`), `los` (B,), `position` (B, 3) [m], `bs_position` (B, 3)
    [m], `site` (B,), `user` (B,) and `key`, a number that depends on the rows alone and seeds what is drawn for them.

    Args:
        sites: The sites.
        links: Numbers of the links to serve, counted through the sites in order; by default all.
    """

    def __init__(self, sites: Sequence[Site], links: np.ndarray | None = None) -> None:
        self.sites = list(sites)
        self.starts = np.cumsum([0, *(len(site) for site in self.sites)])
        self.links = np.arange(self.starts[-1]) if links is None else np.asarray(links)
        self.num_paths = max((site.paths.num_paths for site in self.sites), default=0)
        self.bs_positions = torch.stack([site.bs_position for site in self.sites])

    def __len__(self) -> int:
        """Return the number of links."""
        return len(self.links)

    def __getitem__(self, index: int) -> Batch:
        """Return one link as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Fetch rows: one gather a site, no work per sample."""
        links = self.links[np.asarray(indices)]
        site = np.searchsorted(self.starts, links, side="right") - 1
        user = links - self.starts[site]
        order = np.argsort(site, kind="stable")
        parts = []
        for number in np.unique(site):
            rows = user[order][site[order] == number]
            parts.append(self.sites[number].paths[torch.from_numpy(rows)])
        paths = parts[0].pad(self.num_paths) if len(parts) == 1 else Paths.cat([p.pad(self.num_paths) for p in parts])
        if len(parts) > 1:
            paths = paths[torch.from_numpy(np.argsort(order))]
        where = torch.from_numpy(site)
        fields = paths.as_dict()
        return {
            "paths": fields,
            "los": fields["los"],
            "position": fields["position"],
            "bs_position": self.bs_positions[where],
            "site": where,
            "user": torch.from_numpy(user),
            "key": zlib.crc32(links.tobytes()),
        }


class ShardedSampler(DistributedSampler[Batch]):
    """Deals links to ranks so that W ranks with batches of B see just what one process with batches of W B sees.

    Args:
        dataset: The dataset.
        batch_size: Links a batch of one rank, B.
        shuffle: Whether every epoch has its own order, drawn from `seed` and the epoch; else ranks take every W-th
            link, with none repeated.
        seed: Draws the orders.
        rank: This process, by default as torch.distributed has it.
        num_replicas: Number of processes W, likewise.
    """

    def __init__(
        self,
        dataset: ChannelDataset,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int | None = None,
        num_replicas: int | None = None,
    ) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if num_replicas is None:
            num_replicas = torch.distributed.get_world_size() if distributed else 1
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else 0
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed, drop_last=shuffle)
        # a set smaller than one batch is served whole rather than not at all
        self.batch_size = max(1, min(batch_size, len(dataset) // num_replicas))
        self.steps = len(dataset) // (self.batch_size * num_replicas)

    def __len__(self) -> int:
        """Return how many links this rank serves."""
        if self.shuffle:
            return self.steps * self.batch_size
        return len(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's links in batch order."""
        if not self.shuffle:
            return iter(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.dataset))  # type: ignore[arg-type]
        order = order[: self.steps * self.batch_size * self.num_replicas]
        return iter(order.reshape(self.steps, self.num_replicas, self.batch_size)[:, self.rank].reshape(-1).tolist())


def to_paths(batch: Batch) -> Paths:
    """Return the rays of a batch."""
    fields: dict[str, Tensor] = batch["paths"]
    return Paths.from_dict(fields)
