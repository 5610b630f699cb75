"""Channels from rays to batches.

Axis letters, used in every docstring and einops pattern: `B` batch, `U` users, `P` paths, `R` receive antennas (UE),
`T` transmit antennas (BS), `K` subcarriers, `L` delay taps, `N` time snapshots, `S` base stations, `Q` beams,
`D` features, `A` domain axes. SI units and radians throughout; a name carries a unit only where it is not SI.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.arrays import Array
    from datamodules.channel import OFDM, synthesize
    from datamodules.environment import Environment
    from datamodules.errors import DatasetNotFoundError, InputError
    from datamodules.module import ChannelDataModule
    from datamodules.paths import Paths
    from datamodules.recording import Recording
    from datamodules.site import Site
    from datamodules.sources.base import Source
    from datamodules.sources.deepmimo import DeepMIMO
    from datamodules.sources.deepmimo_v3 import DeepMIMOv3
    from datamodules.sources.sionna_rt import SionnaRT
    from datamodules.sources.waird import WAIRD
    from datamodules.views import CommonPhase, Noise, PartialSubcarriers, TimingOffset, View

__all__ = [
    "OFDM",
    "WAIRD",
    "Array",
    "ChannelDataModule",
    "CommonPhase",
    "DatasetNotFoundError",
    "DeepMIMO",
    "DeepMIMOv3",
    "Environment",
    "InputError",
    "Noise",
    "PartialSubcarriers",
    "Paths",
    "Recording",
    "SionnaRT",
    "Site",
    "Source",
    "TimingOffset",
    "View",
    "synthesize",
]

# imported on first use: a ray tracer or a reader is loaded only by who asks for it
_HOME = {
    "OFDM": "channel",
    "Array": "arrays",
    "ChannelDataModule": "module",
    "CommonPhase": "views",
    "DatasetNotFoundError": "errors",
    "DeepMIMO": "sources.deepmimo",
    "DeepMIMOv3": "sources.deepmimo_v3",
    "Environment": "environment",
    "InputError": "errors",
    "Noise": "views",
    "PartialSubcarriers": "views",
    "Paths": "paths",
    "Recording": "recording",
    "SionnaRT": "sources.sionna_rt",
    "Site": "site",
    "Source": "sources.base",
    "TimingOffset": "views",
    "View": "views",
    "WAIRD": "sources.waird",
    "synthesize": "channel",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
