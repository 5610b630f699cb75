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
    from datamodules.export import write_deepmimo
    from datamodules.export_waird import write_waird
    from datamodules.module import ChannelDataModule
    from datamodules.pairs import pair
    from datamodules.paths import Paths
    from datamodules.plots import plot_csi, plot_site, plot_statistics
    from datamodules.recording import Recording
    from datamodules.sequences import Sequence
    from datamodules.site import Site
    from datamodules.sources.areas import Areas
    from datamodules.sources.base import Source
    from datamodules.sources.catalogue import DeepMIMOCatalogue
    from datamodules.sources.cdl import CDL
    from datamodules.sources.deepmimo import DeepMIMO
    from datamodules.sources.deepmimo_v3 import DeepMIMOv3
    from datamodules.sources.foliage import Foliage
    from datamodules.sources.recorded import Recorded
    from datamodules.sources.sionna_rt import SionnaRT
    from datamodules.sources.tr38901 import TR38901
    from datamodules.sources.twins import Twins
    from datamodules.sources.waird import WAIRD
    from datamodules.symmetry import WorldSymmetry
    from datamodules.views import CommonPhase, Noise, PartialSubcarriers, TimingOffset, View

__all__ = [
    "CDL",
    "OFDM",
    "TR38901",
    "WAIRD",
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
    "Noise",
    "PartialSubcarriers",
    "Paths",
    "Recorded",
    "Recording",
    "Sequence",
    "SionnaRT",
    "Site",
    "Source",
    "TimingOffset",
    "Twins",
    "View",
    "WorldSymmetry",
    "pair",
    "plot_csi",
    "plot_site",
    "plot_statistics",
    "synthesize",
    "write_deepmimo",
    "write_waird",
]

# imported on first use: a ray tracer or a reader is loaded only by who asks for it
_HOME = {
    "Areas": "sources.areas",
    "Array": "arrays",
    "CDL": "sources.cdl",
    "ChannelDataModule": "module",
    "CommonPhase": "views",
    "DatasetNotFoundError": "errors",
    "DeepMIMO": "sources.deepmimo",
    "DeepMIMOCatalogue": "sources.catalogue",
    "DeepMIMOv3": "sources.deepmimo_v3",
    "Environment": "environment",
    "Foliage": "sources.foliage",
    "InputError": "errors",
    "Noise": "views",
    "OFDM": "channel",
    "PartialSubcarriers": "views",
    "Paths": "paths",
    "Recorded": "sources.recorded",
    "Recording": "recording",
    "Sequence": "sequences",
    "SionnaRT": "sources.sionna_rt",
    "Site": "site",
    "Source": "sources.base",
    "TR38901": "sources.tr38901",
    "TimingOffset": "views",
    "Twins": "sources.twins",
    "View": "views",
    "WAIRD": "sources.waird",
    "WorldSymmetry": "symmetry",
    "pair": "pairs",
    "plot_csi": "plots",
    "plot_site": "plots",
    "plot_statistics": "plots",
    "synthesize": "channel",
    "write_deepmimo": "export",
    "write_waird": "export_waird",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
