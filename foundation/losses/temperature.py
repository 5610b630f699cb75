"""Base class of contrastive losses with a learned temperature."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from datamodules.errors import InputError, check_positive

#: largest inverse temperature, as in CLIP
_MAX_SCALE = 100.0


class TemperatureLoss(nn.Module):
    """Base class of losses of cosine similarities divided by a learned temperature.

    Args:
        temperature: Initial temperature, within the range of the learned one: 0.01 to 1.

    Raises:
        InputError: The temperature is outside its range.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        check_positive(type(self).__name__, temperature=temperature)
        if not 1 / _MAX_SCALE <= temperature <= 1:
            raise InputError(
                f"{type(self).__name__}: temperature must be {1 / _MAX_SCALE:g} to 1, to which training clamps it, "
                f"got {temperature:g}"
            )
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    @property
    def scale(self) -> Tensor:
        """The inverse temperature."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Clamp the temperature to its range; called after every optimizer step, as in CLIP."""
        self.log_scale.clamp_(0.0, math.log(_MAX_SCALE))
