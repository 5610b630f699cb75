import inspect
import pickle

import pytest
import torch

import foundation
from datamodules.errors import DatasetNotFoundError, InputError
from foundation import ChannelTransformer, EnvChannel, FineTune, HandFeatures, load_encoder, load_part
from foundation.models.csiclip import CSICLIP
from foundation.nets.resnet import ResNet
from heads import LOS, Feedback
from tests.foundation.towers import TinyEncoder, save_checkpoint, tiny_clip


@pytest.fixture
def checkpoint(tmp_path):
    model = tiny_clip()
    model.csi_encoder.scale.fill_(7.0)
    save_checkpoint(model, tmp_path / "x.ckpt", **model.hparams)
    return tmp_path / "x.ckpt"


def test_encoder_comes_back_with_weights_and_statistics(checkpoint):
    encoder, original = load_encoder(checkpoint), tiny_clip().csi_encoder
    assert isinstance(encoder, TinyEncoder)
    assert encoder.scale == 7
    for name, value in original.net.state_dict().items():
        assert torch.equal(encoder.net.state_dict()[name], value)


class HalfEncoder(TinyEncoder):
    def __init__(self, twice: int = 8) -> None:
        super().__init__(twice // 2)


class Builder(FineTune):
    """Builds its encoder itself, of an argument that encoders have as well."""

    def __init__(self, width: int) -> None:
        super().__init__(lambda n: LOS(n), HalfEncoder(2 * width), mode="scratch")


def test_an_encoder_is_described_by_its_own_arguments(tmp_path):
    model = Builder(4)
    content = save_checkpoint(model, tmp_path / "x.ckpt")
    assert content["parts"]["encoder"]["init_args"] == {"twice": 8}
    assert load_encoder(tmp_path / "x.ckpt").num_features == 4


def test_an_encoder_comes_back_in_eval_mode(tmp_path):
    model = CSICLIP(ResNet("resnet18", width=0.25), TinyEncoder())
    save_checkpoint(model, tmp_path / "norm.ckpt")
    encoder, csi = load_encoder(tmp_path / "norm.ckpt"), torch.randn(3, 1, 4, 8, dtype=torch.complex64)
    assert not any(module.training for module in encoder.modules())
    # a row alone has the features that it has among others
    assert torch.allclose(encoder(csi)[:1], encoder(csi[:1]), atol=1e-5)
    assert load_encoder(tmp_path / "norm.ckpt", ResNet("resnet18", width=0.25)).training is False


def test_a_model_built_in_python_saves_no_live_object(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    assert content["hyper_parameters"] == {
        "embed_dim": 8, "temperature": 0.07, "lr": 8e-4, "weight_decay": 0.01, "schedule": "plateau",
        "start_from": None,
    }  # fmt: skip


def test_another_width_names_the_shapes(checkpoint):
    with pytest.raises(InputError, match=r"does not fit this TinyEncoder: 4 of another shape \(net.0.weight is \(16,"):
        load_encoder(checkpoint, TinyEncoder(width=32))


def test_another_model_names_the_keys(checkpoint):
    other = ResNet("resnet18", width=0.25)
    with pytest.raises(
        InputError, match=r"does not fit this ResNet: \d+ missing \(mean, std, net.conv1.weight, \.\.\.\)"
    ):
        load_encoder(checkpoint, other)


def test_wrong_checkpoint_of_a_whole_model_is_one_line(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    other = CSICLIP(TinyEncoder(), TinyEncoder(), embed_dim=4)
    with pytest.raises(
        InputError, match=r"the checkpoint, of CSICLIP, does not fit this CSICLIP: .*another shape"
    ) as caught:
        other.on_load_checkpoint(content)
    assert "\n" not in str(caught.value)


class Bomb:
    def __reduce__(self):
        return print, ("it ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged or no checkpoint"),
        (b"not a checkpoint at all", "is damaged or no checkpoint: give a .ckpt file of a run"),
        (pickle.dumps({"state_dict": Bomb()}), "is damaged or no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, capsys, content, message):
    file = tmp_path / "x.ckpt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_encoder(file)
    assert "it ran" not in capsys.readouterr().out


def test_a_file_of_another_program_is_refused(tmp_path):
    torch.save({"weights": torch.ones(2)}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="has no state_dict"):
        load_encoder(tmp_path / "x.ckpt")
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "y.ckpt")
    with pytest.raises(InputError, match="does not say which encoder it holds"):
        load_encoder(tmp_path / "y.ckpt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"checkpoint .*x\.ckpt does not exist"):
        load_encoder(tmp_path / "x.ckpt")


SMALL = {"width": 16, "layers": 1, "heads": 2}


def test_classes_go_by_their_public_names(tmp_path):
    tower = ChannelTransformer(4, 8, (4, 4), shared_layers=0, **SMALL)
    model = EnvChannel(tower, decoder=lambda n: Feedback(n, patch=(4, 4), **SMALL))
    nested = {"class_path": "foundation.nets.transformer.ChannelTransformer", "init_args": {"layers": 1}}
    settings = {"channel_encoder": nested, "_class_path": "foundation.models.envchannel.EnvChannel"}
    content = save_checkpoint(model, tmp_path / "x.ckpt", **settings)
    assert {name: part["class"] for name, part in content["parts"].items()} == {
        "channel": "foundation.ChannelTransformer", "decoder": "heads.Feedback"
    }  # fmt: skip
    assert content["hyper_parameters"] == {
        "channel_encoder": {"class_path": "foundation.ChannelTransformer", "init_args": {"layers": 1}},
        "_class_path": "foundation.EnvChannel",
    }
    # a class of the user's own stays where it is
    own = save_checkpoint(tiny_clip(), tmp_path / "y.ckpt")
    assert own["parts"]["csi"]["class"] == "tests.foundation.towers.TinyEncoder"


def test_checkpoints_from_before_a_move_load(tmp_path):
    encoder = HandFeatures(4, 8)
    encoder.mean.fill_(2.0)
    entry = {"class": "foundation.nets.hand.HandFeatures", "init_args": dict(encoder.hparams), "prefix": "encoder."}
    content = {"state_dict": encoder.state_dict(prefix="encoder."), "towers": {"encoder": {**entry, "model": "x"}}}
    torch.save(content, tmp_path / "old.ckpt")
    assert torch.equal(load_encoder(tmp_path / "old.ckpt").mean, encoder.mean)

    model = CSICLIP(ResNet("resnet18", width=0.25), ResNet("resnet18", width=0.25))
    tower = {"class_path": "foundation.resnet.ResNet", "init_args": {"backbone": "resnet18", "width": 0.25}}
    settings = {
        "csi_encoder": tower, "cir_encoder": tower, "_class_path": "foundation.csiclip.CSICLIP",
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    }  # fmt: skip
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": settings, "pytorch-lightning_version": "2.6.0"},
               tmp_path / "model.ckpt")  # fmt: skip
    again = CSICLIP.load_from_checkpoint(tmp_path / "model.ckpt")
    assert torch.equal(again.csi_projection.weight, model.csi_projection.weight)


def test_a_part_is_loaded_alone(tmp_path):
    tower = ChannelTransformer(4, 8, (4, 4), shared_layers=0, **SMALL)
    model = EnvChannel(tower, decoder=lambda n: Feedback(n, patch=(4, 4), **SMALL))
    save_checkpoint(model, tmp_path / "x.ckpt")
    decoder = load_part(tmp_path / "x.ckpt", "decoder")
    assert isinstance(decoder, Feedback)
    assert not decoder.training
    features = torch.randn(2, 128)
    assert torch.equal(decoder(features), model.decoder.eval()(features))
    with pytest.raises(InputError, match="holds no part 'head': choose one of channel, decoder"):
        load_part(tmp_path / "x.ckpt", "head")
    with pytest.raises(InputError, match=r"decoder in .* is a Feedback, no encoder"):
        load_encoder(tmp_path / "x.ckpt", tower="decoder")
    with pytest.raises(InputError, match=r"the decoder in .* does not fit this LOS: 3 missing .*unexpected"):
        load_part(tmp_path / "x.ckpt", "decoder", LOS(128, hidden=None))


def test_a_head_keeps_the_size_that_it_took_from_the_data(tmp_path):
    model = FineTune(lambda n: Feedback(n, rank=2, **SMALL), TinyEncoder(), mode="scratch")
    assert not list(model.head.parameters())
    model.head.configure(4, 8)
    content = save_checkpoint(model, tmp_path / "x.ckpt")
    assert load_part(tmp_path / "x.ckpt", "head")(torch.randn(3, 16)).shape == (3, 4, 8)
    again = FineTune(lambda n: Feedback(n, rank=2, **SMALL), TinyEncoder(), mode="scratch")
    again.on_load_checkpoint(content)
    again.load_state_dict(content["state_dict"])


def test_every_model_can_start_from_another_run():
    public = [getattr(foundation, name) for name in foundation.__all__]
    models = [kind for kind in public if isinstance(kind, type) and issubclass(kind, foundation.FoundationTask)]
    assert len(models) > 5
    for kind in models:
        assert kind is foundation.FoundationTask or "start_from" in inspect.signature(kind).parameters, kind


@pytest.mark.parametrize("offset", [0, 4000])
def test_a_changed_byte_is_found(checkpoint, offset):
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2 + offset] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.ckpt is damaged"):
        load_encoder(checkpoint)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"state_dict": None}, "its state_dict is no mapping"),
        ({"parts": [1]}, "its parts is no mapping"),
        ({"parts": {"csi": "foo"}}, "its part csi is no mapping"),
        ({"data": [1]}, "its data is no mapping"),
        ({"hyper_parameters": 5}, "its hyper_parameters is no mapping"),
    ],
)
def test_entries_of_another_kind_are_named(checkpoint, changed, said):
    torch.save(torch.load(checkpoint, weights_only=True) | changed, checkpoint)
    with pytest.raises(InputError, match=said):
        load_encoder(checkpoint)


def test_a_run_is_no_checkpoint(checkpoint):
    own = checkpoint.parent / "run/checkpoints/best.ckpt"
    own.parent.mkdir(parents=True)
    checkpoint.rename(own)
    with pytest.raises(InputError, match=r"run is a run, not a checkpoint: give .*run/checkpoints/best\.ckpt"):
        load_encoder(checkpoint.parent / "run")


def test_an_encoder_is_named_once(checkpoint):
    with pytest.raises(InputError, match=r"model\.tower names an encoder twice: csi, csi"):
        FineTune(lambda n: LOS(n), checkpoint=str(checkpoint), mode="probe", tower=["csi", "csi"])
