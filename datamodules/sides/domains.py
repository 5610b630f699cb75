"""Domain labels: the conditions of a link (ConTwin section 5, "Domain Labelling").

A label is the row of `A` = 5 integers

| axis | `AXES` | code |
|---|---|---|
| 0 | scenario | `umi` 0, `uma` 1, `rma` 2, `inh` 3; any other name, such as that of a city, the CRC-32 of the name |
| 1 | los | 0 NLOS, 1 LOS, of the link itself |
| 2 | mobility | 0 static, 1 pedestrian, 2 vehicular |
| 3 | tilt | downtilt of the base-station array [degrees], rounded; negative for an uptilt |
| 4 | frequency | carrier [MHz], rounded |

and `UNKNOWN`, which is below any code, for an unknown condition. Tilt and frequency are numbers rather than classes, so
that the thresholds of Table 4 of ConTwin (5 degrees, 25 GHz) apply to their differences.
"""

from __future__ import annotations

import fnmatch
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.channel.arrays import Array
from datamodules.channel.motion import MOBILITIES, draw_motion
from datamodules.channel.motion import Sequence as Snapshots
from datamodules.errors import InputError, shown
from datamodules.sites.site import Site

AXES = ("scenario", "los", "mobility", "tilt", "frequency")
#: not -1, which is an uptilt of one degree
UNKNOWN = -(2**31)
#: further attributes of a site that select links
_NAMED = ("variant", "city", "area")
_SCENARIOS = ("umi", "uma", "rma", "inh")
#: axes where two values are a range
_NUMBERS = ("tilt", "frequency")


def site_domains(sites: Sequence[Site], bs: Array) -> Tensor:
    """Return the labels common to all links of each site, `UNKNOWN` for others, shape (number of sites, A), int64.

    Args:
        sites: The sites.
        bs: Base-station array of the synthesis, whose downtilt is added to that of a site with paths. Recorded CSI has
            the tilt of the recording.
    """
    return torch.tensor([_site_domain(site, bs) for site in sites], dtype=torch.int64).reshape(-1, len(AXES))


def domain_labels(of_sites: Tensor, site: Tensor, los: Tensor, mobility: Tensor | None = None) -> Tensor:
    """Return the domain label of each link.

    Args:
        of_sites: Output of `site_domains`.
        site: Number of the site of each link, shape (B,).
        los: 1 line of sight, 0 none, -1 unknown, shape (B,).
        mobility: Class drawn for each link (`motion.Motion`), shape (B,); by default that of its site.

    Returns:
        Shape (B, A), int64.
    """
    labels = of_sites[site.long()]
    labels[:, AXES.index("los")] = torch.where(los < 0, UNKNOWN, los.long())
    if mobility is not None:
        labels[:, AXES.index("mobility")] = mobility
    return labels


def speed_spans(sites: Sequence[Site]) -> Tensor:
    """Return the speed range (lowest, highest) [m/s] of each site, NaN if not given, shape (number of sites, 2)."""
    return torch.tensor([site.domain.get("speed", (math.nan, math.nan)) for site in sites]).reshape(-1, 2)


def _site_domain(site: Site, bs: Array) -> list[int]:
    tilt = float(site.bs_orientation[1])
    if not site.links.has_rays:
        tilt = site.domain.get("tilt", tilt)
    else:
        tilt += bs.orientation[1]
    scenario = str(site.domain.get("scenario", site.city))
    mobility = site.domain.get("mobility")
    return [
        _SCENARIOS.index(scenario) if scenario in _SCENARIOS else zlib.crc32(scenario.encode()),
        UNKNOWN,
        MOBILITIES.index(mobility) if mobility in MOBILITIES else UNKNOWN,
        round(math.degrees(tilt)),
        round(site.carrier_frequency / 1e6),
    ]


class Worlds:
    """Domain labels of the rows of a datamodule as text, for their selection by conditions.

    The axes are those of a domain label, and the names `variant`, `city` and `area` of a site. Scenario and mobility
    are names, `los` is 0 or 1, `tilt` is in degrees and `frequency` in MHz, both rounded.

    Args:
        sites: The sites.
        rows: Link numbers, counted over the sites in order, shape (n,), or (n, G) for rows of several links, whose
            `los` is the maximum, and whose other labels are those common to all.
        bs: Base-station array of the synthesis.
        sequence: Distribution of the motion of the users, or None.
        seed: Random seed of the motion.
    """

    AXES = (*_NAMED, *AXES)

    def __init__(
        self,
        sites: Sequence[Site],
        rows: NDArray[np.int64],
        bs: Array,
        sequence: Snapshots | None = None,
        seed: int = 0,
    ) -> None:
        self.sites, self.rows = list(sites), rows
        self.bs, self.sequence, self.seed = bs, sequence, seed
        self._codes: dict[str, tuple[NDArray[np.int32], list[str]]] = {}

    def codes(self, axis: str) -> tuple[NDArray[np.int32], list[str]]:
        """Return the label of each row on an axis, (n,), as an index into the labels as text, and these, sorted.

        The text of an unknown label is empty. A text for each of millions of links would take gigabytes.
        """
        if axis not in self._codes:
            each = [self._label(axis, number) for number in range(len(self.sites))]
            names = sorted({"", *(name for local, _ in each for name in local)})
            place = {name: code for code, name in enumerate(names)}
            parts = [
                np.broadcast_to(np.array([place[name] for name in local], dtype=np.int32)[code], len(site))
                for (local, code), site in zip(each, self.sites, strict=True)
            ]
            codes = np.concatenate(parts)[self.rows]
            if codes.ndim == 2 and axis == "los":
                codes = codes.max(1)
            elif codes.ndim == 2:
                codes = np.where((codes == codes[:, :1]).all(1), codes[:, 0], place[""])
            self._codes[axis] = codes, names
        return self._codes[axis]

    def select(self, key: str, conditions: dict[str, Any]) -> NDArray[np.bool_]:
        """Return a mask of the rows that satisfy all conditions, shape (n,).

        Args:
            key: Name of the setting, for messages, such as `data.train_on`.
            conditions: For each axis a value, a list of values, or, for tilt and frequency, the lowest and the highest
                value. Names may contain `*` as in file names.

        Raises:
            InputError: An axis is unknown, or no link has a given value.
        """
        chosen = np.ones(len(self.rows), dtype=bool)
        for axis, given in conditions.items():
            if axis not in self.AXES:
                raise InputError(f"{key} names the axis {axis}: choose among {', '.join(self.AXES)}")
            wanted = list(given) if isinstance(given, list | tuple) else [given]
            codes, names = self.codes(axis)
            held = self._held(axis)
            if axis in _NUMBERS and len(wanted) == 2:
                low, high = (_number(f"{key}.{axis}", value) for value in wanted)
                matching = [label for label in held if low <= float(label) <= high]
                unknown = [] if matching else [f"{low:g} to {high:g}"]
            else:
                found = [fnmatch.filter(held, _text(value)) for value in wanted]
                matching = [label for part in found for label in part]
                unknown = [_text(value) for value, part in zip(wanted, found, strict=True) if not part]
            if unknown or not wanted:
                raise InputError(
                    f"{key}.{axis} names {', '.join(unknown) or 'nothing'}, but the data hold {shown(held)}"
                )
            chosen &= np.isin(names, matching)[codes]
        return chosen

    def split_by(self, key: str, names: Sequence[str]) -> list[NDArray[np.bool_]]:
        """Return a mask (n,) of the rows of each of several labels of one axis.

        Raises:
            InputError: No axis has all of these labels.
        """
        for axis in self.AXES:
            if set(names) <= set(self._held(axis)):
                codes, known = self.codes(axis)
                return [codes == known.index(name) for name in names]
        several = "; ".join(f"{axis} {shown(held)}" for axis in self.AXES if len(held := self._held(axis)) > 1)
        raise InputError(
            f"{key} names {', '.join(names)}, which are no labels of one axis; the data hold "
            + (several or "one world only")
        )

    def _held(self, axis: str) -> list[str]:
        codes, names = self.codes(axis)
        counts = np.bincount(codes, minlength=len(names))
        return [name for name, count in zip(names, counts, strict=True) if name and count]

    def _label(self, axis: str, number: int) -> tuple[list[str], NDArray[np.int64] | int]:
        """Return the labels of the links of a site as text, and the index of that of each link, (n,), or of all."""
        site = self.sites[number]
        if axis == "los":
            return ["0", "1", ""], site.links.los.long().numpy()
        if axis == "mobility":
            return [*MOBILITIES, ""], self._mobility(number)
        names = {"city": site.city, "area": site.area, "variant": site.domain.get("variant", "")}
        names["scenario"] = site.domain.get("scenario", site.city)
        name = names[axis] if axis in names else _site_domain(site, self.bs)[AXES.index(axis)]
        return [str(name)], 0

    def _mobility(self, number: int) -> NDArray[np.int64] | int:
        """Return the mobility class of the users of a site, an index into `MOBILITIES`; -1 if unknown."""
        site = self.sites[number]
        if self.sequence is None or not site.links.has_rays:
            mobility = site.domain.get("mobility")
            return MOBILITIES.index(mobility) if mobility in MOBILITIES else -1
        user = torch.arange(len(site))
        span = speed_spans([site]).expand(len(site), 2)
        area = torch.full_like(user, zlib.crc32(site.area.encode()))
        drawn = draw_motion(self.sequence, area, user, self.seed, span).mobility
        codes: NDArray[np.int64] = drawn.numpy()
        return codes


def _text(value: object) -> str:
    """Return a value as the text of a label: 28000 for 28000.0 and 1 for true."""
    return (
        str(int(value)) if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()) else str(value)
    )


def _number(key: str, value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise InputError(f"{key} must be numbers, got {value!r}") from None
