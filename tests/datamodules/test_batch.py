"""How a batch is computed: site by site, without random numbers that nothing needs or waiting for the device."""

import dataclasses
import zlib
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from datamodules.channel import draws
from datamodules.channel.arrays import Array
from datamodules.channel.codebook import beam_power, dft_codebook
from datamodules.channel.impairments import Noise
from datamodules.channel.motion import Sequence, draw_motion
from datamodules.channel.ofdm import OFDM, SPEED_OF_LIGHT
from datamodules.channel.synthesis import synthesize
from datamodules.maps.augmentation import WorldSymmetry
from tests.datamodules.rays import random_site
from tests.datamodules.test_module import build, first


def test_links_have_the_orientation_and_the_carrier_of_their_site(tmp_path):
    turns, carriers = ((0.0, 0.0, 0.0), (1.2, 0.3, -0.2)), (28e9, 3.5e9)
    sites = [
        dataclasses.replace(random_site(name, 20, seed), bs_orientation=torch.tensor(turn), carrier_frequency=carrier)
        for seed, (name, turn, carrier) in enumerate(zip("ab", turns, carriers, strict=True))
    ]
    bs, ue, ofdm = Array(2, 2, pattern="tr38901"), Array(1, 2, pattern="dipole"), OFDM(8)
    sequence = Sequence(2, 1e-3, speed=(5.0, 9.0))
    module = build(tmp_path, sites, bs=bs, ue=ue, num_beams=4, sequence=sequence)
    side = module.sides["all"]
    batch = module.finish(side.__getitems__(torch.randperm(len(side)).tolist()))
    for number, (site, turn, carrier) in enumerate(zip(sites, turns, carriers, strict=True)):
        links = batch["site"] == number
        user, turned = batch["user"][links], dataclasses.replace(bs, orientation=turn)
        area = torch.full_like(user, zlib.crc32(b"area"))
        motion = {"velocity": draw_motion(sequence, area, user).velocity, "times": torch.tensor([0.0, 1e-3, 2e-3])}
        csi = synthesize(site.paths[user], turned, ue, ofdm, **motion, wavelength=SPEED_OF_LIGHT / carrier)
        level = csi.abs().max()
        torch.testing.assert_close(batch["csi"][links] / level, csi[:, :2] / level, atol=1e-3, rtol=0)
        torch.testing.assert_close(batch["next_csi"][links] / level, csi[:, 2:] / level, atol=1e-3, rtol=0)
        power = beam_power(csi[:, 0], dft_codebook(bs, 4))
        torch.testing.assert_close(batch["beam_power"][links] / level**2, power / level**2, atol=1e-3, rtol=0)
        assert (batch["beam"][links] == power.argmax(1)).float().mean() > 0.9


def test_training_alone_draws_by_epoch_and_turns_the_world(tmp_path):
    module = build(tmp_path, observation=[Noise((10.0, 10.0))], symmetry=WorldSymmetry())
    rows = next(iter(module.train_dataloader()))
    module.trainer = SimpleNamespace(training=True, current_epoch=3)
    batch = module.on_after_batch_transfer(rows, 0)
    assert torch.equal(batch["csi"], module.finish(rows, epoch=3, training=True)["csi"])
    assert not torch.equal(batch["position"], rows["position"])
    other = module.finish(rows, epoch=4, training=True)
    assert not torch.equal(batch["csi"] - batch["clean_csi"], other["csi"] - other["clean_csi"])
    module.trainer.training = False
    batch = module.on_after_batch_transfer(rows, 0)
    assert torch.equal(batch["csi"], module.finish(rows)["csi"])
    assert torch.equal(batch["position"], rows["position"])


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
