"""Classical predictors scored on the same test links and noise as a learned predictor of the channel."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from datamodules.channel.codebook import beam_power, dft_codebook
from datamodules.sites.paths import Paths
from datamodules.sites.site import Site
from foundation.baselines.prediction_limit import Signatures, bin_limit, limit
from foundation.gather import concatenate, gather_rows
from foundation.nets.classical import LEAST, PREDICTORS, ClassicalPredictor
from heads.metrics import RatioOfSums
from heads.prediction import PredictionNMSE, next_channel

#: lower limit of noise over power: SNRs are clipped to 90 dB
_CLEAN = 1e-9
#: classical predictors whose choice of beams is scored
_CHOOSING = ("hold", "link_ar")
#: number of links that a prediction is timed on
_TIMED = 16
#: SNR of the best beam at which rates are computed [dB]
_BEAM_SNR_DB = 10.0
#: labels of the rows of the table
_WORDS = {
    "hold": "the last snapshot",
    "zero": "zeros",
    "ar1": "AR(1)",
    "kalman": "Kalman filter of AR(1)",
    "wiener": "pooled Wiener filter",
    "link_ar": "AR of each link",
    "pad": "PAD, an AR of each bin",
    "pad_vector": "PAD as in CSI-4CAST",
    "limit_bin": "limit of a bin's own past, the rays known",
    "limit": "limit, the rays known",
}
#: predictors that know the rays of a link
_LIMITS = {"limit_bin": bin_limit, "limit": limit}

#: scores and costs of the classical predictors in the last test of this process, by the description of its data
_LAST: dict[str, tuple[dict[str, Tensor], dict[str, float]]] = {}


class PredictedBeam(RatioOfSums):
    """Share of links whose best beam is found by the predicted channel, or the mean rate lost by its choice.

    ConTwin appendix, "Additional experiments".

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
        snr = 10 ** (_BEAM_SNR_DB / 10)
        self.add(torch.log2(torch.tensor(1 + snr, device=share.device)) - torch.log2(1 + snr * share))


class PredictionControls(Callback):
    """Scores classical predictors at every test of a head `prediction`, logs them, and prints the table.

    Those that need a longer past than the data hold are left out. They do not depend on the model: where a process
    tests several models on the same data in succession, as a study does, they are scored once.

    Logged with the head's own metrics: `<name>_nmse_db` of each predictor, with `_1` and so on for each of several
    horizons; `macs` and `cpu_ms` of the model and of each predictor, see `cost`; `fd_t`, the mean over links of the
    largest Doppler shift times the interval, and its maximum `fd_t_max`; `snr_db`, the mean SNR of the observations;
    `beam_top1` and `rate_loss` of the DFT beams chosen by the last predicted channel, see `PredictedBeam`. The limits
    of linear prediction, of the past of all bins and of a bin's own, are computed where the data contain rays.

    Args:
        horizons: Number H of predicted snapshots.
    """

    def __init__(self, horizons: int) -> None:
        self.horizons = horizons
        self._predictors: dict[str, ClassicalPredictor] = {}
        self._errors: dict[str, dict[str, PredictionNMSE]] = {}
        self._cost: dict[str, float] = {}
        self._costs: dict[str, float] = {}
        self._beams: dict[str, PredictedBeam] = {}
        self._facts: list[dict[str, Tensor]] = []
        self._data = ""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the predictors to the train side, unless they have already been scored on these data."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._data = f"{self.horizons} {_settings(data)}"
        known = self._data in _LAST
        codebook, past = dft_codebook(data.bs), data.sequence.snapshots
        usable = [name for name in PREDICTORS if LEAST.get(name, 1) <= past]
        self._beams = {
            f"{name}{metric}": PredictedBeam(codebook, metric == "rate_loss").to(pl_module.device)
            for name in ("", *(f"{other}_" for other in _CHOOSING if other in usable and not known))
            for metric in ("beam_top1", "rate_loss")
        }
        self._facts.clear()
        self._cost, self._costs = {}, {}
        self._predictors.clear()
        self._errors.clear()
        if known:
            return
        sample = data.sample()
        antennas, subcarriers = sample["csi"].shape[-3] * sample["csi"].shape[-2], sample["csi"].shape[-1]
        for name in usable:
            made = ClassicalPredictor(name, past, self.horizons, antennas, subcarriers)
            made.prepare(sample)
            self._predictors[name] = made.to(pl_module.device)
        names = [*usable, *(_LIMITS if data.sides["test"].sites[0].links.has_rays else ())]
        each = range(self.horizons) if self.horizons > 1 else ()
        self._errors = {
            name: {
                "nmse_db": PredictionNMSE().to(pl_module.device),
                **{f"nmse_db_{h + 1}": PredictionNMSE(h).to(pl_module.device) for h in each},
            }
            for name in names
        }

    @torch.no_grad()
    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Score a batch."""
        target = next_channel(batch)[:, -1]
        if len(target):
            self._choose("", outputs["prediction"], target)
            self._cost = self._cost or cost(pl_module, batch)
        if self._data in _LAST:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        clean = batch.get("clean_csi", batch["csi"])
        facts = {"snr_db": snr(batch["csi"], clean)}
        velocity, times = motion(data, batch)
        if velocity is not None:
            # [wavelengths/s]
            velocity = velocity / data._make.wavelengths.to(velocity.device)[batch["site"]].unsqueeze(1)
            facts["fd_t"] = velocity.norm(dim=1) * float(times[1] - times[0])
        self._facts.append({key: value.float() for key, value in facts.items()})
        if not len(clean):
            return
        self._costs = self._costs or self._cost_of_predictors(batch)
        predictions = {name: made.predict(batch["csi"]) for name, made in self._predictors.items()}
        for name, prediction in predictions.items():
            self._score(name, prediction, batch)
        for name in (name for name in _CHOOSING if name in predictions):
            self._choose(f"{name}_", predictions[name], target)
        if _LIMITS.keys() <= self._errors.keys() and velocity is not None:
            noise = (batch["csi"] - clean).abs().square().mean((1, 2, 3, 4))
            rays, mount = rays_of(data.sides["test"].sites, batch), data._make._mount(batch["site"])
            known = Signatures.of(rays, data.bs, data.ue, data.ofdm, velocity, times, 1.0, mount)
            for name, predict in _LIMITS.items():
                self._score(name, predict(batch["csi"], known, noise)[:, : self.horizons], batch)

    def _cost_of_predictors(self, batch: dict[str, Any]) -> dict[str, float]:
        costs: dict[str, float] = {}
        for name, made in self._predictors.items():
            costs |= {f"{name}_{key}": number for key, number in cost(made.encode, batch).items()}
        return costs

    def _score(self, name: str, prediction: Tensor, batch: dict[str, Any]) -> None:
        for error in self._errors[name].values():
            error.update(prediction, batch)

    def _choose(self, name: str, prediction: Tensor, target: Tensor) -> None:
        """Choose beams by the last of the predicted channels (B, H, R, T, K)."""
        for metric in ("beam_top1", "rate_loss"):
            self._beams[f"{name}{metric}"].update(prediction[:, -1], target)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the scores of all processes."""
        beams = {name: metric.compute() for name, metric in self._beams.items()}
        own = {name: beams.pop(name) for name in ("beam_top1", "rate_loss")}
        if self._data not in _LAST:
            errors = {f"{name}_{key}": error for name, each in self._errors.items() for key, error in each.items()}
            scores = {name: error.compute() for name, error in errors.items()} | beams
            facts = gather_rows(concatenate(self._facts))
            scores |= {name: value.nanmean() for name, value in facts.items()}
            if "fd_t" in facts:
                scores["fd_t_max"] = facts["fd_t"].max()
            _LAST.clear()
            _LAST[self._data] = scores, self._costs
        scores, costs = _LAST[self._data]
        for name, value in (own | scores).items():
            pl_module.log(f"test/prediction/{name}", value, batch_size=1, sync_dist=True)
        for name, number in (self._cost | costs).items():
            # other processes may have no link to time
            pl_module.log(f"test/prediction/{name}", number, batch_size=1, rank_zero_only=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table."""
        if trainer.is_global_zero:
            print(control_table({k.rsplit("/", 1)[-1]: float(v) for k, v in trainer.callback_metrics.items()}))


def control_table(metrics: dict[str, float]) -> str:
    """Return the table of a test, in order of decreasing error."""
    rows = {words: metrics.get(f"{name}_nmse_db") for name, words in _WORDS.items()}
    rows["this model"] = metrics.get("nmse_db")
    known = sorted(((value, words) for words, value in rows.items() if value is not None), reverse=True)
    moving = f", f_D T {metrics['fd_t']:.3f} (at most {metrics['fd_t_max']:.3f})" if "fd_t" in metrics else ""
    head = f"NMSE [dB] of the next channel{moving}, SNR {metrics.get('snr_db', float('nan')):.0f} dB on average"
    return "\n".join([head, *(f"  {value:7.2f}  {words}" for value, words in known)])


def cost(predict: Callable[[dict[str, Tensor]], Any], batch: dict[str, Any]) -> dict[str, float]:
    """Return `macs`, the multiply-adds of a prediction, and `cpu_ms`, its CPU time [ms], for one link.

    Matrix products and convolutions are counted, but not the linear systems that some classical predictors solve; a
    complex multiply-add counts once.

    Args:
        predict: Makes the prediction of a batch.
        batch: The batch, of which the first links are used.
    """
    few = {key: value[:_TIMED] for key, value in batch.items() if isinstance(value, Tensor)}
    with FlopCounterMode(display=False) as counter:
        predict(few)
    start = time.process_time()
    predict(few)
    spent = time.process_time() - start
    links = len(few["csi"])
    return {"macs": counter.get_total_flops() / 2 / links, "cpu_ms": 1e3 * spent / links}


def snr(observed: Tensor, clean: Tensor) -> Tensor:
    """Return the SNR of observations of channels (B, ...) [dB], at most 90, (B,); NaN for a channel without power."""
    noise, level = ((observed - clean).abs().square().flatten(1).mean(1), clean.abs().square().flatten(1).mean(1))
    return torch.where(level > 0, -10 * (noise / level).clamp_min(_CLEAN).log10(), torch.nan)


def _settings(data: Any) -> str:
    """Describe the settings that determine links, observations and train side of a datamodule, as a key."""
    loading = {"source", "batch_size", "balance", "views", "num_workers", "predict_on", "validate_on"}
    names = [name for name in inspect.signature(type(data).__init__).parameters if name not in loading | {"self"}]
    sites = [recipe.digest for source in data.sources for recipe in source.recipes()]
    return f"{data.cache} {sites} { {name: _plain(getattr(data, name, None)) for name in names} }"


def _plain(value: Any) -> Any:
    """Return a setting as plain data, an object by its class and attributes."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    held = getattr(value, "__dict__", None)
    return value if held is None else f"{type(value).__name__} {held}"


def motion(data: Any, batch: dict[str, Any]) -> tuple[Tensor | None, Tensor]:
    """Return the user velocities (B, 3) [m/s] of a batch, None for recordings, and the instants [s]."""
    drawn = None if data.sides["test"].recorded else data._make._motion(batch)
    times = data.sequence.times
    return (None, times) if drawn is None else (drawn.velocity, drawn.times)


def rays_of(sites: list[Site], batch: dict[str, Any]) -> Paths:
    """Return the rays of the links of a batch."""
    site, user = batch["site"].cpu(), batch["user"].cpu()
    rows = [(site == number).nonzero().squeeze(1) for number in site.unique()]
    found = Paths.cat([sites[site[part[0]]].paths[user[part]] for part in rows])
    return found[torch.cat(rows).argsort()].to(batch["csi"].device)
