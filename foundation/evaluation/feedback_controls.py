"""Baselines of the head `feedback`, scored on the same test links."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules.channel.transforms import received
from foundation.baselines.feedback import CHANCE_DB, PrincipalComponents, matching_pursuit, paths_of
from foundation.link_metrics import LinkMeanDb
from foundation.models.csifeedback import nmse
from heads.feedback import target_channel


class FeedbackControls(Callback):
    """Scores CSI feedback without a network at every test of a head `feedback`, with as many real numbers as its code.

    Logged with the head's own metrics: `pca_nmse_db`, M principal components of the train side; `pursuit_nmse_db`, the
    strongest paths that M numbers describe (orthogonal matching pursuit), where `paths_of` has any; and
    `chance_nmse_db`, the NMSE between uncorrelated channels of equal power. All read the clean channel.

    Args:
        numbers: Real numbers M of the code.
    """

    def __init__(self, numbers: int) -> None:
        self.numbers = numbers
        self._paths = 0
        self._components: PrincipalComponents | None = None
        self._errors: dict[str, LinkMeanDb] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the principal components to a sample of the train side."""
        sample = trainer.datamodule.sample()  # type: ignore[attr-defined]
        channels = target_channel(sample).to(pl_module.device)
        self._components = PrincipalComponents.fit(channels[received(channels)], self.numbers)
        self._paths = paths_of(self.numbers, sample["csi"].shape[-3], trainer.datamodule.bs)  # type: ignore[attr-defined]
        names = ("pca", "pursuit") if self._paths else ("pca",)
        self._errors = {name: LinkMeanDb().to(pl_module.device) for name in names}

    @torch.no_grad()
    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Score a batch."""
        target = target_channel(batch)
        target = target[received(target)]
        if not len(target) or self._components is None:
            return
        self._errors["pca"].update(nmse(self._components.rebuild(target), target))
        if "pursuit" in self._errors:
            over_delay = target.mT  # (B, K, T)
            rebuilt = matching_pursuit(over_delay, self._paths, over_delay.shape[1])
            self._errors["pursuit"].update(nmse(rebuilt, over_delay))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the scores of all processes."""
        scores = {name: error.compute() for name, error in self._errors.items()} | {"chance": torch.tensor(CHANCE_DB)}
        for name, value in scores.items():
            pl_module.log(f"test/feedback/{name}_nmse_db", value.to(pl_module.device), batch_size=1, sync_dist=True)
