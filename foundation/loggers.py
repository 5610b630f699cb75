"""Loggers of a run: `metrics.csv` always, Weights & Biases on request."""

from __future__ import annotations

import contextlib
import csv
import netrc
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor

from datamodules.errors import InputError
from foundation.runs import Run


class MetricsFile:
    """A CSV file that grows by a row at a time and is whole at any moment.

    Args:
        path: The file; rows that it already holds are kept.
        before_step: Drop the rows from this step on: a resumed run writes them again. None keeps all.
    """

    def __init__(self, path: Path, before_step: int | None = None) -> None:
        self._path = path
        self._keys: list[str] = []
        if not path.exists():
            return
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        self._keys = list(rows[0]) if rows else []
        if before_step is not None:
            # A row without a step is one that a kill cut short.
            kept = [row for row in rows if (row["step"] or "").isdigit() and int(row["step"]) < before_step]
            self._rewrite(kept)

    def append(self, row: dict[str, Any]) -> None:
        """Write one row, with an empty cell for each column that it lacks."""
        new = [key for key in row if key not in self._keys]
        if new:
            rows: list[dict[str, Any]] = []
            if self._path.exists():
                with self._path.open(newline="") as file:
                    rows = list(csv.DictReader(file))
            self._keys += new
            self._rewrite([*rows, row])
            return
        # Written through, not buffered: a killed run loses no row that its last checkpoint already counts.
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._keys).writerow(row)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".csv.tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._keys)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self._path)


class Csv(CSVLogger):
    """Writes `metrics.csv` in the run folder, and keeps what an earlier part of the run wrote.

    Lightning's own logger deletes the file of a run that goes on.

    Args:
        run: The run.
        before_step: First step that the run will write again when it resumes.
    """

    def __init__(self, run: Run, before_step: int | None = None) -> None:
        super().__init__(run.root, name=run.experiment, version=run.id)
        self._before_step = before_step
        self._file: MetricsFile | None = None

    @property
    def experiment(self) -> None:
        """Nothing: the file is opened by its first row."""

    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Do nothing: config.yaml beside the file holds every setting."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Write one row."""
        if self._file is None:
            self._file = MetricsFile(Path(self.log_dir) / "metrics.csv", self._before_step)
        row = {key: value.item() if isinstance(value, Tensor) else value for key, value in metrics.items()}
        self._file.append({"step": step or 0, **row})

    def save(self) -> None:
        """Do nothing: rows are on disk as soon as they are logged."""

    def finalize(self, status: str) -> None:
        """Do nothing: rows are on disk as soon as they are logged."""


def wandb_key_configured() -> bool:
    """Whether Weights & Biases would find an API key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    candidates = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for candidate in candidates:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(Path(candidate).expanduser()).authenticators(host):
                return True
    return False


class Wandb(WandbLogger):
    """Weights & Biases, offline unless an API key is configured; never asks for one.

    Its files lie in the run folder. An offline run is uploaded later by `wandb sync <run folder>/wandb/offline-*`.

    Args:
        project: Project on the server.
        entity: User or team; the key's own by default.
        tags: Words to find the run by.
        offline: True or False decide; by default offline where neither `WANDB_API_KEY` nor a netrc entry gives a key.
        log_model: Upload checkpoints: at the end (True), as they come (`all`), or not.

    Raises:
        InputError: `offline` is False, or `log_model` is set, and no key is configured.
    """

    def __init__(
        self,
        project: str = "csi-foundation",
        entity: str | None = None,
        tags: list[str] | None = None,
        offline: bool | None = None,
        log_model: Literal["all"] | bool = False,
    ) -> None:
        if offline is None:
            offline = not wandb_key_configured()
        elif not offline and not wandb_key_configured():
            raise InputError("wandb: offline is false but no key is configured: set WANDB_API_KEY or run `wandb login`")
        if offline and log_model:
            raise InputError("wandb: log_model uploads and so needs a key: set WANDB_API_KEY, or log_model: false")
        # Not Lightning's `offline=True`: it writes WANDB_MODE into the environment of the whole process. A mode that
        # the user has put there (say `disabled`) wins.
        mode = os.environ.get("WANDB_MODE") or ("offline" if offline else "online")
        super().__init__(project=project, log_model=log_model, entity=entity, tags=tags, mode=mode)
        self._wandb_init.pop("anonymous", None)  # wandb warns about the word, Lightning says it all the same

    def attach(self, run: Run) -> None:
        """Put the files into a run's folder and name the run after it; called by the command line.

        Args:
            run: The run; one that resumes continues the same record on the server.
        """
        self._save_dir = str(run.folder)
        self._name = run.id
        self._id = f"{run.experiment}-{run.id}"
        self._wandb_init.update(dir=self._save_dir, name=run.id, id=self._id, group=run.experiment)

    def close(self) -> None:
        """End the record, so that a second run in the same process gets one of its own."""
        if self._experiment is not None:
            self._experiment.finish()
