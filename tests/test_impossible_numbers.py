"""Numbers and words that nothing can be built of are refused where they are given, by name."""

import pytest

from datamodules.errors import InputError
from datamodules.module import ChannelDataModule
from datamodules.sources.tr38901.cdl import CDL
from datamodules.yaml_file import read_yaml
from foundation.adaptation.finetune import FineTune
from foundation.models.calibration import TwinCalibration
from foundation.models.csiclip import CSICLIP
from foundation.models.csifeedback import CsiFeedback
from foundation.models.envchannel import EnvChannel
from foundation.nets.contwin import CNNTransformer
from foundation.nets.csinetplus import CSINetPlus
from foundation.nets.environment_tower import EnvironmentTransformer
from foundation.nets.handcrafted import HandFeatures
from foundation.nets.resnet import ResNet
from foundation.nets.transformer import ChannelTransformer
from heads import LOS, Feedback
from tests.foundation.towers import TinyEncoder


def clip(**settings):
    return CSICLIP(TinyEncoder(), TinyEncoder(), **settings)


def environment_channel(**settings):
    tower = {"width": 16, "layers": 1, "shared_layers": 1, "heads": 2}
    return EnvChannel(ChannelTransformer(**tower), EnvironmentTransformer(**tower), **settings)


def scratch(**settings):
    return FineTune(LOS, TinyEncoder(), mode="scratch", **settings)


@pytest.mark.parametrize(
    ("build", "name", "value"),
    [
        (clip, "lr", -1.0), (clip, "embed_dim", 0), (clip, "temperature", 0.0), (clip, "weight_decay", -0.1),
        (environment_channel, "lr", 0.0), (environment_channel, "profile", -1.0),
        (environment_channel, "temperature", float("nan")),
        (scratch, "lr", -1.0), (scratch, "encoder_lr", -1.0), (scratch, "weight_decay", -1.0),
        (scratch, "base_stations", 0), (scratch, "tokens", -1),
        (ResNet, "width", 0.0),
        (TwinCalibration, "lr", -1.0), (TwinCalibration, "weight_decay", -1.0),
        (lambda **s: CsiFeedback(CSINetPlus(4, rows=8, antennas=4), **s), "lr", 0.0),
        (lambda **s: HandFeatures(**{"num_antennas": 8, "num_subcarriers": 8} | s), "num_antennas", 0),
        (ChannelTransformer, "width", 0), (ChannelTransformer, "heads", 0), (ChannelTransformer, "layers", -1),
        (ChannelTransformer, "embed_dim", 0), (ChannelTransformer, "num_subcarriers", 0),
        (EnvironmentTransformer, "reach", 0.0), (EnvironmentTransformer, "frequencies", -1),
        (lambda **s: Feedback(8, **s), "width", 0), (lambda **s: Feedback(8, **s), "heads", 0),
        (lambda **s: ChannelDataModule([], **s), "batch_size", 0),
        (lambda **s: ChannelDataModule([], **s), "num_labels", 0),
        (lambda **s: ChannelDataModule([], **s), "num_workers", -1),
    ],
)  # fmt: skip
def test_they_are_named(build, name, value):
    with pytest.raises(ValueError, match=rf"{name} must (be|not be) (positive|negative|at least 1), got {value}"):
        build(**{name: value})


@pytest.mark.parametrize(
    ("build", "name", "word", "known"),
    [
        (CNNTransformer, "domain", "angle_delay_level", "csi, cir, angle_delay"),  # one of ResNet's
        (TwinCalibration, "labels", "all", "full, feedback"),
        (TwinCalibration, "reads", "twins", "both, twin, position"),
        (CSINetPlus, "reference", "frist", "first, strongest, none"),
        (ResNet, "domain", "cri", "csi, cir, angle_delay, angle_delay_level"),
        (ResNet, "normalize", "links", "global, link"), (ResNet, "norm", "layer", "batch, group"),
        (ChannelTransformer, "domain", "cir", "csi, angle_delay"), (ChannelTransformer, "pool", "mean", "class, all"),
        (lambda **s: HandFeatures(4, 8, **s), "kind", "sums", "profiles, power, raw"),
        (lambda **s: FineTune(LOS, TinyEncoder(), **s), "mode", "frozen", "scratch, probe, finetune, control"),
    ],
)  # fmt: skip
def test_words_are_named(build, name, word, known):
    with pytest.raises(InputError, match=rf"{name} must be one of {known}, got {word}"):
        build(**{name: word})


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (clip, "lr"),
        (clip, "weight_decay"),
        (TwinCalibration, "snr_db"),
        (CDL, "frequency"),
        (lambda **s: ChannelDataModule([], **s), "guard"),
    ],
)
def test_infinity_is_named(build, name):
    with pytest.raises(
        InputError, match=rf"{name} must (be positive and finite|not be infinite|be a finite number), got inf"
    ):
        build(**{name: float("inf")})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {max_epochs: 1}\nmodel: 1\ntrainer: {devices: 1}\n", "x.yaml, line 3, column 1: key 'trainer' stands"
         " there twice, first on line 1"),
        ("a:\n  b: 1\n  b: 2\n", "line 3, column 3: key 'b' stands there twice, first on line 2"),
        ("- a\n", "x.yaml: must hold `key: value` lines"),
    ],
)  # fmt: skip
def test_a_yaml_file_is_read_strictly(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_yaml(tmp_path / "x.yaml")


def test_merged_keys_of_yaml_are_no_doubles(tmp_path):
    (tmp_path / "x.yaml").write_text("a: &a {b: 1}\nc:\n  <<: *a\n  b: 2\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": {"b": 1}, "c": {"b": 2}}
