"""Export of sites as a DeepMIMO 4 scenario, which `deepmimo.load` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.files import replacing
from datamodules.sites.environment import Environment
from datamodules.sites.paths import Paths
from datamodules.sites.site import Site

#: format version that the files follow
_VERSION = "4.0.5"
#: id of the user grid; base stations are the sets after it
_USERS = 0


def write_deepmimo(sites: Sequence[Site], root: str | Path, name: str) -> Path:
    """Write the base stations of one area as a DeepMIMO 4 scenario.

    `compute_channels` of the loaded scenario equals `synthesize` on the sites: phases at the carrier include the
    propagation, and all stored paths are written, which DeepMIMO's own Sionna converter does not do. Site i becomes
    transmitter set i + 1. All share one user grid, receiver set 0: the users of all sites in order of first appearance,
    without paths to sites that do not have them, as is usual in DeepMIMO.

    A `Site` does not distinguish kinds of interactions, so all are written as reflections, without interaction points.
    Array orientations are written for information; DeepMIMO applies those of `ChannelParameters`.

    Args:
        sites: Sites with the same area and carrier; they need not have the same users.
        root: Folder of scenarios, DeepMIMO's `scenarios_folder`.
        name: Name of the scenario; DeepMIMO reads lower-case names only.

    Returns:
        The scenario's folder.

    Raises:
        InputError: The name is invalid or exists, the sites differ in area or carrier or have no rays, or the files
            cannot be written.
    """
    folder = Path(root) / name
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
        raise InputError(f"{name!r} cannot name a DeepMIMO scenario: use lower-case letters, digits, '_', '-' and '.'")
    if folder.exists():
        raise InputError(f"{folder} exists: choose another name or delete it")
    if len({(site.area, site.carrier_frequency) for site in sites}) != 1:
        facts = sorted({f"{site.area} at {site.carrier_frequency:g} Hz" for site in sites})
        raise InputError(f"a DeepMIMO scenario is one area at one carrier, got {', '.join(facts) or 'no site'}")
    grid, rows = _merge_users(sites)
    try:
        with replacing(folder) as temporary:
            temporary.mkdir(parents=True)
            for index, (site, row) in enumerate(zip(sites, rows, strict=True), start=1):
                base = {"rx_pos": grid, "tx_pos": site.bs_position.numpy()[None]}
                for key, value in (base | _scatter(site.paths, row, len(grid))).items():
                    file = temporary / f"{key}_t{index:03d}_tx000_r{_USERS:03d}.npz"
                    np.savez_compressed(file, allow_pickle=False, **{key: value.astype(np.float32)})
            scene = _write_scene(temporary, sites[0].environment, grid)
            (temporary / "params.json").write_text(json.dumps(_params(sites, rows, len(grid), scene), indent=2))
    except OSError as error:
        raise InputError(f"cannot write scenario {name!r} to {folder}: {error}") from error
    return folder


def _merge_users(sites: Sequence[Site]) -> tuple[NDArray[np.float32], list[NDArray[np.int64]]]:
    """Return the positions of all users (U, 3) [m], and for each site the indices of its users."""
    # users at equal positions are distinguished by their order, which is the same at every site
    keys: dict[tuple[float, float, float, int], int] = {}
    rows = []
    for site in sites:
        seen: dict[tuple[float, float, float], int] = {}
        row = []
        for x, y, z in site.paths.position.tolist():
            seen[x, y, z] = seen.get((x, y, z), 0) + 1
            row.append(keys.setdefault((x, y, z, seen[x, y, z]), len(keys)))
        rows.append(np.array(row, dtype=np.int64))
    return np.array([key[:3] for key in keys], dtype=np.float32).reshape(-1, 3), rows


def _scatter(paths: Paths, row: NDArray[np.int64], num_users: int) -> dict[str, NDArray[Any]]:
    """Return DeepMIMO's path arrays (num_users, P, ...), NaN where there is no path."""
    # DeepMIMO infers line of sight from the first path, whatever its power
    direct = paths.mask & (paths.bounces == 0) & (paths.los == 1).unsqueeze(1)
    bounces = torch.where(direct, 0, paths.bounces.clamp_min(1))
    order = torch.sort((~direct).to(torch.uint8), dim=1, stable=True).indices
    gain, aod, aoa = paths.gain.to(torch.complex128), paths.aod.double().rad2deg(), paths.aoa.double().rad2deg()
    values = {
        "power": 20 * gain.abs().log10(),
        "phase": gain.angle().rad2deg(),
        "delay": paths.delay.double(),
        "aod_az": aod[..., 0],
        "aod_el": aod[..., 1],
        "aoa_az": aoa[..., 0],
        "aoa_el": aoa[..., 1],
        # one digit per interaction, 1 for reflection: 0, 1, 11, 111, ...
        "inter": (torch.pow(10.0, bounces.double()) - 1) / 9,
    }
    arrays: dict[str, NDArray[Any]] = {}
    for key, value in values.items():
        value = torch.where(paths.mask, value, torch.nan).gather(1, order)
        arrays[key] = np.full((num_users, paths.num_paths), np.nan, dtype=np.float32)
        arrays[key][row] = value.numpy()
    depth = max(1, int(paths.bounces.max())) if len(paths) else 1
    arrays["inter_pos"] = np.full((num_users, paths.num_paths, depth, 3), np.nan, dtype=np.float32)
    return arrays


def _write_scene(folder: Path, environment: Environment, grid: NDArray[np.float32]) -> dict[str, Any]:
    """Write the buildings as prisms on a ground plane, and return their entry of params.json."""
    corners = [np.asarray(footprint) for footprint in environment.footprints]
    points = np.concatenate([grid[:, :2], np.reshape(environment.bounds, (2, 2)), *corners])
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    # DeepMIMO needs exactly one terrain to derive Doppler shifts
    plots = [(f"buildings_{i}", "buildings", corner) for i, corner in enumerate(corners)]
    plots.append(("terrain_0", "terrain", np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])))
    vertices: list[NDArray[np.float64]] = []
    objects: list[dict[str, Any]] = []
    start = 0
    for index, ((label_name, label, ring), height) in enumerate(zip(plots, [*environment.heights, 0.0], strict=True)):
        n = len(ring)
        vertices += [np.column_stack([ring, np.full(n, z)]) for z in (0.0, height)]
        floor = list(range(start, start + n))
        roof = [i + n for i in floor]
        walls = [[floor[i - 1], floor[i], roof[i], roof[i - 1]] for i in range(n)]
        faces = [floor, roof, *walls] if height > 0 else [floor]
        objects.append(
            {
                "name": label_name,
                "label": label,
                "id": index,
                "face_vertex_idxs": faces,
                "face_material_idxs": [0] * len(faces),
            }
        )
        start += 2 * n
    np.savez_compressed(folder / "vertices.npz", vertices=np.concatenate(vertices).astype(np.float32))
    (folder / "objects.json").write_text(json.dumps(objects))
    num_faces = sum(len(item["face_vertex_idxs"]) for item in objects)
    return {
        "num_scenes": 1,
        "n_objects": len(objects),
        "n_vertices": start,
        "n_faces": num_faces,
        "n_triangular_faces": num_faces,
        "representation": "hull",
    }


def _params(
    sites: Sequence[Site], rows: list[NDArray[np.int64]], num_users: int, scene: dict[str, Any]
) -> dict[str, Any]:
    depth = max((int(site.paths.bounces.max()) for site in sites if len(site)), default=0)
    active = len(
        np.unique(np.concatenate([row[site.paths.has_path.numpy()] for site, row in zip(sites, rows, strict=True)]))
    )
    sets = [_txrx_set(_USERS, "users", False, num_users, active, [0.0, 0.0, 0.0])]
    for index, site in enumerate(sites, start=1):
        alpha, beta, gamma = site.bs_orientation.double().rad2deg().tolist()
        # DeepMIMO notes (azimuth, elevation, roll); our second angle is positive downwards
        sets.append(_txrx_set(index, site.name, True, 1, 1, [alpha, -beta, gamma]))
    source = sites[0].provenance
    return {
        "version": _VERSION,
        "rt_params": {
            "raytracer_name": str(source.get("source", "csi-foundation")),
            "raytracer_version": str(source.get("ray_tracer", "")),
            "frequency": sites[0].carrier_frequency,
            "max_path_depth": depth,
            "max_reflections": depth,
            "max_diffractions": 0,
            "max_scattering": 0,
            "max_transmissions": 0,
            "gps_bbox": [0, 0, 0, 0],
            "raw_params": {},
        },
        "txrx_sets": {f"txrx_set_{entry['id']}": entry for entry in sets},
        "materials": {"material_0": {"id": 0, "name": "unknown", "permittivity": 1.0, "conductivity": 0.0}},
        "scene": scene,
    }


def _txrx_set(
    index: int, name: str, is_tx: bool, num_points: int, num_active: int, orientation: list[float]
) -> dict[str, Any]:
    return {
        "name": name,
        "id_orig": index,
        "id": index,
        "is_tx": is_tx,
        "is_rx": not is_tx,
        "num_points": num_points,
        "num_active_points": num_active,
        "num_ant": 1,
        "dual_pol": False,
        "ant_rel_positions": [[0, 0, 0]],
        "array_orientation": orientation,
        "grid_spacing": None,
    }
