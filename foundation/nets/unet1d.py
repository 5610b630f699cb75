"""Calibration of the DFT weights of a digital twin by a 1-D U-Net."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from datamodules.channel.arrays import Array
from datamodules.channel.codebook import dft_codebook, dft_weights, normalized_weights
from datamodules.errors import InputError, check_choice
from foundation.encoder import Encoder

Reads = Literal["both", "twin", "position"]


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


class Calibrator(Encoder):
    """Refines the DFT weights of a low-fidelity channel by the position of the user (twin calibration eq 6, 7).

    Args:
        antennas: Antennas T of the linear array, and DFT codewords; a multiple of 8.
        reads: Inputs of the network; the other input is set to zero.

    Raises:
        InputError: The antennas are no multiple of 8, or `reads` is unknown.
    """

    input_keys: ClassVar[tuple[str, ...]] = ("csi", "position", "bs_position")
    position_mean: Tensor
    position_std: Tensor
    codebook: Tensor

    def __init__(self, antennas: int = 32, reads: Reads = "both") -> None:
        check_choice("Calibrator: reads", reads, Reads)
        super().__init__()
        self.save_hyperparameters()
        self.num_features, self.reads = antennas, reads
        self.unet = UNet1d(antennas)
        # in real numbers, for runtimes without complex ones
        self.register_buffer("codebook", torch.view_as_real(dft_codebook(Array(1, antennas))), persistent=False)
        self.register_buffer("position_mean", torch.zeros(3))
        self.register_buffer("position_std", torch.ones(3))

    def forward(self, csi: Tensor, position: Tensor, bs_position: Tensor) -> Tensor:
        """Return refined DFT weights (B, T), with a sum of 1.

        Args:
            csi: Channels of the low-fidelity twin, shape (B, R, T, K).
            position: User positions [m], shape (B, 3).
            bs_position: Positions of the base stations [m], shape (B, 3).

        Raises:
            InputError: The channels have another number of transmit antennas.
        """
        if csi.shape[2] != self.num_features:
            raise InputError(f"Calibrator was made for {self.num_features} transmit antennas T, got {csi.shape[2]}")
        return self.refine(csi, position - bs_position)

    def refine(self, low: Tensor, offset: Tensor) -> Tensor:
        """Return refined DFT weights (B, T) of channels (B, R, T, K) and positions relative to the base station."""
        codebook = torch.view_as_complex(self.codebook)
        weights = normalized_weights(dft_weights(low, codebook)) * self.num_features  # of mean 1
        normalized = (offset - self.position_mean) / self.position_std
        if self.reads == "twin":
            normalized = torch.zeros_like(normalized)
        elif self.reads == "position":
            weights = torch.zeros_like(weights)
        refined: Tensor = self.unet(normalized, weights)
        return refined


def _blocks(inputs: int, outputs: int, count: int = 2) -> nn.Sequential:
    """Return convolution, batch norm and ReLU, `count` times."""
    layers: list[nn.Module] = []
    for block in range(count):
        layers += [nn.Conv1d(outputs if block else inputs, outputs, 3, padding=1), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
