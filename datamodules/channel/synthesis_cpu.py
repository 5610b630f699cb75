"""The sum over paths on the CPU: both factors in one compiled pass over the paths, then one product for each link.

The time of `synthesize` of a small batch is dominated by the number of tensor operations, which one compiled call
replaces. Padding takes no sine. Phasors of linear phase over antennas or subcarriers are computed by doubling: the
second half of a run is the first half times one number, which is squared in float64, so that rounding errors do not
accumulate.

If PyTorch includes Intel MKL, the products omit padding as well: links of equal numbers of paths form a group of the
batched product of MKL, whereas `torch.bmm` would pad all links to the longest.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.channel.arrays import Array, Reference, first_position, rotation_matrix
from datamodules.channel.ofdm import OFDM
from datamodules.channel.synthesis_kernels import ROW_MAJOR, fill_factors, group_links
from datamodules.sites.paths import Paths

#: memory of the factors, reused by each thread, since new memory pages would dominate the time
_OWN = threading.local()


class _Workspace:
    """Memory of the factors of a number of links, and the arguments of the batched product."""

    def __init__(self, values: int, num_links: int, num_paths: int) -> None:
        self.sizes = (values, num_links, num_paths)
        self.memory = torch.empty(values, dtype=torch.complex64)
        self.factors = self.memory.numpy()
        self.lengths = np.empty(num_links, np.int64)
        self.pointers = np.empty((3, num_links), np.int64)
        self.groups = np.empty((9, num_paths), np.int32)
        self.scalars = np.repeat(np.array([[1], [0]], np.complex64), num_paths, axis=1)
        each = [*self.groups, *self.scalars, *self.pointers]
        address = [ctypes.c_void_p(row.ctypes.data) for row in each]
        first, a, b, c = address[:5], address[11], address[12], address[13]
        lda, ldb, ldc, self.group_sizes = address[5:9]
        self.arguments = (*first, address[9], a, lda, b, ldb, address[10], c, ldc)


def _workspace(*sizes: int) -> _Workspace:
    """Return the memory of this thread, grown to at least the given numbers of values, links and paths."""
    held: _Workspace | None = getattr(_OWN, "workspace", None)
    had = (0, 0, 0) if held is None else held.sizes
    if held is None or any(size > kept for size, kept in zip(sizes, had, strict=True)):
        held = _OWN.workspace = _Workspace(*map(max, sizes, had))
    return held


@cache
def batched_product() -> Any | None:
    """Return the batched product of MKL, `cblas_cgemm_batch`, or None if PyTorch does not include it."""
    try:
        found = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).cblas_cgemm_batch
    except (OSError, AttributeError):
        return None
    found.restype = None
    return found


def sum_paths(
    paths: Paths, bs: Array, ue: Array, ofdm: OFDM, mount: Tensor | None, reference: Reference, out: Tensor
) -> None:
    """Write the channels (U, R*T, K) of isotropic arrays to `out`, contiguous complex64, by `batched_product`."""
    num_links, num_paths = paths.gain.shape
    if not num_paths:
        out.zero_()
        return
    rows, num_tones = bs.num_elements * ue.num_elements, ofdm.num_subcarriers
    space = _factors(paths, bs, ue, ofdm, mount, reference, ragged=True)[0]
    at = (space.memory.data_ptr(), out.data_ptr())
    count = group_links(space.lengths[:num_links], rows, num_tones, *at, space.groups, space.pointers)
    product = batched_product()
    assert product is not None
    product(ROW_MAJOR, *space.arguments, count, space.group_sizes)


def _factors(
    paths: Paths, bs: Array, ue: Array, ofdm: OFDM, mount: Tensor | None, reference: Reference, ragged: bool
) -> tuple[_Workspace, int]:
    """Compute both factors; return their memory and the number of paths of the longest link."""
    counts, steps, bs_frame, ue_frame = _progressions(bs, ue, ofdm, reference)
    num_links, num_paths = paths.gain.shape
    values = num_links * num_paths * (bs.num_elements * ue.num_elements + ofdm.num_subcarriers)
    space = _workspace(values, num_links, num_paths)
    frames = bs_frame
    if mount is not None:
        frames = (mount.double() @ torch.from_numpy(bs_frame)).expand(num_links, 3, 3).numpy(force=True)
    arrays = [value.numpy(force=True) for value in (paths.gain, paths.delay, paths.aod, paths.aoa)]
    return space, fill_factors(*arrays, frames, ue_frame, counts, steps, ragged, space.lengths, space.factors)


def link_factors(
    paths: Paths, bs: Array, ue: Array, ofdm: OFDM, mount: Tensor | None = None, reference: Reference = "corner"
) -> tuple[Tensor, Tensor]:
    """Return the factors of `response.link_factors` for isotropic arrays on the CPU, P being that of the longest link.

    Returns:
        The space factor (R*T, U, P), including gains, and the frequency factor (K, U, P), both complex64. They are
        views of memory that the next call of the thread overwrites.
    """
    num_links = len(paths)
    rows, num_tones = bs.num_elements * ue.num_elements, ofdm.num_subcarriers
    space, width = _factors(paths, bs, ue, ofdm, mount, reference, ragged=False)
    return (
        space.memory.as_strided((rows, num_links, width), (1, width * rows, rows)),
        space.memory.as_strided(
            (num_tones, num_links, width), (1, width * num_tones, num_tones), num_links * width * rows
        ),
    )


@lru_cache(maxsize=64)
def _progressions(
    bs: Array, ue: Array, ofdm: OFDM, reference: Reference
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return arguments of `fill_factors`: lengths of the five axes, phase increments, and frames of the arrays."""
    counts = [ue.rows, ue.cols, bs.rows, bs.cols, ofdm.num_subcarriers]
    spacing = [*ue.spacing, *bs.spacing]
    starts = [first_position(n, d, reference) for n, d in zip(counts, spacing, strict=False)]
    steps = np.array([[*spacing, -ofdm.spacing, 1.0], [*starts, 0.0, 0.0]])
    bs_frame, ue_frame = (rotation_matrix(array.orientation)[None].numpy() for array in (bs, ue))
    return np.array(counts), steps, bs_frame, ue_frame
