import dataclasses
import math

import numpy as np
import pytest
import torch

from datamodules.channel.arrays import Array, element_gain, rotation_matrix, unit_vector
from datamodules.channel.impairments import Noise, PartialSubcarriers, TimingOffset
from datamodules.channel.motion import Sequence
from datamodules.channel.ofdm import OFDM
from datamodules.channel.response import array_response
from datamodules.channel.synthesis import synthesize
from datamodules.errors import InputError
from datamodules.maps.augmentation import WorldSymmetry
from tests.datamodules.rays import random_paths


def reference(paths, bs, ue, ofdm, center=False, times=None, velocity=None, wavelength=None):
    """The sum over paths in float64 NumPy, element by element, straight from the formula."""

    def elements(array):
        position = np.array([(row, col) for row in range(array.rows) for col in range(array.cols)], dtype=float)
        if center:
            position -= (np.array([array.rows, array.cols]) - 1) / 2
        position *= array.spacing
        return np.column_stack([np.zeros(len(position)), position[:, 1], position[:, 0]])

    def response(array, angles):
        az, ze = np.moveaxis(angles.double().numpy(), -1, 0)
        u = np.stack([np.sin(ze) * np.cos(az), np.sin(ze) * np.sin(az), np.cos(ze)], -1)
        a, b, c = array.orientation
        rz = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
        rx = np.array([[1, 0, 0], [0, np.cos(c), -np.sin(c)], [0, np.sin(c), np.cos(c)]])
        local = u @ (rz @ ry @ rx)
        gain = element_gain(torch.from_numpy(local), array.pattern).numpy()
        return gain[..., None] * np.exp(2j * np.pi * local @ elements(array).T)

    gain, delay = paths.gain.numpy().astype(complex), paths.delay.double().numpy()
    tones = np.exp(
        -2j * np.pi * delay[..., None] * np.arange(ofdm.num_subcarriers) * ofdm.bandwidth / ofdm.num_subcarriers
    )
    doppler = np.ones((1, *gain.shape))
    if times is not None:
        arrival = unit_vector(paths.aoa.double()).numpy()
        shift = (arrival * velocity.double().numpy()[:, None]).sum(-1) / wavelength
        doppler = np.exp(2j * np.pi * shift * times.double().numpy()[:, None, None])
    h = np.einsum("nup,up,upr,upt,upk->unrtk", doppler, gain, response(ue, paths.aoa), response(bs, paths.aod), tones)
    return h if times is not None else h[:, 0]


def error(ours, theirs):
    return np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max()


ARRAYS = [
    (Array(1, 8), Array(), 64),
    (Array(1, 32), Array(), 100),
    (Array(8, 8), Array(2, 2), 256),
    (Array(3, 7), Array(2, 1), 33),
    (Array(1, 31), Array(1, 5), 1),
    (Array(9, 1, spacing=(0.7, 0.5)), Array(1, 2, spacing=(0.5, 0.4)), 37),
    (Array(2, 4, orientation=(0.4, -0.2, 0.1)), Array(2, 2, orientation=(-2.0, 0.3, 0.0)), 48),
    (Array(4, 2, pattern="tr38901", orientation=(1.0, 0.2, 0.0)), Array(pattern="dipole"), 16),
    # elements numbered the other way, or at one place
    (Array(10, 1, spacing=(-0.5, 0.5), pattern="dipole"), Array(1, 11, spacing=(0.5, 0.0)), 16),
]


@pytest.mark.parametrize(("bs", "ue", "tones"), ARRAYS)
@pytest.mark.parametrize("center", [False, True])
def test_equals_the_formula(bs, ue, tones, center):
    paths, ofdm = random_paths(), OFDM(tones, 20e6)
    csi = synthesize(paths, bs, ue, ofdm, reference="center" if center else "corner")
    assert csi.dtype == torch.complex64
    assert csi.shape == (12, ue.num_elements, bs.num_elements, tones)
    assert error(csi, reference(paths, bs, ue, ofdm, center)) < 4e-6


def test_time_axis_follows_the_doppler_of_each_path():
    paths, bs, ue, ofdm = random_paths(), Array(1, 4), Array(1, 2), OFDM(16)
    velocity, times = torch.randn(12, 3) * 30, torch.arange(6) * 1e-3
    csi = synthesize(paths, bs, ue, ofdm, velocity=velocity, times=times, wavelength=0.0857)
    assert csi.shape == (12, 6, 2, 4, 16)
    assert error(csi, reference(paths, bs, ue, ofdm, times=times, velocity=velocity, wavelength=0.0857)) < 4e-6
    scalar = synthesize(paths, bs, ue, ofdm, velocity=velocity, times=times, wavelength=torch.tensor(0.0857))
    assert torch.allclose(scalar, csi, atol=1e-4 * csi.abs().max().item())
    still = synthesize(paths, bs, ue, ofdm)
    assert torch.equal(csi[:, 0], still)


def test_mount_equals_orientation():
    paths, orientation = random_paths(), (0.3, 0.1, 0.2)
    mount = rotation_matrix(orientation).expand(12, 3, 3)
    turned = synthesize(paths, Array(2, 4, pattern="tr38901", orientation=orientation), Array(), OFDM(8))
    assert torch.allclose(synthesize(paths, Array(2, 4, pattern="tr38901"), Array(), OFDM(8), mount=mount), turned)


def test_downtilt_points_the_boresight_below_the_horizon():
    boresight = rotation_matrix((0.0, 0.2, 0.0)) @ torch.tensor([1.0, 0, 0], dtype=torch.float64)
    assert boresight[2] == pytest.approx(-math.sin(0.2))


def test_out_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"out must be .* \(12, 1, 8, 32\)"):
        synthesize(random_paths(), Array(1, 8), Array(), OFDM(32), out=torch.empty(12, 1, 8, 16, dtype=torch.complex64))


def test_many_links_equal_few():
    paths = random_paths(700)
    whole = synthesize(paths, Array(1, 4), Array(), OFDM(8))
    assert torch.allclose(whole[650:], synthesize(paths[650:], Array(1, 4), Array(), OFDM(8)))


def test_gradients_pass_after_a_call_without_them():
    paths = random_paths(2, 3)
    bs, ue, ofdm = Array(1, 7, pattern="tr38901"), Array(1, 1), OFDM(12)  # of which nothing is cached yet
    synthesize(paths, bs, ue, ofdm)
    delay = paths.delay.clone().requires_grad_()
    synthesize(dataclasses.replace(paths, delay=delay), bs, ue, ofdm).abs().square().sum().backward()
    assert delay.grad.abs().sum() > 0


def test_gradients_reach_every_ray_parameter():
    paths = random_paths()
    leaves = {key: getattr(paths, key).clone().requires_grad_() for key in ("gain", "delay", "aod", "aoa")}
    csi = synthesize(type(paths)(**{**paths.as_dict(), **leaves}), Array(2, 4), Array(1, 2), OFDM(8))
    plain = synthesize(paths, Array(2, 4), Array(1, 2), OFDM(8))
    assert torch.allclose(csi.detach(), plain, atol=1e-6 * plain.abs().max().item())
    (csi.abs().square().sum() * 1e10).backward()
    for key, leaf in leaves.items():
        assert torch.isfinite(leaf.grad).all(), key
        assert leaf.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", ["velocity", "times", "wavelength", "mount"])
def test_gradients_reach_every_argument(name):
    values = {
        "velocity": torch.full((12, 3), 9.0),
        "times": torch.arange(3) * 1e-3,
        "wavelength": torch.full((12,), 0.1),
        "mount": rotation_matrix((0.3, 0.1, 0.2)).expand(12, 3, 3).float(),
    }
    plain = synthesize(random_paths(), Array(2, 4), Array(), OFDM(8), **values)
    leaf = values[name] = values[name].clone().requires_grad_()
    csi = synthesize(random_paths(), Array(2, 4), Array(), OFDM(8), **values)
    assert torch.allclose(csi.detach(), plain, atol=1e-6 * plain.abs().max().item())
    synthesize(random_paths(seed=1), Array(2, 4), Array(), OFDM(8))  # reuses memory that a graph must not hold
    (csi.sum().real * 1e5).backward()
    assert torch.isfinite(leaf.grad).all()
    assert leaf.grad.abs().sum() > 0
    step = 1e-4 * leaf.detach().abs().max()
    moved = {**values, name: leaf.detach() + step * torch.ones_like(leaf)}
    other = synthesize(random_paths(), Array(2, 4), Array(), OFDM(8), **moved)
    change = float((other - plain).sum().real * 1e5)
    assert change == pytest.approx(float(leaf.grad.sum() * step), rel=0.1, abs=1e-3)


@pytest.mark.slow
def test_runs_compiled():
    paths = random_paths()
    compiled = torch.compile(synthesize, fullgraph=False, backend="aot_eager")
    plain = synthesize(paths, Array(2, 4), Array(), OFDM(16))
    assert torch.allclose(compiled(paths, Array(2, 4), Array(), OFDM(16)), plain, atol=1e-10)


def test_time_arguments_come_together():
    with pytest.raises(ValueError, match="given together"):
        synthesize(random_paths(), Array(), Array(), OFDM(), times=torch.zeros(2))


def test_array_response_is_the_response_in_the_channel():
    paths, array = random_paths(), Array(2, 3, pattern="tr38901", orientation=(0.5, 0.1, 0))
    response = array_response(paths.aod, array)
    csi = torch.einsum("up,upt->ut", paths.gain, response)
    assert torch.allclose(csi, synthesize(paths, array, Array(), OFDM(1))[:, 0, :, 0], atol=1e-10)


def test_patterns_have_their_closed_form_values():
    ahead, side, up = torch.eye(3)
    assert element_gain(ahead, "tr38901") == pytest.approx(10 ** (8 / 20))
    assert element_gain(up, "tr38901") == pytest.approx(10 ** ((8 - 12 * (90 / 65) ** 2) / 20), rel=1e-5)
    assert element_gain(-ahead, "tr38901") == pytest.approx(10 ** ((8 - 30) / 20), rel=1e-5)
    assert element_gain(side, "dipole") == pytest.approx(math.sqrt(1.643), rel=1e-6)
    assert element_gain(up, "dipole") == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"rows": 0}, "Array: rows must be a whole number of 1 or more, got 0"),
        ({"cols": 8.0}, "Array: cols must be a whole number of 1 or more, got 8.0"),
        ({"cols": "8"}, "Array: cols must be a whole number"),
        ({"pattern": "yagi"}, "unknown antenna pattern"),
        ({"spacing": 1.0}, r"Array: spacing must be \(of rows, of columns\), 2 finite numbers, got 1.0"),
        ({"spacing": (0.5, "0.5")}, "Array: spacing must be"),
        ({"spacing": (0.5, math.nan)}, "Array: spacing must be"),
        ({"spacing": (0.5, 0.5, 0.5)}, "Array: spacing must be"),
        ({"orientation": 0.1}, r"Array: orientation must be \(alpha, beta, gamma\), 3 finite numbers"),
        ({"orientation": (0.1, 0.2)}, "Array: orientation must be"),
        ({"orientation": (0.0, math.inf, 0.0)}, "Array: orientation must be"),
    ],
)
def test_bad_arrays_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        Array(**bad)


@pytest.mark.parametrize("values", [[0.7, 0.5], torch.tensor([0.7, 0.5]), np.array([0.7, 0.5])])
def test_an_array_takes_any_sequence(values):
    array = Array(1, 4, spacing=values, orientation=[0, 0.1, 0])
    assert array.spacing == pytest.approx((0.7, 0.5))
    assert synthesize(random_paths(), array, Array(), OFDM(4)).shape == (12, 1, 4, 4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ((0,), "OFDM: num_subcarriers must be a whole number of 1 or more, got 0"),
        ((64.0,), "OFDM: num_subcarriers must be a whole number"),
        ((64, 0.0), "OFDM: bandwidth must be positive, got 0"),
        ((64, "10e6"), "OFDM: bandwidth must be a finite number, got '10e6'"),
        ((64, math.nan), "OFDM: bandwidth must be"),
        ((64, math.inf), "OFDM: bandwidth must be"),
        ((64, (1e6, 2e6)), "OFDM: bandwidth must be"),
    ],
)
def test_bad_grids_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        OFDM(*bad)


@pytest.mark.parametrize("make", [
    lambda: Noise(10.0), lambda: Noise((math.nan, 3.0)), lambda: Noise((0.0, math.inf)), lambda: Noise(("0", "3")),
    lambda: Noise((3.0, 0.0)), lambda: PartialSubcarriers(0.5), lambda: PartialSubcarriers((0.5, 1.5)),
    lambda: TimingOffset(2), lambda: WorldSymmetry(stretch=1.2), lambda: WorldSymmetry(stretch=(1.0, math.inf)),
    lambda: Sequence(2.5), lambda: Sequence(interval="5e-3"), lambda: Sequence(speed=3.0), lambda: Sequence(speed=(1,)),
    lambda: Sequence(mobility=["static"]), lambda: Sequence(mobility={"static": math.nan}),
])  # fmt: skip
def test_other_bad_numbers_are_refused(make):
    with pytest.raises(InputError, match=" must "):
        make()
