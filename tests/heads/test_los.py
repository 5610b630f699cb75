"""LOS identification against scikit-learn's definitions, written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from heads import LOS
from tests.heads.conftest import D

Batch = dict[str, Tensor]


def numpy_scores(truth: NDArray[np.int_], guess: NDArray[np.int_]) -> dict[str, float]:
    recalls, f1s = [], []
    for label in (0, 1):
        hits = ((truth == label) & (guess == label)).sum()
        if (truth == label).any():
            recalls.append(hits / (truth == label).sum())
        if (truth == label).any() or (guess == label).any():
            f1s.append(2 * hits / ((truth == label).sum() + (guess == label).sum()))
    return {"accuracy": (truth == guess).mean(), "balanced_accuracy": np.mean(recalls), "f1": np.mean(f1s)}


def scores(pairs: list[tuple[Tensor, Batch]]) -> dict[str, float]:
    metrics = LOS(D).metrics()
    for logits, batch in pairs:
        metrics.update(logits, batch)
    return {name: value.item() for name, value in metrics.compute().items()}


def logits_of(guess: list[int]) -> Tensor:
    return F.one_hot(torch.tensor(guess), 2).float()


def test_metrics_equal_numpy(batches: list[Batch]) -> None:
    logits = [torch.randn(len(batch["los"]), 2) for batch in batches]
    truth = np.concatenate([batch["los"].numpy() for batch in batches])
    guess = np.concatenate([prediction.numpy().argmax(1) for prediction in logits])
    expected = numpy_scores(truth[truth >= 0], guess[truth >= 0])
    assert scores(list(zip(logits, batches, strict=True))) == pytest.approx(expected)


@pytest.mark.parametrize("guess", [[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0]])
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_absent(guess: list[int], label: int) -> None:
    truth = np.full(4, label)
    values = scores([(logits_of(guess), {"los": torch.full((4,), label, dtype=torch.int8)})])
    assert values == pytest.approx(numpy_scores(truth, np.array(guess)))
    assert values["balanced_accuracy"] == values["accuracy"]


def test_predict_is_the_label_of_the_batch() -> None:
    assert LOS(D).predict(logits_of([1, 0, 1])).tolist() == [1, 0, 1]


def test_linear_head_has_258_parameters() -> None:
    assert sum(p.numel() for p in LOS(128, hidden=None).parameters()) == 258


def test_loss_is_cross_entropy(features: Tensor, batch: Batch) -> None:
    head = LOS(D)
    logits = head(features)
    expected = F.cross_entropy(logits, batch["los"].long(), ignore_index=-1)
    torch.testing.assert_close(head.loss(logits, batch), expected)


def test_balanced_loss_gives_classes_the_same_weight() -> None:
    head = LOS(D, balanced=True)
    batch = {"los": torch.tensor([0, 1, 1, 1, -1], dtype=torch.int8)}
    head.prepare({"los_counts": torch.tensor([1, 3])})
    torch.testing.assert_close(head.class_weight, torch.tensor([2.0, 2 / 3]))
    logits = torch.randn(5, 2)
    each = F.cross_entropy(logits[:4], batch["los"][:4].long(), reduction="none")
    torch.testing.assert_close(head.loss(logits, batch), (each[0] + each[1:].mean()) / 2)


@pytest.mark.parametrize("counts", [[0, 7], [7, 0]])
def test_balanced_with_one_class_is_unweighted(counts: list[int]) -> None:
    head = LOS(D, balanced=True)
    head.prepare({"los_counts": torch.tensor(counts)})
    assert head.class_weight.tolist() == [1, 1]


def test_unbalanced_ignores_the_counts() -> None:
    head = LOS(D)
    head.prepare({"los_counts": torch.tensor([1, 9])})
    assert head.class_weight.tolist() == [1, 1]
