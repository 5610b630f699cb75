"""Gains of paths between polarised elements (TR 38.901 clause 7.3.2 and eq 7.5-22)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datamodules.channel.arrays import Array, element_gain, rotation_matrix, unit_vector
from datamodules.errors import InputError
from datamodules.sites.paths import Paths


def is_polarized(*arrays: Array) -> bool:
    """Return whether any array has two polarisations."""
    return any(array.num_polarizations > 1 for array in arrays)


def polarized_gain(paths: Paths, bs: Array, ue: Array, mount: Tensor | None = None) -> Tensor:
    r"""Return the gain of every path between every pair of polarisations, its element patterns included.

    .. math:: g_p\, F_{ue}^T M_p F_{bs}

    Args:
        paths: Paths of U links with their `polarization`.
        bs: Array of the base station.
        ue: Array of the user.
        mount: As in `synthesize`.

    Returns:
        Shape (polarisations of the user, polarisations of the base station, U, P), complex64.

    Raises:
        InputError: The paths have no `polarization`.
    """
    if paths.polarization is None:
        raise InputError(
            "an array has two polarisations, but the paths hold the vertical one alone: take a source with "
            "`polarization: dual`, such as CDL, or set polarization to single in data.bs and data.ue"
        )
    received, sent = field(paths.aoa, ue), field(paths.aod, bs, mount)
    matrix = paths.polarization
    return torch.einsum("upac,upcd,upbd->abup", received.to(matrix), matrix, sent.to(matrix)) * paths.gain


def field(angles: Tensor, array: Array, mount: Tensor | None = None) -> Tensor:
    """Return the field of the elements of each polarisation, in the global frame (eq 7.1-11 and 7.3-4, model 2).

    Args:
        angles: (azimuth, zenith) [rad], global frame, shape (U, P, 2).
        array: The array.
        mount: Rotation of the frame of each device, shape (U, 3, 3); by default none.

    Returns:
        Components along zenith and azimuth, shape (U, P, polarisations, 2), float32.
    """
    frame = rotation_matrix(array.orientation).to(angles.device)
    frame = frame if mount is None else (mount.double() @ frame).unsqueeze(1)
    own = (unit_vector(angles.double()).unsqueeze(-2) @ frame).squeeze(-2)
    azimuth, zenith = torch.atan2(own[..., 1], own[..., 0]), torch.acos(own[..., 2].clamp(-1, 1))
    local = _tangents(torch.stack([azimuth, zenith], -1)) @ frame.mT
    turn = local @ _tangents(angles.double()).mT  # [own axis, global axis]
    slant = torch.tensor(array.slants, dtype=torch.float64, device=angles.device)
    components = torch.stack([slant.cos(), slant.sin()], -1) @ turn
    return (element_gain(own, array.pattern)[..., None, None] * components).float()


def _tangents(angles: Tensor) -> Tensor:
    """Return the unit vectors of growing zenith and of growing azimuth, shape (..., 2, 3), at (..., 2) [rad]."""
    azimuth, zenith = angles.unbind(-1)
    down = unit_vector(torch.stack([azimuth, zenith + math.pi / 2], -1))
    across = torch.stack([-azimuth.sin(), azimuth.cos(), torch.zeros_like(azimuth)], -1)
    return torch.stack([down, across], -2)
