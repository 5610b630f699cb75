"""Additional losses of the environment-channel model: counterfactual environments, and channel profiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.channel.transforms import constant, log_level, received
from datamodules.maps.raster import UNKNOWN_LOS, Entry
from foundation.models.zeroshot import SCALES, cleared, similarities
from heads.feedback import mean_of_counted, target_channel

#: number of kinds of links, which differ in their counterfactuals
KINDS = 8


def counterfactual(
    encoder: Callable[[Tensor, Tensor], Tensor],
    batch: dict[str, Any],
    channel: Tensor,
    environment: Tensor,
    scale: Tensor,
    kind: Tensor,
) -> Tensor:
    """Return the cross-entropy of the true environment against up to three modified ones of each link.

    Links of kind 0 or 1 and all NLOS links have two environments of another map scale, those of kind 6 one of inverted
    LOS status, those of kind 7, and of kind 6 with unknown LOS status, one of another map, see `EnvChannel`.

    Args:
        encoder: Embeds maps (B, 1, 64, 64) and geometry vectors (B, 8).
        batch: The batch.
        channel: Embeddings of the channels (B, D).
        environment: Embeddings of the true environments (B, D).
        scale: Inverse temperature, a scalar.
        kind: Kind of each link, 0 to 7, (B,).

    Returns:
        Cross-entropy of each link [nat], shape (B,); 0 without counterfactuals.
    """
    geometry, image = batch["geometry"], batch["map"]
    blocked = batch["los"] == 0
    scaled = (kind < 2) | blocked
    # the only question to a GPU, whose answer is waited for: computing all three of every link would cost more
    which, rows = torch.stack([scaled, scaled, kind >= 6]).nonzero().unbind(1)
    false, images = geometry[rows], image[rows]
    false[:, Entry.SCALE] *= constant((SCALES[0], SCALES[2], 1.0), false.device, false.dtype)[which]
    flipped = (which == 2) & (kind[rows] == 6) & (false[:, Entry.LOS] != UNKNOWN_LOS)
    false[:, Entry.LOS] = torch.where(flipped, 1 - false[:, Entry.LOS], false[:, Entry.LOS])
    other, blocks = ((which == 2) & ~flipped).reshape(-1, 1, 1, 1), blocked[rows].reshape(-1, 1, 1, 1)
    moved = torch.where(blocks, cleared(images, false), images.flip(-1, -2))
    images = torch.where(other, moved, images)
    true = similarities(channel, environment.unsqueeze(1))
    wrong = similarities(channel[rows], encoder(images, false).unsqueeze(1)).squeeze(1)
    logits = torch.cat([scale * true, true.new_full((len(true), 3), -torch.inf)], dim=1)
    logits[rows, which + 1] = scale * wrong
    return F.cross_entropy(logits, torch.zeros_like(kind), reduction="none")


def profile_moments(readings: list[Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Return error and moments of predictions of the log-magnitude of the channel in the angle-delay domain.

    Args:
        readings: Predictions, each (B, R*T*K).
        batch: The batch.

    Returns:
        Shape (B, 4): mean squared error over predictions and entries, mean and mean square of the target over the
        entries of the link, and 1; all are zero for a link without power.
    """
    channel = target_channel(batch)
    target = log_level(channel).flatten(1)
    error = torch.stack([(reading - target).square().mean(1) for reading in readings]).mean(0)
    moments = torch.stack([error, target.mean(1), target.square().mean(1), torch.ones_like(error)], dim=1)
    return moments * received(channel).unsqueeze(1)


def unexplained(moments: Tensor) -> Tensor:
    """Return the fraction of unexplained variance, a scalar, from the moments (B, 4) of `profile_moments`."""
    error, mean, square = mean_of_counted(moments).unbind()
    return error / (square - mean.square()).clamp_min(torch.finfo(moments.dtype).tiny)
