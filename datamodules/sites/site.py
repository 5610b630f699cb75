"""`Site`: one base station and its users, in memory and on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from datamodules.errors import DatasetNotFoundError, InputError, refuse_pointer
from datamodules.files import replacing, sha256
from datamodules.sites.environment import Environment
from datamodules.sites.paths import Paths
from datamodules.sites.recording import Recording

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: grows when a change makes older folders unreadable
FORMAT = 1
_PATHS, _RECORDING = "paths.safetensors", "recording.safetensors"
#: what a recording keeps in site.json
_RECORDED = ("interval", "bs_shape", "ue_shape", "bandwidth")


@dataclass(frozen=True)
class Site:
    """One base station and its users.

    Attributes:
        name: Unique name of the site.
        links: Paths of every link, or recorded CSI; see `Links` for their common interface.
        bs_position: Base-station position [m], shape (3,).
        carrier_frequency: Carrier [Hz].
        area: Name of the area; sites of one area share users and are on one side of area splits, see `area_numbers`.
        city: City or scenario of the area, held out as a whole by the `city` split.
        bs_orientation: Base-station array orientation (alpha, beta, gamma) about z, y, x [rad], shape (3,).
        environment: Buildings around the site.
        domain: Domain labels common to all links, such as scenario and frequency.
        provenance: Source, parameters, seed and library versions of the site.
    """

    name: str
    links: Paths | Recording
    bs_position: Tensor
    carrier_frequency: float
    area: str
    city: str
    environment: Environment
    bs_orientation: Tensor = field(default_factory=lambda: torch.zeros(3))
    domain: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of links."""
        return len(self.links)

    @property
    def is_located(self) -> bool:
        """Whether the positions of all users are known."""
        return bool(self.links.position.isfinite().all())

    @property
    def paths(self) -> Paths:
        """The paths.

        Raises:
            InputError: The site has recorded CSI.
        """
        if not isinstance(self.links, Paths):
            raise InputError(f"site {self.name!r} has recorded CSI, which has no paths")
        return self.links

    def windows(self, size: int) -> Site:
        """Return the site with a recording of one device divided into sequences of `size` snapshots; others unchanged.

        Raises:
            InputError: The recording has no sequence of that length without a gap.
        """
        if not isinstance(self.links, Recording) or not self.links.is_series:
            return self
        try:
            return replace(self, links=self.links.windows(size))
        except InputError as error:
            raise InputError(f"site {self.name}: {error}") from error

    def plot(self, color: Literal["los", "power"] = "los") -> Figure:
        """Draw the map: buildings, base station, and users coloured by line of sight or by received power."""
        from datamodules.plots.figures import plot_site

        return plot_site(self, color)

    def save(self, folder: Path) -> None:
        """Write the site into `folder`, whole or not at all.

        Raises:
            InputError: The disk is full or not writable; no partial site remains.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        recorded = not self.links.has_rays
        facts = {
            "format": FORMAT,
            "recording": {key: getattr(self.links, key) for key in _RECORDED} if recorded else None,
            "name": self.name,
            "area": self.area,
            "city": self.city,
            "bs_position": self.bs_position.tolist(),
            "bs_orientation": self.bs_orientation.tolist(),
            "carrier_frequency": self.carrier_frequency,
            "num_users": len(self),
            "domain": self.domain,
            "provenance": self.provenance,
            "environment": self.environment.to_json(),
        }
        try:
            with replacing(folder) as temporary:
                temporary.mkdir()
                file = temporary / (_RECORDING if recorded else _PATHS)
                save_file(self.links.as_dict(), file)
                # safetensors writes for its owner alone; caches are shared
                file.chmod(temporary.stat().st_mode & 0o666)
                facts["sha256"] = {file.name: sha256(file)}
                (temporary / "site.json").write_text(json.dumps({**facts, "facts_sha256": _digest(facts)}))
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot write site {self.name!r} to {folder}: {error}") from error

    @classmethod
    def load(cls, folder: Path, verify: bool = True) -> Site:
        """Open a site; its tensors stay memory-mapped.

        Args:
            folder: Folder of the site.
            verify: Whether the checksum of the tensor file is verified; that of site.json always is.

        Raises:
            DatasetNotFoundError: There is no site in the folder.
            InputError: A file is damaged or of another format; the message names it.
        """
        facts_file = tensor_file = folder / "site.json"
        if not facts_file.is_file():
            if folder.is_dir():  # its source takes it for made
                raise DatasetNotFoundError(f"no site in {folder}, site.json is missing: delete {folder} to remake it")
            raise DatasetNotFoundError(f"no site in {folder}: make it with its source")
        refuse_pointer(facts_file)
        try:
            facts = json.loads(facts_file.read_text())
            if facts["format"] != FORMAT:
                raise InputError(
                    f"{facts_file} has format {facts['format']}, not {FORMAT}: delete {folder} to remake it"
                )
            written = facts.pop("facts_sha256", None)  # sites of older releases have none
            if written not in (None, _digest(facts)):
                raise InputError(f"{facts_file} was changed (its checksum is wrong): delete {folder} to remake it")
            [(file, checksum)] = facts["sha256"].items()
            tensor_file = folder / file
            refuse_pointer(tensor_file)
            if not tensor_file.is_file() or (verify and sha256(tensor_file) != checksum):
                raise InputError(f"{tensor_file} is damaged (its checksum is wrong): delete {folder} to remake it")
            tensors = load_file(tensor_file)
            return cls(
                name=facts["name"],
                links=Paths.from_dict(tensors) if file == _PATHS else _recording(tensors, facts),
                bs_position=torch.tensor(facts["bs_position"]),
                carrier_frequency=facts["carrier_frequency"],
                area=facts["area"],
                city=facts["city" if "city" in facts else "place"],  # `place` in sites of older releases
                environment=Environment.from_json(facts["environment"]),
                bs_orientation=torch.tensor(facts["bs_orientation"]),
                domain=facts["domain"],
                provenance=facts["provenance"],
            )
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{facts_file} is damaged ({error!r}): delete {folder} to remake it") from error
        except SafetensorError as error:
            raise InputError(f"{tensor_file} is damaged ({error}): delete {folder} to remake it") from error


def area_numbers(sites: Sequence[Site]) -> list[int]:
    """Return the number of the area of each site, in order of appearance.

    Areas of equal name may differ, such as two windows of one scene. Sites are of one area if they have the same area
    name and the same environment or the same users.
    """
    known: dict[str, list[tuple[int, Site]]] = {}
    numbers: list[int] = []
    for site in sites:
        named = known.setdefault(site.area, [])
        number = next((number for number, other in named if _same_ground(site, other)), None)
        if number is None:
            number = 1 + max(numbers, default=-1)
            named.append((number, site))
        numbers.append(number)
    return numbers


def _same_ground(one: Site, other: Site) -> bool:
    return one.environment.digest == other.environment.digest or torch.equal(one.links.position, other.links.position)


def _recording(tensors: dict[str, Tensor], facts: dict[str, Any]) -> Recording:
    """Open recorded CSI; folders of releases before 0.2 have the interval alone."""
    said: dict[str, Any] = facts["recording"] if "recording" in facts else {"interval": facts["interval"]}
    fields: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in said.items()}
    return Recording(**fields, **dict[str, Any](tensors))


def _digest(facts: dict[str, Any]) -> str:
    """Return the SHA-256 of the content of `site.json`, independent of its formatting."""
    plain = json.loads(json.dumps(facts))  # as it reads: keys are text, and tuples are lists
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
