"""How a batch is computed: without random numbers that nothing needs, and without waiting for the device."""

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from datamodules.channel import draws
from datamodules.channel.impairments import Noise
from tests.datamodules.test_module import build, first


def test_nothing_is_drawn_where_nothing_is_random(tmp_path, monkeypatch):
    module = build(tmp_path)
    expected = first(module)["csi"]

    def drawn(*_):
        raise AssertionError("random numbers were drawn")

    monkeypatch.setattr(draws, "_keys", drawn)
    assert torch.equal(first(module)["csi"], expected)
    with pytest.raises(AssertionError, match="drawn"):
        first(build(tmp_path, views=[Noise((10.0, 20.0))]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_is_made_without_waiting_for_the_gpu(tmp_path):
    module = build(tmp_path, num_beams=4, extras=["map", "domain"], views=[Noise((10.0, 20.0))])
    rows = move_data_to_device(next(iter(module.train_dataloader())), torch.device("cuda"))
    expected = module.finish(rows)["csi"]  # moves the tables
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = module.finish(rows)["csi"]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(made, expected)
