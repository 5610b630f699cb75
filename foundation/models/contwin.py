"""ConTwin, phase I: domain-aware contrastive pre-training of an encoder of channel sequences."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.errors import InputError, check_choice, check_positive
from foundation.contract import check_keys
from foundation.encoder import Encoder
from foundation.gather import concatenate, gather, gather_rows
from foundation.losses.clip import spread, unit
from foundation.losses.domain_similarity import THRESHOLDS, adversarial_pairs, positive_pairs
from foundation.losses.ntxent import Negatives, NTXentLoss
from foundation.models.contrastive import ContrastiveTask, full_batches, retrieval_scores
from foundation.nets.contwin import CNNTransformer, past_image
from foundation.optim.schedules import Schedule
from foundation.task import StartFrom, link_identity
from heads.feedback import mean_of_counted

Objective = Literal["contrast", "reconstruction"]
Pool = Literal["adversarial", "all"]


class ConTwin(ContrastiveTask):
    """Contrastive pre-training with positives of similar domain and negatives of dissimilar domain.

    Section 5 of the paper, phase I; phase II is the head `Prediction` on the frozen encoder. The two `views` of a batch
    are two windows of one user, at most `data.sequence.window` apart (25 ms), with independent impairments (section
    4.2). The projection is used in pre-training alone.

    Where the paper contradicts itself, both values are options, with that of the text as the default:

    - the temperature starts at 0.1 (text) or 0.5 (Table 6);
    - the number of negatives is an eighth of all rows (mining) or 50 (loss), `num_negatives`;
    - a row has several positives (eq 3), or its other view alone, `rho: null` (Table 6, "even/odd paired");
    - a batch has 512 links (text) or 32 (Table 6), the learning rate is 1e-3 (text) or 1e-4 (Table 6);
    - negatives are the `farthest` of the pool, as in the mining of eq 3, or the `nearest`, the usual hard negatives.

    Ablation A1 is `negatives: none` with `pool: all`, A2 a window of 5 ms. The objective `reconstruction` is not in the
    paper: it measures the effect of the contrastive loss with the same encoder, data and steps.

    Args:
        encoder: Encoder of sequences (B, N, R, T, K), such as `CNNTransformer`.
        objective: `contrast`, or `reconstruction` of the noise-free past from the features of the first view, by a
            linear layer that belongs to pre-training; views must then change nothing that is to be rebuilt.
        embed_dim: Dimension of the projection.
        rho: Least domain similarity, the number of equal domain axes, at which links are positives (section 5: 5, all
            axes). None makes the views of one link the only positives.
        weights: Weight of each axis in that similarity, by default 1.
        pool: Rows from which negatives are mined: `adversarial`, those that differ by a criterion of eq 2, or `all`.
        thresholds: Criteria of eq 2 by axis in place of Table 4's: `mobility` [m/s], `tilt` [degrees] and `frequency`
            [MHz]. Scenario and line of sight differ where they are not the same.
        lambdas: Weight of each axis in eq 2, in [0, 1], by default 1.
        negatives: Selection of negatives from the pool, see `NTXentLoss`.
        num_negatives: Number of negatives, see `NTXentLoss`.
        temperature: Initial value of the learned temperature, 0.01 to 1.
        lr: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        schedule: Learning-rate schedule, see `foundation.optim.schedules`.
        start_from: Checkpoint to start from, the whole or parts by name, see `FoundationTask`.

    Raises:
        InputError: An argument is out of range.
    """

    loss: NTXentLoss

    def __init__(
        self,
        encoder: Encoder,
        embed_dim: int = 128,
        rho: float | None = 5.0,
        weights: dict[str, float] | None = None,
        pool: Pool = "adversarial",
        thresholds: dict[str, float] | None = None,
        lambdas: dict[str, float] | None = None,
        negatives: Negatives = "farthest",
        num_negatives: int | None = None,
        temperature: float = 0.1,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        schedule: Schedule = "cosine",
        start_from: StartFrom = None,
        objective: Objective = "contrast",
    ) -> None:
        super().__init__(lr, weight_decay, schedule, start_from=start_from)
        self.save_hyperparameters()
        check_positive("ConTwin", embed_dim=embed_dim, rho=rho)
        check_choice("ConTwin: pool", pool, Pool)
        check_choice("ConTwin: objective", objective, Objective)
        self.encoder = encoder
        width = encoder.num_features
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, embed_dim))
        self.loss = NTXentLoss(temperature, negatives, num_negatives)
        self.rho, self.weights, self.pool, self.lambdas = rho, weights, pool, lambdas
        self.thresholds = {**THRESHOLDS, **(thresholds or {})}
        self.decoder: nn.Linear | None = None
        if objective == "reconstruction":
            if not isinstance(encoder, CNNTransformer):
                raise InputError("objective reconstruction is for the encoder CNNTransformer, whose image is rebuilt")
            self.decoder = nn.Linear(width, 2 * encoder.snapshots * math.prod(encoder.shape))
            for unused in (self.projection, self.loss):
                unused.requires_grad_(False)
        self._validated: list[dict[str, Tensor]] = []
        none = torch.zeros(0, 5, dtype=torch.int64)
        try:
            positive_pairs(none, none, weights=weights)
            adversarial_pairs(none, none, weights=lambdas, thresholds=self.thresholds)
        except ValueError as error:
            raise InputError(f"ConTwin: {error}") from error

    def check_settings(self, datamodule: Any, stage: str) -> None:
        """Check that batches have views and domain labels."""
        needed = ("views", *["domain"] * (self.decoder is None))
        check_keys(datamodule, "ConTwin needs", needed if stage in ("fit", "validate") else ())

    def prepare_from(self, datamodule: Any) -> None:
        """Set the input statistics from the train side."""
        if self.encoder.takes_statistics:
            self.encoder.prepare(datamodule.sample())

    def forward(self, csi: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, D) and embeddings (B, E), not normalised, of the past (B, N, R, T, K)."""
        features = self.encoder(csi)
        return features, self.projection(features)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, of eq 3 or of the reconstruction, and the features of one view for the online probe."""
        views = batch["views"]
        if self.decoder is not None:
            features = self.encoder(views[0])
            loss = mean_of_counted(self.reconstruction_error(features, batch)).squeeze(0)
            self.log_training(loss=loss)
            return {"loss": loss, "features": features.detach()}
        features, embeddings = self(torch.cat(views))
        link, domain = (value.repeat(len(views), *[1] * (value.ndim - 1)) for value in (_link(batch), batch["domain"]))
        positives, pool = self.pairs(link, domain, gather(link), gather(domain))
        loss = self.loss(embeddings, positives, pool)
        # an empty pool has no gradient and cannot be seen in the loss
        sizes = {"positives": positives.sum(1).float().mean() - 1, "pool": pool.sum(1).float().mean()}
        self.log_training(loss=loss, scale=self.loss.scale, **sizes)
        return {"loss": loss, "features": features[: len(views[0])].detach()}

    def reconstruction_error(self, features: Tensor, batch: dict[str, Any]) -> Tensor:
        """Return terms (B, 2) for `mean_of_counted` of the noise-free past as it is rebuilt from the features (B, D).

        They are the linear NMSE of the link and 1, both zero for a link without power.
        """
        assert self.decoder is not None
        assert isinstance(self.encoder, CNNTransformer)
        clean = batch.get("clean_csi", batch["csi"])
        target = past_image(clean, self.encoder.snapshots, self.encoder.shape, self.encoder.domain).flatten(1)
        level = target.square().sum(1)
        error = (self.decoder(features) - target).square().sum(1)
        error = torch.where(level > 0, error / level.clamp_min(torch.finfo(level.dtype).tiny), 0.0)
        return torch.stack([error, (level > 0).to(error)], dim=1)

    def pairs(self, link: Tensor, domain: Tensor, links: Tensor, domains: Tensor) -> tuple[Tensor, Tensor]:
        """Return the masks of positives, each row included, and of the pool of negatives.

        Args:
            link: Link number of each row, (B,).
            domain: Domain labels, (B, A).
            links: Link numbers of the rows of all processes, (M,).
            domains: Their domain labels, (M, A).

        Returns:
            Two masks (B, M), bool.
        """
        positives = link.unsqueeze(1) == links
        if self.rho is not None:
            positives |= positive_pairs(domain, domains, self.rho, self.weights)
        if self.pool == "all":
            return positives, ~positives
        pool = adversarial_pairs(domain, domains, weights=self.lambdas, thresholds=self.thresholds)
        return positives, pool & ~positives

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Store the embeddings; return the features of one view for the online probe."""
        (features, one), (_, other) = (self(view) for view in batch["views"])
        if self.decoder is not None:
            self._validated.append({"one": features, "error": self.reconstruction_error(features, batch)})
            return {"features": features}
        self._validated.append({"one": one, "other": other, "link": _link(batch), "domain": batch["domain"]})
        return {"features": features}

    def on_validation_epoch_end(self) -> None:
        """Log loss and retrieval of the second view by the first, in groups of 128 links, and embedding spread."""
        rows = gather_rows(concatenate(self._validated))
        self._validated.clear()
        if self.decoder is not None:
            loss = mean_of_counted(rows["error"]).squeeze(0)
            self.log_whole({"val/loss": loss, "val/embedding_spread": spread(rows["one"])}, "val/loss")
            return
        # rows are ordered by site: without a permutation a group would be of one domain
        order = torch.randperm(len(rows["link"]), generator=torch.Generator().manual_seed(0))
        rows = {key: value[order.to(value.device)] for key, value in rows.items()}
        values = {"val/loss": torch.stack([self._group_loss(group) for group in full_batches(rows)]).mean()}
        values |= retrieval_scores({"views": (rows["one"], rows["other"])})
        values["val/embedding_spread"] = spread(rows["one"])
        self.log_whole(values, "val/loss")

    def _group_loss(self, group: dict[str, Tensor]) -> Tensor:
        link, domain = torch.cat([group["link"]] * 2), torch.cat([group["domain"]] * 2)
        return self.loss.local(torch.cat([group["one"], group["other"]]), *self.pairs(link, domain, link, domain))

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return features and embeddings of the observed channels, with position, site, user and LOS status."""
        features, embedding = self(batch["csi"])
        return {"features": features, "embedding": unit(embedding), **link_identity(batch)}


def _link(batch: dict[str, Any]) -> Tensor:
    """Return a unique number of each link, (B,)."""
    number: Tensor = (batch["site"].long() << 32) + batch["user"].long()
    return number
