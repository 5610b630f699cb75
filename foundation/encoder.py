"""The base class `Encoder`."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextvars import Context
from itertools import chain
from types import FrameType
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from torch import Tensor, nn

from datamodules.errors import InputError
from heads.base import of_links


class Encoder(nn.Module, HyperparametersMixin, ABC):
    """Base class of encoders, which map the inputs named by `input_keys` to features.

    A subclass has constructor arguments of plain data and calls `self.save_hyperparameters()`, so that checkpoints can
    rebuild it (`load_encoder`).

    A call checks its inputs for NaN in evaluation; `encode`, which models use, does not.

    Attributes:
        input_keys: Batch keys that `forward` takes, in order.
        input_axes: Axes of each input, for checks; overridden by encoders of sequences.
        num_features: Number D of features.
        csi_size: Antenna pairs R*T and subcarriers K of the input, if the encoder requires a certain size.
        token_shape: Number N and width W of the tokens, if the encoder has tokens.
    """

    input_keys: ClassVar[tuple[str, ...]] = ("csi",)
    input_axes: ClassVar[Mapping[str, str]] = {
        "csi": "B R T K",
        "map": "B 1 rows columns",
        "geometry": "B 8",
        "position": "B 3",
        "bs_position": "B 3",
    }
    num_features: int
    csi_size: tuple[int, int] | None = None
    token_shape: tuple[int, int] | None = None

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Return features (B, D) of inputs that are tensors or arrays, in single or double precision.

        Batches may be empty, see `of_links`.

        Raises:
            InputError: An input has other axes than the encoder, the CSI is not complex, or, in evaluation, entries are
                NaN or infinite.
        """
        keys = (*self.input_keys, *[""] * len(inputs))
        inputs = tuple(self._taken(key, value) for key, value in zip(keys, inputs, strict=False))
        named = {key: self._taken(key, value) for key, value in named.items()}
        if not self.training:
            for key, value in (*zip(keys, inputs, strict=False), *named.items()):
                if isinstance(value, Tensor) and not value.isfinite().all():
                    raise InputError(f"{key or 'an input'} has entries that are NaN or infinite: leave those links out")
        return of_links(super().__call__, *inputs, **named)

    def save_hyperparameters(self, *, frame: FrameType | None = None) -> None:  # type: ignore[override]
        """Record the constructor arguments of the class that is built, from which a checkpoint builds it again.

        Lightning would add those of its base classes, and of a model whose constructor, or the command line, builds it.
        """
        frame = inspect.currentframe().f_back if frame is None else frame  # type: ignore[union-attr]
        settings: dict[str, Any] = {}
        while frame is not None and frame.f_code.co_name == "__init__" and frame.f_locals.get("self") is self:
            names, _, rest, values = inspect.getargvalues(frame)
            settings = {name: values[name] for name in names if name != "self"} | (values[rest] if rest else {})
            frame = frame.f_back
        # in an empty context, since the command line hands arguments of the model to Lightning by the context
        Context().run(super().save_hyperparameters, settings)

    @property
    def reads_past(self) -> bool:
        """Whether it reads several snapshots of the CSI, an axis N, rather than one."""
        return "N" in self.input_axes.get("csi", "").split()

    @property
    def takes_statistics(self) -> bool:
        """Whether `prepare` fills anything: computing a sample of the train side is expensive."""
        return type(self).prepare is not Encoder.prepare

    def _taken(self, key: str, value: Any) -> Any:
        """Return an input as a tensor of the precision of the encoder, after a check of its axes."""
        if isinstance(value, np.ndarray):
            weight = next(chain(self.parameters(), self.buffers()), None)
            value = torch.from_numpy(value).to(None if weight is None else weight.device)
        axes = self.input_axes.get(key)
        if axes is None or not isinstance(value, Tensor):
            return value
        if value.ndim != len(axes.split()):
            raise InputError(
                f"{type(self).__name__} reads {key} of axes ({axes}), got shape {tuple(value.shape)}: a single link is "
                "a batch of one; leave data.sequence out where no axis N is read; several base stations are for "
                "model.base_stations of FineTune, as many as in the data"
            )
        if key == "csi" and not value.is_complex():
            raise InputError(f"{type(self).__name__} reads complex csi, got {value.dtype}")
        if value.dtype in (torch.complex128, torch.float64):
            real = next((w for w in chain(self.parameters(), self.buffers()) if w.is_floating_point()), value.real)
            value = value.to(torch.promote_types(real.dtype, torch.complex32) if value.is_complex() else real.dtype)
        return value

    @abstractmethod
    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Return features (B, D) of the inputs of the subclass."""

    def prepare(self, batch: Mapping[str, Any]) -> None:
        """Set input statistics, once, from a sample of the train side; checkpoints contain them."""

    def encode(self, batch: Mapping[str, Any]) -> Tensor:
        """Return features (B, D) of a batch."""
        return of_links(super().__call__, *(self._taken(key, batch[key]) for key in self.input_keys))

    def tokens(self, batch: Mapping[str, Any]) -> Tensor:
        """Return tokens (B, N, W) of a batch.

        Raises:
            TypeError: The encoder has no tokens; its `token_shape` is None.
        """
        raise TypeError(f"{type(self).__name__} has no tokens")

    def beyond_tokens(self) -> Iterable[nn.Parameter]:
        """Return the parameters between tokens and features, on which the tokens do not depend."""
        return ()
