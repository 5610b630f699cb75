"""Random rays for tests."""

import math

import numpy as np
import torch

from datamodules.sites.environment import Environment
from datamodules.sites.paths import Paths
from datamodules.sites.site import Site


def random_paths(num_users: int = 12, num_paths: int = 7, seed: int = 0, max_delay: float = 5e-6) -> Paths:
    """Draw rays: the first user has none, the last only one."""
    g = torch.Generator().manual_seed(seed)
    gain = torch.randn(num_users, num_paths, dtype=torch.complex64, generator=g) * 1e-5
    gain[0] = 0
    gain[-1, 1:] = 0

    def angles() -> torch.Tensor:
        draw = torch.rand(num_users, num_paths, 2, generator=g)
        return draw * torch.tensor([2 * math.pi, math.pi]) - torch.tensor([math.pi, 0.0])

    bounces = torch.randint(0, 4, (num_users, num_paths), generator=g)
    position = torch.cat([torch.rand(num_users, 2, generator=g) * 200 - 100, torch.full((num_users, 1), 1.5)], 1)
    delay = torch.rand(num_users, num_paths, generator=g) * max_delay
    return Paths.build(
        gain=gain, delay=delay, aod=angles(), aoa=angles(), position=position, bounces=bounces, max_paths=num_paths
    )


def random_site(
    name: str = "site", num_users: int = 60, seed: int = 0, area: str = "area", city: str = "city", **facts: object
) -> Site:
    paths = random_paths(num_users, seed=seed)
    return Site(
        name=name,
        links=paths,
        bs_position=torch.tensor([0.0, 0.0, 10.0]),
        carrier_frequency=3.5e9,
        area=area,
        city=city,
        environment=Environment.empty(np.asarray(paths.position)),
        **facts,  # type: ignore[arg-type]
    )
