"""The CNN-transformer of ConTwin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.channel.transforms import image, to_angle, to_delay, unit_power
from datamodules.errors import InputError, check_choice, check_not_negative, check_positive
from foundation.encoder import Encoder

Domain = Literal["csi", "cir", "angle_delay"]


class CNNTransformer(Encoder):
    """Convolutions and a transformer over patches of a channel sequence (ConTwin section 5, Table 6).

    The image has antenna pairs as rows, subcarriers or delay taps as columns, and real and imaginary part of every
    snapshot as channels. Each sequence is normalised to unit mean power. The features are the mean of the tokens.

    Args:
        snapshots: Snapshots N of the past.
        num_antennas: Antenna pairs R*T.
        num_subcarriers: Subcarriers K.
        domain: `csi`, `cir` (that of the paper: Table 6 says time domain), or `angle_delay`.
        channels: Channels of the convolutions, which the paper does not state.
        patch: Rows and columns of a patch; the image is zero-padded to a multiple of them.
        width: Width of the tokens, the number of features.
        layers: Transformer layers.
        heads: Attention heads of a layer.
        dropout: Dropout probability of the transformer layers.

    Raises:
        InputError: A number is out of range, `width` is no multiple of `heads`, or the domain is unknown.
    """

    input_axes: ClassVar[Mapping[str, str]] = {"csi": "B N R T K"}

    def __init__(
        self,
        snapshots: int = 10,
        num_antennas: int = 16,
        num_subcarriers: int = 64,
        domain: Domain = "cir",
        channels: int = 32,
        patch: tuple[int, int] = (4, 5),
        width: int = 256,
        layers: int = 4,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        check_positive(
            "CNNTransformer",
            snapshots=snapshots,
            num_antennas=num_antennas,
            num_subcarriers=num_subcarriers,
            channels=channels,
            patch=min(patch),
            width=width,
            heads=heads,
        )
        check_choice("CNNTransformer: domain", domain, Domain)
        check_not_negative("CNNTransformer", layers=layers, dropout=dropout)
        if width % heads:
            raise InputError(f"the width {width} must be a multiple of the number of attention heads {heads}")
        super().__init__()
        self.save_hyperparameters()
        from timm.models.vision_transformer import Block  # not at import: timm is slow to load

        self.snapshots, self.domain, self.num_features = snapshots, domain, width
        self.csi_size = self.shape = (num_antennas, num_subcarriers)
        self.patch = (int(patch[0]), int(patch[1]))
        num_tokens = math.prod(math.ceil(n / p) for n, p in zip(self.shape, self.patch, strict=True))
        self.token_shape = (num_tokens, width)
        stages: list[nn.Module] = []
        for inputs in (2 * snapshots, channels, channels, channels):
            # no bias, since batch norm has one
            stages += [nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        self.convolutions = nn.Sequential(*stages)
        self.patches = nn.Conv2d(channels, width, self.patch, stride=self.patch)
        self.position = nn.Parameter(nn.init.normal_(self.patches.weight.new_empty(num_tokens, width), std=width**-0.5))
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True, proj_drop=dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, csi: Tensor) -> Tensor:
        """Return features (B, D) of CSI (B, N, R, T, K)."""
        return self.refine(csi).mean(1)

    def tokens(self, batch: Mapping[str, Any]) -> Tensor:
        """Return tokens (B, number of patches, width) of a batch."""
        return self.refine(batch["csi"])

    def refine(self, csi: Tensor) -> Tensor:
        """Return tokens (B, number of patches, width) of CSI (B, N, R, T, K)."""
        pixels = past_image(csi, self.snapshots, self.shape, self.domain)
        down, right = (-n % p for n, p in zip(self.shape, self.patch, strict=True))
        grid = self.patches(F.pad(self.convolutions(pixels), (0, right, 0, down)))
        refined: Tensor = self.norm(self.blocks(rearrange(grid, "b d h w -> b (h w) d") + self.position))
        return refined


def past_image(csi: Tensor, snapshots: int, shape: tuple[int, int], domain: Domain) -> Tensor:
    """Return channel sequences as images of unit mean power.

    Args:
        csi: Complex, (B, N, R, T, K).
        snapshots: Number N of snapshots.
        shape: Antenna pairs R*T and subcarriers K.
        domain: `csi`, `cir` or `angle_delay`.

    Returns:
        Shape (B, 2 N, R*T, K): real and imaginary part of each snapshot.

    Raises:
        InputError: The CSI has another number of snapshots, antenna pairs or subcarriers.
    """
    if csi.shape[1] != snapshots:
        raise InputError(f"the encoder takes {snapshots} snapshots, the data hold {csi.shape[1]}: set snapshots")
    channel = unit_power(csi)
    if domain == "angle_delay":
        channel = to_angle(channel)
    if domain != "csi":
        channel = to_delay(channel)
    pixels = rearrange(image(channel.flatten(0, 1)), "(b n) c h w -> b (n c) h w", n=snapshots)
    if pixels.shape[-2:] != shape:
        raise InputError(
            f"the encoder takes {shape[0]} antenna pairs and {shape[1]} subcarriers, the data hold "
            f"{pixels.shape[-2]} and {pixels.shape[-1]}: set num_antennas and num_subcarriers"
        )
    return pixels
