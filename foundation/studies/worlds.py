"""The worlds of a refinement: links, errors of models on them, and the choice of links."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.channel.transforms import received
from datamodules.sites.link_file import read_links, save_links
from foundation.adaptation.refine import Selection, largest_correlation, select
from foundation.adaptation.rehearsal import in_world
from foundation.checkpoint import read_checkpoint

#: links correlated in one batch
_CHUNK = 256
#: number of links in figure 5, chosen by NMSE and at random (twin feedback section VII-B)
_SHOWN = 100


class Worlds:
    """Links of several worlds, and the errors of a model and its refinements on them.

    Args:
        offline: Folder of the run of the offline model, trained on the twin.
        names: The worlds, by domain label `variant`; the twin first.
        twin_links: Number of links of the twin that the offline model learned from.
    """

    def __init__(self, offline: Path, names: Sequence[str], twin_links: int) -> None:
        from foundation.cli import run

        sides = "{variant: [" + ", ".join(names) + "]}"
        args = ["validate", "--config", str(offline / "config.yaml"), "--ckpt_path", "best"]
        args += ["--data.train_on", sides, "--data.validate_on", sides, "--data.test_on", sides]
        # the same draw as the pre-training's, whatever it reduced; links of the other worlds are all candidates
        args += ["--data.num_labels", f"{{{names[0]}: {twin_links}}}"]
        commands = run([*args, "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"])
        self.model, self.data = commands.model, commands.datamodule
        self._names, self._offline = names, offline
        self._errors: dict[tuple[Path, str, str], Tensor] = {}

    def links(self, world: str) -> NDArray[np.int64]:
        """Return the train links of a world, (n,)."""
        dataset = self.data.sides["train"]
        links: NDArray[np.int64] = dataset.links[in_world(dataset, world)]
        return links

    def errors(self, run: Path, side: str, world: str) -> Tensor:
        """Return the NMSE of the links of a world on a side under the best checkpoint of a run, linear, (n,)."""
        if (run, side, world) not in self._errors:
            self._errors[run, side, world] = self._compute(run, side, world)
        return self._errors[run, side, world]

    def _compute(self, run: Path, side: str, world: str) -> Tensor:
        self.model.load_state_dict(read_checkpoint(run / "checkpoints" / "best.ckpt")["state_dict"])
        self.model.eval()
        with torch.no_grad():
            return torch.cat([self.model.predict_step(batch, 0)["nmse"] for batch in self._batches(side, world)])

    def choose(
        self, run: Path, world: str, rule: Selection, count: int, threshold_db: float | None = None, seed: int = 0
    ) -> NDArray[np.int64]:
        """Return the train links of a world to feed back uncompressed, by their NMSE under a run, see `select`."""
        chosen = select(self.errors(run, "train", world), rule, count, threshold_db, seed)
        links: NDArray[np.int64] = self.links(world)[chosen.numpy()]
        return links

    def save(self, file: Path, links: NDArray[np.int64]) -> None:
        """Write training links, see `save_links`."""
        file.parent.mkdir(parents=True, exist_ok=True)
        save_links(file, self.data.sides["train"].sites, links)

    def read(self, file: Path) -> NDArray[np.int64]:
        """Read links written by `save`."""
        return read_links(file, self.data.sides["train"].sites)

    def correlations(self, world: str, seed: int = 0) -> dict[str, Tensor]:
        """Return the correlations of links of a world with the twin (twin feedback eq 14), in [0, 1].

        Of the delay-angular channels that the model reads, without the energy that truncation removes.

        Returns:
            The largest correlation with a train link of the twin, for the links of largest NMSE under the offline model
            (`high_NMSE`) and for as many random links (`random`), at most 100 each.
        """
        error, channels = self.errors(self._offline, "train", world), self._channels(world)
        count = min(_SHOWN, int(error.isfinite().sum()))
        rules: dict[str, Selection] = {"high_NMSE": "top", "random": "random"}
        chosen = {name: channels[select(error, rule, count, seed=seed)] for name, rule in rules.items()}
        return {name: largest_correlation(links, self._twin) for name, links in chosen.items()}

    @cached_property
    def _twin(self) -> Tensor:
        channels = self._channels(self._names[0])
        return channels[received(channels)]

    @torch.no_grad()
    def _channels(self, world: str) -> Tensor:
        """Return the delay-angular channels of the train links of a world, (n, rows, antennas)."""
        batches = self._batches("train", world)
        return torch.cat([self.model.autoencoder.observe(batch.get("clean_csi", batch["csi"]))[0] for batch in batches])

    def _batches(self, side: str, world: str) -> Iterator[dict[str, Any]]:
        dataset = self.data.sides[side]
        rows = np.flatnonzero(in_world(dataset, world))
        for start in range(0, len(rows), _CHUNK):
            yield self.data.finish(dataset.__getitems__(rows[start : start + _CHUNK].tolist()))
