from .adaptation.finetune import FineTune
from .adaptation.map_positioning import MapPositioning
from .adaptation.rehearsal import RehearsalDataModule
from .checkpoint import load_encoder, load_part
from .encoder import Encoder
from .inference import embed
from .models.calibration import TwinCalibration
from .models.contwin import ConTwin
from .models.csiclip import CSICLIP
from .models.csifeedback import CsiFeedback
from .models.envchannel import EnvChannel
from .nets.classical import ClassicalPredictor
from .nets.contwin import CNNTransformer
from .nets.csinet import CsiNet
from .nets.csinetplus import CSINetPlus
from .nets.environment_tower import EnvironmentTransformer, PositionFeatures
from .nets.handcrafted import HandFeatures
from .nets.resnet import ResNet
from .nets.swin_autoencoder import SwinAutoencoder
from .nets.swincfnet import SwinCFNet
from .nets.transformer import ChannelTransformer
from .nets.unet1d import Calibrator
from .runtime.probe import CollapseAlarm, OnlineProbe
from .task import FoundationTask

__all__ = [
    "CSICLIP",
    "CNNTransformer",
    "CSINetPlus",
    "Calibrator",
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
    "RehearsalDataModule",
    "ResNet",
    "SwinAutoencoder",
    "SwinCFNet",
    "TwinCalibration",
    "embed",
    "load_encoder",
    "load_part",
]
