"""Adaptation: a head on an encoder that is trained from scratch, frozen, or fine-tuned."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torchmetrics import MetricCollection

from datamodules.errors import InputError, check_choice, check_not_negative, check_positive
from foundation.checkpoint import configure_as, find_encoder, model_name
from foundation.contract import check_inputs, check_keys
from foundation.encoder import Encoder
from foundation.evaluation.feedback_controls import FeedbackControls
from foundation.evaluation.prediction_controls import PredictionControls
from foundation.gather import total, world_size
from foundation.optim.schedules import Schedule
from foundation.runtime.figures import Sample, caption, log_figures, log_rows, shows_rows
from foundation.task import FoundationTask, OptimizerName, StartFrom, link_identity
from heads import Feedback, Head, Prediction
from heads.base import check_declared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mode = Literal["scratch", "probe", "finetune", "control"]
#: most positions of training users in a figure
_SHOWN = 8192


class FineTune(FoundationTask):
    """Trains a head on the features of an encoder.

    With data of sequences, an encoder of single snapshots reads the last observed snapshot, an encoder of sequences
    all.

    Args:
        head: Constructor of the head, called with the number of features; in YAML the class of a head and its
            arguments.
        encoder: The encoder; by default that of the checkpoint.
        checkpoint: Pre-trained weights for the modes `probe` and `finetune`.
        mode: `scratch` trains encoder and head from random weights; `probe` trains the head alone, with the encoder
            frozen and in eval mode; `finetune` trains both; `control` is a probe of an encoder with random weights or
            without parameters, a reference for pre-training.
        tower: Encoders of the checkpoint that the head reads, such as [environment]; by default the first. With several
            encoders one head is trained on the features of each (environment-channel section III-B2), and the names of
            its metrics have that of the encoder as a prefix.
        tokens: Number of values to which a learned linear layer, after dropout, maps each token of the encoder; the
            head then reads the tokens in place of the features. Tokens contain more information than the embedding.
        base_stations: Number S of base stations whose features are concatenated (environment-channel Fig. 11), equal to
            `data.base_stations`.
        lr: Learning rate of the head, and of everything in mode `scratch`.
        encoder_lr: Learning rate of the encoder in mode `finetune`.
        weight_decay: Weight decay.
        schedule: Learning-rate schedule, see `foundation.optim.schedules`.
        optimizer: `adamw` or `muon`, see `Muon`.
        start_from: Checkpoint to start from, the whole or parts by name, see `FoundationTask`.

    Raises:
        InputError: The checkpoint or encoder that the mode needs is missing or does not match, or encoder or head do
            not support several base stations, or `tokens` is given for several encoders or one without tokens.
    """

    parts: ClassVar[dict[str, str]] = {"head": "head"}

    def __init__(
        self,
        head: Callable[[int], Head],
        encoder: Encoder | None = None,
        checkpoint: str | None = None,
        mode: Mode = "finetune",
        tower: list[str] | None = None,
        tokens: int | None = None,
        base_stations: int = 1,
        lr: float = 1e-3,
        encoder_lr: float = 3e-4,
        weight_decay: float = 0.01,
        schedule: Schedule = "cosine",
        optimizer: OptimizerName = "adamw",
        start_from: StartFrom = None,
    ) -> None:
        super().__init__(lr, weight_decay, schedule, optimizer, start_from)
        self.save_hyperparameters()
        check_choice(f"{type(self).__name__}: mode", mode, Mode)
        check_positive(type(self).__name__, base_stations=base_stations, encoder_lr=encoder_lr)
        check_not_negative(type(self).__name__, tokens=tokens)
        names: list[str | None] = [*tower] if tower else [None]
        if len(set(names)) < len(names):
            raise InputError(f"model.tower names an encoder twice: {', '.join(map(str, names))}")
        encoders = [find_encoder(mode, encoder, checkpoint, name) for name in names]
        self.encoder = encoders[0]
        self.further = nn.ModuleDict({str(name): other for name, other in zip(names[1:], encoders[1:], strict=True)})
        if base_stations > 1 and self.encoder.input_keys != ("csi",):
            raise InputError(f"model.base_stations is for encoders of csi, not of {', '.join(self.encoder.input_keys)}")
        self.base_stations = base_stations
        self.model_name = "none" if checkpoint is None else model_name(checkpoint)
        self.reduce: nn.Sequential | None = None
        unread: list[nn.Parameter] = []
        num_features = self.encoder.num_features
        if tokens:
            if self.encoder.token_shape is None or len(encoders) > 1:
                raise InputError("model.tokens is for one encoder that has tokens, such as a transformer tower")
            count, token_width = self.encoder.token_shape
            unread = [*self.encoder.beyond_tokens()]
            # dropout of token values reduced the error at positions outside the training set in experiments
            self.reduce, num_features = nn.Sequential(nn.Dropout(), nn.Linear(token_width, tokens)), count * tokens
        self.head = head(num_features * base_stations)
        check_declared(self.head)
        if base_stations > 1 and (self.head.inputs or "csi" in self.head.requires):
            raise InputError(
                f"the head {type(self.head).__name__} is for one base station: set model.base_stations to 1"
            )
        self.mode, self.encoder_lr = mode, encoder_lr
        self.name = type(self.head).__name__.lower()
        self.monitor_mode = self.head.monitor_mode
        prefixes = [f"{name}_" for name in names] if len(names) > 1 else [""]
        self.monitor = f"val/{self.name}/{prefixes[0]}{self.head.monitor}"
        self.val_metrics, self.test_metrics = (
            nn.ModuleList(self.head.metrics().clone(prefix=f"{side}/{self.name}/{prefix}") for prefix in prefixes)
            for side in ("val", "test")
        )
        for part in (self.encoder, self.further):
            part.requires_grad_(not self.frozen)
        for parameter in unread:
            parameter.requires_grad_(False)  # DDP requires a gradient of every parameter
        self._over_time = False
        self._terms: list[Tensor] = []
        self._tested = Sample()

    @property
    def encoders(self) -> list[Encoder]:
        """The encoders that the head reads, in order."""
        return [self.encoder, *(other for other in self.further.values() if isinstance(other, Encoder))]

    @property
    def frozen(self) -> bool:
        """Whether the encoder is not trained."""
        return self.mode in ("probe", "control")

    def describe(self) -> dict[str, Any]:
        """Return the names of model, head and mode."""
        model = type(self.encoder).__name__ if self.mode in ("scratch", "control") else self.model_name
        return {"model": model, "head": self.name, "mode": self.mode}

    def check_settings(self, datamodule: Any, stage: str) -> None:
        """Check that batches have the inputs of the encoders and the labels of the head."""
        self._over_time = getattr(datamodule, "sequence", None) is not None
        for encoder in self.encoders:
            check_inputs(datamodule, f"encoder {type(encoder).__name__} reads", encoder.input_keys)
            if datamodule is not None and encoder.reads_past and not self._over_time:
                raise InputError(f"encoder {type(encoder).__name__} reads several snapshots: set data.sequence")
        read = (*self.head.inputs, *(self.head.requires if stage != "predict" else ()))
        check_keys(datamodule, f"head {type(self.head).__name__} needs", dict.fromkeys(read))

    def origins(self) -> list[str]:
        """Return the checkpoints of the initial weights, that of the pre-trained encoder among them."""
        pretrained = self.hparams.get("checkpoint") if self.mode in ("probe", "finetune") else None
        return super().origins() + ([pretrained] if pretrained else [])

    def held_parts(self) -> dict[str, str]:
        """Return the parts by name, including all encoders."""
        return super().held_parts() | {name: f"further.{name}" for name in self.further}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the weights are of this model; a head without a size takes that of the checkpoint."""
        configure_as(self.head, checkpoint.get("parts", {}).get("head", {}))
        super().on_load_checkpoint(checkpoint)

    def prepare_from(self, datamodule: Any) -> None:
        """Set label statistics, and input statistics unless they are part of the pre-trained weights."""
        prepared = [encoder for encoder in self.encoders if encoder.takes_statistics]
        if self.mode in ("scratch", "control") and prepared:
            sample = datamodule.sample()
            for encoder in prepared:
                encoder.prepare(self._links(sample, encoder))
        self.head.prepare(datamodule.statistics())

    def train(self, mode: bool = True) -> FineTune:
        """Set training mode, but eval mode for a frozen encoder, whose batch norm statistics would change otherwise."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
            self.further.eval()
        return self

    def on_fit_start(self) -> None:
        """Call `train`, which Lightning does not: it keeps the mode of every module as it is."""
        self.train()

    def features(self, batch: dict[str, Any], encoder: Encoder) -> Tensor:
        """Return the features (B, D) of a batch, or (B, S*D) for several base stations."""
        batch = self._links(batch, encoder)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            values = encoder.encode(batch) if self.reduce is None else encoder.tokens(batch)
        if self.reduce is not None:
            values = self.reduce(values)
        values = values.flatten(1)
        return values.reshape(len(values) // self.base_stations, self.base_stations * values.shape[1])

    def _links(self, batch: dict[str, Any], encoder: Encoder) -> dict[str, Any]:
        """Return the input of an encoder with one row for each link, so S rows for each user of S base stations."""
        if self.base_stations == 1:
            last = self._over_time and not encoder.reads_past
            return {**batch, "csi": batch["csi"][:, -1]} if last else batch
        csi = batch["csi"]
        if csi.ndim != 5 or csi.shape[1] != self.base_stations:
            raise InputError(f"model.base_stations is {self.base_stations}: set data.base_stations to the same number")
        return {"csi": csi.flatten(0, 1)}

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Return the output of the head for a batch, from the features of the first encoder."""
        return self._predictions(batch)[0]

    def _predictions(self, batch: dict[str, Any]) -> list[Tensor]:
        return [self.answer(self.features(batch, encoder), batch) for encoder in self.encoders]

    def answer(self, features: Tensor, batch: dict[str, Any]) -> Tensor:
        """Return the output (B, ...) of the head from the features (B, D) of a batch."""
        return self.head.answer(features, batch)

    def _loss(self, predictions: list[Tensor], batch: dict[str, Any]) -> Tensor:
        return torch.stack([self.head.loss(prediction, batch) for prediction in predictions]).mean()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        """Return the loss of the head; without trainable parameters, as of a classical predictor, None or a number."""
        loss = self._loss(self._predictions(batch), batch)
        self.log_training(loss=loss)
        if self.learns:
            return loss
        # Lightning takes no step without a loss where there are several processes, and none of float16 with it
        return loss.detach().requires_grad_() if world_size() > 1 else None

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Update loss and metrics of the validation side."""
        predictions = self._predictions(batch)
        for prediction in predictions:
            losses, counts = zip(*self.head.terms(prediction, batch), strict=True)
            count = torch.tensor(counts, dtype=torch.float32, device=self.device)
            # a mean over no sample may be NaN
            weighed = torch.where(count > 0, torch.stack(losses).float() * count, 0.0)
            self._terms.append(torch.stack([weighed, count], dim=1))
        self._score(self.val_metrics, predictions, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the loss over all labelled links of all processes."""
        sums, counts = total(torch.stack(self._terms).sum(0)).unbind(1)
        self._terms.clear()
        self.log_whole({"val/loss": (sums / counts.clamp_min(1)).sum()})

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Update the metrics of the test side; return the `prediction`, for callbacks."""
        features = [self.features(batch, encoder) for encoder in self.encoders]
        predictions = [self.answer(each, batch) for each in features]
        self._score(self.test_metrics, predictions, batch)
        keys = {*self.head.requires, "site", "los", "position", "bs_position"} | ({"clean_csi"} & set(batch))
        shown = {"features": features[0].float().flatten(1)} if shows_rows(self.trainer) else {}
        self._tested.add({"prediction": predictions[0], **shown, **{key: batch[key] for key in keys}})
        return {"prediction": predictions[0]}

    def _score(self, collections: nn.ModuleList, predictions: list[Tensor], batch: dict[str, Any]) -> None:
        for metrics, prediction in zip(collections, predictions, strict=True):
            assert isinstance(metrics, MetricCollection)
            metrics.update(prediction, batch)
            for name, metric in metrics.items(keep_base=False):
                self.log(str(name), metric, batch_size=len(prediction), prog_bar=name == self.monitor)

    def on_test_epoch_end(self) -> None:
        """Draw a sample of the test side, see `Sample`."""
        tested = self._tested.gathered()
        self._tested = Sample()
        prediction, features = tested.pop("prediction"), tested.pop("features", None)

        def draw() -> dict[str, Figure]:
            return self.head.figures(prediction, tested | self._surroundings(tested["site"]))

        log_figures(self.trainer, draw, caption(self, len(prediction)))
        if features is not None:
            shown = {"prediction": self.head.predict(prediction), **{k: tested[k] for k in ("los", "position", "site")}}
            target = {"target": tested[self.head.target_key]} if self.head.target_key in tested else {}
            log_rows(self.trainer, {"features": features, **shown, **target})

    def _surroundings(self, site: Tensor) -> dict[str, Tensor]:
        """Return `walls` and `train_position` of `Head.figures`, if all links (B,) are of one area."""
        sides = getattr(self.datamodule, "sides", None)
        numbers = sorted(set(site.tolist()))
        if not sides or len({sides["test"].sites[number].area for number in numbers}) != 1:
            return {}
        outlines = [torch.as_tensor(o) for o in sides["test"].sites[numbers[0]].environment.footprints]
        walls = [torch.stack([outline, outline.roll(-1, 0)], dim=1) for outline in outlines]
        trained = torch.cat([sides["train"].positions(number) for number in numbers])
        few = trained[:: max(1, -(-len(trained) // _SHOWN))]
        return {"walls": torch.cat(walls) if walls else torch.empty(0, 2, 2), "train_position": few}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return features and predictions, with position, site, user and LOS status."""
        features = self.features(batch, self.encoder)
        prediction = self.head.predict(self.answer(features, batch))
        return {"features": features, "prediction": prediction, **link_identity(batch)}

    def configure_callbacks(self) -> list[Callback]:
        """Return what a prediction or feedback head is compared with."""
        if isinstance(self.head, Feedback):
            return [FeedbackControls(self.head.code_size)]
        return [PredictionControls(self.head.horizons)] if isinstance(self.head, Prediction) else []

    def configure_optimizers(self) -> Any:
        """Return the optimizer with learning rates of encoder and head, and the schedule."""
        if not self.learns:
            return None
        encoder_lr = self.lr if self.mode == "scratch" else self.encoder_lr
        learned = [self.head] if self.reduce is None else [self.reduce, self.head]
        encoders = [(self.encoder, encoder_lr), (self.further, encoder_lr)]
        return self.optimizers_with([*encoders, *((part, self.lr) for part in learned)])
