"""A list of DeepMIMO scenarios as one source, such as the 35 of CSI-CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml

from datamodules.errors import DatasetNotFoundError, InputError, check_choice
from datamodules.sources.base import Recipe, Source, data_root
from datamodules.sources.deepmimo.v4 import DeepMIMO, find_folder, plain_name

Missing = Literal["error", "skip", "download"]
_CSICLIP = Path(__file__).with_name("csiclip_scenarios.yaml")


class DeepMIMOCatalogue(Source):
    """All scenarios of a list, each read as `DeepMIMO` reads it.

    The list is a YAML file of entries with a `name` and `scenarios`, the names its folder may have; the first that is
    in `root` is read. `max_per_area: 50000` of `ChannelDataModule` draws CSI-CLIP's stratified sample from it.

    Args:
        file: The list; by default the 35 scenarios of CSI-CLIP (Table I), which is also the pattern for another.
        names: Which entries to read; by default all.
        root: Folder that holds scenario folders, see `DeepMIMO`.
        missing: Treatment of scenarios that are not in `root`: raise an error with their names, skip them, or download
            them when their sites or recipes are first requested.
        max_paths: Number of strongest paths to keep for each user.
        cache: Folder of finished sites.

    Raises:
        InputError: The list is invalid, or lacks one of `names`, or `missing` is none of these words.
    """

    def __init__(
        self,
        file: str | None = None,
        names: list[str] | None = None,
        root: str | None = None,
        missing: Missing = "error",
        max_paths: int = 20,
        cache: str | None = None,
    ) -> None:
        super().__init__(cache)
        check_choice("missing", missing, Missing)
        self.scenarios = read_catalogue(_CSICLIP if file is None else Path(file).expanduser())
        unknown = sorted(set(names or ()) - set(self.scenarios))
        if unknown:
            raise InputError(f"no scenario {', '.join(unknown)} in the list: choose among {', '.join(self.scenarios)}")
        self.names = list(self.scenarios) if names is None else names
        self.root, self.missing, self.max_paths = data_root("deepmimo", root), missing, max_paths

    def recipes(self) -> list[Recipe]:
        """List the recipes of all available scenarios.

        Raises:
            DatasetNotFoundError: A scenario is missing with `error`, or all are missing with `skip`.
            InputError: A scenario is damaged.
        """
        there = {name: next(filter(self._is_there, self.scenarios[name]), None) for name in self.names}
        absent = [self.scenarios[name][0] for name, scenario in there.items() if scenario is None]
        none_left = len(absent) == len(there)
        if absent and (self.missing == "error" or (self.missing == "skip" and none_left)):
            raise DatasetNotFoundError(
                f"{len(absent)} of {len(there)} DeepMIMO scenarios are not in {self.root.resolve()}: "
                f"{', '.join(absent)}. Put their folders there, or set root, or missing to skip or download"
            )
        return [
            recipe
            for name, scenario in there.items()
            if scenario is not None or self.missing == "download"
            for recipe in self._source(scenario or self.scenarios[name][0]).recipes()
        ]

    def _is_there(self, scenario: str) -> bool:
        return find_folder(self.root, scenario) is not None

    def _source(self, scenario: str) -> DeepMIMO:
        # existing scenarios are not downloaded again
        return DeepMIMO(scenario, str(self.root), max_paths=self.max_paths, cache=str(self.cache))


def read_catalogue(file: Path) -> dict[str, list[str]]:
    """Return the DeepMIMO names of every entry of a list, most likely first.

    Raises:
        DatasetNotFoundError: There is no such file.
        InputError: The file is not a list of entries with `name` and `scenarios`.
    """
    try:
        entries: Any = yaml.safe_load(file.read_text())
        return {entry["name"]: [plain_name(scenario) for scenario in entry["scenarios"]] for entry in entries}
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"catalogue {file} does not exist") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"catalogue {file} must be a YAML list of entries with `name` and `scenarios`") from error
