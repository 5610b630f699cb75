"""Symmetric contrastive loss of two towers, and its scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.sites.numbering import rows_by_number
from foundation.gather import gather, rank
from foundation.losses.temperature import TemperatureLoss

#: tolerance within which two cosines are equal; equal embeddings differ by rounding between batches of different sizes
_SAME = 1e-5
#: queries compared with all options of their group at a time
_CHUNK = 1024
#: number of links among which a link is retrieved in validation
BATCH = 128


class CLIPLoss(TemperatureLoss):
    """Symmetric InfoNCE between paired embeddings (CSI-CLIP section III-A; the loss of CLIP).

    With unit vectors a_i, b_i and temperature t, the mean of the cross-entropies over j of the logits a_i . b_j / t and
    b_i . a_j / t, both with target j = i. Negatives are gathered from all processes, with gradients, so that the mean
    over processes equals the loss of one process with the whole batch.

    Args:
        temperature: Initial value of the learned temperature, such as 0.07 in CLIP.

    Raises:
        InputError: The temperature is not positive.
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the loss of embeddings (B, D), normalised here, with negatives of all processes."""
        a, b = unit(a), unit(b)
        return self._loss(a, b, gather(a), gather(b), rank() * len(a))

    def local(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the loss of embeddings (B, D) with negatives of the same rows alone."""
        a, b = unit(a), unit(b)
        return self._loss(a, b, a, b, 0)

    def _loss(self, a: Tensor, b: Tensor, all_a: Tensor, all_b: Tensor, first: int) -> Tensor:
        target = torch.arange(first, first + len(a), device=a.device)
        # no autocast: at a scale of 100 the resolution of bfloat16 is half a logit
        with torch.autocast(a.device.type, enabled=False):
            one, other = self.scale * a @ all_b.T, self.scale * b @ all_a.T
            return (F.cross_entropy(one, target) + F.cross_entropy(other, target)) / 2


def unit(value: Tensor) -> Tensor:
    """Normalise rows to unit norm, at least in single precision."""
    return F.normalize(value.float() if value.dtype in (torch.float16, torch.bfloat16) else value, dim=-1)


def retrieval(a: Tensor, b: Tensor, top: int, batch: int = BATCH) -> Tensor:
    """Return the top-k retrieval accuracy of the rows of `b` by those of `a`, within batches.

    Args:
        a: Embeddings, shape (M, D).
        b: Embeddings of the paired rows, shape (M, D).
        top: Number k of nearest rows.
        batch: Batch size; an incomplete last batch is omitted unless it is the only one.

    Returns:
        Accuracy, a scalar; the chance level is top / batch. Ties count as in `credit`.
    """
    a, b = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
    batch = min(batch, len(a))
    count = len(a) // batch
    a, b = (x[: count * batch].reshape(count, batch, -1) for x in (a, b))
    similarity = a @ b.mT
    return credit(similarity, similarity.diagonal(dim1=1, dim2=2), top).mean()


def credit(similarity: Tensor, own: Tensor, top: int = 1) -> Tensor:
    """Return the probability that the correct option is among the `top` most similar, with ties broken at random.

    It is 0 or 1 without ties. A model whose similarity is the same for all options scores at the chance level.

    Args:
        similarity: Cosine similarities of each query with its O options, shape (..., O).
        own: Cosine similarity with the correct option, shape (...).
        top: Number k of options considered.

    Returns:
        Probabilities, shape (...).
    """
    own = own.unsqueeze(-1)
    better = (~(similarity <= own + _SAME)).sum(-1)  # NaN counts as better than the correct option
    tied = ((similarity - own).abs() <= _SAME).sum(-1)  # including the correct option
    return ((top - better) / tied.clamp_min(1)).clamp(0, 1)


def mixed(*values: Tensor) -> list[Tensor]:
    """Return tensors with their rows in the same pseudo-random order, of a fixed seed.

    Links are evaluated in map order, in which neighbours are harder negatives than those of a training batch.
    """
    order = torch.randperm(len(values[0]), generator=torch.Generator().manual_seed(0)).to(values[0].device)
    return [value[order] for value in values]


def spread(embeddings: Tensor) -> Tensor:
    """Return sqrt(D) times the mean deviation of normalised embeddings (M, D): 1 if uniform, 0 if collapsed.

    The spread of fewer than two embeddings is NaN.
    """
    if len(embeddings) < 2:
        return embeddings.new_full((), math.nan, dtype=torch.float)
    deviation = F.normalize(embeddings.float(), dim=-1).std(0).mean()
    return deviation * math.sqrt(embeddings.shape[1])


def matching(queries: Tensor, options: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Retrieve the option of every query among the options of its group.

    Args:
        queries: Embeddings (M, D).
        options: Embeddings of the paired options (M, D).
        group: Group number of each row, (M,).

    Returns:
        Top-1 score of each query, see `credit`, and its chance level, (M,) each.
    """
    hit, chance = torch.zeros(2, len(group)).unbind()
    queries, options = F.normalize(queries.float(), dim=-1).cpu(), F.normalize(options.float(), dim=-1).cpu()
    for rows in map(torch.from_numpy, rows_by_number(group.cpu().numpy())):
        own = options[rows]
        # in parts, as all pairs of a large group need not fit into memory
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            similarity = queries[part] @ own.T
            hit[part] = credit(similarity, similarity.diagonal(start))
        chance[rows] = 1 / len(rows)
    return hit, chance
