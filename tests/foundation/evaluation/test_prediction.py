import math
from dataclasses import replace

import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.codebook import dft_codebook
from foundation.evaluation.predicted_beams import PredictedBeam
from foundation.evaluation.prediction_curves import cells, curves, plot_cells, plot_curves
from foundation.studies.rows import rows_of
from foundation.studies.study import Study

CODEBOOK = dft_codebook(Array(1, 4), 4)


def towards(*beams):
    """Channels whose best beams are given, (B, 1, 4, 1), and those of no power for None."""
    rows = [torch.zeros(4, dtype=torch.complex64) if beam is None else CODEBOOK[beam].conj() for beam in beams]
    return torch.stack(rows).reshape(-1, 1, 4, 1)


def test_beams_and_the_rate_that_they_cost():
    true = towards(0, 1, 2, None) + 0.5 * towards(3, 3, 3, None)
    guess = towards(0, 3, 2, 1)
    found = []
    for rate in (False, True):
        metric = PredictedBeam(CODEBOOK, rate)
        metric.update(guess, true)
        found.append(metric.compute().item())
    assert found[0] == pytest.approx(2 / 3), "a link without power has no best beam"
    # the second link has a beam of a quarter of the power
    assert found[1] == pytest.approx((math.log2(11) - math.log2(1 + 2.5)) / 3, rel=1e-5)


def summary(variant, data, seed, **metrics):
    run_id = f"{variant}-zeroshot-@{data}-s{seed}"
    tested = {f"test/prediction/{name}": value for name, value in metrics.items()}
    return {"experiment": "x", "run_id": run_id, "head": "prediction", "mode": "probe", "seed": seed, "metrics": tested}


def test_cells_are_means_over_seeds_beside_the_best_classical_predictor():
    shared = {"hold_nmse_db": -6.0, "link_ar_nmse_db": -16.0, "pad_nmse_db": -12.0, "fd_t": 0.1, "snr_db": 15.0}
    summaries = [summary("filter", "slow", seed, nmse_db=-17.0 - seed, **shared) for seed in range(3)]
    summaries.append(summary("direct", "slow", 0, nmse_db=-3.0, **shared))
    summaries.append(summary("filter", "fast", 0, nmse_db=-10.0, **shared | {"pad_nmse_db": -20.0}))
    rows = [row for each in summaries for row in rows_of(each, Study("x", [0]))]
    found = cells(rows)
    assert found["slow"] == {
        "direct": -3.0, "filter": -18.0, "hold": -6.0, "fd_t": pytest.approx(0.1), "snr_db": 15.0, "classical": -16.0
    }  # fmt: skip
    assert found["fast"]["classical"] == -20.0
    axes = plot_cells(found).axes[0]
    assert [text.get_text().split()[0] for text in axes.get_xticklabels()] == ["slow", "fast"]
    assert {text.get_text() for text in axes.get_legend().get_texts()} >= {"filter", "best classical predictor", "hold"}
    assert not cells([replace(row, data="") for row in rows])
    alone = [row for row in rows if row.metric == "nmse_db"]
    assert cells(alone)["slow"] == {"direct": -3.0, "filter": -18.0}, "of a study that scores no classical predictor"


def test_curves_over_doppler_noise_labels_and_horizon():
    def tested(variant, data, labels, nmse, fd_t, snr, **metrics):
        given = {"fd_t": fd_t, "snr_db": snr, "hold_nmse_db": -1.0, "link_ar_nmse_db": -6.0, "nmse_db": nmse}
        run = summary(variant, data, 0, **given, **metrics) | {"n_train": labels}
        return rows_of(run, Study("x", [0]))

    rows = [
        *tested("filter", "slow", 75, -20.0, 0.01, 15.0), *tested("filter", "fast", 75, -10.0, 0.2, 15.0),
        *tested("filter", "snr_0", 75, -5.0, 0.05, 0.0), *tested("filter", "snr_20", 75, -15.0, 0.05, 20.0),
        *tested("filter_100", "slow", 1512, -24.0, 0.01, 15.0),
        *tested("filter_100", "fast", 1512, -12.0, 0.2, 15.0, nmse_db_1=-14.0, nmse_db_2=-10.0, hold_nmse_db_1=-2.0),
    ]  # fmt: skip
    lines = curves(rows)
    assert lines["f_D T"]["filter"] == [(0.01, -20.0), (0.2, -10.0)], "cells of one SNR each are another panel's"
    assert lines["f_D T"]["classical"] == [(0.01, -6.0), (0.2, -6.0)]
    assert lines["SNR [dB]"]["filter"] == [(0.0, -5.0), (20.0, -15.0)]
    assert lines["labels"] == {"filter": [(75.0, -12.5), (1512.0, -18.0)]}
    assert lines["steps ahead"] == {"filter_100": [(1.0, -14.0), (2.0, -10.0)]}, "a curve has two points"
    panels = plot_curves(lines).axes
    assert [axes.get_xlabel() for axes in panels] == list(lines)
    assert panels[2].get_xscale() == "log"
