"""Channels from rays to batches.

Axis letters, used in every docstring and einops pattern: `B` batch, `U` users, `P` paths, `R` receive antennas (UE),
`T` transmit antennas (BS), `K` subcarriers, `L` delay taps, `N` time snapshots, `S` base stations, `Q` beams,
`D` features, `A` domain axes. SI units and radians throughout; a name carries a unit only where it is not SI.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.channel.arrays import Array
    from datamodules.channel.draws import LinkDraws
    from datamodules.channel.impairments import (
        AmplitudeScaling,
        AntennaPermutation,
        CommonPhase,
        Noise,
        PartialSubcarriers,
        PhaseJitter,
        TimeShift,
        TimingOffset,
        View,
    )
    from datamodules.channel.motion import Sequence
    from datamodules.channel.ofdm import OFDM
    from datamodules.channel.synthesis import synthesize
    from datamodules.errors import DatasetNotFoundError, InputError
    from datamodules.export.deepmimo import write_deepmimo
    from datamodules.export.waird import write_waird
    from datamodules.maps.augmentation import WorldSymmetry
    from datamodules.module import ChannelDataModule
    from datamodules.plots.figures import plot_csi, plot_site, plot_statistics
    from datamodules.sites.environment import Environment
    from datamodules.sites.link_file import save_links
    from datamodules.sites.paths import Paths
    from datamodules.sites.recording import Recording
    from datamodules.sites.site import Site
    from datamodules.sites.user_matching import pair
    from datamodules.sources.base import Source
    from datamodules.sources.deepmimo.catalogue import DeepMIMOCatalogue
    from datamodules.sources.deepmimo.v3 import DeepMIMOv3
    from datamodules.sources.deepmimo.v4 import DeepMIMO
    from datamodules.sources.raytracing.areas import Areas
    from datamodules.sources.raytracing.foliage import Foliage
    from datamodules.sources.raytracing.sionna_rt import SionnaRT
    from datamodules.sources.raytracing.twins import Twins
    from datamodules.sources.recorded.source import Recorded
    from datamodules.sources.tr38901.cdl import CDL
    from datamodules.sources.tr38901.source import TR38901
    from datamodules.sources.waird.source import WAIRD

__all__ = [
    "CDL",
    "OFDM",
    "TR38901",
    "WAIRD",
    "AmplitudeScaling",
    "AntennaPermutation",
    "Areas",
    "Array",
    "ChannelDataModule",
    "CommonPhase",
    "DatasetNotFoundError",
    "DeepMIMO",
    "DeepMIMOCatalogue",
    "DeepMIMOv3",
    "Environment",
    "Foliage",
    "InputError",
    "LinkDraws",
    "Noise",
    "PartialSubcarriers",
    "Paths",
    "PhaseJitter",
    "Recorded",
    "Recording",
    "Sequence",
    "SionnaRT",
    "Site",
    "Source",
    "TimeShift",
    "TimingOffset",
    "Twins",
    "View",
    "WorldSymmetry",
    "pair",
    "plot_csi",
    "plot_site",
    "plot_statistics",
    "save_links",
    "synthesize",
    "write_deepmimo",
    "write_waird",
]

# imported on first use: a ray tracer or a reader is loaded only by who asks for it
_HOME = {
    "AmplitudeScaling": "channel.impairments",
    "AntennaPermutation": "channel.impairments",
    "Areas": "sources.raytracing.areas",
    "Array": "channel.arrays",
    "CDL": "sources.tr38901.cdl",
    "ChannelDataModule": "module",
    "CommonPhase": "channel.impairments",
    "DatasetNotFoundError": "errors",
    "DeepMIMO": "sources.deepmimo.v4",
    "DeepMIMOCatalogue": "sources.deepmimo.catalogue",
    "DeepMIMOv3": "sources.deepmimo.v3",
    "Environment": "sites.environment",
    "Foliage": "sources.raytracing.foliage",
    "InputError": "errors",
    "LinkDraws": "channel.draws",
    "Noise": "channel.impairments",
    "OFDM": "channel.ofdm",
    "PartialSubcarriers": "channel.impairments",
    "Paths": "sites.paths",
    "PhaseJitter": "channel.impairments",
    "Recorded": "sources.recorded.source",
    "Recording": "sites.recording",
    "Sequence": "channel.motion",
    "SionnaRT": "sources.raytracing.sionna_rt",
    "Site": "sites.site",
    "Source": "sources.base",
    "TR38901": "sources.tr38901.source",
    "TimeShift": "channel.impairments",
    "TimingOffset": "channel.impairments",
    "Twins": "sources.raytracing.twins",
    "View": "channel.impairments",
    "WAIRD": "sources.waird.source",
    "WorldSymmetry": "maps.augmentation",
    "pair": "sites.user_matching",
    "plot_csi": "plots.figures",
    "plot_site": "plots.figures",
    "plot_statistics": "plots.figures",
    "save_links": "sites.link_file",
    "synthesize": "channel.synthesis",
    "write_deepmimo": "export.deepmimo",
    "write_waird": "export.waird",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
