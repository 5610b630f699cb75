import numpy as np
import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM
from datamodules.channel.synthesis import synthesize
from datamodules.channel.transforms import delay_angular, to_csi
from foundation.baselines.feedback import CHANCE_DB, PrincipalComponents, matching_pursuit, path_grid
from foundation.models.csifeedback import nmse
from tests.datamodules.rays import random_paths


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [12, 200])  # fewer and more links than the 64 numbers of a channel
def test_principal_components_equal_numpys(count):
    channels = draw(count, 8, 4) * torch.linspace(3, 0.1, 32).reshape(8, 4) + 0.5
    test = draw(5, 8, 4, seed=1)
    fitted = PrincipalComponents.fit(channels, 6)
    assert fitted.basis.shape == (6, 64)
    flat = np.concatenate([channels.reshape(count, -1).real, channels.reshape(count, -1).imag], 1).astype(np.float64)
    mean, probe = flat.mean(0), np.concatenate([test.reshape(5, -1).real, test.reshape(5, -1).imag], 1)
    _, _, vh = np.linalg.svd(flat - mean, full_matrices=False)
    expected = (probe - mean) @ vh[:6].T @ vh[:6] + mean
    expected = (expected[:, :32] + 1j * expected[:, 32:]).reshape(5, 8, 4)
    assert np.allclose(fitted.rebuild(test).numpy(), expected, atol=1e-4)


def test_a_small_set_is_rebuilt_by_as_many_components():
    channels = draw(5, 8, 4)
    fitted = PrincipalComponents.fit(channels, 32)
    assert len(fitted.basis) == 4
    assert torch.allclose(fitted.rebuild(channels), channels, atol=1e-5)


def pursuit_by_loops(channel, paths, delays, angles):
    atoms = {(u, v): np.outer(delays[:, u], angles[:, v]).ravel()
             for u in range(delays.shape[1]) for v in range(angles.shape[1])}  # fmt: skip
    target, left, chosen = channel.ravel(), channel.ravel(), []
    for _ in range(paths):
        scores = {k: abs(np.vdot(a, left)) / np.linalg.norm(a) for k, a in atoms.items() if k not in chosen}
        chosen.append(max(scores, key=scores.get))
        matrix = np.stack([atoms[k] for k in chosen], 1)
        gains = np.linalg.lstsq(matrix, target, rcond=None)[0]
        left = target - matrix @ gains
    return (matrix @ gains).reshape(channel.shape)


def test_pursuit_equals_loops_over_links_and_atoms():
    channels = draw(3, 6, 4)
    delays, angles = (part.numpy().astype(complex) for part in path_grid(6, 4, 16, 2, channels))
    ours = matching_pursuit(channels, 4, 16, oversampling=2)
    for channel, rebuilt in zip(channels.numpy(), ours.numpy(), strict=True):
        assert np.allclose(rebuilt, pursuit_by_loops(channel, 4, delays, angles), atol=1e-4)


def test_one_path_on_the_grid_is_found_exactly():
    delays, angles = path_grid(8, 4, 16, 4, draw(1))
    channels = (delays[:, 13] * 0.3j)[None, :, None] * angles[:, 6]
    assert nmse(matching_pursuit(channels, 1, 16), channels)[0] < 1e-8
    assert nmse(matching_pursuit(channels, 3, 16), channels)[0] < 1e-8, "further paths take nothing away"


def test_pursuit_rebuilds_channels_of_few_paths():
    paths = random_paths(20, num_paths=3, max_delay=1e-6)
    csi = synthesize(paths, Array(1, 16), Array(), OFDM(64, 20e6))[1:]
    channels, _ = delay_angular(csi, 32)
    errors = [10 * nmse(matching_pursuit(channels, p, 64), channels).mean().log10() for p in (1, 3, 6)]
    assert errors[0] > -10 > errors[1] > errors[2]
    assert errors[2] < -15


def test_chance_is_the_error_of_unrelated_channels():
    csi = draw(4000, 1, 4, 8)
    one, _ = delay_angular(csi[:2000], 8, "none")
    other, _ = delay_angular(csi[2000:], 8, "none")
    assert 10 * nmse(one, other).mean().log10() == pytest.approx(CHANCE_DB, abs=0.05)
    assert to_csi(one, 8).shape == (2000, 1, 4, 8)
