"""`Recording`: measured CSI, or CSI of a channel model without paths."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datamodules.errors import InputError

#: tolerance of the snapshot interval, as a fraction of it, beyond which a snapshot is missing
_JITTER = 0.1
#: relative difference up to which two intervals are equal
_CLOCK = 0.02


@dataclass(frozen=True, slots=True)
class Recording:
    """CSI of `U` links, of `U` sequences of `N` snapshots, or of one device over time.

    A recording of one device, a *series*, has a link for each snapshot, in temporal order; `windows` divides it into
    sequences.

    Stored as half-precision pairs with a scale for each link, 4 bytes for each value, with an error of 5e-4 relative to
    the largest value. `Recording.build` converts complex CSI, and `csi` returns complex CSI.

    Attributes:
        pairs: Real and imaginary part over `scale`, shape (U, R, T, K, 2) or (U, N, R, T, K, 2), float16.
        scale: Largest magnitude of each link, shape (U,), or of each of its snapshots, shape (U, N).
        position: User position [m], shape (U, 3); at the first snapshot of a sequence. NaN where unknown.
        los: 1 line of sight, 0 none, -1 unknown, shape (U,), int8.
        interval: Time between the snapshots of a sequence or the links of a series [s]; otherwise 0.
        timestamps: Recording times of links or snapshots [s], shape (U,) or (U, N), float64; None if unknown.
        bs_shape: Rows and columns of the base-station array, None if unknown.
        ue_shape: Rows and columns of the user array, None if unknown.
        bandwidth: Bandwidth that the subcarriers fill [Hz], None if unknown.

    Raises:
        InputError: A field has the wrong shape or dtype.
    """

    pairs: Tensor
    scale: Tensor
    position: Tensor
    los: Tensor
    interval: float = 0.0
    timestamps: Tensor | None = None
    bs_shape: tuple[int, int] | None = None
    ue_shape: tuple[int, int] | None = None
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        count = len(self.pairs)
        if self.pairs.ndim not in (5, 6) or self.pairs.shape[-1] != 2 or self.pairs.dtype != torch.float16:
            raise InputError(
                "Recording.pairs must be float16 of shape (U, R, T, K, 2) or (U, N, R, T, K, 2), "
                f"got {self.pairs.dtype} {tuple(self.pairs.shape)}"
            )
        if self.pairs.ndim == 6 and not self.interval > 0:
            raise InputError(
                f"a sequence needs an interval [s], got {self.interval} for shape {tuple(self.pairs.shape)}"
            )
        each = (count,), tuple(self.pairs.shape[: self.pairs.ndim - 4])
        shapes = {"scale": each, "position": ((count, 3),), "los": each[:1], "timestamps": each}
        for name, allowed in shapes.items():
            value = getattr(self, name)
            if value is not None and value.shape not in allowed:
                raise InputError(f"Recording.{name} must have shape {allowed[0]}, got {tuple(value.shape)}")

    @classmethod
    def build(cls, csi: Tensor, position: Tensor, los: Tensor | None = None, interval: float = 0.0) -> Recording:
        """Build from complex CSI.

        Args:
            csi: Shape (U, R, T, K), or (U, N, R, T, K) for sequences, complex.
            position: Shape (U, 3) [m].
            los: Shape (U,); by default unknown.
            interval: Time between snapshots [s].

        Raises:
            InputError: The CSI has values that are not finite; the message has their number and the first link.
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
    def has_rays(self) -> bool:
        """False; see `Links`, as of the properties below."""
        return False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the CSI of a link, (R, T, K) or (N, R, T, K)."""
        return tuple(self.pairs.shape[1:-1])

    @property
    def has_path(self) -> Tensor:
        """Mask of the links with nonzero CSI, shape (U,), bool."""
        return self.scale.reshape(len(self), -1).amax(1) > 0

    @property
    def is_series(self) -> bool:
        """Whether the links are the snapshots of one device, in temporal order."""
        return self.pairs.ndim == 5 and self.interval > 0

    @property
    def power(self) -> Tensor:
        """Mean square of each link, shape (U,)."""
        # in parts, as recorded CSI may be larger than memory
        parts = torch.split(self.pairs, 256)
        squares = torch.cat([2 * part.flatten(self.scale.ndim).float().square().mean(-1) for part in parts])
        return (squares * self.scale.square()).reshape(len(self), -1).mean(1)

    @property
    def amplitude(self) -> Tensor:
        """Magnitude at the first antennas and subcarrier, shape (U,), or of each snapshot, (U, N)."""
        snapshots = torch.linalg.vector_norm(self.pairs[..., 0, 0, 0, :].float(), dim=-1)
        amplitude: Tensor = snapshots * self.scale.reshape(len(self), *[-1] * (snapshots.ndim - 1))
        return amplitude

    def rows(self, index: Tensor, num_paths: int) -> dict[str, Tensor]:
        """Return the CSI of chosen links (B,) as `recorded`, with `los` and `position`."""
        return {"recorded": self.csi(index), "los": self.los[index], "position": self.position[index]}

    def content(self) -> list[Tensor]:
        """Return the scale, and 256 values at four positions of each link."""
        values = self.pairs.reshape(len(self), -1)
        starts = torch.linspace(0, max(values.shape[1] - 64, 0), 4, dtype=torch.float64).long().tolist()
        return [self.scale, *(values[:, start : start + 64] for start in starts)]

    def csi(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Return complex CSI, shape (U, R, T, K) or (U, N, R, T, K), complex64."""
        pairs, scale = self.pairs[index].float(), self.scale[index]
        return torch.view_as_complex(pairs) * scale.reshape(*scale.shape, *[1] * (pairs.ndim - 1 - scale.ndim))

    def windows(self, size: int) -> Recording:
        """Divide a series into disjoint sequences of `size` snapshots.

        No sequence contains a gap (`regular`). Without gaps the sequences share the memory of the series.

        Args:
            size: Number N of snapshots, at least 1.

        Returns:
            Sequences (U, N).

        Raises:
            InputError: No `size` snapshots follow each other without a gap.
        """
        assert self.timestamps is not None, "a series has timestamps"
        starts = []
        ends = [*(~regular(self.timestamps.diff(), self.interval)).nonzero().flatten().add(1).tolist(), len(self)]
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            starts.append(torch.arange(begin, max(begin, end - size + 1), size))
        rows = torch.cat(starts)[:, None] + torch.arange(size)
        if not len(rows):
            raise InputError(
                f"the recording has no {size} snapshots in a row that are {self.interval:.4g} s apart: ask for "
                "fewer in data.sequence, or leave it out"
            )
        whole = torch.equal(rows.flatten(), torch.arange(rows.numel()))

        def cut(value: Tensor) -> Tensor:
            return value[: rows.numel()].reshape(*rows.shape, *value.shape[1:]) if whole else value[rows]

        first = rows[:, 0]
        return replace(
            self,
            pairs=cut(self.pairs),
            scale=cut(self.scale),
            timestamps=cut(self.timestamps),
            position=self.position[first],
            los=self.los[first],
        )

    def as_dict(self) -> dict[str, Tensor]:
        """Return the tensor fields by name."""
        names = ("pairs", "scale", "position", "los", "timestamps")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def regular(steps: Tensor, interval: float) -> Tensor:
    """Return a mask of the times between snapshots [s] that equal the interval within a tenth of it."""
    return (steps / interval - 1).abs() <= _JITTER


def same_interval(one: float, other: float) -> bool:
    """Return whether two intervals [s] are equal within the accuracy of a clock."""
    return abs(one / other - 1) <= _CLOCK
