"""A model and data small enough to run the whole program on, in seconds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.errors import InputError


class ToyHead(nn.Module):
    def __init__(self, in_features: int, width: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_features, width), nn.Dropout(0.3), nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class WideToyHead(ToyHead):
    pass


class Toy(LightningModule):
    """Uses what a resumed run must bring back: momentum, dropout, a plateau scheduler."""

    monitor = "val/loss"
    monitor_mode = "min"

    def __init__(
        self,
        head: Callable[[int], ToyHead],
        lr: float = 0.05,
        threshold: float = 1e-4,
        complain: str = "",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if complain:
            raise InputError(complain) from RuntimeError("a reader's own words")
        self.head = head(4)

    def describe(self) -> dict[str, Any]:
        return {"model": "toy", "head": "line", "mode": "scratch"}

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        return (self.head(batch["x"]) - batch["y"]).square().mean()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if (
            self.global_step == int(os.environ.get("TOY_KILL_AT", -1))
            and self.global_rank == self.trainer.world_size - 1
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.global_step == int(os.environ.get("TOY_WAIT_AT", -1)):
            Path(self.trainer.log_dir, "waiting").touch()
            time.sleep(60)
        loss = self._loss(batch)
        self.log("train/loss", loss)
        self.log("lr", self.optimizers().param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self._loss(batch), sync_dist=True)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test/loss", self._loss(batch), sync_dist=True)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return {"prediction": self.head(batch["x"]), "user": batch["user"]}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.hparams["lr"])
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=self.hparams["threshold"], threshold_mode="abs"
        )
        after = {"monitor": "val/loss", "frequency": self.trainer.check_val_every_n_epoch}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **after}}


class OtherToy(Toy):
    pass


class _Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x, self.y = torch.randn(n, 4, generator=generator), torch.randn(n, 1, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.y[index], "user": torch.tensor(index)}


class _Order(Sampler[int]):
    """Shuffles by epoch, and takes this process's share."""

    def __init__(self, data: ToyData) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.n // self.data.trainer.world_size

    def __iter__(self) -> Iterator[int]:
        trainer = self.data.trainer
        generator = torch.Generator().manual_seed(trainer.current_epoch)
        order = torch.randperm(self.data.n, generator=generator).tolist()
        return iter(order[trainer.global_rank :: trainer.world_size])


class ToyData(LightningDataModule):
    def __init__(self, n: int, batch_size: int = 4, missing: str = "") -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.n, self.batch_size, self.missing = n, batch_size, missing

    def prepare_data(self) -> None:
        if self.missing:
            Path(self.missing).read_text()

    def describe(self) -> dict[str, Any]:
        return {"split": "random", "n_train": self.n, "n_val": self.n, "n_test": self.n}

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(_Rows(self.n), batch_size=self.batch_size, sampler=_Order(self), generator=torch.Generator())

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        trainer = self.trainer
        rows = torch.utils.data.Subset(_Rows(self.n), range(trainer.global_rank, self.n, trainer.world_size))
        return DataLoader(rows, batch_size=self.batch_size, generator=torch.Generator())

    test_dataloader = predict_dataloader = val_dataloader
