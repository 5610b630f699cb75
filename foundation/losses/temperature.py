"""Base class of contrastive losses with a learned temperature."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from datamodules.errors import check_positive


class TemperatureLoss(nn.Module):
    """Base class of losses of cosine similarities divided by a learned temperature.

    Args:
        temperature: Initial temperature.
        max_scale: Largest inverse temperature; CLIP clamps at 100.

    Raises:
        InputError: The temperature is not positive.
    """

    def __init__(self, temperature: float, max_scale: float = 100.0) -> None:
        super().__init__()
        check_positive(type(self).__name__, temperature=temperature)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.max_log_scale = math.log(max_scale)

    @property
    def scale(self) -> Tensor:
        """The inverse temperature."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Clamp the temperature to its range; called after every optimizer step, as in CLIP."""
        self.log_scale.clamp_(0.0, self.max_log_scale)
