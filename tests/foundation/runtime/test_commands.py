"""The program in processes of its own: what it imports, how it ends, several at once."""

import pytest
from safetensors.torch import load_file

from datamodules import ChannelDataModule
from foundation.runtime.parser import Parser
from tests.foundation.commands import QUIET, REPOSITORY, finish, process, summary, the_run

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
