"""`BatchMaker`: computes batches of CSI and labels from rows of paths, on their device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from datamodules.channel.arrays import Array, rotation_matrix
from datamodules.channel.codebook import beam_power, beam_power_of_paths
from datamodules.channel.draws import LinkDraws, name_keys
from datamodules.channel.impairments import View, observe
from datamodules.channel.motion import Motion, draw_motion, split_next
from datamodules.channel.motion import Sequence as Snapshots
from datamodules.channel.ofdm import OFDM, SPEED_OF_LIGHT
from datamodules.channel.synthesis import synthesize
from datamodules.dataset import Batch, to_paths
from datamodules.errors import InputError, check_choice
from datamodules.maps.area_maps import AreaMaps
from datamodules.maps.augmentation import World, WorldSymmetry
from datamodules.sides.domains import domain_labels, site_domains, speed_spans
from datamodules.sites.paths import Paths
from datamodules.sites.site import Site

#: optional batch keys
Extra = Literal["map", "geometry", "domain"]
#: setting that adds each optional batch key
SETTINGS = {
    "beam": "set data.num_beams",
    "beam_power": "set data.num_beams",
    "map": "add to data.extras",
    "geometry": "add to data.extras",
    "domain": "add to data.extras",
    "next_csi": "set data.sequence",
    "views": "set data.views",
    "clean_csi": "set data.observation",
}
#: last part of the key of the draws of a second window
_WINDOW = 1
_GIVEN = ("los", "position", "bs_position", "site", "user")
#: attributes of a `BatchMaker` that are tables with a row a site, and its codebook
_TABLES = ("names", "areas", "frames", "wavelengths", "spans", "domains", "codebook")


class Settings(Protocol):
    """Attributes of a datamodule that a `BatchMaker` reads; see `ChannelDataModule`."""

    bs: Array
    ue: Array
    ofdm: OFDM
    codebook: Tensor | None
    num_beams: int | None
    views: list[View] | None
    observation: list[View]
    sequence: Snapshots | None
    extras: list[Extra]
    geometry_los: bool
    symmetry: WorldSymmetry | None
    seed: int
    cache: Path

    @property
    def group_size(self) -> int | None:
        """Number G of links of a row, or None."""


class BatchMaker:
    """Computes channels, labels and observations of batches.

    The motion of a user is drawn from the seed, the name of its area and its row there; everything else, such as noise,
    from the seed, the name of the site, the row there and the epoch. Random numbers therefore depend neither on batches
    nor on the order of sources nor on the number of processes, and are the same in a resumed run.

    Args:
        sites: The sites, indexed by `site` in a batch.
        data: Settings. Without `sequence`, a recording gives its first snapshot. The labels of a row of several links
            are those of the first link, except `los`, which is the maximum over the links.

    Attributes:
        keys: Keys of a batch; without `position` when no position is known.

    Raises:
        InputError: `symmetry` is set for recorded CSI or with `group`, or one of `extras` is unknown, or `geometry` is
            asked for and not all positions are known.
    """

    def __init__(self, sites: Sequence[Site], data: Settings) -> None:
        self.bs, self.ue, self.ofdm, self.codebook = data.bs, data.ue, data.ofdm, data.codebook
        self.views, self.observation, self.snapshots = data.views, data.observation, data.sequence
        self.extras, self.geometry_los, self.symmetry = data.extras, data.geometry_los, data.symmetry
        self.group_size, self.seed = data.group_size, data.seed
        for extra in self.extras:
            check_choice("data.extras", extra, Extra)
        if self.symmetry is not None and self.group_size is not None:
            raise InputError("data.symmetry transforms single links: it cannot be used with data.group")
        if "geometry" in self.extras and (unlocated := [site.name for site in sites if not site.is_located]):
            raise InputError(
                f"data.extras: geometry needs the positions of all users, and some of site {unlocated[0]} are unknown: "
                "leave it out"
            )
        self.names = name_keys(site.name for site in sites)
        self.areas = name_keys(site.area for site in sites)
        frames = torch.stack([site.bs_orientation for site in sites])
        self.frames = rotation_matrix(frames).float() if frames.any() else None
        self.wavelengths = torch.tensor([SPEED_OF_LIGHT / site.carrier_frequency for site in sites])
        self.spans = speed_spans(sites)
        self.domains = site_domains(sites, self.bs)
        self.maps = AreaMaps.draw(sites, cache=data.cache) if {"map", "geometry"} & set(self.extras) else None
        self.keys = keys_of(data, any(site.links.position.isfinite().all(1).any() for site in sites))
        if self.symmetry is not None and not sites[0].links.has_rays:
            raise InputError("data.symmetry transforms paths, which recorded CSI does not have: leave it out")

    @torch.no_grad()
    def __call__(self, rows: Batch, epoch: int = 0, training: bool = False) -> Batch:
        """Return the batch of rows of a `ChannelDataset`.

        Args:
            rows: The rows.
            epoch: Epoch, from which random numbers are drawn.
            training: Whether `symmetry` is applied.
        """
        site = rows["site"]
        self._move_to(site.device)
        rows = self._without_silent_los(rows)
        draws = LinkDraws(self.seed, self.names[site], rows["user"], torch.full_like(site, epoch))
        original, world = rows, None
        if training and self.symmetry is not None:
            world = self.symmetry.draw(draws)
            rows = world.move(rows, self.wavelengths[site])
        paths, motion = _paths(rows), self._motion(rows)
        csi = self._channel(rows, paths, motion)
        batch = self._labels(rows, paths, motion) | self._surroundings(original, world)
        if self.snapshots is not None and self.snapshots.horizon:
            csi, batch["next_csi"] = split_next(csi, self.snapshots.horizon)
        batch["csi"] = csi
        if self.observation:
            batch |= {"clean_csi": csi, "csi": observe(csi, self.observation, draws)}
        if self.views is not None:
            second = csi
            if self.snapshots is not None and self.snapshots.window is not None:
                second = self._later(rows, paths, motion, epoch)
            batch["views"] = [observe(window, self.views, draws) for window in (csi, second)]
        batch = self._grouped(batch)
        return _without_links(batch) if "none" in rows else batch

    def labels(self, rows: Batch) -> Batch:
        """Return the labels of `rows` from the noise-free channel, without synthesis of CSI from paths."""
        self._move_to(rows["site"].device)
        rows = self._without_silent_los(rows)
        return self._grouped(self._labels(rows, _paths(rows), self._motion(rows)))

    def _move_to(self, device: torch.device) -> None:
        """Move the tables to the device of the rows, once, since every copy to a GPU waits for it."""
        if self.names.device == device:
            return
        for name in _TABLES:
            table: Tensor | None = getattr(self, name)
            if table is not None:
                setattr(self, name, table.to(device))
        if self.maps is not None:
            self.maps = self.maps.to(device)

    def _without_silent_los(self, rows: Batch) -> Batch:
        """Return `rows` with the LOS label of recorded CSI without power set to -1."""
        if "recorded" not in rows:
            return rows
        power = self._channel(rows, None, None).abs().flatten(1).amax(1)
        return {**rows, "los": torch.where(power > 0, rows["los"], torch.full_like(rows["los"], -1))}

    def _grouped(self, batch: Batch) -> Batch:
        """Add the group axis to channels, (B, G, ...), and keep the labels of the first link of each group."""
        count = self.group_size
        if count is None:
            return batch
        joined: Batch = {}
        for key, value in batch.items():
            if key in ("csi", "clean_csi", "next_csi"):
                joined[key] = value.unflatten(0, (-1, count))
            elif key == "views":
                joined[key] = [view.unflatten(0, (-1, count)) for view in value]
            else:
                joined[key] = value[::count]
        joined["los"] = batch["los"].unflatten(0, (-1, count)).amax(1)
        return joined

    def _labels(self, rows: Batch, paths: Paths | None, motion: Motion | None) -> Batch:
        batch = {key: rows[key] for key in _GIVEN}
        site, codebook = rows["site"], self.codebook
        if codebook is not None:
            if paths is None:
                recorded = rows["recorded"]
                power = beam_power(recorded[:, 0] if recorded.ndim == 5 else recorded, codebook)
            else:
                # Factors are computed again here: beams take the antennas of the base station alone and the Gram matrix
                # over those of the user, the CSI all pairs without padding. Of 34 ms for 256 links, 8x8 by 2x2 antennas
                # and 64 subcarriers, computing them takes 0.4 ms.
                power = beam_power_of_paths(paths, self.bs, self.ue, self.ofdm, codebook, self._mount(site))
            received = power.amax(1, keepdim=True) > 0  # without power the argmax would be beam 0
            batch["beam"] = torch.where(received.squeeze(1), power.argmax(1), -1)
            batch["beam_power"] = torch.where(received, power, torch.nan)
        if "domain" in self.extras:
            mobility = None if motion is None else motion.mobility
            batch["domain"] = domain_labels(self.domains, site, rows["los"], mobility)
        return batch

    def _surroundings(self, rows: Batch, world: World | None = None) -> Batch:
        """Return map and geometry vector of `rows`, transformed if a symmetry is given."""
        batch: Batch = {}
        if self.maps is None:
            return batch
        site, maps = rows["site"], self.maps
        if "map" in self.extras:
            image = maps.map(site)
            batch["map"] = image if world is None else world.map(image)
        if "geometry" in self.extras:
            vector = maps.geometry(site, rows["bs_position"], rows["position"], rows["los"], self.geometry_los)
            batch["geometry"] = vector if world is None else world.geometry(vector)
        return batch

    def _channel(self, rows: Batch, paths: Paths | None, motion: Motion | None) -> Tensor:
        if paths is None:
            recorded: Tensor = rows["recorded"]
            if recorded.ndim == 4:
                return recorded
            return recorded[:, 0] if self.snapshots is None else recorded[:, : len(self.snapshots.times)]
        site = rows["site"]
        make = partial(synthesize, paths, self.bs, self.ue, self.ofdm, mount=self._mount(site))
        if motion is None:
            return make()
        return make(velocity=motion.velocity, times=motion.times, wavelength=self.wavelengths[site])

    def _later(self, rows: Batch, paths: Paths | None, motion: Motion | None, epoch: int) -> Tensor:
        """Return a second window (B, N, R, T, K) of each user, at most `window` after the first."""
        assert self.snapshots is not None
        assert self.snapshots.window is not None
        site, count = rows["site"], self.snapshots.snapshots
        area = self.areas[site]
        # a key of its own: a site may have the name of its area, and the impairments the same draws
        window = torch.full_like(site, _WINDOW)
        share = LinkDraws(self.seed, area, rows["user"], torch.full_like(site, epoch), window).uniform()
        if motion is None:
            first = 1 + (share * self.snapshots.steps).long()
            index = first[:, None] + torch.arange(count, device=site.device)
            recorded: Tensor = rows["recorded"]
            return recorded[torch.arange(len(site), device=site.device)[:, None], index]
        shift = (1 - share.double()) * self.snapshots.window
        times = motion.times[:count] + shift[:, None]
        return self._channel(rows, paths, motion._replace(times=times))

    def _mount(self, site: Tensor) -> Tensor | None:
        """Return the rotation of each base station, (B, 3, 3), or None if all are identities."""
        return None if self.frames is None else self.frames[site]

    def _motion(self, rows: Batch) -> Motion | None:
        if self.snapshots is None or "recorded" in rows:
            return None
        site = rows["site"]
        return draw_motion(self.snapshots, self.areas[site], rows["user"], self.seed, self.spans[site])


def keys_of(data: Settings, located: bool = True) -> tuple[str, ...]:
    """Return the keys of a batch.

    Args:
        data: Settings.
        located: Whether any position is known; else there is no `position`.
    """
    given = tuple(key for key in _GIVEN if key != "position" or located)
    keys: tuple[str, ...] = ("csi", *given, *data.extras, *["clean_csi"] * bool(data.observation))
    if data.num_beams:
        keys += ("beam", "beam_power")
    if data.sequence is not None and data.sequence.horizon:
        keys += ("next_csi",)
    return (*keys, "views") if data.views is not None else keys


def _paths(rows: Batch) -> Paths | None:
    """Return the paths of `rows`, or None for recorded CSI."""
    return None if "recorded" in rows else to_paths(rows)


def _without_links(batch: Batch) -> Batch:
    """Return a batch without links, sliced from one of a single link since some operations reject empty batches."""
    return {key: [view[:0] for view in value] if key == "views" else value[:0] for key, value in batch.items()}
