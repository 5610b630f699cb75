import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from datamodules.errors import InputError
from foundation.losses import clip
from foundation.losses.clip import CLIPLoss, matching, mixed, retrieval
from foundation.losses.ntxent import NTXentLoss


def reference(a, b, temperature):
    """CSI-CLIP eq 2, both directions, pair by pair."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    total = 0.0
    for one, other in ((a, b), (b, a)):
        for i in range(len(one)):
            scores = np.array([one[i] @ other[j] for j in range(len(other))]) / temperature
            total -= scores[i] - np.log(np.exp(scores).sum())
    return total / (2 * len(a))


@pytest.mark.parametrize("size", [1, 2, 17, 64])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
def test_equals_the_slow_reference(size, temperature):
    a, b = torch.randn(2, size, 12, dtype=torch.float64)
    loss = CLIPLoss(temperature)(a, b)
    assert loss.item() == pytest.approx(reference(a.numpy(), b.numpy(), temperature), rel=1e-5, abs=1e-6)
    assert CLIPLoss(temperature).local(a, b) == loss


def test_identical_embeddings_cost_the_log_of_the_batch():
    same = torch.ones(32, 8)
    assert CLIPLoss()(same, same).item() == pytest.approx(math.log(32), rel=1e-5)


def test_is_symmetric_and_has_finite_gradients():
    a, b = torch.randn(2, 16, 8, requires_grad=True).unbind()
    loss = CLIPLoss()
    assert loss(a, b).item() == pytest.approx(loss(b, a).item(), rel=1e-6)
    (loss(a * 1e4, b * 1e-4)).backward()
    assert torch.isfinite(loss.log_scale.grad)


@pytest.mark.parametrize("kind", [CLIPLoss, NTXentLoss])
def test_temperature_is_clamped_as_clip_does(kind):
    loss = kind(0.07)
    assert loss.scale.item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        loss.log_scale.fill_(9.0)
    loss.clamp()
    assert loss.scale.item() == pytest.approx(100)
    with torch.no_grad():
        loss.log_scale.fill_(-3.0)
    loss.clamp()
    assert loss.scale.item() == pytest.approx(1)
    with pytest.raises(ValueError, match="temperature must be positive"):
        kind(0.0)


def test_retrieval_counts_within_batches():
    eye = torch.eye(6)
    assert retrieval(eye, eye, 1, batch=3) == 1
    shifted = eye[[1, 2, 0, 3, 5, 4]]
    # the first batch is wrong for all, the second right for one of three
    assert retrieval(eye, shifted, 1, batch=3).item() == pytest.approx(1 / 6)
    assert retrieval(eye, eye, 1, batch=4) == 1, "an incomplete batch is left out"


def test_rows_are_mixed_alike_and_always_so():
    one, other = mixed(torch.arange(300), torch.arange(300) * 2)
    assert torch.equal(other, 2 * one)
    assert torch.equal(one.sort().values, torch.arange(300))
    assert (one[1:] - one[:-1]).abs().float().median() > 30, "neighbours stay beside each other"
    assert torch.equal(mixed(torch.arange(300))[0], one)


def test_collapsed_embeddings_score_chance():
    same = torch.ones(128, 8)
    for top in (1, 5):
        assert retrieval(same, same, top).item() == pytest.approx(top / 128)


def test_chance_is_chance():
    torch.manual_seed(0)
    a, b = torch.randn(2, 128 * 50, 32)
    assert retrieval(a, b, 5).item() == pytest.approx(5 / 128, abs=0.01)


@pytest.mark.parametrize("temperature", [1.5, 0.009, float("nan")])
@pytest.mark.parametrize("loss", [CLIPLoss, NTXentLoss])
def test_a_first_temperature_that_would_be_clamped_is_refused(loss, temperature):
    with pytest.raises(InputError, match=f"{loss.__name__}: temperature must be"):
        loss(temperature)
    for kept in (1.0, 0.01):
        made = loss(kept)
        made.clamp()
        assert 1 / made.scale.item() == pytest.approx(kept)


def test_a_large_group_is_matched_in_parts(monkeypatch):
    queries, options = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0))
    group = torch.arange(50) % 3 * 7
    expected = matching(queries, options, group)
    similarity = F.normalize(queries, dim=-1) @ F.normalize(options, dim=-1).T
    for row in range(50):
        own = similarity[row][group == group[row]]
        assert expected[0][row] == float(similarity[row, row] >= own.max() - 1e-5)
    monkeypatch.setattr(clip, "_CHUNK", 4)
    assert all(map(torch.equal, matching(queries, options, group), expected))
