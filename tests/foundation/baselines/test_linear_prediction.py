"""The parts of linear prediction: transform, noise power, order and iteration of an autoregression."""

import math

import pytest
import torch
from scipy.stats import gamma

from datamodules.channel.linear_prediction import (
    ahead,
    angle_delay,
    from_angle_delay,
    link_order,
    noise_power,
    to_bins,
)
from foundation.baselines.prediction import link_ar
from tests.foundation.baselines.test_prediction_baselines import K, R, T, channel


def test_the_transform_is_unitary_and_undone():
    past, _ = channel()
    torch.testing.assert_close(from_angle_delay(angle_delay(past)), past)
    assert angle_delay(past).norm() == pytest.approx(past.norm())
    # a positive delay is a positive tap
    tone = torch.exp(-2j * math.pi * 3 * torch.arange(K) / K).expand(1, 1, R, T, K)
    assert angle_delay(tone).abs().sum((0, 1, 2, 3)).argmax() == 3


def test_noise_is_told_from_the_weakest_bins():
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 16, 1, 16, 64, dtype=torch.complex64, generator=g) * 0.1
    path = torch.exp(1j * 0.3 * torch.arange(16)).reshape(1, -1, 1, 1, 1)
    assert noise_power(to_bins(noise)).numpy() == pytest.approx(0.01, rel=0.03)
    assert noise_power(to_bins(noise + path)).numpy() == pytest.approx(0.01, rel=0.03)


@pytest.mark.parametrize("count", [2, 5, 16])
def test_noise_is_the_quartile_of_bins_over_that_of_a_mean_of_exponential_variables(count):
    bins = torch.ones(1, 8, count, dtype=torch.complex128) * 0.3  # of equal power: a quartile of 0.09
    expected = 0.09 / gamma(count, scale=1 / count).ppf(0.25)
    assert noise_power(bins).item() == pytest.approx(expected, rel=0.01)


def test_an_order_leaves_two_windows_to_be_fitted_to():
    assert [link_order(count) for count in (2, 3, 5, 11, 12, 40)] == [1, 1, 3, 9, 10, 10]


def test_iterated_weights_are_those_of_the_model():
    weights = torch.tensor([0.5, -0.3, 0.1])
    x = [1.0, 2.0, 3.0]
    for _ in range(4):
        x.append(0.5 * x[-1] - 0.3 * x[-2] + 0.1 * x[-3])
    assert (ahead(weights, 4) @ torch.tensor([3.0, 2.0, 1.0])).tolist() == pytest.approx(x[3:])


def test_too_short_a_past_is_refused():
    with pytest.raises(ValueError, match="order 3 needs more than 3 snapshots, got 3"):
        link_ar(channel()[0][:, :3], 1, order=3)
