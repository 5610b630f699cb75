"""Dataset of links in memory-mapped sites, and its samplers."""

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
from datamodules.sites.paths import Paths, join_fields
from datamodules.sites.site import Site

Batch = dict[str, Any]


class ChannelDataset(Dataset[Batch]):
    """Links of one or more sites, read in batches from the memory-mapped tensors of the sites.

    A batch contains `paths` (a dict of the fields of `Paths`) or `recorded` (B, [N,] R, T, K), and `los` (B,),
    `position` (B, 3) [m], `bs_position` (B, 3) [m], `site` (B,) and `user` (B,). The G links of a row are consecutive.

    Args:
        sites: The sites, all with paths or all recorded.
        links: Link numbers, counted over the sites in order, shape (n,), or (n, G) for rows of G links of one user; by
            default all links.

    Raises:
        InputError: Sites with paths and recorded sites are mixed, or recorded sites differ in shape.
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
        """Return the number of rows."""
        return len(self.links)

    def check_not_empty(self, side: str) -> None:
        """Raise an `InputError` if there is no link, on which a test of the side of that name would have no result."""
        if not len(self):
            raise InputError(f"there is no link on the {side} side: give it a share in data.fractions")

    @property
    def cities(self) -> list[str]:
        """Names of the cities of the links, sorted."""
        numbers = np.unique(np.searchsorted(self.starts, self.links.reshape(-1), side="right") - 1)
        return sorted({self.sites[number].city for number in numbers})

    def positions(self, number: int) -> Tensor:
        """Return the positions of the users with links to the site of the given number [m], shape (n, 3)."""
        links = self.links.reshape(-1)
        served = links[(links >= self.starts[number]) & (links < self.starts[number + 1])]
        return self.sites[number].links.position[served - self.starts[number]]

    def __getitem__(self, index: int | Sequence[int]) -> Batch:
        """Return one link as a batch of one, or the batch of several."""
        return self.__getitems__([index] if isinstance(index, int) else index)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Read rows by one gather for each site. Without indices return the first row, marked as `none`."""
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
            fields = {key: value[back] for key, value in join_fields(fetched).items()}
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
    """Distributes links over W processes with batches of B such that they equal one process with batches of W B.

    Batches are yielded as lists. In training, an epoch contains every link once, in batches of nearly equal size, B or
    slightly less, so that no contrastive loss is computed on a small last batch. All processes have equal batches,
    which gathered losses require; fewer than W links are therefore omitted, others in every epoch.

    In evaluation, a process takes every W-th link, without repetition or omission. The shares differ by at most one
    link, so that a process may need one batch more than another, which then gets an empty batch: batches may contain
    collective operations, in which all processes must take part.

    Args:
        dataset: The dataset.
        batch_size: Largest number B of links in a batch of one process.
        shuffle: Whether batches are for training, in an order drawn from `seed` and the epoch.
        seed: Random seed.
        rank: Rank of the process, by default that of torch.distributed.
        num_replicas: Number W of processes, by default that of torch.distributed.
        count: Number of links of a training epoch, see `order`; by default all, each once.
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
        # with fewer links than processes some links are repeated
        self.total = max(self.count, num_replicas)
        # no more than there are links for, as with batches of one link
        steps = min(-(-self.total // (batch_size * num_replicas)), self.total // num_replicas)
        self.batch_size = batch_size
        #: an epoch, and the number of its batches that an interrupted training has already had
        self.begun = (0, 0)
        # first links of the batches of a single process, rounded to a multiple of W, in links of one process
        self.edges = np.arange(steps + 1) * self.total // steps // num_replicas

    def __len__(self) -> int:
        """Return the number of batches of every process in a whole epoch."""
        return len(self.edges) - 1 if self.shuffle else -(-self.count // (self.num_replicas * self.batch_size))

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of this process."""
        if not self.shuffle:
            links = range(self.rank, self.count, self.num_replicas)
            for start in range(0, len(self) * self.batch_size, self.batch_size):
                yield list(links[start : start + self.batch_size])
            return
        order = np.resize(self.order(np.random.default_rng([self.seed, self.epoch])), self.total)
        first = self.begun[1] if self.epoch == self.begun[0] else 0
        for start, stop in self.num_replicas * np.stack([self.edges[:-1], self.edges[1:]], 1)[first:]:
            yield np.split(order[start:stop], self.num_replicas)[self.rank].tolist()

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the links of one training epoch in order, (n,)."""
        return rng.permutation(self.count)


def to_paths(batch: Batch) -> Paths:
    """Return the paths of a batch."""
    fields: dict[str, Tensor] = batch["paths"]
    return Paths.from_dict(fields)


def size_of(batch: Batch) -> int:
    """Return the size of the tensors of a batch [bytes]."""
    parts = [value if isinstance(value, list) else [value] for value in batch.values()]
    return sum(tensor.nbytes for part in parts for tensor in part)
