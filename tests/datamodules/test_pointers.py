"""Git LFS pointers in place of files, as a clone without `git lfs` holds them, wherever a user's file is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datamodules.errors import InputError
from datamodules.sites.site import Site
from datamodules.sources.deepmimo.files import naming
from datamodules.sources.deepmimo.v4 import DeepMIMO
from datamodules.sources.raytracing import scenes
from datamodules.sources.recorded.arrays import load_array
from datamodules.sources.recorded.source import Recorded
from datamodules.sources.waird.area import _read_environment
from datamodules.sources.waird.restricted_pickle import load_npy
from datamodules.yaml_file import read_yaml
from foundation.checkpoint import read_checkpoint
from tests.data.deepmimo.data import write_scenario
from tests.datamodules.rays import random_site

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456\n"


def pointer(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(POINTER)
    return file


def damaged(file: Path) -> None:
    with naming(file):
        np.load(file)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("csi.mat", lambda file: load_array(str(file), "csi")),
        ("csi.npz", lambda file: load_array(str(file), "csi")),
        ("csi.npy", lambda file: load_array(str(file), "csi")),
        ("BS1_UE_0-9.mat", damaged),
        ("Path.npy", load_npy),
        ("environment.png", lambda file: _read_environment(file, np.ones(2))),
        ("own.xml", scenes.fingerprint),
        ("last.ckpt", read_checkpoint),
        ("own.yaml", read_yaml),
        ("csi.safetensors", lambda file: Recorded(str(file), cache=str(file.parent)).sites()),
    ],
)
def test_a_pointer_is_called_one(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    file = pointer(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} is a Git LFS pointer.*git lfs pull") as caught:
        read(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["site.json", "paths.safetensors"])
def test_of_a_site(tmp_path: Path, file: str) -> None:
    random_site("a").save(tmp_path / "a")
    pointer(tmp_path / "a" / file)
    with pytest.raises(InputError, match=rf"{file} is a Git LFS pointer"):
        Site.load(tmp_path / "a")


@pytest.mark.parametrize("file", ["params.json", "vertices.npz", "delay_t001_tx000_r000.npz"])
def test_of_a_scenario(tmp_path: Path, file: str) -> None:
    write_scenario(tmp_path / "scenarios", "street_3p5", num_users=20, seed=0)
    assert (tmp_path / "scenarios" / "street_3p5" / file).is_file()
    pointer(tmp_path / "scenarios" / "street_3p5" / file)
    with pytest.raises(InputError, match=rf"{file} is a Git LFS pointer"):
        DeepMIMO("street_3p5", str(tmp_path / "scenarios"), download=False, cache=str(tmp_path / "cache")).sites()


def test_of_the_mesh_of_a_scene(tmp_path: Path) -> None:
    pointer(tmp_path / "house.ply")
    file = tmp_path / "own.xml"
    file.write_text('<scene><shape><string name="filename" value="house.ply"/></shape></scene>')
    with pytest.raises(InputError, match=r"house.ply is a Git LFS pointer"):
        scenes.fingerprint(file)
