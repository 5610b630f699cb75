"""WAIR-D: ray-traced channels of 10,000 real city areas, as released (arXiv 2212.02159)."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Literal

from datamodules.errors import DatasetNotFoundError, InputError, refuse_pointer
from datamodules.sources.base import Recipe, Source, data_root
from datamodules.sources.waird.area import HEIGHT_FILE, Plan, frequency_tag, read_area

#: the split of environment-channel section IV-A, by name
PAPER_AREAS = {"paper-train": "1001-10000", "paper-test": "1-1000"}
_BROKEN = 9117
#: bytes at either end of a file that its fingerprint reads
_ENDS = 4096
#: version of the reader, to be raised when its output changes, so that cached sites are rebuilt
_VERSION = 1
_PAGE = "https://www.mobileai-dataset.com/html/default/yingwen/DateSet/1590994253188792322.html"


class WAIRD(Source):
    """Reads WAIR-D's released folders: one recipe for each area, one site for each base station.

    Scenario 1 has 10,000 areas of 5 base stations x 30 users, scenario 2 has 100 of them again, with 1 base station x
    10,000 users. An area has one name in both, `waird_00032`, so that splits keep the two on one side.

    The files contain neither heights, nor materials, nor the interactions of a path. Heights are set to 6 m for base
    stations, 1.5 m for users and 10 m for buildings. A link has line of sight if its first path has the length of the
    straight line; that path has 0 bounces, all others are set to 1, as their number is unknown.

    Args:
        root: Folder that holds `scenario_1/` or `data/scenario_1/`; by default `$CSI_DATA/waird`, or `data/waird`.
        scenario: 1, many areas with few users, or 2, few areas with many users.
        areas: Which areas: numbers, text like "1-1000,2000", "paper-train" (1001-10000) or "paper-test" (1-1000) after
            environment-channel section IV-A, or all that are found. Numbers in a list must exist, gaps in a range are
            skipped.
        frequency: Carrier [Hz]; 2.6, 6, 28, 60 and 100 GHz are released.
        max_paths: Number of strongest paths to keep for each link.
        exclude_scenario_2: Whether scenario 1 excludes the areas of scenario 2, so that training on the one and testing
            on the other have no area in common. Works only where both are under `root`.
        cache: Folder of finished sites, see `Source`.

    Raises:
        InputError: An argument is invalid.
    """

    def __init__(
        self,
        root: str | None = None,
        scenario: Literal[1, 2] = 1,
        areas: list[int] | str | None = None,
        frequency: float = 28e9,
        max_paths: int = 20,
        exclude_scenario_2: bool = True,
        cache: str | None = None,
    ) -> None:
        super().__init__(cache)
        if scenario not in (1, 2):
            raise InputError(f"scenario must be 1 or 2, got {scenario!r}")
        if max_paths < 1:
            raise InputError(f"max_paths must be at least 1, got {max_paths}")
        self.root = data_root("waird", root)
        self.scenario = scenario
        self.areas = areas
        self.frequency = float(frequency)
        self.max_paths = max_paths
        self.exclude_scenario_2 = exclude_scenario_2
        self._ranges = _parse_areas(areas)
        self._channel_file = f"H_{frequency_tag(self.frequency)}_G.npy"

    def recipes(self) -> list[Recipe]:
        """List one recipe for each area; reads positions, and a few kilobytes of other files to fingerprint them.

        Raises:
            DatasetNotFoundError: The data set, an area or a file is missing.
            InputError: The positions of an area cannot be read.
        """
        return [self._recipe(number, folder) for number, folder in sorted(self._select().items())]

    def _recipe(self, number: int, folder: Path) -> Recipe:
        area = f"waird_{number:05d}"
        files = [folder / name for name in ("Info.npy", "Path.npy", self._channel_file, "environment.png")]
        optional = folder / HEIGHT_FILE
        parameters = {
            "source": "waird",
            "version": _VERSION,
            "scenario": self.scenario,
            "area": area,
            "frequency": self.frequency,
            "max_paths": self.max_paths,
            "data": _fingerprint([*files, optional] if optional.exists() else files),
        }
        num_bs = len(Plan.read(folder, self.scenario).bs)
        names = tuple(f"waird{self.scenario}_{number:05d}_bs{b}" for b in range(num_bs))
        make = partial(read_area, names=names, folder=folder, channel_file=self._channel_file, parameters=parameters)
        return Recipe(names, parameters, make)

    def _select(self) -> dict[int, Path]:
        """Return the folders of the requested areas."""
        found = self._found(self.scenario)
        if not found:
            raise DatasetNotFoundError(
                f"no WAIR-D scenario {self.scenario} in {self.root}: fetch it from {_PAGE}, unpack it so that "
                f"{self.root}/scenario_{self.scenario}/00001 exists, or set root"
            )
        wanted = set(found)
        if self._ranges is not None:
            wanted = {number for numbers in self._ranges for number in numbers}
            missing = sorted(wanted - set(found))
            if missing and (isinstance(self.areas, list) or len(missing) == len(wanted)):
                raise DatasetNotFoundError(
                    f"area {missing[0]:05d} of WAIR-D scenario {self.scenario} is not in {self.root}: change areas"
                )
        wanted &= set(found)
        if _BROKEN in wanted and self.scenario == 1:
            warnings.warn(f"WAIR-D area {_BROKEN:05d} is skipped: its released files are broken", stacklevel=3)
            wanted.discard(_BROKEN)
        if self.scenario == 1 and self.exclude_scenario_2:
            shared = wanted & set(self._found(2))
            if shared:
                warnings.warn(
                    f"{len(shared)} WAIR-D areas are left out of scenario 1 because scenario 2 holds them too; "
                    "exclude_scenario_2=False keeps them",
                    stacklevel=3,
                )
            wanted -= shared
        if not wanted:
            raise InputError("no WAIR-D area is left: change areas, or set exclude_scenario_2=False")
        return {number: found[number] for number in wanted}

    def _found(self, scenario: int) -> dict[int, Path]:
        """Return the folder of every area of a scenario."""
        for base in (self.root / "data", self.root):
            folder = base / f"scenario_{scenario}"
            if folder.is_dir():
                return {int(entry.name): entry for entry in folder.iterdir() if re.fullmatch(r"\d{5}", entry.name)}
        return {}


def _parse_areas(areas: list[int] | str | None) -> list[range] | None:
    """Convert the argument `areas` to ranges of area numbers."""
    if areas is None:
        return None
    if isinstance(areas, list):
        areas = ",".join(str(area) for area in areas)
    ranges = []
    for part in PAPER_AREAS.get(areas, areas).split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            names = ", ".join(PAPER_AREAS)
            raise InputError(f'areas must be like "1-1000,2000", [1, 2], {names} or null: cannot read {part!r}')
        ranges.append(range(int(match[1]), int(match[2] or match[1]) + 1))
    return ranges


def _fingerprint(files: list[Path]) -> str:
    """Return a hash of size, first and last bytes of every file, independent of the folder."""
    digest = hashlib.sha256()
    for file in files:
        refuse_pointer(file)
        try:
            with file.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(0)
                digest.update(size.to_bytes(8, "big") + stream.read(_ENDS))
                stream.seek(max(0, size - _ENDS))
                digest.update(stream.read(_ENDS))
        except FileNotFoundError as error:
            have = ", ".join(sorted(path.name for path in file.parent.glob("*.*"))) or "nothing"
            raise DatasetNotFoundError(f"{file} is missing: the folder holds {have}") from error
    return digest.hexdigest()[:16]
