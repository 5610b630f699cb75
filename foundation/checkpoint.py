"""Encoders out of checkpoints: weights only, strictly."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import DatasetNotFoundError, InputError, refuse_pointer
from foundation.encoder import Encoder


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, memory-mapped, without running anything that it may hold.

    Raises:
        DatasetNotFoundError: There is no such file.
        InputError: It is damaged, or holds more than weights and plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetNotFoundError(f"checkpoint {path} does not exist: give another .ckpt file, or pre-train first")
    refuse_pointer(path)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} holds more than tensors and plain data, or is damaged; refusing to run code from it"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"checkpoint {path} is damaged or no checkpoint: {' '.join(str(error).split())}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"checkpoint {path} has no state_dict: it was not written by `lightning fit`")
    return checkpoint


def load_encoder(checkpoint: str | Path, encoder: Encoder | None = None, tower: str | None = None) -> Encoder:
    """Return an encoder of a checkpoint, with its weights and input statistics, in eval mode.

    Args:
        checkpoint: Path of a checkpoint written by any model of the suite.
        encoder: Built encoder to load the weights into; by default one is built as the checkpoint says.
        tower: Which encoder of a model with several, such as `environment`; by default its first.

    Raises:
        DatasetNotFoundError: There is no such file.
        InputError: The file is no checkpoint of this suite, or its weights do not fit; the message names the keys.
    """
    content = read_checkpoint(checkpoint)
    encoder = encoder or rebuild(content, checkpoint, tower)
    prefix = described(content, tower, checkpoint).get("prefix", "encoder.")
    weights = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    problem = mismatch(encoder.state_dict(), weights)
    if problem:
        raise InputError(f"the encoder in {checkpoint} does not fit this {type(encoder).__name__}: {problem}")
    encoder.load_state_dict(weights)
    return encoder.eval()


def described(content: dict[str, Any], tower: str | None = None, source: str | Path = "it") -> dict[str, Any]:
    """Return how a checkpoint describes one of its encoders, by default the first; empty where it describes none.

    Raises:
        InputError: It describes none of that name.
    """
    towers: dict[str, dict[str, Any]] = content.get("towers", {})
    if tower is None:
        return next(iter(towers.values()), {})
    if tower not in towers:
        raise InputError(f"{source} holds no tower {tower!r}: choose one of {', '.join(towers) or 'none'}")
    return towers[tower]


def rebuild(content: dict[str, Any], source: str | Path, tower: str | None = None) -> Encoder:
    """Build an encoder that a checkpoint describes, with new weights.

    Raises:
        InputError: The checkpoint describes none, or one that is not installed.
    """
    entry = described(content, tower, source)
    try:
        module, _, name = entry["class"].rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        if not (isinstance(kind, type) and issubclass(kind, Encoder)):
            raise TypeError(f"{name} is no encoder")
        return kind(**entry["init_args"])
    except (KeyError, ImportError, AttributeError, TypeError) as error:
        raise InputError(f"{source} does not say which encoder it holds ({error}): give the encoder as well") from error


def mismatch(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """Say in one line how two sets of weights differ, or return None when they fit."""
    missing = [key for key in wanted if key not in given]
    unexpected = [key for key in given if key not in wanted]
    shapes = [key for key in wanted if key in given and wanted[key].shape != given[key].shape]
    parts = [f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' * (len(keys) > 3)})"
             for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]  # fmt: skip
    if shapes:
        first = shapes[0]
        parts.append(
            f"{len(shapes)} of another shape ({first} is {tuple(given[first].shape)}, not {tuple(wanted[first].shape)})"
        )
    return "; ".join(parts) or None
