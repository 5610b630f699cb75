"""Computation time of a calibrated twin: `python -m foundation.evaluation.calibration_bench`.

Times for one user the tracing at low and at high fidelity, with the settings of `experiments/calibration.yaml`, and the
calibrator, in one process, alternating, after one warm-up each (twin calibration section V-B states 20 times less than
high fidelity). Each fidelity has the number of users per call that `Twins` uses, as every call has a fixed cost.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import torch

from datamodules import Array, SionnaRT, Twins
from datamodules.channel.ofdm import OFDM
from datamodules.channel.synthesis import synthesize
from datamodules.progress import Progress
from datamodules.sources.raytracing import scene_geometry
from datamodules.yaml_file import read_yaml
from foundation.evaluation.twin_pictures import markdown
from foundation.models.calibration import TwinCalibration
from foundation.runtime.stopping import exit_status

#: number of rounds, of which the median is taken
_ROUNDS = 3
_EXPERIMENT = Path("experiments/calibration.yaml")


def costs(source: Twins, rounds: int = _ROUNDS) -> dict[str, tuple[float, float]]:
    """Return the time of each step for one user.

    Args:
        source: Twins with the variants `low` and `high`.
        rounds: Number of rounds; the median is returned.

    Returns:
        Wall and CPU time [s] of one user, the latter summed over threads: of tracing `low` and `high`, of the
        `calibrator` with the synthesis of its input, and of `calibrated`, `low` and the calibrator together.
    """
    base = source.base
    geometry = scene_geometry.open_geometry(base.tracer.file)
    stations = np.asarray(base.base_stations, dtype=np.float32)
    window = base.window or geometry.bounds
    rng = np.random.default_rng(0)
    counts = {name: source.twins[name].chunk for name in ("low", "high")}
    counts["calibrator"] = counts["low"]
    xy = geometry.scatter(window, max(counts.values()), rng)
    spots = np.column_stack([xy, geometry.ground(xy) + base.user_height]).astype(np.float32)
    model = TwinCalibration().eval()
    [links] = source.twins["low"].tracer(stations[:1], spots[: counts["low"]])
    position = links.position - torch.from_numpy(stations[0])

    @torch.no_grad()
    def calibrate() -> None:
        model(synthesize(links, Array(1, 32), Array(), OFDM(16, 10e6)), position)

    steps: dict[str, Callable[[], object]] = {
        "low": lambda: source.twins["low"].tracer(stations[:1], spots[: counts["low"]]),
        "high": lambda: source.twins["high"].tracer(stations[:1], spots[: counts["high"]]),
        "calibrator": calibrate,
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    with Progress((rounds + 1) * len(steps), "timing", leave=False) as progress:
        for turn, name in product(range(rounds + 1), steps):
            wall, cpu = time.perf_counter(), time.process_time()
            steps[name]()
            if turn:  # the first warms up
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            progress.update()
    spent = {name: np.median(values, axis=0) / counts[name] for name, values in times.items()}
    spent["calibrated"] = spent["low"] + spent["calibrator"]
    return {name: (float(values[0]), float(values[1])) for name, values in spent.items()}


def cost_table(spent: dict[str, tuple[float, float]]) -> str:
    """Return the table of `costs`, with the CPU time of high fidelity over that of each step."""
    names = {
        "high": "high-fidelity tracing", "low": "low-fidelity tracing", "calibrator": "calibrator",
        "calibrated": "low fidelity and calibrator",
    }  # fmt: skip
    lines = [["a user", "wall [ms]", "CPU [ms]", "less than high fidelity, CPU"]]
    for key, name in names.items():
        wall, cpu = spent[key]
        lines.append([name, f"{1e3 * wall:.2f}", f"{1e3 * cpu:.2f}", f"{spent['high'][1] / cpu:.1f} x"])
    return markdown(lines)


def main() -> None:
    """Print the time that tracing at low and at high fidelity and the calibrator take for a user."""
    parser = argparse.ArgumentParser(prog="python -m foundation.evaluation.calibration_bench", description=main.__doc__)
    parser.parse_args()  # there are no options
    sys.exit(exit_status(report))


def report() -> None:
    """Print the table for the twins of the experiment."""
    [first, *_] = read_yaml(_EXPERIMENT)["data"]["init_args"]["source"]
    settings = first["init_args"]
    print(cost_table(costs(Twins(SionnaRT(**settings["base"]["init_args"]), settings["variants"]))))


if __name__ == "__main__":
    main()
