"""Contents of a cache of sites, and statistics of a site."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.errors import DatasetNotFoundError

if TYPE_CHECKING:
    from datamodules.sites.paths import Paths
    from datamodules.sites.site import Site


def cache_folder(cache: str | Path | None) -> Path:
    """Return the folder of finished sites: as given, by default `$CSI_CACHE`, or `data/sites`."""
    return Path(cache or os.environ.get("CSI_CACHE") or "data/sites").expanduser()


def folders(cache: Path | None = None) -> list[Path]:
    """Return the folders of all finished sites.

    Args:
        cache: Folder of the sites; by default that of every `Source`.

    Raises:
        DatasetNotFoundError: There is none.
    """
    cache = cache_folder(cache)
    # a folder whose name begins with a dot is unfinished
    found = sorted(file.parent for file in cache.glob("*/site.json") if not file.parent.name.startswith("."))
    if not found:
        raise DatasetNotFoundError(f"no site in {cache}: make some with `make`, or set --cache or CSI_CACHE")
    return found


def matching(cache: Path | None, name: str) -> Iterator[tuple[Path, Site]]:
    """Open the sites of a name, which may be the name of a site, of its folder or of its area.

    Raises:
        DatasetNotFoundError: There is none.
        InputError: One is damaged.
    """
    from datamodules.sites.site import Site

    found = False
    for folder in folders(cache):
        facts = _facts(folder)
        if name in (folder.name, facts.get("name"), facts.get("area")):
            found = True
            yield folder, Site.load(folder)
    if not found:
        raise DatasetNotFoundError(f"no site or area is named {name!r}: `ls` lists them")


def row(folder: Path) -> tuple[str, str, str, str, str, str]:
    """Return name, links, size, city, area and source of a site, without opening its tensors."""
    facts = _facts(folder)
    name = facts.get("name", f"{folder.name} (damaged)")
    source = facts.get("provenance", {}).get("source", "?")
    city = str(facts.get("city", facts.get("place", "?")))  # `place` in sites of older releases
    area = str(facts.get("area", "?"))
    return str(name), str(facts.get("num_users", "?")), in_bytes(size(folder)), city, area, str(source)


def size(folder: Path) -> int:
    """Return the size of a site on disk [bytes]."""
    return sum(file.stat().st_size for file in folder.iterdir())


def in_bytes(number: float) -> str:
    """Return a size as text with its unit."""
    units = iter(("B", "KB", "MB", "GB"))
    unit = next(units)
    while number >= 1000 and (larger := next(units, "")):
        number, unit = number / 1000, larger
    return f"{number:.3g} {unit}"


def statistics(site: Site) -> dict[str, str]:
    """Return statistics of a site as text, by name."""
    from datamodules.sites.recording import Recording
    from datamodules.sources.recorded.report import report

    links, bounds = site.links, site.environment.bounds
    in_sight, hidden, unknown = (int((links.los == state).sum()) for state in (1, 0, -1))
    rays = links.has_rays
    facts = {
        "city, area": f"{site.city}, {site.area}",
        "carrier": f"{site.carrier_frequency / 1e9:g} GHz",
        "base station": f"{_tuple(site.bs_position.tolist())} m, turned {_tuple(site.bs_orientation.tolist())} rad",
        "bounds": f"{_tuple(bounds[:2])} to {_tuple(bounds[2:])} m, {len(site.environment.heights)} buildings",
        "links": f"{len(links)}: {in_sight} in line of sight, {hidden} not, {unknown} "
        + ("without any path" if rays else "unknown"),
    }
    if rays and links.has_path.any():
        facts |= _of_rays(site.paths[links.has_path])
    if isinstance(links, Recording):
        facts |= report(links, site.carrier_frequency)
    labels = {key: value for key, value in site.domain.items() if key != "frequency"}
    return facts | {"domain": json.dumps(labels), "provenance": json.dumps(site.provenance)}


def _of_rays(paths: Paths) -> dict[str, str]:
    power = 10 * paths.power.double().log10()
    return {
        "paths a link": f"{paths.mask.sum(1).double().mean():.1f} on average, {int(paths.mask.sum(1).max())} at most",
        "delay spread": f"{1e9 * paths.delay_spread.median():.1f} ns in the median",
        "power": f"{power.min():.1f} to {power.max():.1f} dB, {power.median():.1f} dB in the median, for 1 W sent",
    }


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / "site.json").read_text())
        return facts if isinstance(facts, dict) else {}
    except (OSError, ValueError):
        return {}


def _tuple(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in values) + ")"
