"""Antenna arrays: element positions, orientation and patterns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from datamodules.channel.transforms import constant
from datamodules.errors import InputError, check_choice, check_whole, finite_numbers

Pattern = Literal["isotropic", "dipole", "tr38901"]
Polarization = Literal["single", "cross", "vh"]
#: phase reference of an array: the corner element (DeepMIMO) or the centre (Sionna)
Reference = Literal["corner", "center"]


@dataclass(frozen=True)
class Array:
    """A uniform rectangular array in its local y-z plane, boresight +x.

    Element (row z, column y) has index `row * cols + col`, as in DeepMIMO 4; the corner element 0 lies at the device
    position and is the phase reference. With two polarisations there are two elements at each position, those of the
    second polarisation numbered after all of the first.

    Args:
        rows: Number of elements along local z.
        cols: Number of elements along local y; `rows=1` is a horizontal linear array.
        spacing: Distance of neighbouring (rows, columns) [wavelengths].
        pattern: `isotropic`; `dipole`, a half-wave dipole along local z; or `tr38901`, the element of 3GPP TR 38.901
            Table 7.3-1 with a gain of 8 dBi.
        orientation: (alpha, beta, gamma) [rad]: bearing about z, downtilt about y, slant about x, applied in the order
            x, y, z (3GPP TR 38.901 clause 7.1.3).
        polarization: `single`, vertical; or of two slants, `cross`, -45 and +45 degrees, or `vh`, vertical and
            horizontal, for which paths need their `polarization`. Slants turn with the orientation; the vertical
            polarisation of links between single ones does not.

    Raises:
        InputError: Fewer than one row or column, an unknown pattern or polarisation, or a spacing or orientation that
            is not two or three finite numbers.
    """

    rows: int = 1
    cols: int = 1
    spacing: tuple[float, float] = (0.5, 0.5)
    pattern: Pattern = "isotropic"
    orientation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    polarization: Polarization = "single"

    def __post_init__(self) -> None:
        check_whole("Array", rows=self.rows, cols=self.cols)
        if self.pattern not in _GAINS:
            raise InputError(f"unknown antenna pattern {self.pattern!r}: choose one of {', '.join(_GAINS)}")
        if self.polarization not in _SLANTS:
            raise InputError(f"unknown polarization {self.polarization!r}: choose one of {', '.join(_SLANTS)}")
        # converted to tuples, since arrays are keys of caches
        angles = finite_numbers("Array: orientation", self.orientation, "alpha", "beta", "gamma")
        object.__setattr__(self, "spacing", finite_numbers("Array: spacing", self.spacing, "of rows", "of columns"))
        object.__setattr__(self, "orientation", angles)

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return self.num_polarizations * self.rows * self.cols

    @property
    def num_polarizations(self) -> int:
        """Number of polarisations, 1 or 2."""
        return len(self.slants)

    @property
    def slants(self) -> tuple[float, ...]:
        """Angle from the vertical of each polarisation [rad]."""
        return _SLANTS[self.polarization]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, those of a second polarisation after the first, and columns."""
        return (self.num_polarizations * self.rows, self.cols)

    @property
    def is_line(self) -> bool:
        """Whether the array is linear and of one polarisation, or a single element."""
        return min(self.rows, self.cols) == 1 and self.num_polarizations == 1

    @property
    def isotropic(self) -> bool:
        """Whether all elements are isotropic."""
        return self.pattern == "isotropic"


def first_position(count: int, spacing: float, reference: Reference) -> float:
    """Return the position of the first of several elements along an axis from the phase reference [wavelengths].

    Raises:
        InputError: The reference is unknown.
    """
    check_choice("reference", reference, Reference)
    return -spacing * (count - 1) / 2 if reference == "center" else 0.0


def rotation_matrix(orientation: tuple[float, float, float] | Tensor) -> Tensor:
    """Return R = Rz(alpha) Ry(beta) Rx(gamma), local to global, shape (..., 3, 3), float64 (TR 38.901 eq 7.1-4).

    Args:
        orientation: (alpha, beta, gamma) [rad], shape (..., 3).
    """
    angles = torch.as_tensor(orientation, dtype=torch.float64)
    (ca, cb, cg), (sa, sb, sg) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = (
        torch.stack((ca * cb, ca * sb * sg - sa * cg, ca * sb * cg + sa * sg), -1),
        torch.stack((sa * cb, sa * sb * sg + ca * cg, sa * sb * cg - ca * sg), -1),
        torch.stack((-sb, cb * sg, cb * cg), -1),
    )
    return torch.stack(rows, -2)


@lru_cache(maxsize=64)
def array_frame(array: Array, device: torch.device) -> Tensor:
    """Return the rotation of an array in the frame of its device, local to global, (3, 3), float64."""
    with torch.inference_mode(False):  # see `constant`
        return rotation_matrix(array.orientation).to(device)


def unit_vector(angles: Tensor) -> Tensor:
    """Return unit vectors (..., 3) of directions (azimuth, zenith) [rad] of shape (..., 2)."""
    azimuth, zenith = angles.unbind(-1)
    sine = zenith.sin()
    return torch.stack((sine * azimuth.cos(), sine * azimuth.sin(), zenith.cos()), -1)


def element_gain(direction: Tensor, pattern: Pattern) -> Tensor:
    """Return the field gain (amplitude) of one element.

    Args:
        direction: Unit vectors in the array's local frame, shape (..., 3).
        pattern: Element pattern.

    Returns:
        Linear amplitude relative to an isotropic element, shape (...).
    """
    return _GAINS[pattern](direction)


def element_field(angles: Tensor, array: Array, mount: Tensor | None = None) -> Tensor:
    """Return the field of the elements of each polarisation, in the global frame (TR 38.901 eq 7.1-11, 7.3-4: model 2).

    Args:
        angles: (azimuth, zenith) [rad], global frame, shape (U, P, 2).
        array: The array.
        mount: Rotation of the frame of each device, shape (U, 3, 3); by default none.

    Returns:
        Components along zenith and azimuth, shape (U, P, polarisations, 2), float32.
    """
    frame = array_frame(array, angles.device)
    frame = frame if mount is None else (mount.double() @ frame).unsqueeze(1)
    own = (unit_vector(angles.double()).unsqueeze(-2) @ frame).squeeze(-2)
    azimuth, zenith = torch.atan2(own[..., 1], own[..., 0]), torch.acos(own[..., 2].clamp(-1, 1))
    local = _tangents(torch.stack([azimuth, zenith], -1)) @ frame.mT
    turn = local @ _tangents(angles.double()).mT  # [own axis, global axis]
    slant = constant(array.slants, angles.device, torch.float64)
    components = torch.stack([slant.cos(), slant.sin()], -1) @ turn
    return (element_gain(own, array.pattern)[..., None, None] * components).float()


def _tangents(angles: Tensor) -> Tensor:
    """Return the unit vectors of growing zenith and of growing azimuth, shape (..., 2, 3), at (..., 2) [rad]."""
    azimuth, zenith = angles.unbind(-1)
    down = unit_vector(torch.stack([azimuth, zenith + math.pi / 2], -1))
    across = torch.stack([-azimuth.sin(), azimuth.cos(), torch.zeros_like(azimuth)], -1)
    return torch.stack([down, across], -2)


def is_polarized(*arrays: Array) -> bool:
    """Return whether any array has two polarisations."""
    return any(array.num_polarizations > 1 for array in arrays)


def _isotropic(direction: Tensor) -> Tensor:
    return torch.ones_like(direction[..., 0])


def _dipole(direction: Tensor) -> Tensor:
    cosine = direction[..., 2].clamp(-1, 1)
    # the limit at the poles is zero; the clamp keeps the quotient and its gradient finite
    sine = (1 - cosine.square()).clamp_min(1e-6).sqrt()
    return math.sqrt(1.643) * torch.cos(math.pi / 2 * cosine) / sine


def _tr38901(direction: Tensor) -> Tensor:
    x, y, z = direction.unbind(-1)
    azimuth, zenith = torch.rad2deg(torch.atan2(y, x)), torch.rad2deg(torch.acos(z.clamp(-1, 1)))
    vertical = (12 * ((zenith - 90) / 65).square()).clamp_max(30)
    horizontal = (12 * (azimuth / 65).square()).clamp_max(30)
    return torch.pow(10.0, (8 - (vertical + horizontal).clamp_max(30)) / 20)


_SLANTS: dict[str, tuple[float, ...]] = {
    "single": (0.0,),
    "cross": (-math.pi / 4, math.pi / 4),
    "vh": (0.0, math.pi / 2),
}
_GAINS = {"isotropic": _isotropic, "dipole": _dipole, "tr38901": _tr38901}
