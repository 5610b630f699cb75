"""Features in the plane."""

import importlib.util
import json
import os
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from datamodules.errors import InputError
from foundation.report import embedding
from foundation.report.embedding import embeddings_of, project, thinned
from foundation.task import link_identity
from tests.foundation.report.folders import add_features, write_run


@pytest.fixture
def no_umap(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)


@pytest.fixture
def folder(tmp_path):
    made = write_run(tmp_path)
    add_features(made)
    return made


@pytest.mark.usefixtures("no_umap")
def test_without_umap_the_principal_components_are_shown_and_named(folder):
    [made] = embeddings_of(folder)
    assert (made["name"], made["method"], len(made["x"])) == ("features", "PCA", 60)
    generator = np.random.default_rng(0)
    points, method = project(np.concatenate([generator.normal(size=(40, 9)) * 0.01 + np.eye(9)[n] for n in (0, 1)]))
    assert method == "PCA"
    assert points[:40, 0].min() > points[40:, 0].max() or points[:40, 0].max() < points[40:, 0].min()
    assert project(np.zeros((4, 1)))[0].shape == (4, 2)


@pytest.mark.usefixtures("no_umap")
def test_links_are_coloured_by_what_is_known_of_them(folder):
    colours = {colour["name"]: colour for colour in embeddings_of(folder)[0]["colours"]}
    assert set(colours) == {"line of sight", "position x [m]", "position y [m]", "best beam", "site", "area", "city"}
    assert colours["line of sight"]["classes"] == ["NLOS", "LOS"]
    assert colours["best beam"]["values"][:3] == [None, 0.0, 1.0]
    assert colours["city"]["classes"] == ["etoile", "munich"]
    assert colours["city"]["values"][:2] == [0, 1]
    few = thinned(embeddings_of(folder)[0], 10)
    assert {len(few["x"]), len(few["y"]), *(len(colour["values"]) for colour in few["colours"])} == {10}


@pytest.mark.usefixtures("no_umap")
def test_a_link_of_a_site_that_is_not_told_goes_by_its_number(tmp_path):
    rows = {"features": np.eye(4, 8, dtype=np.float32), "site": np.array([0, 0, 1, 2])}
    save_file(rows, tmp_path / "predictions.safetensors", {"sites": json.dumps([{"name": "a"}, {"name": "b"}])})
    colour = next(colour for colour in embeddings_of(tmp_path)[0]["colours"] if colour["name"] == "site")
    assert (colour["classes"], colour["values"]) == (["2", "a", "b"], [1, 1, 2, 0])
    save_file({key: value[:0] for key, value in rows.items()}, tmp_path / "predictions.safetensors")
    assert embeddings_of(tmp_path) == []


@pytest.mark.usefixtures("no_umap")
def test_a_type_that_numpy_has_not_is_one_line_or_read(tmp_path):
    save_torch({"features": torch.eye(4, 8, dtype=torch.bfloat16)}, tmp_path / "predictions.safetensors")
    if "ml_dtypes" in sys.modules:  # it gives NumPy the type
        assert len(embeddings_of(tmp_path)) == 1
    else:
        with pytest.raises(InputError, match=r"predictions\.safetensors cannot be read"):
            embeddings_of(tmp_path)


@pytest.mark.usefixtures("no_umap")
def test_a_projection_is_kept_until_there_are_new_features_or_umap(folder, monkeypatch):
    calls = []
    monkeypatch.setattr(embedding, "project", lambda rows: (calls.append(1), project(rows))[1])
    first = embeddings_of(folder)
    assert embeddings_of(folder) == first
    assert len(calls) == 1
    os.utime(folder / "predictions.safetensors", ns=(1, 1))
    embeddings_of(folder)
    assert len(calls) == 2
    monkeypatch.setattr(embedding, "has_umap", lambda: True)
    monkeypatch.setattr(embedding, "project", lambda rows: (calls.append(1), (rows[:, :2], "UMAP"))[1])
    assert embeddings_of(folder)[0]["method"] == "UMAP"
    (folder / "embeddings.json").write_text("{")
    embeddings_of(folder)
    assert len(calls) == 4


def test_predictions_say_all_that_is_known_of_a_link():
    known = {"los": 1, "beam": 2, "domain": 3, "position": 4, "site": 5, "user": 6}
    assert link_identity({**known, "csi": 7}) == known
    assert link_identity({"los": 1, "csi": 7}) == {"los": 1}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("umap") is None, reason="needs the extra umap")
def test_umap_keeps_clusters_apart():
    generator = np.random.default_rng(0)
    points, method = project(np.concatenate([generator.normal(size=(40, 9)) * 0.1 + np.eye(9)[n] for n in (0, 1)]))
    assert method == "UMAP"
    one, other = points[:40].mean(0), points[40:].mean(0)
    assert np.linalg.norm(one - other) > 3 * points[:40].std()
