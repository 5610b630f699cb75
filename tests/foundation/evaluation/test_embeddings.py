"""Pictures of paired embeddings."""

import sys

import numpy as np
import pytest
import torch

from datamodules.progress import Progress
from foundation.evaluation import embeddings
from foundation.evaluation.embeddings import _planes, _similarity
from tests.datamodules.rays import random_site


def test_the_picture_is_drawn_without_umap_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    points = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    with (
        Progress(2, "projecting", "method") as progress,
        pytest.warns(UserWarning, match=r"without UMAP: pip install 'csi-foundation\[umap\]'"),
    ):
        planes = _planes(points, progress)
    assert {name: plane.shape for name, plane in planes.items()} == {"t-SNE": (12, 2), "PCA": (12, 2)}


def test_similarities_of_a_large_area_are_those_of_some_of_its_links(monkeypatch):
    monkeypatch.setattr(embeddings, "_LINKS", 4)
    count = 11
    vectors = torch.eye(count)
    rows = {"channel": vectors, "environment": vectors, "site": torch.zeros(count, dtype=torch.long)}
    rows["user"] = torch.arange(count).flip(0)
    figure = _similarity(rows, torch.arange(count) < 10, [random_site("a", count)])
    picture = np.asarray(figure.axes[1].images[0].get_array())
    assert np.array_equal(picture, np.eye(4))
