"""Domain labels: under which conditions a link was seen (ConTwin section 5, "Domain Labelling").

A label is the row of `A` = 5 integers

| axis | `AXES` | code |
|---|---|---|
| 0 | scenario | `umi` 0, `uma` 1, `rma` 2, `inh` 3; any other name, say a city's, the CRC-32 of the name |
| 1 | los | 0 NLOS, 1 LOS, of the link itself |
| 2 | mobility | 0 static, 1 pedestrian, 2 vehicular |
| 3 | tilt | downtilt of the base-station array [degrees], rounded; negative for an uptilt |
| 4 | frequency | carrier [MHz], rounded |

and `UNKNOWN`, which is below any code, where the condition is not known. Tilt and frequency are numbers rather than
classes, so that the thresholds of ConTwin's Table 4 (5 degrees, 25 GHz) apply to their differences.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from datamodules.channel.arrays import Array
from datamodules.channel.motion import MOBILITIES
from datamodules.sites.recording import Recording
from datamodules.sites.site import Site

AXES = ("scenario", "los", "mobility", "tilt", "frequency")
#: not -1, which is an uptilt of one degree
UNKNOWN = -(2**31)
_SCENARIOS = ("umi", "uma", "rma", "inh")


def site_domains(sites: Sequence[Site], bs: Array) -> Tensor:
    """Return what is the same for all links of a site, shape (number of sites, A), int64; the rest is `UNKNOWN`.

    Args:
        sites: The sites.
        bs: Array the channel is synthesised with: its downtilt adds to that of a site of rays. CSI recorded by a site
            keeps the tilt it was recorded with.
    """
    return torch.tensor([_site_domain(site, bs) for site in sites], dtype=torch.int64).reshape(-1, len(AXES))


def domain_labels(of_sites: Tensor, site: Tensor, los: Tensor, mobility: Tensor | None = None) -> Tensor:
    """Return the domain label of each link.

    Args:
        of_sites: What `site_domains` returned.
        site: Number of each link's site, shape (B,).
        los: 1 line of sight, 0 none, -1 unknown, shape (B,).
        mobility: Class drawn for each link (`sequences.Motion`), shape (B,); by default what its site says.

    Returns:
        Shape (B, A), int64.
    """
    labels = of_sites[site.long()]
    labels[:, AXES.index("los")] = torch.where(los < 0, UNKNOWN, los.long())
    if mobility is not None:
        labels[:, AXES.index("mobility")] = mobility
    return labels


def speed_spans(sites: Sequence[Site]) -> Tensor:
    """Return the range (lowest, highest) of speed [m/s] that each site fixes, else NaN, shape (number of sites, 2)."""
    return torch.tensor([site.domain.get("speed", (math.nan, math.nan)) for site in sites]).reshape(-1, 2)


def _site_domain(site: Site, bs: Array) -> list[int]:
    tilt = float(site.bs_orientation[1])
    if isinstance(site.links, Recording):
        tilt = site.domain.get("tilt", tilt)
    else:
        tilt += bs.orientation[1]
    scenario = str(site.domain.get("scenario", site.place))
    mobility = site.domain.get("mobility")
    return [
        _SCENARIOS.index(scenario) if scenario in _SCENARIOS else zlib.crc32(scenario.encode()),
        UNKNOWN,
        MOBILITIES.index(mobility) if mobility in MOBILITIES else UNKNOWN,
        round(math.degrees(tilt)),
        round(site.carrier_frequency / 1e6),
    ]
