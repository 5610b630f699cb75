"""Several sources of one place as variants of a twin: the users that they have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.errors import InputError, check_positive
from datamodules.sites.recording import Recording
from datamodules.sites.site import Site
from datamodules.sites.user_matching import pair
from datamodules.sources.base import Recipe, Source


class MatchedUsers(Source):
    """The common users of several sources of one place, as variants of a twin (twin calibration section IV-B).

    Such as a DeepMIMO scenario or another ray tracer for the real world beside a trace of our own. Base stations of the
    sources correspond in their order, users by position. A site is named `<site of the first source>_<variant>` and has
    `variant` among its domain labels; all variants have the area, the positions and the base-station orientation of the
    first one.

    Args:
        variants: The sources by name of the variant.
        tolerance: Largest distance between the positions of one user or base station in two sources [m].
        cache: Folder of finished sites; by default that of the first source.

    Raises:
        InputError: There are fewer than two variants, or the tolerance is not positive.
    """

    def __init__(self, variants: dict[str, Source], tolerance: float = 0.01, cache: str | None = None) -> None:
        check_positive("MatchedUsers", tolerance=tolerance)
        if len(variants) < 2:
            raise InputError("matched users need at least two variants, such as low and high, each a source")
        super().__init__(cache or str(next(iter(variants.values())).cache))
        self.variants, self.tolerance = variants, tolerance

    def originals(self) -> list[Source]:
        """Return the sources of the variants."""
        return [each for source in self.variants.values() for each in source.originals()]

    def recipes(self) -> list[Recipe]:
        """List one recipe for each variant, with all its base stations.

        Raises:
            InputError: The sources have different numbers of base stations.
        """
        of = {name: source.recipes() for name, source in self.variants.items()}
        sites = {name: [site for recipe in recipes for site in recipe.names] for name, recipes in of.items()}
        if len({len(names) for names in sites.values()}) > 1:
            sizes = ", ".join(f"{name} has {len(names)}" for name, names in sites.items())
            raise InputError(f"the variants need the same base stations, but {sizes}: set base_stations of the sources")
        # in order, since the first source gives positions and rows
        digests = [[name, *(recipe.digest for recipe in recipes)] for name, recipes in of.items()]
        first = next(iter(sites.values()))
        recipes = []
        for number, variant in enumerate(self.variants):
            parameters = {"source": "matched", "variant": variant, "of": digests, "tolerance": self.tolerance}
            names = tuple(f"{name}_{variant}" for name in first)
            recipes.append(Recipe(names, parameters, partial(self._make, number, variant, parameters)))
        return recipes

    def _make(self, number: int, variant: str, parameters: dict[str, Any], work: Path) -> Iterator[Site]:
        opened = [source.sites() for source in self.variants.values()]
        for couple in zip(*opened, strict=True):
            rows = self._common(couple)
            first, site = couple[0], couple[number]
            links = site.links[rows[number]]
            links = dataclasses.replace(links, position=first.links.position[rows[0]])
            yield dataclasses.replace(
                site, name=f"{first.name}_{variant}", links=links, bs_position=first.bs_position, area=first.area,
                city=first.city, bs_orientation=first.bs_orientation, environment=first.environment,
                domain={**site.domain, "variant": variant}, provenance=parameters,
            )  # fmt: skip

    def _common(self, sites: tuple[Site, ...]) -> list[torch.Tensor]:
        """Return for each site the rows of the users that all have, in the order of the first."""
        first, *others = sites
        if recorded := [site.name for site in sites if isinstance(site.links, Recording)]:
            raise InputError(f"site {recorded[0]} has recorded CSI: users are matched between sources of paths")
        pairs = [pair([first], [other], self.tolerance)[0] for other in others]
        kept = pairs[0][0].numpy()
        for rows, _ in pairs[1:]:
            kept = np.intersect1d(kept, rows.numpy())
        if not len(kept):
            names = " and ".join(site.name for site in sites)
            raise InputError(f"{names} have no user in common within {self.tolerance:g} m: give the same positions")
        chosen = [other[torch.from_numpy(np.searchsorted(rows.numpy(), kept))] for rows, other in pairs]
        return [torch.from_numpy(kept), *chosen]
