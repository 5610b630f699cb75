"""Compiled loops of `datamodules.channel.synthesis_cpu`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

#: adding and subtracting 1.5 * 2^52 rounds a float64 to an integer, also in vectorised code
_ROUND = 1.5 * 2.0**52
#: Taylor series of e^{j pi x / 2}, to the last bit of float64 for |x| <= 1/2, as literals that compile to constants
_COS = tuple((-1) ** i * (math.pi / 2) ** (2 * i) / math.factorial(2 * i) for i in range(9))
_SIN = tuple((-1) ** i * (math.pi / 2) ** (2 * i + 1) / math.factorial(2 * i + 1) for i in range(8))
_TURNS = 1 / (2 * math.pi)
#: constants of the C interface of BLAS: row-major order, no transposition, transposition
ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112


def _compiled(*signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile, at definition if a signature is given, and cache the result on disk if a folder is writable."""
    # only fused multiply-add is allowed: reordered sums would invalidate `_ROUND`
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
    jit: Any = numba.njit

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return jit(*signature, cache=True, **options)(function)
        except (RuntimeError, OSError):  # no writable folder: compiled in every process
            return jit(*signature, **options)(function)

    return compiled


@_compiled()
def _write_phasors(phases: NDArray[np.float64], scale: float, count: int, phasors: NDArray[np.float64]) -> None:
    """Write cos and sin of 2 pi scale phases, in arithmetic that the compiler vectorises."""
    for i in range(count):
        turns = scale * phases[i]
        x = turns - ((turns + _ROUND) - _ROUND)
        y = x * x
        c = _COS[8]
        s = _SIN[7]
        for n in range(7, -1, -1):
            c = c * y + _COS[n]
        for n in range(6, -1, -1):
            s = s * y + _SIN[n]
        s *= x
        for _ in range(2):  # the series is for a quarter of the angle: square twice
            c, s = c * c - s * s, 2 * c * s
        phasors[0, i] = c
        phasors[1, i] = s


@_compiled()
def _grow(run: NDArray[np.complex64], filled: int, count: int, step: complex) -> int:
    """Append to run[:filled] its products with step, step^2, ... step^(count - 1); return the new length."""
    total = filled * count
    while filled < total:
        size = min(filled, total - filled)
        factor = np.complex64(step)
        fresh = run[filled : filled + size]
        for i in range(size):
            fresh[i] = run[i] * factor
        step = step * step
        filled += size
    return total


@_compiled(
    "int64(complex64[:, :], float32[:, :], float32[:, :, :], float32[:, :, :], float64[:, :, :], float64[:, :, :],"
    " int64[::1], float64[:, ::1], boolean, int64[::1], complex64[::1])"
)
def fill_factors(
    gain: NDArray[np.complex64],
    delay: NDArray[np.float32],
    aod: NDArray[np.float32],
    aoa: NDArray[np.float32],
    bs_frames: NDArray[np.float64],
    ue_frame: NDArray[np.float64],
    counts: NDArray[np.int64],
    steps: NDArray[np.float64],
    ragged: bool,
    lengths: NDArray[np.int64],
    memory: NDArray[np.complex64],
) -> int:
    """Write the factors, (U, width, R*T) and then (U, width, K), to flat memory, and return the width.

    The width is the number of paths of the longest link; if ragged, each link has its own, at least 1 and without
    padding, written to lengths (U,). steps[0] contains the phase increments along the five axes [wavelengths, and -Hz
    for the subcarriers] and 1, steps[1] the initial phases.
    """
    num_links, num_paths = gain.shape
    link = np.empty(num_links * num_paths, np.int64)
    angles = np.empty((4, num_links * num_paths))
    # phase increments: rows and columns of the user, of the base station, subcarriers; and initial phase
    along = np.empty((6, num_links * num_paths))
    count = 0
    width = min(1, num_paths)
    columns = 0
    for u in range(num_links):
        last = 0  # columns up to the last path
        for p in range(num_paths):
            if gain[u, p] != 0:
                link[count] = u
                angles[0, count] = aoa[u, p, 0]
                angles[1, count] = aoa[u, p, 1]
                angles[2, count] = aod[u, p, 0]
                angles[3, count] = aod[u, p, 1]
                along[4, count] = delay[u, p]
                along[5, count] = 0
                count += 1
                last = p + 1
        lengths[u] = max(last, min(1, num_paths))
        columns += lengths[u]
        width = max(width, last)
    if not ragged:
        columns = num_links * width

    azimuth, zenith = np.empty((2, count)), np.empty((2, count))
    for side in range(2):
        if counts[2 * side] * counts[2 * side + 1] == 1:
            continue
        _write_phasors(angles[2 * side], _TURNS, count, azimuth)
        _write_phasors(angles[2 * side + 1], _TURNS, count, zenith)
        frames = bs_frames if side else ue_frame
        for i in range(count):
            u = link[i] if len(frames) > 1 else 0  # one for all
            x, y, z = zenith[1, i] * azimuth[0, i], zenith[1, i] * azimuth[1, i], zenith[0, i]
            row = frames[u, 0, 2] * x + frames[u, 1, 2] * y + frames[u, 2, 2] * z
            col = frames[u, 0, 1] * x + frames[u, 1, 1] * y + frames[u, 2, 1] * z
            along[2 * side, i] = row
            along[2 * side + 1, i] = col
            along[5, i] += steps[1, 2 * side] * row + steps[1, 2 * side + 1] * col

    phasor = np.empty((6, 2, count))
    for axis in range(6):
        if axis == 5 or counts[axis] > 1:
            _write_phasors(along[axis], steps[0, axis], count, phasor[axis])

    rows = counts[0] * counts[1] * counts[2] * counts[3]
    space = memory[: columns * rows]
    tones = memory[columns * rows : columns * (rows + counts[4])]
    zero = np.complex64(0)
    i = 0
    at = 0
    for u in range(num_links):
        for p in range(lengths[u]):
            antennas = space[at * rows : (at + 1) * rows]
            grid = tones[at * counts[4] : (at + 1) * counts[4]]
            at += 1
            if gain[u, p] == 0:
                antennas[:] = zero
                grid[:] = zero
                continue
            antennas[0] = gain[u, p] * complex(phasor[5, 0, i], phasor[5, 1, i])
            filled = 1
            for axis in range(3, -1, -1):  # the columns of the base station run fastest
                if counts[axis] > 1:
                    filled = _grow(antennas, filled, counts[axis], complex(phasor[axis, 0, i], phasor[axis, 1, i]))
            grid[0] = 1
            if counts[4] > 1:
                _grow(grid, 1, counts[4], complex(phasor[4, 0, i], phasor[4, 1, i]))
            i += 1
        if not ragged:
            # the padding of a link is contiguous, and cleared at once
            end = (u + 1) * width
            space[at * rows : end * rows] = zero
            tones[at * counts[4] : end * counts[4]] = zero
            at = end
    return width


@_compiled("int64(int64[::1], int64, int64, int64, int64, int32[:, ::1], int64[:, ::1])")
def group_links(
    lengths: NDArray[np.int64],
    rows: int,
    num_tones: int,
    factors: int,
    out: int,
    groups: NDArray[np.int32],
    pointers: NDArray[np.int64],
) -> int:
    """Group links by their number of paths, and write the arguments of `cblas_cgemm_batch` to `groups` and `pointers`.

    Args:
        lengths: Number of columns of the factors of each link (U,).
        rows: Antenna pairs R*T.
        num_tones: Subcarriers K.
        factors: Address of the ragged factors that `fill_factors` wrote.
        out: Address of the channels (U, R*T, K).
        groups: Output: transpositions, sizes, leading dimensions and numbers of links, (9, groups).
        pointers: Output: addresses of factors and channel of each link, sorted by group, (3, U).

    Returns:
        The number of groups.
    """
    item = 8  # bytes of a complex64
    sizes = np.zeros(groups.shape[1] + 1, np.int64)
    for length in lengths:
        sizes[length] += 1
    count = 0
    slots = np.zeros(len(sizes), np.int64)
    slot = 0
    for length in range(1, len(sizes)):
        slots[length] = slot
        slot += sizes[length]
        if sizes[length] > 0:
            setting = (_TRANSPOSED, _PLAIN, rows, num_tones, length, rows, num_tones, num_tones, sizes[length])
            for i, value in enumerate(setting):
                groups[i, count] = value
            count += 1
    tones = factors + item * rows * lengths.sum()
    column = 0
    for u in range(len(lengths)):
        slot = slots[lengths[u]]
        slots[lengths[u]] += 1
        pointers[0, slot] = factors + item * rows * column
        pointers[1, slot] = tones + item * num_tones * column
        pointers[2, slot] = out + item * rows * num_tones * u
        column += lengths[u]
    return count
