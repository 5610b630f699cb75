"""Convolutional encoders of channel images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.channel.transforms import (
    deviation,
    image,
    level_image,
    power_db,
    received,
    standard_level,
    to_angle,
    to_delay,
    unit_power,
)
from datamodules.errors import InputError, check_choice, check_positive
from foundation.encoder import Encoder

Domain = Literal["csi", "cir", "angle_delay", "angle_delay_level"]
Normalization = Literal["global", "link"]
Norm = Literal["batch", "group"]
Stride = Literal[2, 4]


class ResNet(Encoder):
    """ResNet of timm over the channel as an image (CSI-CLIP section IV-B).

    The image has real and imaginary part as channels, antenna pairs as rows, and subcarriers (`csi`) or delay taps
    (`cir`) as columns.

    Args:
        backbone: Name of a ResNet in timm.
        domain: `csi`, `cir` (the inverse DFT over subcarriers), `angle_delay` (then also a DFT over transmit antennas),
            or `angle_delay_level`, its log-magnitude, with and without a Hann window, in place of real and imaginary
            part (not in the paper), which requires `normalize: link`.
        normalize: `global` is the min-max scaling and standardisation of the paper, both over the train side; two
            affine maps, together (x - mean) / std. `link` normalises every link to unit power and adds its power in dB,
            standardised over the train side, as a third channel, because path loss spans 60 dB or more and a global
            scale makes the inputs of distant users vanish.
        width: Factor of the number of channels of every stage.
        norm: `batch`, or `group` for group norm with 16 channels a group, which does not depend on the number of
            processes and passes no information between the samples of a contrastive batch.
        stem_stride: 4, or 2 without the max pooling of the stem, for images of 32 rows or less.

    Raises:
        InputError: `angle_delay_level` without `normalize: link`, or an argument is unknown or out of range.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str = "resnet50",
        domain: Domain = "csi",
        normalize: Normalization = "global",
        width: float = 1.0,
        norm: Norm = "batch",
        stem_stride: Stride = 4,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_positive("ResNet", width=width)
        choices = {"domain": (domain, Domain), "normalize": (normalize, Normalization), "norm": (norm, Norm)}
        for name, (value, known) in {**choices, "stem_stride": (stem_stride, Stride)}.items():
            check_choice(f"ResNet: {name}", value, known)
        if domain == "angle_delay_level" and normalize != "link":
            raise InputError("ResNet: domain angle_delay_level needs normalize: link, since its input has unit power")
        import timm  # not at import: it is slow to load, and the command line must not pay for it
        from timm.layers.norm import GroupNorm

        layers: dict[str, Any] = {
            "in_chans": 2 if normalize == "global" else 3,
            "num_classes": 0,
            "channels": tuple(max(16, round(width * n / 16) * 16) for n in (64, 128, 256, 512)),
        }
        if norm == "group":
            layers["norm_layer"] = lambda n, **kwargs: GroupNorm(n, num_groups=n // 16, **kwargs)
        if not timm.is_model(backbone):
            raise InputError(
                f"ResNet: backbone must be a ResNet of timm, such as resnet18 or resnet50, got {backbone!r}"
            )
        net: Any = timm.create_model(backbone, **layers)
        if stem_stride == 2:
            net.maxpool = nn.Identity()
        self.net: nn.Module = net
        self.domain, self.normalize = domain, normalize
        self.num_features = net.num_features
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def prepare(self, batch: Mapping[str, Any]) -> None:
        """Set the input statistics over the links with power of a sample of the train side."""
        csi = batch["csi"]
        csi = csi[received(csi)]
        values = image(self._transform(csi)) if self.normalize == "global" else power_db(csi)
        self.mean.copy_(values.mean())
        self.std.copy_(deviation(values.flatten()).clamp_min(torch.finfo(values.dtype).tiny))

    def forward(self, csi: Tensor) -> Tensor:
        """Return features (B, D) of CSI (B, R, T, K)."""
        # channels-last: 1.1 to 1.4 times as fast as contiguous on a CPU, seven times with group norm and narrow towers
        pixels = self._image(csi).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.net(pixels)
        return features

    def _transform(self, csi: Tensor) -> Tensor:
        if self.domain == "angle_delay":
            csi = to_angle(csi)
        return csi if self.domain == "csi" else to_delay(csi)

    def _image(self, csi: Tensor) -> Tensor:
        if self.normalize == "global":
            return (image(self._transform(csi)) - self.mean) / self.std
        levels = self.domain == "angle_delay_level"
        pixels = level_image(csi) if levels else image(self._transform(unit_power(csi)))
        level = standard_level(csi, self.mean, self.std).reshape(-1, 1, 1, 1)
        return torch.cat([pixels, level.expand_as(pixels[:, :1])], dim=1)
