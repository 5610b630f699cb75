"""`synthesize` on traced paths equals what Sionna RT itself computes from the same paths."""

import numpy as np
import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM
from datamodules.channel.synthesis import synthesize
from tests.raytracing import requires_sionna, trace_with_cfr

STATION = (-20.0, 3.0, 18.0)


def outdoor_users() -> np.ndarray:
    """Twelve users along the street, from below the base station to 60 m away."""
    x = np.linspace(-35, 45, 12)
    return np.column_stack([x, 4 * np.sin(x), np.full(12, 1.5)])


@requires_sionna
@pytest.mark.parametrize(
    ("bs", "ue", "orientation"),
    [
        ((4, 2), (1, 1), (0.0, 0.0, 0.0)),
        ((1, 8), (1, 1), (0.0, 0.0, 0.0)),
        ((4, 2), (2, 2), (0.7, 0.2, -0.3)),
        ((1, 8), (1, 2), (-2.4, 0.1, 0.5)),
    ],
)
def test_equals_sionna_cfr_to_60_db(bs, ue, orientation):
    ofdm = OFDM(num_subcarriers=32, bandwidth=100e6)
    paths, expected = trace_with_cfr(STATION, outdoor_users(), bs, ue, orientation, np.arange(32) * ofdm.spacing)
    assert paths.has_path.all()
    assert paths.mask.sum(1).float().mean() > 4
    csi = synthesize(paths, bs=Array(*bs, orientation=orientation), ue=Array(*ue), ofdm=ofdm, reference="center")
    error = (csi - expected).abs().square().sum((1, 2, 3)) / expected.abs().square().sum((1, 2, 3))
    assert 10 * torch.log10(error.max()) < -60
    at_corner = synthesize(paths, bs=Array(*bs, orientation=orientation), ue=Array(*ue), ofdm=ofdm)
    # the corner reference differs by a phase of each path, so it must not pass for the same
    assert (at_corner - expected).abs().square().sum() > 1e-3 * expected.abs().square().sum()
