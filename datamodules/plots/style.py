"""Colours and size of figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: colours of lines, told apart with every kind of colour vision (Okabe and Ito)
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


def empty_figure(width: float, height: float, dpi: int = 100) -> Figure:
    """Return a figure of that size [inches], made without pyplot; matplotlib, slow to import, is imported here."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=dpi)
