"""Figures of paired embeddings: similarities, matching accuracy, and projections of both modalities to the plane."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from datamodules import Site
from datamodules.errors import InputError, needs
from datamodules.plots.style import empty_figure
from datamodules.progress import Progress
from foundation.losses.clip import matching

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: most pairs drawn in the projections, to keep them legible
_PAIRS = 300
#: most links of an area whose similarities are drawn, the square of which is the number of pixels
_LINKS = 2048


def draw(rows: dict[str, Tensor], area: Tensor, sites: Sequence[Site]) -> dict[str, Figure]:
    """Draw figures 3, 5 and 6 of environment-channel for the links of a test side.

    Args:
        rows: `channel` and `environment` embeddings (M, D), `site` and `user` (M,).
        area: Index of the area of each link (M,).
        sites: The sites that `site` indexes.
    """
    hit, chance = matching(rows["channel"], rows["environment"], area)
    numbers, inverse, counts = np.unique(area.numpy(), return_inverse=True, return_counts=True)
    shares = torch.from_numpy(np.bincount(inverse, hit.numpy()) / counts)
    largest = int(numbers[counts.argmax()])
    figures = {
        "similarity": _similarity(rows, area == largest, sites),
        "matching": _histogram(shares, float(chance.mean())),
    }
    # takes half a minute, after the test itself has ended
    with Progress(3, "projecting embeddings", "method", leave=False) as progress:
        figures["embeddings"] = _projections(rows, progress)
    return figures


def _similarity(rows: dict[str, Tensor], chosen: Tensor, sites: Sequence[Site]) -> Figure:
    """Draw an area, and the similarity of every channel in it with every environment (figure 5)."""
    order = chosen.nonzero().squeeze(1)
    order = order[np.lexsort((rows["user"][order].numpy(), rows["site"][order].numpy()))]
    order = order[:: -(-len(order) // _LINKS)]
    channel, environment = (F.normalize(rows[key][order], dim=-1) for key in ("channel", "environment"))
    numbers = sorted(set(rows["site"][order].tolist()))
    figure = empty_figure(10.0, 4.5)
    left, right = figure.subplots(1, 2)
    site = sites[numbers[0]]
    for outline in site.environment.footprints:
        left.fill(*np.asarray(outline).T, color="0.8")
    left.plot(*site.links.position[:, :2].T.numpy(), "g.", label="users")
    left.plot(*np.array([sites[n].bs_position[:2].numpy() for n in numbers]).T, "r^", label="base stations")
    left.set(xlabel="x [m]", ylabel="y [m]", title=site.area)
    left.set_aspect("equal", "box")
    left.set_xlim(site.environment.bounds[0], site.environment.bounds[2])
    left.set_ylim(site.environment.bounds[1], site.environment.bounds[3])
    left.legend(loc="upper right")
    picture = right.imshow((channel @ environment.T).numpy(), cmap="viridis", interpolation="nearest")
    figure.colorbar(picture, label="cosine similarity")
    right.set(xlabel="environment of link", ylabel="channel of link", title="links in order of base station and user")
    return figure


def _histogram(shares: Tensor, chance: float) -> Figure:
    """Draw the histogram over areas of the share of links matched correctly (figure 6)."""
    from heads.figures import new_figure

    figure, axes = new_figure("Matching all links of an area")
    axes.hist(shares.numpy(), bins=np.linspace(0, 1, 11).tolist(), edgecolor="white")
    axes.axvline(chance, color="black", linestyle="--", label=f"chance: {chance:.3f}")
    axes.set(xlabel="share of links whose own environment is the most similar", ylabel="areas")
    axes.legend()
    return figure


def _projections(rows: dict[str, Tensor], progress: Progress) -> Figure:
    """Draw pairs in the plane by t-SNE, PCA and UMAP, a line from each channel to its environment (figure 3)."""
    from matplotlib.collections import LineCollection

    count = len(rows["channel"])
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:_PAIRS]
    pair = [F.normalize(rows[key][chosen].float(), dim=-1).numpy() for key in ("channel", "environment")]
    planes = _planes(np.concatenate(pair), progress)
    figure = empty_figure(4.5 * len(planes), 4.2)
    for axes, (name, points) in zip(np.atleast_1d(figure.subplots(1, len(planes))), planes.items(), strict=True):
        one, other = np.split(points, 2)
        axes.add_collection(LineCollection(np.stack((one, other), 1).tolist(), colors="0.7", linewidths=0.6, zorder=0))
        axes.plot(*one.T, ".", color="tab:orange", markersize=4, label="channel")
        axes.plot(*other.T, ".", color="tab:green", markersize=4, label="environment")
        axes.set(title=name, xticks=[], yticks=[])
    figure.axes[0].legend(loc="best")
    return figure


def _planes(points: NDArray[np.float32], progress: Progress) -> dict[str, NDArray[Any]]:
    """Project points (M, D) to the plane by each method."""
    progress.announce("loading t-SNE, PCA and UMAP")
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(points) - 1) / 3)
    methods: dict[str, Any] = {
        "t-SNE": TSNE(2, perplexity=perplexity, random_state=0),
        "PCA": PCA(2),
    }
    try:
        with needs("umap", "the picture of embeddings is drawn without UMAP"):
            from umap import UMAP
    except InputError as error:
        # a missing panel must not discard the results of the test
        warnings.warn(str(error), stacklevel=2)
    else:
        methods["UMAP"] = UMAP(n_components=2, n_neighbors=min(15, len(points) - 1), random_state=0, n_jobs=1)
    planes = {}
    for name, method in methods.items():
        progress.announce(f"projecting embeddings by {name}")
        planes[name] = method.fit_transform(points)
        progress.update()
    return planes
