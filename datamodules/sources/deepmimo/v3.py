"""DeepMIMO v3 scenarios: legacy MATLAB files, `BS<n>_UE_<first>-<last>.mat`, read without the DeepMIMO package."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.errors import DatasetNotFoundError, InputError
from datamodules.sites.environment import Environment
from datamodules.sites.paths import Paths
from datamodules.sites.site import Site
from datamodules.sources.base import Recipe, Source, data_root, file_stamps
from datamodules.sources.deepmimo.files import naming, refuse_other_layouts, require
from datamodules.sources.deepmimo.v4 import (
    city_of,
    drop_unserved,
    find_folder,
    not_found,
    plain_name,
    select_base_stations,
)

#: version of the reader, to be raised when its output changes, so that cached sites are rebuilt
_VERSION = 1
#: rows of a user's path table
_PHASE, _DELAY, _POWER, _AOA_AZ, _AOA_ZENITH, _AOD_AZ, _AOD_ZENITH, _LOS = range(8)


class DeepMIMOv3(Source):
    """Base stations of a DeepMIMO v3 scenario, one site each, named `<scenario>_bs<n>`.

    `channels[i]['p']` of a user is empty or has one column per path, with rows phase [deg], delay [s], power [dBm],
    azimuth and zenith of arrival, azimuth and zenith of departure [deg], and 1 for the direct path. This order of the
    angles was verified by geometry on all 33,588 line-of-sight links of four cities at 3.5 and 28 GHz: arrival points
    from the user to the base station and departure back, within 0.009 degrees, the rounding of the ray tracer's text.
    Phases at the carrier include the propagation, which is in air: delays correspond to 299.696 Mm/s, and
    the direct path has the free-space loss plus absorption, 0.0075 dB/km at 3.5 GHz and 0.136 dB/km at 28 GHz.

    The files contain neither buildings nor numbers of interactions: the environment is empty, and `bounces` is 0 for
    the direct path and 1, for at least one, for others. Users without paths are dropped by default; `Site.provenance`
    has their number. Two bands of a city have the same users, which `datamodules.pair` matches.

    Args:
        scenario: Name of the scenario, such as `city_11_santaclara_28`; case is ignored unless the names of two folders
            differ only in case.
        root: Folder that holds scenario folders; by default `$CSI_DATA/deepmimo_v3`, or `data/deepmimo_v3` under the
            working folder where CSI_DATA is not set.
        base_stations: Numbers of the base stations; by default all of them.
        max_paths: Number of strongest paths to keep for each user.
        unserved: Whether to keep users without paths. The base stations of a scenario then share their users,
            which `data.base_stations` needs.
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
        cache: str | None = None,
    ) -> None:
        super().__init__(cache)
        self.scenario, self.folder_name = plain_name(scenario), scenario
        self.root = data_root("deepmimo_v3", root)
        self.base_stations = base_stations
        if max_paths < 1:
            raise InputError(f"max_paths must be at least 1, got {max_paths}")
        self.max_paths, self.unserved = max_paths, unserved

    def recipes(self) -> list[Recipe]:
        """List one recipe for each base station.

        Raises:
            DatasetNotFoundError: The scenario is not in `root`.
            InputError: A base station is not in the scenario.
        """
        folder = find_folder(self.root, self.folder_name)
        if folder is None:
            raise DatasetNotFoundError(
                f"{not_found('DeepMIMO v3', self.scenario, self.root)}: set scenario, or root to the folder that "
                "holds it"
            )
        refuse_other_layouts(folder, "params.mat")
        files = _user_files(folder)
        ids = select_base_stations(self.base_stations, sorted(files), self.scenario)
        return [self._recipe(folder, i, files[i]) for i in ids]

    def _recipe(self, folder: Path, base_station: int, files: list[Path]) -> Recipe:
        name = f"{self.scenario}_bs{base_station}"
        params = folder / "params.mat"
        require(params)
        parameters = {
            "source": "DeepMIMOv3",
            "version": _VERSION,
            "scenario": self.scenario,
            "base_station": base_station,
            "max_paths": self.max_paths,
            "unserved": self.unserved,
            "files": file_stamps([params, *files]),
        }
        return Recipe((name,), parameters, partial(self._make, params, files, name, parameters))

    def _make(
        self, params: Path, files: list[Path], name: str, parameters: dict[str, Any], work: Path
    ) -> Iterator[Site]:
        frequency, sent = _read_params(params)
        parts = [_read_users(file, sent, self.max_paths) for file in files]
        paths, bs_position = Paths.cat([paths for paths, _ in parts]), parts[0][1]
        kept = paths if self.unserved else drop_unserved(paths, name)
        yield Site(
            name=name,
            links=kept,
            bs_position=bs_position,
            carrier_frequency=frequency,
            area=self.scenario,
            city=city_of(self.scenario),
            environment=Environment.empty(paths.position.numpy()),
            domain={"scenario": self.scenario, "frequency": frequency},
            provenance={
                "source": "DeepMIMOv3",
                "parameters": parameters,
                "users": len(paths),
                "dropped_no_path": len(paths) - len(kept),
                "versions": {"numpy": np.__version__},
            },
        )


def _user_files(folder: Path) -> dict[int, list[Path]]:
    """Return the files of every base station, in order of users."""
    found: dict[int, list[tuple[int, Path]]] = {}
    for file in folder.iterdir():
        if match := re.fullmatch(r"BS(\d+)_UE_(\d+)-\d+\.mat", file.name):
            found.setdefault(int(match[1]), []).append((int(match[2]), file))
    return {number: [file for _, file in sorted(files)] for number, files in found.items()}


def _load(file: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    arrays: dict[str, Any] = loadmat(file)
    return arrays


def _read_params(file: Path) -> tuple[float, float]:
    """Return the carrier [Hz] and the transmit power [dBm]."""
    with naming(file):
        params = _load(file)
        frequency, sent = (float(np.asarray(params[key]).item()) for key in ("carrier_freq", "transmit_power"))
    if not 0 < frequency < float("inf") or not np.isfinite(sent):
        raise InputError(f"{file} gives no usable carrier_freq and transmit_power: {frequency}, {sent}")
    return frequency, sent


def _read_users(file: Path, sent: float, max_paths: int) -> tuple[Paths, Tensor]:
    """Read all users of one file, including those without paths, and the base station's position [m], shape (3,)."""
    with naming(file):
        arrays = _load(file)
        position = np.asarray(arrays["rx_locs"], dtype=np.float64)[:, :3]
        bs_position = np.asarray(arrays["tx_loc"], dtype=np.float64).reshape(3)
        tables = [np.asarray(user["p"].item(), dtype=np.float64) for user in arrays["channels"].reshape(-1)]
        path = torch.from_numpy(_pad(tables))
    if len(path) != len(position):
        raise InputError(f"{file} has {len(path)} users but {len(position)} positions: get {file.parent.name} again")
    if not (np.isfinite(position).all() and np.isfinite(bs_position).all()):
        raise InputError(f"{file} holds positions that are not finite: get {file.parent.name} again")
    radians = torch.deg2rad(path)
    paths = Paths.build(
        gain=torch.polar(torch.pow(10.0, (path[:, _POWER] - sent) / 20), radians[:, _PHASE]),
        delay=path[:, _DELAY],
        aod=torch.stack((radians[:, _AOD_AZ], radians[:, _AOD_ZENITH]), -1),
        aoa=torch.stack((radians[:, _AOA_AZ], radians[:, _AOA_ZENITH]), -1),
        position=torch.from_numpy(position),
        bounces=(path[:, _LOS] != 1).to(torch.uint8),
        max_paths=max_paths,
    )
    return paths, torch.from_numpy(bs_position).float()


def _pad(tables: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Stack path tables (8, P), some of them empty, into (U, 8, P), padded with NaN."""
    num_paths = max((table.shape[1] for table in tables if table.size), default=1)
    padded = np.full((len(tables), 8, num_paths), np.nan)
    for row, table in zip(padded, tables, strict=True):
        if table.size:
            row[:, : table.shape[1]] = table
    return padded
