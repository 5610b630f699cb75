from itertools import chain

import pytest

from datamodules.dataset import ChannelDataset, ShardedSampler
from tests.datamodules.rays import random_site


def batches(links, size, world=1, rank=0, **settings):
    return list(ShardedSampler(ChannelDataset([random_site("a", links)]), size, True, 0, rank, world, **settings))


@pytest.mark.parametrize(("links", "size"), [(100, 64), (65, 64), (128, 64), (1000, 128), (1, 64), (13, 64)])
def test_every_link_is_served_once_a_pass_in_batches_of_near_equal_size(links, size):
    served = batches(links, size)
    assert sorted(chain(*served)) == list(range(links))
    sizes = [len(batch) for batch in served]
    assert max(sizes) <= min(size, min(sizes) + 1)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("links", [96, 101])
def test_ranks_see_together_what_one_process_sees(world, links):
    one = batches(links, 4 * world)
    ranks = [batches(links, 4, world, rank) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {len(one)}
    for alone, *shares in zip(one, *ranks, strict=True):
        assert len({len(share) for share in shares}) == 1, "a gathered loss needs equal batches"
        assert abs(len(alone) - sum(map(len, shares))) < world
    together = [link for shares in zip(*ranks, strict=True) for share in shares for link in share]
    assert together == [*chain(*one)][: links - links % world]
    if links == 96:
        assert [[*chain(*shares)] for shares in zip(*ranks, strict=True)] == one
    dataset = ChannelDataset([random_site("a", links)])
    shares = [list(ShardedSampler(dataset, 4, False, rank=rank, num_replicas=world)) for rank in range(world)]
    assert sorted(chain(*chain(*shares))) == list(range(links)), "a link is repeated or left out"


@pytest.mark.parametrize("links", [1, 3, 8, 9, 33])
def test_all_ranks_serve_as_many_batches_of_an_evaluated_side(links):
    dataset = ChannelDataset([random_site("a", links)])
    shares = [list(ShardedSampler(dataset, 4, False, rank=rank, num_replicas=2)) for rank in range(2)]
    assert len({len(share) for share in shares}) == 1, "a rank would wait for the others"
    assert [[*chain(*share)] for share in shares] == [list(range(rank, links, 2)) for rank in range(2)]


def test_fewer_links_than_ranks_still_train():
    assert [batches(1, 4, 2, rank) for rank in range(2)] == [[[0]], [[0]]]


@pytest.mark.parametrize(("links", "world"), [(5, 2), (11, 4), (7, 3)])
def test_batches_of_one_link_are_never_empty(links, world):
    ranks = [batches(links, 1, world, rank) for rank in range(world)]
    assert {len(batch) for rank in ranks for batch in rank} == {1}
    assert {len(rank) for rank in ranks} == {links // world}
    assert len(ShardedSampler(ChannelDataset([random_site("a", links)]), 1, True, 0, 0, world)) == links // world


def test_epochs_differ_and_repeat_by_seed():
    sampler = ShardedSampler(ChannelDataset([random_site("a", 100)]), 10, True, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
