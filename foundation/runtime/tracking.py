"""Tags and tables of a run for Weights & Biases, and the better direction of metrics."""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from torch import Tensor

from foundation.gather import Rows

#: words in the names of metrics that are better if small, or if large; of several the last one counts
_LESS = {"loss", "nmse", "mse", "mae", "rmse", "error", "forgotten", "m"}
_MORE = {"accuracy", "f1", "cosine", "gain", "ratio", "rate", "match"}
#: most cities that are tags of a run
_CITIES = 20
#: limits of the embedding projector of Weights & Biases
_ROWS, _COMPONENTS = 1000, 50


def better(metric: str) -> Literal["min", "max"] | None:
    """Return whether a small or a large value of a metric is better, by its name; None if unknown.

    Args:
        metric: Its name, such as `val/beam/top1`, `test/mean_m`, `nmse_db_1` or `cosine_los_p10`.
    """
    for word in reversed(metric.rsplit("/", 1)[-1].split("_")):
        if word in _LESS:
            return "min"
        if word in _MORE or re.fullmatch(r"top\d+", word):
            return "max"
    return None


def described(part: Any) -> dict[str, Any]:
    """Return the description of a model or datamodule in the summary of a run; empty if it has none."""
    describe = getattr(part, "describe", None)
    return dict(describe()) if callable(describe) else {}


def tags_of(model: Any, datamodule: Any) -> list[str]:
    """Return the tags of a run: model, head, sources, and cities unless they are as many as those of WAIR-D."""
    facts = {**described(datamodule), **described(model)}
    sources = [type(source).__name__ for source in getattr(datamodule, "sources", ())]
    cities = dict.fromkeys(city for side in ("train_cities", "test_cities") for city in facts.get(side, []))
    words = [facts.get("model"), facts.get("head"), *sources, *(cities if len(cities) <= _CITIES else ())]
    return list(dict.fromkeys(str(word) for word in words if word))


def tables(rows: Rows) -> dict[str, Any]:
    """Return tables and plots of a sample of a test side for Weights & Biases, by name.

    Args:
        rows: `features` (B, D); `prediction` and `target`, whose confusion matrix is made if both are classes (B,),
            negative where unlabelled; further attributes (B,) or (B, n) of the links.

    Returns:
        `embeddings`, a table of at most 1000 links with the principal components of their features, and `confusion`.
    """
    import wandb

    count = len(rows["features"])
    kept = torch.linspace(0, count - 1, min(count, _ROWS)).long()
    columns: dict[str, list[Any]] = {}
    for name, value in rows.items():
        if name != "features" and value.ndim <= 2 and not value.is_complex():
            parts = value[kept].reshape(len(kept), -1)
            names = [name] if value.ndim == 1 else [f"{name}_{number}" for number in range(parts.shape[1])]
            columns |= dict(zip(names[:_COMPONENTS], parts.T.tolist(), strict=False))
    columns |= {f"component_{n}": column for n, column in enumerate(_components(rows["features"][kept]).T.tolist())}
    lines = [list(line) for line in zip(*columns.values(), strict=True)]
    shown: dict[str, Any] = {"embeddings": wandb.Table(columns=list(columns), data=lines)} if lines else {}
    target, prediction = rows.get("target"), rows.get("prediction")
    if target is None or prediction is None or not _classes(target) or not _classes(prediction):
        return shown
    known = target >= 0
    if known.any():
        names = [str(number) for number in range(int(torch.maximum(target, prediction).max()) + 1)]
        true, said = target[known].tolist(), prediction[known].tolist()
        shown["confusion"] = wandb.plot.confusion_matrix(y_true=true, preds=said, class_names=names, title="confusion")
    return shown


def _classes(value: Tensor) -> bool:
    return value.ndim == 1 and not value.is_floating_point() and not value.is_complex()


def _components(features: Tensor) -> Tensor:
    """Return the features (B, D) on their first principal axes, at most (B, 50)."""
    centred = features.double().nan_to_num()
    centred -= centred.mean(0)
    left, size, _ = torch.linalg.svd(centred, full_matrices=False)
    components: Tensor = (left * size)[:, :_COMPONENTS]
    return components
