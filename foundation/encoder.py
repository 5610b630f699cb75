"""The `Encoder` contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from torch import Tensor, nn


class Encoder(nn.Module, HyperparametersMixin, ABC):
    """Turns the inputs named by `input_keys` into features.

    A subclass takes flat, plain constructor arguments and calls `self.save_hyperparameters()`, so that a checkpoint can
    rebuild it (`load_encoder`).

    Attributes:
        input_keys: Batch keys that `forward` takes, in order.
        num_features: Width D of the features.
        token_shape: Number N and width W of the tokens behind the features, of an encoder that has any.
    """

    input_keys: ClassVar[tuple[str, ...]] = ("csi",)
    num_features: int
    token_shape: tuple[int, int] | None = None

    @abstractmethod
    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Return features (B, D); a subclass names its own inputs."""

    def prepare(self, batch: Mapping[str, Any]) -> None:
        """Fill buffers with statistics of the input, once, from a sample of the train side; a checkpoint holds them."""

    def encode(self, batch: Mapping[str, Any]) -> Tensor:
        """Return features (B, D) of a batch."""
        features: Tensor = self(*(batch[key] for key in self.input_keys))
        return features

    def tokens(self, batch: Mapping[str, Any]) -> Tensor:
        """Return tokens (B, N, W) of a batch.

        Raises:
            TypeError: This kind of encoder has none; its `token_shape` is None.
        """
        raise TypeError(f"{type(self).__name__} has no tokens")
