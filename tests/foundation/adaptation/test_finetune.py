import dataclasses
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from matplotlib.collections import LineCollection

from datamodules.channel.arrays import Array
from datamodules.channel.impairments import Noise
from datamodules.channel.motion import Sequence
from datamodules.channel.ofdm import OFDM
from datamodules.errors import InputError
from datamodules.sites.environment import Environment
from datamodules.sites.recording import Recording
from foundation import EnvironmentTransformer, PositionFeatures
from foundation.adaptation.finetune import FineTune
from foundation.models.csiclip import CSICLIP
from foundation.nets.resnet import ResNet
from foundation.runtime.figures import log_figures
from heads import LOS, Beam, Feedback, Joint, Positioning, Prediction
from tests.datamodules.rays import random_site
from tests.datamodules.test_module import build
from tests.foundation.towers import TinyEncoder, save_checkpoint, tiny_clip


@pytest.fixture
def checkpoint(tmp_path):
    model = tiny_clip()
    model.csi_encoder.scale.fill_(1e5)
    save_checkpoint(model, tmp_path / "x.ckpt")
    return str(tmp_path / "x.ckpt")


@pytest.fixture
def data(tmp_path):
    return build(tmp_path / "sites", bs=Array(1, 4), ofdm=OFDM(8), num_beams=4)


def fit(model, data, tmp_path, epochs=1):
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return trainer


@pytest.mark.parametrize("mode", ["probe", "finetune", "scratch", "control"])
def test_modes_train_what_they_say(mode, checkpoint, data, tmp_path):
    model = FineTune(lambda n: Beam(n, num_beams=4), checkpoint=checkpoint, mode=mode)
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    head = {name: value.clone() for name, value in model.head.state_dict().items()}
    fit(model, data, tmp_path)
    moved = any(
        not torch.equal(value, before[name]) for name, value in model.encoder.net.state_dict(prefix="net.").items()
    )
    assert moved == (mode in ("finetune", "scratch"))
    assert any(not torch.equal(value, head[name]) for name, value in model.head.state_dict().items())
    pretrained = torch.equal(before["net.0.weight"], tiny_clip().csi_encoder.net[0].weight)
    assert pretrained == (mode in ("probe", "finetune"))
    # statistics come with the pre-trained weights, and are taken anew without
    assert (model.encoder.scale == 1e5) == (mode in ("probe", "finetune"))
    name = "CSICLIP" if mode in ("probe", "finetune") else "TinyEncoder"
    assert model.describe() == {"model": name, "head": "beam", "mode": mode}


@pytest.mark.parametrize("mode", ["probe", "control", "finetune"])
def test_training_a_head_moves_nothing_of_a_frozen_encoder(mode, data, tmp_path):
    encoder = ResNet("resnet18", width=0.25)  # with its own norm, whose statistics move in training mode
    model = CSICLIP(encoder, TinyEncoder(), embed_dim=8)
    save_checkpoint(model, tmp_path / "norm.ckpt")
    model = FineTune(lambda n: LOS(n), checkpoint=str(tmp_path / "norm.ckpt"), mode=mode)
    model.encoder.prepare(data.sample())
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    fit(model, data, tmp_path, epochs=2)
    after = model.encoder.state_dict()
    moved = [name for name, value in before.items() if not torch.equal(value, after[name])]
    if mode == "finetune":
        assert {"net.conv1.weight", "net.bn1.running_mean"} <= set(moved), "load_encoder gives it in eval mode"
    else:
        assert not moved
    assert model.head.training


def test_a_frozen_encoder_is_in_eval_mode(checkpoint):
    model = FineTune(lambda n: LOS(n), checkpoint=checkpoint, mode="probe").train()
    assert model.head.training
    assert not model.encoder.training
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert FineTune(lambda n: LOS(n), checkpoint=checkpoint).train().encoder.training


def test_encoder_and_head_have_their_own_rates(checkpoint):
    model = FineTune(lambda n: LOS(n), checkpoint=checkpoint, lr=1e-2, encoder_lr=1e-4, schedule="constant")
    groups = model.configure_optimizers().param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {rates[id(p)] for p in model.encoder.parameters()} == {1e-4}
    assert {rates[id(p)] for p in model.head.parameters()} == {1e-2}
    assert all(group["weight_decay"] == 0 for group in groups for p in group["params"] if p.ndim <= 1)


def test_test_run_scores_and_draws(checkpoint, data, tmp_path):
    model = FineTune(lambda n: Positioning(n), checkpoint=checkpoint, lr=0.05)
    trainer = fit(model, data, tmp_path, epochs=3)
    [result] = trainer.test(model, datamodule=data, verbose=False)
    assert {"test/positioning/mean_m", "test/positioning/cdf90_m"} <= set(result)
    assert result["test/positioning/mean_m"] > 0
    rows = trainer.predict(model, datamodule=data)
    assert rows[0]["prediction"].shape == (32, 2)
    assert rows[0]["features"].shape == (32, 16)


def test_what_a_mode_lacks_is_said(checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"mode `probe` needs model\.checkpoint"):
        FineTune(lambda n: LOS(n), mode="probe")
    with pytest.raises(InputError, match=r"mode `scratch` needs model\.encoder"):
        FineTune(lambda n: LOS(n), mode="scratch")
    with pytest.raises(InputError, match="does not fit this TinyEncoder"):
        FineTune(lambda n: LOS(n), encoder=TinyEncoder(width=8), checkpoint=checkpoint)


def measured(**facts):
    """Return CSI without rays: no LOS label, and no positions unless they are given."""
    draw = torch.Generator().manual_seed(0)
    csi = torch.randn(80, 1, 4, 8, dtype=torch.complex64, generator=draw)
    position = facts.pop("position", torch.full((80, 3), torch.nan))
    return dataclasses.replace(random_site("a", 80), links=Recording.build(csi, position, **facts))


@pytest.mark.parametrize("stage", ["fit", "test"])
@pytest.mark.parametrize(
    "head", [lambda n: LOS(n), lambda n: Joint(n, [lambda m: Beam(m, num_beams=4), LOS])], ids=["los", "joint"]
)
def test_data_without_the_label_are_refused(head, stage, checkpoint, tmp_path):
    data = build(tmp_path / "sites", [measured()], num_beams=4)
    model = FineTune(head, checkpoint=checkpoint)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    with pytest.raises(InputError, match=r"head LOS needs los, which no link of the train side has"):
        getattr(trainer, stage)(model, datamodule=data)


def test_positions_are_asked_of_the_train_side(checkpoint, tmp_path):
    with pytest.raises(InputError, match="head Positioning needs position, which the data lack"):
        fit(FineTune(lambda n: Positioning(n), checkpoint=checkpoint), build(tmp_path / "a", [measured()]), tmp_path)
    data = build(tmp_path / "b", [measured(position=torch.rand(80, 3))])
    data.sides["train"].sites[0].links.position.fill_(torch.nan)  # only those of other sides are known
    with pytest.raises(InputError, match="head Positioning needs position, which no link of the train side has"):
        fit(FineTune(lambda n: Positioning(n), checkpoint=checkpoint), data, tmp_path)


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_other_sizes_of_the_data_are_refused_before_training(stage, checkpoint, tmp_path):
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    beam = FineTune(lambda n: Beam(n, num_beams=64), checkpoint=checkpoint)
    with pytest.raises(InputError, match=r"num_beams=64 but the data have 4 beams: set model\.head\.num_beams and"):
        getattr(trainer, stage)(beam, datamodule=build(tmp_path / "sites", num_beams=4))
    feedback = FineTune(lambda n: Feedback(n, 4, 16, (4, 4), width=8, layers=1, heads=2), checkpoint=checkpoint)
    with pytest.raises(InputError, match=r"\(4, 16\), but the data hold \(4, 8\): set its num_antennas"):
        getattr(trainer, stage)(feedback, datamodule=build(tmp_path / "sites"))


def test_what_an_encoder_reads_must_be_in_the_data(data, tmp_path):
    sizes = {"width": 16, "layers": 1, "shared_layers": 0, "heads": 2}
    model = FineTune(lambda n: LOS(n), EnvironmentTransformer(**sizes), mode="scratch")
    with pytest.raises(InputError, match=r"EnvironmentTransformer reads map, geometry, which the data lack: add"):
        fit(model, data, tmp_path)
    model = FineTune(lambda n: LOS(n), PositionFeatures(), mode="scratch")
    nowhere = build(tmp_path / "nowhere", [measured(los=torch.ones(80, dtype=torch.int8))])
    with pytest.raises(InputError, match=r"PositionFeatures reads position, which the data lack$"):
        fit(model, nowhere, tmp_path)


def test_stations_that_no_model_was_told_of_are_refused(checkpoint, tmp_path):
    first, second = random_site("a", 80), random_site("b", 80, seed=1)
    second.paths.position.copy_(first.paths.position)
    data = build(tmp_path / "sites", [first, second], base_stations=2)
    with pytest.raises(InputError, match=r"csi of axes \(B R T K\), got shape \(\d+, 2, 1, 4, 8\).*base_stations"):
        fit(FineTune(lambda n: LOS(n), checkpoint=checkpoint), data, tmp_path)


def test_a_label_that_the_data_lack_is_named(checkpoint, tmp_path):
    model = FineTune(lambda n: Beam(n, num_beams=4), checkpoint=checkpoint)
    with pytest.raises(InputError, match=r"head Beam needs beam, beam_power, which the data lack: set data\.num_beams"):
        fit(model, build(tmp_path / "sites"), tmp_path)


def test_pictures_say_what_they_are_of(checkpoint, tmp_path, monkeypatch):
    site = random_site("a", 150)
    houses = (np.array([[-60.0, 10.0], [-10.0, 10.0], [-10.0, 40.0]]),)
    object.__setattr__(site, "environment", Environment(houses, np.array([9.0]), (-100.0, -100.0, 100.0, 100.0)))
    data = build(tmp_path / "sites", [site], num_labels=40)
    drawn = {}
    monkeypatch.setattr(
        "foundation.adaptation.finetune.log_figures", lambda _, draw, line: drawn.update(draw(), line=line)
    )
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    model = FineTune(lambda n: Positioning(n), checkpoint=checkpoint)
    trainer = fit(model, data, tmp_path)
    assert "val/positioning/mean_m" in trainer.progress_bar_metrics
    assert "val/positioning/median_m" not in trainer.progress_bar_metrics
    trainer.test(model, datamodule=data, verbose=False)
    count = len(data.sides["test"])
    assert drawn["line"] == (
        f"CSICLIP positioning finetune, 40 training links, random split, seed 3, {count} links shown"
    )
    axes = drawn["error_map"].axes[0]
    assert [len(c.get_segments()) for c in axes.collections if isinstance(c, LineCollection)] == [3]
    assert [len(line.get_xdata()) for line in axes.lines if line.get_label() == "training users"] == [40]


def test_a_caption_stands_below_every_picture(tmp_path):
    from heads.figures import new_figure

    figure, _ = new_figure("title")
    trainer = SimpleNamespace(log_dir=str(tmp_path), loggers=[], is_global_zero=True)
    log_figures(trainer, lambda: {"x": figure}, "what it is of")
    assert figure.get_supxlabel() == "what it is of"
    assert (tmp_path / "plots" / "x.png").is_file()


def starting(start_from, **settings):
    return FineTune(lambda n: LOS(n), TinyEncoder(), mode="scratch", lr=1e-12, start_from=start_from, **settings)


def test_training_starts_from_another_run(checkpoint, data, tmp_path):
    torch.manual_seed(5)
    first = FineTune(lambda n: LOS(n), TinyEncoder(), mode="scratch")
    save_checkpoint(first, tmp_path / "first.ckpt")
    whole, head, encoder = (
        starting(start)
        for start in (str(tmp_path / "first.ckpt"), {"head": str(tmp_path / "first.ckpt")}, {"csi": checkpoint})
    )
    for model in (whole, head):
        fit(model, data, tmp_path)
        assert torch.allclose(model.head.layers[0].weight, first.head.layers[0].weight)
        assert model.training
    assert whole.encoder.scale == 1, "statistics of the input come with the weights"
    assert torch.allclose(whole.encoder.net[0].weight, first.encoder.net[0].weight)
    assert head.encoder.scale != 1
    assert not torch.allclose(head.encoder.net[0].weight, first.encoder.net[0].weight)
    with pytest.raises(InputError, match=r"^model\.start_from names 'csi', but FineTune has encoder, head$"):
        fit(encoder, data, tmp_path)


def test_starting_from_another_model_is_one_line(checkpoint, data, tmp_path):
    message = r"checkpoint .*x\.ckpt, of CSICLIP, does not fit this FineTune: \d+ missing"
    with pytest.raises(InputError, match=message) as said:
        fit(starting(checkpoint), data, tmp_path)
    assert "unexpected (csi_encoder.scale" in str(said.value)
    assert "\n" not in str(said.value)


class Past(TinyEncoder):
    input_axes: ClassVar = {"csi": "B N R T K"}

    def forward(self, csi):
        return super().forward(csi.mean(1))


def test_encoders_see_the_last_snapshot_or_all(checkpoint, tmp_path):
    sequence = Sequence(snapshots=5, speed=(1.0, 2.0))
    data = build(tmp_path / "sites", sequence=sequence, observation=[Noise(snr_db=(10, 10))])
    batch = data.sample()
    for encoder, seen in ((TinyEncoder(), batch["csi"][:, -1]), (Past(), batch["csi"])):
        model = FineTune(lambda n: LOS(n), encoder, mode="scratch")
        fit(model, data, tmp_path)
        model.eval()
        assert torch.equal(model.features(batch, encoder), encoder.encode({"csi": seen}))
        encoder.prepare({"csi": seen})
        scale = encoder.scale.clone()
        model.prepare_from(data)
        assert encoder.scale == scale
    model = FineTune(lambda n: LOS(n), Past(), mode="scratch")
    with pytest.raises(InputError, match=r"encoder Past reads several snapshots: set data\.sequence"):
        fit(model, build(tmp_path / "sites"), tmp_path)


@pytest.mark.parametrize("kind", ["filter", "direct"])
def test_predicted_channels_are_in_the_scale_of_the_data(kind, checkpoint, tmp_path):
    data = build(tmp_path / "sites", sequence=Sequence(snapshots=6, speed=(0.1, 0.2)))
    model = FineTune(lambda n: Prediction(n, kind), checkpoint=checkpoint)
    trainer = fit(model, data, tmp_path, epochs=2)
    [result] = trainer.test(model, datamodule=data, verbose=False)
    assert result["test/prediction/nmse_db"] < (-10 if kind == "filter" else 3)
    [rows, *_] = trainer.predict(model, datamodule=data)
    truth = data.finish(next(iter(data.predict_dataloader())))
    assert rows["prediction"].shape == (32, 1, 1, 4, 8)
    prediction, target = rows["prediction"], truth["next_csi"]
    assert 1e-3 < prediction.norm() ** 2 / target.norm() ** 2 < 3, "after two epochs the layers alone are far from done"
    error = (prediction - target).abs().square().sum((1, 2, 3, 4)) / target.abs().square().sum((1, 2, 3, 4))
    assert error.mean() < (0.1 if kind == "filter" else 2), "not on the scale of the data, or not of these links"


def test_prediction_needs_a_sequence_and_one_station(checkpoint, data, tmp_path):
    with pytest.raises(InputError, match=r"head Prediction needs next_csi, which the data lack: set data\.sequence"):
        fit(FineTune(lambda n: Prediction(n), checkpoint=checkpoint), data, tmp_path)
    with pytest.raises(InputError, match=r"head Prediction is for one base station: set model\.base_stations to 1"):
        FineTune(lambda n: Prediction(n), checkpoint=checkpoint, base_stations=2)
    with pytest.raises(InputError, match=r"head Feedback is for one base station"):  # it would rebuild the last one
        FineTune(lambda n: Feedback(n), checkpoint=checkpoint, base_stations=2)


def test_a_joint_head_reads_the_past_and_takes_its_size_from_the_data(checkpoint, tmp_path):
    data = build(tmp_path / "sites", sequence=Sequence(snapshots=4, speed=(0.1, 0.2)))
    heads = [LOS, lambda n: Prediction(n, "direct", hidden=8)]
    model = FineTune(lambda n: Joint(n, heads), checkpoint=checkpoint)
    trainer = fit(model, data, tmp_path)
    [result] = trainer.test(model, datamodule=data, verbose=False)
    assert {"test/joint/accuracy", "test/joint/nmse_db"} <= set(result)
