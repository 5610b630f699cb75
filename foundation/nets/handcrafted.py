"""Handcrafted features, a reference without learned parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules.channel.transforms import deviation, power_db, received, standard_level, to_angle, to_delay, unit_power
from datamodules.errors import InputError, check_choice, check_positive
from foundation.encoder import Encoder

Kind = Literal["profiles", "power", "raw"]


class HandFeatures(Encoder):
    """Angle and delay profiles and power of the channel, without learned parameters.

    Args:
        num_antennas: Number of transmit antennas T of the data.
        num_subcarriers: Number of subcarriers K of the data.
        kind: `profiles`, sums of the magnitude of the unit-power channel in the angle-delay domain over each axis, T +
            K numbers, and the power [dB]; `power`, the power alone; `raw`, real and imaginary parts of the channel
            averaged over receive antennas.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_antennas: int, num_subcarriers: int, kind: Kind = "profiles") -> None:
        super().__init__()
        self.save_hyperparameters()
        check_choice("HandFeatures: kind", kind, Kind)
        check_positive("HandFeatures", num_antennas=num_antennas, num_subcarriers=num_subcarriers)
        self.kind, self.size = kind, (num_antennas, num_subcarriers)
        sizes = {
            "profiles": num_antennas + num_subcarriers + 1,
            "power": 1,
            "raw": 2 * num_antennas * num_subcarriers,
        }
        self.num_features = sizes[kind]
        self.register_buffer("mean", torch.zeros(self.num_features))
        self.register_buffer("std", torch.ones(self.num_features))

    def prepare(self, batch: Mapping[str, Any]) -> None:
        """Set mean and standard deviation of every feature over the links with power of a sample of the train side."""
        csi = batch["csi"]
        values = self._features(csi[received(csi)])
        self.mean.copy_(values.mean(0))
        self.std.copy_(deviation(values).clamp_min(1e-12))

    def forward(self, csi: Tensor) -> Tensor:
        """Return features (B, D) of CSI (B, R, T, K)."""
        values = (self._features(csi) - self.mean) / self.std
        if self.kind == "raw":
            return values
        level = standard_level(csi, self.mean[-1], self.std[-1])
        return torch.cat([values[:, :-1], level.unsqueeze(1)], dim=1)

    def _features(self, csi: Tensor) -> Tensor:
        if csi.shape[2:] != self.size and self.kind != "power":
            raise InputError(
                f"the data have CSI of (T, K) = {tuple(csi.shape[2:])}, but HandFeatures was made for {self.size}: set "
                "model.encoder.num_antennas and num_subcarriers, or data.bs and data.ofdm"
            )
        level = power_db(csi).unsqueeze(1)
        if self.kind == "power":
            return level
        channel = unit_power(csi)
        if self.kind == "raw":
            return torch.view_as_real(channel.mean(1)).flatten(1)
        spectrum = to_delay(to_angle(channel)).abs().mean(1)
        return torch.cat([spectrum.sum(1), spectrum.sum(2), level], dim=1)
