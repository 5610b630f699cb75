from collections import Counter

import numpy as np
import pytest

from datamodules.dataset import ChannelDataset
from datamodules.errors import InputError
from datamodules.sides.balanced_sampler import BalancedSampler
from tests.datamodules.rays import random_site
from tests.datamodules.test_module import build

DOMAIN = np.array(["rare"] * 10 + ["some"] * 30 + ["many"] * 200)


def batches(world=1, rank=0, epoch=0, size=24):
    dataset = ChannelDataset([random_site("a", len(DOMAIN))])
    sampler = BalancedSampler(dataset, size, DOMAIN, 0, rank=rank, num_replicas=world)
    sampler.set_epoch(epoch)
    return list(sampler)


def shares(batch):
    return Counter(DOMAIN[batch].tolist())


def test_every_batch_has_as_many_links_of_each_domain():
    for batch in batches():
        assert max(shares(batch).values()) - min(shares(batch).values()) <= 2
        assert len(shares(batch)) == 3


def test_links_come_once_before_any_comes_again():
    served = np.concatenate(batches())
    assert len(served) == len(DOMAIN), "as long as an epoch without"
    for name, most in (("rare", 8), ("some", 3), ("many", 1)):
        times = Counter(served[DOMAIN[served] == name].tolist())
        assert max(times.values()) == most
        assert max(times.values()) - min(times.values()) <= 1
    other = np.concatenate(batches(epoch=1))
    assert not np.array_equal(served, other)
    assert set(other) != set(served), "other links of the frequent domain"


def test_ranks_share_out_the_batches_of_one_process():
    one, two = batches(size=48), [batches(2, rank) for rank in range(2)]
    for whole, *parts in zip(one, *two, strict=True):
        assert np.array_equal(whole, np.concatenate(parts))
        for part in parts:
            assert max(shares(part).values()) - min(shares(part).values()) <= 2


def test_the_module_balances_by_domain_labels(tmp_path):
    sites = [random_site("a", 200, city="uma"), random_site("b", 40, seed=1, city="umi")]
    module = build(tmp_path, sites, balance=["scenario"], batch_size=20)
    for rows in module.train_dataloader():
        assert abs(int((rows["site"] == 0).sum()) - int((rows["site"] == 1).sum())) <= 2
    assert {len(rows["user"]) for rows in module.test_dataloader()} != {0}
    with pytest.raises(InputError, match=r"data.balance names speed: choose among .*mobility"):
        build(tmp_path / "x", sites, balance=["speed"]).train_dataloader()
