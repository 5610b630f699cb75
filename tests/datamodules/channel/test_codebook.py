import math

import numpy as np
import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.codebook import beam_power, beam_power_of_paths, dft_codebook
from datamodules.channel.ofdm import OFDM
from datamodules.channel.synthesis import synthesize
from datamodules.errors import InputError
from datamodules.sites.paths import Paths
from tests.datamodules.rays import random_paths

CASES = [(Array(1, 32), 64), (Array(8, 8), 64), (Array(4, 8), 128), (Array(16, 1), 16), (Array(1, 7), 21)]


@pytest.mark.parametrize(("array", "beams"), CASES)
def test_beams_have_unit_norm_and_no_two_are_alike(array, beams):
    codebook = dft_codebook(array, beams)
    assert codebook.shape == (beams, array.num_elements)
    gram = (codebook @ codebook.mH).abs()
    assert torch.allclose(gram.diagonal(), torch.ones(beams), atol=1e-5)
    assert (gram - torch.eye(beams)).max() < 0.999


def test_square_codebook_is_unitary():
    codebook = dft_codebook(Array(8, 8))
    assert torch.allclose(codebook @ codebook.mH, torch.eye(64, dtype=torch.complex64), atol=1e-6)


@pytest.mark.parametrize("index", [0, 1, 8, 13, 15])
def test_a_path_along_a_beam_is_best_served_by_it(index):
    # beam q of 16 points at the direction cosine (q - 8) / 8 of a half-wavelength array
    azimuth = math.asin((index - 8) / 8)
    one = random_paths(1, 1)
    angles = torch.tensor([[[azimuth, math.pi / 2]]])
    paths = Paths(**{**one.as_dict(), "gain": torch.ones(1, 1, dtype=torch.complex64), "aod": angles})
    codebook = dft_codebook(Array(1, 16))
    power = beam_power(synthesize(paths, Array(1, 16), Array(), OFDM(4)), codebook)
    assert power.argmax() == index
    assert power.max() == pytest.approx(16 * 4, rel=1e-5)


def test_beams_of_a_rectangle_are_numbered_as_its_elements():
    # beam (q, p) of 4 x 8 points at the direction cosines (q - 2) / 2 along the rows and (p - 4) / 4 along the columns
    row, column = np.divmod(np.arange(32), 8)
    for q, p in ((3, 5), (1, 7), (2, 0)):
        wave = np.exp(1j * np.pi * (row * (q - 2) / 2 + column * (p - 4) / 4)).reshape(1, 1, 32, 1)
        power = beam_power(torch.tensor(wave, dtype=torch.complex64), dft_codebook(Array(4, 8)))[0]
        assert power.argmax() == 8 * q + p
        assert power.max() == pytest.approx(32, rel=1e-5)


def test_beams_of_two_polarisations_have_the_second_in_opposite_phase_and_in_phase():
    alone = dft_codebook(Array(2, 4)) / math.sqrt(2)
    expected = torch.cat([torch.cat([alone, -alone], 1), torch.cat([alone, alone], 1)])
    torch.testing.assert_close(dft_codebook(Array(2, 4, polarization="cross")), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("ue", [Array(), Array(pattern="dipole"), Array(2, 2)])
@pytest.mark.parametrize("bs", [Array(1, 32), Array(4, 4, pattern="tr38901", orientation=(0.3, 0.1, 0.0))])
def test_power_from_rays_equals_power_from_csi(bs, ue):
    paths, ofdm = random_paths(40), OFDM(32)
    codebook = dft_codebook(bs)
    from_csi = beam_power(synthesize(paths, bs, ue, ofdm), codebook)
    from_rays = beam_power_of_paths(paths, bs, ue, ofdm, codebook)
    assert torch.allclose(from_rays, from_csi, atol=2e-6 * from_csi.max())


def test_impossible_codebook_is_refused():
    with pytest.raises(InputError, match=r"no DFT codebook of 65 beams .*: set data\.num_beams, such as to 64 or 256"):
        dft_codebook(Array(8, 8), 65)
