"""Pictures of paired embeddings."""

import sys

import numpy as np
import pytest

from datamodules.progress import Progress
from foundation.evaluation.embeddings import _planes


def test_the_picture_is_drawn_without_umap_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    points = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    with (
        Progress(2, "projecting", "method") as progress,
        pytest.warns(UserWarning, match=r"without UMAP: pip install 'csi-foundation\[umap\]'"),
    ):
        planes = _planes(points, progress)
    assert {name: plane.shape for name, plane in planes.items()} == {"t-SNE": (12, 2), "PCA": (12, 2)}
