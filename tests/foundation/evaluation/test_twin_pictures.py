"""Tables and pictures at the end of the tests of a twin's models."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules.sites.environment import Environment
from foundation.evaluation.twin_pictures import (
    calibration_figures,
    calibration_table,
    distributions,
    feedback_figures,
    feedback_table,
)


def test_the_table_of_calibration_has_a_line_for_each_that_was_scored():
    metrics = {"uncalibrated_cosine": 0.791, "direct_cosine": 0.7, "cosine": 0.943, "cosine_p10": 0.81, "rate": 5.5}
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in calibration_table(metrics).splitlines()]
    assert lines[0][:3] == ["codewords by", "cosine", "10th pct"]
    assert [line[:3] for line in lines[2:]] == [
        ["uncalibrated twin", "0.791", ""],
        ["channel of the twin itself", "0.700", ""],
        ["calibrated twin", "0.943", "0.810"],
    ]
    assert lines[4][lines[0].index("rate [bit/s/Hz]")] == "5.500"


def test_the_table_of_feedback_sets_chance_beside_the_network():
    rates = {"se_ratio": 0.9, "rate": 4.5, "perfect_rate": 5.0}
    table = feedback_table({"nmse_db": -8.0, "chance_nmse_db": 3.01, "pca_nmse_db": -0.4, **rates}, 32)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]
    assert cells[0] == ["32 numbers a link", "NMSE [dB]"]
    assert cells[2:] == [["network", "-8.00"], ["principal components", "-0.40"], ["chance", "3.01"]]
    assert table.endswith("rate 4.50 bit/s/Hz, 90.0% of the 5.00 with perfect CSI")
    assert feedback_table({"nmse_db": -8.0}, 32, 128).splitlines()[0].split("|")[1].strip() == (
        "32 numbers a link, 128 bits"
    )


def test_beams_are_as_far_apart_as_on_a_circle():
    beams = torch.tensor([[[31, 4], [2, 4], [1, 4]], [[0, 0], [0, 16], [16, 0]]])
    rows = {
        "position": torch.tensor([[1.0, 2.0, 0.0], [30.0, 40.0, 0.0]]), "site": torch.zeros(2, dtype=torch.long),
        "beams": beams, "num_beams": torch.full((2,), 32),
        "cosine": torch.tensor([[0.5, 0.6, math.nan, math.nan, 0.8, 1.0]] * 2),
    }  # fmt: skip
    square = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 10.0]])
    site = SimpleNamespace(environment=Environment((square,), np.array([12.0]), (0.0, 0.0, 50.0, 50.0)))
    figures = calibration_figures(rows, [site])
    titles = [axes.get_title() for axes in figures["beams"].axes[:4]]
    assert titles == [
        "uncalibrated, beam 1: mean 9.0", "uncalibrated, beam 2: mean 0.0",
        "calibrated, beam 1: mean 8.5", "calibrated, beam 2: mean 8.0",
    ]  # fmt: skip
    [axes] = figures["cosine"].axes
    labels = [line.get_label() for line in axes.lines]
    assert labels == ["uncalibrated twin", "channel of the twin itself", "calibrated twin", "true channel (bound)"]
    assert set(calibration_figures(rows, [])) == {"cosine"}


@pytest.mark.filterwarnings("error")
def test_the_map_of_one_user_has_an_extent_and_that_of_none_is_left_out():
    rows = {
        "position": torch.tensor([[1.0, 2.0, 0.0], [math.nan] * 3]), "site": torch.tensor([0, 1]),
        "beams": torch.zeros(2, 3, 1, dtype=torch.long), "num_beams": torch.full((2,), 32),
        "cosine": torch.rand(2, 6),
    }  # fmt: skip
    site = SimpleNamespace(environment=Environment.empty(np.array([[1.0, 2.0]])))
    panel = calibration_figures(rows, [site])["beams"].axes[0]
    assert panel.get_xlim() == pytest.approx((0.96, 1.04))
    assert set(calibration_figures({key: value[1:] for key, value in rows.items()}, [site])) == {"cosine"}


def test_distributions_leave_out_what_is_not_known():
    figure = distributions({"a": torch.tensor([1.0, math.nan, 3.0]), "b": torch.tensor([math.nan])}, "x", ["k", "r"])
    [line] = figure.axes[0].lines
    assert line.get_xdata()[[0, 250, 500]].tolist() == [1.0, 2.0, 3.0]


def test_the_links_shown_are_of_least_median_and_largest_error():
    error = torch.tensor([0.1, 0.01, 1.0])
    target = torch.randn(3, 4, 4, dtype=torch.complex64)
    figures = feedback_figures({"nmse_db": error, "pca_nmse_db": error / 2}, target, target / 2)
    titles = [axes.get_title() for axes in figures["channels"].axes]
    assert [title for title in titles if "NMSE" in title] == [
        f"rebuilt, NMSE {level} dB" for level in ("-20.0", "-10.0", "0.0")
    ]
    assert titles[:3] == [f"channel of {which} error" for which in ("least", "median", "largest")]
    first, shown = figures["channels"].axes[0].images[0].get_array(), target[1].abs().numpy()
    assert np.allclose(first, shown)
    assert [line.get_label() for line in figures["errors"].axes[0].lines] == ["network", "principal components"]
