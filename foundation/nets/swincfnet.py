"""SwinCFNet, a Swin transformer, as a channel predictor: baseline B1 of ConTwin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from einops import rearrange
from torch import Tensor, nn

from datamodules.errors import InputError, check_positive
from foundation.encoder import Encoder
from foundation.nets.contwin import past_image
from heads.base import of_links


def two_stages(
    width: int, grid: tuple[int, int], depths: tuple[int, int], heads: tuple[int, int], window: int
) -> nn.Sequential:
    """Return the two stages of SwinCFNet's encoder, (B, h, w, width) to (B, h / 2, w / 2, 2 width).

    Args:
        width: Width of the tokens of the first stage.
        grid: Tokens h and w of the first stage, both even.
        depths: Blocks of each stage; windows are shifted in every second block.
        heads: Attention heads of a block of each stage.
        window: Tokens a side of a window.
    """
    from timm.models.swin_transformer import SwinTransformerStage  # not at import: timm is slow to load

    fine: dict[str, Any] = {"depth": depths[0], "num_heads": heads[0], "window_size": window}
    merged: dict[str, Any] = {"depth": depths[1], "num_heads": heads[1], "window_size": window}
    return nn.Sequential(
        SwinTransformerStage(width, width, grid, downsample=False, **fine),
        SwinTransformerStage(width, 2 * width, grid, downsample=True, **merged),
    )


class SwinCFNet(Encoder):
    """Two stages of Swin transformer blocks over the angle-delay image of a channel sequence.

    After Cheng et al., "Swin Transformer-Based CSI Feedback for Massive MIMO" (2023), baseline B1 of ConTwin. That
    network compresses one snapshot and has no public code; this is its encoder, with blocks of timm, over N snapshots,
    to be trained with the head `Prediction` of the kind `direct` in place of its decoder. Between the stages four
    adjacent tokens are merged into one of twice the width. The features are a linear map of all tokens, the codeword.

    Args:
        snapshots: Snapshots N of the past.
        num_antennas: Antenna pairs R*T.
        num_subcarriers: Subcarriers K.
        patch: Pixels a side of a patch; twice of it must divide both sides of the image.
        width: Width of the tokens of the first stage.
        depths: Blocks of each stage; windows are shifted in every second block.
        heads: Attention heads of a block of each stage.
        window: Tokens a side of a window.
        embed_dim: Number of features.

    Raises:
        InputError: A number is out of range, or twice the patch does not divide a side of the image.
    """

    input_axes: ClassVar[Mapping[str, str]] = {"csi": "B N R T K"}

    def __init__(
        self,
        snapshots: int = 10,
        num_antennas: int = 16,
        num_subcarriers: int = 64,
        patch: int = 2,
        width: int = 64,
        depths: tuple[int, int] = (2, 2),
        heads: tuple[int, int] = (4, 8),
        window: int = 4,
        embed_dim: int = 512,
    ) -> None:
        sizes = {"snapshots": snapshots, "num_antennas": num_antennas, "num_subcarriers": num_subcarriers}
        check_positive("SwinCFNet", **sizes, patch=patch, width=width, depths=min(depths), heads=min(heads))
        check_positive("SwinCFNet", window=window, embed_dim=embed_dim)
        if num_antennas % (2 * patch) or num_subcarriers % (2 * patch):
            raise InputError(f"2 * patch = {2 * patch} does not divide an image of {num_antennas, num_subcarriers}")
        super().__init__()
        self.save_hyperparameters()
        self.snapshots, self.num_features = snapshots, embed_dim
        grid = (num_antennas // patch, num_subcarriers // patch)
        self.csi_size = self.shape = (num_antennas, num_subcarriers)
        self.token_shape = (grid[0] * grid[1] // 4, 2 * width)
        self.patches = nn.Conv2d(2 * snapshots, width, patch, stride=patch)
        self.stages = two_stages(width, grid, depths, heads, window)
        self.norm = nn.LayerNorm(2 * width)
        self.code = nn.Linear(self.token_shape[0] * 2 * width, embed_dim)

    def forward(self, csi: Tensor) -> Tensor:
        """Return features (B, D) of CSI (B, N, R, T, K)."""
        features: Tensor = self.code(self.refine(csi).flatten(1))
        return features

    def tokens(self, batch: Mapping[str, Any]) -> Tensor:
        """Return tokens (B, number of patches, width) of a batch, those of the second stage."""
        return of_links(self.refine, batch["csi"])

    def refine(self, csi: Tensor) -> Tensor:
        """Return tokens (B, number of patches, width) of CSI (B, N, R, T, K)."""
        pixels = past_image(csi, self.snapshots, self.shape, "angle_delay")
        grid = rearrange(self.patches(pixels), "b d h w -> b h w d")
        refined: Tensor = self.norm(rearrange(self.stages(grid), "b h w d -> b (h w) d"))
        return refined
