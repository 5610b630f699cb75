"""What the network of the filter reads of a link and what becomes of its outputs, against sums over its bins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.channel.linear_prediction import to_bins
from heads.linear_filter import LinearFilter
from tests.heads.test_prediction import D, K, R, T, moving


@pytest.mark.parametrize(("taps", "horizons"), [(6, 2), (12, 1)])  # of nine snapshots
def test_inputs_and_outputs_of_the_network_are_those_of_the_docstring(taps: int, horizons: int) -> None:
    torch.manual_seed(0)
    net, csi = LinearFilter(D, horizons, taps, 16), moving(3)["csi"].to(torch.complex128)
    read, bins, noise = [], to_bins(csi), torch.full((3,), 2e-12, dtype=torch.float64)
    share = torch.rand(3, R * T * K, horizons, dtype=torch.float64)
    weights = torch.randn(3, R * T * K, horizons, taps, dtype=torch.complex128)

    def network(features, values, grid):
        read.append(values.numpy())
        return share, weights

    net._network = network  # type: ignore[method-assign]
    first, second, third = (guess.numpy() for guess in net.predictions(torch.zeros(3, D), bins, noise, (R, T)))
    for b in range(3):
        x = bins[b].numpy()
        strong = x[(abs(x) ** 2).mean(1) > 2 * 2e-12]
        assert 0 < len(strong) < len(x)
        lags = np.array([sum((s[n:] * s[: 9 - n].conj()).sum() for s in strong) for n in range(9)])
        lags = (lags / lags[0].real)[1:9]
        for m in range(0, R * T * K, 7):
            recent = np.concatenate([np.zeros(max(0, taps - 9)), x[m][-taps:]])
            turn = np.exp(-1j * np.angle(recent[-1])) / np.sqrt((abs(recent) ** 2).mean())
            guesses = [turn * guess[b, m] for guess in (first, second)]
            guesses = [guess / (1 + abs(guess) / 4) for guess in guesses]
            ratio = np.log(np.clip((abs(x[m]) ** 2).mean() / 2e-12, 1e-2, 1e6)) / 4
            seen = np.concatenate([recent * turn, *guesses])
            pairs = [np.stack([part.real, part.imag], 1).ravel() for part in (seen, lags)]
            expected = np.concatenate([pairs[0], [ratio], pairs[1]])
            np.testing.assert_allclose(read[0][b, m], expected, rtol=1e-6, atol=1e-8)
            second_share = share[b, m].numpy()
            mixed = (1 - second_share) * first[b, m] + second_share * second[b, m] + weights[b, m].numpy() @ recent
            np.testing.assert_allclose(third[b, m], mixed, rtol=1e-9)
