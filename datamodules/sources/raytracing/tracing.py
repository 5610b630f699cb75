"""Ray tracing of links with Sionna RT, which is imported inside functions since that takes a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.sites.paths import Paths
from datamodules.sources.raytracing.scenes import load


@dataclass(frozen=True)
class Tracer:
    """Traces links in a scene, which stays loaded between calls. Results are deterministic.

    Attributes:
        file: Mitsuba XML file of the scene.
        frequency: Carrier [Hz].
        max_depth: Largest number of interactions of a path.
        los: Whether to trace the direct path.
        specular: Whether to trace specular reflections.
        diffraction: Whether to trace first-order diffraction at wedges.
        scattering: Scattering coefficient of the materials that state none; 0 traces no diffuse reflection.
        samples: Rays launched from each base station.
        max_paths: Largest number of paths of a link, the strongest ones.
        seed: Random seed of diffraction and scattering.
    """

    file: Path
    frequency: float
    max_depth: int = 4
    los: bool = True
    specular: bool = True
    diffraction: bool = False
    scattering: float = 0.0
    samples: int = 50_000
    max_paths: int = 20
    seed: int = 0

    def __call__(self, stations: NDArray[Any], users: NDArray[Any]) -> list[Paths]:
        """Trace every base station to every user.

        Args:
            stations: Base-station positions [m], shape (S, 3).
            users: User positions [m], shape (U, 3).

        Returns:
            The `U` links of each base station.
        """
        return to_paths(solve(self, stations, users), self.frequency, users, self.max_paths)

    def sees(self, origins: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
        """Return the line of sight between points (S, 3) and (V, 3) [m], shape (S, V), bool."""
        scene = load(self.file, self.frequency, self.scattering)
        import mitsuba as mi

        start = np.repeat(origins, len(targets), axis=0).astype(np.float32)
        step = np.tile(targets, (len(origins), 1)).astype(np.float32) - start
        ray = mi.Ray3f(o=mi.Point3f(*start.T), d=mi.Vector3f(*step.T))
        # counted in steps, and a step is the whole link
        ray.maxt = type(ray.maxt)(1.0)
        return ~np.asarray(scene.mi_scene.ray_test(ray)).reshape(len(origins), len(targets))


def solve(tracer: Tracer, stations: NDArray[Any], users: NDArray[Any], candidates: int = 1_000_000) -> Any:
    """Trace every base station to every user.

    Args:
        tracer: Scene and settings.
        stations: Base-station positions [m], shape (S, 3).
        users: User positions [m], shape (U, 3).
        candidates: Largest number of candidate paths of a base station; further ones are lost.

    Returns:
        The `sionna.rt.Paths` between single antennas.
    """
    scene = load(tracer.file, tracer.frequency, tracer.scattering)
    from sionna.rt import PathSolver, Receiver, Transmitter

    devices = [Transmitter(f"bs{i}", position=position.tolist()) for i, position in enumerate(stations)]
    devices += [Receiver(f"ue{i}", position=position.tolist()) for i, position in enumerate(users)]
    try:
        scene.add(devices)
        return PathSolver(deterministic=True)(
            scene,
            max_depth=tracer.max_depth,
            max_num_paths_per_src=candidates,
            samples_per_src=tracer.samples,
            los=tracer.los,
            specular_reflection=tracer.specular,
            diffuse_reflection=tracer.scattering > 0,
            refraction=False,  # these buildings are empty shells: a ray would pass one far too easily
            diffraction=tracer.diffraction,
            seed=tracer.seed,
        )
    finally:
        scene.remove([device.name for device in devices])


def to_paths(traced: Any, frequency: float, users: NDArray[Any], max_paths: int) -> list[Paths]:
    """Convert traced paths of Sionna between single antennas to `Paths`, one for each transmitter.

    The coefficient a of Sionna has no propagation phase, so gain = a e^{-j 2 pi f_c tau}. The product f_c tau, some
    10^3 to 10^5 turns, is reduced to less than one in float64; float32 would be wrong by 10^-4 to 10^-2 turns.

    Args:
        traced: A `sionna.rt.Paths`, traced with single-element arrays and `synthetic_array=True`.
        frequency: Carrier [Hz].
        users: Receiver positions [m], shape (U, 3).
        max_paths: Paths kept per link, strongest first.
    """
    valid, delay = np.asarray(traced.valid), np.asarray(traced.tau)
    a = (np.asarray(traced.a[0], dtype=np.float64) + 1j * np.asarray(traced.a[1], dtype=np.float64))[:, 0, :, 0]
    turns = np.modf(frequency * delay.astype(np.float64))[0]
    fields = {
        "gain": np.where(valid, a * np.exp(-2j * np.pi * turns), 0),
        "delay": delay,
        "aod": np.stack([np.asarray(traced.phi_t), np.asarray(traced.theta_t)], axis=-1),
        "aoa": np.stack([np.asarray(traced.phi_r), np.asarray(traced.theta_r)], axis=-1),
        "bounces": np.count_nonzero(np.asarray(traced.interactions), axis=0),
    }
    position = torch.tensor(users, dtype=torch.float32)
    links = []
    for s in range(valid.shape[1]):
        own = {name: torch.from_numpy(np.ascontiguousarray(value[:, s])) for name, value in fields.items()}
        links.append(Paths.build(**own, position=position.clone(), max_paths=max_paths).pad(1))
    return links
