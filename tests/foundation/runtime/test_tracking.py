import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.numpy import load_file

from foundation.cli import main
from foundation.runtime.callbacks import PredictionFile, _commit
from foundation.runtime.loggers import Wandb
from foundation.runtime.runs import Run
from foundation.runtime.tracking import better, tables, tags_of
from tests.foundation.wandb_file import items, records

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("metric", "good"),
    [
        ("val/loss", "min"), ("test/beam/top1", "max"), ("test/beam/gain_db", "max"), ("nmse_db", "min"),
        ("test/positioning/cdf90_m", "min"), ("target_hit_rate", "max"), ("rate_loss", "min"), ("los_accuracy", "max"),
        ("val/csi_to_cir/retrieval_top5", "max"), ("error_db", "min"), ("match_user", "max"), ("snr_db", None),
        ("prediction/nmse_db_1", "min"), ("test/nmse_antenna_db", "min"), ("cosine_nlos_p10", "max"),
        ("hit_rate_of_4", "max"), ("twin_forgotten_db", "min"), ("kept_energy", None), ("fd_t_max", None),
    ],
)  # fmt: skip
def test_names_tell_what_is_good(metric, good):
    assert better(metric) == good


def test_a_name_with_signs_that_wandb_refuses_is_kept_in_words(tmp_path):
    import wandb

    logger = Wandb(offline=True)
    logger.attach(Run(tmp_path, "study", "a,b:c-@munich-s0"))
    assert logger._wandb_init["name"] == "a,b:c-@munich-s0"
    wandb.Settings(run_id=logger._id)
    wandb.Artifact(logger._checkpoint_name, "model")
    with pytest.raises(ValueError, match="Artifact name"):
        wandb.Artifact(f"model-{logger._id}", "model")


def test_checkpoints_are_uploaded_where_there_is_a_server(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    assert Wandb()._log_model is False
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert Wandb()._log_model is True
    assert Wandb(log_model=False)._log_model is False
    monkeypatch.setattr("foundation.runtime.loggers._responds", lambda _: False)
    logger = Wandb()
    with pytest.warns(UserWarning, match="does not answer: offline"):
        logger.attach(Run(tmp_path, "toy", "1"))
    assert logger._log_model is False


def test_embeddings_are_a_thousand_rows_on_their_principal_axes():
    torch.manual_seed(0)
    features = torch.randn(1200, 80) * torch.linspace(10, 0.1, 80)
    rows = {"features": features, "prediction": torch.zeros(1200, 3), "los": torch.ones(1200, dtype=torch.int8)}
    shown = tables(rows)
    assert list(shown) == ["embeddings"]  # positions are no classes
    table = shown["embeddings"]
    assert table.columns[:5] == ["prediction_0", "prediction_1", "prediction_2", "los", "component_0"]
    assert (len(table.data), len(table.columns)) == (1000, 54)
    first = torch.tensor(table.get_column("component_0"), dtype=torch.float64)
    kept = features[torch.linspace(0, 1199, 1000).long()].double()
    assert torch.isclose(first.square().sum().sqrt(), torch.linalg.svdvals(kept - kept.mean(0))[0], rtol=1e-6)


def test_the_confusion_leaves_out_what_has_no_label():
    rows = {
        "features": torch.randn(4, 2), "prediction": torch.tensor([0, 1, 1, 1]), "target": torch.tensor([0, 0, 1, -1])
    }  # fmt: skip
    table = tables(rows)["confusion"].table
    assert table.data == [["0", "0", 1], ["0", "1", 1], ["1", "0", 0], ["1", "1", 1]]
    assert tables({"features": torch.empty(0, 2)}) == {}


def test_predicted_features_are_shown_whatever_the_model(tmp_path):
    shown = []
    one = SimpleNamespace(broadcast=lambda value: value, barrier=lambda name: None)
    logger = SimpleNamespace(log_rows=shown.append)
    trainer = SimpleNamespace(
        strategy=one, loggers=[logger], world_size=1, global_rank=0, is_global_zero=True, datamodule=None
    )
    file = PredictionFile(Run(tmp_path, "csiclip", "one"))
    for _ in range(2):
        rows = {
            "features": torch.ones(3, 8, dtype=torch.bfloat16),
            "csi_embedding": torch.ones(3, 4),
            "los": torch.ones(3),
        }
        file.on_predict_batch_end(trainer, None, rows, None, 0)
    file.on_predict_end(trainer, None)
    [rows] = shown
    assert {key: tuple(value.shape) for key, value in rows.items()} == {"features": (6, 8), "los": (6,)}
    held = load_file(tmp_path / "csiclip/one/predictions.safetensors")
    assert held["features"].dtype == "float32", "NumPy has no bfloat16"


def test_an_offline_run_holds_all_that_is_compared(street_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    args = ["fit", "--config", "los.yaml", "--config", "hand.yaml", "--config", "wandb.yaml", "--run_id", "one"]
    folders = {"los.yaml": "finetune/", "hand.yaml": "encoders/"}
    args = [str(ROOT / "experiments" / (folders.get(word, "") + word)) if ".yaml" in word else word for word in args]
    args += [*street_data, "--model.mode", "control", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    assert main([*args, "--trainer.enable_progress_bar", "false"]) == 0
    found = records(tmp_path / "runs/los/one")
    run = [record.run for record in found if record.WhichOneof("record_type") == "run"][-1]
    assert (run.run_group, run.display_name, run.job_type) == ("los", "one", "control")
    assert list(run.tags) == ["HandFeatures", "los", "DeepMIMO", "street"]
    metrics = {record.metric.name: record.metric for record in found if record.WhichOneof("record_type") == "metric"}
    accuracy, loss = metrics["val/los/balanced_accuracy"], metrics["val/loss"]
    assert (accuracy.step_metric, accuracy.summary.max, accuracy.summary.last) == ("epoch", True, True)
    assert (loss.step_metric, loss.summary.min, loss.summary.max) == ("epoch", True, False)
    config = {update.key: update.value_json for update in run.config.update}
    assert '"mode":"control"' in config["model"].replace(" ", "")
    summary, history = items(found, "summary"), items(found, "history")
    assert summary["run/mode"] == "control"
    assert summary["run/n_train"] > 0
    assert summary["val/los/balanced_accuracy/max"] >= summary["val/los/balanced_accuracy/last"]
    assert 0 <= summary["test/los/balanced_accuracy"] <= 1
    assert history["plots/confusion/_type"] == "images/separated"
    assert history["embeddings/_type"] == "table-file"
    assert history["embeddings/nrows"] > 10
    assert any("confusion" in key and "table" in key for key in history)
    media = {file.parent.name for file in (tmp_path / "runs/los/one").glob("wandb/offline-run-*/files/media/**/*.*")}
    assert {"plots", "table"} <= media


def test_rows_written_between_two_runs_make_no_code_differ_from_its_commit(tmp_path):
    def git(*args):
        subprocess.run(["git", "-C", str(tmp_path), *args], check=True, capture_output=True)

    (tmp_path / "experiments").mkdir()
    files = [tmp_path / name for name in ("code.py", "RESULTS.md", "experiments/results.csv")]
    for file in files:
        file.write_text("a")
    git("init")
    git("add", ".")
    git("-c", "user.name=x", "-c", "user.email=x@x", "commit", "-m", "x")
    for file in files[1:]:
        file.write_text("b")
    assert _commit(files[0])["dirty"] is False
    files[0].write_text("b")
    assert _commit(files[0])["dirty"] is True


@pytest.mark.parametrize(("count", "tagged"), [(3, True), (10_000, False)])
def test_cities_are_tags_unless_there_are_thousands(count, tagged):
    cities = [f"city {number}" for number in range(count)]
    data = SimpleNamespace(describe=lambda: {"train_cities": cities, "test_cities": cities[:1]}, sources=[ROOT])
    expected = [type(ROOT).__name__, *(cities if tagged else [])]
    assert tags_of(SimpleNamespace(describe=lambda: {"model": "toy"}), data) == ["toy", *expected]
