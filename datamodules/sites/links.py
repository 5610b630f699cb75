"""`Links`: what can be asked of the links of a site, whether they are rays or recorded CSI."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Links(Protocol):
    """The common part of `Paths` and `Recording`, for `U` links."""

    def __len__(self) -> int:
        """Return the number of links `U`."""

    @property
    def has_rays(self) -> bool:
        """Whether the channel is made of rays, rather than recorded."""

    @property
    def position(self) -> Tensor:
        """User position [m], shape (U, 3)."""

    @property
    def los(self) -> Tensor:
        """1 line of sight, 0 none, -1 no path or unknown, shape (U,), int8."""

    @property
    def has_path(self) -> Tensor:
        """Links that have a channel at all, shape (U,), bool."""

    @property
    def power(self) -> Tensor:
        """Power of each link, shape (U,)."""

    @property
    def amplitude(self) -> Tensor:
        """Magnitude at the first antennas and the carrier or first subcarrier, shape (U,) or (U, N)."""

    @property
    def timestamps(self) -> Tensor | None:
        """When links, or their snapshots, were recorded [s], shape (U,) or (U, N); None if unknown, or of rays."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the CSI of a link, (R, T, K) or (N, R, T, K); None of rays, which give any."""

    def rows(self, index: Tensor, num_paths: int) -> dict[str, Tensor]:
        """Return chosen links (B,) as a batch holds them, rays padded to `num_paths`."""

    def content(self) -> list[Tensor]:
        """Return tensors (U, ...) that are equal for links of equal channels."""
