"""What the environment-channel loss asks beside the contrast: counterfactuals, and the profile of the channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.channel.transforms import log_level
from datamodules.maps.raster import UNKNOWN_LOS, Entry
from foundation.models.zeroshot import SCALES, cleared, similarities
from heads.feedback import target_channel

#: links have other counterfactuals by turns of so many
KINDS = 8


def counterfactual(
    encoder: Callable[[Tensor, Tensor], Tensor],
    batch: dict[str, Any],
    channel: Tensor,
    environment: Tensor,
    scale: Tensor,
    kind: Tensor,
) -> Tensor:
    """Return the cross-entropy of the true environment against those that it is not, one to three a link.

    Args:
        encoder: Embeds maps (B, 1, 64, 64) and geometry vectors (B, 8).
        batch: The batch.
        channel: Embeddings of the channels (B, D).
        environment: Embeddings of the environments as they are (B, D).
        scale: The inverse temperature.
        kind: Which counterfactuals each link has, 0 to 7, (B,).

    Returns:
        Shape (B,).
    """
    geometry, image = batch["geometry"], batch["map"]
    blocked = batch["los"] == 0
    scaled = ((kind < 2) | blocked).nonzero().squeeze(1)
    changed = (kind >= 6).nonzero().squeeze(1)
    rows = torch.cat([scaled, scaled, changed])
    false, images = geometry[rows], image[rows]
    which = torch.arange(3, device=rows.device).repeat_interleave(
        torch.tensor([len(scaled), len(scaled), len(changed)], device=rows.device)
    )
    false[:, Entry.SCALE] = false[:, Entry.SCALE] * false.new_tensor([SCALES[0], SCALES[2], 1.0])[which]
    flipped = (which == 2) & (kind[rows] == 6) & (false[:, Entry.LOS] != UNKNOWN_LOS)
    false[:, Entry.LOS] = torch.where(flipped, 1 - false[:, Entry.LOS], false[:, Entry.LOS])
    other = ((which == 2) & ~flipped).nonzero().squeeze(1)
    whole, blocks = images[other], blocked[rows[other]].reshape(-1, 1, 1, 1)
    images[other] = torch.where(blocks, cleared(whole, false[other]), whole.flip(-1, -2))
    true = similarities(channel, environment.unsqueeze(1))
    wrong = similarities(channel[rows], encoder(images, false).unsqueeze(1)).squeeze(1)
    logits = torch.cat([scale * true, true.new_full((len(true), 3), -torch.inf)], dim=1)
    logits[rows, which + 1] = scale * wrong
    return F.cross_entropy(logits, torch.zeros_like(kind), reduction="none")


def profile_moments(readings: list[Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Return how far readings are from the log-magnitude of a batch's channels, angle by delay, and its moments.

    Args:
        readings: What was read off embeddings, each (B, R*T*K).
        batch: The batch.

    Returns:
        For each link the squared error, averaged over the readings, the target and its square, averaged over the
        entries of the link, (B, 3).
    """
    target = log_level(target_channel(batch)).flatten(1)
    error = torch.stack([(reading - target).square().mean(1) for reading in readings]).mean(0)
    return torch.stack([error, target.mean(1), target.square().mean(1)], dim=1)


def unexplained(moments: Tensor) -> Tensor:
    """Return the squared error over the variance of all entries, a scalar, of the moments (B, 3) of links."""
    error, mean, square = moments.mean(0).unbind()
    return error / (square - mean.square()).clamp_min(torch.finfo(moments.dtype).tiny)
