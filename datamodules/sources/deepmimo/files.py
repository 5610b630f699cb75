"""Reads the files of a DeepMIMO 4 scenario folder, without the `deepmimo` package and without pickle."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.errors import InputError, refuse_pointer
from datamodules.sites.environment import Environment
from datamodules.sites.paths import Paths

Floats = NDArray[np.float64]

#: arrays with one value per path, shape (U, P); `*_el` is the zenith angle, despite its name
_PER_PATH = ("power", "phase", "delay", "aod_az", "aod_el", "aoa_az", "aoa_el", "inter")
#: least height of a building [m]: published cities have flat outlines among their buildings
_MIN_HEIGHT = 0.1


@dataclass(frozen=True)
class Facts:
    """Content of `params.json` of a scenario.

    Attributes:
        frequency: Carrier [Hz].
        transmitters: Number of points of every transmitter set, by id.
        receivers: Ids of the receiver sets that do not transmit, which are the user grids.
        ray_tracer: Name and version of the ray tracer.
        version: Version of DeepMIMO that wrote the scenario.
    """

    frequency: float
    transmitters: dict[int, int]
    receivers: list[int]
    ray_tracer: str
    version: str

    @classmethod
    def read(cls, folder: Path) -> Facts:
        """Read `params.json` of a scenario folder.

        Raises:
            InputError: The file is missing, damaged or incomplete, or the scenario has no users or is dynamic.
        """
        file = folder / "params.json"
        refuse_other_layouts(folder, file.name)
        require(file)
        with naming(file):
            params = json.loads(file.read_text())
            tracing, sets = params["rt_params"], params["txrx_sets"].values()
            facts = cls(
                frequency=float(tracing["frequency"]),
                transmitters={int(s["id"]): int(s["num_points"]) for s in sets if s["is_tx"]},
                receivers=[int(s["id"]) for s in sets if s["is_rx"] and not s["is_tx"]],
                ray_tracer=f"{tracing.get('raytracer_name', '?')} {tracing.get('raytracer_version', '')}".strip(),
                version=str(params.get("version", "?")),
            )
            num_scenes = int(params.get("scene", {}).get("num_scenes", 1))
        if not 0 < facts.frequency < float("inf"):
            raise InputError(f"{file} gives no usable frequency: {facts.frequency}")
        if not facts.receivers:
            raise InputError(f"{file} has no users: every receiver set is a transmitter too")
        if num_scenes != 1:
            snapshots = sorted(file.parent.name for file in folder.glob("*/params.json"))
            which = f" to one of {snapshots[0]} to {snapshots[-1]}" if snapshots else ""
            raise InputError(
                f"{folder} is dynamic ({num_scenes} scenes), and one snapshot can be read at a time: a snapshot's "
                f"folder is a scenario, so set root to {folder} and scenario{which}"
            )
        return facts


def link_suffix(transmitter_set: int, transmitter: int, receiver_set: int) -> str:
    """Return the suffix of the file names of one link, before the extension."""
    return f"t{transmitter_set:03d}_tx{transmitter:03d}_r{receiver_set:03d}"


def read_link(folder: Path, link: str, max_paths: int) -> tuple[Paths, Tensor]:
    """Read all users of one grid and their base station.

    Powers [dBW for 0 dBW transmitted] are converted to amplitudes, degrees to radians, and padding to the mask.

    Args:
        folder: The scenario folder.
        link: Suffix of the file names, see `link_suffix`.
        max_paths: Number of strongest paths to keep.

    Returns:
        The paths of all users, including users without paths, and the base station's position [m], shape (3,).

    Raises:
        InputError: A file is missing or damaged, or its shape does not fit the others.
    """
    position = _read_array(folder, f"rx_pos_{link}", "rx_pos", (None, 3))
    shape: tuple[int | None, ...] = (len(position), None)
    arrays: dict[str, Tensor] = {}
    for key in _PER_PATH:
        value = _read_array(folder, f"{key}_{link}", key, shape)
        shape = value.shape
        arrays[key] = torch.from_numpy(value)
    # some writers give the position of the one transmitter a leading axis
    bs_position = _read_array(folder, f"tx_pos_{link}", "tx_pos").reshape(-1)
    if bs_position.size != 3 or not np.isfinite(bs_position).all():
        raise InputError(f"{folder / f'tx_pos_{link}'} must hold one finite position, got {bs_position.tolist()}")
    if not np.isfinite(position).all():
        raise InputError(f"{folder / f'rx_pos_{link}'} holds positions that are not finite: get {folder.name} again")
    radians = {key: torch.deg2rad(arrays[key]) for key in ("phase", "aod_az", "aod_el", "aoa_az", "aoa_el")}
    paths = Paths.build(
        gain=torch.polar(torch.pow(10.0, arrays["power"] / 20), radians["phase"]),
        delay=arrays["delay"],
        aod=torch.stack((radians["aod_az"], radians["aod_el"]), -1),
        aoa=torch.stack((radians["aoa_az"], radians["aoa_el"]), -1),
        position=torch.from_numpy(position),
        bounces=_num_digits(arrays["inter"]),
        max_paths=max_paths,
    )
    return paths, torch.from_numpy(bs_position).float()


def read_environment(folder: Path, bounds: tuple[float, float, float, float]) -> Environment:
    """Return the footprints of the buildings; without scene files the environment is empty.

    Args:
        folder: The scenario folder.
        bounds: Area of interest (x_min, y_min, x_max, y_max) [m].

    Raises:
        InputError: A scene file is damaged, or only one of the two exists.
    """
    file, mesh_file = folder / "objects.json", folder / "faces.npz"
    if not file.is_file() and not any(folder.glob("vertices.*")):
        return Environment((), np.zeros(0), bounds)
    require(file)
    vertices = _read_array(folder, "vertices", "vertices", (None, 3))
    meshes: dict[str, NDArray[np.int32]] = {}
    if mesh_file.is_file():  # lossless scenes store triangles separately from objects.json
        with naming(mesh_file), np.load(mesh_file, allow_pickle=False) as arrays:
            meshes = {key: arrays[key] for key in arrays.files}
    outlines: dict[bytes, tuple[Floats, float]] = {}
    with naming(file):
        for item in json.loads(file.read_text()):
            # roads_* contain the mesh of the buildings again, labelled as buildings
            if item["label"] != "buildings" or item["name"].startswith("roads"):
                continue
            faces = meshes[item["mesh_key"]] if "mesh_key" in item else item["face_vertex_idxs"]
            heights = np.concatenate([vertices[face, 2] for face in faces])
            if np.ptp(heights) > _MIN_HEIGHT:
                outline = _outline([vertices[face, :2] for face in faces])
                key = shapely.normalize(shapely.set_precision(outline, 0.01)).wkb
                outlines[key] = (np.asarray(outline.exterior.coords)[:-1], float(np.ptp(heights)))
    footprints = tuple(footprint for footprint, _ in outlines.values())
    return Environment(footprints, np.array([height for _, height in outlines.values()], dtype=np.float64), bounds)


def _outline(faces: list[Floats]) -> shapely.Polygon:
    """Return the outer outline of the union of faces (V, 2) projected to the ground; walls have no area."""
    shadows = [shapely.make_valid(shapely.Polygon(face)) for face in faces if len(face) > 2]
    union = shapely.union_all([shadow for shadow in shadows if shadow.area > 1e-3])
    largest: shapely.Polygon = max(shapely.get_parts(union), key=shapely.area)
    return largest


def _num_digits(inter: Tensor) -> Tensor:
    """Return the number of interactions, the decimal digits of `inter`: 3 for 121, and 0 for 0, the direct path.

    Where they are unknown, NaN, it is 1, as DeepMIMO takes such a path for none of line of sight.
    """
    digits = inter.nan_to_num(1.0).clamp_min(1).log10().floor() + 1
    return torch.where(inter == 0, 0, digits).to(torch.uint8)


def _read_array(folder: Path, stem: str, key: str, shape: tuple[int | None, ...] | None = None) -> Floats:
    """Read the single array of a file as float64; `shape` is the required shape, None for any size."""
    files = [folder / (stem + extension) for extension in (".mat", ".npz", ".npy")]
    file = next((f for f in files if f.is_file()), files[1])
    require(file)
    with naming(file):
        if file.suffix == ".mat":
            from scipy.io import loadmat

            value = loadmat(file)[key]
        else:
            loaded = np.load(file, allow_pickle=False)
            value = loaded[key] if file.suffix == ".npz" else loaded
        array = np.asarray(value, dtype=np.float64)
    if shape is not None and (
        array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True))
    ):
        wanted = tuple("any" if size is None else size for size in shape)
        raise InputError(f"{file} has shape {array.shape} instead of {wanted}: get {folder.name} again")
    return array


def refuse_other_layouts(folder: Path, params: str) -> None:
    """Identify a scenario folder without its parameter file `params` that has another layout.

    Raises:
        InputError: It is of another version of DeepMIMO, or the scenario is in a folder below.
    """
    if (folder / params).is_file():
        return
    deeper = sorted(file.parent for file in folder.glob(f"*/{params}"))
    if deeper:
        names = f"to {deeper[0].name}" if len(deeper) == 1 else f"to one of {deeper[0].name} to {deeper[-1].name}"
        raise InputError(f"{folder} holds scenario folders, no scenario: set root to {folder} and scenario {names}")
    for file, version, reader in (("params.json", "4", "DeepMIMO"), ("params.mat", "v3", "DeepMIMOv3")):
        if (folder / file).is_file():
            raise InputError(f"{folder} is a scenario of DeepMIMO {version}: read it with the source {reader}")
    if any(folder.glob("*.params.mat")) or any(folder.glob("*.CIR.mat")) or any(folder.glob("*.DoD.mat")):
        raise InputError(f"{folder} is a scenario of DeepMIMO v1 or v2, which no source reads: get it in version 4")


def require(file: Path) -> None:
    """Raise an `InputError` with the file's name if it is missing."""
    if not file.is_file():
        raise InputError(f"{file} is missing: {file.parent.name} is incomplete, get it again")


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Convert any exception from reading a damaged file, such as zlib.error or IndexError, to an `InputError`."""
    refuse_pointer(file)
    try:
        yield
    except (MemoryError, InputError):
        raise
    except Exception as error:
        raise InputError(f"{file} is damaged or incomplete ({error!r:.100}): get {file.parent.name} again") from error
