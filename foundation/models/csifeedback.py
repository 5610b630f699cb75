"""CSI feedback by an autoencoder, trained on a digital twin or on measured channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from datamodules.channel.arrays import Array
from datamodules.channel.codebook import noise_power, precoder, rate
from datamodules.channel.transforms import kept_energy, received, to_csi
from foundation.baselines.feedback import CHANCE_DB, PrincipalComponents, matching_pursuit, paths_of
from foundation.link_metrics import LinkMean, LinkMeanDb
from foundation.nets.autoencoder import Autoencoder
from foundation.optim.schedules import Schedule
from foundation.runtime.figures import Sample, caption, log_figures
from foundation.task import FoundationTask, StartFrom, link_identity

#: SNR [dB] at which the rates are compared
_SNR_DB = 10.0


class CsiFeedback(FoundationTask):
    """Encodes the channel at the user and decodes it at the base station (twin feedback sections III and V).

    The loss is the NMSE (eq 7) of delay-angular channels of unit norm; with noisy observations the target is the
    noise-free channel. Links without power are excluded. The test also scores references without a network, at the same
    number of real values: principal components of the train side and, for users of one antenna, a linear array and up
    to 64 paths, matching pursuit of the strongest ones; and the NMSE between uncorrelated channels, which an untrained
    network has.

    Args:
        autoencoder: The network, such as `CSINetPlus`.
        lr: Learning rate of Adam; the authors use 1e-2 with batches of 4.
        weight_decay: Weight decay.
        schedule: Learning-rate schedule, see `foundation.optim.schedules`.
        start_from: Checkpoint to start from, the whole or parts by name, see `FoundationTask`.
    """

    monitor = "val/nmse_db"
    monitor_mode: Literal["min", "max"] = "min"
    towers: ClassVar[dict[str, str]] = {"autoencoder": "autoencoder"}

    def __init__(
        self,
        autoencoder: Autoencoder,
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        schedule: Schedule = "cosine",
        start_from: StartFrom = None,
    ) -> None:
        super().__init__(lr, weight_decay, schedule, start_from=start_from)
        self.save_hyperparameters()
        self.autoencoder = autoencoder
        self.val_metrics, self.test_metrics = _metrics(), _metrics()
        self.controls = nn.ModuleDict({"pca_nmse_db": LinkMeanDb(), "pursuit_nmse_db": LinkMeanDb()})
        self._components: PrincipalComponents | None = None
        self._bs: Array | None = None
        self._shown = Sample()

    def forward(self, csi: Tensor) -> Tensor:
        """Return the delay-angular channel (B, rows, R*T) reconstructed from CSI (B, R, T, K)."""
        return self.autoencoder.decode(self.autoencoder(csi))

    def compare(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Reconstruct the links of a batch that have nonzero power.

        Returns:
            `csi`, the noise-free channels (n, R, T, K); `target` and `rebuilt`, true and reconstructed channel in the
            delay-angular domain (n, rows, R*T); `error`, the linear NMSE (n,).
        """
        observed, clean = batch["csi"], batch.get("clean_csi", batch["csi"])
        has_power = received(clean)
        if not has_power.all():  # a choice of rows waits for the GPU twice more than this question
            observed, clean = observed[has_power], clean[has_power]
        if not len(clean):  # no FFT takes an empty batch
            nothing = clean.new_zeros(0, self.autoencoder.rows, self.autoencoder.antennas)
            return {"csi": clean, "target": nothing, "rebuilt": nothing, "error": nothing.real.sum((1, 2))}
        channel, _ = self.autoencoder.observe(observed)
        # each with its own reference phase, since the common phase of an observation is unknown
        target = self.autoencoder.observe(clean)[0] if "clean_csi" in batch else channel
        rebuilt = self.autoencoder.decode(self.autoencoder.encode_channel(channel))
        return {"csi": clean, "target": target, "rebuilt": rebuilt, "error": nmse(rebuilt, target)}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the NMSE (eq 7), linear."""
        error = self.compare(batch)["error"]
        # without links a zero that all layers have part in: other processes wait for this one in their batch norm
        loss = error.mean() if len(error) else 0.0 * torch.view_as_real(self(batch["csi"])).sum()
        self.log_training(loss=loss)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Update the metrics of the validation side."""
        self._score("val", self.val_metrics, self.compare(batch))

    def on_test_start(self) -> None:
        """Compute the principal components of a sample of the train side."""
        self._components, self._shown = None, Sample()
        self._bs = getattr(self.datamodule, "bs", None)
        if self.datamodule is not None:
            batch = self.datamodule.sample()
            csi = batch.get("clean_csi", batch["csi"])
            channels = self.autoencoder.observe(csi[received(csi)].to(self.device))[0]
            self._components = PrincipalComponents.fit(channels, self.autoencoder.num_features)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Update the metrics and the references of the test side."""
        compared = self.compare(batch)
        self._score("test", self.test_metrics, compared)
        errors = {"nmse_db": compared["error"], **self._control(compared)}
        self._shown.add({**errors, "target": compared["target"], "rebuilt": compared["rebuilt"]})

    def on_test_epoch_end(self) -> None:
        """Log the NMSE of an untrained prediction, and draw the figures."""
        from foundation.evaluation.twin_pictures import feedback_figures

        self.log_whole({"test/chance_nmse_db": CHANCE_DB})
        rows = self._shown.gathered()
        target, rebuilt, count = rows.pop("target"), rows.pop("rebuilt"), len(rows["nmse_db"])
        log_figures(
            self.trainer, lambda: feedback_figures(rows, target, rebuilt) if count else {}, caption(self, count)
        )

    def table(self, metrics: Mapping[str, float]) -> str:
        """Return the table printed after a test."""
        from foundation.evaluation.twin_pictures import feedback_table

        bits = None if self.autoencoder.quantizer is None else self.autoencoder.feedback_bits
        return feedback_table(metrics, self.autoencoder.num_features, bits)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return code and NMSE (linear, NaN without power) of each link, with position, site, user and LOS status."""
        error = torch.full(batch["csi"].shape[:1], torch.nan, device=self.device)
        error[received(batch.get("clean_csi", batch["csi"]))] = self.compare(batch)["error"]
        return {"code": self.autoencoder(batch["csi"]), "nmse": error, **link_identity(batch)}

    def _score(self, stage: str, metrics: nn.ModuleDict, compared: dict[str, Tensor]) -> None:
        csi, rebuilt, target, error = (compared[key] for key in ("csi", "rebuilt", "target", "error"))
        if not len(csi):  # logged nevertheless, since logging is a collective operation
            return self._log_links(stage, metrics, dict.fromkeys(metrics, error))
        kept = kept_energy(csi, self.autoencoder.rows)
        noise = noise_power(csi, _SNR_DB)
        channel = to_csi(rebuilt, csi.shape[-1], csi.shape[1])
        reached, perfect = (rate(csi, precoder(known), noise) for known in (channel, csi))
        values = {
            "nmse_db": error,
            "cosine": (rebuilt.conj() * target).sum((1, 2)).abs(),  # both have unit norm
            # the energy lost by truncation is orthogonal to the reconstruction
            "csi_nmse_db": 1 - kept + kept * error,
            "kept_energy": kept,
            "se_ratio": reached / perfect,
            "rate": reached,
            "perfect_rate": perfect,
        }
        self._log_links(stage, metrics, values)

    def _control(self, compared: dict[str, Tensor]) -> dict[str, Tensor]:
        csi, target, values = compared["csi"], compared["target"], {}
        if self._components is not None:
            values["pca_nmse_db"] = nmse(self._components.rebuild(target), target)
        if paths := paths_of(self.autoencoder.num_features, csi.shape[1], self._bs):
            rebuilt = matching_pursuit(target, paths, csi.shape[-1]) if len(target) else target
            values["pursuit_nmse_db"] = nmse(rebuilt, target)
        self._log_links("test", self.controls, values)
        return values

    def _log_links(self, stage: str, metrics: nn.ModuleDict, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            metric = metrics[name]
            assert isinstance(metric, LinkMean | LinkMeanDb)
            metric.update(value)
            self.log(f"{stage}/{name}", metric, batch_size=len(value), prog_bar=name == "nmse_db")


def _metrics() -> nn.ModuleDict:
    means = {name: LinkMean() for name in ("cosine", "kept_energy", "se_ratio", "rate", "perfect_rate")}
    return nn.ModuleDict({"nmse_db": LinkMeanDb(), "csi_nmse_db": LinkMeanDb(), **means})


def nmse(rebuilt: Tensor, target: Tensor) -> Tensor:
    """Return the linear NMSE of each link, (B,) (twin feedback eq 5)."""
    error = (rebuilt - target).abs().square().flatten(1).sum(1)
    return error / target.abs().square().flatten(1).sum(1)
