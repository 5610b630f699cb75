"""CsiNet, a reference network of CSI feedback."""

from __future__ import annotations

from torch import nn

from datamodules.channel.transforms import PhaseReference
from foundation.nets.autoencoder import Autoencoder, Refine, convolution


class CsiNet(Autoencoder):
    """CsiNet (C.-K. Wen et al., IEEE Wireless Commun. Letters 7(5), 2018) on channels of unit norm.

    Args:
        code_size: Real numbers M of the code.
        rows: Number of delay taps, the first ones of the channel.
        antennas: Antenna pairs R*T of the data.
        reference: Phase reference of the channel, see `delay_angular`.
        bits: Bits for each number of the code; by default it is not quantised.
    """

    def __init__(
        self,
        code_size: int = 32,
        rows: int = 32,
        antennas: int = 32,
        reference: PhaseReference = "strongest",
        bits: int | None = None,
    ) -> None:
        super().__init__(code_size, rows, antennas, reference, bits)
        values = 2 * rows * antennas
        self.compressor = nn.Sequential(
            convolution(2, 2, 3), nn.LeakyReLU(0.3), nn.Flatten(), nn.Linear(values, code_size)
        )
        self.rebuilder = nn.Sequential(
            nn.Linear(code_size, values),
            nn.Unflatten(1, (2, rows, antennas)),
            *(Refine((3, 3, 3), nn.Identity(), nn.LeakyReLU(0.3)) for _ in range(2)),
            convolution(2, 2, 3),
            nn.Tanh(),  # in place of the sigmoid of the original, whose inputs are scaled to [0, 1]
        )
