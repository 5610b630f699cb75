"""How fast areas are traced: `python -m foundation.evaluation.tracing_bench [areas of each city]`.

The obvious way loads a city once and calls `PathSolver()` once an area, with its even lattice and its default tables,
and all base stations and users of the area; refraction is off in both, as it is other physics. Both are held against a
million rays from each base station. The ways take turns area by area in one process, after one call each to warm up.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.progress import Progress
from datamodules.sites.paths import Paths
from datamodules.sources.raytracing import scenes, tracing
from datamodules.sources.raytracing.areas import Areas
from datamodules.sources.raytracing.scene_geometry import open_geometry

Trace = Callable[[NDArray[Any], NDArray[Any]], list[Paths]]

#: Sionna's own size of the table of known chains
_SIONNA_SLOTS = 1_000_000
#: a table so large that next to no chain of a million rays falls on another's slot
_REFERENCE_SLOTS, _REFERENCE_SAMPLES = 16_000_000, 1_000_000


def compare_tracing(
    areas: Areas, even_samples: tuple[int, ...] = (20_000, 50_000, 100_000)
) -> dict[str, dict[str, float]]:
    """Trace every area in the obvious way and in ours.

    Args:
        areas: The areas, and how they are traced.
        even_samples: Rays a base station of the obvious way.

    Returns:
        For each way: `wall` and `cpu` [s] an area, the latter summed over threads; `energy`, the power of all links
        over that of the reference; `share`, the same link by link, capped at 1 and averaged over the links that the
        reference serves; `found`, the share of those links that have a path at all.
    """
    rows: dict[str, list[tuple[float, ...]]] = {}
    with Progress(sum(areas.counts.values()), "comparing", "area") as progress:
        for file, count in areas.counts.items():
            tracer = areas.tracers[file]
            ways: dict[str, Trace] = {f"obvious, {n:,} rays": _even(tracer, n) for n in even_samples}
            ways[f"ours, {tracer.samples:,} rays"] = tracer
            for index in range(count):
                _, stations, users = areas.lay_out(open_geometry(file), index)
                reference = _reference(tracer, stations, users)
                for name, trace in ways.items():
                    if index == 0:
                        trace(stations, users)
                    rows.setdefault(name, []).append(_measure(trace, stations, users, reference))
                progress.update()
    results = {}
    for name, values in rows.items():
        wall, cpu, power, total, share, found = np.mean(values, axis=0).tolist()
        results[name] = {"wall": wall, "cpu": cpu, "energy": power / total, "share": share, "found": found}
    return results


def _measure(trace: Trace, stations: NDArray[Any], users: NDArray[Any], reference: NDArray[Any]) -> tuple[float, ...]:
    """Return wall and CPU time [s], power, power of the reference, share and found of one area."""
    wall, cpu = time.perf_counter(), time.process_time()
    power = _power(trace(stations, users))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    served = reference > 0
    share = power[served] / reference[served]
    return wall, cpu, power.sum(), reference.sum(), np.minimum(share, 1).mean(), (share > 0).mean()


def _reference(tracer: tracing.Tracer, stations: NDArray[Any], users: NDArray[Any]) -> NDArray[Any]:
    # one base station at a time: five of these tables would not fit into memory
    trace = _even(tracer, _REFERENCE_SAMPLES, _REFERENCE_SLOTS)
    return np.concatenate([_power(trace(station[None], users)) for station in stations])


def _even(tracer: tracing.Tracer, samples: int, slots: int = _SIONNA_SLOTS) -> Trace:
    """Return the obvious way to trace what a tracer traces."""

    def trace(stations: NDArray[Any], users: NDArray[Any]) -> list[Paths]:
        scene = scenes.load(tracer.file, tracer.frequency, tracer.scattering)
        from sionna.rt import PathSolver, Receiver, Transmitter
        from sionna.rt.path_solvers.sb_candidate_generator import SBCandidateGenerator

        ours, SBCandidateGenerator.MIN_SPEC_COUNT_SIZE = SBCandidateGenerator.MIN_SPEC_COUNT_SIZE, slots
        for i, position in enumerate(stations):
            scene.add(Transmitter(f"bs{i}", position=position.tolist()))
        for i, position in enumerate(users):
            scene.add(Receiver(f"ue{i}", position=position.tolist()))
        traced = PathSolver()(
            scene,
            max_depth=tracer.max_depth,
            samples_per_src=samples,
            refraction=False,
            diffraction=tracer.diffraction,
            diffuse_reflection=tracer.scattering > 0,
        )
        links = tracing.to_paths(traced, tracer.frequency, users, tracer.max_paths)
        scene.remove([*scene.transmitters, *scene.receivers])
        SBCandidateGenerator.MIN_SPEC_COUNT_SIZE = ours
        return links

    return trace


def _power(links: list[Paths]) -> NDArray[Any]:
    """Return the power of every link, shape (S, U)."""
    return np.stack([paths.power.double().numpy() for paths in links])


def main(areas_per_city: int = 2) -> None:
    """Print the comparison over the four shipped cities."""
    results = compare_tracing(Areas(areas_per_city=areas_per_city))
    print(f"{'':24}{'s/area':>8}{'CPU s':>8}{'energy':>9}{'share':>8}{'found':>8}")
    for name, row in results.items():
        print(f"{name:24}{row['wall']:8.2f}{row['cpu']:8.2f}{row['energy']:9.4f}{row['share']:8.3f}{row['found']:8.3f}")
    *even, ours = results.values()
    for key in ("wall", "cpu"):
        # what the obvious way would take for our share, between its own numbers of rays
        theirs = np.interp(ours["share"], [row["share"] for row in even], [row[key] for row in even])
        print(f"speed-up at equal share, {key}: {theirs / ours[key]:.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
