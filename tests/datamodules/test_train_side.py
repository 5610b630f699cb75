"""The train side of a datamodule: labels, and the order of its links after a stop."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from tests.datamodules.test_module import build, first


class Stopping(LightningModule):
    """Records the users that it is trained on, and writes a checkpoint after some batches."""

    def __init__(self, after=None, file=None):
        super().__init__()
        self.weight, self.after, self.file, self.users = torch.nn.Parameter(torch.ones(())), after, file, []

    def training_step(self, batch, batch_idx):
        self.users.append((self.trainer.current_epoch, batch["site"].tolist(), batch["user"].tolist()))
        return self.weight

    def on_train_batch_end(self, *_):
        if self.global_step == self.after:
            self.trainer.save_checkpoint(self.file)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())


@pytest.mark.filterwarnings("ignore:You're resuming", "ignore:You passed in a")
@pytest.mark.parametrize("balance", [None, ["los"]])
def test_a_training_interrupted_in_an_epoch_goes_on_with_its_other_links(balance, tmp_path):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 3}
    quiet |= {"enable_model_summary": False, "limit_val_batches": 0, "accelerator": "cpu"}
    steps = len(build(tmp_path, balance=balance).train_dataloader())
    models = [Stopping(steps + 2, tmp_path / "a.ckpt"), Stopping()]
    for model, checkpoint in zip(models, (None, tmp_path / "a.ckpt"), strict=True):
        Trainer(default_root_dir=tmp_path, **quiet).fit(
            model, datamodule=build(tmp_path, balance=balance), ckpt_path=checkpoint, weights_only=True
        )
    whole, rest = (model.users for model in models)
    assert len(whole) == 3 * steps
    assert rest == whole[steps + 2 :]


def test_num_labels_keeps_validation_and_test(tmp_path):
    whole, few = build(tmp_path), build(tmp_path, num_labels=13)
    assert len(few.sides["train"]) == 13
    assert set(few.sides["train"].links) <= set(whole.sides["train"].links)
    for side in ("validation", "test"):
        assert np.array_equal(few.sides[side].links, whole.sides[side].links)
    assert len(first(few)["los"]) == 13, "a set smaller than a batch is served whole"
    other = build(tmp_path, num_labels=13, seed=1)
    assert set(other.sides["train"].links) != set(few.sides["train"].links)
