"""Speed of tracing areas: `python -m foundation.evaluation.tracing_bench [areas of each city]`.

The direct use of Sionna RT loads a city once and calls `PathSolver()` once for each area with all its base stations and
users, with a uniform lattice of rays and tables of default size; refraction is off in both methods. The reference power
of both is traced with a million rays from each base station. The methods alternate area by area in one process, after
one warm-up call each.
"""

from __future__ import annotations

import argparse
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
from foundation.runtime.stopping import exit_status

Trace = Callable[[NDArray[Any], NDArray[Any]], list[Paths]]

#: numbers of rays per base station of the direct use
_DIRECT_SAMPLES = (20_000, 50_000, 100_000)
#: Sionna's default size of the hash table of known interaction chains
_SIONNA_SLOTS = 1_000_000
#: a table size at which chains of a million rays hardly ever collide
_REFERENCE_SLOTS, _REFERENCE_SAMPLES = 16_000_000, 1_000_000


def compare_tracing(areas: Areas) -> dict[str, dict[str, float]]:
    """Trace every area by direct use of Sionna RT and by our tracer.

    Args:
        areas: The areas, with the settings of the tracer.

    Returns:
        For each method: `wall` and `cpu` [s] per area, the latter summed over threads; `energy`, the power of all links
        over that of the reference; `share`, the same ratio for each link, clipped to 1 and averaged over the links with
        power in the reference; `found`, the share of those links that have any path.
    """
    rows: dict[str, list[tuple[float, ...]]] = {}
    with Progress(sum(areas.counts.values()), "comparing", "area") as progress:
        for file, count in areas.counts.items():
            tracer = areas.tracers[file]
            methods: dict[str, Trace] = {f"direct, {n:,} rays": _direct(tracer, n) for n in _DIRECT_SAMPLES}
            methods[f"ours, {tracer.samples:,} rays"] = tracer
            for index in range(count):
                _, stations, users = areas.lay_out(open_geometry(file), index)
                reference = _reference(tracer, stations, users)
                for name, trace in methods.items():
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
    # one base station at a time: five tables of this size exceed the memory
    trace = _direct(tracer, _REFERENCE_SAMPLES, _REFERENCE_SLOTS)
    return np.concatenate([_power(trace(station[None], users)) for station in stations])


def _direct(tracer: tracing.Tracer, samples: int, slots: int = _SIONNA_SLOTS) -> Trace:
    """Return a function that traces by direct use of Sionna RT with the settings of a tracer."""

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


def main() -> None:
    """Print the comparison over the four shipped cities."""
    parser = argparse.ArgumentParser(prog="python -m foundation.evaluation.tracing_bench", description=main.__doc__)
    parser.add_argument("areas", nargs="?", type=int, default=2, help="areas of each city [2]")
    areas = parser.parse_args().areas
    sys.exit(exit_status(lambda: report(areas)))


def report(areas_per_city: int) -> None:
    """Print the comparison."""
    results = compare_tracing(Areas(areas_per_city=areas_per_city))
    print(f"{'':24}{'s/area':>8}{'CPU s':>8}{'energy':>9}{'share':>8}{'found':>8}")
    for name, row in results.items():
        print(f"{name:24}{row['wall']:8.2f}{row['cpu']:8.2f}{row['energy']:9.4f}{row['share']:8.3f}{row['found']:8.3f}")
    *direct, ours = results.values()
    for key in ("wall", "cpu"):
        # time of the direct use at our share, interpolated between its numbers of rays
        theirs = np.interp(ours["share"], [row["share"] for row in direct], [row[key] for row in direct])
        print(f"speed-up at equal share, {key}: {theirs / ours[key]:.2f}")


if __name__ == "__main__":
    main()
