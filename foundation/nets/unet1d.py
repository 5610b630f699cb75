"""1-D U-Net for the calibration of the DFT weights of a digital twin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datamodules.errors import InputError


class UNet1d(nn.Module):
    """Refines DFT weights by the user position (twin calibration section IV-C, Table I).

    An embedding of the position is the second input channel beside the weights. Three levels of downsampling and three
    of upsampling have skip connections. With 32 beams the network has 180,913 parameters (181 K in the paper).

    Args:
        beams: Number Q of DFT weights of a user; a multiple of 8.
        width: Channels of the first level, doubled at every further level.

    Raises:
        InputError: `beams` is no multiple of 8.
    """

    def __init__(self, beams: int = 32, width: int = 16) -> None:
        super().__init__()
        if beams < 8 or beams % 8:
            raise InputError(f"the U-Net halves the beams three times: give a multiple of 8, not {beams}")
        self.beams = beams
        widths = [width * 2**level for level in range(4)]
        # Table I only says "MLP"; two layers of width Q give the 181 K parameters of the paper
        self.embed = nn.Sequential(nn.Linear(3, beams), nn.ReLU(), nn.Linear(beams, beams))
        # one block in layer 1, as in Table I; the text has two in each layer, which would be 182 K
        self.down = nn.ModuleList([_blocks(2, widths[0], 1), *(_blocks(w, 2 * w) for w in widths[:2])])
        self.pool = nn.MaxPool1d(3, stride=2, padding=1)
        self.bottom = _blocks(widths[2], widths[3])
        self.up = nn.ModuleList(
            nn.ConvTranspose1d(2 * w, w, 3, stride=2, padding=1, output_padding=1) for w in widths[2::-1]
        )
        self.merge = nn.ModuleList(_blocks(2 * w, w) for w in widths[2::-1])
        # "a convolutional operation followed by a softmax" (IV-C), not the block of Table I, whose ReLU would set all
        # weak beams to the same value without gradient
        self.out = nn.Conv1d(width, 1, 3, padding=1)

    def forward(self, position: Tensor, weights: Tensor) -> Tensor:
        """Return the refined weights.

        Args:
            position: Standardised coordinates of the users, shape (B, 3).
            weights: DFT weights of the low-fidelity twin, shape (B, Q).

        Returns:
            Weights of sum 1, shape (B, Q).
        """
        values = torch.stack([weights, self.embed(position)], dim=1)
        skips = []
        for layer in self.down:
            skips.append(layer(values))
            values = self.pool(skips[-1])
        values = self.bottom(values)
        for up, merge in zip(self.up, self.merge, strict=True):
            values = merge(torch.cat([skips.pop(), up(values)], dim=1))
        refined: Tensor = self.out(values).squeeze(1).softmax(-1)
        return refined


def _blocks(inputs: int, outputs: int, count: int = 2) -> nn.Sequential:
    """Return convolution, batch norm and ReLU, `count` times."""
    layers: list[nn.Module] = []
    for block in range(count):
        layers += [nn.Conv1d(outputs if block else inputs, outputs, 3, padding=1), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
