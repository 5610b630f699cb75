"""The program in processes of its own: what it imports, how it ends, several at once; settings that it refuses."""

import pytest
from safetensors.torch import load_file

from datamodules import ChannelDataModule
from foundation.runtime.parser import Parser
from tests.foundation.commands import QUIET, REPOSITORY, finish, lightning, process, summary, the_run

pytestmark = pytest.mark.usefixtures("toy_folder")


class TestProgram:
    def test_help_is_quick_and_imports_nothing_heavy(self):
        code = (
            "import sys; from foundation.cli import main; status = main(['--help']); heavy = {'torch', 'lightning', "
            "'deepmimo', 'sionna', 'mitsuba', 'wandb', 'timm'} & set(sys.modules); print(heavy); sys.exit(status)"
        )
        program = process(launcher=("-c", code))
        out, err = program.communicate()
        assert program.returncode == 0, err
        assert out.startswith("usage: lightning COMMAND")
        assert out.endswith("set()\n")

    def test_help_of_a_command_imports_no_source_and_no_wandb(self):
        code = (
            "import sys, contextlib; from foundation.cli import main\n"
            "with contextlib.suppress(SystemExit): main(['fit', '--help'])\n"
            "print({'deepmimo', 'sionna', 'mitsuba', 'wandb', 'timm'} & set(sys.modules))"
        )
        out, err = process(launcher=("-c", code)).communicate()
        assert "--experiment" in out, err
        assert out.startswith("usage: lightning ")
        assert "last` or `best` of the newest run of the experiment" in " ".join(out.split())
        assert out.endswith("set()\n")

    @pytest.mark.parametrize("launcher", ["lightning", pytest.param("torchrun", marks=pytest.mark.slow)])
    def test_two_processes_share_one_run(self, launcher):
        start = ("-m", "tests.foundation.program")
        if launcher == "torchrun":
            start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *start)
        ddp = ["--config", str(REPOSITORY / "experiments/ddp.yaml"), "--trainer.devices", "2"]
        program = process("fit", "--config", "toy.yaml", *ddp, *QUIET, "--then_test", "true", launcher=start)
        out, err = finish(program)
        assert program.returncode == 0, err
        assert out.count("run: ") == 1
        assert summary()["hardware"]["processes"] == 2
        assert summary()["metrics"]["test/loss"] > 0
        assert (the_run() / "checkpoints/last.ckpt").exists()
        program = process("predict", "--config", "toy.yaml", *ddp, *QUIET, "--ckpt_path", "best", launcher=start)
        _, err = finish(program)
        assert program.returncode == 0, err
        assert sorted(load_file(the_run() / "predictions.safetensors")["user"].tolist()) == list(range(22))

    def test_two_processes_complain_once(self):
        program = process(
            "fit", "--config", "toy.yaml", *QUIET, "--trainer.devices", "2", "--data.missing", "no/such/file"
        )
        _, err = finish(program)
        assert program.returncode == 2
        assert err.count("error: ") == 1
        assert "Traceback" not in err


@pytest.mark.parametrize("null", ["null", "~"])
def test_a_setting_within_a_setting_takes_null(null):
    parser = Parser()
    parser.add_subclass_arguments(ChannelDataModule, "data")
    start = ["--data", "datamodules.ChannelDataModule", "--data.source", "datamodules.WAIRD"]
    sequence = ["--data.sequence", '{"snapshots": 10, "window": 0.025}']
    data = parser.parse_args([*start, *sequence, "--data.sequence.window", null]).data.init_args
    assert (data.sequence.snapshots, data.sequence.window) == (10, None)


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
