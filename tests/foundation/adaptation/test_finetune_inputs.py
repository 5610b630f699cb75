"""What a head reads: the tokens of a tower, the features of several base stations."""

import pytest
import torch

from datamodules.errors import InputError
from foundation import Calibrator, ChannelTransformer, FineTune, PositionFeatures, TwinCalibration
from foundation.nets.handcrafted import HandFeatures
from heads import LOS, Positioning
from tests.datamodules.test_module import build
from tests.foundation.models.test_envchannel import SMALL, fit, town_site


@pytest.mark.parametrize("stations", [1, 2])
def test_a_head_may_read_the_tokens_of_a_tower(stations, tmp_path):
    first = town_site("a", 0)
    second = town_site("b", 1)
    second.paths.position.copy_(first.paths.position)
    datamodule = build(tmp_path / "sites", [first, second], base_stations=stations if stations > 1 else None)
    tower = ChannelTransformer(num_antennas=4, num_subcarriers=8, patch=(2, 4), pool="all", **SMALL)
    model = FineTune(
        lambda d: Positioning(d, hidden=8), tower, mode="control", tokens=3, base_stations=stations
    )  # fmt: skip
    assert model.head.in_features == stations * 5 * 3
    csi = datamodule.finish(next(iter(datamodule.val_dataloader())))["csi"]
    tokens = tower.tokens({"csi": csi.reshape(-1, *csi.shape[-3:])})
    assert tokens.shape[1:] == tower.token_shape == (5, 32)
    assert torch.allclose(tower.projection(tokens.flatten(1)), tower(csi.reshape(-1, *csi.shape[-3:])), atol=1e-6)
    assert not torch.allclose(model.features({"csi": csi}, tower), model.features({"csi": csi}, tower)), "dropped"
    model.eval()
    expected = model.reduce[1](tokens).reshape(len(csi), -1)
    assert torch.allclose(model.features({"csi": csi}, tower), expected, atol=1e-6)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fit(model, datamodule, tmp_path, 1, test=True)
    moved = {key.split(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"reduce", "head"}


def test_tokens_are_not_asked_of_an_encoder_without():
    with pytest.raises(InputError, match="encoder that has tokens, such as a transformer tower"):
        FineTune(lambda d: Positioning(d), PositionFeatures(), mode="scratch", tokens=3)
    with pytest.raises(TypeError, match="PositionFeatures has no tokens"):
        PositionFeatures().tokens({})


def test_several_base_stations_are_concatenated(tmp_path):
    first = town_site("a", 0)
    second = town_site("b", 1)
    second.paths.position.copy_(first.paths.position)
    datamodule = build(tmp_path / "sites", [first, second], base_stations=2)
    model = FineTune(
        lambda d: Positioning(d, hidden=8),
        ChannelTransformer(num_antennas=4, num_subcarriers=8, patch=(2, 4), **SMALL),
        mode="scratch", base_stations=2,
    )  # fmt: skip
    assert model.head.in_features == 32
    batch = datamodule.finish(next(iter(datamodule.val_dataloader())))
    features = model.features(batch, model.encoder)
    for station in range(2):
        alone = model.encoder(batch["csi"][:, station])
        assert torch.allclose(features[:, 16 * station : 16 * (station + 1)], alone, atol=1e-6)
    fit(model, datamodule, tmp_path, 1, test=True)
    with pytest.raises(InputError, match=r"model\.base_stations is 2"):
        model.features({"csi": batch["csi"][:, 0]}, model.encoder)
    hand = FineTune(lambda d: Positioning(d, hidden=8), HandFeatures(4, 8), mode="control", base_stations=2)
    hand.prepare_from(datamodule)  # statistics of links, not of users
    assert hand.features(batch, hand.encoder).shape == (len(batch["csi"]), 2 * (4 + 8 + 1))


@pytest.mark.parametrize(
    "model",
    [
        lambda: FineTune(lambda d: LOS(d), PositionFeatures(8), mode="scratch"),
        lambda: FineTune(lambda d: LOS(d), Calibrator(8), mode="scratch"),
        lambda: TwinCalibration(8),
    ],
)
def test_what_reads_positions_needs_those_of_all_users(model, tmp_path):
    site = town_site("a", 0)
    site.paths.position[3] = torch.nan
    datamodule = build(tmp_path / "sites", [site], split="random")
    with pytest.raises(InputError, match="position, which is unknown for some users of site a: leave those users out"):
        model().check_settings(datamodule, "fit")
    FineTune(lambda d: Positioning(d), HandFeatures(4, 8), mode="scratch").check_settings(datamodule, "fit")
