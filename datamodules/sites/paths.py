"""`Paths`: multipath components of links, the output of sources and the input of synthesis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from datamodules.errors import InputError

#: shape (U and P are filled in when checked) and dtype of every field
_LAYOUT: dict[str, tuple[tuple[str | int, ...], torch.dtype]] = {
    "gain": (("U", "P"), torch.complex64),
    "delay": (("U", "P"), torch.float32),
    "aod": (("U", "P", 2), torch.float32),
    "aoa": (("U", "P", 2), torch.float32),
    "mask": (("U", "P"), torch.bool),
    "position": (("U", 3), torch.float32),
    "los": (("U",), torch.int8),
    "bounces": (("U", "P"), torch.uint8),
    "polarization": (("U", "P", 2, 2), torch.complex64),
}


@dataclass(frozen=True, slots=True)
class Paths:
    """Padded multipath components of `U` links with up to `P` paths each, strongest path first.

    SI units and radians. Shapes and dtypes are checked. Sources call `Paths.build`, which also cleans, sorts and
    truncates.

    Attributes:
        gain: Linear amplitude times e^{j phase} at the carrier, the propagation phase e^{-j 2 pi f_c delay} included,
            shape (U, P), complex64. |gain|^2 is the power [W] received for 1 W sent between isotropic elements.
        delay: Absolute propagation delay [s], shape (U, P).
        aod: Direction of departure at the base station, (azimuth, zenith) [rad], global frame, shape (U, P, 2).
        aoa: Direction the wave arrives from at the user, (azimuth, zenith) [rad], global frame, shape (U, P, 2).
        mask: True on paths that exist, False on padding, shape (U, P), bool.
        position: User position [m], shape (U, 3).
        los: 1 line of sight, 0 none, -1 no path at all, shape (U,), int8.
        bounces: Number of interactions of each path, shape (U, P), uint8.
        polarization: Change of polarisation, field that arrives along (zenith, azimuth) for field that departs along
            (zenith, azimuth), relative to `gain`, so that the first entry is 1; shape (U, P, 2, 2), complex64. None
            where a source has the vertical polarisation alone.

    Raises:
        InputError: A field has the wrong shape or dtype.
    """

    gain: Tensor
    delay: Tensor
    aod: Tensor
    aoa: Tensor
    mask: Tensor
    position: Tensor
    los: Tensor
    bounces: Tensor
    polarization: Tensor | None = None

    def __post_init__(self) -> None:
        if self.gain.ndim != 2:
            raise InputError(f"Paths.gain must have shape (U, P), got {tuple(self.gain.shape)}")
        sizes: dict[str | int, int] = {"U": self.gain.shape[0], "P": self.gain.shape[1]}
        for name, (axes, dtype) in _LAYOUT.items():
            value: Tensor | None = getattr(self, name)
            if value is None and name == "polarization":
                continue
            assert value is not None
            shape = tuple(sizes.get(axis, axis) for axis in axes)
            if value.shape != shape or value.dtype != dtype:
                raise InputError(
                    f"Paths.{name} must be {dtype} of shape {shape}, got {value.dtype} of shape {tuple(value.shape)}"
                )

    @classmethod
    def build(
        cls,
        *,
        gain: Tensor,
        delay: Tensor,
        aod: Tensor,
        aoa: Tensor,
        position: Tensor,
        bounces: Tensor,
        los: Tensor | None = None,
        polarization: Tensor | None = None,
        max_paths: int = 20,
    ) -> Paths:
        """Build from raw paths: remove those not finite or without power, sort by power, keep the strongest.

        Args:
            gain: Complex path gains, shape (U, P); zero or NaN marks a path that does not exist.
            delay: Delays [s], shape (U, P).
            aod: Departure (azimuth, zenith) [rad], shape (U, P, 2).
            aoa: Arrival (azimuth, zenith) [rad], shape (U, P, 2).
            position: User positions [m], shape (U, 3).
            bounces: Number of interactions, shape (U, P).
            los: Line-of-sight flag of every user, shape (U,); by default set if a path, before truncation, has no
                interaction.
            polarization: Change of polarisation, shape (U, P, 2, 2).
            max_paths: Largest number of paths of a link.

        Raises:
            InputError: A user position is not finite, or the shapes are inconsistent.
        """
        if not torch.isfinite(position).all():
            raise InputError("user positions must be finite")
        mask = torch.isfinite(gain.abs()) & (gain.abs() > 0) & torch.isfinite(delay)
        mask &= torch.isfinite(aod).all(-1) & torch.isfinite(aoa).all(-1)
        if polarization is not None:
            mask &= torch.isfinite(polarization).flatten(2).all(-1)
        if los is None:
            los = (mask & (bounces == 0)).any(1)
        los = torch.where(mask.any(1), los.to(torch.int8), torch.tensor(-1, dtype=torch.int8))

        def clean(value: Tensor) -> Tensor:
            keep = mask.reshape(*mask.shape, *[1] * (value.ndim - 2))
            return torch.where(keep, value, torch.zeros((), dtype=value.dtype))

        gain = clean(gain)
        # the strongest first; the earlier first where two are equally strong, so that a repeat gives the same bytes
        order = torch.sort(gain.abs(), dim=1, descending=True, stable=True).indices[:, :max_paths]

        def pick(value: Tensor, dtype: torch.dtype) -> Tensor:
            index = order.reshape(*order.shape, *[1] * (value.ndim - 2)).expand(*order.shape, *value.shape[2:])
            return clean(value).gather(1, index).to(dtype).contiguous()

        return cls(
            gain=pick(gain, torch.complex64),
            delay=pick(delay, torch.float32),
            aod=pick(aod, torch.float32),
            aoa=pick(aoa, torch.float32),
            mask=mask.gather(1, order),
            position=position.to(torch.float32).contiguous(),
            los=los,
            bounces=pick(bounces, torch.uint8),
            polarization=None if polarization is None else pick(polarization, torch.complex64),
        )

    @classmethod
    def cat(cls, parts: Sequence[Paths]) -> Paths:
        """Concatenate links along `U`, padded to the largest `P`; with `polarization` if all have it."""
        num_paths = max(part.num_paths for part in parts)
        return cls(**join_fields([part.pad(num_paths).as_dict() for part in parts]))

    @classmethod
    def from_dict(cls, tensors: dict[str, Tensor]) -> Paths:
        """Build from a dict, which may have further entries, and no `polarization`."""
        return cls(**{name: tensors[name] for name in _LAYOUT if name in tensors or name != "polarization"})

    def as_dict(self) -> dict[str, Tensor]:
        """Return the fields by name, without copying; `polarization` only if there is one."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def _each(self, change: Callable[[Tensor, bool], Tensor]) -> Paths:
        """Return the links with every field changed by a function of it and of whether it has the axis P."""
        return Paths(**{name: change(value, "P" in _LAYOUT[name][0]) for name, value in self.as_dict().items()})

    def pad(self, num_paths: int) -> Paths:
        """Return the links padded to `num_paths` paths."""
        extra = num_paths - self.num_paths
        if extra <= 0:
            return self

        def grow(value: Tensor, per_path: bool) -> Tensor:
            if not per_path:
                return value
            return torch.cat([value, value.new_zeros(value.shape[0], extra, *value.shape[2:])], dim=1)

        return self._each(grow)

    def narrow(self, num_paths: int) -> Paths:
        """Return the links with their strongest `num_paths` paths, as views."""
        return self._each(lambda value, per_path: value[:, :num_paths] if per_path else value)

    def __len__(self) -> int:
        """Return the number of links `U`."""
        return self.gain.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Paths:
        """Select links."""
        return self._each(lambda value, _: value[index])

    @property
    def num_paths(self) -> int:
        """Size of the padded path axis `P`."""
        return self.gain.shape[1]

    @property
    def has_rays(self) -> bool:
        """True; see `Links`, as of the properties below."""
        return True

    @property
    def shape(self) -> None:
        """None, since paths have no fixed CSI shape."""

    @property
    def timestamps(self) -> None:
        """None, since paths have no recording time."""

    @property
    def has_path(self) -> Tensor:
        """Mask of the links with at least one path, shape (U,), bool."""
        return self.los >= 0

    @property
    def power(self) -> Tensor:
        """Sum of the path powers [W for 1 W sent], shape (U,)."""
        return self.gain.abs().square().sum(1)

    @property
    def delay_spread(self) -> Tensor:
        """Standard deviation of the delays [s], weighted by power, shape (U,), float64; NaN without paths."""
        weight, delay = self.gain.abs().double().square(), self.delay.double()
        weight = weight / weight.sum(1, keepdim=True)
        mean = (weight * delay).sum(1, keepdim=True)
        return (weight * (delay - mean).square()).sum(1).sqrt()

    @property
    def amplitude(self) -> Tensor:
        """Magnitude of the channel at the carrier between the first antennas, shape (U,)."""
        return self.gain.sum(1).abs()

    def rows(self, index: Tensor, num_paths: int) -> dict[str, Tensor]:
        """Return the fields of selected links (B,), padded to `num_paths`."""
        return self[index].pad(num_paths).as_dict()

    def content(self) -> list[Tensor]:
        """Return gains as real pairs (U, P, 2), and delays (U, P)."""
        return [torch.view_as_real(self.gain), self.delay]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Paths:
        """Move every field to a device."""
        return self._each(lambda value, _: value.to(device, non_blocking=non_blocking))


def join_fields(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the fields of links that all parts have; sources may differ in whether they have `polarization`."""
    common = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: torch.cat([part[name] for part in parts]) for name in common}
