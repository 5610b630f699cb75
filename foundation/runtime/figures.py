"""Figures of a run, saved under `plots/` and passed to loggers, and the sample of the test side that they show."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from datamodules.files import write_whole
from datamodules.progress import activity
from foundation.gather import Rows, concatenate, gather_rows, rank, world_size
from foundation.runtime.tracking import described

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: limits of a sample of the test side: links, and bytes in total
_LINKS, _BYTES = 8192, 2**28
#: golden ratio, any number of whose multiples modulo 1 fill the unit interval evenly
_GOLDEN = 0.6180339887498949


def log_figures(trainer: Trainer, draw: Callable[[], dict[str, Figure]], caption: str) -> None:
    """Save figures as `<run folder>/plots/<name>.png`, and pass them to loggers of images.

    The data of a figure, see `heads.figures.keep_data`, are saved as `<name>.json`. All processes must call it, since
    Lightning broadcasts the run folder of the first one.

    Args:
        trainer: The trainer.
        draw: Returns the figures by name; called in the first process only.
        caption: One line below each figure, see `caption`.
    """
    folder = trainer.log_dir
    if folder is None or not trainer.is_global_zero:
        return
    with activity("drawing pictures"):
        _save(trainer, folder, draw(), caption)


def _save(trainer: Trainer, folder: str, figures: dict[str, Figure], caption: str) -> None:
    for name, figure in figures.items():
        file = Path(folder) / "plots" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.supxlabel(caption, fontsize="x-small", color="0.3")
        figure.savefig(file, dpi=150, bbox_inches="tight")
        if data := getattr(figure, "plot_data", None):
            write_whole(file.with_suffix(".json"), json.dumps(data))
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image(key=f"plots/{name}", images=[str(file)])


def shows_rows(trainer: Trainer) -> bool:
    """Return whether a logger accepts rows of the test side, see `log_rows`."""
    return any(hasattr(logger, "log_rows") for logger in trainer.loggers)


def log_rows(trainer: Trainer, rows: Rows) -> None:
    """Pass a sample of the test side to loggers that show features and classes.

    Args:
        trainer: The trainer.
        rows: `features` (B, D), and attributes by which links are coloured; `prediction` and `target`, of which a
            confusion matrix is shown if both are classes.
    """
    for logger in trainer.loggers if trainer.is_global_zero else []:
        if hasattr(logger, "log_rows"):
            logger.log_rows(rows)


def caption(module: LightningModule, count: int) -> str:
    """Return the caption of a figure: model, head and mode, number of labels, split, seed and number of samples.

    Args:
        module: The model, attached to its trainer.
        count: Number of samples in the figure.
    """
    facts = described(module) | described(getattr(module.trainer, "datamodule", None))
    seed = os.environ.get("PL_GLOBAL_SEED")
    words = [
        " ".join(str(facts[key]) for key in ("model", "head", "mode") if facts.get(key)),
        f"{facts['n_train']:,} training links" if "n_train" in facts else "",
        f"{facts['split']} split" if "split" in facts else "",
        f"seed {seed}" if seed is not None else "",
        f"{count:,} links shown",
    ]
    return ", ".join(part for part in words if part)


class Sample:
    """Rows of a test side for its figures: all of a small side, an even sample of a large one.

    The limits are 8192 links and 256 MiB. Link i of the side is kept if i times the golden ratio, modulo 1, is among
    the smallest: the links are spread over the whole side, and do not depend on the number of processes.
    """

    def __init__(self) -> None:
        self._parts: list[Rows] = []
        self._seen, self._limit, self._below = 0, 1, 1.0

    def add(self, rows: Rows) -> None:
        """Add the next batch of this process, (B, ...) by name, of which a part is kept on the CPU."""
        count = len(next(iter(rows.values())))
        number = (self._seen + torch.arange(count)) * world_size() + rank()
        self._seen += count
        size = sum(math.prod(value.shape[1:]) * value.element_size() for value in rows.values())
        self._limit = max(1, min(_LINKS, _BYTES // size))
        kept = (_fraction(number) <= self._below).nonzero().squeeze(1)
        part = {key: value.detach()[kept.to(value.device)].cpu() for key, value in rows.items()}
        self._parts.append({"number": number[kept], **part})
        if sum(len(part["number"]) for part in self._parts) > 2 * self._limit:
            whole = concatenate(self._parts)
            self._below = self._bound(whole["number"])
            self._parts = [_up_to(self._below, whole)]

    def gathered(self) -> Rows:
        """Return the sample of all processes in the order of the links; a collective operation."""
        share = concatenate(self._parts)
        share = _up_to(self._bound(share["number"]), share)
        numbers = gather_rows({"number": share["number"]})["number"]
        rows = gather_rows(_up_to(self._bound(numbers), share))
        order = rows.pop("number").argsort()
        return {key: value[order] for key, value in rows.items()}

    def _bound(self, number: Tensor) -> float:
        """Return the largest fraction of those links that may be kept."""
        bound = _fraction(number).sort().values[: self._limit]
        return float(bound[-1]) if len(bound) else 0.0


def _fraction(number: Tensor) -> Tensor:
    return number.double() * _GOLDEN % 1.0


def _up_to(bound: float, rows: Rows) -> Rows:
    kept = _fraction(rows["number"]) <= bound
    return {key: value[kept] for key, value in rows.items()}
