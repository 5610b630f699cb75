"""Rows of rays out of memory-mapped sites, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from datamodules.errors import InputError
from datamodules.sites.links import Links
from datamodules.sites.paths import Paths
from datamodules.sites.site import Site

Batch = dict[str, Any]


class ChannelDataset(Dataset[Batch]):
    """Links of one or more sites, fetched in batches straight from the sites' tensors.

    A batch holds `paths` (a dict of the fields of `Paths`) or `recorded` (B, [N,] R, T, K), and `los` (B,), `position`
    (B, 3) [m], `bs_position` (B, 3) [m], `site` (B,) and `user` (B,). Rows of several links are served one after
    another, G links a row.

    Args:
        sites: The sites, all with rays or all recorded.
        links: Numbers of the links to serve, counted through the sites in order, shape (n,), or (n, G) for rows of G
            links of one user; by default all.

    Raises:
        InputError: Sites with rays and recorded ones, or recorded ones of different shapes, are mixed.
    """

    def __init__(self, sites: Sequence[Site], links: NDArray[np.int64] | None = None) -> None:
        self.sites = list(sites)
        self.starts = np.cumsum([0, *(len(site) for site in self.sites)])
        self.links = np.arange(self.starts[-1]) if links is None else np.asarray(links)
        shapes = {s.links.shape for s in self.sites}
        if len(shapes) > 1:
            raise InputError(f"sites of different kinds cannot be mixed: {', '.join(map(_kind, shapes))}")
        self.recorded = shapes != {None}
        self.num_paths = 0 if self.recorded else max(site.paths.num_paths for site in self.sites)
        self.bs_positions = torch.stack([site.bs_position for site in self.sites])

    def __len__(self) -> int:
        """Return the number of links."""
        return len(self.links)

    @property
    def cities(self) -> list[str]:
        """Names of the cities of the links, sorted."""
        numbers = np.unique(np.searchsorted(self.starts, self.links.reshape(-1), side="right") - 1)
        return sorted({self.sites[number].city for number in numbers})

    def positions(self, number: int) -> Tensor:
        """Return where the users are whose links to one of the sites are served [m], shape (n, 3)."""
        links = self.links.reshape(-1)
        served = links[(links >= self.starts[number]) & (links < self.starts[number + 1])]
        return self.sites[number].links.position[served - self.starts[number]]

    def __getitem__(self, index: int | Sequence[int]) -> Batch:
        """Return one link as a batch of one, or the batch of several."""
        return self.__getitems__([index] if isinstance(index, int) else index)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Fetch rows: one gather a site, no work per sample. For no indices, the first row, marked as `none`."""
        if not np.size(indices):
            return {**self.__getitems__([0]), "none": True}
        links = self.links[np.asarray(indices)].reshape(-1)
        site = np.searchsorted(self.starts, links, side="right") - 1
        user = links - self.starts[site]
        order = np.argsort(site, kind="stable")
        numbers, first = np.unique(site[order], return_index=True)
        rows = [torch.from_numpy(part) for part in np.split(user[order], first[1:])]
        kept: list[Links] = [self.sites[number].links for number in numbers]
        fetched = [each.rows(part, self.num_paths) for each, part in zip(kept, rows, strict=True)]
        if len(fetched) == 1:
            fields = fetched[0]
        else:
            back = torch.from_numpy(np.argsort(order))
            fields = {key: torch.cat([part[key] for part in fetched])[back] for key in fetched[0]}
        where = torch.from_numpy(site)
        channel = {"recorded": fields["recorded"]} if self.recorded else {"paths": fields}
        return {
            **channel,
            "los": fields["los"],
            "position": fields["position"],
            "bs_position": self.bs_positions[where],
            "site": where,
            "user": torch.from_numpy(user),
        }


def _kind(shape: tuple[int, ...] | None) -> str:
    return "rays" if shape is None else f"recorded CSI of shape {tuple(shape)}"


class ShardedSampler(DistributedSampler[list[int]]):
    """Deals links to ranks so that W ranks with batches of B see what one process with batches of W B sees.

    Batches are yielded as lists. In training every link is served once a pass, in batches of near-equal size, B or a
    little less: a contrastive loss never meets a last batch of a few links. Ranks get equal batches, which a gathered
    loss needs, and so leave out fewer than W links a pass, other ones in every epoch.

    Else ranks take every W-th link, with none repeated and none left out. Shares differ by a link, so one rank's can
    need a batch more than another's, or be empty: the other is given a batch of no links. For a batch, and every hook,
    may hold a collective, and a rank that skipped one would leave the others waiting.

    Args:
        dataset: The dataset.
        batch_size: Most links a batch of one rank, B.
        shuffle: Whether to serve batches for training, every epoch in its own order, drawn from `seed` and the epoch.
        seed: Draws the orders.
        rank: This process, by default as torch.distributed has it.
        num_replicas: Number of processes W, likewise.
        count: Links that a training epoch serves, see `order`; by default all, each once.
    """

    def __init__(
        self,
        dataset: ChannelDataset,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int | None = None,
        num_replicas: int | None = None,
        count: int | None = None,
    ) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if num_replicas is None:
            num_replicas = torch.distributed.get_world_size() if distributed else 1
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else 0
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)
        self.count = len(dataset) if count is None else count
        # a set with fewer links than ranks serves some of them twice rather than nothing
        self.total = max(self.count, num_replicas)
        steps = -(-self.total // (batch_size * num_replicas))
        self.batch_size = batch_size
        # where one process would begin its batches, moved to a multiple of W: links a rank before each batch
        self.edges = np.arange(steps + 1) * self.total // steps // num_replicas

    def __len__(self) -> int:
        """Return how many batches every rank serves."""
        return len(self.edges) - 1 if self.shuffle else -(-self.count // (self.num_replicas * self.batch_size))

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's share of every batch."""
        if not self.shuffle:
            links = range(self.rank, self.count, self.num_replicas)
            for start in range(0, len(self) * self.batch_size, self.batch_size):
                yield list(links[start : start + self.batch_size])
            return
        order = np.resize(self.order(np.random.default_rng([self.seed, self.epoch])), self.total)
        for start, stop in self.num_replicas * np.stack([self.edges[:-1], self.edges[1:]], 1):
            yield np.split(order[start:stop], self.num_replicas)[self.rank].tolist()

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the links of one epoch of training, (n,), in the order in which they are served."""
        return rng.permutation(self.count)


def to_paths(batch: Batch) -> Paths:
    """Return the rays of a batch."""
    fields: dict[str, Tensor] = batch["paths"]
    return Paths.from_dict(fields)
