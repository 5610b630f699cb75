"""A tiny DeepMIMO 4 scenario in the released layout: a street between buildings, traced by the method of images.

Direct path, ground and two walls, each with the free-space gain, delay, phase and angles of its true geometry, and each
blocked where a building stands in its way. As in the published cities, users stand inside buildings too (no path),
every building occurs again as a road, and base stations are receivers as well.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SPEED_OF_LIGHT = 299_792_458.0
#: base-station positions [m]; transmitter set i + 1 is row i
BASE_STATIONS = np.array([[-30.0, 0.0, 6.0], [42.0, -7.0, 6.0], [2.0, 20.0, 6.0]])
#: buildings (low corner, high corner) [m]: two rows with a side street between, and a kiosk in the street
BUILDINGS = np.array(
    [
        [[-60.0, 14.0, 0.0], [-6.0, 30.0, 20.0]],
        [[6.0, 14.0, 0.0], [60.0, 30.0, 12.0]],
        [[-60.0, -30.0, 0.0], [60.0, -14.0, 15.0]],
        [[8.0, -4.0, 0.0], [18.0, 5.0, 9.0]],
    ]
)
#: reflecting planes (axis, coordinate [m], reflection coefficient)
PLANES = ((2, 0.0, -0.6), (1, 14.0, -0.4), (1, -14.0, -0.4))
#: where users stand, half a side along x and y [m]
_EXTENT = np.array([60.0, 20.0])


def write_scenario(
    folder: Path, name: str, num_users: int, seed: int, num_base_stations: int = 2, frequency: float = 3.5e9
) -> Path:
    """Write a scenario into `folder / name` and return that path.

    Args:
        folder: Where scenarios lie.
        name: Name of the scenario.
        num_users: Points of the user grid, those with no path among them.
        seed: Draws the user positions.
        num_base_stations: 1 to 3.
        frequency: Carrier [Hz].
    """
    scenario = folder / name
    scenario.mkdir(parents=True)
    users = np.full((num_users, 3), 2.0)
    users[:, :2] = np.random.default_rng(seed).uniform(-_EXTENT, _EXTENT, size=(num_users, 2)).round(3)
    sets = [_txrx_set(0, "UE_grid", False, True, num_users)]
    for index, position in enumerate(BASE_STATIONS[:num_base_stations], start=1):
        sets.append(_txrx_set(index, f"BS{index}", True, True, 1))
        arrays = {"rx_pos": users, "tx_pos": position, **trace(position, users, frequency)}
        for key, value in arrays.items():
            file = scenario / f"{key}_t{index:03d}_tx000_r000.npz"
            np.savez_compressed(file, **{key: value.astype(np.float32)})
    _write_scene(scenario)
    reflections = {"max_path_depth": 1, "max_reflections": 1}
    others = {"max_diffractions": 0, "max_scattering": 0, "max_transmissions": 0, "raw_params": {}}
    params = {
        "version": "4.0.5",
        "rt_params": {
            "raytracer_name": "Images",
            "raytracer_version": "1",
            "frequency": frequency,
            **reflections,
            **others,
        },
        "txrx_sets": {f"txrx_set_{entry['id']}": entry for entry in sets},
        "materials": {"material_0": {"id": 0, "name": "concrete", "permittivity": 5.31, "conductivity": 0.09}},
        "scene": {"num_scenes": 1, "representation": "hull"},
    }
    (scenario / "params.json").write_text(json.dumps(params))
    return scenario


def trace(transmitter: Floats, users: Floats, frequency: float) -> dict[str, Floats]:
    """Return DeepMIMO's path arrays, padded with NaN, strongest first; users (U, 3) [m]."""
    legs = [_leg(transmitter, users, None)] + [_leg(transmitter, users, plane) for plane in PLANES]
    exists = np.stack([leg[0] for leg in legs], 1)
    points = np.stack([leg[1] for leg in legs], 1)
    length = np.stack([leg[2] for leg in legs], 1)
    coefficient = np.array([1.0] + [plane[2] for plane in PLANES])
    power = 20 * np.log10(SPEED_OF_LIGHT / frequency / (4 * np.pi * length) * np.abs(coefficient))
    phase = np.degrees(np.angle(np.exp(-2j * np.pi * frequency * length / SPEED_OF_LIGHT) * np.sign(coefficient)))
    (aod_az, aod_el), (aoa_az, aoa_el) = _angles(points - transmitter), _angles(points - users[:, None])
    inter = np.broadcast_to([0.0, 1.0, 1.0, 1.0], exists.shape)
    arrays = {"power": power, "phase": phase, "delay": length / SPEED_OF_LIGHT, "inter": inter}
    arrays |= {"aod_az": aod_az, "aod_el": aod_el, "aoa_az": aoa_az, "aoa_el": aoa_el}
    order = np.argsort(np.where(exists, -power, np.inf), axis=1, kind="stable")
    padded = {k: np.take_along_axis(np.where(exists, v, np.nan), order, 1) for k, v in arrays.items()}
    touched = np.where((exists & (inter > 0))[..., None], points, np.nan)
    return {**padded, "inter_pos": np.take_along_axis(touched, order[..., None], 1)[:, :, None]}


def real_root(kind: str) -> Path:
    """Return the folder of published scenarios, `deepmimo` or `deepmimo_v3`; skip the test where there is none."""
    root = Path(os.environ.get("CSI_DATA", "")) / kind
    if not os.environ.get("CSI_DATA") or not root.is_dir():
        pytest.skip(f"published scenarios are not ours to ship: set CSI_DATA to a folder that holds {kind}/")
    return root


class Reference(Protocol):
    """What the tests use of a `deepmimo` dataset."""

    rt_params: dict[str, float]

    def __getitem__(self, key: str) -> Floats: ...

    def __setitem__(self, key: str, value: Floats) -> None: ...

    def trim(self, *, idxs: NDArray[np.int64]) -> Reference: ...

    def compute_channels(self, params: object) -> NDArray[np.complex64]: ...


def load_reference(root: Path, name: str, base_station: int) -> Reference:
    """Load one base station and the users of its grid with the `deepmimo` package."""
    import deepmimo

    before = deepmimo.config.get("scenarios_folder")
    deepmimo.config.set("scenarios_folder", str(root.resolve()))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            dataset: Reference = deepmimo.load(name, tx_sets=[base_station], rx_sets=[0])
        return dataset
    finally:
        deepmimo.config.set("scenarios_folder", before)


def _leg(a: Floats, users: Floats, plane: tuple[int, float, float] | None) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """Return whether a path exists (U,), the point that both its ends look at (U, 3), and its length (U,)."""
    if plane is None:
        midpoint = (a + users) / 2
        return ~_blocked(a, users), midpoint, np.linalg.norm(users - a, axis=1)
    axis, coordinate, _ = plane
    image = users.copy()
    image[:, axis] = 2 * coordinate - image[:, axis]
    along = (coordinate - a[axis]) / (image[:, axis] - a[axis])
    point = a + along[:, None] * (image - a)
    hit = (along > 0) & (along < 1)
    if axis != 2:  # the ground is everywhere, a wall only where its building is
        low, high = BUILDINGS[:, 0] - 1e-6, BUILDINGS[:, 1] + 1e-6
        hit &= ((point[:, None] >= low) & (point[:, None] <= high)).all(-1).any(-1)
    return hit & ~_blocked(a, point) & ~_blocked(point, users), point, np.linalg.norm(image - a, axis=1)


def _blocked(a: Floats, b: Floats) -> NDArray[np.bool_]:
    """Return whether segments from a to b, (U, 3) or (3,), pass through a building."""
    a, b = np.broadcast_arrays(a, b)
    low, high = BUILDINGS[:, 0] + 1e-3, BUILDINGS[:, 1] - 1e-3
    step = np.where(a == b, 1e-12, b - a)[:, None]
    first, second = (low - a[:, None]) / step, (high - a[:, None]) / step
    enter, leave = np.minimum(first, second).max(-1), np.maximum(first, second).min(-1)
    blocked: NDArray[np.bool_] = ((enter < leave) & (enter < 1) & (leave > 0)).any(-1)
    return blocked


def _angles(direction: Floats) -> tuple[Floats, Floats]:
    """Return azimuth and zenith [deg]."""
    x, y, z = np.moveaxis(direction, -1, 0)
    return np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(np.hypot(x, y), z))


def _txrx_set(index: int, name: str, is_tx: bool, is_rx: bool, num_points: int) -> dict[str, object]:
    facts: dict[str, object] = {"name": name, "id_orig": index, "id": index, "is_tx": is_tx, "is_rx": is_rx}
    facts |= {"num_points": num_points, "num_active_points": num_points, "num_ant": 1, "dual_pol": False}
    return facts | {"ant_rel_positions": [[0, 0, 0]], "array_orientation": [0, 0, 0], "grid_spacing": None}


def _write_scene(scenario: Path) -> None:
    flat = np.array([[[-50.0, -10.0, 0.3], [-45.0, -5.0, 0.3]]])
    ground = np.array([[[-70.0, -40.0, 0.0], [70.0, 40.0, 0.0]]])
    named = [(f"roads_{i}", "buildings", box) for i, box in enumerate(BUILDINGS)]
    named += [(f"buildings_{i}", "buildings", box) for i, box in enumerate([*BUILDINGS, *flat])]
    named += [("terrain_0", "terrain", ground[0])]
    vertices, objects = [], []
    for index, (name, label, (low, high)) in enumerate(named):
        start = 8 * index
        ring = [(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])]
        vertices += [(x, y, z) for z in (low[2], high[2]) for x, y in ring]
        faces = [[0, 1, 2, 3], [4, 5, 6, 7], *[[i, (i + 1) % 4, (i + 1) % 4 + 4, i + 4] for i in range(4)]]
        facts = {"name": name, "label": label, "id": index}
        indices = [[start + i for i in face] for face in faces]
        objects.append({**facts, "face_vertex_idxs": indices, "face_material_idxs": [0] * len(faces)})
    np.savez_compressed(scenario / "vertices.npz", vertices=np.array(vertices, dtype=np.float32))
    (scenario / "objects.json").write_text(json.dumps(objects))
