import numpy as np
import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.impairments import CommonPhase, Noise
from datamodules.channel.ofdm import OFDM
from datamodules.channel.transforms import kept_energy, to_csi
from datamodules.errors import InputError
from foundation import CsiNet, FineTune, load_encoder
from foundation.baselines.feedback import paths_of
from foundation.cli import run
from foundation.link_metrics import LinkMeanDb, LinkQuantile
from foundation.models.csifeedback import CsiFeedback
from foundation.nets.csinetplus import CSINetPlus
from heads import Feedback
from tests.datamodules.rays import random_site
from tests.datamodules.test_module import build
from tests.foundation.models.test_csiclip import fit
from tests.foundation.towers import batch_norms, save_checkpoint


def small(**settings):
    torch.manual_seed(0)
    return CSINetPlus(**{"code_size": 8, "rows": 8, "antennas": 4, "blocks": 2, **settings})


def channels(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 1, 4, 16, dtype=torch.complex64, generator=generator) * 1e-6


def few_users(tmp_path, **settings):
    settings = {"bs": Array(1, 4), "ofdm": OFDM(16, 2e6), "batch_size": 32, **settings}
    return build(tmp_path / "sites", [random_site("a", 250)], **settings)


def test_error_equals_numpys_over_uneven_batches_and_links_without_power():
    model = CsiFeedback(small()).eval()
    csi = torch.cat([channels(7), channels(3, seed=1)])
    csi[4] = 0
    with torch.no_grad():
        compared = [model.compare({"csi": part}) for part in (csi[:7], csi[7:])]
    assert [len(part["error"]) for part in compared] == [6, 3]
    metric = LinkMeanDb()
    expected = []
    for part in compared:
        metric.update(part["error"])
        for rebuilt, link in zip(part["rebuilt"].numpy(), part["csi"].numpy(), strict=True):
            angles = np.fft.fft(np.fft.ifft(link[0], axis=-1), axis=-2).T[:8]
            target = angles / np.linalg.norm(angles)
            place = np.unravel_index(np.abs(target).argmax(), target.shape)
            target = target * np.exp(-1j * np.angle(target[place]))
            expected.append(np.linalg.norm(rebuilt - target) ** 2 / np.linalg.norm(target) ** 2)
    assert metric.compute().item() == pytest.approx(10 * np.log10(np.mean(expected)), abs=1e-4)
    assert np.mean(expected) > 0.1


def test_matching_pursuit_of_hundreds_of_paths_is_left_out(tmp_path):
    assert [paths_of(numbers) for numbers in (2, 32, 194, 195)] == [0, 10, 64, 0]
    assert paths_of(32, num_receive=2) == 0
    assert [paths_of(32, bs=bs) for bs in (Array(32, 1), Array(4, 8), Array(1, 16, polarization="vh"))] == [10, 0, 0]
    model = CsiFeedback(small(code_size=195)).eval()
    model._control(model.compare({"csi": channels(2)}) | {})
    assert model.controls["pursuit_nmse_db"].denominator == 0


def test_matching_pursuit_for_a_rectangle_is_left_out(tmp_path):
    data, model = few_users(tmp_path, bs=Array(2, 2)), CsiFeedback(small(code_size=6))
    [tested] = fit(model, data, tmp_path, epochs=1).test(model, datamodule=data, verbose=False)
    assert "test/pca_nmse_db" in tested
    assert "test/pursuit_nmse_db" not in tested, "its paths are those of a linear array"


def test_target_is_the_clean_channel_whatever_phase_is_observed():
    model = CsiFeedback(small()).eval()
    clean = channels(5)
    turned = clean * torch.polar(torch.ones(5), torch.arange(5.0))[:, None, None, None]
    compared = model.compare({"csi": turned + 0.3 * channels(5, seed=1), "clean_csi": clean})
    assert torch.equal(compared["target"], model.autoencoder.observe(clean)[0])
    assert torch.equal(compared["csi"], clean)
    same = model.compare({"csi": turned, "clean_csi": clean})
    assert torch.allclose(same["error"], model.compare({"csi": clean})["error"], atol=1e-5)
    assert not torch.allclose(compared["error"], same["error"], atol=1e-3), "the network sees the observation"


def test_a_batch_without_power_trains_nothing(monkeypatch):
    model, logged = CsiFeedback(small()), []
    monkeypatch.setattr(model, "log", lambda name, *_, **__: logged.append(name))
    # on several GPUs batch norm is a collective operation, which each process enters as often as the others
    entered = batch_norms(model)
    model.training_step({"csi": channels(3)}, 0)
    expected, logged[:] = entered[:], []
    entered.clear()
    loss = model.training_step({"csi": torch.zeros_like(channels(3))}, 0)
    assert entered == expected
    assert loss == 0
    loss.backward()
    model.validation_step({"csi": torch.zeros_like(channels(3))}, 0)
    model.test_step({"csi": torch.zeros_like(channels(3))}, 0)
    assert model.val_metrics["nmse_db"].denominator == 0
    # several processes wait for what each of them logs
    means = ("nmse_db", "csi_nmse_db", "cosine", "kept_energy", "se_ratio", "rate", "perfect_rate")
    expected = ["train/loss", *(f"{stage}/{name}" for stage in ("val", "test") for name in means)]
    assert sorted(logged) == sorted([*expected, "test/pursuit_nmse_db"])
    assert all(p.grad.abs().sum() == 0 for p in model.autoencoder.parameters())


@pytest.mark.parametrize("observation", [None, [Noise((20, 20)), CommonPhase()]])
def test_training_learns_logs_and_is_tested_with_its_controls(observation, tmp_path):
    data = few_users(tmp_path, observation=observation, ofdm=OFDM(16, 1e6))
    model = CsiFeedback(small(), lr=1e-2)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    trainer = fit(model, data, tmp_path, epochs=1)
    first = trainer.callback_metrics["val/nmse_db"].item()
    trainer = fit(model, data, tmp_path, epochs=8)
    logged = trainer.callback_metrics
    assert logged["val/nmse_db"] < first - 1
    assert not torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), before)
    [tested] = trainer.test(model, datamodule=data, verbose=False)
    assert set(tested) == {
        f"test/{name}"
        for name in ("nmse_db", "csi_nmse_db", "cosine", "kept_energy", "se_ratio", "rate", "perfect_rate",
                     "pca_nmse_db", "pursuit_nmse_db", "chance_nmse_db")
    }  # fmt: skip
    assert tested["test/chance_nmse_db"] == pytest.approx(3.01, abs=0.01)
    assert tested["test/pca_nmse_db"] < 0
    assert tested["test/pursuit_nmse_db"] < 0
    assert 0 < tested["test/cosine"] < 1
    assert 0 < tested["test/se_ratio"] <= 1
    assert 0 < tested["test/rate"] < tested["test/perfect_rate"]
    batch = data.finish(next(iter(data.test_dataloader())))
    csi = batch.get("clean_csi", batch["csi"])
    snr = 10 * csi.abs().square().sum((1, 2)) / csi.abs().square().mean((1, 2, 3))[:, None]  # eq 4 at 10 dB an antenna
    assert tested["test/perfect_rate"] == pytest.approx((1 + snr).log2().mean().item(), rel=0.02)
    assert tested["test/kept_energy"] == pytest.approx(
        kept_energy(batch.get("clean_csi", batch["csi"]), 8).mean().item(), abs=0.1
    )


def test_a_training_that_has_no_loss_any_more_ends_before_its_checkpoint(tmp_path):
    model = CsiFeedback(small())
    model.autoencoder.rebuilder[0].weight.data[0] = torch.nan
    with pytest.raises(InputError, match="train/loss is nan after epoch 1: lower the learning rate, or look for NaN"):
        fit(model, few_users(tmp_path), tmp_path, epochs=2)


def test_error_of_the_csi_counts_what_the_cut_loses(tmp_path):
    data = few_users(tmp_path)
    model = CsiFeedback(small())
    trainer = fit(model, data, tmp_path, epochs=1)
    [tested] = trainer.test(model, datamodule=data, verbose=False)
    errors = []
    for rows in data.test_dataloader():
        csi = data.finish(rows)["csi"]
        _, scale = model.autoencoder.observe(csi)
        with torch.no_grad():
            again = to_csi(model.eval()(csi), 16, scale=scale)
        errors.append((again - csi).abs().square().sum((1, 2, 3)) / csi.abs().square().sum((1, 2, 3)))
    assert tested["test/csi_nmse_db"] == pytest.approx(10 * torch.cat(errors).mean().log10().item(), abs=1e-3)


def test_prediction_tells_each_links_error(tmp_path):
    data = few_users(tmp_path)
    model = CsiFeedback(small(bits=2))
    trainer = fit(model, data, tmp_path, epochs=1)
    rows = trainer.predict(model, datamodule=data)
    assert set(rows[0]) == {"code", "nmse", "position", "site", "user", "los"}
    assert sum(len(part["user"]) for part in rows) == 249
    assert torch.cat([part["nmse"] for part in rows]).isfinite().all()
    assert set(torch.cat([part["code"] for part in rows]).unique().tolist()) <= {-0.75, -0.25, 0.25, 0.75}
    batch = {key: torch.zeros(2) for key in ("position", "site", "user", "los")}
    csi = channels(2)
    csi[1] = 0
    assert model.predict_step({"csi": csi, **batch}, 0)["nmse"].isnan().tolist() == [False, True]


def test_the_code_of_a_checkpoint_serves_any_head(tmp_path):
    model = CsiFeedback(small(), lr=1e-2)
    save_checkpoint(model, tmp_path / "x.ckpt")
    csi = channels(4)
    encoder = load_encoder(tmp_path / "x.ckpt").eval()
    assert torch.equal(encoder(csi), model.eval().autoencoder(csi))
    tuned = FineTune(lambda width: Feedback(width, 4, 16, (4, 4), 0, 32, 1, 2), checkpoint=str(tmp_path / "x.ckpt"))
    assert tuned({"csi": csi}).shape == (4, 4, 16)


def test_the_program_trains_it(street_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = "{class_path: CsiNet, init_args: {code_size: 8, antennas: 4, bits: 4}}"
    args = ["fit", "--model", "CsiFeedback", "--model.autoencoder", network, "--data", "ChannelDataModule"]
    args += [*street_data, "--data.bs.cols", "4", "--data.ofdm.num_subcarriers", "32"]
    args += ["--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    commands = run(args)
    assert isinstance(commands.model.autoencoder, CsiNet)
    assert commands.trainer.callback_metrics["val/nmse_db"].isfinite()


def test_a_run_ends_with_its_table_and_pictures_and_another_starts_from_it(street_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    network = "{class_path: CsiNet, init_args: {code_size: 8, antennas: 4, bits: 4}}"
    args = ["fit", "--model", "CsiFeedback", "--model.autoencoder", network, "--data", "ChannelDataModule"]
    args += [*street_data, "--data.bs.cols", "4", "--data.ofdm.num_subcarriers", "32", "--trainer.accelerator", "cpu"]
    args += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--experiment", "x"]
    args += ["--trainer.max_epochs", "1"]
    run([*args, "--run_id", "one", "--then_test", "true"])
    out = capsys.readouterr().out
    assert "| 8 numbers a link, 32 bits" in out
    assert "Test metric" not in out  # Lightning's list of all metrics
    assert {file.stem for file in (tmp_path / "runs/x/one/plots").iterdir()} == {"errors", "channels"}
    start = str(tmp_path / "runs/x/one/checkpoints/best.ckpt")
    again = run([*args, "--run_id", "two", "--model.start_from", start, "--model.lr", "1e-12"])
    weights = torch.load(start, weights_only=True)["state_dict"]
    assert all(torch.allclose(value, weights[name], atol=1e-9) for name, value in again.model.named_parameters())
    with pytest.raises(InputError, match="does not fit this CsiFeedback"):
        run([*args, "--run_id", "three", "--model.start_from", start, "--model.autoencoder.code_size", "4"])


def test_quantiles_are_those_of_all_links():
    metric = LinkQuantile(0.1)
    values = torch.rand(101, generator=torch.Generator().manual_seed(0))
    metric.update(values[:7])
    metric.update(values[7:])
    assert metric.compute().item() == pytest.approx(np.quantile(values.numpy(), 0.1), abs=1e-6)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # torchmetrics, of a metric without values
def test_the_quantile_of_no_link_is_nan():
    assert LinkQuantile(0.5).compute().isnan()
