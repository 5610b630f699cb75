"""What the command line does, and how it answers bad input."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from lightning.pytorch.trainer.connectors.logger_connector import logger_connector
from safetensors.torch import load_file

from foundation.cli import main, run
from tests.foundation import toy
from tests.foundation.commands import QUIET, REPOSITORY, complaint, lightning, rows, summary, the_run, weights

pytestmark = pytest.mark.usefixtures("toy_folder")


class TestRun:
    def test_fit_leaves_a_whole_run_folder(self, capsys):
        assert lightning("fit") == 0
        folder = the_run()
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert names == {
            "config.yaml",
            "metrics.csv",
            "summary.json",
            "checkpoints/best.ckpt",
            "checkpoints/last.ckpt",
        }
        assert not (folder / "checkpoints/last.ckpt").is_symlink()
        assert f"run: {folder}" in capsys.readouterr().out

    def test_summary_tells_what_was_run_and_test_adds_to_it(self):
        lightning("fit")
        fitted = summary()
        expected = {
            "experiment": "toy",
            "model": "toy",
            "head": "line",
            "mode": "scratch",
            "seed": 0,
            "split": "random",
        }
        assert expected.items() <= fitted.items()
        assert (fitted["n_train"], fitted["n_val"], fitted["n_test"]) == (22, 22, 22)
        assert fitted["params_total"] == fitted["params_trained"] == 31
        assert fitted["wall_s"] > 0
        assert (fitted["epochs"], fitted["validations"]) == (4, 4)
        assert fitted["metrics"] == {}
        assert set(fitted["versions"]) == {"csi-foundation", "torch", "lightning"}
        assert fitted["hardware"]["cores"] >= 1
        assert {"commit", "dirty"} <= set(fitted)
        assert lightning("test", "--ckpt_path", "best") == 0
        tested = summary()
        assert tested["metrics"] == {"test/loss": pytest.approx(tested["best"]["val/loss"])}
        assert (tested["wall_s"], tested["validations"]) == (fitted["wall_s"], 4)

    def test_then_test_scores_the_best_checkpoint_in_the_same_run(self):
        commands = run(["fit", "--config", "toy.yaml", *QUIET, "--then_test", "true", "--trainer.max_epochs", "2"])
        best = commands.trainer.checkpoint_callback.best_model_score.item()
        assert rows()[-1]["test/loss"] != ""
        assert summary()["metrics"]["test/loss"] == pytest.approx(best)
        assert float(rows()[-2]["val/loss"]) > best  # so that last and best differ

    def test_config_given_back_starts_the_same_run_afresh(self):
        lightning("fit", "--experiment", "first")
        assert lightning("fit", "--experiment", "second", config=str(the_run("first") / "config.yaml")) == 0
        first, second = weights("first"), weights("second")
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_config_of_a_run_names_that_run(self):
        lightning("fit", "--run_id", "old")
        lightning("fit", "--run_id", "new")
        assert lightning("test", "--ckpt_path", "best", config="runs/toy/old/config.yaml") == 0
        assert json.loads(Path("runs/toy/old/summary.json").read_text())["metrics"]
        assert not json.loads(Path("runs/toy/new/summary.json").read_text())["metrics"]
        assert Path("runs/toy/old/test.yaml").exists()

    def test_experiment_and_run_id_are_keys(self):
        assert lightning("fit", "--experiment", "mine", "--run_id", "1", "--runs", "elsewhere") == 0
        assert Path("elsewhere/mine/1/checkpoints/last.ckpt").exists()

    def test_runs_of_the_same_second_do_not_meet(self, monkeypatch):
        monkeypatch.setattr("foundation.runtime.runs.time.strftime", lambda _: "now")
        lightning("fit")
        lightning("fit")
        assert {folder.name for folder in Path("runs/toy").iterdir()} == {"now-s0", "now-s0-2"}

    def test_checkpoint_by_path_scores_into_its_run(self):
        lightning("fit")
        assert lightning("test", "--ckpt_path", str(the_run() / "checkpoints/last.ckpt")) == 0
        assert summary()["metrics"]
        assert len(list(Path("runs/toy").iterdir())) == 1

    def test_predictions_are_one_file(self, capsys):
        lightning("fit")
        assert lightning("predict", "--ckpt_path", "best") == 0
        path = the_run() / "predictions.safetensors"
        predictions = load_file(path)
        assert predictions["prediction"].shape == (22, 1)
        assert predictions["user"].tolist() == list(range(22))
        assert str(path) in capsys.readouterr().out

    def test_fast_dev_run_leaves_nothing_and_warns_of_no_logger(self, recwarn):
        logger_connector.warning_cache.clear()
        assert lightning("fit", "--trainer.fast_dev_run", "true", "--then_test", "true") == 0
        assert not [str(warning.message) for warning in recwarn if "ensorboard" in str(warning.message)]
        assert not Path("runs").exists()

    def test_matrix_products_keep_single_precision(self):
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU: it would round channels, labels and cosines
        assert lightning("fit", "--trainer.fast_dev_run", "true") == 0
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32

    def test_later_config_overrules(self):
        Path("more.yaml").write_text("model: {init_args: {lr: 0.5}}\n")
        commands = run(["fit", "--config", "toy.yaml", "--config", "more.yaml", *QUIET, "--trainer.max_epochs", "1"])
        assert commands.model.hparams["lr"] == 0.5
        assert the_run().parent.name == "toy"


@pytest.mark.parametrize(("given", "batches"), [("1", 1), ("1.0", 6), ("0.5", 3)])
def test_one_batch_is_not_all_of_them(given, batches):
    commands = run(["fit", "--config", "toy.yaml", *QUIET, "--trainer.limit_train_batches", given])
    assert commands.trainer.num_training_batches == batches


def swap(text, old, new):
    assert old in text
    return text.replace(old, new)


class TestBadInput:
    """Each ends with one line that names the cause, and status 2."""

    @pytest.mark.parametrize(
        ("old", "new", "expected"),
        [
            ("width: 5", "widht: 5", ["unknown key 'model.head.widht'", "(toy.yaml, line", "did you mean 'width'?"]),
            ("n: 22", "m: 22", ["unknown key 'data.m'", "toy.yaml"]),
            ("max_epochs", "max_epoch", ["unknown key 'trainer.max_epoch'", "did you mean 'trainer.max_epochs'?"]),
            ("model:", "modle:", ["unknown key 'modle'", "did you mean 'model'?"]),
            ("width: 5", "width: wide", ["'model.head.width'", "toy.yaml, line", "must be a whole number, got 'wide'"]),
            ("n: 22", "n: many", ["'data.n'", "must be a whole number, got 'many'"]),
            (
                "max_epochs: 4",
                "max_epochs: four",
                ["'trainer.max_epochs'", "must be a whole number or null, got 'four'"],
            ),
            ("n: 22", "{}", ["missing 'data.n'"]),
            ("data:\n", "data: 3\nother:\n", ["'data' (toy.yaml, line", "must be class_path of a LightningDataModule"]),
            ("accelerator: cpu", "profiler: [2, 3]", ["'trainer.profiler'", "got '[2, 3]'"]),
            ("class_path: Toy\n", "class_path: Tyo\n", ["unknown class 'Tyo'", "did you mean 'Toy'?"]),
            ("WideToyHead", "WideHead", ["unknown class 'WideHead'"]),
            ("class_path: Toy\n", "class_path: ResNet\n", ["'ResNet' (toy.yaml", "does not fit key 'model'"]),
            (
                "class_path: Toy\n",
                "class_path: no.such.Toy\n",
                ["'no.such.Toy' cannot be imported", "No module named 'no"],
            ),
            ("class_path: Toy\n", "class_path: torch.nn.Linear\n", ["'torch.nn.Linear'", "'model'", "LightningModule"]),
        ],
    )
    def test_config(self, capsys, old, new, expected):
        Path("toy.yaml").write_text(swap(Path("toy.yaml").read_text(), old, new))
        line = complaint(capsys, "fit")
        for part in expected:
            assert part in line

    @pytest.mark.parametrize(
        ("args", "expected"),
        [
            (["--model.lrr", "1"], "unknown key 'model.lrr'"),
            (["--model.head.widt", "2"], "unknown key 'model.head.widt"),  # no abbreviations of nested keys
            (["--model.hea.width", "2"], "unknown key 'model.hea.width'"),
            (["--data.batch", "2"], "unknown key 'data.batch"),
            (["--model.rate", "1"], "unknown key 'model.rate' on the command line: must be one of "),
            (["--max_epochs", "1"], "unknown key 'max_epochs' on the command line: did you mean 'trainer.max_epochs'?"),
            (["--trainer.epochs", "3"], "did you mean 'trainer.min_epochs' or 'trainer.max_epochs'?"),
            (["--n", "1"], "unknown key 'n' on the command line: keys start with model., data. or trainer., and"),
            (["toy.yaml"], "'toy.yaml' on the command line follows no option: put --config before it"),
            (["a/best.ckpt"], "'a/best.ckpt' on the command line follows no option: put --ckpt_path before it"),
            (
                ["--model.head.width", "wide"],
                "'model.head.width' on the command line must be a whole number, got 'wide'",
            ),
            (["--model", "newyork"], "unknown class 'newyork' of key 'model' on the command line: give the name of a"),
            (["--model.lr", "high"], "'model.lr' on the command line must be a number, got 'high'"),
            (["--trainer.max_epoch", "3"], "trainer.max_epoch"),
            (["--nonsense", "3"], "unknown key 'nonsense' on the command line"),
            (["--config", "none.yaml"], "none.yaml does not exist"),
            (["--config", "."], ". is a folder: give a file"),
            (["--ckpt_path", "none.ckpt"], "checkpoint none.ckpt does not exist"),
            (["--ckpt_path", "last"], "--ckpt_path last: no runs/toy/*/checkpoints/last.ckpt"),
            (["--model.complain", "three beams wanted"], "error: three beams wanted"),
            (["--data.missing", "no/such/file"], "no/such/file does not exist"),
            (["--data.batch_size", "0"], "error: batch_size must be at least 1, got 0"),
            (["--trainer.precision", "17"], "17"),
        ],
    )
    def test_arguments(self, capsys, args, expected):
        assert expected in complaint(capsys, "fit", *args)
        assert not list(Path().glob("runs/*/*"))  # no empty folder stays behind

    @pytest.mark.parametrize(
        ("file", "args", "expected"),
        [
            ("csiclip", ["--data.source=DeepMIMO", "--data.source.scenario=x", "--data.source.base_stations=7"],
             "error: 'data.source.base_stations' on the command line must be a list or null, got '7'"),
            ("csiclip", ["--data.observation.snr_db=10"],
             "error: 'data.observation' needs the class_path of a kind of datamodules.View, before keys of it"),
            ("finetune/beam", ["--model.head=heads.beam.Baem"],
             "error: 'heads.beam.Baem' on the command line does not fit key 'model.head': module 'heads.beam' has no "
             "attribute 'Baem'"),
            ("finetune/beam", ["--model.head.hidden=wide"],
             "error: 'model.head.hidden' on the command line must be a whole number or null, got 'wide'"),
        ],
    )  # fmt: skip
    def test_a_wrong_value_of_a_nested_class(self, capsys, file, args, expected):
        assert complaint(capsys, "fit", *args, config=str(REPOSITORY / f"experiments/{file}.yaml")) == expected

    @pytest.mark.parametrize("args", [["fit", "--then_test", "true"], ["test"]])
    def test_a_model_without_a_test_is_refused_before_its_training(self, capsys, monkeypatch, args):
        monkeypatch.delattr(toy.Toy, "test_step")
        assert "Toy has no test of its own: leave then_test out, and" in complaint(capsys, *args)
        assert not list(Path().glob("runs/*/*"))

    def test_no_config(self, capsys):
        assert main(["predict", "--ckpt_path", "x.ckpt"]) == 2
        line = capsys.readouterr().err
        assert (
            "missing 'data' and 'model': set them in a --config file, such as experiments/csiclip.yaml or the " in line
        )

    def test_a_file_without_class_before_the_experiment(self, capsys):
        Path("more.yaml").write_text("data: {init_args: {n: 5}}\n")
        line = complaint(capsys, "fit", "--config", "toy.yaml", config="more.yaml")
        assert "'data' has no class yet: put the --config of an experiment that names it first, such as" in line

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("model:\n  class_path: Toy\n   init_args: [\n", "broken.yaml, line 3, column 13: mapping values"),
            ("- a\n- b\n", "broken.yaml: must hold `key: value` lines"),
            ("model: {a: [}\n", "broken.yaml, line 1"),
        ],
    )
    def test_yaml(self, capsys, text, expected):
        Path("broken.yaml").write_text(text)
        assert expected in complaint(capsys, "fit", config="broken.yaml")

    def test_command(self, capsys):
        assert main(["fti"]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert "'fti'" in line
        assert "fit, validate, test, predict" in line

    def test_checkpoint_of_another_model(self, capsys):
        lightning("fit", "--model", "OtherToy", "--trainer.max_epochs", "1")
        line = complaint(capsys, "test", "--ckpt_path", str(the_run() / "checkpoints/best.ckpt"))
        assert "is of a OtherToy, but the configured model is a Toy" in line

    def test_checkpoint_of_another_width(self, capsys):
        lightning("fit", "--trainer.max_epochs", "1")
        line = complaint(capsys, "test", "--ckpt_path", "best", "--model.head.width", "7")
        assert "does not fit the configured model: size mismatch for head.layers.0.weight" in line

    def test_checkpoint_with_code_in_it(self, capsys):
        class Payload:
            def __reduce__(self):
                return (Path.touch, (Path("was-run"),))

        torch.save({"state_dict": {}, "payload": Payload()}, "evil.ckpt")
        assert "refusing to run code" in complaint(capsys, "test", "--ckpt_path", "evil.ckpt")
        Path("evil.ckpt").write_bytes(pickle.dumps(Payload()))
        assert "evil.ckpt" in complaint(capsys, "fit", "--ckpt_path", "evil.ckpt")
        assert not Path("was-run").exists()

    def test_damaged_checkpoint(self, capsys):
        lightning("fit", "--trainer.max_epochs", "1")
        last = the_run() / "checkpoints/last.ckpt"
        last.write_bytes(last.read_bytes()[:1000])
        assert f"{last} is damaged" in complaint(capsys, "test", "--ckpt_path", "last")

    def test_taken_run_id(self, capsys):
        lightning("fit", "--run_id", "1", "--trainer.max_epochs", "1")
        assert "runs/toy/1 exists" in complaint(capsys, "fit", "--run_id", "1")

    def test_bug_keeps_its_traceback(self, monkeypatch):
        monkeypatch.setattr(toy.Toy, "training_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lightning("fit")

    def test_debug_shows_the_traceback(self, monkeypatch):
        monkeypatch.setenv("CSI_DEBUG", "1")
        with pytest.raises(FileNotFoundError):
            lightning("fit", "--data.missing", "no/such/file")
