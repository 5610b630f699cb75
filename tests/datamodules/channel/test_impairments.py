"""Views: of links, of sequences, and of the paper on ConTwin."""

import numpy as np
import pytest
import torch

from datamodules.channel.draws import LinkDraws
from datamodules.channel.impairments import (
    AmplitudeScaling,
    AntennaPermutation,
    CommonPhase,
    Noise,
    PartialSubcarriers,
    PhaseJitter,
    TimeShift,
    TimingOffset,
    observe,
)
from datamodules.errors import InputError

B, N, R, T, K = 64, 6, 2, 4, 8
CSI = torch.randn(B, N, R, T, K, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
EVERY = [TimeShift(), AntennaPermutation(), PhaseJitter(), AmplitudeScaling()]


def draws(links=B, first=0):
    return LinkDraws(0, torch.arange(first, first + links))


@pytest.mark.parametrize("view", EVERY, ids=lambda view: type(view).__name__)
def test_what_is_drawn_depends_on_the_link_alone(view):
    whole = observe(CSI, [view], draws())
    assert whole.shape == CSI.shape
    assert whole.dtype == CSI.dtype
    assert torch.equal(whole[10:20], observe(CSI[10:20], [view], draws(10, 10)))
    assert not torch.equal(whole, CSI)


def test_a_sequence_begins_later_and_holds_its_end():
    shifted = TimeShift(2)(CSI, draws())
    kinds = [torch.cat([CSI[:, s:], CSI[:, -1:].expand(-1, s, -1, -1, -1)], 1) for s in range(3)]
    which = torch.stack([(shifted == kind).flatten(1).all(1) for kind in kinds])
    assert which.any(0).all()
    assert (which.sum(1) > B // 6).all(), "each shift is as likely"
    with pytest.raises(InputError, match=r"TimeShift is for sequences .* set data.sequence"):
        TimeShift()(CSI[:, 0], draws())


def test_antennas_are_exchanged_alike_in_all_snapshots():
    for csi in (CSI, CSI[:, 0]):
        mixed = AntennaPermutation()(csi, draws())
        same = (mixed.unsqueeze(-2) == csi.unsqueeze(-3)).flatten(1, -4).all(1) if csi.ndim == 5 else None
        if same is not None:
            same = same.all(-1)
            assert torch.equal(same.sum(1), torch.ones(B, T))
            assert torch.equal(same.sum(2), torch.ones(B, T))
            assert same.flatten(1).unique(dim=0).shape[0] > 15, "nearly all orders of four"
        torch.testing.assert_close(mixed.abs().square().sum(-2), csi.abs().square().sum(-2))


@pytest.mark.parametrize("std", [0.05, 0.5])
def test_phases_of_snapshots_are_normal(std):
    turn = (PhaseJitter(std)(CSI, draws()) / CSI).angle()
    torch.testing.assert_close(turn, turn[:, :, :1, :1, :1].expand_as(turn), atol=1e-4, rtol=0)
    assert turn[..., 0, 0, 0].std().item() == pytest.approx(std, rel=0.1)
    one = (PhaseJitter(std)(CSI[:, 0], draws()) / CSI[:, 0]).angle()
    assert one[:, 0, 0, 0].std().item() == pytest.approx(std, rel=0.3)


def test_amplitudes_are_uniform():
    factor = AmplitudeScaling((0.9, 1.1))(CSI, draws()) / CSI
    torch.testing.assert_close(factor, factor[:, :1, :1, :1, :1].expand_as(factor))
    assert 0.9 <= factor.real.min() < 0.92
    assert 1.08 < factor.real.max() <= 1.1
    with pytest.raises(InputError, match="factor must be positive"):
        AmplitudeScaling((0.0, 1.0))


def test_noise_has_the_snr_it_says():
    csi = torch.randn(200, 2, 4, 32, dtype=torch.complex64) * 1e-6
    noisy = Noise((10.0, 10.0))(csi, draws(200))
    snr = csi.abs().square().mean() / (noisy - csi).abs().square().mean()
    assert 10 * torch.log10(snr) == pytest.approx(10, abs=0.1)


def test_noise_is_as_strong_in_a_faded_snapshot_as_in_others():
    csi = torch.zeros(200, 4, 1, 4, 32, dtype=torch.complex64)
    csi[:, 0] = 2.0  # mean power 1
    noise = (Noise((10.0, 10.0))(csi, draws(200)) - csi).abs().square().mean((0, 2, 3, 4))
    assert noise.tolist() == pytest.approx([0.1] * 4, rel=0.05)


def test_a_common_phase_is_uniform_over_the_circle():
    csi = torch.randn(4000, 1, 2, 2, dtype=torch.complex64)
    turn = CommonPhase()(csi, draws(4000)) / csi
    torch.testing.assert_close(turn, turn[:, :, :1, :1].expand_as(turn))
    turn = turn[:, 0, 0, 0]
    torch.testing.assert_close(turn.abs(), torch.ones(4000))
    assert turn.mean().abs() < 0.06, "four standard errors"
    assert turn.square().mean().abs() < 0.06


def test_a_timing_offset_delays_all_paths_by_so_many_taps():
    csi = torch.randn(8, 1, 4, 16, dtype=torch.complex64)
    taps, late = (np.fft.ifft(h.numpy()) for h in (csi, TimingOffset((3.0, 3.0))(csi, draws(8))))
    np.testing.assert_allclose(late, np.roll(taps, 3, -1), atol=1e-5)
    offset = -(TimingOffset((0.0, 3.0))(csi, draws(8)) / csi).angle()[:, 0, 0, 1] * 16 / (2 * np.pi)
    assert ((offset > 0) & (offset < 3)).all()
    assert offset.unique().numel() == 8


def test_partial_subcarriers_keep_their_share_and_the_power():
    csi = torch.ones(64, 2, 4, 32, dtype=torch.complex64)
    seen = PartialSubcarriers((0.25, 0.25))(csi, draws(64))
    assert ((seen != 0).sum(-1) == 8).all()
    assert seen.abs().square().mean() == pytest.approx(1.0)
    csi = torch.ones(2000, 1, 2, 32, dtype=torch.complex64)
    seen = PartialSubcarriers((0.5, 1.0))(csi, draws(2000))
    torch.testing.assert_close(seen.abs().square().mean((1, 2, 3)), torch.ones(2000))
    assert torch.equal(seen[:, :, 0], seen[:, :, 1]), "the same of all antennas"
    kept = (seen[:, 0, 0] != 0).float()
    assert kept.sum(1).unique().tolist() == list(range(16, 33))
    assert kept.sum(1).mean() == pytest.approx(24, abs=0.5)
    assert (kept.mean(0) - 0.75).abs().max() < 0.05, "every subcarrier as often"


@pytest.mark.parametrize("make", [lambda: Noise((3.0, 1.0)), lambda: PartialSubcarriers((0.0, 0.5))])
def test_bad_views_are_refused(make):
    with pytest.raises(ValueError, match=r"lowest, highest|must lie in"):
        make()
