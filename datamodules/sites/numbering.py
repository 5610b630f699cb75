"""Numbers of equal rows, and rows of equal numbers, in the time of a sort for any number of distinct ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: the constants of the finaliser of SplitMix64
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
#: rows hashed at a time
_CHUNK = 65_536


def number_rows(*columns: NDArray[Any]) -> NDArray[np.int64]:
    """Return the number of each row of columns (n,) among the distinct rows in ascending order, (n,).

    `numpy.unique` of an axis compares rows as records, ten times as slowly.
    """
    order = np.lexsort(columns[::-1])
    changes = np.zeros(len(order), dtype=bool)
    for column in columns:
        ordered = column[order]
        changes[1:] |= ordered[1:] != ordered[:-1]
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.cumsum(changes)
    return number


def rows_by_number(number: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Return the rows of each distinct number (n,), ascending, in ascending order of the numbers."""
    order = np.argsort(number, kind="stable")
    ordered = number[order]
    return np.split(order, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1) if len(order) else []


def content_keys(parts: Sequence[Tensor]) -> NDArray[np.uint64]:
    """Return a hash of 64 bits of each row of tensors (n, ...), equal for rows of the same bytes, (n,)."""
    rng = np.random.default_rng(0)
    flat = [part.reshape(len(part), -1) for part in parts]
    words = [part.view({2: torch.int16, 4: torch.int32}[part.element_size()]) for part in flat]
    factors = [rng.integers(2**63, size=(2, part.shape[1]), dtype=np.uint64) * 2 + 1 for part in words]
    keys = np.zeros(len(words[0]), dtype=np.uint64)
    for start in range(0, len(keys), _CHUNK):
        rows = slice(start, start + _CHUNK)
        one, other = np.zeros((2, len(keys[rows])), dtype=np.uint64)
        for part, (first, second) in zip(words, factors, strict=True):
            # a sum of products with random odd numbers, modulo 2^64, of which two make chance collisions negligible
            values = part[rows].numpy().astype(np.uint64)
            one += values @ first
            other += values @ second
        keys[rows] = _mixed(one) + other
    return keys


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _MIX[0]
    state = (state ^ (state >> np.uint64(27))) * _MIX[1]
    return state ^ (state >> np.uint64(31))
