"""Which links a resumed run serves, with and without loader processes."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.datamodules.test_module import build


class Recorder(LightningModule):
    """Learns nothing, and notes the users of every training batch by epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.served = {}

    def training_step(self, batch, _):
        self.served.setdefault(self.current_epoch, []).append(batch["user"].tolist())
        return self.weight**2

    def validation_step(self, batch, _):
        pass

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches  # as a cosine does: makes the loader before loops are restored
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # a run resumes in its own folder
@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_serves_the_links_of_one_that_was_not_stopped(tmp_path, workers, sanity):
    def served(folder, epochs, resume=None):
        model, data = Recorder(), build(tmp_path / "sites", num_workers=workers)
        keep = ModelCheckpoint(tmp_path / folder, save_on_train_epoch_end=True)
        trainer = Trainer(
            callbacks=keep, accelerator="cpu", max_epochs=epochs, num_sanity_val_steps=sanity, logger=False,
            default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(model, datamodule=data, ckpt_path=resume)
        return model.served, trainer.checkpoint_callback.best_model_path

    whole, _ = served("whole", 3)
    assert whole[0] != whole[1] != whole[2]
    first, checkpoint = served("stopped", 1)
    rest, _ = served("stopped", 3, checkpoint)
    assert first | rest == whole
