import json
import warnings

import numpy as np
import pytest
import torch

from datamodules import Noise
from datamodules.channel.motion import Sequence
from datamodules.errors import InputError
from foundation import ChannelTransformer, EnvChannel, FineTune, HandFeatures, PositionFeatures, embed, load_encoder
from foundation.contract import describe_data
from heads import LOS
from tests.datamodules.test_module import build
from tests.foundation.export.cases import DATA, TOWER
from tests.foundation.towers import save_checkpoint, tiny_clip


def saved(encoder, path, mean=-100.0):
    model = FineTune(lambda n: LOS(n), encoder, mode="scratch")
    model.trained_on = DATA | {"power_db": [mean, 5.0]}
    save_checkpoint(model, path)
    return path


def csi(users=10, level_db=-100.0, shape=(2, 4, 16)):
    draw = np.random.default_rng(0)
    values = draw.normal(size=(users, *shape)) + 1j * draw.normal(size=(users, *shape))
    return values * 10 ** (level_db / 20) / np.sqrt(2)


@pytest.fixture
def checkpoint(tmp_path):
    return saved(HandFeatures(4, 16), tmp_path / "x.ckpt")


def test_numpy_in_numpy_out(checkpoint):
    given = embed(checkpoint, csi(), batch_size=3)
    assert isinstance(given, np.ndarray)
    assert given.dtype == np.float32
    wanted = load_encoder(checkpoint)(torch.from_numpy(csi().astype(np.complex64)))
    assert np.allclose(given, wanted, atol=1e-4)
    assert embed(checkpoint, csi(0)).shape == (0, 21)


def test_csi_of_another_size_or_kind_is_one_line(checkpoint, tmp_path):
    for values, message in (
        (csi(shape=(4, 2, 16)), r"csi has \(R, T, K\) = \(4, 2, 16\), but the encoder was trained on \(2, 4, 16\)"),
        (csi().real, r"csi must be complex, of shape \(U, R, T, K\), got float64 \(10, 2, 4, 16\)"),
        (csi()[0], r"of shape \(U, R, T, K\), got complex128 \(2, 4, 16\)"),
        (np.full((1, 2, 4, 16), np.nan, complex), "NaN"),
    ):
        with pytest.raises(InputError, match=message):
            embed(checkpoint, values)
    with pytest.raises(InputError, match="reads position, bs_position, not csi"):
        embed(saved(PositionFeatures(8), tmp_path / "y.ckpt"), csi())


def test_power_far_from_training_is_warned_of_where_it_matters(checkpoint, tmp_path):
    with pytest.warns(UserWarning, match=r"power of csi is 0 dB, .* trained on -100 dB .*: multiply csi by 9.9e-06"):
        embed(checkpoint, csi(level_db=0.0))
    blind = saved(ChannelTransformer(**TOWER), tmp_path / "y.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embed(checkpoint, csi(level_db=-110.0))
        embed(blind, csi(level_db=0.0))


def test_a_checkpoint_without_a_contract_knows_what_its_encoder_knows(tmp_path):
    model = EnvChannel(ChannelTransformer(**TOWER), decoder=lambda n: _decoder(n))
    assert "data" not in save_checkpoint(model, tmp_path / "x.ckpt")
    assert embed(tmp_path / "x.ckpt", csi()).shape == (10, 128)
    with pytest.raises(InputError, match="channel tower was made for"):
        embed(tmp_path / "x.ckpt", csi(shape=(1, 4, 16)))


def _decoder(n):
    from heads import Feedback

    return Feedback(n, 8, 16, patch=(4, 4), width=16, layers=1, heads=2)


def test_a_checkpoint_tells_size_power_snr_and_doppler_of_its_data(tmp_path):
    sequence = Sequence(2, 1e-3, speed=(3.0, 30.0))
    data = build(tmp_path / "sites", views=[Noise((5.0, 25.0))], sequence=sequence)
    told = describe_data(data)
    batch = next(iter(data.train_dataloader()))
    csi = data.finish(batch)["csi"]
    assert told["csi"] == list(csi.shape[2:])
    assert (told["snapshots"], told["snr_db"]) == (2, [5.0, 25.0])
    level = 10 * csi.abs().square().mean((1, 2, 3, 4)).log10()
    assert abs(told["power_db"][0] - level.mean()) < 3
    carrier = data.sides["train"].sites[0].carrier_frequency
    assert told["doppler"] == pytest.approx([speed * carrier / 299_792_458 * 1e-3 for speed in (3, 30)])
    assert json.loads(json.dumps(told)) == told
    assert describe_data(object()) == {}
    model = tiny_clip()
    model.trained_on = told
    content = {"hyper_parameters": {}}
    model.on_save_checkpoint(content)
    assert content["data"] == told
