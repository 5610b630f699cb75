"""Recorded CSI: measured or simulated elsewhere, in a tensor file without rays."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from datamodules.errors import DatasetNotFoundError, InputError
from datamodules.sites.environment import Environment
from datamodules.sites.site import Site
from datamodules.sources.base import Recipe, Source, data_root, file_stamps, renamed
from datamodules.sources.recorded.file import read_recording

#: version of the reader, to be raised when its output changes, so that cached sites are rebuilt
_VERSION = 2


class Recorded(Source):
    """Recorded CSI, one file and one site for each base station.

    A file is in safetensors format and holds

    | tensor | shape | meaning |
    |---|---|---|
    | `csi` | (U, R, T, K) or (U, N, R, T, K) | channel, complex64 or real pairs (..., 2); subcarriers rising |
    | `position` | (U, 3) or none | user [m] from a nearby origin; NaN where unknown; all NaN if missing |
    | `los` | (U,) integer, or none | 1 line of sight, 0 none, -1 unknown; all -1 if missing |
    | `timestamps` | (U,) or (U, N) float64, or none | time of a link, or of each of its snapshots; rising |

    and as metadata, which safetensors keeps as text,

    | key | meaning |
    |---|---|
    | `carrier_frequency`, `bandwidth` | [Hz]; carrier at subcarrier 0; bandwidth of K subcarriers |
    | `interval` | between snapshots [s]; needed with an axis N and no timestamps (U, N) |
    | `time_unit` | of the timestamps: `s`, `ms`, `us`, `ns` or `day`; by default seconds, if plausible |
    | `num_subcarriers` | K, if given |
    | `bs_rows`, `bs_cols`, `ue_rows`, `ue_cols` | arrays, if given; their elements are in the order of `Array` |
    | `bs_position` | base station `[x, y, z]` [m]; the origin if not given |
    | `area` | common to files with the same users, which splits keep together; the file's name if not given |
    | `city` | city or measurement campaign, held out by the split `city`; the area if not given |

    A long recording of one device is a single link of many snapshots, (1, N, R, T, K), with positions (1, N, 3) and
    `los` (1, N). Each snapshot becomes a link of the site, and a datamodule with `sequence` cuts the recording into
    windows; there may be gaps in time.

    `import_recording` (`python -m datamodules import`) writes such files from .npy, .npz and .mat. A datamodule takes
    arrays, subcarriers and interval from the recording; without positions there is no positioning and no `spatial`
    split.

    Args:
        files: Files, or patterns like `campaign/*.safetensors`, in `root`.
        root: Folder of the files; by default `$CSI_DATA/recorded`, or `data/recorded`.
        city: City or campaign of all files, in place of that in their metadata.
        cache: Folder of finished sites, see `Source`.
        place: Old name of `city`, read with a warning.
    """

    def __init__(
        self,
        files: list[str] | str = "*.safetensors",
        root: str | None = None,
        city: str | None = None,
        cache: str | None = None,
        place: str | None = None,
    ) -> None:
        super().__init__(cache)
        self.root = data_root("recorded", root)
        self.files = [files] if isinstance(files, str) else list(files)
        self.city = renamed("Recorded", "place", place, "city", city)

    def recipes(self) -> list[Recipe]:
        """List one recipe for each file.

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
                "source": "recorded", "version": _VERSION, "city": self.city, "file": file_stamps([file])
            }  # fmt: skip
            recipes.append(Recipe((name,), parameters, partial(_make, name, file, parameters)))
        return recipes

    def _find(self) -> list[Path]:
        files: list[Path] = []
        for pattern in map(os.path.expanduser, self.files):
            # an existing path is not a pattern, even with wildcard characters
            plain = self.root / pattern
            within = pattern if Path(pattern).is_absolute() else os.path.join(glob.escape(str(self.root)), pattern)
            matches = [plain] if plain.is_file() else [Path(match) for match in sorted(glob.glob(within))]
            if not matches:
                raise DatasetNotFoundError(
                    f"no recording {pattern!r} in {self.root.resolve()}: write one by `python -m datamodules import`, "
                    "or set files or root"
                )
            files += matches
        return list(dict.fromkeys(files))


def _make(name: str, file: Path, parameters: dict[str, Any], work: Path) -> Iterator[Site]:
    links, facts = read_recording(file)
    known = links.position[~links.position.isnan().any(1)]
    area = facts.get("area", name)
    city = parameters["city"] or facts.get("city", facts.get("place", area))  # `place` in files of older releases
    yield Site(
        name=name,
        links=links,
        bs_position=torch.tensor(facts.get("bs_position", (0.0, 0.0, 0.0))),
        carrier_frequency=facts["carrier_frequency"],
        area=area,
        city=city,
        environment=Environment.empty(known.numpy()),
        domain={"scenario": city, "frequency": facts["carrier_frequency"]},
        provenance={**parameters, "facts": facts},
    )
