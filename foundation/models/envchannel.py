"""Environment-channel: contrastive learning between maps and channels."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datamodules.errors import InputError, check_not_negative, check_positive
from datamodules.maps.raster import UNKNOWN_LOS, Entry
from foundation.contract import check_inputs
from foundation.encoder import Encoder
from foundation.gather import concatenate, gather_rows
from foundation.losses.clip import BATCH, CLIPLoss, mixed, spread, unit
from foundation.losses.surroundings import KINDS, counterfactual, profile_moments, unexplained
from foundation.models.contrastive import ContrastiveTask, retrieval_scores
from foundation.models.zeroshot import ZeroShot, compare, los_credit, los_options, scale_credit, scale_options
from foundation.nets.transformer import Tower
from foundation.optim.schedules import Schedule
from foundation.runtime.figures import caption, log_figures, log_rows
from foundation.task import OptimizerName, StartFrom, link_identity
from heads import Feedback
from heads.feedback import error_terms, mean_of_counted


class EnvChannel(ContrastiveTask):
    """Contrastive pre-training of an environment tower (map and positions) and a channel tower (CSI).

    Environment-channel section III-A, L = L_C + L_R (eq 12): the symmetric contrastive loss of the embeddings of both
    towers (eq 6-10), and the error of a decoder, the CRNN, that reconstructs the CSI from the embedding of the channel
    tower (eq 11). The last blocks of both towers are one shared module, the MSNN. `lightning test` runs the zero-shot
    tasks of section IV-B on the test side.

    Args:
        channel_encoder: CFENN, the encoder of the CSI, used by heads.
        environment_encoder: EPNN, the encoder of map and geometry. Without it L_R alone trains the channel tower, which
            is the area-general ViT of the paper.
        decoder: Constructor of the CRNN, called with the number of features; None omits L_R.
        share: Whether both towers share their last blocks (MSNN).
        reconstruction: Weight of L_R. The paper gives neither a weight nor the power to which channels are normalised,
            on which eq 11 depends; here L_R is the linear NMSE, which is 1 for an all-zero prediction.
        profile: Weight of an additional loss, not in the paper: a linear layer predicts the log-magnitude of the
            channel in the angle-delay domain from the embedding of either tower. It also depends on weak paths, which
            distinguish positions and LOS from NLOS links, whereas L_R depends mainly on the strongest paths.
        counterfactuals: Weight of an additional contrastive loss, not in the paper, whose negatives are modified
            environments of the same link: map scale reduced and increased by a fifth (all NLOS links, a quarter of the
            others), inverted LOS status (an eighth of the links), and a modified map with the same positions (an
            eighth): without the buildings on the direct line for NLOS links, rotated for LOS links.
        rebuild_first: Share of the training steps in which only L_R trains the channel tower, at a third of the cost of
            a step. With both losses from the start both converge more slowly. Not in the paper.
        withheld: Share of the training links whose LOS status is set to unknown, so that the environment tower infers
            it from the map.
        temperature: Initial value of the learned temperature, 0.01 to 1.
        lr: Peak learning rate.
        weight_decay: Weight decay.
        schedule: Learning-rate schedule, see `foundation.optim.schedules`.
        optimizer: `adamw` or `muon`, see `Muon`.
        start_from: Checkpoint to start from, the whole or parts by name, see `FoundationTask`.

    Raises:
        InputError: A number is out of range, or there is neither environment tower nor decoder, or no decoder for
            `rebuild_first` or `profile`, or the towers differ in the size of embeddings or shared blocks.
    """

    towers: ClassVar[dict[str, str]] = {"channel": "channel_encoder", "environment": "environment_encoder"}
    parts: ClassVar[dict[str, str]] = {"decoder": "decoder"}
    loss: CLIPLoss

    def __init__(
        self,
        channel_encoder: Encoder,
        environment_encoder: Encoder | None = None,
        decoder: Callable[[int], Feedback] | None = None,
        share: bool = True,
        reconstruction: float = 1.0,
        profile: float = 0.0,
        counterfactuals: float = 0.0,
        rebuild_first: float = 0.0,
        withheld: float = 0.0,
        temperature: float = 0.07,
        lr: float = 5e-4,
        weight_decay: float = 0.01,
        schedule: Schedule = "restarts",
        optimizer: OptimizerName = "adamw",
        start_from: StartFrom = None,
    ) -> None:
        super().__init__(lr, weight_decay, schedule, optimizer, start_from)
        self.save_hyperparameters()
        check_positive("EnvChannel", temperature=temperature)
        weights = {"reconstruction": reconstruction, "profile": profile, "counterfactuals": counterfactuals}
        check_not_negative("EnvChannel", **weights)
        for name, share_of in {"rebuild_first": rebuild_first, "withheld": withheld}.items():
            if not 0 <= share_of <= 1:
                raise InputError(f"EnvChannel: {name} must be in [0, 1], got {share_of:g}")
        width = channel_encoder.num_features
        if environment_encoder is None and decoder is None:
            raise InputError("EnvChannel needs model.environment_encoder, model.decoder, or both")
        if (rebuild_first or profile) and decoder is None:
            raise InputError("model.rebuild_first and model.profile need model.decoder, and there is none")
        if environment_encoder is not None and environment_encoder.num_features != width:
            raise InputError(
                f"both towers must have the same embed_dim, got {width} and {environment_encoder.num_features} features"
            )
        self.channel_encoder, self.environment_encoder = channel_encoder, environment_encoder
        if share and environment_encoder is not None:
            _share(channel_encoder, environment_encoder)
        self.decoder = None if decoder is None else decoder(width)
        if self.decoder is not None and channel_encoder.csi_size is not None:
            self.decoder.configure(*channel_encoder.csi_size)
        self.profile, self.profile_layer = profile, None
        if profile and self.decoder is not None:
            if self.decoder.num_antennas is None or self.decoder.num_subcarriers is None:
                raise InputError("model.profile needs the decoder's num_antennas and num_subcarriers: set them")
            self.profile_layer = nn.Linear(width, self.decoder.num_antennas * self.decoder.num_subcarriers)
        self.rebuild_first, self.withheld = rebuild_first, withheld
        self.loss = CLIPLoss(temperature)
        self.reconstruction, self.counterfactuals = reconstruction, counterfactuals
        self._kept: list[dict[str, Tensor]] = []
        self._zero_shot: ZeroShot | None = None

    def describe(self) -> dict[str, Any]:
        """Return the name of the model and the mode, `pretrain` or `zeroshot`."""
        testing = self._trainer is not None and self.trainer.testing
        return {**super().describe(), "mode": "zeroshot" if testing else "pretrain"}

    def check_settings(self, datamodule: Any, stage: str) -> None:
        """Check that batches have the inputs of the environment tower."""
        if self.environment_encoder is not None:
            check_inputs(datamodule, "the environment tower reads", self.environment_encoder.input_keys)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Return the embeddings of the channel and of the environment, (B, D) each, not normalised."""
        environment = None if self.environment_encoder is None else self.environment_encoder.encode(batch)
        return self.channel_encoder.encode(batch), environment

    def _losses(self, batch: dict[str, Any], channel: Tensor, environment: Tensor | None) -> dict[str, Tensor]:
        """Return the terms of the loss (eq 12) of a training batch by name."""
        losses = {} if environment is None else {"contrast": self.loss(channel, environment)}
        kind = torch.arange(len(channel), device=channel.device) % KINDS  # rows are in random order
        return losses | self._of_rows(self._rows(batch, channel, environment, kind))

    def _rows(
        self, batch: dict[str, Any], channel: Tensor, environment: Tensor | None, kind: Tensor
    ) -> dict[str, Tensor]:
        """Return the contribution of each link to the terms of the loss except the contrastive one, (B,) or (B, n)."""
        rows = {}
        if environment is not None and self.environment_encoder is not None and self.counterfactuals:
            rows["counterfactual"] = counterfactual(
                self.environment_encoder, batch, channel, environment, self.loss.scale, kind
            )
        if self.decoder is not None:
            rows["rebuild"] = error_terms(self.decoder(channel), batch)
        if self.profile_layer is not None:
            readings = [self.profile_layer(each) for each in (channel, environment) if each is not None]
            rows["profile"] = profile_moments(readings, batch)
        return rows

    def _of_rows(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted terms of the loss from the contributions of the links.

        Links without power have no part in the reconstruction, nor in the profile.
        """
        losses = {}
        if "counterfactual" in rows:
            losses["counterfactual"] = self.counterfactuals * rows["counterfactual"].mean()
        if "rebuild" in rows:
            losses["rebuild"] = self.reconstruction * mean_of_counted(rows["rebuild"]).squeeze(0)
        if "profile" in rows:
            losses["profile"] = self.profile * unexplained(rows["profile"])
        return losses

    def _withhold(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with the LOS status of its first links set to unknown; rows are in random order."""
        geometry = batch["geometry"].clone()
        geometry[: round(self.withheld * len(geometry)), Entry.LOS] = UNKNOWN_LOS
        return {**batch, "geometry": geometry}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss (eq 12), and the features for the online probe."""
        if self.environment_encoder is not None and self.withheld:
            batch = self._withhold(batch)
        if self.global_step < self.rebuild_first * self.trainer.estimated_stepping_batches:
            channel, environment = self.channel_encoder.encode(batch), None
        else:
            channel, environment = self(batch)
        losses = self._losses(batch, channel, environment)
        total = torch.stack(list(losses.values())).sum()
        self.log_training(loss=total, **losses)
        if environment is None:
            total = total + 0 * sum(p.sum() for p in self._idle())  # DDP requires a gradient of every parameter
        return {"loss": total, "features": channel.detach()}

    def _idle(self) -> list[nn.Parameter]:
        """Return the parameters without a gradient from L_R."""
        tower = [] if self.environment_encoder is None else self.environment_encoder.parameters()
        return [*tower, *self.loss.parameters()]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Store embeddings, loss contributions and the scores of the zero-shot tasks of single links."""
        channel, environment = self(batch)
        # the row of the user selects the counterfactuals, whatever the order of sources and the number of processes
        kept = {"channel": channel, **self._rows(batch, channel, environment, batch["user"] % KINDS)}
        if environment is not None and self.environment_encoder is not None:
            los, scale = (
                compare(self.environment_encoder, batch, options(batch["geometry"]), channel, environment)
                for options in (los_options, scale_options)
            )
            kept["environment"] = environment
            kept["los_accuracy"] = torch.where(batch["los"] >= 0, los_credit(los, batch["los"].clamp_min(0)), torch.nan)
            kept["scale_accuracy"] = scale_credit(scale)
        self._kept.append(kept)
        return {"features": channel}

    def on_validation_epoch_end(self) -> None:
        """Log losses, accuracies, retrieval in both directions in batches of 128, and spread, over all processes."""
        kept = gather_rows(concatenate(self._kept))
        self._kept.clear()
        values = {f"val/{name}": value for name, value in self._terms(kept).items()}
        channel = kept["channel"]
        if "environment" in kept:
            values |= {f"val/{name}": kept[name].nanmean() for name in ("los_accuracy", "scale_accuracy")}
            channel, environment = mixed(kept["channel"], kept["environment"])
            pairs = {"channel_to_environment": (channel, environment), "environment_to_channel": (environment, channel)}
            values |= retrieval_scores(pairs)
        values["val/embedding_spread"] = spread(channel)
        self.log_whole(values, "val/loss", "val/los_accuracy")

    def _terms(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss and its terms, means over batches as of a single process."""
        count = len(kept["channel"])
        size = getattr(self.datamodule, "batch_size", BATCH)
        terms: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        for start in range(0, count, size):
            rows = {name: values[start : start + size] for name, values in kept.items()}
            losses = self._of_rows(rows)
            if "environment" in rows:
                losses["contrast"] = self.loss.local(rows["channel"], rows["environment"])
            for name, value in losses.items():
                terms[name] = terms[name] + value * (len(rows["channel"]) / count)
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    # --- zero-shot tasks

    def on_test_start(self) -> None:
        """Set up the zero-shot tasks."""
        self._zero_shot = ZeroShot(self.datamodule.sides["test"].sites)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Embed the batch and all options of the zero-shot tasks."""
        assert self._zero_shot is not None
        channel, environment = self(batch)
        rebuilt = None if self.decoder is None else self.decoder(channel)
        self._zero_shot.add(batch, channel, environment, rebuilt, self.environment_encoder)

    def on_test_epoch_end(self) -> None:
        """Log score and chance level of every task, and draw the figures."""
        assert self._zero_shot is not None
        zero_shot = self._zero_shot.gathered()
        self.log_whole({f"test/{name}": value for name, value in zero_shot.scores().items()})
        shown = sum(len(part["site"]) for part in zero_shot.parts)
        log_figures(self.trainer, zero_shot.figures, caption(self, shown))
        [tested] = zero_shot.parts
        log_rows(self.trainer, {"features": tested["channel"], **{k: tested[k] for k in ("los", "position", "site")}})
        self._zero_shot = None

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return features and embeddings of unit norm, with position, site, user and LOS status."""
        channel, environment = self(batch)
        result = {"features": channel, "channel_embedding": unit(channel)}
        if environment is not None:
            result["environment_embedding"] = unit(environment)
        return result | link_identity(batch)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule (section IV-B)."""
        if self.rebuild_first and not math.isfinite(self.trainer.estimated_stepping_batches):
            raise InputError(
                "model.rebuild_first is a share of the training: set trainer.max_epochs or trainer.max_steps"
            )
        stages = (self.rebuild_first, 1.0) if self.rebuild_first else (1.0,)
        return self.optimizers_with([(self, self.lr)], stages)


def _share(one: Encoder, other: Encoder) -> None:
    """Replace the shared blocks of the second tower by those of the first."""
    if not (isinstance(one, Tower) and isinstance(other, Tower)):
        raise InputError("only transformer towers can share blocks: set model.share to false")
    shapes = [[tuple(p.shape) for p in tower.shared.parameters()] for tower in (one, other)]
    if shapes[0] != shapes[1]:
        raise InputError("the towers differ in width or shared_layers: make them equal, or set model.share to false")
    other.shared = one.shared
