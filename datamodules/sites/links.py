"""`Links`: the common interface of paths and recorded CSI of a site."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Links(Protocol):
    """Protocol of `Paths` and `Recording`, for `U` links."""

    def __len__(self) -> int:
        """Return the number of links `U`."""

    @property
    def has_rays(self) -> bool:
        """Whether the links have paths, rather than recorded CSI."""

    @property
    def position(self) -> Tensor:
        """User position [m], shape (U, 3)."""

    @property
    def los(self) -> Tensor:
        """1 line of sight, 0 none, -1 no path or unknown, shape (U,), int8."""

    @property
    def has_path(self) -> Tensor:
        """Mask of the links with a nonzero channel, shape (U,), bool."""

    @property
    def power(self) -> Tensor:
        """Power of each link, shape (U,)."""

    @property
    def amplitude(self) -> Tensor:
        """Magnitude at the first antennas and the carrier or first subcarrier, shape (U,) or (U, N)."""

    @property
    def timestamps(self) -> Tensor | None:
        """Recording times of links or snapshots [s], shape (U,) or (U, N); None if unknown, and for paths."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the recorded CSI of a link, (R, T, K) or (N, R, T, K); None for paths."""

    def rows(self, index: Tensor, num_paths: int) -> dict[str, Tensor]:
        """Return the fields of selected links (B,) for a batch, with paths padded to `num_paths`."""

    def content(self) -> list[Tensor]:
        """Return tensors (U, ...) that are equal for equal channels."""
