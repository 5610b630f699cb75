"""`ChannelDataModule`: batches of CSI and labels from any source, computed on the training device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import BatchMaker, Extra, keys_of
from datamodules.channel.arrays import Array
from datamodules.channel.codebook import dft_codebook
from datamodules.channel.impairments import View
from datamodules.channel.motion import Sequence as Snapshots
from datamodules.channel.ofdm import OFDM
from datamodules.dataset import Batch, ChannelDataset, ShardedSampler, size_of
from datamodules.defaults import grid_of, sequence_of
from datamodules.errors import InputError, check_not_negative, check_positive
from datamodules.maps.augmentation import WorldSymmetry
from datamodules.progress import activity
from datamodules.sides.balanced_sampler import BalancedSampler, domain_of_rows
from datamodules.sides.groups import Group, variant_names
from datamodules.sides.sides import make_sides
from datamodules.sides.splits import SIDES, Fractions, Rule
from datamodules.sources.base import Source, listed
from datamodules.sources.build import build

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: number of missing sites from which they are made by several processes
_MANY = 4
#: largest size of a sample for statistics: complex values of its first snapshots, links, and bytes
_SAMPLE_VALUES, _SAMPLE_LINKS, _SAMPLE_BYTES = 2**24, 4096, 2**30


class ChannelDataModule(LightningDataModule):
    """Batches of CSI with labels from the links of one or more sources.

    Sites are made, or found in the cache, in `prepare_data`. Rows of paths are moved to the device, where
    `on_after_batch_transfer` computes `csi` (B, R, T, K), labels and views. Links without any path are dropped and
    counted (`describe`).

    Args:
        source: Source of the channels, or a list of sources.
        bs: Base-station array, rotated by the orientation of each site. By default that of a recording, or 1 x 32 for
            paths.
        ue: User array; by default that of a recording, or a single antenna for paths.
        ofdm: Subcarrier grid; by default that of a recording, or 64 subcarriers on 10 MHz for paths.
        split: Split rule, see `split_links`; by default `spatial`, or `time` where there are timestamps but no
            positions.
        fractions: Shares of train, validation and test.
        block: Side of the blocks of the `spatial` split [m].
        guard: Distance [m] of the guard band of the `spatial` split: users of the train side that are nearer to a user
            of another side are dropped. 0 drops none.
        holdout: Areas (`area`) or cities (`city`) of the test side.
        train_on: Domain labels of the links of the train side, such as `{variant: twin}` or `{los: 1, mobility:
            static}`, see `sides.domains.Worlds`; by default all links of its users.
        validate_on: Domain labels of the links of the validation side.
        test_on: Domain labels of the links of the test side.
        batch_size: Largest number of links in a batch of one process; training batches are of nearly equal size.
        balance: Domain axes, such as [scenario, mobility], of which every combination has the same share of a training
            batch, see `BalancedSampler`; by default links are drawn with equal probability.
        num_beams: Adds `beam` (B,) and `beam_power` (B, Q) of a DFT codebook of Q beams; -1 and NaN for a link without
            power.
        views: Adds `views`, two independent observations of the same channels; an empty list gives two noise-free ones.
        observation: Impairments of `csi`; labels are computed from the unimpaired channel.
        num_labels: Number of training links, drawn at random, or a number for each value of a domain label, such as
            `{twin: 5120, target: 40}`. Links of other values, and the validation and test sides, are not reduced.
        train_links: File with the links of the train side, see `save_links`.
        max_per_area: Largest number of links of an area, drawn at random (CSI-CLIP section IV-A: 50,000); of rows with
            `group`.
        sequence: Makes `csi` a sequence (B, N, R, T, K) of a moving user, and adds the noise-free `next_csi`
            (B, H, R, T, K). With its `window`, `views` are of two windows of the user. A recording of one device is
            divided into such sequences; without `sequence` each of its snapshots is a link.
        extras: Adds `map` (B, 1, 64, 64), `geometry` (B, 8) or `domain` (B, A).
        geometry_los: Whether `geometry` contains the LOS status.
        symmetry: Random rotation, reflection and scaling of positions, paths and map of every training link.
        group: Combines the links of a user to several base stations (`station`), `csi` (B, S, R, T, K), or in several
            variants of a twin (`variant`), `csi` (B, V, R, T, K). Labels are those of the first link, except `los`, the
            maximum over the links. A link without paths is zero.
        base_stations: Number S of base stations of a group, the first ones of each area; by default all.
        variants: Names of the variants of a group, in order; by default all, in the order of the source.
        num_workers: Loader processes; by default 2 with CUDA, otherwise 0, since rows are small.
        predict_on: Side of `lightning predict`.
        split_seed: Random seed of the split.
        seed: Random seed of subsets, orders, views and motion.

    Raises:
        InputError: There is no source, a number is out of range, or an argument belongs to another `group`.
    """

    def __init__(
        self,
        source: Source | list[Source],
        bs: Array | None = None,
        ue: Array | None = None,
        ofdm: OFDM | None = None,
        split: Rule | None = None,
        fractions: Fractions = (0.7, 0.1, 0.2),
        block: float = 20.0,
        guard: float = 5.0,
        holdout: list[str] | None = None,
        train_on: dict[str, Any] | None = None,
        validate_on: dict[str, Any] | None = None,
        test_on: dict[str, Any] | None = None,
        batch_size: int = 128,
        balance: list[str] | None = None,
        num_beams: int | None = None,
        views: list[View] | None = None,
        observation: list[View] | None = None,
        num_labels: int | dict[str, int] | None = None,
        train_links: str | None = None,
        max_per_area: int | None = None,
        sequence: Snapshots | None = None,
        extras: list[Extra] | None = None,
        geometry_los: bool = True,
        symmetry: WorldSymmetry | None = None,
        group: Group | None = None,
        base_stations: int | None = None,
        variants: list[str] | None = None,
        num_workers: int | None = None,
        predict_on: Literal["all", "train", "validation", "test"] = "all",
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        total = num_labels if isinstance(num_labels, int) else None
        check_positive(
            "data", block=block, batch_size=batch_size, num_labels=total, max_per_area=max_per_area,
            base_stations=base_stations,
        )  # fmt: skip
        seeds = {"split_seed": split_seed, "seed": seed}
        check_not_negative("data", guard=guard, num_beams=num_beams, num_workers=num_workers, **seeds)
        self.sources = listed(source)
        self.cache, self._given = self.sources[0].cache, (bs, ue, ofdm)
        self.split, self.fractions, self.block, self.holdout = split, fractions, block, holdout or []
        self.guard, self.num_labels, self.train_links = guard, num_labels, train_links
        self.train_on, self.validate_on, self.test_on = train_on, validate_on, test_on
        self.batch_size, self.balance, self.max_per_area = batch_size, balance, max_per_area
        self.views, self.observation, self.num_beams = views, observation or [], num_beams
        self.num_workers = num_workers if num_workers is not None else 2 * torch.cuda.is_available()
        self.sequence, self.extras, self.geometry_los = sequence, extras or [], geometry_los
        self.symmetry, self.base_stations, self.variants = symmetry, base_stations, variants
        self.group: Group | None = "station" if group is None and base_stations is not None else group
        for key, value, of in (("base_stations", base_stations, "station"), ("variants", variants, "variant")):
            if value is not None and self.group != of:
                raise InputError(f"data.{key} belongs to data.group: {of}, not to {self.group}")
        self.predict_on, self.split_seed, self.seed = predict_on, split_seed, seed
        self.sides: dict[str, ChannelDataset] = {}
        self._resumed = {"epoch": 0, "batch": 0}
        self._facts: dict[str, Any] = {"split": split}

    @property
    def group_size(self) -> int | None:
        """Number G of links of a row; None without `group`."""
        links = self.sides["all"].links
        return links.shape[1] if links.ndim == 2 else None

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Keys of a finished batch; before the sites are opened, as the settings have them."""
        return self._make.keys if self.sides else keys_of(self)

    def prepare_data(self) -> None:
        """Make missing sites, by one process of each machine, and verify the checksums of all.

        Several sites are made in parallel, see `sources.build`.
        """
        if sum(not recipe.is_made(source.cache) for source in self.sources for recipe in source.recipes()) >= _MANY:
            build(self.sources)
        for source in self.sources:
            source.sites()  # makes the remaining ones, or raises their error

    def setup(self, stage: str | None = None) -> None:
        """Open the sites and split their links, in the same way in every stage."""
        if self.sides:
            return
        sites = [site for source in self.sources for site in source.sites(verify=False)]
        with activity("making the sides of the data"):
            self.bs, self.ue, self.ofdm = grid_of(sites, *self._given)
            self.codebook = dft_codebook(self.bs, self.num_beams) if self.num_beams else None
            self.sequence = sequence_of(sites, self.sequence)
            if self.sequence is not None:
                sites = [site.windows(self.sequence.length) for site in sites]
            if self.group == "variant":
                self.variants = variant_names(sites, self.variants)
            self.sides, self._facts = make_sides(self, sites)
            self._make = BatchMaker(sites, self)

    def describe(self) -> dict[str, Any]:
        """Return split settings, numbers of dropped links by reason, sizes of the sides and their cities."""
        if not self.sides:
            return self._facts
        sizes = {f"n_{side}": len(self.sides[side]) for side in SIDES}
        return {**self._facts, **sizes, **{f"{side}_cities": self.sides[side].cities for side in ("train", "test")}}

    # --- loaders

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the train side, in a new order every epoch."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the validation side."""
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the test side."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the side `predict_on`."""
        return self._loader(self.predict_on)

    def _loader(self, side: str, shuffle: bool = False) -> DataLoader[Batch]:
        dataset = self.sides[side]
        if self.trainer is not None and self.trainer.state.fn != "fit":
            dataset.check_not_empty(side)
        sampler = ShardedSampler(dataset, self.batch_size, shuffle, self.seed)
        if shuffle and self.balance is not None:
            domain = domain_of_rows(dataset, self.balance, self.bs, self.sequence, self.seed)
            sampler = BalancedSampler(dataset, self.batch_size, domain, self.seed)
        sampler.begun = (self._resumed["epoch"], self._resumed["batch"])
        # workers prefetch before Lightning sets the epoch
        sampler.set_epoch(self.state_dict()["epoch"])
        return DataLoader(
            dataset,
            batch_size=None,  # the sampler makes the batches
            sampler=sampler,
            collate_fn=_as_is,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # starting the loader would advance the global one
        )

    def state_dict(self) -> dict[str, int]:
        """Return the numbers of finished epochs, and of batches of an unfinished one, where a resumed run goes on.

        Schedules that depend on the number of steps build the loader before Lightning restores its epoch count.
        """
        if self.trainer is None:
            return dict(self._resumed)
        loop: Any = self.trainer.fit_loop
        progress, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress.current
        batch = batches.processed if progress.ready > progress.processed else 0
        return {"epoch": max(self._resumed["epoch"], progress.processed), "batch": batch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the numbers of finished epochs and batches."""
        self._resumed = {"batch": 0, **state_dict}  # releases before stored no batch

    # --- on the device

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Compute channel, labels and views of a batch."""
        training = self.trainer is not None and self.trainer.training
        epoch = self.trainer.current_epoch if self.trainer is not None and training else 0
        return self.finish(batch, epoch, training)

    def finish(self, rows: Batch, epoch: int = 0, training: bool = False) -> Batch:
        """Return the batch of rows of a loader, see `BatchMaker`."""
        return self._make(rows, epoch, training)

    def plot(self, batch: Batch, index: int = 0, prediction: Tensor | None = None) -> Figure:
        """Draw the channel of one link of a finished batch, as `plot_csi`, with a prediction (R, T, K) beside it."""
        from datamodules.plots.figures import plot_csi

        csi = batch["csi"][index].cpu()
        return plot_csi(csi.reshape(-1, *csi.shape[-3:])[0], self.ofdm.bandwidth, prediction)

    def sample(self) -> Batch:
        """Return a batch of random training links, at most 1 GiB, for the input statistics of a model."""
        values = self.bs.num_elements * self.ue.num_elements * self.ofdm.num_subcarriers
        most = max(1, _SAMPLE_BYTES // size_of(self.finish(self._draw(1))))
        return self.finish(self._draw(min(_SAMPLE_LINKS, max(16, _SAMPLE_VALUES // values), most)))

    def statistics(self) -> dict[str, Tensor]:
        """Return statistics of the labels of up to 4096 training links, for heads.

        Returns:
            `position_mean` and `position_std` (3,) [m] of the user relative to its base station, `los_counts` (2,) of
            NLOS and LOS links, and, with `num_beams`, `beam_counts` (Q,); the numbers of links with a label,
            `labelled_position`, `labelled_los` and `labelled_beam`; and `csi_shape` (3,), the numbers of receive
            antennas R, transmit antennas T and subcarriers K.
        """
        batch = self._make.labels(self._draw(_SAMPLE_LINKS))
        offset = (batch["position"] - batch["bs_position"]).double()
        located = offset.isfinite().all(1)
        offset = offset[located] if located.any() else torch.zeros_like(offset)
        known = batch["los"][batch["los"] >= 0].long()
        statistics = {
            "csi_shape": torch.tensor([self.ue.num_elements, self.bs.num_elements, self.ofdm.num_subcarriers]),
            "labelled_position": located.sum(),
            "labelled_los": torch.tensor(len(known)),
            "position_mean": offset.mean(0).float(),
            "position_std": offset.std(0, correction=0).float(),
            "los_counts": torch.bincount(known, minlength=2).float(),
        }
        if self.codebook is not None:
            beam = batch["beam"][batch["beam"] >= 0]
            statistics["beam_counts"] = torch.bincount(beam, minlength=len(self.codebook)).float()
            statistics["labelled_beam"] = torch.tensor(len(beam))
        return statistics

    def _draw(self, count: int) -> Batch:
        dataset = self.sides["train"]
        rows: Sequence[int] = np.random.default_rng(self.seed).permutation(len(dataset))[:count].tolist()
        return dataset.__getitems__(rows)


def _as_is(batch: Any) -> Any:
    """Return the batch, which the dataset has already collated."""
    return batch
