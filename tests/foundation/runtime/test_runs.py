import csv
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from foundation.runtime.callbacks import PredictionFile
from foundation.runtime.resume import BestCheckpoint
from foundation.runtime.runs import MetricsFile, Run


def test_two_commands_may_predict_with_a_run_at_once(tmp_path):
    def predict(user, barrier):
        strategy = SimpleNamespace(broadcast=lambda value: value, barrier=barrier)
        facts = {"world_size": 1, "global_rank": 0, "is_global_zero": True, "datamodule": None, "loggers": []}
        trainer, file = SimpleNamespace(strategy=strategy, **facts), PredictionFile(Run(tmp_path, "a", "1"))
        file.on_predict_batch_end(trainer, None, {"user": torch.tensor([user])}, {}, 0)
        file.on_predict_end(trainer, None)

    predict(1, barrier=lambda _: predict(2, barrier=lambda _: None))
    [file] = (tmp_path / "a/1").iterdir()
    assert load_file(file)["user"].tolist() == [1]


def test_the_last_checkpoint_is_where_the_first_process_has_its_run(tmp_path):
    saved = []
    trainer = SimpleNamespace(global_step=3, is_global_zero=False, save_checkpoint=saved.append)
    best = BestCheckpoint(Run(tmp_path, "toy", "begun-a-second-later"), None, "min")
    best.dirpath = str(tmp_path / "toy" / "first" / "checkpoints")  # as Lightning tells all processes
    best.on_train_end(trainer, None)
    assert saved == [tmp_path / "toy" / "first" / "checkpoints" / "best.ckpt"]
    assert best.best_model_path == str(saved[0])


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_new_columns_join_old_rows(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.append({"step": 1, "a": 0.5})
    file.append({"step": 2, "b": 1.5, "a": 2.5})
    file.append({"step": 3, "b": 3.5})
    assert read(tmp_path / "metrics.csv") == [
        {"step": "1", "a": "0.5", "b": ""},
        {"step": "2", "a": "2.5", "b": "1.5"},
        {"step": "3", "a": "", "b": "3.5"},
    ]


def test_every_row_is_on_disk_at_once(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    for step in range(5):
        file.append({"step": step})
        assert len(read(tmp_path / "metrics.csv")) == step + 1


@pytest.mark.parametrize(
    ("text", "before_step", "row", "steps"),
    [
        pytest.param("step,a\n1,0.1\n2,0.2\n3,0.3\n", 3, {"step": 3, "a": 0.4}, [1, 2, 3], id="resumed"),
        pytest.param("a,step\n0.1,1\n0.2", 9, {"step": 2, "a": 0.3}, [1, 2], id="row cut short by a kill"),
        pytest.param("step,a\n1,0.1\n2,0.2", 9, {"step": 2, "a": 0.3}, [1, 2], id="value cut short by a kill"),
        pytest.param("step,a\n1,0.1\n", None, {"step": 0, "test/a": 1.0}, [1, 0], id="without a checkpoint"),
    ],
)
def test_file_that_goes_on(tmp_path, text, before_step, row, steps):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    MetricsFile(path, before_step).append(row)
    assert [int(row["step"]) for row in read(path)] == steps
    assert {key: read(path)[-1][key] for key in row} == {key: str(value) for key, value in row.items()}


def test_damaged_file_is_set_aside(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("no header\n1\n")
    with pytest.warns(UserWarning, match=r"metrics.csv is damaged: set aside as metrics.csv.damaged"):
        MetricsFile(path).append({"step": 1})
    assert read(path) == [{"step": "1"}]
    assert path.with_name("metrics.csv.damaged").read_text() == "no header\n1\n"
