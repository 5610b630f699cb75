"""Muon, against timm's, which would iterate in bfloat16."""

from copy import deepcopy
from functools import partial

import pytest
import timm.optim.muon as reference
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from foundation.optim import muon
from foundation.optim.muon import Muon, hidden_matrices, orthogonal
from heads.layers import attention_blocks


@pytest.mark.parametrize("shape", [(24, 64), (64, 24), (32, 32)])
def test_matrices_become_orthogonal(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    [made] = orthogonal([matrix])
    torch.testing.assert_close(made, reference.zeropower_via_newtonschulz(
        matrix, 5, reference._COEFFICIENTS["quintic"], dtype=torch.float32
    ), atol=1e-4, rtol=1e-4)  # fmt: skip
    kept = values > 0.02 * values.sum()  # five iterations do not reach the smallest ones
    along = (u.mT @ made @ v.mT).diagonal()
    assert ((along - 1).abs()[kept] < 0.15).all()
    assert not orthogonal([torch.zeros(shape)])[0].any()


def parameters():
    draw = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((6, 10), (10, 6), (6, 10), (7,))]


def walk(optimizer, params, steps, seed):
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=draw)
        optimizer.step()


@pytest.mark.parametrize("together", [False, True])
def test_steps_equal_timms(together, monkeypatch):
    single = partial(reference.zeropower_via_newtonschulz, dtype=torch.float32)
    monkeypatch.setattr(reference, "zeropower_via_newtonschulz", single)
    monkeypatch.setattr(muon, "orthogonal", lambda matrices, **_: orthogonal(matrices, together))  # True on a GPU
    ours, theirs = parameters(), parameters()
    settings = {"lr": 0.01, "weight_decay": 0.1}
    one = Muon([{"params": ours[:3], "orthogonal": True}, {"params": ours[3:]}], **settings)
    twice = {"lr": 0.02, "weight_decay": 0.05}  # steps of its matrices are half as long
    matrices = reference.Muon([{"params": theirs[:3], "use_muon": True}], nesterov=True, **twice)
    rest = torch.optim.AdamW(theirs[3:], **settings)
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        for mine, its in zip(ours, theirs, strict=True):
            mine.grad = its.grad = torch.randn(mine.shape, generator=draw)
        for optimizer in (one, matrices, rest):
            optimizer.step()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-4)


class Operations(TorchDispatchMode):
    """Counts the operations that it sees."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **kwargs or {})


def test_matrices_of_one_shape_are_one_batch():
    draw = torch.Generator().manual_seed(2)
    shapes = [(48, 16), (16, 16), (48, 16), (16, 48), (48, 16), (16, 16)]
    matrices = [torch.randn(shape, generator=draw) for shape in shapes]
    torch.testing.assert_close(orthogonal(matrices, together=True), orthogonal(matrices), atol=1e-6, rtol=1e-6)

    def calls(count, together):
        matrix = torch.ones(16, 48)
        with Operations() as seen:
            orthogonal(count * [matrix], together)
        return seen.count

    assert calls(8, together=True) == calls(1, together=True)
    assert calls(8, together=False) == 8 * calls(1, together=False)


@pytest.mark.parametrize("fused", [False, True])
def test_training_goes_on_from_a_saved_state(fused):
    def start():
        params = parameters()
        return params, Muon([{"params": params[:2], "orthogonal": True}, {"params": params[2:]}], lr=0.01, fused=fused)

    params, optimizer = start()
    walk(optimizer, params, 3, seed=0)
    again, resumed = start()
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    for mine, its in zip(again, params, strict=True):
        mine.data.copy_(its.data)
    walk(optimizer, params, 2, seed=1)
    walk(resumed, again, 2, seed=1)
    assert all(torch.equal(mine, its) for mine, its in zip(again, params, strict=True))


def test_a_closure_has_gradients_and_parameters_without_one_stay():
    params = parameters()
    before = params[1].detach().clone()
    optimizer = Muon([{"params": params[:2], "orthogonal": True}, {"params": params[2:]}], lr=0.01)

    def closure():
        loss = params[0].square().sum()
        loss.backward()
        return loss

    first, second = optimizer.step(closure), optimizer.step(closure)
    assert second < first
    assert torch.equal(params[1], before)


def test_hidden_matrices_are_those_of_attention_blocks():
    model = nn.Sequential(nn.Linear(8, 8), attention_blocks(2, 8, 2), nn.Linear(8, 4))
    found = hidden_matrices(model)
    assert [tuple(p.shape) for p in found] == 2 * [(24, 8), (8, 8), (32, 8), (8, 32)]
