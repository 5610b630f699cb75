import math
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from foundation.losses.ntxent import NTXentLoss


def pairs(index):
    """The masks of rows of equal index, and of all rows."""
    same = index.unsqueeze(1) == index
    return same, torch.ones_like(same)


def reference(q, positives, pool, temperature, negatives, count):
    """ConTwin eq 3, anchor by anchor and pair by pair."""
    q = q / np.linalg.norm(q, axis=1, keepdims=True)
    total = 0.0
    for i in range(len(q)):
        mine = [j for j in range(len(q)) if positives[i, j] and j != i]
        others = [j for j in range(len(q)) if pool[i, j] and j != i and j not in mine]
        distance = {j: 1 - q[i] @ q[j] for j in others}
        if negatives == "farthest":
            others = sorted(others, key=lambda j: -distance[j])[:count]
        elif negatives == "nearest":
            others = sorted(others, key=lambda j: distance[j])[:count]
        denominator = sum(math.exp(q[i] @ q[k] / temperature) for k in mine + others)
        for j in mine:
            total -= math.log(math.exp(q[i] @ q[j] / temperature) / denominator) / len(mine)
    return total / len(q)


@pytest.mark.parametrize("negatives", ["farthest", "nearest", "none"])
@pytest.mark.parametrize("group", [2, 3, 8, 24], ids=["one positive", "two", "many", "no negatives"])
@pytest.mark.parametrize("count", [None, 50, 2])
def test_equals_the_slow_reference(negatives, group, count):
    generator = torch.Generator().manual_seed(group)
    q = torch.randn(24, 6, dtype=torch.float64, generator=generator)
    index = torch.arange(24) // group
    loss = NTXentLoss(0.1, negatives, count).double()
    same, whole = pairs(index)
    expected = reference(q.numpy(), same.numpy(), whole.numpy(), 0.1, negatives, count or 3)
    assert loss(q, same, whole).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("negatives", ["farthest", "nearest", "none"])
@pytest.mark.parametrize("share", [0.0, 0.3], ids=["empty", "some"])
def test_negatives_come_from_the_pool_alone(negatives, share):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(24, 6, dtype=torch.float64, generator=generator)
    # a positive may be in the pool: it stays a positive
    positives, pool = (torch.rand(24, 24, generator=generator) < odds for odds in (0.15, share))
    value = NTXentLoss(0.2, negatives, 2).double()(q, positives, pool)
    expected = reference(q.numpy(), positives.numpy(), pool.numpy(), 0.2, negatives, 2)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_mining_keeps_the_ends_of_the_pool():
    angle = torch.tensor([0.0, 0.1, 0.5, 1.0, 3.0])
    q = torch.stack([angle.cos(), angle.sin()], 1)
    similarity, pool = q @ q.T, torch.tensor([[False, False, True, True, True]] + [[False] * 5] * 4)
    assert NTXentLoss(negatives="farthest", num_negatives=1)._mine(similarity, pool)[0].tolist() == [0, 0, 0, 0, 1]
    assert NTXentLoss(negatives="nearest", num_negatives=2)._mine(similarity, pool)[0].tolist() == [0, 0, 1, 1, 0]
    assert not NTXentLoss(num_negatives=4)._mine(similarity, pool)[1:].any(), "a pool that is too small is used whole"


def test_anchors_without_positives_add_nothing():
    q = torch.randn(6, 4, requires_grad=True)
    loss = NTXentLoss()
    alone = loss(q, *pairs(torch.arange(6)))
    alone.backward()
    assert alone.item() == 0
    assert not q.grad.any()
    assert loss.log_scale.grad.isfinite()
    index = torch.tensor([0, 0, 1, 2, 3, 4])
    two = NTXentLoss(negatives="none")(q, *pairs(index))
    two.backward()
    assert two > 0
    assert q.grad.isfinite().all()


def test_gradients_are_those_of_finite_differences():
    q = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    loss = NTXentLoss(0.3, "nearest", 4).double()
    assert torch.autograd.gradcheck(lambda x: loss(x, *pairs(torch.arange(12) // 3)), (q,))


def test_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="num_negatives must be positive"):
        NTXentLoss(num_negatives=0)
    with pytest.raises(ValueError, match="negatives must be one of"):
        NTXentLoss(negatives="hard")
    with pytest.raises(ValueError, match=r"pool must have shape \(4, 4\), got \(4, 3\)"):
        NTXentLoss()(torch.randn(4, 2), torch.eye(4) > 0, torch.ones(4, 3, dtype=torch.bool))


# --- over ranks


def inputs():
    generator = torch.Generator().manual_seed(7)
    q = torch.randn(32, 6, dtype=torch.float64, generator=generator)
    # positives of an anchor lie on both ranks, and so does its pool
    return q, pairs(torch.arange(32) % 8)[0], torch.rand(32, 32, generator=generator) < 0.5


def rank_main(rank, port, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results = []
    for negatives in ("farthest", "none"):
        q, positives, pool = (value.chunk(2)[rank] for value in inputs())
        q = q.clone().requires_grad_()
        loss = NTXentLoss(negatives=negatives).double()
        value = loss(q, positives, pool)
        value.backward()
        # what DDP does: the mean over ranks
        mean = torch.cat([value.detach().reshape(1), loss.log_scale.grad.reshape(1)])
        dist.all_reduce(mean)
        rows = [torch.empty_like(q.grad) for _ in range(2)]
        dist.all_gather(rows, q.grad)
        results.append({"mean": mean / 2, "grad": torch.cat(rows) / 2})
    if rank == 0:
        torch.save(results, out)
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = str(tmp_path / "rank0.pt")
    mp.spawn(rank_main, (port, out), nprocs=2)
    for negatives, two in zip(("farthest", "none"), torch.load(out, weights_only=True), strict=True):
        q, positives, pool = inputs()
        q.requires_grad_()
        loss = NTXentLoss(negatives=negatives).double()
        value = loss(q, positives, pool)
        value.backward()
        torch.testing.assert_close(two["mean"], torch.stack([value.detach(), loss.log_scale.grad]), rtol=1e-10, atol=0)
        torch.testing.assert_close(two["grad"], q.grad, rtol=1e-9, atol=1e-14)
