"""Beam selection against NumPy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from heads import Beam
from heads.beam import focal_loss
from tests.heads.conftest import D, Q, make_batch

Batch = dict[str, Tensor]


def test_metrics_equal_numpy(batches: list[Batch]) -> None:
    logits = [torch.randn(len(batch["beam"]), Q) for batch in batches]
    metrics = Beam(D, num_beams=Q, snr_db=3.0).metrics()
    for prediction, batch in zip(logits, batches, strict=True):
        metrics.update(prediction, batch)

    beam = np.concatenate([batch["beam"].numpy() for batch in batches])
    keep = beam >= 0
    beam = beam[keep]
    power = np.concatenate([batch["beam_power"].numpy() for batch in batches])[keep].astype(np.float64)
    order = np.argsort(-np.concatenate([prediction.numpy() for prediction in logits])[keep], axis=1)
    ratio = power[np.arange(len(beam)), order[:, 0]] / power.max(1)
    snr = 10**0.3
    expected = {f"top{k}": (order[:, :k] == beam[:, None]).any(1).mean() for k in (1, 3, 5)}
    expected["gain_db"] = (10 * np.log10(ratio)).mean()
    expected["se_ratio"] = np.log2(1 + snr * ratio).sum() / (len(beam) * np.log2(1 + snr))

    values = metrics.compute()
    assert set(values) == set(expected)
    for name, value in expected.items():
        assert values[name].item() == pytest.approx(value, rel=1e-5), name


def test_the_figure_of_the_gain_shows_losses() -> None:
    power = torch.tensor([[1.0, 0.5], [0.1, 1.0], [1.0, 0.0]])
    given = {"beam": torch.tensor([0, 1, 0]), "beam_power": power * 1e-9}
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])  # the second, the second, and the best beam
    curve = Beam(D, num_beams=2).figures(logits, given)["gain_loss_cdf"].axes[0].lines[0].get_xdata()
    assert [curve[0], curve[500], curve[-1]] == pytest.approx([0.0, 10 * np.log10(2), 10.0], abs=1e-5)


def test_perfect_prediction(batch: Batch) -> None:
    head = Beam(D, num_beams=Q)
    logits = batch["beam_power"] / batch["beam_power"].amax()
    metrics = head.metrics()
    metrics.update(logits, batch)
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values == pytest.approx({"top1": 1, "top3": 1, "top5": 1, "gain_db": 0, "se_ratio": 1})
    keep = batch["beam"] >= 0
    assert torch.equal(head.predict(logits)[keep], batch["beam"][keep])


def test_hits_stay_apart_after_an_easy_batch(batch: Batch) -> None:
    # torchmetrics would merge top1, top3 and top5 here, for all batches to come
    metrics = Beam(D, num_beams=Q).metrics()
    metrics.update(batch["beam_power"], batch)
    second = F.one_hot(batch["beam"].clamp_min(0), Q).float() + 2 * F.one_hot((batch["beam"] + 1) % Q, Q)
    metrics.update(second, batch)
    values = metrics.compute()
    assert values["top1"].item() == 0.5
    assert values["top3"].item() == 1


def test_fewer_beams_than_guesses() -> None:
    metrics = Beam(D, num_beams=2).metrics()
    batch = {"beam": torch.tensor([0, 1]), "beam_power": torch.eye(2) * 1e-9}
    metrics.update(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), batch)
    values = metrics.compute()
    assert (values["top1"].item(), values["top3"].item(), values["top5"].item()) == (0.5, 1, 1)
    assert values["gain_db"].item() == pytest.approx(-50)  # one perfect, one without any power: floored at -100 dB


def test_link_without_power_has_no_gain(batch: Batch) -> None:
    metrics = Beam(D, num_beams=Q).metrics()
    batch["beam_power"][0] = 0.0
    metrics.update(torch.randn(len(batch["beam"]), Q), batch)
    assert all(value.isfinite() for value in metrics.compute().values())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_loss_equals_equation_16(gamma: float) -> None:
    logits, target = torch.randn(9, Q, dtype=torch.float64), torch.randint(0, Q, (9,))
    q = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    m = np.eye(Q)[target.numpy()]
    expected = -(m * (1 - q) ** gamma * np.log(q)).sum() / 9
    assert focal_loss(logits, target, gamma).mean().item() == pytest.approx(expected, rel=1e-12)


def test_focal_loss_with_gamma_zero_is_cross_entropy(features: Tensor, batch: Batch) -> None:
    plain, focal = Beam(D, num_beams=Q), Beam(D, num_beams=Q, loss="focal", gamma=0.0)
    logits = plain(features)
    torch.testing.assert_close(plain.loss(logits, batch), focal.loss(logits, batch))
    torch.testing.assert_close(plain.loss(logits, batch), F.cross_entropy(logits, batch["beam"], ignore_index=-1))


def test_gamma_is_of_the_focal_loss_alone(features: Tensor, batch: Batch) -> None:
    logits = torch.randn(len(features), Q)
    plain = Beam(D, num_beams=Q, gamma=2.0).loss(logits, batch)
    assert Beam(D, num_beams=Q, loss="focal", gamma=2.0).loss(logits, batch) < plain


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_gradient_is_finite_when_sure(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)  # q rounds to 1, then to 0
    focal_loss(logits, torch.zeros(2, dtype=torch.long), gamma).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_another_codebook_is_named(features: Tensor) -> None:
    head = Beam(D, num_beams=64)
    message = f"num_beams=64 but the data have {Q} beams"
    batch = make_batch(len(features), seed=0)
    with pytest.raises(ValueError, match=message):
        head.loss(head(features), batch)
    with pytest.raises(ValueError, match=message):
        head.metrics().update(head(features), batch)
    with pytest.raises(ValueError, match=message):
        head.check({"beam_counts": torch.ones(Q)})


def test_pluggable_network_of_the_paper_has_10336_parameters() -> None:
    head = Beam(128, num_beams=32, hidden=64)  # environment-channel Table III
    assert sum(p.numel() for p in head.parameters()) == 10_336
