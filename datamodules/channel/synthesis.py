"""From rays to CSI: the channel of an array, a bandwidth and a speed, as pure tensor math.

The sum over paths is one batched matrix product. Its two factors are phasors that progress uniformly over antennas
and subcarriers, so each is an outer product of a few short runs (16 x 16 for 256 subcarriers), and only the runs need
a sine and a cosine. Their phases are formed in float64 and reduced to one turn before that, so a delay of many periods
costs no precision.

Small batches are bound by the number of these operations. So on the CPU, where no gradient is wanted and the elements
are isotropic, `datamodules.channel.synthesis_cpu` writes the same two factors in one compiled call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from datamodules.channel.arrays import Array, element_gain, rotation_matrix, unit_vector
from datamodules.errors import check_finite, check_positive, check_whole
from datamodules.sites.paths import Paths

#: speed of light [m/s]
SPEED_OF_LIGHT = 299_792_458.0
#: links synthesised at once, so that the factors stay in the processor's cache
_CHUNK = 128

Reference = Literal["corner", "center"]


@dataclass(frozen=True)
class OFDM:
    """A grid of subcarriers: k * bandwidth / num_subcarriers above the carrier, k = 0 .. num_subcarriers - 1.

    Args:
        num_subcarriers: Number of subcarriers.
        bandwidth: Bandwidth [Hz].

    Raises:
        InputError: The subcarriers are not a whole number of 1 or more, or the bandwidth is not positive and finite.
    """

    num_subcarriers: int = 64
    bandwidth: float = 10e6

    def __post_init__(self) -> None:
        check_whole("OFDM", num_subcarriers=self.num_subcarriers)
        check_finite("OFDM", bandwidth=self.bandwidth)
        check_positive("OFDM", bandwidth=self.bandwidth)

    @property
    def spacing(self) -> float:
        """Subcarrier spacing [Hz]."""
        return self.bandwidth / self.num_subcarriers


def synthesize(
    paths: Paths,
    bs: Array,
    ue: Array,
    ofdm: OFDM,
    *,
    mount: Tensor | None = None,
    velocity: Tensor | None = None,
    times: Tensor | None = None,
    wavelength: float | Tensor | None = None,
    reference: Reference = "corner",
    out: Tensor | None = None,
) -> Tensor:
    r"""Sum the paths of every link into its CSI.

    .. math:: h[r, t, k] = \sum_p g_p\, a_{ue}[r](aoa_p)\, a_{bs}[t](aod_p)\, e^{-j 2 \pi k (B / K) \tau_p}

    with a of an element at position q [wavelengths] being e^{+j 2 pi q . u} times its pattern. Equals DeepMIMO 4's
    `compute_channels` times sqrt(K). With `times`, path p also turns by e^{+j 2 pi f_p t}, f_p = velocity . u_aoa /
    wavelength (3GPP TR 38.901 eq 7.5-22).

    Args:
        paths: Rays of U links.
        bs: Array of the base station.
        ue: Array of the user.
        ofdm: Subcarrier grid.
        mount: Rotation of each base station's frame, local to global, shape (U, 3, 3); `bs.orientation` turns the array
            within that frame. By default the global frame.
        velocity: User velocity [m/s], shape (3,) or (U, 3); needs `times` and `wavelength`.
        times: Snapshot instants [s], shape (N,); adds the axis N.
        wavelength: Carrier wavelength [m], a number or of shape (U,).
        reference: Phase reference of both arrays: the corner element (DeepMIMO) or the centre (Sionna).
        out: Result of an earlier call of the same shape, to be overwritten; not with autograd.

    Returns:
        CSI, shape (U, R, T, K), or (U, N, R, T, K) with `times`, complex64. A link with no path is zero.

    Raises:
        ValueError: `velocity`, `times` and `wavelength` do not come together, or `out` has the wrong shape.
    """
    given = [value is not None for value in (velocity, times, wavelength)]
    if any(given) and not all(given):
        raise ValueError("velocity, times and wavelength are given together or not at all")
    num_times = 1 if times is None else len(times)
    rows = num_times * ue.num_elements * bs.num_elements
    num_links, num_tones = len(paths), ofdm.num_subcarriers
    shape: tuple[int, ...] = (num_links, ue.num_elements, bs.num_elements, num_tones)
    if times is not None:
        shape = (num_links, num_times, *shape[1:])
    if out is not None and (out.shape != shape or out.dtype != torch.complex64 or not out.is_contiguous()):
        raise ValueError(f"out must be contiguous complex64 of shape {shape}, got {out.dtype} {tuple(out.shape)}")
    if velocity is not None:
        velocity = velocity.to(paths.gain.device).expand(num_links, 3)

    needs_grad = torch.is_grad_enabled() and any(
        value.requires_grad for value in (paths.gain, paths.delay, paths.aod, paths.aoa)
    )
    fused = not needs_grad and _is_fusable(paths, bs, ue)

    def product(start: int, stop: int, into: Tensor | None) -> Tensor:
        part = paths if stop - start == num_links else paths[start:stop]
        frames = None if mount is None else mount[start:stop]
        if fused:
            from datamodules.channel.synthesis_cpu import (  # here: the compiler takes time to import
                batched_product,
                sum_paths,
            )
            from datamodules.channel.synthesis_cpu import link_factors as fused_factors

            if into is not None and velocity is None and batched_product() is not None:
                sum_paths(part, bs, ue, ofdm, frames, reference, into)
                return into
            space, tones = fused_factors(part, bs, ue, ofdm, frames, reference)
        else:
            part = _filled(part)
            space, tones = link_factors(part, bs, ue, ofdm, frames, reference)
        if velocity is not None and times is not None and wavelength is not None:
            length = wavelength[start:stop, None] if isinstance(wavelength, Tensor) else wavelength
            space = _with_doppler(space, part, velocity[start:stop], times, length)
        return torch.bmm(space.permute(1, 0, 2), tones.permute(1, 2, 0), out=into)

    if needs_grad:
        return product(0, num_links, None).reshape(shape)
    result = torch.empty(shape, dtype=torch.complex64, device=paths.gain.device) if out is None else out
    flat = result.view(num_links, rows, num_tones)
    with torch.inference_mode():  # a third less overhead an operation; the result itself is an ordinary tensor
        for start in range(0, num_links, _CHUNK):
            stop = min(start + _CHUNK, num_links)
            product(start, stop, flat if stop - start == num_links else flat[start:stop])
    return result


def array_response(
    angles: Tensor, array: Array, mount: Tensor | None = None, reference: Reference = "corner"
) -> Tensor:
    """Return the response of every element to directions, complex64.

    Args:
        angles: (azimuth, zenith) [rad], global frame, shape (U, P, 2).
        array: The array.
        mount: Rotation of each device's frame, shape (U, 3, 3).
        reference: Phase reference.

    Returns:
        Shape (U, P, elements).
    """
    direction = _local(angles, array, mount)
    multipliers, lengths = _stack(_array_axes(array, reference))
    gain = angles.new_ones(angles.shape[:-1])
    if direction is not None and not array.isotropic:
        gain = element_gain(direction, array.pattern)
    steps = _steps(angles, array, direction)
    runs = _phasors(torch.stack(steps).flatten(1).double(), multipliers, lengths) if steps else []
    response = _outer([gain.to(torch.complex64).reshape(1, -1), *runs])
    return response.T.reshape(*angles.shape[:-1], array.num_elements)


def link_factors(
    paths: Paths, bs: Array, ue: Array, ofdm: OFDM, mount: Tensor | None = None, reference: Reference = "corner"
) -> tuple[Tensor, Tensor]:
    """Return the factors of the product over paths: (R*T, U, P), the gain in it, and (K, U, P), both complex64."""
    multipliers, lengths, num_space = _link_runs(bs, ue, ofdm, reference)
    departure, arrival = _local(paths.aod, bs, mount), _local(paths.aoa, ue)
    steps = [*_steps(paths.aoa, ue, arrival), *_steps(paths.aod, bs, departure), paths.delay]
    runs = _phasors(torch.stack(steps).flatten(1).double(), multipliers, lengths)
    gain = paths.gain
    for array, direction in ((bs, departure), (ue, arrival)):
        if direction is not None and not array.isotropic:
            gain = gain * element_gain(direction, array.pattern)
    space = _outer([gain.reshape(1, -1), *runs[:num_space]])
    tones = _outer(runs[num_space:])[: ofdm.num_subcarriers]
    return space.reshape(-1, *paths.gain.shape), tones.reshape(-1, *paths.gain.shape)


def _is_fusable(paths: Paths, bs: Array, ue: Array) -> bool:
    """Say whether `synthesis_cpu` covers the case; a graph that is being compiled is better left whole."""
    plain = bs.isotropic and ue.isotropic and paths.gain.device.type == "cpu"
    return plain and not torch.compiler.is_compiling()


def _filled(paths: Paths) -> Paths:
    """Leave out the columns that are padding in every link, on the CPU: a GPU would have to wait for their number."""
    if paths.gain.device.type != "cpu":
        return paths
    width = max(1, int(paths.mask.any(0).sum()))
    return paths if width == paths.num_paths else paths.narrow(width)


def _with_doppler(space: Tensor, paths: Paths, velocity: Tensor, times: Tensor, wavelength: float | Tensor) -> Tensor:
    """Add the time axis to the space factor: (R*T, U, P) becomes (N*R*T, U, P)."""
    arrival = unit_vector(paths.aoa[:, : space.shape[-1]].double())
    doppler = torch.einsum("upx,ux->up", arrival, velocity.double()) / wavelength
    turns = _unit(times.to(doppler)[:, None, None] * doppler)
    return (turns[:, None] * space).flatten(0, 1)


def _local(angles: Tensor, array: Array, mount: Tensor | None = None) -> Tensor | None:
    """Return unit vectors (..., 3) in the array's frame, or None where angles alone will do: not turned, isotropic."""
    if mount is None and not any(array.orientation):
        return None if array.isotropic else unit_vector(angles)
    direction = unit_vector(angles.double())
    if mount is not None:
        direction = direction @ mount.to(direction)
    return (direction @ rotation_matrix(array.orientation).to(direction)).float()


def _steps(angles: Tensor, array: Array, direction: Tensor | None) -> list[Tensor]:
    """Return the direction cosines along the array's used axes, (z if rows, y if columns), each of shape (...)."""
    steps = []
    if array.rows > 1:
        steps.append(angles[..., 1].cos() if direction is None else direction[..., 2])
    if array.cols > 1:
        sine = angles.sin()
        steps.append(sine[..., 0] * sine[..., 1] if direction is None else direction[..., 1])
    return steps


def _unit(turns: Tensor) -> Tensor:
    """Return e^{+j 2 pi turns} as complex64; `turns` is float64 and is overwritten."""
    phase = turns.frac_().float().mul_(2 * math.pi)
    return torch.complex(phase.cos(), phase.sin())


def _phasors(steps: Tensor, multipliers: Tensor, lengths: tuple[int, ...]) -> list[Tensor]:
    """Return runs of phasors (length, M): row i of all runs turns by multipliers[i] . steps, steps being (axes, M)."""
    return list(_unit(multipliers.to(steps.device) @ steps).split_with_sizes(lengths))


def _outer(runs: list[Tensor]) -> Tensor:
    """Multiply runs (a, M), (b, M), ... into (a * b * ..., M), the last running fastest."""
    product = runs[0]
    for run in runs[1:]:
        product = (product[:, None] * run).flatten(0, 1)
    return product


def _split(length: int, step: float, offset: float) -> list[list[float]]:
    """Split the progression offset + step * (0 .. length - 1) into a coarse and a fine run whose sums hold it."""
    if length <= 8:
        return [[offset + step * i for i in range(length)]]
    fine = 1 << (math.ceil(math.log2(length)) // 2)
    coarse = math.ceil(length / fine)
    if coarse * fine != length and step > 0:  # antennas must come out exact: the largest divisor up to the root
        fine = max(divisor for divisor in range(1, math.isqrt(length) + 1) if length % divisor == 0)
        coarse = length // fine
    return [[offset + step * fine * i for i in range(coarse)], [step * i for i in range(fine)]]


def _array_axes(array: Array, reference: Reference) -> list[list[list[float]]]:
    """Return, for each used axis of the array, its runs of multipliers: element positions [wavelengths]."""
    axes = [(n, d) for n, d in zip((array.rows, array.cols), array.spacing, strict=True) if n > 1]
    return [_split(n, d, -d * (n - 1) / 2 if reference == "center" else 0.0) for n, d in axes]


def _stack(axes: list[list[list[float]]]) -> tuple[Tensor, tuple[int, ...]]:
    """Return the multiplier matrix (total length, axes) and the length of every run."""
    matrix = [
        [value if column == axis else 0.0 for column in range(len(axes))]
        for axis, runs in enumerate(axes)
        for run in runs
        for value in run
    ]
    lengths = tuple(len(run) for runs in axes for run in runs)
    return torch.tensor(matrix, dtype=torch.float64).reshape(-1, len(axes)), lengths


@lru_cache(maxsize=64)
def _link_runs(bs: Array, ue: Array, ofdm: OFDM, reference: Reference) -> tuple[Tensor, tuple[int, ...], int]:
    """Return multipliers, run lengths, and how many of the runs are antennas rather than subcarriers."""
    space = _array_axes(ue, reference) + _array_axes(bs, reference)
    matrix, lengths = _stack([*space, _split(ofdm.num_subcarriers, -ofdm.spacing, 0.0)])
    return matrix, lengths, sum(len(runs) for runs in space)
