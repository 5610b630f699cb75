from itertools import pairwise

import numpy as np
import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.codebook import (
    cosine,
    dft_codebook,
    dft_weights,
    estimated_coefficients,
    is_selected,
    least_norm_channel,
    noise_power,
    normalized_weights,
    strongest_weights,
    top_codewords,
)
from datamodules.channel.draws import LinkDraws
from foundation.baselines.calibration import nearest_mean, places

CODEBOOK = dft_codebook(Array(1, 8))


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed)) * 1e-5


def test_weights_and_choice_equal_numpys():
    csi = draw(4, 1, 8, 1)
    weights = dft_weights(csi, CODEBOOK)
    d = CODEBOOK.numpy().T.conj()  # columns d_n, so that D^H h is a codeword applied to h
    expected = np.abs(d.conj().T @ csi.numpy().reshape(4, 8).T).T
    assert np.allclose(weights.numpy(), expected, rtol=1e-5)
    assert top_codewords(weights, 3).numpy().tolist() == np.argsort(-expected, 1)[:, :3].tolist()
    told = strongest_weights(weights, 3).numpy()
    assert np.allclose(told, np.where(expected >= np.sort(expected, 1)[:, -3:-2], expected, 0), rtol=1e-5)
    assert ((told > 0).sum(1) == 3).all()
    assert normalized_weights(weights).sum(1).tolist() == pytest.approx([1] * 4)
    assert normalized_weights(torch.zeros(1, 8)).tolist() == [[0] * 8]


def test_wide_weights_are_powers_averaged():
    csi = draw(2, 2, 8, 5)
    expected = np.einsum("qt,brtk->bqrk", CODEBOOK.numpy(), csi.numpy())
    assert np.allclose(dft_weights(csi, CODEBOOK), np.sqrt((np.abs(expected) ** 2).mean((2, 3))), rtol=1e-4)


def test_pilots_and_rebuilding_equal_numpys():
    csi = draw(3, 2, 8, 5)
    chosen = torch.tensor([[0, 3, 5], [7, 1, 2], [4, 6, 0]])
    known = least_norm_channel(estimated_coefficients(csi, CODEBOOK, chosen), CODEBOOK, chosen)
    for b in range(3):
        s = CODEBOOK.numpy()[chosen[b]]
        for r in range(2):
            h = csi[b, r].numpy()
            expected = np.linalg.lstsq(s, s @ h, rcond=None)[0]
            assert np.allclose(known[b, r], expected, atol=1e-10)


def test_all_codewords_rebuild_all_and_more_of_them_never_less():
    csi = draw(20, 1, 8, 3)
    weights = dft_weights(csi, CODEBOOK)
    cosines = []
    for count in range(1, 9):
        chosen = top_codewords(weights, count)
        cosines.append(cosine(csi, least_norm_channel(estimated_coefficients(csi, CODEBOOK, chosen), CODEBOOK, chosen)))
    assert torch.allclose(cosines[-1], torch.ones(20), atol=1e-5)
    assert all((more > less).all() for less, more in pairwise(cosines))


def test_codewords_of_an_oversampled_codebook_are_told_apart():
    codebook = dft_codebook(Array(1, 8), 16)
    csi = draw(4, 1, 8, 1)
    chosen = torch.arange(0, 16, 2).expand(4, -1)[:, :4]
    odd = torch.cat([chosen, chosen[:, :1] + 1], dim=1)  # one that lies between two others
    for words in (chosen, odd):
        known = least_norm_channel(estimated_coefficients(csi, codebook, words), codebook, words)
        assert torch.allclose(
            estimated_coefficients(known, codebook, words), estimated_coefficients(csi, codebook, words), atol=1e-9
        )


def test_noise_has_the_power_asked_for():
    csi = draw(200, 1, 8, 4)
    chosen = torch.zeros(200, 1, dtype=torch.long)
    noise = noise_power(csi, 10.0)
    site, user = torch.zeros(200, dtype=torch.long), torch.arange(200)
    drawn = LinkDraws(0, site, user).normal(1, 1, 4)
    error = estimated_coefficients(csi, CODEBOOK, chosen, noise, drawn) - estimated_coefficients(csi, CODEBOOK, chosen)
    assert (error.abs().square().mean() / noise.mean()).item() == pytest.approx(1, abs=0.1)


def test_hits_are_of_the_strongest():
    weights = torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.2, 0.1]])
    assert is_selected(torch.tensor([[2, 1], [1, 2]]), weights).tolist() == [1, 0]


def test_links_of_another_base_station_are_no_neighbours():
    # the second user stands at the place of the third, but is served by another base station 40 m away
    stations, users = [[0.0, 0.0], [0.0, 0.0], [40.0, 0.0]], [[10.0, 0.0], [12.0, 0.0], [12.0, 0.0]]
    bs_position, position = (torch.tensor([[*row, 1.5] for row in rows]) for rows in (stations, users))
    spots = places({"position": position - bs_position, "bs_position": bs_position})
    assert nearest_mean(spots[1:2], spots[[0, 2]], torch.eye(2)).tolist() == [[1, 0]]
    torch.testing.assert_close(spots, torch.cat([position, bs_position], 1))


@pytest.mark.parametrize("neighbours", [1, 3])
def test_nearest_users_equal_numpys(neighbours):
    rng = np.random.default_rng(0)
    places, known, weights = rng.uniform(0, 100, (5, 3)) + 1e5, rng.uniform(0, 100, (40, 3)) + 1e5, rng.random((40, 8))
    ours = nearest_mean(*(torch.tensor(x, dtype=torch.float32) for x in (places, known, weights)), neighbours)
    order = np.linalg.norm(places[:, None] - known, axis=2).argsort(1)[:, :neighbours]
    assert np.allclose(ours, weights[order].mean(1), rtol=1e-5)
