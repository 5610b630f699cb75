"""Vision transformers: base class of the environment-channel towers, and the channel tower."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from datamodules.channel.transforms import aligned, image, log_level, tapered, to_angle, to_delay, unit_power
from datamodules.errors import InputError, check_choice, check_not_negative, check_positive
from foundation.encoder import Encoder
from heads.layers import attention_blocks

Pool = Literal["class", "all"]
Domain = Literal["csi", "angle_delay"]


class Tower(Encoder):
    """Vision transformer: class token and patch tokens, residual attention blocks, and a linear embedding.

    The last blocks are a separate module, `shared`, which two towers can have in common: the MSNN of
    environment-channel section III-A3.

    Args:
        num_tokens: Number of patches, without the class token.
        width: Width of the tokens.
        layers: Number of blocks of this tower alone.
        shared_layers: Number of blocks that two towers may share.
        heads: Attention heads of a block.
        embed_dim: Dimension of the embedding.
        pool: `class` embeds the class token, as in the paper; `all` embeds the concatenation of all tokens, which
            converges in fewer steps and has a larger last layer.
    """

    def __init__(
        self, num_tokens: int, width: int, layers: int, shared_layers: int, heads: int, embed_dim: int, pool: Pool
    ) -> None:
        super().__init__()
        check_choice(f"{type(self).__name__}: pool", pool, Pool)
        check_positive(type(self).__name__, width=width, heads=heads, embed_dim=embed_dim)
        check_not_negative(type(self).__name__, layers=layers, shared_layers=shared_layers)
        self.num_features, self.pool = embed_dim, pool
        self.token_shape = (num_tokens + 1, width)
        self.class_token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.position = nn.Parameter(torch.randn(num_tokens + 1, width) * width**-0.5)
        self.blocks = attention_blocks(layers, width, heads)
        self.shared = attention_blocks(shared_layers, width, heads)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width * (num_tokens + 1 if pool == "all" else 1), embed_dim, bias=False)

    @abstractmethod
    def patchify(self, *inputs: Any, **named: Any) -> Tensor:
        """Return patches (B, num_tokens, width) of the inputs of `forward`."""

    def refine(self, patches: Tensor) -> Tensor:
        """Return tokens (B, num_tokens + 1, width), the class token first, of patches (B, num_tokens, width)."""
        first = self.class_token.expand(patches.shape[0], 1, -1)  # not `len`, a constant in exported graphs
        tokens = torch.cat([first.to(patches.dtype), patches], dim=1) + self.position
        refined: Tensor = self.norm(self.shared(self.blocks(tokens)))
        return refined

    def embed(self, patches: Tensor) -> Tensor:
        """Return embeddings (B, embed_dim) of patches (B, num_tokens, width)."""
        tokens = self.refine(patches)
        embedding: Tensor = self.projection((tokens if self.pool == "all" else tokens[:, :1]).flatten(1))
        return embedding

    def tokens(self, batch: Mapping[str, Any]) -> Tensor:
        """Return tokens (B, num_tokens + 1, width) of a batch."""
        return self.refine(self.patchify(*(self._taken(key, batch[key]) for key in self.input_keys)))

    def beyond_tokens(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the projection, which tokens do not depend on."""
        return self.projection.parameters()


class ChannelTransformer(Tower):
    """CFENN, the channel tower: a vision transformer over patches of one CSI matrix (environment-channel III-A1).

    Every link is normalised to unit power, as in the paper.

    Args:
        num_antennas: Antenna pairs R*T, the rows of the image.
        num_subcarriers: Subcarriers K, its columns.
        patch: Rows and columns of a patch; they must divide the image.
        width: Width of the tokens.
        layers: Number of blocks of this tower alone.
        shared_layers: Number of blocks that the other tower may share.
        heads: Attention heads of a block.
        embed_dim: Dimension of the embedding, the features.
        domain: `csi`, antennas by subcarriers as in the paper; or `angle_delay`, its two-dimensional DFT, in which
            paths are local, with a common phase that makes the strongest entry real. Two further input channels are the
            log-magnitude, which does not depend on phases, without and with a Hann window, whose low side lobes keep
            weak paths visible.
        pool: Pooling of the tokens, see `Tower`.

    Raises:
        ValueError: The patch does not divide the image.
    """

    def __init__(
        self,
        num_antennas: int = 32,
        num_subcarriers: int = 64,
        patch: tuple[int, int] = (8, 4),
        width: int = 256,
        layers: int = 6,
        shared_layers: int = 3,
        heads: int = 8,
        embed_dim: int = 128,
        domain: Domain = "csi",
        pool: Pool = "class",
    ) -> None:
        sizes = {"num_antennas": num_antennas, "num_subcarriers": num_subcarriers}
        check_choice("ChannelTransformer: domain", domain, Domain)
        check_positive("ChannelTransformer", **sizes, patch=min(patch))
        if num_antennas % patch[0] or num_subcarriers % patch[1]:
            raise ValueError(f"a patch of {tuple(patch)} does not divide an image of {num_antennas, num_subcarriers}")
        tokens = num_antennas // patch[0] * (num_subcarriers // patch[1])
        super().__init__(tokens, width, layers, shared_layers, heads, embed_dim, pool)
        self.save_hyperparameters()
        self.domain, self.csi_size = domain, (num_antennas, num_subcarriers)
        self.patches = nn.Conv2d(2 if domain == "csi" else 4, width, patch, stride=patch, bias=False)

    def forward(self, csi: Tensor) -> Tensor:
        """Return embeddings (B, D) of CSI (B, R, T, K)."""
        return self.embed(self.patchify(csi))

    def patchify(self, csi: Tensor) -> Tensor:
        """Return patches (B, num_tokens, width) of CSI (B, R, T, K).

        Raises:
            InputError: The data differ from the tower in antenna pairs or subcarriers.
        """
        if (csi.shape[1] * csi.shape[2], csi.shape[3]) != self.csi_size:
            raise InputError(
                f"the data have CSI of (R, T, K) = {tuple(csi.shape[1:])}, but the channel tower was made for (R*T, K) "
                f"= {self.csi_size}: set its num_antennas and num_subcarriers (and pre-train again), or data.bs, "
                "data.ue and data.ofdm"
            )
        channel = unit_power(csi)
        if self.domain == "csi":
            pixels = image(channel)
        else:
            windowed = log_level(to_delay(to_angle(tapered(channel))))
            channel = aligned(to_delay(to_angle(channel)))
            levels = torch.stack([channel.abs().log1p(), windowed], dim=1).flatten(2, 3)
            pixels = torch.cat([image(channel), levels], dim=1)
        patches: Tensor = rearrange(self.patches(pixels), "b d h w -> b (h w) d")
        return patches
