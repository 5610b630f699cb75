import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from datamodules.errors import InputError
from datamodules.plots.amplitudes import amplitudes, fading, fits, mismatch, plot_amplitudes
from datamodules.sites.recording import Recording
from tests.datamodules.rays import random_site

RNG = np.random.default_rng(0)


def test_amplitudes_are_norms_of_what_is_served():
    site = random_site("a", 20)
    expected = site.paths.gain.abs().square().sum(1).sqrt()
    np.testing.assert_allclose(amplitudes(site), expected[expected > 0], rtol=1e-6)
    assert len(amplitudes(site)) == 19, "the first user has no path"
    csi = torch.randn(5, 3, 1, 2, 4, dtype=torch.complex64)
    recorded = replace(site, links=Recording.build(csi, torch.zeros(5, 3), torch.ones(5, dtype=torch.int8), 1e-3))
    np.testing.assert_allclose(amplitudes(recorded), csi[:, 0].flatten(1).norm(dim=1), rtol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 3e-6])
def test_fits_tell_rayleigh_from_rice(scale):
    noise = RNG.normal(size=(2, 2000))
    rayleigh = scale * np.hypot(*noise)
    one, other = fits(rayleigh)
    assert (one.name, other.name) == ("Rayleigh", "Rice")
    assert one.scale == pytest.approx(scale, rel=0.05)
    assert one.p > 0.05
    rice = scale * np.hypot(noise[0] + 3.0, noise[1])
    one, other = fits(rice)
    assert one.p < 1e-6
    assert other.p > 0.05
    assert other.shape == pytest.approx(3.0, rel=0.1)
    assert other.scale == pytest.approx(scale, rel=0.1)


def test_fading_is_without_path_loss_and_by_line_of_sight():
    power = torch.logspace(-12, -6, 6)
    csi = torch.sqrt(power)[:, None, None, None] * torch.tensor([[[2.0, 1.0]]], dtype=torch.complex64)
    los = torch.tensor([1, 0, 1, 0, -1, 1], dtype=torch.int8)
    site = replace(random_site("a", 6), links=Recording.build(csi.expand(6, 1, 1, 2), torch.zeros(6, 3), los))
    found = fading([site, site])
    assert {state: len(values) for state, values in found.items()} == {1: 6, 0: 4, -1: 2}
    for values in found.values():
        np.testing.assert_allclose(values, 2 / math.sqrt(2.5), rtol=2e-3)
    rays = random_site("b", 9)
    expected = rays.paths.gain.sum(1).abs() / rays.paths.gain.abs().square().sum(1).sqrt()
    both = np.sort(np.concatenate(list(fading([rays]).values())))
    np.testing.assert_allclose(both, np.sort(expected[rays.paths.has_path]), rtol=1e-5)


def test_mismatch_is_the_largest_gap_of_two_cdfs():
    low, high = np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.5, 4.5, 5.5, 6.5])
    np.testing.assert_allclose(mismatch([low, high]), [[0.0, 0.75], [0.75, 0.0]])


def test_sites_are_drawn_by_scenario_and_downtilt():
    conditions = [(scenario, tilt) for scenario in ("uma", "inh") for tilt in range(2)]
    domains = [{"scenario": scenario, "tilt": math.radians(15 * tilt)} for scenario, tilt in conditions]
    sites = [random_site(f"site{i}", 40, seed=i, domain=domain) for i, domain in enumerate(domains)]
    cdf, histogram, small, matrix = plot_amplitudes(sites).axes[:4]
    assert [line.get_label() for line in cdf.lines] == ["uma, 0°", "uma, 15°", "inh, 0°", "inh, 15°"]
    assert cdf.lines[0].get_color() == cdf.lines[1].get_color() != cdf.lines[2].get_color()
    assert cdf.lines[0].get_linestyle() == cdf.lines[2].get_linestyle() != cdf.lines[1].get_linestyle()
    assert "uma, 15°: p" in histogram.get_legend().get_texts()[1].get_text()
    assert "NLOS: Rayleigh p" in small.get_legend().get_texts()[1].get_text()
    assert matrix.images[0].get_array().shape == (4, 4)
    with pytest.raises(InputError, match="no site with two users"):
        plot_amplitudes([random_site("x", 1)])
