"""What tests that trace rays share: whether that works here, small scenes, and Sionna's own channel to compare with."""

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.sites.paths import Paths
from datamodules.sources.llvm import use_llvm
from datamodules.sources.raytracing import scenes, tracing

_PROBE = """
import numpy as np
from datamodules.sources.raytracing import scenes, tracing
tracing.Tracer(scenes.find("floor_wall"), 3.5e9, samples=100)(np.array([[0, 0, 1.0]]), np.array([[1, 1, 1.0]]))
"""


@functools.cache
def problem() -> str:
    """Say why Sionna RT cannot run here; empty if it can. In a process of its own, since a wrong LLVM aborts it."""
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    return f"Sionna RT cannot run here: {done.stderr.strip()[-200:] or done.returncode}" if done.returncode else ""


def skip_without_sionna() -> None:
    """Skip the test, or the tests that need the fixture, that calls this."""
    if problem():
        pytest.skip(problem())


def requires_sionna(test: Callable[..., None]) -> Callable[..., None]:
    """Skip a test where Sionna RT cannot run; asked when the test runs, so that collecting stays quick."""

    @functools.wraps(test)
    def guarded(*args: object, **kwargs: object) -> None:
        skip_without_sionna()
        test(*args, **kwargs)

    return guarded


def write_scene(folder: Path, boxes: dict[str, tuple[float, ...]], slope: float = 0.0, half: float = 50.0) -> Path:
    """Write a Mitsuba scene: square ground z = slope x, and boxes (x_min, y_min, x_max, y_max, z_min, z_max) [m]."""
    corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    meshes = {"ground": (np.column_stack([corners, slope * corners[:, 0]]), np.array([[0, 1, 2], [0, 2, 3]]))}
    faces = [
        [0, 1, 5],
        [0, 5, 4],
        [1, 2, 6],
        [1, 6, 5],
        [2, 3, 7],
        [2, 7, 6],
        [3, 0, 4],
        [3, 4, 7],
        [4, 5, 6],
        [4, 6, 7],
    ]
    for name, (x0, y0, x1, y1, z0, z1) in boxes.items():
        plan = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        meshes[name] = (np.array([(x, y, z) for z in (z0, z1) for x, y in plan]), np.array(faces))
    shapes = ""
    for name, (vertices, triangles) in meshes.items():
        header = (
            f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\nproperty float x\n"
            "property float y\nproperty float z\n"
            f"element face {len(triangles)}\nproperty list uchar int vertex_index\nend_header\n"
        )
        body = vertices.astype("<f4").tobytes() + b"".join(b"\x03" + row.astype("<i4").tobytes() for row in triangles)
        (folder / f"{name}.ply").write_bytes(header.encode() + body)
        shapes += (
            f'<shape type="ply" id="mesh-{name}"><string name="filename" value="{name}.ply"/>'
            '<boolean name="face_normals" value="true"/><ref id="concrete" name="bsdf"/></shape>'
        )
    material = (
        '<bsdf type="itu-radio-material" id="concrete"><string name="type" value="concrete"/>'
        '<float name="thickness" value="0.2"/></bsdf>'
    )
    file = folder / "own.xml"
    file.write_text(f'<scene version="2.1.0">{material}{shapes}</scene>')
    return file


def trace_with_cfr(
    station: tuple[float, float, float],
    users: np.ndarray,
    bs: tuple[int, int],
    ue: tuple[int, int],
    orientation: tuple[float, float, float],
    offsets: np.ndarray,
    scene_name: str = "simple_street_canyon",
    frequency: float = 3.5e9,
) -> tuple[Paths, torch.Tensor]:
    """Trace one base station to users, and let Sionna compute the channel of whole arrays on the same paths.

    The gains are those of single antennas with the base station's orientation: Sionna turns the polarisation with it.

    Args:
        station: Base-station position [m].
        users: User positions [m], shape (U, 3).
        bs: Rows and columns of the base station's array.
        ue: Rows and columns of the users' arrays.
        orientation: (alpha, beta, gamma) of the base station [rad].
        offsets: Frequencies relative to the carrier [Hz], shape (K,).
        scene_name: A shipped scene.
        frequency: Carrier [Hz].

    Returns:
        All paths, and Sionna's frequency response of shape (U, R, T, K), elements in the order of `Array`.
    """
    use_llvm()
    from sionna.rt import PathSolver, PlanarArray, Receiver, Transmitter

    scene = scenes.read(scenes.find(scene_name), merge_shapes=True)
    scene.frequency = frequency
    scene.add(Transmitter("bs", position=list(station), orientation=list(orientation)))
    scene.add([Receiver(f"ue{i}", position=user.tolist()) for i, user in enumerate(users)])

    def solve(tx: tuple[int, int], rx: tuple[int, int]) -> object:
        for side, (rows, cols) in (("tx_array", tx), ("rx_array", rx)):
            spacing = {"vertical_spacing": 0.5, "horizontal_spacing": 0.5}
            array = PlanarArray(num_rows=rows, num_cols=cols, **spacing, pattern="iso", polarization="V")
            setattr(scene, side, array)
        return PathSolver(deterministic=True)(scene, max_depth=3, samples_per_src=20_000, refraction=False)

    [paths] = tracing.to_paths(solve((1, 1), (1, 1)), frequency, users, max_paths=10_000)
    response = solve(bs, ue).cfr(frequencies=offsets, normalize_delays=False, normalize=False, out_type="numpy")
    # [user, rx element, 1, tx element, 1, K]
    response = response[:, _in_our_order(*ue)][:, :, 0][:, :, _in_our_order(*bs), 0]
    return paths, torch.from_numpy(np.ascontiguousarray(response))


def _in_our_order(rows: int, cols: int) -> np.ndarray:
    """Sionna numbers an array column by column from the top left, `Array` row by row from the bottom."""
    row, col = np.divmod(np.arange(rows * cols), cols)
    return col * rows + (rows - 1 - row)
