import pytest

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
