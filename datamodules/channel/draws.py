"""Counter-based random numbers with one stream for each link.

The numbers of a `torch.Generator` depend on the order of a batch. Here the numbers of a link depend on its key alone,
not on the batch, the order of the data or the process.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable

import torch
from torch import Tensor

#: the constants of SplitMix64 as signed numbers (Steele, Lea and Flood, OOPSLA 2014)
_STEP, _MIX_1, _MIX_2 = (n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class LinkDraws:
    """A stream of random numbers for each link of a batch; every call continues the streams.

    Args:
        seed: Random seed.
        *parts: Key of each link, integers of shape (B,), such as the key of the site's name and row.
    """

    def __init__(self, seed: int, *parts: Tensor) -> None:
        self._seed, self._parts = seed, parts
        self._state: Tensor | None = None  # fifty small operations, left out where nothing is drawn

    def __len__(self) -> int:
        """Return the number of links B."""
        return len(self._parts[0])

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers in [0, 1) of shape (B, *shape), the same on every device."""
        return _uniform(self._next(), math.prod(shape)).reshape(-1, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Return complex normal numbers of variance 1, shape (B, *shape), complex64."""
        keys, count = self._next(), math.prod(shape)
        # on a CPU seeding a generator is cheap; on a GPU it would take a kernel for each link
        values = _drawn_in_turn(keys, count) if keys.device.type == "cpu" else _box_muller(keys, count)
        return values.reshape(-1, *shape)

    def _next(self) -> Tensor:
        self._state = (_keys(self._seed, *self._parts) if self._state is None else self._state) + _STEP
        return _mix(self._state)


def name_keys(names: Iterable[str]) -> Tensor:
    """Return the CRC-32 of each name as part of a key, (n,), int64: an index depends on the order of the sources."""
    return torch.tensor([zlib.crc32(name.encode()) for name in names])


def uniform(seed: int, *parts: Tensor, count: int) -> Tensor:
    """Return `count` numbers in [0, 1) for each link, shape (B, count); arguments as those of `LinkDraws`."""
    return _uniform(_keys(seed, *parts), count)


def _keys(seed: int, *parts: Tensor) -> Tensor:
    """Return one state of SplitMix64 for each link, shape (B,), int64."""
    state = torch.full_like(parts[0], seed, dtype=torch.int64)
    for part in parts:
        state = _mix(state + part.long() + _STEP)
    return state


def _stream(keys: Tensor, count: int) -> Tensor:
    """Return the next `count` outputs of SplitMix64 from each state, shape (B, count), int64."""
    return _mix(keys.unsqueeze(1) + torch.arange(1, count + 1, device=keys.device) * _STEP)


def _uniform(keys: Tensor, count: int) -> Tensor:
    # 24 bits, the precision of float32
    return (_stream(keys, count) >> 40 & 0xFFFFFF).float() * 2.0**-24


def _drawn_in_turn(keys: Tensor, count: int) -> Tensor:
    """Return normal numbers (B, count), complex64, of one generator seeded for each link, with 32 bits of its key."""
    generator, values = torch.Generator(), torch.empty(len(keys), count, dtype=torch.complex64)
    for key, row in zip((keys & 0xFFFFFFFF).tolist(), values, strict=True):
        torch.randn(count, dtype=row.dtype, generator=generator.manual_seed(key), out=row)
    return values


def _box_muller(keys: Tensor, count: int) -> Tensor:
    """Return normal numbers (B, count), complex64: -ln of one uniform number is the power, another one the phase."""
    state = _stream(keys, count)
    # above 0, so that the logarithm is finite
    power = -((state >> 40 & 0xFFFFFF).float() * 2.0**-24 + 2.0**-25).log()
    turns = (state >> 8 & 0xFFFFFF).float() * 2.0**-24
    return torch.polar(power.sqrt(), 2 * math.pi * turns)


def _mix(state: Tensor) -> Tensor:
    """Scramble 64-bit states; products wrap, and shifts, which keep the sign in PyTorch, are masked."""
    state = (state ^ (state >> 30 & (1 << 34) - 1)) * _MIX_1
    state = (state ^ (state >> 27 & (1 << 37) - 1)) * _MIX_2
    return state ^ (state >> 31 & (1 << 33) - 1)
