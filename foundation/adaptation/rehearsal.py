"""Data of refinement: epochs with links of a twin and of the target world in given shares."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from datamodules import ChannelDataModule
from datamodules.dataset import Batch, ChannelDataset, ShardedSampler
from datamodules.errors import InputError
from foundation.adaptation.refine import rehearsal


class RehearsalDataModule(ChannelDataModule):
    """A `ChannelDataModule` whose training batches mix two worlds, see `rehearsal`.

    Args:
        *args: See `ChannelDataModule`.
        target: Domain label `variant` of the target world; all other training links are of the twin.
        mix: Share of the target world in an epoch; by default every link once.
        **kwargs: See `ChannelDataModule`.

    Raises:
        InputError: `mix` is outside [0, 1], or a world has no link, or `balance` or a group is given.
    """

    def __init__(self, *args: Any, target: str = "target", mix: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if mix is not None and not 0 <= mix <= 1:
            raise InputError(f"data.mix must be in [0, 1], got {mix:g}")
        if self.balance is not None:
            raise InputError("data.balance cannot be used where data.mix sets the shares of two worlds: leave it out")
        if self.group is not None:
            raise InputError("data.group cannot be used where single links of two worlds are mixed: leave it out")
        self.target, self.mix = target, mix

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the train side, whose order and shares are those of `rehearsal`."""
        loader = super().train_dataloader()
        given = loader.sampler
        assert isinstance(given, ShardedSampler)
        dataset = self.sides["train"]
        is_target = in_world(dataset, self.target)
        sampler = RehearsalSampler(dataset, is_target, self.mix, self.batch_size, self.seed)
        sampler.begun = given.begun
        sampler.set_epoch(given.epoch)
        return DataLoader(
            dataset, batch_size=None, sampler=sampler, collate_fn=loader.collate_fn, num_workers=self.num_workers,
            pin_memory=loader.pin_memory, persistent_workers=self.num_workers > 0, generator=loader.generator,
        )  # fmt: skip


class RehearsalSampler(ShardedSampler):
    """A `ShardedSampler` of the train side with epochs of `rehearsal`.

    Args:
        dataset: The train side.
        is_target: Mask of the links of the target world, shape (n,).
        mix: See `rehearsal`.
        batch_size: Largest number of links in a batch of one process.
        seed: Random seed.
    """

    def __init__(
        self, dataset: ChannelDataset, is_target: NDArray[np.bool_], mix: float | None, batch_size: int, seed: int
    ) -> None:
        self.union = np.concatenate([np.flatnonzero(~is_target), np.flatnonzero(is_target)])
        self.sizes = (int((~is_target).sum()), int(is_target.sum()))
        self.mix = mix
        # the length of an epoch does not depend on its order
        super().__init__(dataset, batch_size, True, seed, count=len(rehearsal(*self.sizes, mix)))

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the links of the current epoch in order, see `rehearsal`."""
        order: NDArray[np.int64] = self.union[rehearsal(*self.sizes, self.mix, self.seed, self.epoch)]
        return order


def in_world(dataset: ChannelDataset, variant: str) -> NDArray[np.bool_]:
    """Return the mask of the links of sites whose domain label `variant` is the given one, shape (n,)."""
    site = np.searchsorted(dataset.starts, dataset.links, side="right") - 1
    named = np.array([site.domain.get("variant") == variant for site in dataset.sites])
    return named[site]
