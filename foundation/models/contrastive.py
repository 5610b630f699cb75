"""Base class of models that are trained by a contrastive loss."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from foundation.encoder import Encoder
from foundation.losses.clip import BATCH, retrieval
from foundation.losses.temperature import TemperatureLoss
from foundation.runtime.probe import CollapseAlarm, OnlineProbe
from foundation.task import FoundationTask


class ContrastiveTask(FoundationTask):
    """Clamps the temperature of `loss`, and monitors training by an online probe of the first encoder."""

    loss: TemperatureLoss

    def on_train_batch_end(self, *_: Any) -> None:
        """Clamp the temperature after the optimizer's step."""
        self.loss.clamp()

    def configure_callbacks(self) -> list[Callback]:
        """Return the online probe and the collapse alarm."""
        encoder = self.get_submodule(next(iter(self.towers.values())))
        assert isinstance(encoder, Encoder)
        return [OnlineProbe(encoder.num_features), CollapseAlarm("val/embedding_spread")]


def full_batches(rows: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return rows (M, ...) by name in batches of 128; an incomplete last one is omitted unless it is the only one."""
    parts = zip(*(torch.split(values, BATCH) for values in rows.values()), strict=True)
    batches = [dict(zip(rows, part, strict=True)) for part in parts]
    return batches[:-1] if len(batches) > 1 and len(next(iter(batches[-1].values()))) < BATCH else batches


def retrieval_scores(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return top-1 and top-5 `retrieval` in batches of 128 by full name, of paired embeddings (M, E) by direction."""
    directions = product(pairs.items(), (1, 5))
    return {f"val/{name}/retrieval_top{top}": retrieval(*pair, top) for (name, pair), top in directions}
