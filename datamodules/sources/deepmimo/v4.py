"""DeepMIMO 4 scenarios: published ray tracing of real cities, or any scenario in the same folder layout.

The `deepmimo` package is needed for downloads only: `files.py` reads the folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.errors import DatasetNotFoundError, InputError, shown
from datamodules.sites.environment import Environment
from datamodules.sites.paths import Paths
from datamodules.sites.site import Site
from datamodules.sources.base import Recipe, Source, data_root, file_stamps
from datamodules.sources.deepmimo.files import Facts, link_suffix, read_environment, read_link

#: version of the reader, to be raised when its output changes, so that cached sites are rebuilt
_VERSION = 1


class DeepMIMO(Source):
    """Base stations of a DeepMIMO 4 scenario, one site each, named `<scenario>_bs<id>`.

    Users without paths are dropped by default; `Site.provenance` has their number. Array orientations in the files of a
    scenario are ignored, as in DeepMIMO itself: set them in `Array`.

    Args:
        scenario: Name of the scenario, such as `city_0_newyork_3p5`; case is ignored unless the names of two folders
            differ only in case.
        root: Folder that holds scenario folders; by default `$CSI_DATA/deepmimo`, or `data/deepmimo` under the working
            folder where CSI_DATA is not set.
        base_stations: DeepMIMO's transmitter set ids; by default all of them.
        max_paths: Number of strongest paths to keep for each user.
        unserved: Whether to keep users without paths. The base stations of a scenario then share their users,
            which `data.base_stations` needs.
        download: Whether to download a scenario that is not in `root`, by the `deepmimo` package, when its sites or
            recipes are first requested.
        cache: Folder of finished sites, see `Source`.

    Raises:
        InputError: `scenario` is not a plain name, or `max_paths` is below 1.
    """

    def __init__(
        self,
        scenario: str,
        root: str | None = None,
        base_stations: list[int] | None = None,
        max_paths: int = 20,
        unserved: bool = False,
        download: bool = True,
        cache: str | None = None,
    ) -> None:
        super().__init__(cache)
        self.scenario, self.folder_name = plain_name(scenario), scenario
        self.root = data_root("deepmimo", root)
        self.base_stations = base_stations
        if max_paths < 1:
            raise InputError(f"max_paths must be at least 1, got {max_paths}")
        self.max_paths, self.unserved = max_paths, unserved
        self.download = download

    def recipes(self) -> list[Recipe]:
        """List one recipe for each base station.

        Raises:
            DatasetNotFoundError: The scenario is not in `root`, and `download` is off or fails.
            InputError: `params.json` is missing or damaged, or a base station is not in the scenario.
        """
        folder = find_folder(self.root, self.folder_name) or self._download()
        facts = Facts.read(folder)
        ids = select_base_stations(self.base_stations, list(facts.transmitters), self.scenario)
        return [self._recipe(folder, facts, i, point) for i in ids for point in range(facts.transmitters[i])]

    def _recipe(self, folder: Path, facts: Facts, base_station: int, point: int) -> Recipe:
        name = f"{self.scenario}_bs{base_station}"
        if facts.transmitters[base_station] > 1:
            name += f"_{point}"
        links = [link_suffix(base_station, point, receiver) for receiver in facts.receivers]
        shared = ("params.json", "objects.json", "vertices.", "faces.")
        files = [f for f in sorted(folder.iterdir()) if f.name.startswith(shared) or f.stem.endswith(tuple(links))]
        parameters = {
            "source": "DeepMIMO",
            "version": _VERSION,
            "scenario": self.scenario,
            "base_station": base_station,
            "transmitter": point,
            "max_paths": self.max_paths,
            "unserved": self.unserved,
            "files": file_stamps(files),
        }
        return Recipe((name,), parameters, partial(self._make, folder, facts, name, links, parameters))

    def _make(
        self, folder: Path, facts: Facts, name: str, links: list[str], parameters: dict[str, Any], work: Path
    ) -> Iterator[Site]:
        grids = [read_link(folder, link, self.max_paths) for link in links]
        paths, bs_position = Paths.cat([paths for paths, _ in grids]), grids[0][1]
        kept = paths if self.unserved else drop_unserved(paths, name)
        yield Site(
            name=name,
            links=kept,
            bs_position=bs_position,
            carrier_frequency=facts.frequency,
            area=self.scenario,
            city=city_of(self.scenario),
            environment=read_environment(folder, Environment.empty(paths.position.numpy()).bounds),
            domain={"scenario": self.scenario, "frequency": facts.frequency},
            provenance={
                "source": "DeepMIMO",
                "parameters": parameters,
                "ray_tracer": facts.ray_tracer,
                "users": len(paths),
                "dropped_no_path": len(paths) - len(kept),
                "versions": {"scenario": facts.version, "numpy": np.__version__},
            },
        )

    def _download(self) -> Path:
        """Download the scenario to `root` atomically."""
        missing = not_found("DeepMIMO", self.scenario, self.root)
        if not self.download:
            raise DatasetNotFoundError(f"{missing}: set scenario, root to the folder that holds it, or download=True")
        chatter = io.StringIO()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=self.root) as work:
                with contextlib.redirect_stdout(chatter):
                    _fetch(self.scenario, Path(work).resolve())
                os.replace(Path(work) / self.scenario, self.root / self.scenario)
        except Exception as error:  # the package prints its errors and raises later ones of any type
            if (folder := find_folder(self.root, self.folder_name)) is not None:
                return folder  # another process was faster
            said = re.search(r"[^\n]*(fail|error).*", chatter.getvalue(), re.IGNORECASE | re.DOTALL)
            reason = textwrap.shorten(said.group() if said else str(error), 120, placeholder=" ...")
            raise DatasetNotFoundError(
                f"{missing}, and could not be downloaded ({reason}): set scenario, or root to the folder that holds it"
            ) from error
        return self.root / self.scenario


def plain_name(scenario: str) -> str:
    """Return a scenario's name in lower case.

    Raises:
        InputError: The name is empty or a path.
    """
    if scenario in ("", ".", "..") or Path(scenario).name != scenario:
        raise InputError(f"scenario must be a name, got {scenario!r}: put its folder into root")
    return scenario.lower()


def find_folder(root: Path, scenario: str) -> Path | None:
    """Return the scenario's folder in `root`, by exact name or else ignoring case, or None.

    Raises:
        InputError: Several folders match when case is ignored, and none exactly.
    """
    if not root.is_dir():
        return None
    alike = [f for f in sorted(root.iterdir()) if f.name.lower() == scenario.lower() and f.is_dir()]
    exact = [f for f in alike if f.name == scenario]
    if len(alike) > 1 and not exact:
        names = ", ".join(f.name for f in alike)
        raise InputError(f"scenario {scenario!r} may be any of {names} in {root}: set scenario to one of them")
    return next(iter(exact or alike), None)


def not_found(kind: str, scenario: str, root: Path) -> str:
    """Return the beginning of a message that a scenario is not in its folder, with those that are."""
    held = sorted(folder.name for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
    held = [name for name in held if not name.startswith(".")]
    return f"{kind} scenario {scenario!r} is not in {root.resolve()}" + f", which holds {shown(held)}" * bool(held)


def city_of(scenario: str) -> str:
    """Return a scenario's name without its frequency: `city_0_newyork` for `city_0_newyork_3p5`.

    The streets of `o1b` are those of `o1`, with blockers and reflectors.
    """
    name = re.sub(r"_\d+(p\d+)?b?(_(lwm|s|dyn))?$", "", scenario)
    return "o1" if name == "o1b" else name


def select_base_stations(wanted: list[int] | None, available: list[int], scenario: str) -> list[int]:
    """Return the requested base stations, or all.

    Raises:
        InputError: One of them does not exist, or there is none.
    """
    if not available:
        raise InputError(f"{scenario} has no base station")
    if wanted is None:
        return available
    if not wanted or not set(wanted) <= set(available):
        raise InputError(f"{scenario} has base stations {available}, not {wanted}: change base_stations")
    return list(dict.fromkeys(wanted))


def drop_unserved(paths: Paths, name: str) -> Paths:
    """Return the users with at least one path.

    Raises:
        InputError: No user has a path.
    """
    if not paths.has_path.any():
        raise InputError(f"no user of {name} has a path: leave this base station out of base_stations")
    return paths[paths.has_path]


def _fetch(scenario: str, folder: Path) -> None:
    import deepmimo

    before = deepmimo.config.get("scenarios_folder")
    deepmimo.config.set("scenarios_folder", str(folder))
    try:
        deepmimo.download(scenario)
    finally:
        deepmimo.config.set("scenarios_folder", before)
