import json
import os
import signal
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from datamodules.errors import InputError
from foundation.tuning.search_space import Search, assignments
from foundation.tuning.tune import main
from tests.foundation.commands import QUIET
from tests.foundation.toy import Toy

optuna = pytest.importorskip("optuna")


@pytest.fixture
def search(toy_folder):
    """Write a search of the toy's learning rate, with changes, and return how to run it."""
    settings = {
        "metric": "val/loss",
        "direction": "minimize",
        "args": ["--config=toy.yaml", "--trainer.max_epochs=3", *QUIET],
        "keys": {"model.lr": {"low": 1e-3, "high": 1e-1, "log": True}, "model.complain": {"choices": [""]}},
    }

    def write(trials=2, further=(), **changes):
        Path("x.yaml").write_text(yaml.safe_dump(settings | changes, sort_keys=False))
        return main(["x.yaml", "--trials", str(trials), *further])

    return write


def told():
    return json.loads(Path("runs/tune_x/tune.json").read_text())


def states():
    return [trial["state"] for trial in told()["trials"]]


def test_each_trial_is_a_run_and_the_second_call_does_nothing(search, capsys, monkeypatch):
    assert search() == 0
    content = told()
    assert (content["metric"], content["direction"], states()) == ("val/loss", "minimize", ["COMPLETE"] * 2)
    for trial in content["trials"]:
        run = Path("runs/tune_x", trial["run_id"])
        summary = json.loads((run / "summary.json").read_text())
        assert trial["value"] == pytest.approx(summary["best"]["val/loss"])
        assert (
            yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["lr"] == trial["params"]["model.lr"]
        )
    first, second = sorted(content["trials"], key=lambda trial: trial["value"])
    said = capsys.readouterr().out
    assert "[2/2] tune_x/trial-0001 model.lr=" in said
    assert said.index(f"| {first['run_id']} | {first['value']:.4g}") < said.index(f"| {second['run_id']} |")
    assert f"train again: lightning fit --config runs/tune_x/{first['run_id']}/config.yaml" in said
    monkeypatch.setattr("foundation.cli.main", None)
    assert search() == 0
    assert told() == content
    # another search of that name has trials that do not compare
    assert search(direction="maximize") == 2
    assert "runs/tune_x was begun with other direction" in capsys.readouterr().err


def test_further_options_are_those_of_every_trial(search, capsys):
    assert search(1, ["--trainer.max_epochs", "1"]) == 0
    config = yaml.safe_load(Path("runs/tune_x/trial-0000/config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 1
    assert search(2) == 2
    assert "runs/tune_x was begun with other args" in capsys.readouterr().err
    assert search(2, ["--trainer.max_epochs", "1"]) == 0
    assert states() == ["COMPLETE"] * 2


def test_a_misspelt_option_is_named(search, capsys):
    assert search(1, ["--trails", "1"]) == 2
    assert "unknown key 'trails' on the command line" in capsys.readouterr().err


def test_a_trial_that_was_stopped_goes_on(search, monkeypatch, capsys):
    epochs = []

    def stop(module):
        epochs.append(module.current_epoch)
        if len(epochs) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Toy, "on_train_epoch_start", stop, raising=False)
    assert search(trials=1) == 128 + signal.SIGTERM
    assert states() == ["RUNNING"]
    assert "the same command resumes with this trial" in capsys.readouterr().err
    journal = Path("runs/tune_x/tune.journal")
    with journal.open("a") as file:
        file.write('{"op_code": 5')  # a kill in the middle of a line
    Path("runs/tune_x/tune.journal.lock").symlink_to(journal)
    assert search(trials=1) == 0
    assert states() == ["COMPLETE"]
    assert epochs == [0, 1, 2, 2]
    [trial] = told()["trials"]
    rows = Path("runs/tune_x/trial-0000/metrics.csv").read_text()
    best = json.loads(Path("runs/tune_x/trial-0000/summary.json").read_text())["best"]["val/loss"]
    assert rows.startswith("step")
    assert trial["value"] == pytest.approx(best)


def test_weak_and_failing_trials_are_told_and_the_search_goes_on(search, monkeypatch, capsys):
    def sampler(seed=None):
        return optuna.samplers.PartialFixedSampler(
            {"model.complain": "no good" if seed == 1 else ""}, optuna.samplers.RandomSampler(seed)
        )

    monkeypatch.setattr(optuna.samplers, "TPESampler", sampler)
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: trial.number == 2)
    keys = {"model.lr": {"low": 1e-3, "high": 1e-1}, "model.complain": {"choices": ["", "no good"]}}
    assert search(trials=3, keys=keys) == 0
    assert states() == ["COMPLETE", "FAIL", "PRUNED"]
    assert told()["trials"][1]["error"] == "no good"
    assert json.loads(Path("runs/tune_x/trial-0002/summary.json").read_text())["epochs"] == 1
    assert "3 trials: 1 complete, 1 fail, 1 pruned" in capsys.readouterr().out


def test_what_fails_from_the_start_ends_the_search_in_one_line(search, capsys):
    for changes, message in (
        ({"keys": {"model.lrr": {"low": 1, "high": 2}}}, "lrr"),
        ({"metric": "val/foo"}, "metric val/foo is not logged: choose one of val/loss"),
        ({"args": ["--config=none.yaml"]}, "none.yaml"),
    ):
        assert search(**changes) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
        if changes.get("metric"):  # a trial was begun with it
            for file in Path("runs/tune_x").glob("tune.*"):
                file.unlink()
        Path("runs/tune_x/trial-0000").rename(f"old{len(changes)}") if Path("runs/tune_x/trial-0000").exists() else None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "test/loss"}, "x.yaml: metric must be one of validation"),
        ({"direction": "down"}, "direction must be minimize or maximize, got 'down'"),
        ({"key": {}}, "unknown key 'key': must be one of metric, direction, args, keys"),
        ({"keys": {}}, "keys ranges by key"),
        ({"keys": {"a": 3}}, r"x.yaml: keys.a must be \{low"),
        ({"keys": {"a": {"low": 1, "high": 2, "lag": True}}}, "keys.a.lag is unknown"),
        ({"keys": {"a": {"low": 2, "high": 1}}}, "keys.a must have low < high"),
        ({"keys": {"a": {"low": "x", "high": 1}}}, "keys.a.low must be a finite number, got 'x'"),
        ({"keys": {"a": {"low": 1, "high": 9, "log": True, "step": 2}}}, "both log and step"),
        ({"keys": {"a": {"choices": []}}}, "keys.a.choices must be a list"),
    ],
)
def test_a_yaml_that_is_no_search_is_one_line(tmp_path, changes, message):
    given = {"metric": "val/loss", "direction": "minimize", "args": [], "keys": {"a": {"choices": [1]}}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(given | changes))
    with pytest.raises(InputError, match=message):
        Search.load(tmp_path / "x.yaml")


def test_values_are_drawn_by_their_kind(tmp_path):
    keys = "{a: {low: 1, high: 9, step: 4}, b: {low: 1e-4, high: 1e-2, log: true}, c: {choices: [null, true, word]}}"
    (tmp_path / "x.yaml").write_text(f"metric: val/loss\ndirection: minimize\nargs: []\nkeys: {keys}\n")
    search = Search.load(tmp_path / "x.yaml")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    drawn = [search.suggest(study.ask()) for _ in range(20)]
    assert {values["a"] for values in drawn} == {1, 5, 9}
    assert all(1e-4 <= values["b"] <= 1e-2 for values in drawn)
    assert {values["c"] for values in drawn} == {None, True, "word"}
    assert assignments({"a": 1, "b": None, "c": True, "d": -1e-5}) == ["--a=1", "--b=null", "--c=true", "--d=-1e-05"]


def test_one_process_at_a_time(search, capsys):
    Path("runs/tune_x").mkdir(parents=True)
    with FileLock("runs/tune_x/.tune.lock"):
        assert search() == 2
    assert "runs/tune_x is being tuned by another process: wait for it" in capsys.readouterr().err


def test_a_missing_file_and_number_are_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "x.yaml")]) == 2
    assert "x.yaml cannot be read" in capsys.readouterr().err
    assert main([str(tmp_path / "x.yaml"), "--trials", "0"]) == 2
    assert "TRIALS must be a whole number of 1 or more, got 0" in capsys.readouterr().err
