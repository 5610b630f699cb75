"""Numbers and words that nothing can be built of are refused where they are given, by name."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules.batch import BatchMaker
from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM
from datamodules.channel.response import array_response
from datamodules.channel.synthesis import synthesize
from datamodules.channel.transforms import delay_angular
from datamodules.errors import InputError
from datamodules.module import ChannelDataModule
from datamodules.sides.groups import group_links
from datamodules.sides.splits import split_links
from datamodules.sources.deepmimo.catalogue import DeepMIMOCatalogue
from datamodules.sources.raytracing.sionna_rt import SionnaRT
from datamodules.sources.recorded.axes import arrange
from datamodules.sources.recorded.importing import import_recording
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
from tests.datamodules.rays import random_paths, random_site
from tests.datamodules.test_module import build
from tests.foundation.towers import TinyEncoder

#: of a batch of single links
SETTINGS = {
    "bs": Array(), "ue": Array(), "ofdm": OFDM(4), "codebook": None, "views": None, "observation": [], "sequence": None,
    "geometry_los": True, "symmetry": None, "seed": 0, "group_size": None, "cache": None,
}  # fmt: skip


def clip(**settings):
    return CSICLIP(TinyEncoder(), TinyEncoder(), **settings)


def environment_channel(**settings):
    tower = {"width": 16, "layers": 1, "shared_layers": 1, "heads": 2}
    return EnvChannel(ChannelTransformer(**tower), EnvironmentTransformer(**tower), **settings)


def recording(**settings):
    return import_recording("x.npy", "x.safetensors", axes="U R T K", carrier_frequency=3e9, bandwidth=1e6, **settings)


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
        (ResNet, "stem_stride", 3, "2, 4"),
        (lambda **s: clip(**s).configure_optimizers(), "schedule", "linear", "constant, cosine, restarts, plateau"),
        (lambda **s: environment_channel(**s).configure_optimizers(), "optimizer", "adam", "adamw, muon"),
        (lambda **s: synthesize(random_paths(), Array(1, 2), Array(), OFDM(4), **s), "reference", "centre",
         "corner, center"),
        (lambda **s: array_response(random_paths().aod, Array(1, 2), **s), "reference", "centre", "corner, center"),
        (lambda **s: delay_angular(torch.ones(1, 1, 2, 4) + 0j, 2, **s), "reference", "last", "first, strongest, none"),
        (lambda **s: SionnaRT(**s), "users", "disk", "grid, disc, random, points"),
        (lambda **s: SionnaRT(**s), "bs_mount", "wall", "roof, street"),
        (lambda **s: DeepMIMOCatalogue(**s), "missing", "ignore", "error, skip, download"),
        (recording, "carrier_at", "center", "middle, lowest"),
        (lambda **s: arrange(np.ones((2, 1, 4, 5, 2)), "U R T K C", {}, **s), "pairs", "iq", "IQ, QI"),
        (lambda **s: arrange(np.ones((2, 3, 1, 4, 5)) + 0j, "U P R T K", {}, **s), "polarization", "V", "R, T"),
        (lambda split: split_links([random_site()], split), "split", "blocks",
         "random, spatial, time, area, city, site"),
        (lambda **s: group_links([random_site()], **s), "group", "stations", "station, variant"),
        (lambda extras: BatchMaker([random_site()], SimpleNamespace(**SETTINGS, extras=[extras])), "extras", "maps",
         "map, geometry, domain"),
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
    ("settings", "said"),
    [
        ({"num_beams": 10**9}, "a codebook of 1000000000 beams of 4 antennas would take 30 GiB"),
        ({"ofdm": OFDM(10**10)}, r"a channel of \(R, T, K\) = \(1, 4, 10000000000\), .* would take 298 GiB"),
        ({"num_labels": {}}, "data.num_labels names no label"),
    ],
)
def test_data_that_cannot_be_held_or_are_not_named(tmp_path, settings, said):
    with pytest.raises(InputError, match=said):
        build(tmp_path, [random_site("a", 40)], **settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {max_epochs: 1}\nmodel: 1\ntrainer: {devices: 1}\n", "x.yaml, line 3, column 1: key 'trainer' stands"
         " there twice, first on line 1"),
        ("a:\n  b: 1\n  b: 2\n", "line 3, column 3: key 'b' stands there twice, first on line 2"),
        ("- a\n", "x.yaml: must hold `key: value` lines"),
        ("a: &a {b: *a}\n", r"x.yaml: an anchor \(&\) stands within what it names"),
    ],
)  # fmt: skip
def test_a_yaml_file_is_read_strictly(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_yaml(tmp_path / "x.yaml")


def test_merged_keys_of_yaml_are_no_doubles(tmp_path):
    (tmp_path / "x.yaml").write_text("a: &a {b: 1}\nc:\n  <<: *a\n  b: 2\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": {"b": 1}, "c": {"b": 2}}
