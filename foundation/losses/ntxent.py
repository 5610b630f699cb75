"""Contrastive loss with several positives and mined negatives."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from datamodules.errors import check_choice, check_positive
from foundation.gather import gather, rank
from foundation.losses.clip import unit
from foundation.losses.temperature import TemperatureLoss

Negatives = Literal["farthest", "nearest", "none"]


class NTXentLoss(TemperatureLoss):
    r"""Domain-aware NT-Xent loss (ConTwin eq 3), with several positives and mined negatives of each anchor.

    With unit vectors q, temperature t, positives P(i) and negatives N(i),

    .. math:: L = \frac{1}{B} \sum_i -\frac{1}{|P(i)|} \sum_{j \in P(i)}
        \log \frac{e^{q_i q_j / t}}{\sum_{k \in P(i) \cup N(i)} e^{q_i q_k / t}}

    Positives and negatives are rows of all processes, with gradients, so that the mean over processes equals the loss
    of one process with the whole batch. An anchor is neither a positive nor a negative of itself, and a positive is
    never a negative. The term of an anchor without positives is zero.

    Args:
        temperature: Initial value of the learned temperature: 0.1 in the text of the paper, 0.5 in its Table 6.
        negatives: Selection from the pool: the `farthest` rows from the anchor, as in the mining of the paper; the
            `nearest`, the usual hard negatives; or with `none` the whole pool, the ablation A1 of the paper
            where that is every other row.
        num_negatives: Number of negatives. The paper states both 50 and an eighth of all rows; by default an eighth of
            the rows of all processes, and at least one.

    Raises:
        InputError: An argument is out of range.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        negatives: Negatives = "farthest",
        num_negatives: int | None = None,
    ) -> None:
        super().__init__(temperature)
        check_positive("NTXentLoss", num_negatives=num_negatives)
        check_choice("NTXentLoss: negatives", negatives, Negatives)
        self.negatives, self.num_negatives = negatives, num_negatives

    def forward(self, embeddings: Tensor, positives: Tensor, pool: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            embeddings: Shape (B, D), normalised here. M is the number of rows of all processes, ordered by rank.
            positives: Mask of the positives of each anchor, bool (B, M).
            pool: Mask of the rows from which negatives are mined, bool (B, M).

        Raises:
            ValueError: A mask is not of shape (B, M).
        """
        own = unit(embeddings)
        return self._loss(own, gather(own), rank() * len(own), positives, pool)

    def local(self, embeddings: Tensor, positives: Tensor, pool: Tensor) -> Tensor:
        """Return the loss of embeddings (B, D) with pairs of the same rows alone; masks are (B, B)."""
        own = unit(embeddings)
        return self._loss(own, own, 0, positives, pool)

    def _loss(self, own: Tensor, rows: Tensor, first: int, positives: Tensor, pool: Tensor) -> Tensor:
        shape = (len(own), len(rows))
        for name, mask in (("positives", positives), ("pool", pool)):
            if mask.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(mask.shape)}")
        anchors, others = (torch.arange(count, device=own.device) for count in shape)
        itself = others == first + anchors.unsqueeze(1)
        positives, pool = positives & ~itself, pool & ~(positives | itself)
        with torch.autocast(own.device.type, enabled=False):  # half precision would round the cosines
            similarity = own @ rows.T
        kept = positives | self._mine(similarity.detach(), pool)
        scores = self.scale * similarity
        # without positives the logarithm would be -inf, with a gradient of NaN
        total = scores.masked_fill(~kept & positives.any(1, keepdim=True), -math.inf).logsumexp(1)
        pull = (scores * positives).sum(1) / positives.sum(1).clamp_min(1)
        return torch.where(positives.any(1), total - pull, 0.0).mean()

    def _mine(self, similarity: Tensor, pool: Tensor) -> Tensor:
        """Return the mask of negatives, bool (B, M); the angular distance is 1 - similarity."""
        if self.negatives == "none":
            return pool
        count = self.num_negatives or max(1, pool.shape[1] // 8)
        hardness = similarity if self.negatives == "nearest" else -similarity
        chosen = hardness.masked_fill(~pool, -math.inf).topk(min(count, pool.shape[1])).indices
        return torch.zeros_like(pool).scatter(1, chosen, True) & pool
