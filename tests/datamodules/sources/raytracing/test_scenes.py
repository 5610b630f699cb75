"""Scenes: reading them, what is wrong with them, and where there is room in them."""

import os

import numpy as np
import pytest

from datamodules.errors import DatasetNotFoundError, InputError
from datamodules.sources.llvm import use_llvm
from datamodules.sources.raytracing import scenes
from datamodules.sources.raytracing.scene_geometry import open_geometry
from datamodules.sources.raytracing.sionna_rt import SionnaRT
from tests.datamodules.sources.raytracing.test_sionna_rt import HOUSE
from tests.raytracing import requires_sionna, write_scene


@requires_sionna
@pytest.mark.parametrize(("gate", "outdoors"), [(0.15, False), (3.0, True)])
def test_a_courtyard_that_several_houses_enclose_is_not_outdoors(gate, outdoors, tmp_path):
    houses = {
        "west": (-20, -20, -15, 20, -1, 12),
        "east": (15, -20, 20, 20, -1, 12),
        "south": (-15, -20, 15, -15, -1, 12),
        "north": (-15 + gate, 15, 15, 20, -1, 12),
    }
    geometry = open_geometry(write_scene(tmp_path, houses))
    spots = np.array([[0.0, 0.0], [-14.9, -14.9], [14.9, 14.9], [30.0, 0.0], [-17.0, 0.0]])
    assert geometry.is_outdoors(spots).tolist() == [outdoors] * 3 + [True, False]
    assert len(geometry.buildings.heights) == 4


@requires_sionna
def test_broken_scene_files_are_named(tmp_path):
    file = write_scene(tmp_path, {"house": HOUSE})
    (tmp_path / "house.ply").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"own.xml names the mesh .*house.ply"):
        SionnaRT(str(file), cache=str(tmp_path)).sites()
    (tmp_path / "house.ply").write_bytes(b"not a mesh")
    with pytest.raises(InputError, match=r"cannot read scene .*own.xml"):
        SionnaRT(str(file), cache=str(tmp_path)).sites()
    file.write_text("<scene>")
    with pytest.raises(InputError, match=r"own.xml is not valid XML"):
        SionnaRT(str(file), cache=str(tmp_path)).sites()


@requires_sionna
def test_materials_that_blender_has_numbered(tmp_path):
    file = write_scene(tmp_path, {"house": HOUSE})
    text = file.read_text()
    start, end = text.index("<bsdf"), text.index("</bsdf>") + len("</bsdf>")
    for name, kind in (("mat-itu_wood.002", "wood"), ("itu_metal", "metal"), ("mat-itu_brick", "brick")):
        diffuse = f'<bsdf type="diffuse" id="{name}"/>'
        file.write_text((text[:start] + diffuse + text[end:]).replace('<ref id="concrete"', f'<ref id="{name}"'))
        scene = scenes.read(file, merge_shapes=True)
        assert {material.itu_type for material in scene.radio_materials.values()} == {kind}
    file.write_text(file.read_text().replace("mat-itu_brick", "mat-itu_concrte"))
    with pytest.raises(InputError, match=r"own.xml has the unknown material 'mat-itu_concrte': try concrete") as caught:
        scenes.read(file, merge_shapes=True)
    assert "\n" not in str(caught.value)


@requires_sionna
def test_every_mesh_of_a_scene_counts_in_its_key(tmp_path):
    file = write_scene(tmp_path, {"house": HOUSE, "shed": HOUSE})
    assert set(scenes.fingerprint(file)) == {"own.xml", "ground.ply", "house.ply", "shed.ply"}
    for folder in ("house", "shed"):
        (tmp_path / folder).mkdir()
        (tmp_path / f"{folder}.ply").rename(tmp_path / folder / "mesh.ply")
    file.write_text(file.read_text().replace("house.ply", "house/mesh.ply").replace("shed.ply", "shed/mesh.ply"))
    before = scenes.fingerprint(file)
    for folder in ("house", "shed"):
        (tmp_path / folder / "mesh.ply").write_bytes(b"other")
        assert scenes.fingerprint(file) != before
        before = scenes.fingerprint(file)


@requires_sionna
def test_an_error_of_the_reader_ends_with_its_cause(tmp_path):
    name = "house" * 30
    file = write_scene(tmp_path, {name: HOUSE})
    (tmp_path / f"{name}.ply").write_bytes(b"not a mesh")
    with pytest.raises(InputError, match="invalid PLY header"):
        scenes.read(file, merge_shapes=True)


@requires_sionna
@pytest.mark.parametrize(("height", "placed"), [(10.0, 10.1), (9.95, 10.1), (10.04, 10.04), (9.8, None)])
def test_a_base_station_within_ten_centimetres_of_a_roof_stands_on_it(height, placed, tmp_path):
    scene = open_geometry(write_scene(tmp_path, {"house": (-5.0, -5.0, 5.0, 5.0, 0.0, 10.0)}))
    station = np.array([[1.0, 2.0, height]], dtype=np.float32)
    if placed is None:
        with pytest.raises(InputError, match=r"in a building: move it, or raise it above 10.0 m"):
            scene.check_stations(station)
    else:
        np.testing.assert_allclose(scene.check_stations(station), [[1.0, 2.0, placed]], atol=1e-5)


@requires_sionna
@pytest.mark.parametrize("city", ["etoile", "munich", "florence", "san_francisco"])
def test_shipped_cities_can_be_traced_at_28_ghz(city):
    assert not scenes.load(scenes.find(city), 28e9).transmitters


def test_llvm_is_the_installed_one_unless_the_user_names_another(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("DRJIT_LIBLLVM_PATH", "mine")
    use_llvm()
    assert os.environ["DRJIT_LIBLLVM_PATH"] == "mine"
    monkeypatch.delenv("DRJIT_LIBLLVM_PATH")
    monkeypatch.setattr("importlib.metadata.files", lambda name: None)
    with pytest.raises(InputError, match="pip install karellen-llvm-core"):
        use_llvm()


@requires_sionna
def test_an_llvm_that_aborts_is_one_line(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("drjit.detail.llvm_version", lambda: (16, 0, 6))
    with pytest.raises(InputError, match=r"imported with LLVM 16 .* set DRJIT_LIBLLVM_PATH"):
        scenes.read(scenes.find("floor_wall"), merge_shapes=True)
