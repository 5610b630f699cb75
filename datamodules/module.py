"""`ChannelDataModule`: from sources to batches, with the channel made on the training device."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.arrays import Array, rotation_matrix
from datamodules.channel import OFDM, synthesize
from datamodules.codebook import beam_power, beam_power_of_paths, dft_codebook
from datamodules.dataset import Batch, ChannelDataset, ShardedSampler, to_paths
from datamodules.errors import InputError
from datamodules.sources.base import Source
from datamodules.splits import SIDES, Fractions, Rule, split_links
from datamodules.views import View, observe

#: how much CSI [complex values] and how many links a sample for statistics may hold
_SAMPLE_VALUES, _SAMPLE_LINKS = 2**24, 4096


class ChannelDataModule(LightningDataModule):
    """Serves links of any source as batches of CSI with labels.

    Sites are made, or found in the cache, in `prepare_data`. Rows of rays go to the device, where
    `on_after_batch_transfer` makes `csi` (B, R, T, K), the labels and the views. Links without any path are dropped and
    counted (`describe`).

    Args:
        source: Where the channels come from; a list joins several.
        bs: Base-station array; turned by each site's own orientation.
        ue: User array.
        ofdm: Subcarrier grid.
        split: Split rule, see `split_links`.
        fractions: Shares of train, validation and test.
        block: Side of the blocks of the `spatial` split [m].
        holdout: Areas (`site`) or places (`city`) of the test side.
        batch_size: Links a batch of one process.
        num_beams: Adds `beam` (B,) and `beam_power` (B, Q) of a DFT codebook with that many beams.
        views: Adds `views`, two independent observations of the same channels; an empty list gives two clean ones.
        observation: What happens to `csi` before the model sees it; labels come from the clean channel.
        num_labels: Trains on that many links only, drawn by seed; validation and test stay whole.
        max_per_area: Serves at most that many links of one area, drawn by seed (CSI-CLIP section IV-A: 50,000).
        num_workers: Loader processes; rows cost so little that none are needed on a CPU. Default: 2 with CUDA.
        predict_on: Which side `lightning predict` runs over.
        seed: Draws splits, subsets, orders and views.
    """

    def __init__(
        self,
        source: Source | list[Source],
        bs: Array = Array(rows=1, cols=32),  # noqa: B008 (frozen)
        ue: Array = Array(),  # noqa: B008 (frozen)
        ofdm: OFDM = OFDM(),  # noqa: B008 (frozen)
        split: Rule = "spatial",
        fractions: Fractions = (0.7, 0.1, 0.2),
        block: float = 20.0,
        holdout: list[str] | None = None,
        batch_size: int = 128,
        num_beams: int | None = None,
        views: list[View] | None = None,
        observation: list[View] | None = None,
        num_labels: int | None = None,
        max_per_area: int | None = None,
        num_workers: int | None = None,
        predict_on: Literal["all", "train", "validation", "test"] = "all",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sources = source if isinstance(source, list) else [source]
        self.bs, self.ue, self.ofdm = bs, ue, ofdm
        self.split, self.fractions, self.block, self.holdout = split, fractions, block, holdout or []
        self.batch_size, self.num_labels, self.max_per_area = batch_size, num_labels, max_per_area
        self.views, self.observation = views, observation or []
        self.codebook = dft_codebook(bs, num_beams) if num_beams else None
        self.num_workers = num_workers if num_workers is not None else 2 * torch.cuda.is_available()
        self.predict_on, self.seed = predict_on, seed
        self.sides: dict[str, ChannelDataset] = {}
        self.dropped = 0

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Keys of a finished batch."""
        keys = ("csi", "los", "position", "bs_position", "site", "user")
        keys += ("beam", "beam_power") if self.codebook is not None else ()
        return keys + (("views",) if self.views is not None else ())

    def prepare_data(self) -> None:
        """Make the sites that are missing, on one process a machine, and hold all against their checksums."""
        for source in self.sources:
            source.sites()

    def setup(self, stage: str | None = None) -> None:
        """Open the sites and split their links; the same in every stage."""
        if self.sides:
            return
        sites = [site for source in self.sources for site in source.sites(verify=False)]
        masks = split_links(sites, self.split, self.fractions, self.block, self.holdout, self.seed)
        served = self._served(ChannelDataset(sites))
        for side, mask in zip(SIDES, masks, strict=True):
            self.sides[side] = ChannelDataset(sites, np.flatnonzero(mask & served))
        for side in SIDES[:: 2 if self.fractions[1] == 0 else 1]:
            if not len(self.sides[side]):
                raise InputError(f"no link with a path on the {side} side of the `{self.split}` split: add data")
        self.sides["all"] = ChannelDataset(sites, np.flatnonzero(served))
        if self.num_labels is not None:
            links = self.sides["train"].links
            if not 0 < self.num_labels <= len(links):
                raise InputError(f"data.num_labels is {self.num_labels}, but the train side holds {len(links)} links")
            keep = np.random.default_rng(self.seed).permutation(len(links))[: self.num_labels]
            self.sides["train"] = ChannelDataset(sites, links[np.sort(keep)])
        frames = torch.stack([site.bs_orientation for site in sites])
        self._frames = rotation_matrix(frames).float() if frames.any() else None

    def _served(self, every: ChannelDataset) -> np.ndarray:
        """Mask the links that are served: with a path, and within the share of their area."""
        served = torch.cat([site.links.has_path for site in every.sites]).numpy()
        self.dropped = int((~served).sum())
        if self.max_per_area is not None:
            area = np.repeat([site.area for site in every.sites], [len(site) for site in every.sites])
            rng = np.random.default_rng(self.seed)
            for name in np.unique(area):
                links = np.flatnonzero(served & (area == name))
                served[rng.permutation(links)[self.max_per_area :]] = False
        return served

    def describe(self) -> dict[str, Any]:
        """Return the split rule, the sizes and the links dropped for want of a path."""
        sizes = {f"n_{side}": len(self.sides[side]) for side in SIDES} if self.sides else {}
        places = sorted({site.place for site in self.sides["all"].sites}) if self.sides else []
        return {"split": self.split, **sizes, "dropped_no_path": self.dropped, "places": places}

    # --- loaders

    def train_dataloader(self) -> DataLoader[Batch]:
        """Serve the train side in a new order every epoch."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Serve the validation side."""
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Serve the test side."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Serve the side named by `predict_on`."""
        return self._loader(self.predict_on)

    def _loader(self, side: str, shuffle: bool = False) -> DataLoader[Batch]:
        dataset = self.sides[side]
        sampler = ShardedSampler(dataset, self.batch_size, shuffle, self.seed)
        if self.trainer is not None:
            # workers prefetch before Lightning sets the epoch: a resumed run would serve the first epoch's order
            sampler.set_epoch(self.trainer.current_epoch)
        return DataLoader(
            dataset,
            batch_size=sampler.batch_size if shuffle else self.batch_size,
            sampler=sampler,
            collate_fn=_as_is,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # or starting the loader would move the global one
        )

    # --- on the device

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Make the channel, its labels and its views."""
        training = self.trainer is not None and self.trainer.training
        epoch = self.trainer.current_epoch if self.trainer is not None and training else 0
        return self.finish(batch, epoch)

    @torch.no_grad()
    def finish(self, batch: Batch, epoch: int = 0) -> Batch:
        """Turn rows of rays into a batch for a model.

        Args:
            batch: What `ChannelDataset` serves, on any device.
            epoch: What is drawn depends on the seed, the rows and this alone, so a resumed run draws the same.

        Returns:
            The batch of DESIGN: `csi` and the other `batch_keys`.
        """
        csi = batch.get("recorded")
        if csi is None:
            csi = synthesize(to_paths(batch), self.bs, self.ue, self.ofdm, mount=self._mount(batch))
        result = self._labels(batch)
        if self.views is not None or self.observation:
            # 32 bits: all that the generator of the CPU takes in
            seed = zlib.crc32(f"{self.seed} {epoch} {batch['key']}".encode())
            generator = torch.Generator(csi.device).manual_seed(seed)
            if self.views is not None:
                result["views"] = [observe(csi, self.views, generator) for _ in range(2)]
            csi = observe(csi, self.observation, generator)
        return {"csi": csi, **result}

    def _mount(self, batch: Batch) -> Tensor | None:
        """Return the rotation of each link's base station, (B, 3, 3), or None where none is turned."""
        return None if self._frames is None else self._frames.to(batch["los"].device)[batch["site"]]

    def _labels(self, batch: Batch) -> Batch:
        labels = {key: batch[key] for key in ("los", "position", "bs_position", "site", "user")}
        if self.codebook is not None:
            codebook = self.codebook.to(batch["los"].device)
            if "paths" in batch:
                power = beam_power_of_paths(to_paths(batch), self.bs, self.ue, self.ofdm, codebook, self._mount(batch))
            else:
                power = beam_power(batch["recorded"], codebook)
            labels |= {"beam": power.argmax(1), "beam_power": power}
        return labels

    # --- from the train side only

    def sample(self) -> Batch:
        """Return a finished batch of training links, drawn by seed, for a model's input statistics."""
        values = self.bs.num_elements * self.ue.num_elements * self.ofdm.num_subcarriers
        return self.finish(self._draw(min(_SAMPLE_LINKS, max(16, _SAMPLE_VALUES // values))))

    def statistics(self) -> dict[str, Tensor]:
        """Return what heads need to know of the labels.

        Returns:
            `position_mean` and `position_std` (3,) [m] of the user relative to its base station, `los_counts` (2,) of
            NLOS and LOS, and, with `num_beams`, `beam_counts` (Q,), all over up to 4096 training links.
        """
        batch = self._labels(self._draw(_SAMPLE_LINKS))
        offset = (batch["position"] - batch["bs_position"]).double()
        known = batch["los"][batch["los"] >= 0].long()
        statistics = {
            "position_mean": offset.mean(0).float(),
            "position_std": offset.std(0, correction=0).float(),
            "los_counts": torch.bincount(known, minlength=2).float(),
        }
        if self.codebook is not None:
            statistics["beam_counts"] = torch.bincount(batch["beam"], minlength=len(self.codebook)).float()
        return statistics

    def _draw(self, count: int) -> Batch:
        dataset = self.sides["train"]
        rows: Sequence[int] = np.random.default_rng(self.seed).permutation(len(dataset))[:count].tolist()
        return dataset.__getitems__(rows)


def _as_is(batch: Batch) -> Batch:
    """Pass on what the dataset has already put together."""
    return batch
