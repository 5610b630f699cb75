"""Which run a command works on, and what it must not overwrite or mix."""

import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch

import datamodules
import foundation
import heads
from foundation.checkpoint import read_checkpoint
from foundation.runtime.run_choice import differences, is_mapping
from tests.foundation.commands import QUIET, complaint, lightning, process, rows, summary, the_run, weights

pytestmark = pytest.mark.usefixtures("toy_folder")

SHORT = ("--trainer.max_epochs", "1")


@pytest.mark.parametrize("name", ["../../x", "a/b", "x[b]", "*", "", ".hidden", "-x"])
def test_names_that_are_no_plain_names_are_refused(capsys, name):
    for option in ("--run_id", "--experiment"):
        assert f"{option} '{name}' is no plain name" in complaint(capsys, "fit", f"{option}={name}")
    assert not Path("runs").exists()


def test_a_config_with_an_odd_name_gives_a_plain_one():
    shutil.copy("toy.yaml", "my [toy].yaml")
    assert lightning("fit", *SHORT, config="my [toy].yaml") == 0
    assert lightning("test", "--ckpt_path", "best", config="my [toy].yaml") == 0
    assert summary("my__toy_")["metrics"]


def test_a_run_killed_in_its_first_epoch_starts_over(monkeypatch, capsys):
    args = ("--experiment", "killed", "--run_id", "1")
    killed = process("fit", "--config", "toy.yaml", *QUIET, *args, env={"TOY_KILL_AT": "3"})
    killed.communicate()
    assert Path("runs/killed/1/metrics.csv").exists()
    shutil.copytree("runs/killed", "runs/again")
    assert lightning("fit", *args, "--ckpt_path", "last") == 0
    assert "was stopped before its first checkpoint: it starts over" in capsys.readouterr().out
    assert lightning("fit", "--experiment", "again", "--run_id", "1") == 0
    lightning("fit", "--experiment", "whole")
    for experiment in ("killed", "again"):
        assert rows(experiment) == rows("whole")
        assert all(torch.equal(weights("whole")[key], value) for key, value in weights(experiment).items())
    assert "exists" in complaint(capsys, "fit", *args)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # the very command once more
    assert lightning("fit", *args, "--trainer.max_epochs", "5") == 0
    assert summary("killed")["epochs"] == 5


def test_settings_that_a_checkpoint_overrules_are_refused_and_others_told(capsys):
    lightning("fit", "--run_id", "1", *SHORT)
    before = (the_run() / "config.yaml").read_text()
    go_on = ("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    line = complaint(capsys, *go_on, "--model.lr", "0.5", "--data.n", "20")
    assert "runs/toy/1 cannot go on with data.n 20 instead of 22, model.lr 0.5 instead of 0.05" in line
    assert "seed_everything 3 instead of 0" in complaint(capsys, *go_on, "--seed_everything", "3")
    assert (the_run() / "config.yaml").read_text() == before
    best = str(the_run() / "checkpoints/best.ckpt")
    assert "cannot be trained on with model.lr" in complaint(capsys, "fit", "--ckpt_path", best, "--model.lr", "0.5")
    assert lightning(*go_on, "--data.batch_size", "2") == 0
    assert "goes on with data.batch_size 2 instead of 4, trainer.max_epochs 2 instead of 1" in capsys.readouterr().out
    assert summary()["epochs"] == 2


@pytest.mark.filterwarnings("error:The dirpath has changed")
def test_a_moved_run_keeps_its_best_checkpoint():
    lightning("fit", "--run_id", "1", "--trainer.max_epochs", "3")
    before = summary()["best"]["val/loss"]
    best = torch.load(the_run() / "checkpoints/best.ckpt", weights_only=True)["epoch"]
    shutil.move("runs", "moved")
    # none of the next epochs can be better
    last = Path("moved/toy/1/checkpoints/last.ckpt")
    content = torch.load(last, weights_only=True)
    for state in content["callbacks"].values():
        if "best_model_score" in state:
            state["best_model_score"] = torch.tensor(1e-9)
            state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(1e-9))
            state["kth_value"] = torch.tensor(1e-9)
    torch.save(content, last)
    assert lightning("fit", "--runs", "moved", "--ckpt_path", "last", "--trainer.max_epochs", "4") == 0
    assert torch.load(last.with_name("best.ckpt"), weights_only=True)["epoch"] == best
    after = json.loads(Path("moved/toy/1/summary.json").read_text())
    assert after["best"]["val/loss"] == pytest.approx(1e-9) != before
    assert after["epochs"] == 4


def test_without_a_checkpoint_a_run_is_asked_for_its_best_and_a_plain_config_refused(capsys):
    line = complaint(capsys, "test")
    assert "`test` without a checkpoint would use random weights: give --ckpt_path best" in line
    assert not list(Path().glob("runs/*/*"))
    lightning("fit", "--run_id", "1", "--trainer.max_epochs", "2")
    expected = summary()["best"]["val/loss"]
    assert lightning("test", config="runs/toy/1/config.yaml") == 0
    assert summary()["metrics"] == {"test/loss": pytest.approx(expected)}
    (the_run() / "checkpoints/best.ckpt").unlink()
    assert "no runs/toy/1/checkpoints/best.ckpt" in complaint(capsys, "predict", config="runs/toy/1/config.yaml")


def test_what_a_run_says_of_other_data_lies_in_a_folder_of_its_own():
    lightning("fit", "--run_id", "1", *SHORT)
    own = "runs/toy/1/config.yaml"
    lightning("predict", config=own)
    lightning("test", config=own)
    before = {path: path.read_bytes() for path in Path("runs/toy/1").glob("*.*") if path.suffix != ".csv"}
    Path("more.yaml").write_text("data: {init_args: {n: 30}}\n")
    for command in ("predict", "test"):
        assert lightning(command, "--config", "more.yaml", config=own) == 0
    assert {path: path.read_bytes() for path in before} == before
    other = Path("runs/toy/1/on-more")
    assert (other / "predictions.safetensors").exists()
    assert json.loads((other / "summary.json").read_text())["n_test"] == 30
    assert lightning("test", "--config", "more.yaml", "--data.n", "31", config=own) == 0
    assert json.loads((other / "summary.json").read_text())["n_test"] == 30
    assert len(list(Path("runs/toy/1").glob("on-more-*/summary.json"))) == 1
    assert lightning("predict", "--data.batch_size", "7", config=own) == 0
    assert len(list(Path("runs/toy/1").glob("on-*"))) == 2


@pytest.mark.parametrize(
    ("old", "new", "keys"),
    [
        ({"data": {"class_path": "a.D", "init_args": {"test_on": {"los": 1}}}},
         {"data": {"class_path": "b.D", "init_args": {"test_on": {"los": 1, "variant": "twin"}}}}, ["data.test_on"]),
        ({"data": {"num_labels": {"twin": 9}}}, {"data": {"num_labels": {"target": 9}}}, ["data.num_labels"]),
        ({"data": {"source": {"variants": {"low": {"max_depth": 2}}}}},
         {"data": {"source": {"variants": {"low": {"max_depth": 2, "foliage": True}}}}}, ["data.source.variants.low"]),
        # by release
        ({"data": {"bs": {"rows": 1}}}, {"data": {"bs": {"rows": 1, "polarization": "single"}}}, []),
        ({"data": {"source": {"variants": {"a": {"class_path": "S", "init_args": {"seed": 0}}}}}},
         {"data": {"source": {"variants": {"a": {"class_path": "S", "init_args": {"seed": 0, "new": 1}}}}}}, []),
    ],
)  # fmt: skip
def test_entries_of_one_of_two_mappings_are_differences(old, new, keys):
    assert [change.key for change in differences(old, new)] == keys
    assert [change.key for change in differences(new, old)] == keys


def test_all_settings_that_are_mappings_are_known():
    kinds = [getattr(package, name) for package in (datamodules, foundation, heads) for name in package.__all__]
    kinds = [kind for kind in kinds if isinstance(kind, type) and not issubclass(kind, Exception | datamodules.Site)]
    taken = [entry for kind in kinds for entry in inspect.signature(kind).parameters.items()]
    given = {name for name, parameter in taken if "dict[" in str(parameter.annotation)}
    assert {"test_on", "mobility", "variants", "lambdas"} <= given
    assert {name for name in given if not is_mapping(f"data.{name}")} == set()


def test_runs_and_checkpoints_of_a_home_folder_are_found(monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd() / "home"))
    assert lightning("fit", "--runs=~/runs", *SHORT) == 0
    [last] = Path("home/runs/toy").glob("*/checkpoints/last.ckpt")
    assert lightning("test", f"--ckpt_path=~/{last.relative_to('home')}") == 0
    assert json.loads((last.parents[1] / "summary.json").read_text())["metrics"]
    assert "state_dict" in read_checkpoint(f"~/{last.relative_to('home')}")


def test_half_written_files_of_a_run_cost_no_training(capsys):
    lightning("fit", *SHORT)
    folder = the_run()
    whole = (folder / "metrics.csv").read_text()
    (folder / "summary.json").write_text('{"experiment": "to')
    (folder / "metrics.csv").write_bytes(whole.encode() + b"7,0.3,\x00\x00,1,2,3,4,5,6\n\xff")
    with pytest.warns(UserWarning, match=r"summary.json is damaged: set aside as summary.json.damaged"):
        assert lightning("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2") == 0
    assert summary()["epochs"] == 2
    lightning("fit", "--experiment", "whole", "--trainer.max_epochs", "2")
    assert rows() == rows("whole")
    for text in ("", "no header\n1\n"):
        (folder / "metrics.csv").write_text(text)
        with pytest.warns(UserWarning, match=r"metrics.csv is damaged: set aside as metrics.csv.damaged"):
            assert lightning("test", "--ckpt_path", "best") == 0
        assert rows()[-1]["test/loss"]


def test_a_folder_that_cannot_be_written_is_one_line(capsys):
    Path("file").write_text("")
    assert "Not a directory" in complaint(capsys, "fit", "--runs", "file")


@pytest.mark.parametrize("value", ["-1", "-1e-3", "-.5"])
def test_negative_numbers_are_values(value):
    assert lightning("fit", *SHORT, "--model.threshold", value) == 0


def test_keys_that_stand_twice_are_named(capsys):
    Path("toy.yaml").write_text(Path("toy.yaml").read_text() + "trainer: {max_epochs: 1}\n")
    assert "toy.yaml, line 17, column 1: key 'trainer' stands there twice" in complaint(capsys, "fit")


@pytest.mark.parametrize("by", ["another", "option"])
def test_keys_that_stand_twice_in_a_file_that_is_named_elsewhere(capsys, by):
    Path("part").mkdir()
    Path("part/trainer.yaml").write_text("max_epochs: 1\naccelerator: cpu\nmax_epochs: 2\n")
    args = ["--trainer", "part/trainer.yaml"]
    if by == "another":
        Path("part/more.yaml").write_text("trainer: trainer.yaml\n")
        args = ["--config", "part/more.yaml"]
    assert "part/trainer.yaml, line 3, column 1: key 'max_epochs' stands there twice" in complaint(capsys, "fit", *args)
    Path("part/trainer.yaml").write_text("max_epochs: 1\naccelerator: cpu\n")
    assert lightning("fit", *args) == 0
    assert summary()["epochs"] == 1


def test_a_run_whose_test_was_killed_makes_up_for_it():
    lightning("fit", "--then_test", "true", *SHORT)
    file = the_run() / "summary.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({**whole, "metrics": {}}))
    assert lightning("fit", "--then_test", "true", *SHORT, "--ckpt_path", "last") == 0
    told = ("metrics", "best", "validation", "epochs", "steps")
    assert [summary()[key] for key in told] == [whole[key] for key in told]


def test_a_run_that_ends_before_its_first_validation_has_its_last_checkpoint_as_best(capsys):
    args = ["--run_id", "1", "--trainer.check_val_every_n_epoch", "3", "--trainer.max_epochs"]
    assert lightning("fit", *args, "2", "--then_test", "true") == 0
    said = capsys.readouterr().out
    assert "(trainer.max_epochs 2, trainer.check_val_every_n_epoch 3): best.ckpt is the last one" in said
    tested = summary()["metrics"]
    last = weights()
    assert all(torch.equal(value, last[key]) for key, value in weights(name="best").items())
    assert lightning("test", "--ckpt_path", "best", "--run_id", "1") == 0
    assert summary()["metrics"] == tested
    # trained on, the run is validated, and the better checkpoint takes the place of the last one
    assert lightning("fit", *args, "4", "--ckpt_path", "last") == 0
    assert "is the last one" not in capsys.readouterr().out
    best = weights(name="best")
    assert not all(torch.equal(value, last[key]) for key, value in best.items())
    assert not all(torch.equal(value, weights()[key]) for key, value in best.items())
