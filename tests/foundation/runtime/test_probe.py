import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from datamodules.dataset import ChannelDataset
from foundation import ChannelTransformer, Encoder, EnvironmentTransformer, FineTune, PositionFeatures
from foundation.adaptation import finetune
from foundation.cli import user_error
from foundation.losses.clip import CLIPLoss
from foundation.losses.ntxent import NTXentLoss
from foundation.models.zeroshot import similarities
from foundation.nets.resnet import ResNet
from foundation.runtime.probe import CollapseAlarm, OnlineProbe
from heads import LOS
from tests.datamodules.rays import random_site
from tests.datamodules.test_module import build
from tests.foundation.models.test_csiclip import fit
from tests.foundation.towers import tiny_clip

META = torch.device("meta")


class Elsewhere:
    device = META


def batch(rows=4):
    return {"los": torch.arange(rows, dtype=torch.int8) % 2}


def step(probe, rows):
    torch.manual_seed(rows)
    probe.on_train_batch_end(None, None, {"features": torch.randn(rows, 8) * 1e-3 + 5}, batch(rows), 0)


def test_a_resumed_probe_follows_the_model_with_all_its_state():
    probe = OnlineProbe(8)
    step(probe, 4)
    resumed = OnlineProbe(8)
    resumed.load_state_dict(copy.deepcopy(probe.state_dict()))
    for name, value in probe.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[name])
    # as on CUDA: a parameter stays the same object, which otherwise holds for no device without data
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        resumed.on_fit_start(Trainer(accelerator="cpu", logger=False), Elsewhere())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert all(value.device == META for value in resumed.net.state_dict().values())
    moments = [value for state in resumed.optimizer.state.values() for key, value in state.items() if key != "step"]
    assert len(moments) == 4
    assert all(value.device == META for value in moments)


def test_a_probe_follows_the_model_where_nothing_is_fitted():
    probe = OnlineProbe(8)
    probe.on_validation_start(None, Elsewhere())
    assert all(value.device == META for value in probe.net.state_dict().values())
    assert all(metric.device == META for metric in probe.metrics.values())


def test_a_probe_learns_from_batches_of_one():
    probe = OnlineProbe(8)
    before = probe.head.layers.weight.clone()
    for _ in range(200):
        step(probe, 1)
    assert not torch.equal(probe.head.layers.weight, before)
    assert probe.net[0].running_mean == pytest.approx(5, rel=1e-2)
    assert torch.isfinite(probe.net[0].running_var).all()


def test_a_probe_validates_by_what_it_has_learned_of_the_features():
    probe = OnlineProbe(2)
    with torch.no_grad():
        probe.head.layers.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        probe.head.layers.bias.copy_(torch.tensor([0.5, 0.0]))
        probe.net[0].running_mean.fill_(3.0)
    seen = {"features": torch.full((6, 2), 4.0)}  # above the mean, so in sight; all alike, of no spread of their own
    probe.on_validation_batch_end(None, None, seen, {"los": torch.ones(6, dtype=torch.int8)}, 0)
    assert probe.metrics["accuracy"].compute() == 1


@pytest.mark.parametrize(("spread", "warned"), [(0.099, True), (0.101, False), (float("nan"), False)])
def test_the_alarm_is_given_below_its_threshold(spread, warned):
    alarm = CollapseAlarm("x")
    trainer = SimpleNamespace(callback_metrics={"x": torch.tensor(spread)}, sanity_checking=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        alarm.on_validation_end(trainer, None)
    assert bool(caught) is alarm.warned is warned


@pytest.mark.parametrize(("train", "batch_size"), [(1, 32), (3, 1)])
def test_one_link_a_batch_trains_and_one_validates(train, batch_size, tmp_path):
    data = build(tmp_path / "sites", [random_site("a", 60)], batch_size=batch_size)
    links = data.sides["all"].links
    data.sides["train"] = ChannelDataset(data.sides["all"].sites, links[:train])
    data.sides["validation"] = ChannelDataset(data.sides["all"].sites, links[-1:])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the embeddings have collapsed")
        warnings.filterwarnings("error", message="std\\(\\): degrees of freedom")
        trainer = fit(tiny_clip(), data, tmp_path, epochs=1)
    assert trainer.callback_metrics["val/embedding_spread"].isnan(), "one link has no spread"
    assert torch.isfinite(trainer.callback_metrics["val/loss"])


def test_batch_norm_of_one_link_is_one_line():
    tower = ResNet("resnet18", width=0.25, norm="batch")
    with pytest.raises(ValueError, match="Expected more than 1 value") as raised:
        tower(torch.randn(1, 1, 4, 8, dtype=torch.complex64))
    line = user_error(raised.value)
    assert line.startswith("batch normalisation cannot learn from a batch of one link: give a larger data.batch_size")


@pytest.mark.filterwarnings("error:std")
@pytest.mark.parametrize("normalize", ["global", "link"])
def test_statistics_of_one_link_are_numbers(normalize):
    tower = ResNet("resnet18", width=0.25, norm="group", normalize=normalize)
    csi = torch.randn(1, 1, 4, 8, dtype=torch.complex64)
    tower.prepare({"csi": csi})
    assert torch.isfinite(tower(csi)).all()


class Pooled(Encoder):
    """A tower as a user writes one: tokens, and layers beyond them that it names."""

    num_features, token_shape = 4, (8, 16)

    def __init__(self):
        super().__init__()
        self.embed, self.last = torch.nn.Linear(4, 16), torch.nn.Linear(16, 4)

    def tokens(self, batch):
        return self.embed(batch["csi"].abs().flatten(1, 2).transpose(1, 2))

    def forward(self, csi):
        return self.last(self.tokens({"csi": csi}).mean(1))

    def beyond_tokens(self):
        return self.last.parameters()


SMALL = {"width": 32, "layers": 1, "shared_layers": 1, "heads": 2, "embed_dim": 16}
TOWERS = {
    "channel": lambda: ChannelTransformer(num_antennas=4, num_subcarriers=8, patch=(2, 4), **SMALL),
    "angle_delay": lambda: ChannelTransformer(4, 8, (2, 4), domain="angle_delay", pool="all", **SMALL),
    "environment": lambda: EnvironmentTransformer(map_patch=32, corridor=2, echoes=2, **SMALL),
    "resnet": lambda: ResNet("resnet18", width=0.25, norm="group"),
    "position": PositionFeatures,
    "of a user": Pooled,
}


def links(count):
    torch.manual_seed(0)
    shapes = {"map": (1, 64, 64), "geometry": (8,), "position": (3,), "bs_position": (3,)}
    rows = {key: torch.rand(count, *shape) for key, shape in shapes.items()}
    return {**rows, "csi": torch.randn(count, 1, 4, 8, dtype=torch.complex64), **batch(count)}


@pytest.mark.parametrize("mode", ["scratch", "finetune", "probe", "control"])
@pytest.mark.parametrize("tokens", [None, 2])
@pytest.mark.parametrize("tower", TOWERS)
def test_every_parameter_that_asks_for_a_gradient_gets_one(tower, tokens, mode, monkeypatch):
    encoder = TOWERS[tower]()
    if tokens and encoder.token_shape is None:
        pytest.skip("has no tokens")
    monkeypatch.setattr(finetune, "find_encoder", lambda *_: encoder)
    monkeypatch.setattr(finetune, "model_name", str)
    model = FineTune(LOS, encoder, checkpoint="x.ckpt", mode=mode, tokens=tokens)
    model._loss(model._predictions(links(4)), links(4)).backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle, "several processes wait for every gradient"
    assert any(p.requires_grad for p in model.encoder.parameters()) == (mode in ("scratch", "finetune"))


@pytest.mark.parametrize("tower", TOWERS)
def test_towers_take_a_batch_of_no_links(tower):
    encoder = TOWERS[tower]().eval()
    assert encoder.encode(links(0)).shape == (0, encoder.num_features)
    if encoder.token_shape is not None:
        assert encoder.tokens(links(0)).shape == (0, *encoder.token_shape)


def test_contrastive_logits_are_single_precision_under_autocast():
    a, b = torch.randn(2, 64, 16)
    loss, other = CLIPLoss(0.01), NTXentLoss()
    options, index = torch.randn(64, 3, 16), torch.arange(64) % 32
    masks = index.unsqueeze(1) == index, torch.ones(64, 64, dtype=torch.bool)
    expected = loss(a, b), loss.local(a, b), similarities(a, options), other(a, *masks)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(a, b), loss.local(a, b), similarities(a, options), other(a, *masks)
    for one, value in zip(found, expected, strict=True):
        torch.testing.assert_close(one, value, rtol=1e-6, atol=1e-6)
