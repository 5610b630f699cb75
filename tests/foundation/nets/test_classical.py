import math
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from datamodules.channel.impairments import Noise
from datamodules.channel.motion import Sequence
from datamodules.errors import InputError
from datamodules.module import ChannelDataModule
from foundation import ClassicalPredictor, CNNTransformer, FineTune
from foundation.baselines import prediction
from foundation.evaluation.prediction_controls import control_table, snr
from heads import Prediction
from tests.datamodules.test_module import build
from tests.foundation.models.test_csiclip import fit

SIZE = {"snapshots": 6, "num_antennas": 4, "num_subcarriers": 8}
PREDICTORS = ("hold", "zero", "ar1", "kalman", "wiener", "link_ar", "pad", "pad_vector")


def data(folder, snr_db=(10, 20)):
    sequence = Sequence(6, 1e-3, {"static": 1, "pedestrian": 1})
    return build(folder / "sites", sequence=sequence, observation=[Noise(snr_db)])


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """The metrics of the test of each predictor, and what they predict."""
    folder, found = tmp_path_factory.mktemp("classical"), {}
    for name in ("hold", "wiener"):
        model = FineTune(lambda d: Prediction(d, "given"), ClassicalPredictor(name, **SIZE), mode="control")
        trainer = fit(model, data(folder), folder, epochs=1, limit_train_batches=1)
        metrics = trainer.test(model, datamodule=data(folder), verbose=False)[0]
        found[name] = (metrics, trainer.predict(model, datamodule=data(folder)))
    return found


@pytest.mark.parametrize("name", ["hold", "wiener"])
def test_a_row_of_its_own_is_the_row_beside_others(name, tested):
    metrics, _ = tested[name]
    assert metrics["test/prediction/nmse_db"] == pytest.approx(metrics[f"test/prediction/{name}_nmse_db"], abs=1e-4)
    assert metrics["test/prediction/zero_nmse_db"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["test/prediction/limit_nmse_db"] < metrics["test/prediction/wiener_nmse_db"]


def test_rows_tell_doppler_and_snr(tested):
    metrics, _ = tested["hold"]
    # the fastest pedestrian has 6 km/h, at 3.5 GHz and 1 ms
    fastest = 6 / 3.6 * 3.5e9 / 3e8 * 1e-3
    assert 0 < metrics["test/prediction/fd_t"] < metrics["test/prediction/fd_t_max"] <= 1.01 * fastest
    assert 14 < metrics["test/prediction/snr_db"] < 16
    table = control_table({name.rsplit("/", 1)[-1]: value for name, value in metrics.items()})
    assert "f_D T 0.009 (at most 0.019), SNR 14 dB" in table.splitlines()[0]
    assert [line.split()[1] for line in table.splitlines()[-1:]] == ["limit,"]


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_batch_of_no_links_has_no_prediction(name):
    predictor = ClassicalPredictor(name, **SIZE)
    empty = {"csi": torch.zeros(0, 6, 1, 4, 8, dtype=torch.complex64)}
    assert predictor.encode(empty).shape == (0, predictor.num_features)


def test_links_without_power_have_no_snr():
    clean = torch.zeros(3, 2, 1, 4, 8, dtype=torch.complex64)
    clean[0], clean[1] = 1e-5, 1e-7
    seen = clean + 1e-6 * torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1, 1, 1)
    assert snr(seen, clean).nan_to_num(-1).tolist() == pytest.approx([20.0, 90.0, -1], abs=1e-4)


def short(folder, snapshots=2, horizon=1):
    return build(folder / "sites", sequence=Sequence(snapshots, 1e-3, {"static": 1}, horizon=horizon))


def test_predictors_that_need_a_longer_past_are_left_out(tmp_path):
    model = FineTune(lambda d: Prediction(d, "given"), ClassicalPredictor("hold", **SIZE), mode="control")
    trainer = fit(model, short(tmp_path), tmp_path, epochs=1, limit_train_batches=1)
    metrics = trainer.test(model, datamodule=short(tmp_path), verbose=False)[0]
    assert "test/prediction/link_ar_nmse_db" in metrics
    assert "test/prediction/pad_nmse_db" not in metrics


@pytest.mark.parametrize(
    ("predictor", "head", "snapshots", "message"),
    [
        ("hold", {"kind": "given", "horizons": 2}, 6, "reads 128 features as the prediction, but the encoder has 64"),
        ("hold", {"horizons": 2}, 6, "the head predicts 2 snapshots, but the data hold 1: set horizons"),
        ("hold", {}, 2, "the filter needs a past of 3 snapshots to predict 1, got 2"),
        ("hold", {"kind": "direct", "num_antennas": 2}, 6, "predicts 2 antenna pairs and 8 subcarriers"),
        ("wiener", {"kind": "given"}, 4, "the predictor wiener needs a past of 6 snapshots, the data hold 4"),
        ("pad", {"kind": "given"}, 2, "the predictor pad needs a past of 3 snapshots, the data hold 2"),
    ],
)
def test_data_of_another_length_or_size_are_refused(predictor, head, snapshots, message, tmp_path):
    model = FineTune(lambda d: Prediction(d, **head), ClassicalPredictor(predictor, **SIZE), mode="control")
    with pytest.raises(InputError, match=message):
        fit(model, short(tmp_path, snapshots), tmp_path, epochs=1)


def test_predictors_are_scored_once_on_the_same_data(tmp_path, monkeypatch):
    fitted, sample = [], ChannelDataModule.sample
    monkeypatch.setattr(ChannelDataModule, "sample", lambda self: fitted.append(1) or sample(self))

    def scores(name, snr_db):
        model = FineTune(lambda d: Prediction(d, "given"), ClassicalPredictor(name, **SIZE), mode="control")
        options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
        trainer = Trainer(default_root_dir=tmp_path, **options)
        trainer.test(model, datamodule=data(tmp_path, snr_db), verbose=False)
        found = {key.rsplit("/", 1)[-1]: float(value) for key, value in trainer.callback_metrics.items()}
        own = ("nmse_db", "nmse_antenna_db", "beam_top1", "rate_loss", "macs", "cpu_ms")
        return {key: found.pop(key) for key in own}, found

    own, classical = scores("hold", (10, 20))
    assert own["nmse_db"] == pytest.approx(classical["hold_nmse_db"], abs=1e-4)
    assert own["rate_loss"] == classical["hold_rate_loss"]
    other, again = scores("zero", (10, 20))
    assert len(fitted) == 1, "the second model is tested on the same data"
    assert again == classical
    assert other["nmse_db"] == pytest.approx(0.0, abs=1e-4)
    noisier = scores("hold", (0, 5))
    assert len(fitted) == 2
    assert noisier[1]["snr_db"] < 6 < classical["snr_db"]


def test_several_horizons_and_the_cost_of_a_prediction(tmp_path):
    torch.manual_seed(0)
    sequence = Sequence(6, 1e-3, {"pedestrian": 1}, horizon=2)
    module = build(tmp_path / "sites", sequence=sequence, observation=[Noise((20, 20))])
    size = {"channels": 4, "patch": (2, 4), "width": 16, "layers": 1, "heads": 2}
    head = partial(Prediction, horizons=2, kind="direct", layers=2, hidden=32)
    model = FineTune(head, CNNTransformer(6, 4, 8, **size), mode="scratch")
    trainer = fit(model, module, tmp_path, epochs=1, limit_train_batches=1)
    metrics = trainer.test(model, datamodule=module, verbose=False)[0]
    found = {key.rsplit("/", 1)[-1]: value for key, value in metrics.items()}
    for name in ("", "hold_", "limit_"):
        each = [10 ** (found[f"{name}nmse_db_{h}"] / 10) for h in (1, 2)]
        assert found[f"{name}nmse_db"] == pytest.approx(10 * math.log10(sum(each) / 2), abs=1e-3)
    assert found["hold_nmse_db_1"] < found["hold_nmse_db_2"]
    convolutions = 32 * 9 * (12 * 4 + 3 * 4 * 4) + 4 * 8 * 4 * 16
    block = 4 * 16 * (3 * 16 + 16 + 2 * 64)  # four tokens: queries, keys and values, their projection, and the MLP
    layers = 16 * 32 + 32 * 2 * 2 * 4 * 8
    attention = 2 * 4 * 4 * 16
    assert convolutions + block + layers <= found["macs"] <= convolutions + block + layers + attention
    assert found["cpu_ms"] > 0
    assert found["hold_macs"] == 0
    assert found["wiener_macs"] == 2 * 6 * 4 * 8, "one product for each horizon, snapshot and entry"
    assert all(found[f"{predictor}_cpu_ms"] > 0 for predictor in PREDICTORS)


def test_beams_are_chosen_by_what_is_predicted(tested):
    metrics, _ = tested["hold"]
    assert 0.5 < metrics["test/prediction/beam_top1"] == metrics["test/prediction/hold_beam_top1"] <= 1
    assert 0 <= metrics["test/prediction/rate_loss"] == metrics["test/prediction/hold_rate_loss"] < 0.5


def test_predictions_are_in_the_scale_of_the_data(tested, tmp_path):
    _, batches = tested["hold"]
    module = data(tmp_path)
    seen = torch.cat([module.finish(rows)["csi"] for rows in module.predict_dataloader()])
    predicted = torch.cat([batch["prediction"] for batch in batches])
    assert predicted.dtype == torch.complex64
    torch.testing.assert_close(predicted[:, 0], seen[:, -1])


@pytest.mark.parametrize("name", PREDICTORS)
def test_features_are_the_prediction(name):
    past = torch.randn(5, 6, 1, 4, 8, dtype=torch.complex64)
    encoder = ClassicalPredictor(name, horizons=2, **SIZE)
    encoder.prepare({"csi": past, "next_csi": torch.randn(5, 2, 1, 4, 8, dtype=torch.complex64)})
    features = encoder(past)
    assert features.shape == (5, encoder.num_features)
    head = Prediction(encoder.num_features, "given", horizons=2)
    torch.testing.assert_close(head(features, past), encoder.predict(past))


def test_parameters_are_fitted_to_the_clean_past_and_the_noise_in_it():
    g = torch.Generator().manual_seed(0)
    clean = torch.randn(40, 6, 1, 4, 8, dtype=torch.complex64, generator=g).cumsum(1)
    clean *= torch.logspace(-7, -5, 40).reshape(-1, 1, 1, 1, 1)
    noise = (
        torch.randn(clean.shape, dtype=clean.dtype, generator=g)
        * clean.abs().square().mean((1, 2, 3, 4)).sqrt()[:, None, None, None, None]
    )
    share = torch.tensor([0.1, 0.3]).repeat(20).reshape(-1, 1, 1, 1, 1)  # noise over power, and so the mean SNR is 5
    batch = {"csi": clean + share.sqrt() * noise, "clean_csi": clean, "next_csi": clean[:, :1]}
    encoder = ClassicalPredictor("kalman", **SIZE)
    encoder.prepare(batch)
    assert encoder.snr.item() == pytest.approx(5, rel=0.03)
    assert encoder.rho.item() == pytest.approx(prediction.fit_ar1(clean), rel=1e-6)
    expected = prediction.kalman(batch["csi"], 1, float(encoder.rho), float(encoder.snr))
    torch.testing.assert_close(encoder.predict(batch["csi"]), expected)


def test_vector_prony_is_the_least_squares_of_the_last_snapshot():
    g = torch.Generator().manual_seed(0)
    past = torch.randn(2, 6, 1, 4, 8, dtype=torch.complex128, generator=g)
    fast = prediction.pad_vector(past, 2, order=3)
    for link, predicted in zip(past.numpy(), fast.numpy(), strict=True):
        snapshots = list(link.reshape(6, -1))
        weights = np.linalg.lstsq(np.stack(snapshots[2:5][::-1], 1), snapshots[5], rcond=None)[0]
        for step in range(2):
            snapshots.append(sum(w * snapshots[-1 - o] for o, w in enumerate(weights)))
            np.testing.assert_allclose(predicted[step].ravel(), snapshots[-1], rtol=1e-9)
    turns = torch.exp(1j * torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64))[:, None] ** torch.arange(7)
    waves = torch.einsum("pn,ptk->ntk", turns, torch.randn(3, 4, 8, dtype=torch.complex128, generator=g))[None, :, None]
    torch.testing.assert_close(prediction.pad_vector(waves[:, :6], 1, order=3), waves[:, 6:], atol=1e-6, rtol=0)
    assert not prediction.pad_vector(torch.zeros_like(past), 1).any()


def test_refuses_what_is_none():
    with pytest.raises(InputError, match=r"predictor must be one of hold, .*, got prophet"):
        ClassicalPredictor("prophet")
    with pytest.raises(ValueError, match="reads 64 features as the prediction, but the encoder has 16"):
        Prediction(16, "given")(torch.randn(2, 16), torch.randn(2, 6, 1, 4, 8, dtype=torch.complex64))
