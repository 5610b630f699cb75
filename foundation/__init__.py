"""Models of the wireless channel, their pre-training and their adaptation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foundation.adaptation.finetune import FineTune
    from foundation.adaptation.map_positioning import MapPositioning
    from foundation.checkpoint import load_encoder, load_part
    from foundation.encoder import Encoder
    from foundation.models.calibration import TwinCalibration
    from foundation.models.contwin import ConTwin
    from foundation.models.csiclip import CSICLIP
    from foundation.models.csifeedback import CsiFeedback
    from foundation.models.envchannel import EnvChannel
    from foundation.nets.classical import ClassicalPredictor
    from foundation.nets.contwin import CNNTransformer
    from foundation.nets.csinet import CsiNet
    from foundation.nets.csinetplus import CSINetPlus
    from foundation.nets.environment_tower import EnvironmentTransformer, PositionFeatures
    from foundation.nets.handcrafted import HandFeatures
    from foundation.nets.resnet import ResNet
    from foundation.nets.swincfnet import SwinCFNet
    from foundation.nets.transformer import ChannelTransformer
    from foundation.runtime.probe import CollapseAlarm, OnlineProbe
    from foundation.task import FoundationTask

__all__ = [
    "CSICLIP",
    "CNNTransformer",
    "CSINetPlus",
    "ChannelTransformer",
    "ClassicalPredictor",
    "CollapseAlarm",
    "ConTwin",
    "CsiFeedback",
    "CsiNet",
    "Encoder",
    "EnvChannel",
    "EnvironmentTransformer",
    "FineTune",
    "FoundationTask",
    "HandFeatures",
    "MapPositioning",
    "OnlineProbe",
    "PositionFeatures",
    "ResNet",
    "SwinCFNet",
    "TwinCalibration",
    "load_encoder",
    "load_part",
]

# imported on first use: `lightning --help` must not wait for torch
_HOME = {
    "CSICLIP": "models.csiclip",
    "CNNTransformer": "nets.contwin",
    "CSINetPlus": "nets.csinetplus",
    "ChannelTransformer": "nets.transformer",
    "ClassicalPredictor": "nets.classical",
    "CollapseAlarm": "runtime.probe",
    "ConTwin": "models.contwin",
    "CsiFeedback": "models.csifeedback",
    "CsiNet": "nets.csinet",
    "Encoder": "encoder",
    "EnvChannel": "models.envchannel",
    "EnvironmentTransformer": "nets.environment_tower",
    "FineTune": "adaptation.finetune",
    "FoundationTask": "task",
    "HandFeatures": "nets.handcrafted",
    "MapPositioning": "adaptation.map_positioning",
    "OnlineProbe": "runtime.probe",
    "PositionFeatures": "nets.environment_tower",
    "ResNet": "nets.resnet",
    "SwinCFNet": "nets.swincfnet",
    "TwinCalibration": "models.calibration",
    "load_encoder": "checkpoint",
    "load_part": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
