"""Metrics of one value for each link: means, means in decibels, and quantiles over all links."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from heads.feedback import error_db
from heads.metrics import RatioOfSums


class LinkMean(RatioOfSums):
    """Mean over links; NaN without links."""

    def update(self, values: Tensor) -> None:
        """Add a value a link, shape (B,)."""
        self.add(values)


class LinkMeanDb(LinkMean):
    """Mean over links of a relative error, converted to decibels, such as the NMSE."""

    higher_is_better = False

    def compute(self) -> Tensor:
        """Return the mean [dB], a scalar."""
        return error_db(super().compute())


class LinkQuantile(Metric):
    """Quantile over links; NaN without links.

    Args:
        q: Probability of the quantile, in [0, 1].
    """

    full_state_update = False
    values: list[Tensor]

    def __init__(self, q: float) -> None:
        super().__init__()
        self.q = q
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, values: Tensor) -> None:
        """Add a value a link, shape (B,)."""
        self.values.append(values.detach())

    def compute(self) -> Tensor:
        """Return the quantile, a scalar."""
        values = dim_zero_cat(self.values) if len(self.values) else torch.zeros(0, device=self.device)
        return values.quantile(self.q) if values.numel() else torch.tensor(torch.nan, device=self.device)
