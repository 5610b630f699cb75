import numpy as np
import pytest
import torch

from datamodules.errors import InputError
from foundation.adaptation.refine import forgotten, largest_correlation, rehearsal, replaces, select
from foundation.studies.refinement import in_db

ERROR = torch.tensor([0.5, 0.01, torch.nan, 2.0, 0.1, 0.9])  # -3, -20, no power, 3, -10, -0.5 dB


def test_top_takes_the_largest_errors_first():
    assert select(ERROR, "top", 3).tolist() == [3, 5, 0]


def test_threshold_takes_all_above_or_a_draw_of_them():
    assert select(ERROR, "threshold", threshold_db=-4).tolist() == [0, 3, 5]
    assert select(ERROR, "threshold", count=9, threshold_db=-4).tolist() == [0, 3, 5]
    draws = {tuple(select(ERROR, "threshold", 2, -4, seed=seed).tolist()) for seed in range(20)}
    assert draws == {(0, 3), (0, 5), (3, 5)}


def test_random_draws_by_seed_and_never_a_link_without_power():
    draws = [tuple(select(ERROR, "random", 4, seed=seed).tolist()) for seed in range(50)]
    assert draws[7] == tuple(select(ERROR, "random", 4, seed=7).tolist())
    assert len(set(draws)) == 5
    assert set(np.ravel(draws)) == {0, 1, 3, 4, 5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "top", "count": 6}, "needs a count of 1 to 5 links, got 6"),
        ({"rule": "random"}, "needs a count of 1 to 5 links, got None"),
        ({"rule": "threshold"}, "needs threshold_db"),
        ({"rule": "threshold", "threshold_db": 3.5}, "no link has an NMSE above 3.5 dB"),
        ({"rule": "high", "count": 2}, "selected by random, threshold, top, got high"),
    ],
)
def test_a_selection_that_cannot_be_made_is_named(settings, message):
    with pytest.raises(InputError, match=message):
        select(ERROR, **settings)


def test_union_serves_every_link_once():
    order = rehearsal(50, 4)
    assert sorted(order) == list(range(54))
    assert order.tolist() != sorted(order)


def test_naive_serves_the_target_alone():
    assert sorted(rehearsal(50, 4, mix=1)) == [50, 51, 52, 53]
    assert sorted(rehearsal(50, 0, mix=0)) == list(range(50))


@pytest.mark.parametrize("mix", [0.1, 0.5, 0.8])
def test_mix_is_the_share_of_target_links(mix):
    order = rehearsal(90, 7, mix)
    counts = np.bincount(order, minlength=97)
    assert (counts[:90] == 1).all()
    assert counts[90:].sum() / len(order) == pytest.approx(mix, abs=0.01)
    assert np.ptp(counts[90:]) <= 1
    halves = [(half >= 90).mean() for half in np.array_split(order, 2)]
    assert halves == pytest.approx([mix, mix], abs=0.15), "the worlds are mixed, not one after the other"


def test_orders_differ_by_epoch_and_repeat_by_seed():
    one, other = rehearsal(20, 5, 0.3, seed=1, epoch=0), rehearsal(20, 5, 0.3, seed=1, epoch=1)
    assert one.tolist() != other.tolist()
    assert one.tolist() == rehearsal(20, 5, 0.3, seed=1, epoch=0).tolist()
    assert one.tolist() != rehearsal(20, 5, 0.3, seed=2, epoch=0).tolist()


@pytest.mark.parametrize(("sizes", "mix"), [((0, 5), 0.5), ((5, 0), None), ((5, 0), 1), ((5, 5), 1.5)])
def test_a_mix_without_links_is_named(sizes, mix):
    with pytest.raises(InputError, match="mix"):
        rehearsal(*sizes, mix)


def test_correlation_equals_numpys():
    generator = torch.Generator().manual_seed(0)
    channels = torch.randn(7, 2, 4, dtype=torch.complex64, generator=generator) * 1e-6
    known = torch.randn(9, 2, 4, dtype=torch.complex64, generator=generator)
    known[4] = 3j * channels[2]
    channels[5] = 0
    ours = largest_correlation(channels, known, chunk=3)
    a, b = channels.numpy().reshape(7, -1), known.numpy().reshape(9, -1)
    for i in range(7):
        expected = max(abs(np.vdot(a[i], v)) / max(np.linalg.norm(a[i]) * np.linalg.norm(v), 1e-30) for v in b)
        assert ours[i].item() == pytest.approx(expected, abs=1e-5)
    assert ours[2].item() == pytest.approx(1, abs=1e-5)


def test_only_a_better_model_replaces():
    offline = torch.tensor([0.1, 0.3])
    assert replaces(offline, torch.tensor([0.35, 0.01]))
    assert not replaces(offline, offline)
    assert not replaces(offline, torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match="give both the same"):
        replaces(offline, offline[:1])


def test_the_level_of_links_is_their_mean_and_then_in_decibels():
    assert in_db(torch.tensor([1.0, 0.01, torch.nan])) == pytest.approx(10 * np.log10(0.505), abs=1e-5)


def test_what_is_forgotten_is_measured_against_the_best_stage():
    lost = forgotten(torch.tensor([[-17.0, -3.0], [-20.0, -12.0], [-18.5, -15.0]]))
    assert lost.tolist() == pytest.approx([1.5, 0])
