from .channel.arrays import Array
from .channel.draws import LinkDraws
from .channel.impairments import (
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
from .channel.motion import Sequence
from .channel.ofdm import OFDM
from .channel.synthesis import synthesize
from .errors import DatasetNotFoundError, InputError
from .export.deepmimo import write_deepmimo
from .export.waird import write_waird
from .maps.augmentation import WorldSymmetry
from .module import ChannelDataModule
from .plots.figures import plot_csi, plot_site, plot_statistics
from .sites.environment import Environment
from .sites.link_file import save_links
from .sites.paths import Paths
from .sites.recording import Recording
from .sites.site import Site
from .sites.user_matching import pair
from .sources.base import Source
from .sources.deepmimo.catalogue import DeepMIMOCatalogue
from .sources.deepmimo.v3 import DeepMIMOv3
from .sources.deepmimo.v4 import DeepMIMO
from .sources.matched import MatchedUsers
from .sources.raytracing.areas import Areas
from .sources.raytracing.foliage import Foliage
from .sources.raytracing.sionna_rt import SionnaRT
from .sources.raytracing.twins import Twins
from .sources.recorded.source import Recorded
from .sources.tr38901.cdl import CDL
from .sources.tr38901.source import TR38901
from .sources.waird.source import WAIRD

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
    "MatchedUsers",
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
