from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from datamodules.channel.arrays import Array
from datamodules.channel.codebook import cosine
from datamodules.channel.ofdm import OFDM
from datamodules.channel.synthesis import synthesize
from datamodules.errors import InputError
from datamodules.sites.paths import Paths
from foundation.checkpoint import load_encoder, load_model, load_part
from foundation.models.calibration import TwinCalibration
from tests.foundation.towers import batch_norms

T = 16


def street(count, seed=0):
    """Users of a street at two fidelities: one path, whose angle a coarse twin gets wrong by two beams."""
    generator = torch.Generator().manual_seed(seed)
    x, y = 20 + 60 * torch.rand(count, generator=generator), 80 * torch.rand(count, generator=generator) - 40
    position = torch.stack([x, y, torch.full_like(x, 1.5)], dim=1)
    variants = []
    for shift in (2 / T * 2, 0.0):
        sine = (torch.sin(torch.atan2(y, x)) + shift).clamp(-0.99, 0.99)
        aod = torch.stack([torch.asin(sine), torch.full_like(x, torch.pi / 2)], dim=1)[:, None]
        second = torch.stack([-torch.asin(sine), torch.full_like(x, torch.pi / 2)], dim=1)[:, None]
        gain = torch.tensor([1e-5, 3e-6]).to(torch.complex64).expand(count, 2)
        paths = Paths.build(
            gain=gain, delay=torch.tensor([1e-7, 3e-7]).expand(count, 2), aod=torch.cat([aod, second], 1),
            aoa=torch.zeros(count, 2, 2) + 1, position=position, bounces=torch.zeros(count, 2), max_paths=2,
        )  # fmt: skip
        variants.append(synthesize(paths, Array(1, T), Array(), OFDM(4)))
    where = {"site": torch.zeros(count, dtype=torch.long), "user": torch.arange(count)}
    bs_position = torch.tensor([0.0, 0.0, 10.0]).expand(count, 3)
    los = (y > 0).to(torch.int8)
    return {"csi": torch.stack(variants, 1), "position": position, "bs_position": bs_position, "los": los, **where}


class Users(torch.utils.data.Dataset):
    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch["los"])

    def __getitems__(self, rows):
        return {key: value[rows] for key, value in self.batch.items()}


class Street(LightningDataModule):
    """What the model asks of a datamodule, over batches made by hand."""

    def __init__(self):
        super().__init__()
        self.sides = {"train": Users(street(400)), "test": Users(street(60, seed=1))}

    def finish(self, rows):
        return rows

    def statistics(self):
        batch = self.sides["train"].batch
        offset = batch["position"] - batch["bs_position"]
        return {"position_mean": offset.mean(0), "position_std": offset.std(0)}

    def _loader(self, side, shuffle):
        return DataLoader(self.sides[side], batch_size=50, shuffle=shuffle, collate_fn=lambda batch: batch)

    def train_dataloader(self):
        return self._loader("train", True)

    def val_dataloader(self):
        return self._loader("test", False)

    test_dataloader = predict_dataloader = val_dataloader


def model(**settings):
    torch.manual_seed(0)
    return TwinCalibration(**{"antennas": T, "lr": 5e-3, **settings})


def trainer(tmp_path, epochs=1):
    return Trainer(
        default_root_dir=tmp_path, max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def test_calibration_learns_what_the_twin_gets_wrong(tmp_path):
    net, data, run = model(codewords=2), Street(), trainer(tmp_path, 8)
    run.fit(net, datamodule=data)
    assert "val/cosine" in run.callback_metrics
    [tested] = run.test(net, datamodule=data, verbose=False)
    assert tested["test/cosine"] > tested["test/uncalibrated_cosine"] + 0.1
    assert tested["test/cosine"] > tested["test/direct_cosine"] + 0.1
    for name in ("", "uncalibrated_", "grid_", "neighbours_"):
        assert tested[f"test/{name}cosine"] < tested["test/target_cosine"] + 1e-3
        assert tested[f"test/{name}rate"] < tested["test/target_rate"] + 1e-2
        assert tested[f"test/{name}cosine_p10"] <= tested[f"test/{name}cosine"]
        assert tested[f"test/{name}cosine_of_2"] == pytest.approx(tested[f"test/{name}cosine"], abs=1e-6)
        assert tested[f"test/{name}cosine_of_8"] > tested[f"test/{name}cosine_of_1"]
        assert 0 <= tested[f"test/{name}hit_rate"] <= tested["test/target_hit_rate"] == 1
        assert tested[f"test/{name}hit_rate_of_2"] == tested[f"test/{name}hit_rate"]
        assert tested[f"test/{name}hit_rate_of_1"] <= tested[f"test/{name}hit_rate_of_8"]
        assert tested["test/target_hit_rate_of_1"] == 1
    los = street(60, seed=1)["los"].float().mean().item()
    both = los * tested["test/cosine_los"] + (1 - los) * tested["test/cosine_nlos"]
    assert both == pytest.approx(tested["test/cosine"], abs=1e-5)
    rows = run.predict(net, datamodule=data)
    assert set(rows[0]) == {"weights", "codewords", "position", "site", "user", "los"}
    assert rows[0]["codewords"].shape == (50, 2)


def test_direct_is_the_cosine_of_the_two_channels(tmp_path):
    net, data = model(), Street()
    [tested] = trainer(tmp_path).test(net, datamodule=data, verbose=False)
    csi = data.sides["test"].batch["csi"]
    assert tested["test/direct_cosine"] == pytest.approx(cosine(csi[:, 1], csi[:, 0]).mean().item(), rel=1e-5)
    grid = [(net._known[0][:, :3] - p).norm(dim=1).argmin() for p in data.sides["test"].batch["position"]]
    known = net.feedback(net.links(data.sides["test"].batch), net._known[1][grid], 4)
    assert tested["test/grid_cosine"] == pytest.approx(cosine(csi[:, 1], known).mean().item(), abs=1e-6)
    near = [(net._known[0][:, :3] - p).norm(dim=1).argsort()[:4] for p in data.sides["test"].batch["position"]]
    weights = torch.stack([net._known[1][four].mean(0) for four in near])
    known = net.feedback(net.links(data.sides["test"].batch), weights, 4)
    assert tested["test/neighbours_cosine"] == pytest.approx(cosine(csi[:, 1], known).mean().item(), abs=1e-6)


@pytest.mark.parametrize("snr_db", [0.0, 10.0])
def test_pilots_have_the_snr_asked_for(snr_db):
    # with all codewords, orthogonal and of unit norm, the noise of an entry is that of a pilot
    net, links = model(snr_db=snr_db), model().links(street(200))
    error = net.feedback(links, torch.rand(200, T), T) - links["high"]
    share = error.abs().square().mean() / links["high"].abs().square().mean()
    assert 10 * share.log10().item() == pytest.approx(-snr_db, abs=0.15)


def test_labels_are_shares_of_the_weights_or_of_those_reported():
    csi = street(5)["csi"][:, 1]
    full, told = model().target(csi), model(labels="feedback", codewords=3).target(csi)
    assert full.sum(1).tolist() == pytest.approx([1] * 5)
    assert told.sum(1).tolist() == pytest.approx([1] * 5)
    assert ((full > 0).sum(1) == T).all()
    assert ((told > 0).sum(1) == 3).all()
    assert torch.equal(told.topk(3).indices, full.topk(3).indices)
    assert torch.allclose(model().target(1e3 * csi), full), "the scale of a link is not learned"


@pytest.mark.parametrize(
    ("reads", "moved"), [("both", (True, True)), ("twin", (True, False)), ("position", (False, True))]
)
def test_an_input_left_out_is_not_read(reads, moved):
    net, batch = model(reads=reads).eval(), street(6)
    low, place = batch["csi"][:, 0], (batch["position"] - batch["bs_position"]) / 100
    before = net(low, place)
    changed = [net(low.flip(2), place), net(low, place.flip(1))]
    moved = [not torch.allclose(after, before, atol=1e-5) for after in changed]
    assert moved == [reads != "position", reads != "twin"]


def test_links_without_power_count_in_nothing_unless_only_the_coarse_twin_lost_them(monkeypatch):
    net, batch, logged = model(), street(6), []
    monkeypatch.setattr(net, "log", lambda name, *_, **__: logged.append(name))
    batch["csi"] = batch["csi"].clone()
    batch["csi"][1] = 0
    batch["csi"][2, 0] = 0
    links = net.links(batch)
    assert links["position"].shape == (5, 3)
    assert net(links["low"], links["position"]).isfinite().all()
    # on several GPUs batch norm is a collective operation, which each process enters as often as the others
    entered = batch_norms(net)
    net.training_step(batch, 0)
    expected, logged[:] = entered[:], []
    entered.clear()
    batch["csi"][:] = 0
    loss = net.training_step(batch, 0)
    loss.backward()
    assert entered == expected
    assert loss == 0
    assert all(p.grad.abs().sum() == 0 for p in net.net.parameters() if p.grad is not None)
    net.eval()
    net._known = torch.zeros(5, 6), torch.ones(5, T)
    net.validation_step(batch, 0)
    net.test_step(batch, 0)
    # several processes wait for what each of them logs
    names = {f"test/{name}" for name in net.test_metrics} | {f"val/{name}" for name in net.val_metrics}
    assert set(logged) == {"train/loss", *names}
    assert all(float(metric.compute().isnan()) for metric in net.test_metrics.values())


def test_what_does_not_fit_is_named():
    batch = street(3)
    with pytest.raises(InputError, match=r"csi of \(2, R, 32, K\), low fidelity first, got \(2, 1, 16, 4\)"):
        TwinCalibration().links(batch)
    with pytest.raises(InputError, match="group the data by variant"):
        model().links({**batch, "csi": batch["csi"][:, 0]})
    with pytest.raises(InputError, match="group the data by variant"):
        model().predict_step({**batch, "csi": batch["csi"][:, 0]}, 0)
    with pytest.raises(InputError, match="codewords must be 1 to 16, the antennas, got 17"):
        model(codewords=17)


@pytest.mark.parametrize("bs", [Array(4, 4), Array(1, 8, polarization="cross")])
def test_the_codewords_are_those_of_a_linear_array(bs, tmp_path):
    data = Street()
    data.bs = bs
    with pytest.raises(InputError, match=r"a linear array of one polarisation.*data\.bs"):
        trainer(tmp_path).fit(model(), datamodule=data)


def test_a_checkpoint_brings_back_the_scale_of_positions(tmp_path):
    net, data, run = model(), Street(), trainer(tmp_path)
    run.fit(net, datamodule=data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = TwinCalibration.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert torch.equal(again.net.position_mean, net.net.position_mean)
    assert net.net.position_std[2] == 1, "all users at one height"


def test_a_checkpoint_holds_the_whole_calibrator(tmp_path):
    net, data, run = model(reads="twin"), Street(), trainer(tmp_path)
    run.fit(net, datamodule=data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    batch = street(5)
    wanted = net.eval()(batch["csi"][:, 0], batch["position"] - batch["bs_position"])
    for calibrator in (load_encoder(tmp_path / "x.ckpt"), load_part(tmp_path / "x.ckpt", "calibrator")):
        assert torch.equal(calibrator(batch["csi"][:, 0], batch["position"], batch["bs_position"]), wanted)
    with pytest.raises(InputError, match="made for 16 transmit antennas T, got 8"):
        calibrator(batch["csi"][:, 0, :, :8], batch["position"], batch["bs_position"])


def test_checkpoints_of_older_releases_load(tmp_path):
    net = model()
    net.net.position_mean.fill_(3)
    old = {}
    for key, value in net.state_dict().items():
        old[key.removeprefix("net.") if "position" in key else key.replace("net.unet.", "net.")] = value
    assert {"position_mean", "net.out.weight"} < set(old)
    torch.save({"state_dict": old, "hyper_parameters": {}}, tmp_path / "old.ckpt")
    again = model(start_from=str(tmp_path / "old.ckpt"))
    load_model(again, tmp_path / "old.ckpt")
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in again.state_dict().items())


def test_pilot_noise_belongs_to_the_user_whatever_the_order_of_the_sites(tmp_path):
    def known(order):
        net, data = model(snr_db=0.0), Street()
        for side in data.sides.values():
            side.sites = [SimpleNamespace(name=name, area="street") for name in order]
        net.on_test_epoch_end = lambda: None  # no figures
        trainer(tmp_path).test(net, datamodule=data, verbose=False)
        links = net.links(street(6))
        links["site"] = torch.tensor([order.index(name) for name in ("a", "a", "a", "b", "b", "b")])
        links["user"] = torch.arange(3).repeat(2)
        links["high"] = links["high"][:1].expand_as(links["high"])
        return net.feedback(links, torch.ones(6, T), 4)

    one, other = known(["a", "b"]), known(["b", "a"])
    assert torch.equal(one, other)
    assert not torch.allclose(one[:3], one[3:]), "each base station hears its own noise"
