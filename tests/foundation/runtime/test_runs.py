from types import SimpleNamespace

import torch
from safetensors.torch import load_file

from foundation.runtime.callbacks import PredictionFile
from foundation.runtime.resume import BestCheckpoint
from foundation.runtime.runs import Run


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
