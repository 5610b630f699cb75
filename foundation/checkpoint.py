"""Loading of encoders, heads and models from checkpoints, strictly and with weights only."""

from __future__ import annotations

import importlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datamodules.errors import DatasetNotFoundError, InputError, refuse_pointer
from datamodules.files import sha256
from foundation.encoder import Encoder
from foundation.names import current_path, current_weights
from heads import Head

#: files of an exported folder: weights, and the other content of a checkpoint
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, or an exported folder, memory-mapped, without execution of code in it.

    Raises:
        DatasetNotFoundError: There is no such file.
        InputError: It is damaged, or holds more than weights and plain data.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _read_folder(path)
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
        why = f" ({error})" if isinstance(error, OSError) else ""  # others are of the internals of PyTorch
        raise InputError(f"checkpoint {path} is damaged or no checkpoint{why}: give a .ckpt file of a run") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"checkpoint {path} has no state_dict: it was not written by `lightning fit`")
    _check_content(checkpoint, path)
    if damaged := _damaged_entry(path, path.stat().st_size, path.stat().st_mtime_ns):
        raise InputError(
            f"checkpoint {path} is damaged ({damaged} has a wrong checksum): copy it again, or train again"
        )
    checkpoint["state_dict"] = current_weights(checkpoint["state_dict"])
    return checkpoint


def _check_content(content: dict[str, Any], source: Path) -> None:
    """Check that the entries of a checkpoint that this module reads are mappings."""
    parts = content.get("parts", content.get("towers", {}))
    entries: dict[str, Any] = {
        key: content[key] for key in ("state_dict", "parts", "data", "hyper_parameters") if key in content
    }
    entries |= {f"part {name}": part for name, part in parts.items()} if isinstance(parts, dict) else {}
    for key, value in entries.items():
        if not isinstance(value, dict):
            raise InputError(f"{source} is damaged or of another program: its {key} is no mapping")


@lru_cache(maxsize=16)
def _damaged_entry(path: Path, size: int, changed: int) -> str | None:
    """Return the first entry of a checkpoint whose checksum is wrong, which PyTorch does not verify; None if intact.

    Args:
        path: The file.
        size: Its size, by which a changed file is read again.
        changed: Time of its last change.
    """
    if not zipfile.is_zipfile(path):  # the format of PyTorch before 1.6 has no checksums
        return None
    try:
        with zipfile.ZipFile(path) as entries:
            return entries.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        return str(error)


def _read_folder(folder: Path) -> dict[str, Any]:
    """Read a folder of `lightning export --to safetensors`, and verify the checksum of its weights."""
    own = folder / "checkpoints" / "best.ckpt"
    if own.is_file():
        raise InputError(f"{folder} is a run, not a checkpoint: give {own}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise DatasetNotFoundError(
                f"{folder} holds no {name}: give a .ckpt file, or a folder of `lightning export`"
            )
        refuse_pointer(folder / name)
    try:
        content: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        if sha256(folder / WEIGHTS) != content["sha256"]:
            raise InputError(f"{folder / WEIGHTS} is not what {CONFIG} gives the checksum of: export or fetch it again")
        _check_content(content, folder)
        return content | {"state_dict": load_file(folder / WEIGHTS)}
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} is damaged or no exported model: {' '.join(str(error).split())}") from error


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        InputError: It cannot be written.
    """
    try:
        save_file(dict(tensors), file, metadata=dict(metadata))
    except (OSError, SafetensorError) as error:  # the latter of a full disk, without the name of the file
        raise InputError(f"cannot write {file}: {error}") from error


def load_encoder(checkpoint: str | Path, encoder: Encoder | None = None, tower: str | None = None) -> Encoder:
    """Return an encoder of a checkpoint, with its weights and input statistics, in eval mode.

    Args:
        checkpoint: Path of a checkpoint written by any model of the suite, or of an exported folder.
        encoder: Encoder to load the weights into; by default built from the description in the checkpoint.
        tower: Name of the encoder in a model with several, such as `environment`; by default the first.

    Raises:
        DatasetNotFoundError: There is no such file.
        InputError: The file is no checkpoint of this suite, or its weights do not fit; the message names the keys.
    """
    loaded = load_part(checkpoint, tower, encoder)
    if not isinstance(loaded, Encoder):
        raise InputError(f"{tower} in {checkpoint} is a {type(loaded).__name__}, no encoder: name another part")
    return loaded


def find_encoder(mode: str, encoder: Encoder | None, checkpoint: str | None, tower: str | None = None) -> Encoder:
    """Return the encoder of an adaptation: with the weights of a checkpoint, or with new ones.

    Args:
        mode: `probe` or `finetune` for the weights of the checkpoint, `scratch` or `control` for new ones.
        encoder: Encoder; by default built from the description in the checkpoint.
        checkpoint: Path of a checkpoint written by any model of the suite.
        tower: Name of the encoder in a model with several; by default the first.

    Raises:
        DatasetNotFoundError: There is no such file.
        InputError: The checkpoint or encoder that the mode needs is missing, or they do not match.
    """
    if mode in ("probe", "finetune"):
        if checkpoint is None:
            raise InputError(
                f"mode `{mode}` needs model.checkpoint, a .ckpt file of a pre-training: give one, or run `make "
                "finetune`, which takes the newest"
            )
        return load_encoder(checkpoint, encoder, tower)
    if encoder is not None:
        return encoder
    if checkpoint is None:
        raise InputError(
            f"mode `{mode}` needs model.encoder, as of --config experiments/encoders/csiclip.yaml, or model.checkpoint "
            "to build the same encoder again"
        )
    built = rebuild(read_checkpoint(checkpoint), checkpoint, tower)
    if not isinstance(built, Encoder):
        raise InputError(f"{tower} in {checkpoint} is a {type(built).__name__}, no encoder: set model.tower to another")
    return built


def model_name(checkpoint: str | Path) -> str:
    """Return the name of the model of a checkpoint, or `unknown`."""
    return str(described(read_checkpoint(checkpoint)).get("model", "unknown"))


def load_part(checkpoint: str | Path, part: str | None = None, into: nn.Module | None = None) -> nn.Module:
    """Return one part of a checkpoint, such as `decoder` or `head`, with its weights, in eval mode.

    Args:
        checkpoint: Path of a checkpoint written by any model of the suite.
        part: Name of the part; by default the first encoder.
        into: Module to load the weights into; by default built from the description in the checkpoint.

    Raises:
        DatasetNotFoundError: There is no such file.
        InputError: The file is no checkpoint of this suite, or holds no such part, or does not say how to build it, or
            its weights do not fit; the message names the keys.
    """
    content = read_checkpoint(checkpoint)
    module = into or rebuild(content, checkpoint, part)
    prefix = described(content, part, checkpoint).get("prefix", "encoder.")
    weights = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    configure_as(module, described(content, part, checkpoint))
    problem = mismatch(module.state_dict(), weights)
    if problem:
        raise InputError(
            f"the {part or 'encoder'} in {checkpoint} does not fit this {type(module).__name__}: {problem}"
        )
    module.load_state_dict(weights)
    return module.eval()


def described(content: dict[str, Any], part: str | None = None, source: str | Path = "it") -> dict[str, Any]:
    """Return the description of a part of a checkpoint, by default the first; empty without any description.

    Raises:
        InputError: The checkpoint has no part of that name.
    """
    # checkpoints of older releases have encoders alone
    parts: dict[str, dict[str, Any]] = content.get("parts", content.get("towers", {}))
    if part is None:
        return next(iter(parts.values()), {})
    if part not in parts:
        raise InputError(f"{source} holds no part {part!r}: choose one of {', '.join(parts) or 'none'}")
    return parts[part]


def rebuild(content: dict[str, Any], source: str | Path, part: str | None = None) -> Encoder | Head:
    """Build an encoder or a head from the description in a checkpoint, with new weights.

    Raises:
        InputError: The checkpoint has no description, or its class is not installed.
    """
    entry = described(content, part, source)
    try:
        module, _, name = current_path(entry["class"]).rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        if not (isinstance(kind, type) and issubclass(kind, Encoder | Head)):
            raise TypeError(f"{name} is neither encoder nor head")
        return kind(**entry["init_args"])
    except (KeyError, ImportError, AttributeError, TypeError) as error:
        what = part or "encoder"
        raise InputError(f"{source} does not say which {what} it holds ({error}): give the {what} as well") from error


def configure_as(module: nn.Module, entry: Mapping[str, Any]) -> None:
    """Configure a head without a size of the channel for that in the description of a checkpoint."""
    settings = entry.get("init_args", {})
    sizes = [settings.get(key) for key in ("num_antennas", "num_subcarriers")]
    if isinstance(module, Head) and None not in sizes:
        module.configure(*sizes)


def load_model(model: nn.Module, checkpoint: str | Path) -> None:
    """Load all weights of a checkpoint into a model of the same structure.

    Raises:
        DatasetNotFoundError: There is no such file.
        InputError: The file is no checkpoint, or its weights do not match the model; the message names the keys.
    """
    content = read_checkpoint(checkpoint)
    check_fit(model, content, f"checkpoint {checkpoint}")
    model.load_state_dict(content["state_dict"])


def check_fit(model: nn.Module, content: dict[str, Any], source: str = "the checkpoint") -> None:
    """Check that the weights of a checkpoint match a model.

    Raises:
        InputError: They do not; the message names the keys.
    """
    problem = mismatch(model.state_dict(), content.get("state_dict", {}))
    if problem:
        made = described(content).get("model", "another program")
        raise InputError(f"{source}, of {made}, does not fit this {type(model).__name__}: {problem}")


def mismatch(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """Return the difference of two sets of weights in one line, or None if names and shapes are equal."""
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
