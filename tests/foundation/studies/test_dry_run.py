"""What cannot work is refused before a training, and before data are made for it."""

from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.sources.base import Source
from foundation import dry_run
from foundation.cli import main
from foundation.studies.study import Study

EXPERIMENTS = Path(__file__).parents[3] / "experiments"


@pytest.fixture
def no_data(monkeypatch):
    """Fail where data are made."""

    def made(*_, **__):
        raise AssertionError("data were made")

    monkeypatch.setattr(Source, "sites", made)


@pytest.mark.parametrize(
    ("files", "args", "said"),
    [
        (
            ("finetune/beam", "encoders/contwin"),
            (),
            "reads several snapshots: set data.sequence",
        ),
        (("finetune/beam", "encoders/csiclip"), ("--data.num_beams", "null"), "set data.num_beams"),
        (
            ("finetune/toft_los", "encoders/csiclip"),
            ("--model.encoder", "EnvironmentTransformer"),
            "add to data.extras",
        ),
        (("contwin",), ("--data.views", "null"), "ConTwin needs views, which the data lack: set data.views"),
        (("calibration",), ("--data.variants", "[high, low]"), "low fidelity first, but the data have high, low"),
    ],
)
def test_it_is_refused_before_data_are_made(no_data, files, args, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    configs = [word for file in files for word in ("--config", str(EXPERIMENTS / f"{file}.yaml"))]
    mode = ["--model.mode", "scratch"] if len(files) > 1 else []
    assert main(["fit", *configs, *mode, *args]) == 2
    assert said in capsys.readouterr().err


def test_an_adaptation_is_tried_on_an_untrained_model(street_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [str(EXPERIMENTS / "csiclip.yaml"), "--config", str(EXPERIMENTS / "finetune/beam.yaml"), *street_data]
    assert dry_run.main([*given, "--model.mode", "probe", "--then_test", "false"]) == 0
    assert dry_run.main([*given, "--model.tower", "[environment]"]) == 2
    assert "csiclip.ckpt holds no part 'environment': choose one of csi, cir" in capsys.readouterr().err
    assert dry_run.main([*given, "--data.num_labels", "1000"]) == 2
    assert "data.num_labels is 1000, but the train side holds" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_study_is_refused_before_its_pre_training(monkeypatch):
    pretrain = {"a": ["--config", "toy.yaml"], "b": ["--config", "toy.yaml", "--model.lr", "0.5"]}
    study = Study("s", [0, 1], ["t"], pretrain, modes=["probe"], adapt=["--model.start_from", "x"])
    listed = study.commands(Path("runs"))
    assert len(listed) == 6
    built = []
    monkeypatch.setattr(dry_run, "run", lambda args, dry: built.append((args, dry)) or Refusing(args))
    monkeypatch.setattr(dry_run, "save_untrained", lambda model, file: None)
    with pytest.raises(InputError, match=r"runs/s/b-t-probe-s0 cannot be run: no runs/s/pretrain-b/checkpoints/best"):
        dry_run.check_followers([(Path("runs/s", run), args) for run, args in listed])
    assert all(dry for _, dry in built)
    assert len(built) == 4, "each pre-training and one adaptation of each kind"


class Refusing:
    """What a command builds; the second adaptation is refused."""

    def __init__(self, args):
        self.model = None
        if "b-t-probe-s0" in args:
            checkpoint = args[args.index("--model.checkpoint") + 1]
            assert not checkpoint.startswith("runs"), "there is none yet"
            raise InputError(f"no {checkpoint}")
