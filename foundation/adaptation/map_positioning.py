"""Positioning by CSI and map: the estimate of a head is refined by the similarity of map and channel embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from datamodules.errors import InputError, check_not_negative, check_positive
from datamodules.maps.area_maps import AreaMaps
from datamodules.progress import Progress
from datamodules.sites.numbering import number_rows
from foundation.adaptation.finetune import FineTune, Mode
from foundation.checkpoint import load_encoder
from foundation.encoder import Encoder
from foundation.optim.schedules import Schedule
from foundation.task import OptimizerName, StartFrom
from heads import Positioning

#: environments embedded in one batch
_CHUNK = 256
#: largest distance of a candidate from a training user along either axis [m]
_REACH = 10.0
#: users whose candidates are found at a time
_USERS = 4096


class MapPositioning(FineTune):
    """Positioning with a known map, by candidate positions whose environment embedding is similar to that of the CSI.

    Contrastive pre-training (environment-channel eq 6-10) makes the embeddings of a channel and of its environment
    similar, so that the frozen towers score positions on the map without labels. Such scores have several maxima, among
    which a head on the CSI decides. With the estimate p of the head, the embedding h of the channel and the embedding
    e(c) of the environment of a candidate c, with unknown LOS status, the estimate is the mean of all candidates with
    weights proportional to exp(-|p - c|^2 / 2 r^2 + k cos(h, e(c))). Only the head is trained. This is not in the
    paper.

    Candidates are the points of a grid within 10 m of training users of the same base station. Without candidates the
    estimate is that of the head.

    Args:
        head: Constructor of the head, a `Positioning`, called with the number of features.
        checkpoint: A pre-trained environment-channel model.
        encoder: Its channel tower; by default that of the checkpoint.
        mode: `probe`, the only mode.
        tokens: See `FineTune`.
        step: Step of the grid [m].
        radius: Standard deviation r of the error of the head [m].
        sharpness: Weight k of the cosine similarity; 20 is the inverse temperature at the end of pre-training.
        lr: Learning rate of the head.
        weight_decay: Weight decay.
        schedule: Learning-rate schedule, see `foundation.optim.schedules`.
        optimizer: `adamw` or `muon`, see `Muon`.
        start_from: Checkpoint to start from, the whole or parts by name, see `FoundationTask`.

    Raises:
        InputError: The mode is not `probe`, the head is no `Positioning`, the checkpoint has no environment tower, or
            `step` or `radius` is not positive, or `sharpness` negative.
    """

    parts: ClassVar[dict[str, str]] = {"head": "head", "environment": "environment"}

    def __init__(
        self,
        head: Callable[[int], Positioning],
        checkpoint: str,
        encoder: Encoder | None = None,
        mode: Mode = "probe",
        tokens: int | None = None,
        step: float = 3.0,
        radius: float = 5.0,
        sharpness: float = 20.0,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        schedule: Schedule = "cosine",
        optimizer: OptimizerName = "adamw",
        start_from: StartFrom = None,
    ) -> None:
        check_positive("MapPositioning", step=step, radius=radius)
        check_not_negative("MapPositioning", sharpness=sharpness)
        if mode != "probe":
            raise InputError(f"MapPositioning has frozen towers: set model.mode to probe, not {mode}")
        super().__init__(
            head,
            encoder,
            checkpoint,
            mode,
            tokens=tokens,
            lr=lr,
            weight_decay=weight_decay,
            schedule=schedule,
            optimizer=optimizer,
            start_from=start_from,
        )
        if not isinstance(self.head, Positioning):
            raise InputError(f"MapPositioning needs the head Positioning, not {type(self.head).__name__}")
        self.environment = load_encoder(checkpoint, tower="environment").requires_grad_(False)
        self.step, self.radius, self.sharpness = step, radius, sharpness
        self._candidates: dict[int, tuple[Tensor, Tensor]] = {}

    def setup(self, stage: str) -> None:
        """Check that there is a datamodule, and clear the candidates of earlier data."""
        if self.datamodule is None:
            raise InputError("MapPositioning takes candidates and maps from a datamodule: give one, not loaders")
        super().setup(stage)
        self._candidates.clear()

    def train(self, mode: bool = True) -> MapPositioning:
        """Set training mode, but eval mode for both towers."""
        super().train(mode)
        self.environment.eval()
        return self

    def answer(self, features: Tensor, batch: dict[str, Any]) -> Tensor:
        """Return the estimates of the head from features (B, D), in evaluation refined by the candidates."""
        prediction = super().answer(features, batch)
        if self.training:
            return prediction
        embedding = (
            features if self.reduce is None else self.encoder.encode(self._links(batch, self.encoder))
        )  # tokens are not the embedding
        channel = F.normalize(embedding.float(), dim=-1)
        prediction = prediction.clone()
        for number in batch["site"].unique().tolist():
            points, environments = self._of(number, prediction.device)
            rows = (batch["site"] == number).nonzero().squeeze(1)
            if len(points):
                prediction[rows, :2] = self._placed(prediction[rows, :2], channel[rows], points, environments)
        return prediction

    def _placed(self, position: Tensor, channel: Tensor, points: Tensor, environments: Tensor) -> Tensor:
        # no autocast: bfloat16 would round a position to 1/256 of its distance
        with torch.autocast(position.device.type, enabled=False):
            far = torch.cdist(position.float(), points).square()
            weight = (self.sharpness * channel @ environments.T - far / (2 * self.radius**2)).softmax(1)
            return (weight @ points).to(position)

    def _of(self, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the candidates of a site relative to its base station (M, 2) [m], and their embeddings (M, D)."""
        if number not in self._candidates:
            train = self.datamodule.sides["train"]
            site = train.sites[number]
            points = candidates(train.positions(number).numpy(), self.step)
            maps = AreaMaps.draw([site]).to(device)
            self._candidates[number] = (
                (points - site.bs_position)[:, :2].to(device),
                embed_candidates(self.environment, maps, site.bs_position.to(device), points.to(device)),
            )
        return self._candidates[number]


def candidates(users: NDArray[np.float32], step: float) -> Tensor:
    """Return the grid points within 10 m of a user along either axis, at the height of that user.

    Args:
        users: User positions (n, 3) [m]; rows with NaN are ignored.
        step: Step of the grid [m].

    Returns:
        Candidates (M, 3) [m].
    """
    users = users[np.isfinite(users).all(1)]
    around = np.arange(-math.ceil(_REACH / step), math.ceil(_REACH / step) + 1)
    offsets = np.stack(np.meshgrid(around, around), axis=-1).reshape(-1, 2)
    found: NDArray[np.float64] = np.zeros((0, 3))
    for start in range(0, len(users), _USERS):  # in parts, as each user is near to dozens of points
        part = users[start : start + _USERS, None]
        cells = np.round(part[..., :2] / step) + offsets
        near = (np.abs(cells * step - part[..., :2]) <= _REACH).all(-1)
        heights = np.broadcast_to(part[..., 2], near.shape)[near]
        found = np.concatenate([found, np.column_stack([cells[near], heights])])
        cell = number_rows(found[:, 0], found[:, 1])
        found = found[np.unique(cell, return_index=True)[1]]
    return torch.from_numpy(found * (step, step, 1.0)).float()


@torch.no_grad()
def embed_candidates(encoder: Encoder, maps: AreaMaps, station: Tensor, points: Tensor) -> Tensor:
    """Return the embeddings of candidates with unknown LOS status, of unit norm, (M, D).

    Args:
        encoder: Environment tower.
        maps: The map of one site.
        station: Base station (3,) [m].
        points: Candidates (M, 3) [m].
    """
    site = torch.zeros(len(points), dtype=torch.long, device=points.device)
    vector = maps.geometry(site, station.expand(len(points), 3), points, site, with_los=False)
    found = []
    with Progress(len(points), "embedding candidates", "candidate", leave=False) as progress:
        for part in torch.split(vector, _CHUNK):
            found.append(encoder(maps.map(site[: len(part)]), part))
            progress.update(len(part))
    return F.normalize(torch.cat(found).float(), dim=-1)
