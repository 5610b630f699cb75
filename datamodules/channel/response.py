"""Responses of arrays and subcarriers to paths: the two factors of the sum over paths.

Both have phases that are linear in the element and subcarrier index, so each is an outer product of a few short vectors
(16 x 16 for 256 subcarriers), and sines and cosines are computed of these alone. Phases are computed in float64 and
reduced to one period, so that long delays lose no precision.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from datamodules.channel.arrays import (
    Array,
    Reference,
    array_frame,
    element_field,
    element_gain,
    first_position,
    is_polarized,
    unit_vector,
)
from datamodules.channel.ofdm import OFDM
from datamodules.errors import InputError
from datamodules.sites.paths import Paths


def array_response(
    angles: Tensor, array: Array, mount: Tensor | None = None, reference: Reference = "corner"
) -> Tensor:
    """Return the array response to directions, of the elements of one polarisation, complex64.

    Args:
        angles: (azimuth, zenith) [rad], global frame, shape (U, P, 2).
        array: The array.
        mount: Rotation of the frame of each device, shape (U, 3, 3); by default none.
        reference: Phase reference.

    Returns:
        Shape (U, P, rows * cols).
    """
    direction = _local(angles, array, mount)
    multipliers, lengths = _array_runs(array, reference, angles.device)
    gain = angles.new_ones(angles.shape[:-1])
    if direction is not None and not array.isotropic:
        gain = element_gain(direction, array.pattern)
    steps = _steps(angles, array, direction)
    runs = _phasors(torch.stack(steps).flatten(1).double(), multipliers, lengths) if steps else []
    response = _outer([gain.to(torch.complex64).reshape(1, -1), *runs])
    return response.T.reshape(*angles.shape[:-1], array.rows * array.cols)


def link_factors(
    paths: Paths, bs: Array, ue: Array, ofdm: OFDM, mount: Tensor | None = None, reference: Reference = "corner"
) -> tuple[Tensor, Tensor]:
    """Return the space factor (R*T, U, P), including gains, and the frequency factor (K, U, P), both complex64."""
    multipliers, lengths, num_space = _link_runs(bs, ue, ofdm, reference, paths.delay.device)
    departure, arrival = _local(paths.aod, bs, mount), _local(paths.aoa, ue)
    steps = [*_steps(paths.aoa, ue, arrival), *_steps(paths.aod, bs, departure), paths.delay]
    runs = _phasors(torch.stack(steps).flatten(1).double(), multipliers, lengths)
    tones = _outer(runs[num_space:])[: ofdm.num_subcarriers]
    if is_polarized(bs, ue):
        gain = polarized_gain(paths, bs, ue, mount)
        places = _outer([torch.ones_like(paths.gain).reshape(1, -1), *runs[:num_space]])
        places = places.reshape(1, ue.rows * ue.cols, 1, bs.rows * bs.cols, *paths.gain.shape)
        space = gain[:, None, :, None] * places
    else:
        gain = paths.gain
        for array, direction in ((bs, departure), (ue, arrival)):
            if direction is not None and not array.isotropic:
                gain = gain * element_gain(direction, array.pattern)
        space = _outer([gain.reshape(1, -1), *runs[:num_space]])
    return space.reshape(-1, *paths.gain.shape), tones.reshape(-1, *paths.gain.shape)


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
    received, sent = element_field(paths.aoa, ue), element_field(paths.aod, bs, mount)
    matrix = paths.polarization
    return torch.einsum("upac,upcd,upbd->abup", received.to(matrix), matrix, sent.to(matrix)) * paths.gain


def _local(angles: Tensor, array: Array, mount: Tensor | None = None) -> Tensor | None:
    """Return unit vectors (..., 3) in the frame of the array, or None if it is isotropic and not rotated."""
    if mount is None and not any(array.orientation):
        return None if array.isotropic else unit_vector(angles)
    direction = unit_vector(angles.double())
    if mount is not None:
        direction = direction @ mount.to(direction)
    if any(array.orientation):
        direction = direction @ array_frame(array, direction.device)
    return direction.float()


def _steps(angles: Tensor, array: Array, direction: Tensor | None) -> list[Tensor]:
    """Return the direction cosines (...) along the axes of more than one element: z for rows, y for columns."""
    steps = []
    if array.rows > 1:
        steps.append(angles[..., 1].cos() if direction is None else direction[..., 2])
    if array.cols > 1:
        sine = angles.sin()
        steps.append(sine[..., 0] * sine[..., 1] if direction is None else direction[..., 1])
    return steps


def unit_phasor(turns: Tensor) -> Tensor:
    """Return e^{+j 2 pi turns} as complex64; `turns` is float64 and is overwritten."""
    phase = turns.frac_().float().mul_(2 * math.pi)
    return torch.complex(phase.cos(), phase.sin())


def _phasors(steps: Tensor, multipliers: Tensor, lengths: tuple[int, ...]) -> list[Tensor]:
    """Return phasors e^{j 2 pi multipliers . steps} of steps (axes, M), split into runs (length, M)."""
    return list(unit_phasor(multipliers @ steps).split_with_sizes(lengths))


def _outer(runs: list[Tensor]) -> Tensor:
    """Return the outer product (a * b * ..., M) of runs (a, M), (b, M), ..., the last index fastest."""
    product = runs[0]
    for run in runs[1:]:
        product = (product[:, None] * run).flatten(0, 1)
    return product


def _split(length: int, step: float, offset: float, exact: bool = True) -> list[list[float]]:
    """Split offset + step * (0 .. length - 1) into a coarse and a fine run whose pairwise sums are that progression.

    Unless exact, the sums may go on after the end of the progression, and are faster to compute.
    """
    if length <= 8:
        return [[offset + step * i for i in range(length)]]
    fine = 1 << (math.ceil(math.log2(length)) // 2)
    coarse = math.ceil(length / fine)
    if coarse * fine != length and exact:  # the largest divisor up to the root
        fine = max(divisor for divisor in range(1, math.isqrt(length) + 1) if length % divisor == 0)
        coarse = length // fine
    return [[offset + step * fine * i for i in range(coarse)], [step * i for i in range(fine)]]


def _array_axes(array: Array, reference: Reference) -> list[list[list[float]]]:
    """Return the runs of element positions [wavelengths] for each axis of more than one element."""
    axes = [(n, d) for n, d in zip((array.rows, array.cols), array.spacing, strict=True) if n > 1]
    return [_split(n, d, first_position(n, d, reference)) for n, d in axes]


def _stack(axes: list[list[list[float]]]) -> tuple[Tensor, tuple[int, ...]]:
    """Return the multiplier matrix (total length, axes) and the length of every run."""
    matrix = [
        [value if column == axis else 0.0 for column in range(len(axes))]
        for axis, runs in enumerate(axes)
        for run in runs
        for value in run
    ]
    lengths = tuple(len(run) for runs in axes for run in runs)
    return torch.tensor(matrix, dtype=torch.float64).reshape(len(matrix), len(axes)), lengths


@lru_cache(maxsize=64)
def _array_runs(array: Array, reference: Reference, device: torch.device) -> tuple[Tensor, tuple[int, ...]]:
    """Return multipliers and run lengths of the antennas."""
    with torch.inference_mode(False):  # see `_link_runs`
        matrix, lengths = _stack(_array_axes(array, reference))
        return matrix.to(device), lengths


@lru_cache(maxsize=64)
def _link_runs(
    bs: Array, ue: Array, ofdm: OFDM, reference: Reference, device: torch.device
) -> tuple[Tensor, tuple[int, ...], int]:
    """Return multipliers, run lengths, and the number of runs of antennas, before those of subcarriers."""
    space = _array_axes(ue, reference) + _array_axes(bs, reference)
    with torch.inference_mode(False):  # else no gradient could pass through what a call without gradients has cached
        matrix, lengths = _stack([*space, _split(ofdm.num_subcarriers, -ofdm.spacing, 0.0, exact=False)])
        return matrix.to(device), lengths, sum(len(runs) for runs in space)
