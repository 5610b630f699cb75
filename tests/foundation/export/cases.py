"""Every encoder and head that has a form in real numbers, small."""

import torch

from foundation import (
    Calibrator,
    ChannelTransformer,
    CNNTransformer,
    CsiNet,
    CSINetPlus,
    EnvironmentTransformer,
    HandFeatures,
    PositionFeatures,
    ResNet,
    SwinCFNet,
)
from heads import LOS, Beam, Feedback, Positioning, Prediction

SMALL = {"width": 16, "layers": 1, "heads": 2}
TOWER = {"num_antennas": 8, "num_subcarriers": 16, "patch": (4, 4), "shared_layers": 1, **SMALL}
RESNET = {"backbone": "resnet18", "width": 0.25, "norm": "group", "stem_stride": 2}
PAST = {"snapshots": 4, "num_antennas": 8, "num_subcarriers": 16}

#: what makes each, by name; those of CSI read (R, T, K) = (2, 4, 16)
CASES = {
    "resnet_csi": lambda: ResNet("resnet18", width=0.25),
    "resnet_cir": lambda: ResNet(domain="cir", normalize="link", **RESNET),
    "resnet_angle_delay": lambda: ResNet(domain="angle_delay", normalize="link", **RESNET),
    "resnet_level": lambda: ResNet(domain="angle_delay_level", normalize="link", **RESNET),
    "channel_csi": lambda: ChannelTransformer(**TOWER),
    "channel_angle_delay": lambda: ChannelTransformer(domain="angle_delay", pool="all", **TOWER),
    "profiles": lambda: HandFeatures(4, 16),
    "power": lambda: HandFeatures(4, 16, "power"),
    "raw": lambda: HandFeatures(4, 16, "raw"),
    "contwin_cir": lambda: CNNTransformer(**PAST, channels=8, **SMALL),
    "contwin_angle_delay": lambda: CNNTransformer(**PAST, domain="angle_delay", channels=8, **SMALL),
    "swin": lambda: SwinCFNet(**PAST, width=16, heads=(2, 2), embed_dim=32),
    "csinetplus": lambda: CSINetPlus(8, 8, 8),
    "csinet_first": lambda: CsiNet(8, 8, 8, "first", bits=4),
    "environment": lambda: EnvironmentTransformer(
        geometry_tokens=2, frequencies=3, corridor=8, echoes=8, shared_layers=1, **SMALL
    ),
    "position": lambda: PositionFeatures(16),
    "calibrator": lambda: Calibrator(8),
    "los": lambda: LOS(16),
    "beam": lambda: Beam(16),
    "positioning": lambda: Positioning(16, anchors=5),
    "feedback": lambda: Feedback(16, 8, 16, patch=(4, 4), **SMALL),
    "feedback_rank": lambda: Feedback(16, 8, 16, rank=3, **SMALL),
    "prediction_direct": lambda: Prediction(16, "direct", 2, num_antennas=8, num_subcarriers=16),
}
DATA = {
    "csi": [2, 4, 16], "snapshots": 4, "power_db": [-100.0, 10.0], "snr_db": [0.0, 20.0], "doppler": None,
    "sources": ["DeepMIMO"], "cities": ["newyork"],
}  # fmt: skip
#: those of encoders that require another size
DATA_OF = {"calibrator": DATA | {"csi": [2, 8, 16]}}


def case(name):
    """Make one in eval mode, its statistics and zeros those of a trained one."""
    torch.manual_seed(0)
    module = CASES[name]().eval()
    for key, value in module.named_buffers():
        if key.endswith("running_mean"):
            value.normal_(std=0.1)
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
    if isinstance(module, Feedback):
        torch.nn.init.normal_(module.unpatch.weight, std=0.1)
    if isinstance(module, ResNet):  # of levels and of entries at -100 dB
        module.mean.fill_(-95.0 if module.normalize == "link" else 0.0)
        module.std.fill_(8.0 if module.normalize == "link" else 1e-5)
    return module
