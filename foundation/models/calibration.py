"""Calibration of a digital twin: DFT weights of the real channel from those of a low-fidelity twin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from datamodules.channel.arrays import Array
from datamodules.channel.codebook import (
    cosine,
    dft_codebook,
    dft_weights,
    estimated_coefficients,
    is_selected,
    least_norm_channel,
    noise_power,
    normalized_weights,
    precoder,
    rate,
    strongest_weights,
    top_codewords,
)
from datamodules.channel.draws import LinkDraws, name_keys
from datamodules.channel.transforms import received
from datamodules.errors import InputError, check_choice, check_finite
from foundation.baselines.calibration import nearest_mean, places
from foundation.contract import check_inputs
from foundation.link_metrics import LinkMean, LinkQuantile
from foundation.models.calibration_scores import SCORES, SHOWN, SWEEP, metrics_of_test
from foundation.nets.unet1d import Calibrator, Reads
from foundation.optim.schedules import Schedule
from foundation.runtime.figures import Sample, caption, log_figures
from foundation.task import FoundationTask, StartFrom, link_identity

Labels = Literal["full", "feedback"]
#: nearest training users of the reference `neighbours`
_NEIGHBOURS = 4
#: training users read at a time
_CHUNK = 256


class TwinCalibration(FoundationTask):
    """Predicts the DFT weights of the true channel from those of a low-fidelity twin and the user position.

    Twin calibration sections III to V. The data have two variants of every user, low fidelity first: `csi`
    (B, 2, R, T, K). The second variant is the true channel, from which labels, pilots and scores are computed. In the
    case study the `codewords` of largest predicted weight are sent as pilots, the user reports their coefficients, and
    the channel is reconstructed from them; `cosine` (eq 11) is its similarity to the true channel. Links without power
    in the second variant are excluded.

    The test also scores these references, by the prefix of their metrics: `uncalibrated`, the codewords of the
    low-fidelity twin; `direct`, the channel of the twin in place of the true one; `grid`, the codewords of the nearest
    training user; `neighbours`, those of the mean weights of the nearest four; and `target`, the codewords of the true
    channel, an upper bound.

    Args:
        antennas: Antennas T of the linear array, and DFT codewords; a multiple of 8.
        codewords: Number P of codewords that a user reports.
        labels: `full`, the DFT weights of the high-fidelity variant, or `feedback`, the P largest of them alone.
        reads: Inputs of the network; the other input is set to zero.
        snr_db: SNR of the pilots [dB], see `noise_power`.
        variants: Names of the low- and the high-fidelity variant in the data.
        lr: Learning rate of Adam.
        weight_decay: Weight decay.
        schedule: Learning-rate schedule, see `foundation.optim.schedules`.
        start_from: Checkpoint to start from, the whole or parts by name, see `FoundationTask`.

    Raises:
        InputError: An argument is out of range, or the antennas are no multiple of 8.
    """

    monitor = "val/cosine"
    monitor_mode: Literal["min", "max"] = "max"
    towers: ClassVar[dict[str, str]] = {"calibrator": "net"}

    codebook: Tensor

    def __init__(
        self,
        antennas: int = 32,
        codewords: int = 4,
        labels: Labels = "full",
        reads: Reads = "both",
        snr_db: float = 20.0,
        variants: tuple[str, str] = ("low", "high"),
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: Schedule = "cosine",
        start_from: StartFrom = None,
    ) -> None:
        super().__init__(lr, weight_decay, schedule, start_from=start_from)
        self.save_hyperparameters()
        check_finite("TwinCalibration", snr_db=snr_db)
        check_choice("TwinCalibration: labels", labels, Labels)
        if not 1 <= codewords <= antennas:
            raise InputError(f"codewords must be 1 to {antennas}, the antennas, got {codewords}")
        self.variants = list(variants)
        self.net = Calibrator(antennas, reads)
        self.codewords, self.labels, self.snr_db = codewords, labels, snr_db
        self.register_buffer("codebook", dft_codebook(Array(1, antennas)), persistent=False)
        self.val_metrics = nn.ModuleDict({"loss": LinkMean(), "cosine": LinkMean()})
        self.test_metrics = metrics_of_test()
        self._known: tuple[Tensor, Tensor] | None = None
        self._names: Tensor | None = None
        self._shown = Sample()

    def check_settings(self, datamodule: Any, stage: str) -> None:
        """Check that the array is linear, positions are known, and the variants are the low and the high fidelity.

        Raises:
            InputError: They are not, or the variants are in another order.
        """
        served, bs = getattr(datamodule, "variants", None), getattr(datamodule, "bs", None)
        if served is not None and list(served) != self.variants:
            raise InputError(
                f"calibration reads the variants {' and '.join(self.variants)}, low fidelity first, but the data have "
                f"{', '.join(served)}: set data.variants, or model.variants"
            )
        if bs is not None and not bs.is_line:
            raise InputError("calibration needs a linear array of one polarisation: set data.bs to one row or column")
        check_inputs(datamodule, "calibration reads", self.net.input_keys)
        sites = getattr(getattr(datamodule, "sides", {}).get("train"), "sites", [])
        self._names = name_keys(site.name for site in sites) if sites else None

    def prepare_from(self, datamodule: Any) -> None:
        """Set mean and standard deviation of the positions from the train side."""
        statistics = datamodule.statistics()
        self.net.position_mean.copy_(statistics["position_mean"])
        # the height is constant when all users are at ground level
        self.net.position_std.copy_(statistics["position_std"].clamp_min(1.0))

    def forward(self, low: Tensor, position: Tensor) -> Tensor:
        """Return refined DFT weights (eq 6, 7).

        Args:
            low: Channels of the low-fidelity twin, shape (B, R, T, K).
            position: User positions relative to the base station [m], shape (B, 3).

        Returns:
            Shape (B, T), with a sum of 1.
        """
        return self.net.refine(low, position)

    def links(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the links of a batch with nonzero power in the high-fidelity variant.

        Returns:
            `low` and `high` (n, R, T, K), `position` relative to the base station and `bs_position` (n, 3), `los`,
            `site` and `user` (n,).

        Raises:
            InputError: The batch has no axis of two variants, or another number of antennas.
        """
        csi = self._variants(batch)
        has_power = received(csi[:, 1])
        values = {
            "low": csi[:, 0],
            "high": csi[:, 1],
            "position": batch["position"] - batch["bs_position"],
            "bs_position": batch["bs_position"],
            **{key: batch[key] for key in ("los", "site", "user")},
        }
        # a GPU is asked once, rather than for each choice of rows
        return values if has_power.all() else {key: value[has_power] for key, value in values.items()}

    def _variants(self, batch: dict[str, Any]) -> Tensor:
        """Return the CSI (B, 2, R, T, K) of a batch after a check of its axes."""
        csi: Tensor = batch["csi"]
        if csi.ndim != 5 or csi.shape[1] != 2 or csi.shape[3] != len(self.codebook):
            raise InputError(
                f"calibration reads csi of (2, R, {len(self.codebook)}, K), low fidelity first, got "
                f"{tuple(csi.shape[1:])}: group the data by variant, low and high, and set model.antennas"
            )
        return csi

    def target(self, high: Tensor) -> Tensor:
        """Return the labels of channels (B, R, T, K): DFT weights with sum 1, shape (B, T)."""
        weights = dft_weights(high, self.codebook)
        return normalized_weights(weights if self.labels == "full" else strongest_weights(weights, self.codewords))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the squared error of the weights (eq 8)."""
        links = self.links(batch)
        if len(links["high"]) < 2:  # too few for batch norm, in which other processes wait for this one
            refined = self(self._variants(batch)[:, 0], batch["position"] - batch["bs_position"])
            idle: Tensor = 0.0 * refined.sum()
            self.log_training(loss=idle)
            return idle
        refined = self(links["low"], links["position"])
        # eq 8 compares a softmax, of sum 1, with weights of any scale, which the output cannot reach. The choice of
        # codewords (eq 9) does not depend on the scale, so labels and inputs are normalised to sum 1
        loss = self._error(links, refined).mean()
        self.log_training(loss=loss)
        return loss

    def _error(self, links: dict[str, Tensor], refined: Tensor) -> Tensor:
        return (self.target(links["high"]) - refined).square().sum(-1)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log loss and cosine similarity of the case study on the validation side."""
        links = self.links(batch)
        refined = self(links["low"], links["position"])
        self._log("val", "loss", self._error(links, refined))
        known = self.feedback(links, refined, self.codewords)
        self._log("val", "cosine", cosine(links["high"], known))

    def feedback(self, links: dict[str, Tensor], weights: Tensor, count: int) -> Tensor:
        """Return the channel (B, R, T, K) that the base station reconstructs in the case study (section IV-D).

        Args:
            links: Output of `links`: the true channel `high`, and `site` and `user`. The noise is drawn from the user
                and the name of the site, where the data have names.
            weights: DFT weights whose largest select the codewords, shape (B, T).
            count: Number of codewords sent.
        """
        high, site, chosen = links["high"], links["site"], top_codewords(weights, count)
        if self._names is not None:
            site = self._names.to(site.device)[site]
        drawn = LinkDraws(0, site, links["user"]).normal(high.shape[1], count, high.shape[3])
        noise = noise_power(high, self.snr_db)
        return least_norm_channel(
            estimated_coefficients(high, self.codebook, chosen, noise, drawn), self.codebook, chosen
        )

    @torch.no_grad()
    def on_test_start(self) -> None:
        """Collect positions and DFT weights of the training users for the references `grid` and `neighbours`."""
        self._known, self._shown = None, Sample()
        if self.datamodule is None:
            return
        side, positions, weights = self.datamodule.sides["train"], [], []
        for start in range(0, len(side), _CHUNK):
            rows = list(range(start, min(start + _CHUNK, len(side))))
            links = self.links(self.datamodule.finish(side.__getitems__(rows)))
            positions.append(places(links))
            weights.append(self.target(links["high"].to(self.device)))
        self._known = torch.cat(positions).to(self.device), torch.cat(weights)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Score the calibrator and the references."""
        links = self.links(batch)
        high, low = links["high"], links["low"]
        choosers = {
            "": self(low, links["position"]),
            "uncalibrated_": dft_weights(low, self.codebook),
            "target_": dft_weights(high, self.codebook),
        }
        if self._known is not None:
            choosers["grid_"] = nearest_mean(places(links), *self._known)
            choosers["neighbours_"] = nearest_mean(places(links), *self._known, _NEIGHBOURS)
        cosines, best = {"direct_": self._score("direct_", links, low)}, {}
        for name, weights in choosers.items():
            best[name] = top_codewords(weights, self.codewords)
            cosines[name] = self._score(name, links, self.feedback(links, weights, self.codewords))
            self._log("test", f"{name}hit_rate", is_selected(best[name], choosers["target_"]))
            for count in SWEEP:
                sent = min(count, len(self.codebook))
                self._log("test", f"{name}cosine_of_{count}", cosine(high, self.feedback(links, weights, sent)))
                found = is_selected(top_codewords(weights, sent), choosers["target_"])
                self._log("test", f"{name}hit_rate_of_{count}", found)
        unknown = torch.full_like(cosines[""], torch.nan)
        self._shown.add(
            {
                "position": links["position"] + links["bs_position"],
                "site": links["site"],
                "beams": torch.stack([best[name] for name in ("uncalibrated_", "", "target_")], 1),
                "num_beams": torch.full_like(links["site"], len(self.codebook)),
                "cosine": torch.stack([cosines.get(name, unknown) for name in SHOWN], 1),
            }
        )

    def on_test_epoch_end(self) -> None:
        """Draw figures 3 and 4."""
        from foundation.evaluation.twin_pictures import calibration_figures

        rows = self._shown.gathered()
        sites = [] if self.datamodule is None else getattr(self.datamodule.sides["test"], "sites", [])
        log_figures(self.trainer, lambda: calibration_figures(rows, sites), caption(self, len(rows["site"])))

    def table(self, metrics: Mapping[str, float]) -> str:
        """Return the table printed after a test."""
        from foundation.evaluation.twin_pictures import calibration_table

        return calibration_table(metrics)

    def _score(self, name: str, links: dict[str, Tensor], known: Tensor) -> Tensor:
        high, los = links["high"], links["los"]
        values = cosine(high, known)
        rates = rate(high, precoder(known), noise_power(high, self.snr_db))
        for key, score in zip(SCORES, (values, values[los == 1], values[los == 0], rates), strict=True):
            self._log("test", f"{name}{key}", score)
            if key != "rate":
                self._log("test", f"{name}{key}_p10", score)
        return values

    def _log(self, stage: str, name: str, values: Tensor) -> None:
        metric = (self.val_metrics if stage == "val" else self.test_metrics)[name]
        assert isinstance(metric, LinkMean | LinkQuantile)
        metric.update(values)
        self.log(f"{stage}/{name}", metric, batch_size=len(values), prog_bar=stage == "val")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return the refined weights (B, T) and the chosen codewords (B, P), with position, site, user and LOS status.

        Only the low-fidelity variant is read.
        """
        weights = self(self._variants(batch)[:, 0], batch["position"] - batch["bs_position"])
        return {"weights": weights, "codewords": top_codewords(weights, self.codewords), **link_identity(batch)}
