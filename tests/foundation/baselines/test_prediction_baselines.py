import math

import numpy as np
import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.linear_prediction import angle_delay
from datamodules.channel.ofdm import OFDM, SPEED_OF_LIGHT
from datamodules.channel.synthesis import synthesize
from datamodules.sites.paths import Paths
from foundation.baselines.prediction import ar1, fit_ar1, fit_wiener, hold, kalman, link_ar, pad, wiener, zero
from foundation.baselines.prediction_limit import Signatures, bin_limit, limit

B, N, H, R, T, K = 3, 7, 3, 2, 4, 8
WAVELENGTH = SPEED_OF_LIGHT / 3.5e9


def channel(seed=0, noise=0.1):
    """Three paths a link, each with a Doppler shift, seen with noise; and what comes next, without."""
    g = torch.Generator().manual_seed(seed)
    turn = torch.rand(B, 3, 4, generator=g, dtype=torch.float64) * 2 * math.pi
    axes = [torch.arange(n, dtype=torch.float64) for n in (N + H, R, T, K)]
    waves = [torch.exp(1j * turn[:, :, i, None] * axis / (4 if i == 0 else 1)) for i, axis in enumerate(axes)]
    clean = torch.einsum("bpn,bpr,bpt,bpk->bnrtk", *waves) / 3**0.5
    return clean[:, :N] + noise * torch.randn(B, N, R, T, K, dtype=clean.dtype, generator=g), clean[:, N:]


def nmse_db(prediction, target):
    error = (prediction - target).abs().square().sum((2, 3, 4)) / target.abs().square().sum((2, 3, 4))
    return 10 * error.mean(0).log10()


# --- each against a slow twin


def slow_bins(csi):
    """Angle-delay bins by sums, (N, R, T, K) to (N, R*T*K)."""
    r, t, k = csi.shape[1:]
    for axis, n, sign in ((1, r, -1), (2, t, -1), (3, k, 1)):
        matrix = np.exp(sign * 2j * np.pi * np.outer(range(n), range(n)) / n) / n**0.5
        csi = np.moveaxis(np.tensordot(csi, matrix, (axis, 0)), -1, axis)
    return csi.reshape(len(csi), -1)


def slow_csi(bins):
    csi = bins.reshape(len(bins), R, T, K)
    for axis, n, sign in ((1, R, 1), (2, T, 1), (3, K, -1)):
        matrix = np.exp(sign * 2j * np.pi * np.outer(range(n), range(n)) / n) / n**0.5
        csi = np.moveaxis(np.tensordot(csi, matrix, (axis, 0)), -1, axis)
    return csi


def slow_fit(histories, order, ridge):
    """Least squares over every window of histories (N, M), one equation each, by lstsq."""
    rows, values = [], []
    for history in histories.T:
        for one in (history, history[::-1].conj()):
            for n in range(order, len(one)):
                rows.append(one[n - order : n][::-1])
                values.append(one[n])
    windows = 2 * (len(histories) - order)
    if ridge > 0:
        rows += list(np.eye(order) * math.sqrt(windows * ridge))
        values += [0] * order
    return np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]


def slow_run(histories, weights, horizons):
    extended = list(histories)
    for _ in range(horizons):
        extended.append(sum(w * extended[-1 - o] for o, w in enumerate(weights)))
    return np.array(extended[len(histories) :])


def test_link_autoregression_equals_the_slow_one():
    past, _ = channel()
    noise = torch.full((B,), 0.01, dtype=torch.float64)
    fast = link_ar(past, H, order=3, noise=noise)
    for link, prediction in zip(past.numpy(), fast.numpy(), strict=True):
        bins = slow_bins(link)
        strong = (abs(bins) ** 2).mean(0) > 2 * 0.01
        assert 0 < strong.sum() < len(strong)
        weights = slow_fit(bins[:, strong], 3, 0.1 * 0.01 * strong.sum())
        expected = np.zeros((H, bins.shape[1]), complex)
        expected[:, strong] = slow_run(bins[:, strong], weights, H)
        np.testing.assert_allclose(prediction, slow_csi(expected), rtol=1e-9, atol=1e-10)


def test_pad_equals_the_slow_one():
    past, _ = channel()
    fast = pad(past, H, noise=torch.full((B,), 0.01, dtype=torch.float64))
    for link, prediction in zip(past.numpy(), fast.numpy(), strict=True):
        bins = slow_bins(link)
        expected = [slow_run(h, slow_fit(h[:, None], 2, 0.3 * 0.01), H) for h in bins.T]
        np.testing.assert_allclose(prediction, slow_csi(np.array(expected).T), rtol=1e-8, atol=1e-9)


def test_ar1_and_kalman_equal_those_of_the_appendix():
    past, _ = channel()
    scaled = past * torch.tensor([1.0, 1e-4, 30.0]).reshape(-1, 1, 1, 1, 1)
    unit = (past / past.abs().square().mean((1, 2, 3, 4), keepdim=True).sqrt()).numpy()
    inner = sum((unit[:, n].conj() * unit[:, n + 1]).sum() for n in range(N - 1))
    rho = inner.real / sum((abs(unit[:, n]) ** 2).sum() for n in range(N - 1))
    assert 0 < rho < 1
    assert fit_ar1(past) == pytest.approx(rho)
    assert fit_ar1(scaled) == pytest.approx(rho), "path loss plays no part"
    assert fit_ar1(past * torch.tensor([1, -1] * 3 + [1]).reshape(1, -1, 1, 1, 1)) == 0
    np.testing.assert_allclose(ar1(past, H, rho)[:, 2], rho**3 * past[:, -1])
    snr = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    fast = kalman(scaled, H, rho, snr)
    for i, link in enumerate(scaled.numpy()):
        s = (abs(link) ** 2).mean()
        for h in range(H):
            for entry in ((0, 0, 0), (1, 2, 3)):
                x, p, f, q, r = 0, s, rho, (1 - rho**2) * s, s / float(snr[i])
                for n in range(N):
                    x, p = f * x, f * p * f + q
                    gain = p / (p + r)
                    x, p = x + gain * (link[n][entry] - x), (1 - gain) * p
                assert fast[i, h][entry].item() == pytest.approx(f ** (h + 1) * x, rel=1e-9)


def test_pooled_wiener_equals_least_squares():
    past, future = channel()
    weights = fit_wiener(past, future, taps=4)
    scale = 1 / past.abs().square().mean((1, 2, 3, 4), keepdim=True).sqrt()
    seen = (past * scale).flip(1)[:, :4].movedim(1, -1).reshape(-1, 4).numpy()
    wanted = (future * scale).movedim(1, -1).reshape(-1, H).numpy()
    np.testing.assert_allclose(weights, np.linalg.lstsq(seen, wanted, rcond=None)[0].T, atol=1e-4)
    expected = sum(weights[1, n] * past[:, N - 1 - n] for n in range(4))
    torch.testing.assert_close(wiener(past, 2, weights)[:, 1], expected)


def rays(seed, links=B, count=5):
    g = torch.Generator().manual_seed(seed)
    angles = torch.rand(2, links, count, 2, generator=g) * math.pi
    return Paths.build(
        gain=torch.randn(links, count, dtype=torch.complex64, generator=g) * 1e-4,
        delay=torch.rand(links, count, generator=g) * 1e-6,
        aod=angles[0],
        aoa=angles[1],
        position=torch.zeros(links, 3),
        bounces=torch.ones(links, count),
        los=torch.zeros(links),
    )


def moving(paths, velocity, times, bs=Array(1, T), ue=Array(1, R), ofdm=OFDM(K, 5e6)):  # noqa: B008 (frozen)
    csi = synthesize(paths, bs, ue, ofdm, velocity=velocity, times=times, wavelength=WAVELENGTH)
    return csi, {"bs": bs, "ue": ue, "ofdm": ofdm, "velocity": velocity, "times": times, "wavelength": WAVELENGTH}


def test_limit_equals_the_mmse_predictor_of_the_covariance():
    paths, times = rays(0), torch.arange(N + H, dtype=torch.float64) * 1e-3
    velocity = torch.tensor([[10.0, 5.0, 0.0], [0.0, 0.0, 0.0], [-20.0, 3.0, 0.0]])
    csi, known = moving(paths, velocity, times)
    noise = 0.1 * csi.abs().square().mean((1, 2, 3, 4)).double()
    g = torch.Generator().manual_seed(1)
    past = csi[:, :N] + noise.sqrt().reshape(-1, 1, 1, 1, 1) * torch.randn(
        csi[:, :N].shape, dtype=csi.dtype, generator=g
    )
    fast = limit(past, Signatures.of(paths, **known), noise)
    assert fast.shape == (B, H, R, T, K)
    for i in range(B):
        # one channel a path: its signature, gain included
        alone = [
            moving(Paths(**{**paths.as_dict(), "gain": paths.gain * (torch.arange(5) == p)}), velocity, times)[0][i]
            for p in range(5)
        ]
        signature = np.stack([one.numpy().ravel() for one in alone], 1).astype(complex)
        covariance = signature @ signature.conj().T
        seen = N * R * T * K
        inverse = np.linalg.inv(covariance[:seen, :seen] + float(noise[i]) * np.eye(seen))
        expected = covariance[seen:, :seen] @ inverse @ past[i].numpy().ravel()
        error = np.linalg.norm(fast[i].numpy().ravel() - expected) / np.linalg.norm(expected)
        assert error < 1e-4


def test_the_limit_of_a_bin_equals_the_mmse_predictor_of_its_covariance():
    paths, times = rays(0), 7.0 + torch.arange(N + H, dtype=torch.float64) * 1e-3
    velocity = torch.tensor([[10.0, 5.0, 0.0], [0.0, 0.0, 0.0], [-20.0, 3.0, 0.0]])
    csi, known = moving(paths, velocity, times)
    noise = 0.1 * csi.abs().square().mean((1, 2, 3, 4)).double()
    past = csi[:, :N] + noise.sqrt().reshape(-1, 1, 1, 1, 1)
    fast = angle_delay(bin_limit(past, Signatures.of(paths, **known), noise)).numpy()
    alone = [
        moving(Paths(**{**paths.as_dict(), "gain": paths.gain * (torch.arange(5) == p)}), velocity, times)[0]
        for p in range(5)
    ]
    series = np.stack([angle_delay(one).numpy() for one in alone], -1).astype(complex)  # (B, N + H, R, T, K, P)
    seen = angle_delay(past).numpy()
    for at in np.ndindex(B, R, T, K):
        signature = series[at[0], :, *at[1:]]
        covariance = signature @ signature.conj().T
        inverse = np.linalg.inv(covariance[:N, :N] + float(noise[at[0]]) * np.eye(N))
        expected = covariance[N:, :N] @ inverse @ seen[at[0], :, *at[1:]]
        assert (
            np.linalg.norm(fast[at[0], :, *at[1:]] - expected)
            <= 1e-4 * np.linalg.norm(seen[at[0]]) / (R * T * K) ** 0.5
        )


# --- what they must do


def test_a_user_moving_towards_the_station_turns_the_channel_forwards():
    """100 m away, 10 m/s, 3.5 GHz: +0.7335 rad a millisecond, told by the length of the path alone."""
    for step, turn, loss in ((1e-3, 0.7335, -2.89), (2e-3, 2 * 0.7335, 2.54)):
        paths = Paths.build(
            gain=torch.full((1, 1), 1e-5 + 0j),
            delay=torch.full((1, 1), 100 / SPEED_OF_LIGHT),
            aod=torch.tensor([[[0.0, math.pi / 2]]]),
            aoa=torch.tensor([[[math.pi, math.pi / 2]]]),
            position=torch.tensor([[100.0, 0.0, 0.0]]),
            bounces=torch.zeros(1, 1),
        )
        times = torch.arange(9, dtype=torch.float64) * step
        csi, known = moving(paths, torch.tensor([[-10.0, 0.0, 0.0]]), times)
        assert (csi[:, 1:] / csi[:, :-1]).angle().flatten().numpy() == pytest.approx(turn, abs=2e-4)
        length = 100 - 10 * times.numpy()
        geometric = np.exp(-2j * np.pi * length / WAVELENGTH)
        ours = csi[0, :, 0, 0, 0].numpy()
        assert abs(geometric / geometric[0] - ours / ours[0]).max() < 1e-3
        past, future = csi[:, :8], csi[:, 8:]
        assert nmse_db(hold(past, 1), future).item() == pytest.approx(loss, abs=0.01)
        assert nmse_db(zero(past, 1), future).item() == pytest.approx(0)
        quiet = torch.zeros(1)
        assert nmse_db(link_ar(past, 1, order=2, noise=quiet), future) < -60
        assert nmse_db(pad(past, 1, noise=quiet), future) < -60
        assert nmse_db(limit(past, Signatures.of(paths, **known), quiet), future) < -100


def test_the_instants_need_not_lie_on_the_device_of_the_paths():
    paths, motion = rays(0).to("meta"), torch.zeros(B, 3, device="meta")
    past, noise = torch.zeros(B, 4, 1, 2, 8, dtype=torch.complex64, device="meta"), torch.zeros(B, device="meta")
    times = torch.arange(6, dtype=torch.float64)
    known = Signatures.of(paths, Array(1, 2), Array(), OFDM(8), motion, times, 0.1)
    for predict in (limit, bin_limit):
        found = predict(past, known, noise)
        assert (found.shape, found.device.type) == ((B, 2, 1, 2, 8), "meta")


def test_nothing_linear_beats_the_limit():
    paths, times = rays(3, links=64, count=12), torch.arange(14, dtype=torch.float64) * 1e-3
    g = torch.Generator().manual_seed(0)
    velocity = torch.randn(64, 3, generator=g) * 10
    csi, known = moving(paths, velocity, times, bs=Array(1, 8))
    noise = 0.03 * csi.abs().square().mean((1, 2, 3, 4))
    level = noise.sqrt().reshape(-1, 1, 1, 1, 1)
    past = csi[:, :10] + level * torch.randn(csi[:, :10].shape, dtype=csi.dtype, generator=g)
    bound = nmse_db(limit(past, Signatures.of(paths, **known), noise), csi[:, 10:])
    others = {
        "link_ar": nmse_db(link_ar(past, 4, noise=noise), csi[:, 10:]),
        "pad": nmse_db(pad(past, 4, noise=noise), csi[:, 10:]),
        "wiener": nmse_db(wiener(past, 4, fit_wiener(past, csi[:, 10:])), csi[:, 10:]),
        "hold": nmse_db(hold(past, 4), csi[:, 10:]),
    }
    own = nmse_db(bin_limit(past, Signatures.of(paths, **known), noise), csi[:, 10:])
    for name, value in others.items():
        assert (value > own).all(), name
    assert (own > bound + 3).all()
    assert others["link_ar"][0] < others["wiener"][0] < others["hold"][0], "and a link's own fit beats a pooled one"


def test_links_without_a_channel_predict_zeros():
    past = channel()[0].to(torch.complex64)
    past[1] = 0
    for predict in (hold, zero, link_ar, pad, lambda x, h: kalman(x, h, 0.9, 10.0)):
        prediction = predict(past, H)
        assert prediction.shape == (B, H, R, T, K)
        assert prediction.isfinite().all()
        assert not prediction[1].any()


@pytest.mark.parametrize("predict", [hold, link_ar, pad, lambda x, h: kalman(x, h, 0.9, 10.0)])
def test_scale_and_common_phase_go_through(predict):
    past, _ = channel()
    torch.testing.assert_close(predict(past * 1e-3j, H), predict(past, H) * 1e-3j, rtol=1e-6, atol=1e-10)
