"""Metrics of one value for each link: means, means in decibels, and quantiles over all links."""

from __future__ import annotations

from torch import Tensor

from heads.metrics import MeanDb, Quantile, RatioOfSums


class LinkMean(RatioOfSums):
    """Mean over links; NaN without links."""

    def update(self, values: Tensor) -> None:
        """Add a value a link, shape (B,)."""
        self.add(values)


class LinkMeanDb(MeanDb):
    """Mean over links of a relative error, converted to decibels, such as the NMSE."""

    def update(self, values: Tensor) -> None:
        """Add a value a link, shape (B,)."""
        self.add(values)


class LinkQuantile(Quantile):
    """Quantile over links; NaN without links."""

    def update(self, values: Tensor) -> None:
        """Add a value a link, shape (B,)."""
        self.add(values)
