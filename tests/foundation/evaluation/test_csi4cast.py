import math

import numpy as np
import pytest
import torch

from foundation.baselines.prediction import hold
from foundation.evaluation import csi4cast
from foundation.evaluation.csi4cast import PUBLISHED, cell, report


def test_a_cell_and_its_table(tmp_path, monkeypatch):
    monkeypatch.setenv("CSI_CACHE", str(tmp_path))
    found = cell(1.0, links=24)
    assert found["hold"][0] == pytest.approx(PUBLISHED["hold"][1.0], abs=3)
    assert found["pad_vector"][0] == pytest.approx(PUBLISHED["pad_vector"][1.0], abs=3)
    assert all(0 < spread < 2.5 for _, spread in found.values())
    lines = report({1.0: found}, links=24).splitlines()
    assert lines[0] == "| NMSE [dB] | 1 m/s | 1 m/s, published |"
    assert lines[2].startswith(f"| hold | {found['hold'][0]:.2f} ± ")
    assert lines[2].endswith(f"| -14.2 ± {found['hold'][1] * 0.24**0.5:.1f} |")
    assert lines[-1] == "| CSI-4CAST |  | -24.6 |"
    # of links half of which err by 0.1 and half by 0.3, and of a standard error of the mean in decibels
    errors = 0.1 + 0.2 * (torch.arange(24) % 2)
    monkeypatch.setattr(csi4cast, "_PREDICTORS", {"hold": hold})
    monkeypatch.setattr(csi4cast, "prediction_error", lambda *_, **__: errors[:, None].expand(24, 4))
    share = np.std(errors.numpy(), ddof=1) / 0.2 / math.sqrt(24)
    expected = (10 * math.log10(0.2), 5 * math.log10((1 + share) / (1 - share)))
    assert cell(1.0, links=24)["hold"] == pytest.approx(expected, rel=0.01)
