"""A side without a link is an error before a training that it would end, not a test without a result."""

import pytest

from foundation.cli import main

NONE = "there is no link on the {} side: give it a share in data.fractions"


@pytest.fixture
def fit(street_data, tmp_path):
    """Arguments of a training without a validation and a test side."""
    args = ["--config", "experiments/finetune/los.yaml", *street_data, "--data.split", "random"]
    args += ["--data.fractions", "[1.0, 0.0, 0.0]", "--data.bs", "{rows: 1, cols: 4}", "--data.ofdm.num_subcarriers"]
    args += ["16", "--model.encoder", "{class_path: HandFeatures, init_args: {num_antennas: 4, num_subcarriers: 16}}"]
    args += ["--model.mode", "control", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    return [*args, "--trainer.enable_progress_bar", "false", "--runs", str(tmp_path), "--run_id", "x"]


def test_a_training_is_not_begun_whose_test_has_no_link(fit, tmp_path, capsys):
    assert main(["fit", *fit, "--then_test", "true"]) == 2
    assert NONE.format("test") in capsys.readouterr().err
    assert not (tmp_path / "los/x/checkpoints/last.ckpt").exists()


def test_a_side_without_a_link_is_neither_tested_nor_predicted(fit, tmp_path, capsys):
    assert main(["fit", *fit, "--then_test", "false"]) == 0
    given = [*fit[:-2], "--ckpt_path", str(tmp_path / "los/x/checkpoints/last.ckpt")]
    for command, side in (("validate", "validation"), ("test", "test"), ("predict", "test")):
        assert main([command, *given, *["--data.predict_on", "test"] * (command == "predict")]) == 2
        assert NONE.format(side) in capsys.readouterr().err
