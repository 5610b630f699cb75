"""SwinCFNet as published, a Swin transformer that compresses the channel; `swincfnet.py` has it as a predictor."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from datamodules.channel.transforms import PhaseReference
from datamodules.errors import InputError, check_whole
from foundation.nets.autoencoder import Autoencoder
from foundation.nets.swincfnet import two_stages


class SwinAutoencoder(Autoencoder):
    """CSI feedback by Swin transformer blocks.

    After J. Cheng et al., "Swin Transformer-Based CSI Feedback for Massive MIMO" (2023), SwinCFNet. The encoder has two
    stages, between which four adjacent tokens are merged into one of twice the width, and a linear layer; the decoder
    mirrors it. The authors published no code: blocks are those of timm, and sizes are ours. With a code of 32 numbers
    for 32 taps by 32 antennas it has 535,706 parameters.

    Args:
        code_size: Real numbers M of the code.
        rows: Number of delay taps, the first ones of the channel.
        antennas: Antenna pairs R*T of the data.
        reference: Phase reference of the channel, see `delay_angular`.
        bits: Bits for each number of the code; by default it is not quantised.
        patch: Pixels a side of a patch; twice of it must divide `rows` and `antennas`.
        width: Width of the tokens of the outer stages, a multiple of 16.
        depth: Blocks of each stage; windows are shifted in every second block.
        window: Tokens a side of a window.

    Raises:
        InputError: A number is out of range, or twice the patch does not divide a side of the image.
    """

    def __init__(
        self,
        code_size: int = 32,
        rows: int = 32,
        antennas: int = 32,
        reference: PhaseReference = "strongest",
        bits: int | None = None,
        patch: int = 2,
        width: int = 32,
        depth: int = 2,
        window: int = 4,
    ) -> None:
        super().__init__(code_size, rows, antennas, reference, bits)
        check_whole("SwinAutoencoder", patch=patch, width=width, depth=depth, window=window)
        if rows % (2 * patch) or antennas % (2 * patch):
            raise InputError(f"2 * patch = {2 * patch} does not divide {rows} taps by {antennas} antenna pairs")
        if width % 16:
            raise InputError(f"SwinAutoencoder: width must be a multiple of 16, got {width}")
        from timm.models.swin_transformer import SwinTransformerStage  # not at import: timm is slow to load

        fine, coarse = ((rows // size, antennas // size) for size in (patch, 2 * patch))
        values = coarse[0] * coarse[1] * 2 * width
        heads = (width // 16, width // 8)  # of 16 values
        shared: dict[str, Any] = {"depth": depth, "window_size": window, "downsample": False}
        self.patches = nn.Conv2d(2, width, patch, stride=patch)
        self.down = two_stages(width, fine, (depth, depth), heads, window).append(nn.LayerNorm(2 * width))
        self.code = nn.Linear(values, code_size)
        self.tokens_of = nn.Sequential(nn.Linear(code_size, values), nn.Unflatten(1, (*coarse, 2 * width)))
        self.coarse = SwinTransformerStage(2 * width, 2 * width, coarse, num_heads=heads[1], **shared)
        self.split = nn.Linear(2 * width, 4 * width)
        self.fine = SwinTransformerStage(width, width, fine, num_heads=heads[0], **shared)
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.ConvTranspose2d(width, 2, patch, stride=patch)

    def compress(self, pixels: Tensor) -> Tensor:
        """Return the code (B, M) of an image (B, 2, rows, R*T)."""
        # of mean square 1: the entries of a channel of unit norm are small beside the biases
        pixels = pixels * (pixels.shape[-1] * pixels.shape[-2]) ** 0.5
        grid = rearrange(self.patches(pixels), "b d h w -> b h w d")
        code: Tensor = self.code(self.down(grid).flatten(1))
        return code

    def rebuild(self, code: Tensor) -> Tensor:
        """Return the image (B, 2, rows, R*T) of a code (B, M), not yet of unit norm."""
        halves = self.split(self.coarse(self.tokens_of(code)))
        grid = rearrange(halves, "b h w (p q d) -> b (h p) (w q) d", p=2, q=2)
        pixels: Tensor = self.pixels(rearrange(self.norm(self.fine(grid)), "b h w d -> b d h w"))
        return pixels
