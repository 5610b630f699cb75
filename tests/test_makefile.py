"""What `make` hands to the program, and what it says itself."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def make(tmp_path):
    """Run `make` on a program that writes down its arguments, one a line, and pre-trains in a blink."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/.ready").touch()
    program = tmp_path / ".venv/bin/lightning"
    program.write_text("""#!/bin/sh
printf '%s\\n' "$@" >> called
case "$3" in experiments/csiclip.yaml)
    mkdir -p runs/csiclip/new/checkpoints; touch runs/csiclip/new/checkpoints/last.ckpt
    test -n "$STATUS" || touch runs/csiclip/new/summary.json
    exit $STATUS;;
esac
""")
    program.chmod(0o755)
    python = tmp_path / ".venv/bin/python"
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\" >> called\nexit $REFUSED\n")
    python.chmod(0o755)

    def run(*args, **environment):
        (tmp_path / "called").write_text("")
        # not as a part of the `make test` that may run this
        alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
        done = subprocess.run(
            ["make", *args], cwd=tmp_path, capture_output=True, text=True, env={**alone, **environment}
        )
        errors = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "Makefile:"))]
        return done.returncode, (tmp_path / "called").read_text().splitlines(), errors

    return run


def test_a_checkpoint_may_have_spaces(make):
    status, called, _ = make("finetune", "TASK=beam", "CKPT=my runs/a b.ckpt")
    assert status == 0
    assert called[called.index("--model.checkpoint") + 1] == "my runs/a b.ckpt"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ("finetune", "TASK=beam", "MODEL=foo"),
            "no experiments/foo.yaml for MODEL=foo and MODE=finetune; models: contwin csiclip envchannel",
        ),
        (("finetune", "TASK=beam", "MODEL=foo", "MODE=control"), "MODE=control; models: ar1 cnntransformer contwin"),
        (("finetune", "TASK=foo"), "no experiments/finetune/foo.yaml; tasks: "),
        (("finetune",), "TASK is missing"),
        (("tune",), "EXPERIMENT is missing or unknown: give one, such as make tune EXPERIMENT=beam; there are:"),
        (("tune", "EXPERIMENT=foo"), "EXPERIMENT is missing or unknown"),
    ],
)
def test_bad_names_are_one_error(make, args, said):
    status, called, errors = make(*args)
    assert status == 2
    assert not called
    [line] = errors
    assert said in line
    tasks = {file.stem for file in (ROOT / "experiments/finetune").iterdir()}
    assert set(line.partition("tasks: ")[2].split()) <= tasks


def test_pre_training_comes_first_and_nothing_goes_on_when_it_is_stopped(make):
    status, called, _ = make("finetune", "TASK=beam", STATUS="143")
    assert status == 2
    assert called[-3:] == ["fit", "--config", "experiments/csiclip.yaml"]
    status, called, errors = make("finetune", "TASK=beam")
    assert (status, called) == (2, [])
    assert "runs/csiclip/new/checkpoints/last.ckpt was stopped: finish it with make pretrain" in errors[0]
    make("pretrain")
    status, called, _ = make("finetune", "TASK=beam")
    assert status == 0
    assert called[called.index("--model.checkpoint") + 1] == "runs/csiclip/new/checkpoints/best.ckpt"


def test_pre_training_is_on_its_own_data(make):
    status, called, _ = make(
        "finetune", "TASK=beam", "DATA=experiments/data/losangeles.yaml", "ARGS=--data.num_labels 5"
    )
    assert status == 0
    first = called.index("fit")
    then = called.index("fit", first + 1)
    assert called[first:then] == ["fit", "--config", "experiments/csiclip.yaml"]
    assert "experiments/data/losangeles.yaml" in called[then:]


def test_an_adaptation_is_tried_before_a_pre_training(make):
    given = ("finetune", "TASK=beam", "DATA=experiments/data/losangeles.yaml", "ARGS=--data.num_labels 5")
    status, called, _ = make(*given, REFUSED="2")
    assert status == 2
    tried = ["--config", "experiments/finetune/beam.yaml", "--config", "experiments/data/losangeles.yaml"]
    tried += ["--model.mode", "finetune", "--data.num_labels", "5"]
    assert called == ["-m", "foundation.dry_run", "experiments/csiclip.yaml", *tried]
    make("pretrain")
    assert "-m" not in make(*given, REFUSED="2")[1], "there is nothing to lose"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("finetune", "TASK=beam", "MODLE=contwin"), "MODLE does not apply to finetune, which takes TASK MODEL MODE"),
        (("reproduce", "STUDY=demo"), "STUDY does not apply to reproduce, which takes PAPER"),
        (("demo", "MODEL=contwin"), "MODEL does not apply to demo"),
        (("finetune", "TASK=beam", "MODE=scratch", "CKPT=x.ckpt"), "CKPT is for MODE=probe or finetune"),
        (("finetune", "TASK=beam", "MODEL=trainer"), "models: contwin csiclip envchannel"),
    ],
)
def test_a_variable_that_does_not_apply_is_refused(make, args, said):
    status, called, errors = make(*args)
    assert (status, called) == (2, [])
    assert said in errors[0]


def test_a_control_needs_no_checkpoint(make):
    status, called, _ = make("finetune", "TASK=los", "MODE=control", "MODEL=hand", "ARGS=--data.num_labels 5")
    assert status == 0
    assert called[-4:] == ["--config", "experiments/encoders/hand.yaml", "--data.num_labels", "5"]


def test_the_next_csi_is_predicted_by_a_frozen_encoder(make):
    chosen = ("MODE=finetune",)
    for task, mode, given in (("prediction", "probe", ()), ("prediction", "finetune", chosen), ("los", "finetune", ())):
        status, called, _ = make("finetune", f"TASK={task}", "CKPT=x.ckpt", *given)
        assert status == 0
        assert called[called.index("--model.mode") + 1] == mode
        assert called[called.index("--experiment") + 1] == f"{task}_{mode}"
