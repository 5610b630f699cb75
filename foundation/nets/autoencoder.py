"""Base class of CSI feedback networks: delay-angular transform, quantised code and normalisation of the output."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.channel.transforms import PhaseReference, delay_angular, image
from datamodules.errors import InputError, check_choice, check_whole
from foundation.encoder import Encoder


class Quantizer(nn.Module):
    """Uniform quantiser of a code after a tanh: 2^bits levels in (-1, 1), with straight-through gradients.

    Args:
        bits: Bits for each number, 2 to 8.

    Raises:
        InputError: `bits` is out of that range.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        if not 2 <= bits <= 8:
            raise InputError(f"bits must be 2 to 8, got {bits}: leave it out for a code of real numbers")
        self.bits = bits

    def indices(self, code: Tensor) -> Tensor:
        """Return the indices that are transmitted: integers in [0, 2^bits), of the shape of the code."""
        levels = 2**self.bits
        indices: Tensor = ((_bounded(code) + 1) / 2 * levels).long().clamp(0, levels - 1)
        return indices

    def levels(self, indices: Tensor) -> Tensor:
        """Return the levels in (-1, 1) of received indices."""
        levels: Tensor = (2 * indices + 1) / 2**self.bits - 1
        return levels

    def forward(self, code: Tensor) -> Tensor:
        """Return the quantised code, of the same shape."""
        bounded = _bounded(code)
        return bounded + (self.levels(self.indices(code)) - bounded).detach()


def _bounded(code: Tensor) -> Tensor:
    """Return the tanh of a code, at least in single precision: bfloat16 has not even the levels of 8 bits."""
    return torch.tanh(code.to(torch.promote_types(code.dtype, torch.float32)))


class Autoencoder(Encoder):
    """Encodes a channel at the user, and decodes it at the base station (twin feedback section III).

    As an `Encoder` its features are the code. A subclass has the networks `compressor` and `rebuilder`, or implements
    `compress` and `rebuild`.

    Args:
        code_size: Real numbers M of the code.
        rows: Number of delay taps, the first ones of the channel.
        antennas: Antenna pairs R*T of the data.
        reference: Phase reference of the channel, see `delay_angular`.
        bits: Bits for each number of the code; by default it is not quantised.

    Raises:
        InputError: A size is not an integer of at least 1, `bits` is out of range, or the reference is unknown.
    """

    compressor: nn.Module
    rebuilder: nn.Module

    def __init__(
        self,
        code_size: int = 32,
        rows: int = 32,
        antennas: int = 32,
        reference: PhaseReference = "strongest",
        bits: int | None = None,
    ) -> None:
        check_whole(type(self).__name__, code_size=code_size, rows=rows, antennas=antennas)
        check_choice(f"{type(self).__name__}: reference", reference, PhaseReference)
        super().__init__()
        self.save_hyperparameters()
        self.num_features, self.rows, self.antennas, self.reference = code_size, rows, antennas, reference
        self.quantizer = None if bits is None else Quantizer(bits)

    @property
    def feedback_bits(self) -> int:
        """Number of feedback bits of a link; 32 for each number when the code is not quantised."""
        return self.num_features * (32 if self.quantizer is None else self.quantizer.bits)

    def compress(self, pixels: Tensor) -> Tensor:
        """Return the code (B, M) of an image (B, 2, rows, R*T)."""
        code: Tensor = self.compressor(pixels)
        return code

    def rebuild(self, code: Tensor) -> Tensor:
        """Return the image (B, 2, rows, R*T) of a code (B, M), of any norm."""
        pixels: Tensor = self.rebuilder(code)
        return pixels

    def observe(self, csi: Tensor) -> tuple[Tensor, Tensor]:
        """Return the delay-angular channel (B, rows, R*T) of CSI (B, R, T, K), and its scale (B,).

        Raises:
            InputError: The data have another number of antenna pairs, or fewer subcarriers than `rows`.
        """
        if csi.ndim != 4 or csi.shape[1] * csi.shape[2] != self.antennas or csi.shape[3] < self.rows:
            raise InputError(
                f"the data have CSI of (R, T, K) = {tuple(csi.shape[1:])}, but the autoencoder has {self.antennas} "
                f"antenna pairs and {self.rows} taps: set its antennas and rows, or data.bs and data.ofdm"
            )
        return delay_angular(csi, self.rows, self.reference)

    def forward(self, csi: Tensor) -> Tensor:
        """Return the code (B, M) of CSI (B, R, T, K), quantised if `bits` is given."""
        return self.encode_channel(self.observe(csi)[0])

    def encode_channel(self, channel: Tensor) -> Tensor:
        """Return the code (B, M), quantised if `bits` is given, of delay-angular channels (B, rows, R*T)."""
        code = self.compress(image(channel.unsqueeze(1)))
        return code if self.quantizer is None else self.quantizer(code)

    def decode(self, code: Tensor) -> Tensor:
        """Return the delay-angular channel (B, rows, R*T) of a code, complex, of unit norm (twin feedback V-D (ii))."""
        pixels = self.rebuild(code).float()
        pixels = F.normalize(pixels.flatten(1), dim=1).reshape(pixels.shape)
        return torch.view_as_complex(rearrange(pixels, "b c l a -> b l a c").contiguous())


def convolution(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Return a convolution of stride 1 with padding, followed by batch norm."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    # a quarter faster: of so few channels the backward pass on a CPU is slow in the usual layout
    return nn.Sequential(layer.to(memory_format=torch.channels_last), nn.BatchNorm2d(outputs))


class Refine(nn.Module):
    """A residual block of three convolutions 2 - 8 - 16 - 2: the RefineNet of CsiNet and CSINet+.

    Args:
        kernels: Sizes of the three kernels.
        last: Activation after the third convolution.
        after: Activation after the residual sum.
    """

    def __init__(self, kernels: tuple[int, int, int], last: nn.Module, after: nn.Module) -> None:
        super().__init__()
        one, two, three = kernels
        self.layers = nn.Sequential(
            convolution(2, 8, one), nn.LeakyReLU(0.3), convolution(8, 16, two), nn.LeakyReLU(0.3),
            convolution(16, 2, three), last,
        )  # fmt: skip
        self.after = after

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the refined image, (B, 2, rows, R*T) each way."""
        refined: Tensor = self.after(pixels + self.layers(pixels))
        return refined
