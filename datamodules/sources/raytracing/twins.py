"""Twins of one scene: the same users and base stations, traced with several settings."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.sites.paths import Paths
from datamodules.sites.site import Site
from datamodules.sources.base import Recipe, Source
from datamodules.sources.raytracing import foliage as trees
from datamodules.sources.raytracing.foliage import Foliage
from datamodules.sources.raytracing.sionna_rt import SionnaRT
from datamodules.sources.raytracing.tracing import Tracer, solve, to_paths


class Variant(TypedDict, total=False):
    """Settings of a variant that differ from those of the base.

    Attributes:
        max_depth: Largest number of interactions of a path.
        specular: Whether to trace specular reflections.
        diffraction: Whether to trace first-order diffraction.
        scattering: Scattering coefficient in [0, 1] of the materials that state none.
        samples: Rays launched from each base station.
        frequency: Carrier [Hz].
        foliage: Whether there are street trees.
    """

    max_depth: int
    specular: bool
    diffraction: bool
    scattering: float
    samples: int
    frequency: float
    foliage: bool


class Twins(Source):
    """The users and base stations of a scene, traced once for each variant.

    A site is named `<name>_<variant>_bs<i>` and has `variant` among its domain labels. The sites of all variants have
    the same users in the same rows, and one area, so that no split separates a user from its twin.

    Args:
        base: The scene, its users and base stations, and the settings that a variant does not give.
        variants: The variants by name; by default a twin of high and one of low fidelity, as in twin calibration.
        foliage: The trees of the variants that have `foliage`.
        cache: Folder of finished sites; by default that of `base`.

    Raises:
        InputError: A variant has an unknown or invalid entry.
    """

    def __init__(
        self,
        base: SionnaRT,
        variants: dict[str, Variant] | None = None,
        foliage: Foliage = Foliage(),  # noqa: B008 (frozen)
        cache: str | None = None,
    ) -> None:
        super().__init__(cache or str(base.cache))
        if variants is None:
            variants = {
                "high": {"max_depth": 5, "diffraction": True, "scattering": 0.3},
                "low": {"max_depth": 2, "diffraction": False, "scattering": 0.0},
            }
        if not variants:
            raise InputError("twins need at least one variant, such as low: {max_depth: 2}")
        self.base, self.foliage = base, foliage
        self.twins = {name: self._twin(name, variant) for name, variant in variants.items()}

    def recipes(self) -> list[Recipe]:
        """List one recipe for each variant, with the sites of its base stations."""
        recipes = []
        for variant, twin in self.twins.items():
            [recipe] = twin.recipes()
            parameters = {**recipe.parameters, "source": "twins", "variant": variant}
            recipes.append(Recipe(recipe.names, parameters, partial(self._make, recipe, variant, parameters)))
        return recipes

    def _make(self, recipe: Recipe, variant: str, parameters: dict[str, Any], work: Path) -> Iterator[Site]:
        for site in recipe.make(work):
            domain = {**site.domain, "variant": variant}
            yield dataclasses.replace(site, area=self.base.name, domain=domain, provenance=parameters)

    def _twin(self, name: str, variant: Variant) -> SionnaRT:
        """Return a copy of the base with the settings of a variant."""
        known = Variant.__annotations__
        for key in variant:
            if key not in known:
                raise InputError(f"variant {name!r} has the unknown entry {key!r}: choose among {', '.join(known)}")
        for key, least in (("max_depth", 0), ("samples", 1), ("frequency", 1.0), ("scattering", 0.0)):
            if not variant.get(key, least) >= least:  # type: ignore[operator]
                raise InputError(f"variant {name!r}: {key} must be at least {least:g}, got {variant.get(key)}")
        if variant.get("scattering", 0.0) > 1:
            raise InputError(f"variant {name!r}: scattering must lie in [0, 1], got {variant['scattering']}")
        changes: dict[str, Any] = dict(variant)
        planted = changes.pop("foliage", False)
        before = self.base.tracer
        tracer = dataclasses.replace(before, **changes)
        twin = copy.copy(self.base)
        twin.name = f"{self.base.name}_{name}"
        twin.tracer = LeafyTracer(**vars(tracer), foliage=self.foliage) if planted else tracer
        # as much memory for a call as the base takes
        twin.chunk = max(1, self.base.chunk * _work(before) // _work(tracer))
        return twin


@dataclasses.dataclass(frozen=True)
class LeafyTracer(Tracer):
    """A `Tracer` with attenuation of paths through trees.

    Attributes:
        foliage: The trees.
    """

    foliage: Foliage = dataclasses.field(default_factory=Foliage)

    def __call__(self, stations: NDArray[Any], users: NDArray[Any]) -> list[Paths]:
        """Trace every base station to every user; arguments and result as those of `Tracer`."""
        traced = solve(self, stations, users)
        canopies = trees.clear_of(self.foliage.canopies(self.file), stations)
        rate = self.foliage.attenuation
        rate = trees.attenuation_at(self.frequency) if rate is None else rate
        left = 10 ** (-rate * trees.lengths_inside(traced, stations, users, canopies) / 20)
        fields = {key: getattr(traced, key) for key in ("valid", "tau", "phi_t", "theta_t", "phi_r", "theta_r")}
        # antennas have an axis each: (U, R, S, T, P)
        a = tuple(np.asarray(part) * left[:, None, :, None] for part in traced.a)
        weakened = SimpleNamespace(**fields, interactions=traced.interactions, a=a)
        return to_paths(weakened, self.frequency, users, self.max_paths)


def _work(tracer: Tracer) -> int:
    return tracer.samples * max(tracer.max_depth, 1)
