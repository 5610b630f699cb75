"""Recorded CSI: measured, or made by somebody else's software, in a tensor file without rays."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from datamodules.environment import Environment
from datamodules.errors import DatasetNotFoundError, InputError
from datamodules.recording import Recording
from datamodules.site import Site
from datamodules.sources.base import Recipe, Source
from datamodules.sources.deepmimo import data_root, file_stamps

#: grows when the reader changes what it makes, so that sites in the cache are made anew
_VERSION = 1
#: complex values that are read at a time: 64 MB
_READ_SIZE = 2**23
#: snapshots may be this share of an interval early or late: more, and one is missing
_JITTER = 0.1
_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Recorded(Source):
    """Recorded CSI, one file and one site for each base station.

    A file is in safetensors format and holds

    | tensor | shape | meaning |
    |---|---|---|
    | `csi` | (U, R, T, K) or (U, N, R, T, K) | channel, complex64 or real pairs (..., 2); subcarriers rising |
    | `position` | (U, 3) or none | user [m] from an origin nearby; NaN, as all are without it, where unknown |
    | `los` | (U,) integer, or none | 1 line of sight, 0 none, -1, as all are without it, unknown |
    | `timestamps` | (U,) or (U, N) float64, or none | when a link, or each of its snapshots, was recorded [s]; rising |

    and as metadata, which safetensors keeps as text,

    | key | meaning |
    |---|---|
    | `carrier_frequency`, `bandwidth` | [Hz]; K subcarriers fill the bandwidth |
    | `interval` | between snapshots [s]; needed with an axis N and no timestamps (U, N) |
    | `num_subcarriers` | K, if given |
    | `bs_rows`, `bs_cols`, `ue_rows`, `ue_cols` | arrays, if given; their elements are in the order of `Array` |
    | `bs_position` | base station `[x, y, z]` [m]; the origin if not given |
    | `area` | files that share users share it, so that no split comes between them; the file's name if not given |
    | `place` | place or campaign; the area if not given |

    `import_recording` (`recorded_import.py`) writes such files from .npy, .npz and .mat. Without positions there is no
    positioning and no `spatial` split.

    The arrays and the grid of a datamodule are to be those of its recordings: `ue`, `bs` and `ofdm` with R, T and K.

    Args:
        files: Files, or patterns like `campaign/*.safetensors`, in `root`.
        root: Folder of the files; by default `$CSI_DATA/recorded`, or `data/recorded`.
        place: Place of all files, instead of what they say.
        cache: Folder of finished sites, see `Source`.
    """

    def __init__(
        self,
        files: list[str] | str = "*.safetensors",
        root: str | None = None,
        place: str | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__(cache)
        self.root = data_root("recorded", root)
        self.files = [files] if isinstance(files, str) else list(files)
        self.place = place

    def recipes(self) -> list[Recipe]:
        """List one recipe a file.

        Raises:
            DatasetNotFoundError: There is no such file.
            InputError: Two files have the same name.
        """
        found: dict[str, Path] = {}
        for file in self._find():
            if found.setdefault(file.stem, file) != file:
                raise InputError(f"{found[file.stem]} and {file} would be one site: give one of them another name")
        recipes = []
        for name, file in found.items():
            parameters = {
                "source": "recorded", "version": _VERSION, "place": self.place, "file": file_stamps([file])
            }  # fmt: skip
            recipes.append(Recipe((name,), parameters, partial(_make, name, file, parameters)))
        return recipes

    def _find(self) -> list[Path]:
        files: list[Path] = []
        for pattern in self.files:
            # a path that is there is no pattern, whatever characters it holds
            plain = self.root / pattern
            within = pattern if Path(pattern).is_absolute() else os.path.join(glob.escape(str(self.root)), pattern)
            matches = [plain] if plain.is_file() else [Path(match) for match in sorted(glob.glob(within))]
            if not matches:
                raise DatasetNotFoundError(
                    f"no recording {pattern!r} in {self.root.resolve()}: write one with import_recording, or set files "
                    "or root"
                )
            files += matches
        return list(dict.fromkeys(files))


def _make(name: str, file: Path, parameters: dict[str, Any], work: Path) -> Iterator[Site]:
    links, facts = read_recording(file)
    known = links.position[~links.position.isnan().any(1)]
    area = facts.get("area", name)
    place = parameters["place"] or facts.get("place", area)
    yield Site(
        name=name,
        links=links,
        bs_position=torch.tensor(facts.get("bs_position", (0.0, 0.0, 0.0))),
        carrier_frequency=facts["carrier_frequency"],
        area=area,
        place=place,
        environment=Environment.empty(known.numpy()),
        domain={"scenario": place, "frequency": facts["carrier_frequency"]},
        provenance={**parameters, "facts": facts},
    )


def read_recording(file: Path, name: str | None = None) -> tuple[Recording, dict[str, Any]]:
    """Read and check a file of the layout of `Recorded`.

    Args:
        file: The file.
        name: What messages call it, by default its path.

    Returns:
        The links, and the metadata as numbers, lists and text.

    Raises:
        DatasetNotFoundError: There is no such file.
        InputError: The file is damaged, or what it holds cannot be used; the message names file and link.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return _read(opened)
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"recording {name or file} does not exist") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"recording {name or file} is damaged: {error}") from error
    except InputError as error:
        raise InputError(f"recording {name or file}: {error}") from error


def _read(opened: Any) -> tuple[Recording, dict[str, Any]]:
    names = set(opened.keys())
    if "csi" not in names:
        raise InputError(f"holds no csi, but {', '.join(sorted(names)) or 'nothing'}")
    source = opened.get_slice("csi")
    shape, kind = source.get_shape(), source.get_dtype()
    paired = kind in ("F16", "BF16", "F32", "F64")
    if not (paired and shape[-1:] == [2]) and kind != "C64":
        raise InputError(f"csi must be complex64, or real pairs (..., 2), got {kind} of shape {tuple(shape)}")
    shape = shape[:-1] if paired else shape
    if len(shape) not in (4, 5) or 0 in shape:
        raise InputError(f"csi must have shape (U, R, T, K) or (U, N, R, T, K), got {tuple(shape)}")
    facts = _facts(opened.metadata() or {}, shape)
    count, times = shape[0], shape[1] if len(shape) == 5 else None

    position = torch.full((count, 3), torch.nan)
    if "position" in names:
        position = opened.get_tensor("position")
        _expect("position", position, (count, 3))
        position = position.float()
        _refuse("position", position.isinf().any(1), "infinite")
    los = torch.full((count,), -1)
    if "los" in names:
        los = opened.get_tensor("los")
        _expect("los", los, (count,))
        if los.dtype not in _INTEGERS:
            raise InputError(f"los must be integer, got {los.dtype}")
        _refuse("los", (los.long() < -1) | (los.long() > 1), "neither -1, 0 nor 1")
    interval = facts.get("interval", 0.0) if times else 0.0
    if "timestamps" in names:
        stamped = _check_times(opened.get_tensor("timestamps").double(), count, times)
        interval = interval if stamped is None else stamped
    if times and not interval > 0:
        raise InputError("snapshots need timestamps (U, N) [s], or the metadata interval [s]")

    parts, bad = [], []
    step = max(1, _READ_SIZE * count // torch.Size(shape).numel())
    for start in range(0, count, step):
        part = source[start : start + step]
        csi = torch.view_as_complex(part.float().contiguous()) if paired else part
        bad.append(~torch.isfinite(torch.view_as_real(csi)).flatten(1).all(1))
        if not bad[-1].any():
            rows = slice(start, start + step)
            parts.append(Recording.build(csi, position[rows], los[rows], interval))
    _refuse("csi", torch.cat(bad), "not finite")
    fields = {key: torch.cat([part.as_dict()[key] for part in parts]) for key in parts[0].as_dict()}
    return Recording(**fields, interval=interval), facts


def _facts(metadata: dict[str, str], shape: list[int]) -> dict[str, Any]:
    """Turn metadata into numbers, lists and text, and hold them against the shape of the CSI."""
    facts: dict[str, Any] = {}
    for key, text in metadata.items():
        try:
            facts[key] = text if key in ("area", "place") else json.loads(text)
        except json.JSONDecodeError:
            facts[key] = text
    for key in ("carrier_frequency", "bandwidth", "interval"):
        if key not in facts and key != "interval":
            raise InputError(f"the metadata lack {key} [Hz]")
        if not isinstance(facts.get(key, 1.0), int | float) or not 0 < facts.get(key, 1.0) < float("inf"):
            raise InputError(f"the metadata {key} must be a positive number, got {metadata[key]!r}")
    place = facts.get("bs_position", [0.0] * 3)
    if not isinstance(place, list) or len(place) != 3 or not all(isinstance(x, int | float) for x in place):
        raise InputError(f"the metadata bs_position must be [x, y, z] [m], got {metadata['bs_position']!r}")
    if "bs_position" in facts:
        facts["bs_position"] = [float(x) for x in place]
    sizes = {"R": ("ue_rows", "ue_cols"), "T": ("bs_rows", "bs_cols"), "K": ("num_subcarriers",)}
    for (axis, keys), size in zip(sizes.items(), shape[-3:], strict=True):
        said = [facts[key] for key in keys if key in facts]
        if said and (len(said) < len(keys) or not all(isinstance(n, int) for n in said) or _product(said) != size):
            words = ", ".join(f"{key} {facts.get(key, 'missing')}" for key in keys)
            raise InputError(f"the metadata say {words}, but csi has {axis} = {size}")
    return facts


def _product(values: list[int]) -> int:
    return values[0] * (values[1] if len(values) > 1 else 1)


def _check_times(stamps: Tensor, count: int, times: int | None) -> float | None:
    """Return the interval of timestamps (U, N) [s], or None of timestamps (U,)."""
    if stamps.ndim == 1 or times is None:
        _expect("timestamps", stamps, (count,))
        _refuse("timestamps", ~(stamps.diff(prepend=stamps[:1] - 1) > 0), "not after the one before")
        return None
    _expect("timestamps", stamps, (count, times))
    steps = stamps.diff(dim=1)
    _refuse("timestamps", ~(steps > 0).all(1), "not rising")
    if times == 1:
        return None
    interval = float(steps.median())
    _refuse("timestamps", ((steps / interval - 1).abs() > _JITTER).any(1), f"not {interval:g} s apart")
    return interval


def _expect(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape != shape or value.is_complex():
        raise InputError(f"{name} must be real and have shape {shape}, got {value.dtype} of {tuple(value.shape)}")


def _refuse(name: str, bad: Tensor, why: str) -> None:
    """Complain about the links of which `bad` (U,) is true."""
    if bad.any():
        count, first = int(bad.sum()), int(bad.int().argmax())
        raise InputError(f"{name} of {count} of {len(bad)} links is {why}, first of link {first}")
