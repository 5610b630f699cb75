"""Layers that several heads and encoders use."""

from __future__ import annotations

from typing import Any

from torch import nn

from heads.base import check_at_least


def mlp(in_features: int, hidden: int | None, out_features: int, dropout: float = 0.0) -> nn.Module:
    """Build two fully connected layers with a ReLU between, the head of CSI-CLIP III-B, or a single one.

    Args:
        in_features: Width of the input.
        hidden: Width between the layers; None makes it one linear layer.
        out_features: Width of the output.
        dropout: Probability with which a hidden unit is dropped in training.

    Returns:
        The network, (B, in_features) to (B, out_features).

    Raises:
        ValueError: If `hidden` is below 1 or `dropout` outside [0, 1).
    """
    if hidden is None:
        return nn.Linear(in_features, out_features)
    check_at_least("hidden", hidden, 1)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    return nn.Sequential(
        nn.Linear(in_features, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, out_features)
    )


def attention_blocks(layers: int, width: int, heads: int) -> nn.Sequential:
    """Return residual attention blocks with QuickGELU (environment-channel section III-A1), (B, N, width) each way.

    Raises:
        ValueError: `width` is no multiple of `heads`.
    """
    # not at import: timm is slow to load, and the command line must not pay for it
    from timm.layers.activations import QuickGELU
    from timm.models.vision_transformer import Block

    if width % heads:
        raise ValueError(f"the width {width} must be a multiple of the number of attention heads {heads}")
    settings: dict[str, Any] = {"qkv_bias": True, "act_layer": QuickGELU}
    return nn.Sequential(*(Block(width, heads, **settings) for _ in range(layers)))
