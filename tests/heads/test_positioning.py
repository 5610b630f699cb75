"""Positioning against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads import Positioning
from tests.heads.conftest import D

Batch = dict[str, Tensor]


def numpy_errors(predictions: list[Tensor], batches: list[Batch], dims: int) -> NDArray[np.float64]:
    errors = []
    for prediction, batch in zip(predictions, batches, strict=True):
        for guess, user, station in zip(prediction, batch["position"], batch["bs_position"], strict=True):
            if not user.isnan().any():
                truth = user.numpy().astype(np.float64) - station.numpy()
                errors.append(np.sqrt(((guess.numpy() - truth[:dims]) ** 2).sum()))
    return np.array(errors)


@pytest.mark.parametrize("dims", [2, 3])
def test_metrics_equal_numpy(dims: int, batches: list[Batch]) -> None:
    predictions = [torch.randn(len(batch["los"]), dims) * 40 for batch in batches]
    metrics = Positioning(D, dims=dims).metrics()
    for prediction, batch in zip(predictions, batches, strict=True):
        metrics.update(prediction, batch)
    errors = numpy_errors(predictions, batches, dims)
    values = metrics.compute()
    assert set(values) == {"mean_m", "median_m", "cdf90_m"}
    assert values["mean_m"].item() == pytest.approx(errors.mean(), rel=1e-5)
    assert values["median_m"].item() == pytest.approx(np.median(errors), rel=1e-5)
    assert values["cdf90_m"].item() == pytest.approx(np.quantile(errors, 0.9), rel=1e-5)


def test_output_is_metres_and_loss_is_standardised(features: Tensor, batch: Batch, statistics: Batch) -> None:
    head = Positioning(D)
    standardised = head(features)  # mean 0 and std 1 until prepared
    head.prepare(statistics)
    metres = head(features)
    torch.testing.assert_close((metres - head.mean) / head.std, standardised)
    assert torch.equal(head.predict(metres), metres)
    relative = (batch["position"] - batch["bs_position"])[:, :2]
    target = (relative - statistics["position_mean"][:2]) / statistics["position_std"][:2]
    keep = ~target.isnan().any(1)
    expected = ((standardised[keep] - target[keep]) ** 2).mean()
    torch.testing.assert_close(head.loss(metres, batch), expected)


def test_anchors_equal_numpy(features: Tensor, batch: Batch, statistics: Batch) -> None:
    head = Positioning(D, anchors=6, dims=3)
    assert head.anchors is not None
    head.prepare(statistics)
    raw = head(features)
    anchors, logits = (value.detach().double().numpy() for value in (head.anchors, head.layers(features)))
    mean, std = (statistics[name].double().numpy() for name in ("position_mean", "position_std"))
    losses = []
    for answer, logit, user, station in zip(raw, logits, batch["position"], batch["bs_position"], strict=True):
        weights = np.exp(logit) / np.exp(logit).sum()
        position = sum(weight * anchor for weight, anchor in zip(weights, anchors, strict=True))
        assert answer[:3].tolist() == pytest.approx((position * std + mean).tolist(), rel=1e-5, abs=1e-4)
        truth = ((user - station).double().numpy() - mean) / std
        if not np.isnan(truth).any():
            near = np.exp(-8 * ((anchors - truth) ** 2).sum(1))  # 1 / (2 w^2)
            losses.append(((position - truth) ** 2).mean() - (near / near.sum() * np.log(weights)).sum())
    assert head.loss(raw, batch).item() == pytest.approx(np.mean(losses), rel=1e-5)
    torch.testing.assert_close(head.predict(raw), raw[:, :3])


def test_metrics_read_positions_alone(features: Tensor, batch: Batch) -> None:
    head = Positioning(D, anchors=4)
    raw = head(features).detach()
    whole, alone = head.metrics(), Positioning(D).metrics()
    whole.update(raw, batch)
    alone.update(head.predict(raw), batch)
    torch.testing.assert_close(whole.compute(), alone.compute())


def test_perfect_position(batch: Batch, statistics: Batch) -> None:
    head = Positioning(D, dims=3)
    head.prepare(statistics)
    perfect = batch["position"] - batch["bs_position"]
    metrics = head.metrics()
    metrics.update(perfect, batch)
    assert head.loss(perfect, batch).item() == 0
    assert all(value.item() == 0 for value in metrics.compute().values())


def test_statistics_are_saved(statistics: Batch) -> None:
    head = Positioning(D)
    head.prepare(statistics)
    torch.testing.assert_close(head.state_dict()["mean"], statistics["position_mean"][:2])
    torch.testing.assert_close(head.state_dict()["std"], statistics["position_std"][:2])


@pytest.mark.parametrize("spread", [0.0, torch.nan])  # one height; one user
def test_coordinate_without_spread(spread: float, features: Tensor, batch: Batch, statistics: Batch) -> None:
    statistics["position_std"][2] = spread
    head = Positioning(D, dims=3)
    head.prepare(statistics)
    assert head.std[2] == 1
    assert head.loss(head(features), batch).isfinite()


def test_autocast_keeps_metres(features: Tensor, statistics: Batch) -> None:
    head = Positioning(D)
    head.prepare(statistics)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        position = head(features)
    assert torch.equal(position, head(features))


def test_the_old_name_of_the_anchors_is_read() -> None:
    with pytest.warns(FutureWarning, match="write anchors"):
        head = Positioning(D, places=6)
    assert head.anchors is not None
    assert len(head.anchors) == 6
