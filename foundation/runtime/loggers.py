"""Loggers of a run: `metrics.csv` always, Weights & Biases on request."""

from __future__ import annotations

import importlib
import os
import queue
import re
import threading
import urllib.error
import urllib.request
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor

from datamodules.errors import InputError
from foundation.gather import Rows
from foundation.runtime.runs import MetricsFile, Run, rank
from foundation.runtime.tracking import better, described, tables

#: time limit for an answer of the server [s]
_PATIENCE = 5.0


class Csv(CSVLogger):
    """Writes `metrics.csv` in the run folder, and keeps the rows of an interrupted run.

    The logger of Lightning deletes the file when a run resumes.

    Args:
        run: The run.
        before_step: First step written again by a resumed run.
    """

    def __init__(self, run: Run, before_step: int | None = None) -> None:
        super().__init__(run.root, name=run.experiment, version=run.name)
        self._before_step = before_step
        self._file: MetricsFile | None = None

    @property
    def experiment(self) -> None:
        """None; the file is opened by the first row."""

    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Do nothing; config.yaml contains all settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Write one row."""
        if self._file is None:
            self._file = MetricsFile(Path(self.log_dir) / "metrics.csv", self._before_step)
        row = {key: value.item() if isinstance(value, Tensor) else value for key, value in metrics.items()}
        self._file.append({"step": step or 0, **row})

    def save(self) -> None:
        """Do nothing; rows are written when logged."""

    def finalize(self, status: str) -> None:
        """Do nothing; rows are written when logged."""


def wandb_key_configured() -> bool:
    """Return whether wandb finds an API key without a prompt."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    auth = importlib.import_module("wandb.sdk.lib.wbauth")
    try:
        found = auth.authenticate_session(host=_host(), source="key", prompt=False, update_session=False)
    except wandb.errors.AuthenticationError as error:
        warnings.warn(f"wandb: the key at hand is none ({error})", stacklevel=2)
        return False
    return found is not None


def offline_reason() -> str:
    """Return why the server of Weights & Biases cannot be used; empty if it can."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("offline", "disabled", "dryrun"):
        return f"WANDB_MODE is {mode}"
    if not wandb_key_configured():
        return "no key is configured"
    return "" if _responds(_host()) else f"{_host()} does not answer"


def _host() -> str:
    """Return the address of the server of Weights & Biases."""
    from wandb.sdk import wandb_setup

    return os.environ.get("WANDB_BASE_URL") or str(wandb_setup.singleton().settings.base_url)


def _responds(address: str) -> bool:
    """Return whether a server responds within the time limit, including name resolution."""
    said: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        try:
            urllib.request.urlopen(address, timeout=_PATIENCE).close()
        except urllib.error.HTTPError:
            said.put(True)
        except (OSError, ValueError):
            said.put(False)
        else:
            said.put(True)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return said.get(timeout=_PATIENCE)
    except queue.Empty:
        return False


class Wandb(WandbLogger):
    """Weights & Biases, offline unless an API key is configured; never asks for one.

    If the server does not answer, or refuses, the run continues offline with a warning. The files are in the run
    folder. An offline run is uploaded later by `wandb sync <run folder>/wandb/offline-*`.

    The runs of an experiment are one group, named by run id, their job type is the mode, and model, head, sources and
    cities are tags. Metrics of whole sides are drawn over epochs, with the best value in the summary as `<metric>.min`
    or `.max`, beside the last one.

    Args:
        project: Project on the server.
        entity: User or team; by default that of the key.
        tags: Further tags.
        offline: Whether to run offline; by default if wandb finds no key.
        log_model: Upload checkpoints: at the end (True), during training (`all`), or not; by default at the end if
            online.

    Raises:
        InputError: `offline` is False, `WANDB_MODE` is `online`, or `log_model` is set, and no key is configured.
    """

    def __init__(
        self,
        project: str = "csi-foundation",
        entity: str | None = None,
        tags: list[str] | None = None,
        offline: bool | None = None,
        log_model: Literal["all"] | bool | None = None,
    ) -> None:
        known, wanted = wandb_key_configured(), os.environ.get("WANDB_MODE")
        if not known and (offline is False or wanted in ("online", "run", "shared")):
            asked = "offline is false" if offline is False else f"WANDB_MODE is {wanted}"
            raise InputError(f"wandb: {asked} but no key is configured: set WANDB_API_KEY or run `wandb login`")
        if offline is None:
            offline = not known
        if offline and log_model:
            raise InputError("wandb: log_model uploads and so needs a key: set WANDB_API_KEY, or log_model: false")
        # Not Lightning's `offline=True`: it writes WANDB_MODE into the environment of the whole process. A mode that
        # the user has set there, such as `disabled`, has precedence.
        mode = wanted or ("offline" if offline else "online")
        if log_model is None:
            log_model = mode == "online"
        super().__init__(project=project, log_model=log_model, entity=entity, tags=tags, mode=mode)
        self._wandb_init.pop("anonymous", None)  # deprecated in wandb, but passed by Lightning
        self._defined: dict[str, Literal["min", "max"] | None] = {}
        self._monitored: dict[str, Literal["min", "max"]] = {}

    def attach(self, run: Run, model: Any = None) -> None:
        """Set folder and name of the run; called by the command line.

        Args:
            run: The run; a resumed one continues its record on the server.
            model: The model, with its mode and monitored metric.
        """
        self._save_dir = str(run.folder)
        self._name = run.name
        self._id = re.sub(r"[:;,#?/']", "-", f"{run.experiment}-{run.name}")  # characters that wandb refuses
        self._checkpoint_name = re.sub(r"[^\w.-]", "_", f"model-{self._id}")
        self._wandb_init.update(dir=self._save_dir, name=run.name, id=self._id, group=run.experiment)
        self._wandb_init["job_type"] = described(model).get("mode")
        if getattr(model, "monitor", None):
            self._monitored[model.monitor] = model.monitor_mode
        if rank() == 0 and self._wandb_init["mode"] == "online" and not _responds(_host()):
            self._go_offline(f"{_host()} does not answer")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The record; offline if it cannot be opened on the server."""
        import wandb

        try:
            return super().experiment
        except wandb.errors.Error as error:
            if self._wandb_init["mode"] == "offline":
                raise
            self._go_offline(" ".join(str(error).split()))
            return super().experiment

    def add_tags(self, *words: str) -> None:
        """Add tags, truncated to the 64 characters that wandb accepts."""
        tags = [*(self.experiment.tags or ()), *(word[:64] for word in words if word)]
        self.experiment.tags = tuple(dict.fromkeys(tags))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values; those of whole sides are drawn over epochs, others over training steps."""
        for name, value in metrics.items():
            if name not in self._defined and isinstance(value, (int, float, Tensor)) and name != "epoch":
                self._define(name)
        super().log_metrics(metrics, step)

    def _define(self, name: str) -> None:
        best = self._defined[name] = self._monitored.get(name, better(name))
        over = "epoch" if name.startswith(("val/", "test/")) else "trainer/global_step"
        # tests have a single value
        summary = f"{best},last" if best and not name.startswith("test/") else None
        self.experiment.define_metric(name, step_metric=over, summary=summary)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Add the content of `summary.json`, except the metrics, which are logged, to the summary of the record."""
        known = {key: value for key, value in summary.items() if key not in ("metrics", "validation")}
        self.experiment.summary.update({f"run/{key}": value for key, value in known.items() if value not in (None, {})})

    def log_rows(self, rows: Rows) -> None:
        """Log a sample of the test side as tables of embeddings and class confusion; see `figures.log_rows`."""
        self.experiment.log(tables(rows))

    def _go_offline(self, reason: str) -> None:
        self._wandb_init["mode"], self._log_model = "offline", False
        warnings.warn(
            f"wandb: {reason}: offline; upload later with `wandb sync {self._save_dir}/wandb/offline-*`", stacklevel=2
        )

    def close(self) -> None:
        """End the record, so that another run of the process has its own."""
        if self._experiment is not None:
            self._experiment.finish()
