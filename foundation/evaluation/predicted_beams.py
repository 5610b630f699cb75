"""Accuracy and rate loss of beams chosen by a predicted channel (ConTwin appendix, "Additional experiments")."""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.channel.codebook import beam_power
from heads.metrics import RatioOfSums

#: SNR of the best beam at which rates are computed [dB]
SNR_DB = 10.0


class PredictedBeam(RatioOfSums):
    """Share of links whose best beam is found by the predicted channel, or the mean rate lost by its choice.

    Args:
        codebook: Beams (Q, T).
        rate: Whether to compute the rate lost [bit/s/Hz] against the best beam, whose SNR is 10 dB; else the share of
            links whose best beam is found.
    """

    def __init__(self, codebook: Tensor, rate: bool) -> None:
        super().__init__()
        self.codebook, self.rate = codebook, rate

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add predicted and true channels (B, R, T, K) of one instant."""
        codebook = self.codebook.to(target.device)
        guessed, true = beam_power(prediction, codebook), beam_power(target, codebook)
        heard = (true.amax(1) > 0) & true.isfinite().all(1)
        chosen, true = guessed[heard].argmax(1, keepdim=True), true[heard]
        if not self.rate:
            self.add((chosen.squeeze(1) == true.argmax(1)).float())
            return
        share = true.gather(1, chosen).squeeze(1) / true.amax(1)
        snr = 10 ** (SNR_DB / 10)
        self.add(torch.log2(torch.tensor(1 + snr, device=share.device)) - torch.log2(1 + snr * share))
