"""Classical channel predictors with the interface of an encoder, to be run by the same command as networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor

from datamodules.errors import InputError, check_choice, check_positive
from foundation.baselines import prediction
from foundation.encoder import Encoder

Predictor = Literal["hold", "zero", "ar1", "kalman", "wiener", "link_ar", "pad", "pad_vector"]
PREDICTORS: tuple[Predictor, ...] = get_args(Predictor)
#: least number of snapshots that a predictor needs, if more than one
LEAST = {"link_ar": 2, "pad": 3, "pad_vector": 2}


class ClassicalPredictor(Encoder):
    """Predicts the next channels by a classical predictor; its features are the prediction, for the head kind `given`.

    Args:
        predictor: One of `hold`, `zero`, `ar1` and `kalman` (ConTwin appendix D), `wiener` (one filter for all links),
            `link_ar` and `pad`, see `foundation.baselines.prediction`, and `pad_vector` of LLM4CP and CSI-4CAST.
        snapshots: Snapshots N of the past.
        horizons: Snapshots H to predict.
        num_antennas: Antenna pairs R*T.
        num_subcarriers: Subcarriers K.

    Raises:
        InputError: A number is not positive, or the predictor is unknown.
    """

    input_axes: ClassVar[Mapping[str, str]] = {"csi": "B N R T K"}
    rho: Tensor
    snr: Tensor
    weights: Tensor

    def __init__(
        self,
        predictor: Predictor,
        snapshots: int = 10,
        horizons: int = 1,
        num_antennas: int = 16,
        num_subcarriers: int = 64,
    ) -> None:
        sizes = {"horizons": horizons, "num_antennas": num_antennas, "num_subcarriers": num_subcarriers}
        check_positive("ClassicalPredictor", snapshots=snapshots, **sizes)
        check_choice("ClassicalPredictor: predictor", predictor, Predictor)
        super().__init__()
        self.save_hyperparameters()
        self.predictor, self.horizons = predictor, horizons
        self.least = snapshots if predictor == "wiener" else LEAST.get(predictor, 1)
        self.num_features = 2 * horizons * num_antennas * num_subcarriers
        self.register_buffer("rho", torch.zeros(()))
        self.register_buffer("snr", torch.ones(()))
        self.register_buffer("weights", torch.zeros(horizons, snapshots, dtype=torch.complex64))

    def prepare(self, batch: Mapping[str, Any]) -> None:
        """Fit the parameters of the predictor to the train side: rho, the SNR, and the weights of the pooled filter."""
        seen, future = self._checked(batch["csi"]), batch["next_csi"]
        clean = batch.get("clean_csi", seen)
        self.rho.fill_(prediction.fit_ar1(clean))
        noise = ((seen - clean).abs().square().mean((1, 2, 3, 4)) / _power(clean)).mean()
        self.snr.copy_(1 / noise.clamp_min(1e-9))
        future = future.unsqueeze(1) if future.ndim == 4 else future
        if self.predictor == "wiener" and future.shape[1] >= self.horizons:  # else the head refuses the data
            self.weights.copy_(prediction.fit_wiener(seen, future[:, : self.horizons], self.weights.shape[1]))

    def predict(self, csi: Tensor) -> Tensor:
        """Return the next channels (B, H, R, T, K) of a past (B, N, R, T, K)."""
        csi = self._checked(csi)
        if self.predictor == "ar1":
            return prediction.ar1(csi, self.horizons, float(self.rho))
        if self.predictor == "kalman":
            return prediction.kalman(csi, self.horizons, float(self.rho), float(self.snr))
        if self.predictor == "wiener":
            return prediction.wiener(csi, self.horizons, self.weights)
        predicted: Tensor = getattr(prediction, self.predictor)(csi, self.horizons)
        return predicted

    def _checked(self, csi: Tensor) -> Tensor:
        if csi.shape[1] < self.least:
            raise InputError(
                f"the predictor {self.predictor} needs a past of {self.least} snapshots, the data hold {csi.shape[1]}: "
                "set its snapshots, or data.sequence.snapshots"
            )
        return csi

    def forward(self, csi: Tensor) -> Tensor:
        """Return the prediction as features (B, 2*H*R*T*K), real and imaginary part of each entry."""
        return rearrange(torch.view_as_real(self.predict(csi).contiguous()), "b h r t k c -> b (h r t k c)")


def _power(csi: Tensor) -> Tensor:
    return csi.abs().square().mean((1, 2, 3, 4)).clamp_min(torch.finfo(csi.real.dtype).tiny)
