import pytest
import torch
from lightning.pytorch import Trainer

from datamodules.channel.impairments import CommonPhase, Noise
from foundation.runtime.probe import CollapseAlarm
from tests.datamodules.test_module import build
from tests.foundation.towers import tiny_clip


def fit(model, data, tmp_path, epochs=2, **settings):
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, **settings,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return trainer


@pytest.mark.parametrize("views", [None, [], [Noise((10, 20)), CommonPhase()]])
def test_pre_training_learns_and_logs(views, tmp_path):
    data = build(tmp_path / "sites", views=views)
    model = tiny_clip(lr=3e-3)
    trainer = fit(model, data, tmp_path, epochs=1)
    first = trainer.callback_metrics["val/loss"].item()
    trainer = fit(model, data, tmp_path, epochs=6)
    logged = trainer.callback_metrics
    assert logged["val/loss"] < first
    for name in ("csi_to_cir", "cir_to_csi"):
        assert 0 <= logged[f"val/{name}/retrieval_top1"] <= logged[f"val/{name}/retrieval_top5"] <= 1
    assert "val/probe/los/balanced_accuracy" in logged
    assert logged["val/embedding_spread"] > 0.1
    assert model.trained_on["snr_db"] == ([10, 20] if views else None)


def test_towers_see_their_own_view():
    model = tiny_clip()
    seen = {}
    model.csi_encoder.register_forward_pre_hook(lambda _, args: seen.__setitem__("csi", args[0]))
    model.cir_encoder.register_forward_pre_hook(lambda _, args: seen.__setitem__("cir", args[0]))
    one, other = torch.randn(2, 4, 1, 4, 8, dtype=torch.complex64)
    model(one, other)
    assert torch.equal(seen["csi"], one)
    assert torch.equal(seen["cir"], other)
    model(one)
    assert torch.equal(seen["cir"], one), "the paper's clean pairs"


def test_collapse_is_reported_once(tmp_path):
    data, model = build(tmp_path / "sites"), tiny_clip(lr=1e-12)
    with torch.no_grad():
        for parameter in model.csi_encoder.parameters():
            parameter.zero_()
        model.csi_encoder.net[0].bias.fill_(1.0)
        model.csi_encoder.net[1].bias.fill_(1.0)
    with pytest.warns(UserWarning, match="the embeddings have collapsed: val/embedding_spread is 0.000") as caught:
        fit(model, data, tmp_path, epochs=3)
    assert sum("collapsed" in str(w.message) for w in caught) == 1
    assert CollapseAlarm("val/embedding_spread").threshold == 0.1


def test_probe_leaves_the_model_alone(tmp_path):
    weights = []
    for probe in (True, False):
        data, model = build(tmp_path / "sites"), tiny_clip()
        if not probe:
            model.configure_callbacks = list
        fit(model, data, tmp_path)
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_statistics_come_from_the_train_side(tmp_path):
    data, model = build(tmp_path / "sites"), tiny_clip(lr=1e-12)
    fit(model, data, tmp_path, epochs=1)
    csi = data.sample()["csi"]
    assert len(csi) == len(data.sides["train"])
    assert model.csi_encoder.scale == pytest.approx((1 / csi.abs().square().mean().sqrt()).item(), rel=1e-5)


def test_prediction_names_its_rows(tmp_path):
    data, model = build(tmp_path / "sites"), tiny_clip()
    trainer = fit(model, data, tmp_path, epochs=1)
    rows = trainer.predict(model, datamodule=data)
    assert set(rows[0]) == {"features", "csi_embedding", "cir_embedding", "position", "site", "user", "los"}
    assert sum(len(part["user"]) for part in rows) == 248


def test_the_plateau_schedule_waits_for_a_validation(tmp_path):
    model = tiny_clip(schedule="plateau")
    trainer = fit(model, build(tmp_path / "sites"), tmp_path, epochs=3, check_val_every_n_epoch=2)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 1, "one validation in three epochs"
