"""Training batches in which every domain has the same share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.channel.arrays import Array
from datamodules.channel.motion import Sequence as Snapshots
from datamodules.dataset import ChannelDataset, ShardedSampler
from datamodules.errors import InputError
from datamodules.sides.domains import Worlds
from datamodules.sites.numbering import number_rows, rows_by_number


class BalancedSampler(ShardedSampler):
    """Samples equally many links of each domain in every batch of every process, up to one or two.

    The length of an epoch is that of `ShardedSampler`. Links of rare domains are repeated in it, and not all links of
    frequent domains are contained; the links of a domain are drawn without replacement until all were drawn.

    Args:
        dataset: The dataset.
        batch_size: See `ShardedSampler`.
        domain: Label or number of the domain of each link of the dataset, shape (n,).
        seed: Random seed.
        **ranks: `rank` and `num_replicas`.
    """

    def __init__(
        self, dataset: ChannelDataset, batch_size: int, domain: NDArray[Any], seed: int = 0, **ranks: int
    ) -> None:
        super().__init__(dataset, batch_size, True, seed, **ranks)
        self.members = rows_by_number(domain)

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the links of one epoch: rounds of one link of each domain, with the domains in random order."""
        rounds = -(-self.count // len(self.members))
        streams = []
        for members in self.members:
            passes = [rng.permutation(members) for _ in range(-(-rounds // len(members)))]
            streams.append(np.concatenate(passes)[:rounds])
        drawn: NDArray[np.int64] = rng.permuted(np.stack(streams, 1), axis=1).reshape(-1)[: self.count]
        return drawn


def domain_of_rows(
    dataset: ChannelDataset, axes: Sequence[str], bs: Array, sequence: Snapshots | None, seed: int
) -> NDArray[np.int64]:
    """Return the number of the domain of each row of a dataset, in order of its labels on the given axes, shape (n,).

    Args:
        dataset: The dataset.
        axes: Some of `Worlds.AXES`.
        bs: See `Worlds`.
        sequence: Distribution of the motion of the users, or None.
        seed: Random seed of the motion.

    Raises:
        InputError: An axis is unknown.
    """
    unknown = sorted(set(axes) - set(Worlds.AXES))
    if unknown or not axes:
        known = ", ".join(Worlds.AXES)
        raise InputError(f"data.balance names {', '.join(unknown) or 'no axis'}: choose among {known}")
    worlds = Worlds(dataset.sites, dataset.links, bs, sequence, seed)
    return number_rows(*(worlds.codes(axis)[0] for axis in axes))
