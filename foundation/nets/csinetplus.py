"""CSINet+, the CSI feedback network of the twin-feedback paper."""

from __future__ import annotations

from torch import nn

from datamodules.channel.transforms import PhaseReference
from datamodules.errors import check_not_negative
from foundation.nets.autoencoder import Autoencoder, Refine, convolution


class CSINetPlus(Autoencoder):
    """CSINet+ (J. Guo et al., IEEE Trans. Wireless Commun. 19(4), 2020) with the changes of twin feedback section V-D.

    The encoder has two convolutions and a linear layer; the decoder has a linear layer, a convolution for a first
    estimate, and five residual blocks. With a code of 32 numbers for 32 taps by 32 antennas, as in the paper, the
    compression ratio is 64 and the network has 155,508 parameters.

    Args:
        code_size: Real numbers M of the code.
        rows: Number of delay taps, the first ones of the channel.
        antennas: Antenna pairs R*T of the data.
        reference: Phase reference of the channel, see `delay_angular`; the authors use `first`.
        bits: Bits for each number of the code; by default it is not quantised.
        blocks: RefineNet blocks.

    Raises:
        InputError: A number is out of range.
    """

    def __init__(
        self,
        code_size: int = 32,
        rows: int = 32,
        antennas: int = 32,
        reference: PhaseReference = "strongest",
        bits: int | None = None,
        blocks: int = 5,
    ) -> None:
        super().__init__(code_size, rows, antennas, reference, bits)
        check_not_negative("CSINetPlus", blocks=blocks)
        values = 2 * rows * antennas
        self.compressor = nn.Sequential(
            convolution(2, 2, 7), nn.LeakyReLU(0.3), convolution(2, 2, 7), nn.LeakyReLU(0.3),
            nn.Flatten(), nn.Linear(values, code_size),
        )  # fmt: skip
        self.rebuilder = nn.Sequential(
            nn.Linear(code_size, values),
            nn.Unflatten(1, (2, rows, antennas)),
            convolution(2, 2, 7),
            nn.Tanh(),  # not a sigmoid: entries of channels of unit norm lie in [-1, 1] (V-D (i))
            *(Refine((7, 5, 3), nn.Tanh(), nn.Identity()) for _ in range(blocks)),
        )
