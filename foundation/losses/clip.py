"""The symmetric contrastive loss of two towers."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from foundation.gather import gather, rank
from foundation.losses.temperature import TemperatureLoss

#: cosines nearer than this are one: what is left of equal embeddings after rounding in batches of other sizes
_SAME = 1e-5


class CLIPLoss(TemperatureLoss):
    """Symmetric InfoNCE between paired embeddings (CSI-CLIP section III-A; the loss of CLIP).

    With unit vectors a_i, b_i and temperature t, the mean of the cross-entropies of a_i . b_j / t over j and of
    b_i . a_j / t over j, the pair i = j being right. Negatives are gathered from all processes, with gradients, so the
    mean over processes equals one process with the whole batch.

    Args:
        temperature: Where the learnable temperature starts.
        max_scale: Largest inverse temperature; CLIP clamps at 100.

    Raises:
        InputError: The temperature is not positive.
    """

    def __init__(self, temperature: float = 0.07, max_scale: float = 100.0) -> None:
        super().__init__(temperature, max_scale)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the loss of embeddings of shape (B, D), normalised here, against those of all processes."""
        a, b = unit(a), unit(b)
        return self._loss(a, b, gather(a), gather(b), rank() * len(a))

    def local(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the loss within the given rows alone, whatever other processes hold."""
        a, b = unit(a), unit(b)
        return self._loss(a, b, a, b, 0)

    def _loss(self, a: Tensor, b: Tensor, all_a: Tensor, all_b: Tensor, first: int) -> Tensor:
        target = torch.arange(first, first + len(a), device=a.device)
        # no autocast: at a scale of 100 bfloat16 goes by half a logit
        with torch.autocast(a.device.type, enabled=False):
            one, other = self.scale * a @ all_b.T, self.scale * b @ all_a.T
            return (F.cross_entropy(one, target) + F.cross_entropy(other, target)) / 2


def unit(value: Tensor) -> Tensor:
    """Scale rows to unit length, in single precision at least."""
    return F.normalize(value.float() if value.dtype in (torch.float16, torch.bfloat16) else value, dim=-1)


def retrieval(a: Tensor, b: Tensor, top: int, batch: int = 128) -> Tensor:
    """Return how often the partner of a row of `a` is among its `top` nearest rows of `b`, within batches.

    Args:
        a: Embeddings, shape (M, D).
        b: Their partners, shape (M, D).
        top: How many may be named.
        batch: Size of the batches searched; an incomplete last one is left out unless it is the only one.

    Returns:
        Share of hits, a scalar; chance is top / batch, which ties count as.
    """
    a, b = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
    batch = min(batch, len(a))
    count = len(a) // batch
    a, b = (x[: count * batch].reshape(count, batch, -1) for x in (a, b))
    similarity = a @ b.mT
    return credit(similarity, similarity.diagonal(dim1=1, dim2=2), top).mean()


def credit(similarity: Tensor, own: Tensor, top: int = 1) -> Tensor:
    """Return the chance that the right option is among the `top` most similar, ties broken at random.

    It is 0 or 1 where no other option is as similar as the right one; where all are, what a guess would score, so that
    a model blind to what tells the options apart scores at chance.

    Args:
        similarity: Cosines of each query with its O options, shape (..., O).
        own: Those of the right option, shape (...).
        top: How many may be named.

    Returns:
        Shape (...).
    """
    own = own.unsqueeze(-1)
    better = (~(similarity <= own + _SAME)).sum(-1)  # NaN is better than the right one: it scores nothing
    tied = ((similarity - own).abs() <= _SAME).sum(-1)  # the right one among them
    return ((top - better) / tied.clamp_min(1)).clamp(0, 1)


def mixed(*values: Tensor) -> list[Tensor]:
    """Return tensors with their rows in one random order, always the same.

    Rows are evaluated in map order, and neighbours are harder negatives than a training batch has.
    """
    order = torch.randperm(len(values[0]), generator=torch.Generator().manual_seed(0)).to(values[0].device)
    return [value[order] for value in values]


def spread(embeddings: Tensor) -> Tensor:
    """Return the deviation of unit embeddings (M, D) times the root of D: 1 where they fill the sphere, 0 when one."""
    deviation = F.normalize(embeddings.float(), dim=-1).std(0).mean()
    return deviation * math.sqrt(embeddings.shape[1])


def matching(queries: Tensor, options: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Match every query with the options of its group.

    Args:
        queries: Embeddings (M, D).
        options: Their partners (M, D).
        group: Number of the group of each row, (M,).

    Returns:
        Whether each query finds its own partner first, (M,), see `credit`, and its chance to by guessing, (M,).
    """
    hit, chance = torch.zeros(2, len(group)).unbind()
    queries, options = F.normalize(queries.float(), dim=-1).cpu(), F.normalize(options.float(), dim=-1).cpu()
    for number in sorted(set(group.tolist())):
        rows = (group == number).nonzero().squeeze(1)
        similarity = queries[rows] @ options[rows].T
        hit[rows], chance[rows] = credit(similarity, similarity.diagonal()), 1 / len(rows)
    return hit, chance
