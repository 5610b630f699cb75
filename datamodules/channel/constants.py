"""Constants on a device."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers, in tuples of any depth, as a tensor, copied to the device once: every copy waits for a GPU."""
    with torch.inference_mode(False):  # else no gradient could pass through what a call without gradients has cached
        return torch.tensor(values, dtype=dtype).to(device)
