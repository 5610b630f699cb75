"""Settings that Lightning takes as they are, or refuses in words of its own: one line, and exit status 2."""

import pytest

from tests.foundation.commands import lightning, the_run

pytestmark = pytest.mark.usefixtures("toy_folder")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("fit", "--trainer.max_epochs", "0"), "trainer.max_epochs 0 trains nothing: give 1 or more"),
        (("fit", "--trainer.limit_train_batches", "0"), "trainer.limit_train_batches 0 trains nothing"),
        (("fit", "--then_test", "true", "--trainer.limit_test_batches", "0"), "limit_test_batches 0 tests nothing"),
        (("test", "--trainer.limit_test_batches", "0.0"), "trainer.limit_test_batches 0 tests nothing"),
        (("validate", "--trainer.limit_val_batches", "0"), "trainer.limit_val_batches 0 validates nothing"),
        (("predict", "--trainer.limit_predict_batches", "0"), "trainer.limit_predict_batches 0 predicts nothing"),
        (("fit", "--trainer.accumulate_grad_batches", "0"), "trainer.accumulate_grad_batches must be 1 or more, got 0"),
        (("fit", "--trainer.check_val_every_n_epoch", "0"), "trainer.check_val_every_n_epoch must be 1 or more, got 0"),
        (("fit", "--trainer.gradient_clip_val", "-1"), "trainer.gradient_clip_val must be 0 or more, got -1"),
        (("fit", "--seed_everything", "-5"), "seed_everything must be 0 to 4294967295, got -5"),
        (("fit", "--trainer.devices", "foo"), "should be an int > 0"),
        (("fit", "--trainer.val_check_interval", "1000"), "must be less than or equal to the number of the training"),
        (
            ("fit", "--trainer.callbacks", "[{class_path: EarlyStopping, init_args: {monitor: val/foo}}]"),
            "metric `val/foo` which is not available",
        ),
        (("test", "--ckpt_path", "foo://x.ckpt"), "checkpoint foo://x.ckpt cannot be read (Protocol not known: foo)"),
    ],
)
def test_it_is_one_line(capsys, args, said):
    assert lightning(*args) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]


def test_a_command_comes_first(capsys):
    from foundation.cli import main

    assert main(["--config", "toy.yaml", "fit"]) == 2
    assert capsys.readouterr().err.startswith("error: '--config' comes before the command: give one of fit,")


def test_weights_alone_are_tested_but_no_training_goes_on_from_them(capsys):
    import torch

    assert lightning("fit") == 0
    content = torch.load(the_run() / "checkpoints/best.ckpt", weights_only=True)
    torch.save({"state_dict": content["state_dict"]}, "weights.ckpt")
    assert lightning("test", "--ckpt_path", "weights.ckpt") == 0
    assert lightning("fit", "--ckpt_path", "weights.ckpt") == 2
    assert "weights.ckpt holds weights alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  class_path: Toy\n", "  class_path: 5\n", "toy.yaml: 'model.class_path' must be the name of a class, got 5"),
        ("  init_args:\n    n: 22\n", "  init_args:\n", "toy.yaml: 'data.init_args' must hold `key: value` lines"),
        ("  init_args:\n    n: 22\n", "  init_args: [n]\n", "toy.yaml: 'data.init_args' must hold `key: value` lines"),
        ("    n: 22\n", "    n: &n [*n]\n", "toy.yaml: an anchor (&) stands within what it names"),
    ],
)
def test_yaml_that_no_parser_can_use(capsys, toy_folder, old, new, said):
    file = toy_folder / "toy.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    assert lightning("fit") == 2
    assert said in capsys.readouterr().err
