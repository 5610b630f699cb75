"""CSI-CLIP: contrastive learning between channel frequency response and channel impulse response."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datamodules.errors import check_positive
from foundation.encoder import Encoder
from foundation.gather import concatenate, gather_rows
from foundation.losses.clip import CLIPLoss, mixed, spread, unit
from foundation.models.contrastive import ContrastiveTask, full_batches, retrieval_scores
from foundation.optim.schedules import Schedule
from foundation.task import StartFrom, link_identity


class CSICLIP(ContrastiveTask):
    """Contrastive pre-training with the CSI and the CIR of a link as a positive pair, other links as negatives.

    Section III-A of the paper. When the batch has `views`, the towers read two independent observations of the channel;
    otherwise both read the same noise-free channel, as in the paper. The projections are used in pre-training alone;
    heads read the features of the CSI tower.

    Args:
        csi_encoder: Encoder of the CSI, used by heads.
        cir_encoder: Encoder of the impulse response.
        embed_dim: Dimension of the common embedding space.
        temperature: Initial value of the learned temperature, 0.01 to 1.
        lr: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        schedule: Learning-rate schedule, see `foundation.optim.schedules`.
        start_from: Checkpoint to start from, the whole or parts by name, see `FoundationTask`.
    """

    towers: ClassVar[dict[str, str]] = {"csi": "csi_encoder", "cir": "cir_encoder"}
    loss: CLIPLoss

    def __init__(
        self,
        csi_encoder: Encoder,
        cir_encoder: Encoder,
        embed_dim: int = 128,
        temperature: float = 0.07,
        lr: float = 8e-4,
        weight_decay: float = 0.01,
        schedule: Schedule = "plateau",
        start_from: StartFrom = None,
    ) -> None:
        super().__init__(lr, weight_decay, schedule, start_from=start_from)
        self.save_hyperparameters()
        check_positive("CSICLIP", embed_dim=embed_dim, temperature=temperature)
        self.csi_encoder, self.cir_encoder = csi_encoder, cir_encoder
        self.csi_projection = nn.Linear(csi_encoder.num_features, embed_dim, bias=False)
        self.cir_projection = nn.Linear(cir_encoder.num_features, embed_dim, bias=False)
        self.loss = CLIPLoss(temperature)
        self._validated: list[dict[str, Tensor]] = []

    def prepare_from(self, datamodule: Any) -> None:
        """Set the input statistics of both towers from the train side."""
        sample = datamodule.sample()
        self.csi_encoder.prepare(sample)
        self.cir_encoder.prepare(sample)

    def forward(self, csi: Tensor, cir: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features of the CSI tower and both embeddings.

        Args:
            csi: Input of the CSI tower, (B, R, T, K) complex.
            cir: Input of the CIR tower, also as CSI (B, R, T, K); by default `csi`.

        Returns:
            Features (B, D), CSI embeddings (B, E) and CIR embeddings (B, E), not normalised.
        """
        features = self.csi_encoder(csi)
        other = self.cir_encoder(csi if cir is None else cir)
        return features, self.csi_projection(features), self.cir_projection(other)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return the contrastive loss (eq 2 of the paper), and the features for the online probe."""
        features, a, b = self(*batch.get("views", (batch["csi"],)))
        loss = self.loss(a, b)
        self.log_training(loss=loss, scale=self.loss.scale)
        return {"loss": loss, "features": features.detach()}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Store the embeddings; return the features for the online probe."""
        features, a, b = self(*batch.get("views", (batch["csi"],)))
        self._validated.append({"a": a, "b": b})
        return {"features": features}

    def on_validation_epoch_end(self) -> None:
        """Log loss, retrieval in both directions in batches of 128, and embedding spread, over all processes."""
        rows = gather_rows(concatenate(self._validated))
        self._validated.clear()
        a, b = mixed(rows["a"], rows["b"])
        batches = full_batches({"a": a, "b": b})
        values = {"val/loss": torch.stack([self.loss.local(batch["a"], batch["b"]) for batch in batches]).mean()}
        values |= retrieval_scores({"csi_to_cir": (a, b), "cir_to_csi": (b, a)})
        values["val/embedding_spread"] = spread(a)
        self.log_whole(values, "val/loss", "val/csi_to_cir/retrieval_top1")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return features and embeddings of the channels, with position, site, user and LOS status."""
        features, a, b = self(batch["csi"])
        return {"features": features, "csi_embedding": unit(a), "cir_embedding": unit(b), **link_identity(batch)}
