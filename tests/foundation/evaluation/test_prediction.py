import math
from dataclasses import replace

import pytest
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.codebook import dft_codebook
from foundation.evaluation.prediction_controls import PredictedBeam
from foundation.evaluation.prediction_curves import (
    CAPTIONS,
    STUDIES,
    cells,
    curves,
    pictures,
    plot_cells,
    plot_curves,
    plot_shares,
    shares,
)
from foundation.studies.results import publish
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
    assert [text.get_text().split(":")[0] for text in axes.get_xticklabels()] == ["slow", "fast"]
    [legend] = axes.figure.legends
    assert {text.get_text() for text in legend.get_texts()} >= {
        "filter",
        "best classical predictor",
        "the last snapshot",
    }
    assert not cells([replace(row, data="") for row in rows])
    alone = [row for row in rows if row.metric == "nmse_db"]
    assert cells(alone)["slow"] == {"direct": -3.0, "filter": -18.0}, "of a study that scores no classical predictor"


def rows_with(study, variant, data, labels, nmse, fd_t, snr, seed=0, **metrics):
    given = {"fd_t": fd_t, "snr_db": snr, "hold_nmse_db": -1.0, "link_ar_nmse_db": -6.0, "nmse_db": nmse}
    run = summary(variant, data, seed, **given, **metrics) | {"n_train": labels, "experiment": study}
    return rows_of(run, Study(study, [0]))


def test_curves_over_doppler_noise_and_horizon():
    near, far = STUDIES
    rows = [
        *rows_with(near, "filter", "pedestrian", 75, -20.0, 0.01, 15.0),
        *rows_with(near, "filter", "fast", 75, -10.0, 0.2, 15.0),
        *rows_with(near, "filter_20", "fast", 302, -11.0, 0.2, 15.0),
        *rows_with(near, "filter", "rural", 75, -17.0, 0.1, 15.0),
        *rows_with(near, "filter", "snr_0", 75, -5.0, 0.05, 0.0),
        *rows_with(near, "filter", "snr_20", 75, -15.0, 0.05, 20.0),
        *rows_with(far, "filter", "fast", 75, -12.0, 0.2, 15.0, nmse_db_1=-14.0, nmse_db_2=-10.0, hold_nmse_db_1=-2.0),
    ]  # fmt: skip
    lines = curves(rows)
    assert lines["f_D T"] == {
        "filter": [(0.01, -20.0), (0.2, -10.0)], "hold": [(0.01, -1.0), (0.2, -1.0)],
        "classical": [(0.01, -6.0), (0.2, -6.0)],
    }, "main variants alone, in cells that differ in f_D T alone"  # fmt: skip
    assert lines["SNR [dB]"]["filter"] == [(0.0, -5.0), (20.0, -15.0)]
    assert lines["steps ahead, fast"] == {"filter": [(1.0, -14.0), (2.0, -10.0)]}, "a curve has two points"
    assert [axes.get_xlabel() for axes in plot_curves(lines).axes] == ["$f_D T$", *list(lines)[1:]]
    assert list(pictures(rows)) == list(CAPTIONS)


def test_frozen_encoders_over_the_share_of_labels_beside_one_from_scratch():
    near = STUDIES[0]
    rows = [
        *rows_with(near, "filter", "fast", 75, -10.0, 0.2, 15.0),
        *rows_with(near, "filter", "fast", 75, -12.0, 0.2, 15.0, 1),
        *rows_with(near, "filter_20", "fast", 300, -13.0, 0.2, 15.0),
        *rows_with(near, "filter_100", "fast", 1500, -14.0, 0.2, 15.0),
        *rows_with(near, "scratch", "fast", 1500, -13.5, 0.2, 15.0),
        *rows_with(near, "b1", "fast", 1500, 0.0, 0.2, 15.0),
        *rows_with(near, "filter", "rural", 75, -10.0, 0.1, 15.0),
    ]  # fmt: skip
    found = shares(rows)
    assert found == {
        "fast": {
            "filter": {75: [-10.0, -12.0], 300: [-13.0], 1500: [-14.0]}, "scratch": {1500: [-13.5]},
            "classical": {0: [-6.0]},
        }
    }  # fmt: skip
    [axes] = plot_shares(found).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["5", "20", "100"]
    assert axes.lines[0].get_xydata()[0].tolist() == [5.0, -11.0]
    assert list(pictures(rows))[-1] == "prediction_labels"


def test_the_best_classical_predictor_is_not_drawn_on_the_border_of_a_panel():
    [axes] = plot_shares({"fast": {"filter": {75: [-10.0, -12.0], 300: [-13.0]}, "classical": {0: [-9.9]}}}).axes
    axes.figure.canvas.draw()
    low, high = axes.get_ylim()
    assert high - -9.9 > 0.03 * (high - low)


def test_results_show_the_pictures(tmp_path):
    publish(rows_with(STUDIES[0], "filter", "fast", 75, -10.0, 0.2, 15.0), tmp_path / "RESULTS.md")
    assert "](docs/prediction_cells.png)" in (tmp_path / "RESULTS.md").read_text()
    assert (tmp_path / "docs" / "prediction_cells.png").read_bytes()[:4] == b"\x89PNG"
