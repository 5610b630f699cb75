"""Finds and loads scenes for ray tracing.

Sionna RT, Mitsuba and Dr.Jit are imported inside functions, since the import takes a second and searches for LLVM.
"""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DatasetNotFoundError, InputError, refuse_pointer
from datamodules.files import sha256
from datamodules.sources.llvm import check_llvm, use_llvm
from datamodules.sources.raytracing.materials import with_materials

#: size of Sionna's hash table of specular chains, per base station. Colliding chains are lost: with 50 users a call the
#: default of 1e6 loses 0.7 % of the energy found with 8e6 (64 MB)
_CHAIN_SLOTS = 8_000_000


def find(scene: str) -> Path:
    """Return the Mitsuba XML file of a scene, given by the name of a scene of Sionna RT or by a path.

    Raises:
        InputError: There is no such scene, or Sionna RT is not installed.
    """
    if scene.endswith(".xml") or len(Path(scene).parts) > 1:
        file = Path(scene).expanduser()
        if not file.is_file():
            raise DatasetNotFoundError(f"scene file {file} does not exist: give the path of a Mitsuba .xml file")
        return file.resolve()
    shipped = {file.stem: file for file in _shipped_folder().glob("*/*.xml")}
    if scene not in shipped:
        names = ", ".join(sorted(shipped))
        raise InputError(f"unknown scene {scene!r}: choose one of {names}, or give the path of a Mitsuba .xml file")
    return shipped[scene]


def fingerprint(file: Path) -> dict[str, str]:
    """Return the SHA-256 of a scene's XML and meshes; empty for a scene of Sionna RT, which its version determines.

    Raises:
        InputError: The XML cannot be parsed, or a mesh is missing.
    """
    parts = _own_files(file)
    count = Counter(part.name for part in parts)
    # meshes of one name are in different folders
    return {part.name if count[part.name] == 1 else os.path.relpath(part, file.parent): sha256(part) for part in parts}


def _own_files(file: Path) -> list[Path]:
    if file.is_relative_to(_shipped_folder()):
        return []
    refuse_pointer(file)
    try:
        root = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise InputError(f"scene file {file} is not valid XML: {error}") from error
    names = {item.get("value", "") for item in root.iter("string") if item.get("name") == "filename"}
    # $ starts a variable, which only Mitsuba can resolve
    meshes = [file.parent / name for name in sorted(names) if "$" not in name]
    for mesh in meshes:
        if not mesh.is_file():
            raise DatasetNotFoundError(f"scene file {file} names the mesh {mesh}, which does not exist")
        refuse_pointer(mesh)
    return [file, *meshes]


def stamp(file: Path) -> int:
    """Return the latest modification time [ns] of the files of a user's scene, a key of caches; 0 for others."""
    return max((part.stat().st_mtime_ns for part in _own_files(file)), default=0)


def _shipped_folder() -> Path:
    # without import of the package, so that cached sites are listed and opened quickly
    spec = importlib.util.find_spec("sionna")
    folder = Path((spec.origin if spec else None) or "-").parent / "rt" / "scenes"
    if not folder.is_dir():
        raise InputError("Sionna RT is not installed: pip install sionna-rt")
    return folder


def read(file: Path, merge_shapes: bool) -> Any:
    """Read a scene into a `sionna.rt.Scene`.

    Raises:
        InputError: Sionna RT cannot be imported, or was with an LLVM that aborts; the file cannot be read, or a
            material is unknown.
    """
    use_llvm()
    try:
        import mitsuba
        from sionna.rt.scene import load_scene_from_string
    except ImportError as error:
        raise InputError(f"Sionna RT cannot be imported ({_in_one_line(error)}): pip install sionna-rt") from error
    check_llvm()
    mi: Any = mitsuba  # its stubs declare some functions as objects
    text, before = with_materials(file), mi.file_resolver()
    resolver = mi.FileResolver(before)
    resolver.append(str(file.parent))
    try:
        mi.set_file_resolver(resolver)
        return load_scene_from_string(text, merge_shapes=merge_shapes)
    except (ElementTree.ParseError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"cannot read scene {file}: {_in_one_line(error)}") from error
    finally:
        mi.set_file_resolver(before)


def triangles(file: Path) -> dict[str, NDArray[Any]]:
    """Return the triangles of every object of a scene by its name, each of shape (N, 3 corners, 3) [m], float64.

    The scene is freed: Dr.Jit compiles every call for every mesh in memory, so that the two thousand objects of a city
    beside the merged scene would make each trace ten times as long.
    """
    scene = read(file, merge_shapes=False)
    found = {}
    for name, item in scene.objects.items():
        mesh = item.mi_mesh
        vertices = np.asarray(mesh.vertex_position(np.arange(mesh.vertex_count())), dtype=np.float64).T
        found[name] = vertices[np.asarray(mesh.face_indices(np.arange(mesh.face_count()))).T]
    del scene, item, mesh
    gc.collect()
    return found


def load(file: Path, frequency: float, scattering: float = 0.0) -> Any:
    """Load a scene for tracing between single isotropic, vertically polarised antennas, cached until the next call.

    Shapes of one material are merged, and only one scene is cached, for the reason given at `triangles`.

    Args:
        file: Mitsuba XML file.
        frequency: Carrier [Hz].
        scattering: Scattering coefficient S in [0, 1] of materials without one.

    Returns:
        A `sionna.rt.Scene` without transmitters or receivers, which must not be changed.

    Raises:
        InputError: The scene cannot be read, or a material is not defined at the frequency.
    """
    return _load(file, stamp(file), frequency, scattering)


@lru_cache(maxsize=1)
def _load(file: Path, _: int, frequency: float, scattering: float) -> Any:
    # free the last scene first, since scenes in memory slow each other down
    _load.cache_clear()
    gc.collect()
    scene = read(file, merge_shapes=True)
    from sionna.rt import PlanarArray
    from sionna.rt.path_solvers.sb_candidate_generator import SBCandidateGenerator
    from sionna.rt.radio_materials.itu import ITU_MATERIALS_PROPERTIES

    SBCandidateGenerator.MIN_SPEC_COUNT_SIZE = _CHAIN_SLOTS
    try:
        scene.frequency = frequency
    except ValueError as error:
        # the message of Sionna names an arbitrary material, in an order that changes from run to run
        for kind in sorted({getattr(material, "itu_type", "vacuum") for material in scene.radio_materials.values()}):
            ranges = ITU_MATERIALS_PROPERTIES[kind]
            if not any(low < frequency / 1e9 < high for low, high in ranges):
                valid = ", ".join(f"{low:g}-{high:g} GHz" for low, high in ranges)
                why = f"holds {kind}, which ITU-R P.2040 defines for {valid}, not {frequency / 1e9:g} GHz"
                raise InputError(f"scene {file.stem} {why}: change frequency, or the material in a copy") from error
        raise InputError(f"scene {file.stem} cannot be set to {frequency / 1e9:g} GHz: {error}") from error
    for material in scene.radio_materials.values() if scattering > 0 else ():
        if float(material.scattering_coefficient[0]) == 0:
            material.scattering_coefficient = scattering
    scene.tx_array = scene.rx_array = PlanarArray(
        num_rows=1, num_cols=1, vertical_spacing=0.5, horizontal_spacing=0.5, pattern="iso", polarization="V"
    )
    return scene


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 600 else f"{text[:200]} ... {text[-400:]}"  # the cause comes last
