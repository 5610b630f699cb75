"""The device of the tests of a GPU, and data for them.

CSI_TEST_DEVICE=cpu tries them on the CPU, but for those of CUDA itself.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.sites.environment import Environment
from datamodules.sources.base import Recipe, Source
from tests.datamodules.rays import random_site

DEVICE = os.environ.get("CSI_TEST_DEVICE", "cuda")
ROOT = Path(__file__).parents[1]
requires_device = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU")
on_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")


def town_site(name):
    site = random_site(name, 120)
    houses = (np.array([[-60.0, 10.0], [-10.0, 10.0], [-10.0, 40.0], [-60.0, 40.0]]),)
    environment = Environment(houses, np.array([9.0]), (-100.0, -100.0, 100.0, 100.0))
    return dataclasses.replace(site, environment=environment)


class Town(Source):
    """Random rays of one area to three base stations, which need neither ray tracer nor download."""

    def recipes(self):
        return [Recipe((name,), {"town": name}, lambda _, name=name: [town_site(name)]) for name in "abc"]


def near(found, expected, tolerance=1e-5):
    """Compare tensors, nested in dicts and lists, by their largest error over the largest value."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        return [near(found[key], expected[key], tolerance) for key in expected]
    if isinstance(expected, (list, tuple)):
        return [near(one, other, tolerance) for one, other in zip(found, expected, strict=True)]
    found = found.cpu()
    if not (expected.is_floating_point() or expected.is_complex()):
        return torch.testing.assert_close(found, expected)
    assert torch.equal(found.isnan(), expected.isnan())
    error, level = ((x.nan_to_num() if not x.is_complex() else x).abs() for x in (found - expected, expected))
    assert error.numel() == 0 or error.max() <= tolerance * level.max(), float(error.max() / level.max())
