"""`Recording`: CSI as it was measured, or drawn by a model without rays."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.errors import InputError


@dataclass(frozen=True, slots=True)
class Recording:
    """CSI of `U` links, or of `U` sequences of `N` snapshots.

    Kept as half-precision pairs with one scale a link: 4 bytes a value, a relative error of 5e-4 at the strongest
    value. `Recording.build` makes it from complex CSI, and `csi` gives complex CSI back.

    Attributes:
        pairs: Real and imaginary part over `scale`, shape (U, R, T, K, 2) or (U, N, R, T, K, 2), float16.
        scale: Largest magnitude of each link, shape (U,).
        position: User position [m], shape (U, 3); at the first snapshot of a sequence. NaN where unknown.
        los: 1 line of sight, 0 none, -1 unknown, shape (U,), int8.
        interval: Time between snapshots [s]; 0 without an axis N.

    Raises:
        InputError: A field has the wrong shape or dtype.
    """

    pairs: Tensor
    scale: Tensor
    position: Tensor
    los: Tensor
    interval: float = 0.0

    def __post_init__(self) -> None:
        count = len(self.pairs)
        if self.pairs.ndim not in (5, 6) or self.pairs.shape[-1] != 2 or self.pairs.dtype != torch.float16:
            raise InputError(
                "Recording.pairs must be float16 of shape (U, R, T, K, 2) or (U, N, R, T, K, 2), "
                f"got {self.pairs.dtype} {tuple(self.pairs.shape)}"
            )
        if (self.pairs.ndim == 6) != (self.interval > 0):
            raise InputError(
                f"a sequence needs an interval [s], got {self.interval} for shape {tuple(self.pairs.shape)}"
            )
        for name, shape in (("scale", (count,)), ("position", (count, 3)), ("los", (count,))):
            if getattr(self, name).shape != shape:
                raise InputError(f"Recording.{name} must have shape {shape}, got {tuple(getattr(self, name).shape)}")

    @classmethod
    def build(cls, csi: Tensor, position: Tensor, los: Tensor | None = None, interval: float = 0.0) -> Recording:
        """Keep complex CSI.

        Args:
            csi: Shape (U, R, T, K), or (U, N, R, T, K) for sequences, complex.
            position: Shape (U, 3) [m].
            los: Shape (U,); by default unknown.
            interval: Time between snapshots [s].

        Raises:
            InputError: The CSI holds values that are not finite; the message says how many and where first.
        """
        bad = ~torch.isfinite(torch.view_as_real(csi)).flatten(1).all(1)
        if bad.any():
            first = int(bad.nonzero()[0])
            raise InputError(f"the CSI of {int(bad.sum())} of {len(csi)} links is not finite, first of link {first}")
        scale = csi.abs().flatten(1).amax(1).float()
        unit = csi / torch.where(scale > 0, scale, torch.ones_like(scale)).reshape(-1, *[1] * (csi.ndim - 1))
        if los is None:
            los = torch.full((len(csi),), -1)
        pairs = torch.view_as_real(unit.to(torch.complex64)).to(torch.float16).contiguous()
        return cls(pairs, scale, position.float().contiguous(), los.to(torch.int8), interval)

    def __len__(self) -> int:
        """Return the number of links or sequences `U`."""
        return len(self.pairs)

    @property
    def has_path(self) -> Tensor:
        """Links that have a channel at all, shape (U,), bool."""
        return self.scale > 0

    def csi(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Return complex CSI, shape (U, R, T, K) or (U, N, R, T, K), complex64."""
        pairs, scale = self.pairs[index].float(), self.scale[index]
        return torch.view_as_complex(pairs) * scale.reshape(-1, *[1] * (pairs.ndim - 2))

    def as_dict(self) -> dict[str, Tensor]:
        """Return the tensor fields by name."""
        return {name: getattr(self, name) for name in ("pairs", "scale", "position", "los")}
