"""Callbacks of every run: config, summary and predictions on disk."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from safetensors.torch import load_file
from torch import Tensor

from datamodules.files import write_whole
from foundation.checkpoint import save_tensors
from foundation.gather import interleaved
from foundation.runtime.figures import log_rows, shows_rows
from foundation.runtime.loggers import Wandb
from foundation.runtime.resume import BestCheckpoint
from foundation.runtime.runs import Run, read_summary, write_summary
from foundation.runtime.tracking import described, tags_of

#: entries of the summary of fit, which a later test keeps
_FITTED = ("epochs", "steps", "validations", "best", "validation")

#: what a logger shows of predictions: the features, and what they are coloured by
_COLOURS = ("features", "prediction", "los", "beam", "position", "site", "domain")


class SaveConfig(SaveConfigCallback):
    """Writes the composed config to the run folder and to the loggers.

    `fit` writes `config.yaml`; the other commands write `<command>.yaml` beside it, and `config.yaml` only where the
    run starts with them. The files are valid for `--config`.

    Args:
        parser: Parser of the command.
        config: Its parsed config.
        run: The run.
        command: `fit`, `validate`, `test` or `predict`.
        **kwargs: For Lightning.
    """

    def __init__(self, parser: Any, config: Any, run: Run, command: str, **kwargs: Any) -> None:
        super().__init__(parser, config, save_to_log_dir=False, **kwargs)
        self._run = run
        self._command = command

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before a training that is tested at its end, check that there is something to test."""
        sides = getattr(trainer.datamodule, "sides", {})  # type: ignore[attr-defined]
        if stage == "fit" and self.config.get("then_test") and "test" in sides:
            sides["test"].check_not_empty("test")
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file; Lightning calls this in the first process only."""
        config = self.config.clone()
        if self._command == "fit":
            # Where a run lay and what it went on from are no settings: given back to --config, it starts afresh.
            config["run_id"] = None
            config["ckpt_path"] = None
        text = self.parser.dump(config, skip_unset=False)
        own = self._run.folder / "config.yaml"
        path = own if self._command == "fit" or not own.exists() else own.with_name(f"{self._command}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
        if self._command == "fit":
            self._run.checkpoint("last").parent.mkdir(exist_ok=True)  # by which a run is known, see `Run.of`
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(text))
            if isinstance(logger, Wandb):
                logger.add_tags(*tags_of(pl_module, trainer.datamodule))  # type: ignore[attr-defined]
        print(f"run: {self._run.folder}", flush=True)


class RunSummary(Callback):
    """Writes `summary.json` at the end of fit and test, from which all tables of results are built.

    `describe()` of the model gives model, head and mode, that of the datamodule split rule and sizes; both are
    optional. A test after fit adds its metrics to the file; a further fit removes the metrics of an earlier test.

    Args:
        run: The run.
        seed: Seed of the run, None if not set.
    """

    def __init__(self, run: Run, seed: int | None) -> None:
        self._run = run
        self._seed = seed
        self._fitted = 0.0
        self._started = 0.0
        self._wrote = False
        self._validations = 0

    def state_dict(self) -> dict[str, Any]:
        """Return duration of fit [s] and number of validations so far, for a resumed run."""
        return {"wall_s": self._fitted + time.monotonic() - self._started, "validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore duration of fit and number of validations."""
        self._fitted = state_dict["wall_s"]
        self._validations = state_dict.get("validations", 0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the validations, from which the best checkpoint is selected."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validations += 1

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the summary of fit."""
        best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint) and c.monitor), None)
        validation = {k: _plain(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        self._write(
            trainer,
            pl_module,
            wall_s=round(self._fitted + time.monotonic() - self._started, 3),
            epochs=trainer.current_epoch,
            steps=trainer.global_step,
            validations=self._validations,
            best={best.monitor: _plain(best.best_model_score)} if best else {},
            metrics={},
            **(
                {"validation": validation} if validation else {}
            ),  # a run that had only its test to do keeps what it had
        )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the test."""
        self._started = time.monotonic()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the summary of the test, and print the table of the model."""
        metrics = {k: _plain(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
        self._write(trainer, pl_module, test_wall_s=round(time.monotonic() - self._started, 3), metrics=metrics)
        table = getattr(pl_module, "table", None)
        if table is not None and trainer.is_global_zero:
            known = {key.removeprefix("test/"): value for key, value in metrics.items() if value is not None}
            print(f"\n{table(known)}", flush=True)

    def _write(self, trainer: Trainer, module: LightningModule, **results: Any) -> None:
        if not trainer.is_global_zero:
            return
        path = self._run.folder / "summary.json"
        earlier = read_summary(path)
        summary = {
            "experiment": self._run.experiment,
            "run_id": self._run.name,
            "model": type(module).__name__,
            "head": None,
            "mode": None,
            "seed": self._seed,
            **described(trainer.datamodule),  # type: ignore[attr-defined]
            **described(module),
            "wall_s": earlier.get("wall_s"),
            **{key: earlier[key] for key in _FITTED if key in earlier},
            **results,
            **_parameters(module),
            "hardware": _hardware(trainer),
            "versions": {name: _version(name) for name in ("csi-foundation", "torch", "lightning")},
            **_commit(),
        }
        write_summary(path, summary)
        self._wrote = True
        for logger in trainer.loggers:
            if isinstance(logger, Wandb):
                logger.log_summary(summary)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the paths of the results at the end of a command."""
        if not self._wrote:
            return
        self._wrote = False
        plots = self._run.folder / "plots"
        print(f"summary: {self._run.folder / 'summary.json'}{f', pictures: {plots}' * plots.is_dir()}", flush=True)


class PredictionFile(Callback):
    """Writes the results of `predict_step` to `predictions.safetensors` in the run folder.

    `predict_step` returns a dict of tensors (B, ...), such as features, prediction, position, site and user; they are
    concatenated over batches and processes in the order of the side. The metadata of the file list the
    sites that `site` counts. To load the file:

        predictions = safetensors.torch.load_file("predictions.safetensors")  # or safetensors.numpy

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._parts: dict[str, list[Tensor]] = defaultdict(list)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Store a batch."""
        for key, value in outputs.items():
            # NumPy, by which others read the file, knows no bfloat16
            kept = value.detach().float() if value.dtype == torch.bfloat16 else value.detach()
            self._parts[key].append(kept.cpu())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        joined = {key: torch.cat(parts).contiguous() for key, parts in self._parts.items()}
        self._parts.clear()
        # Through files rather than a gather: rows of the processes may differ in number, and need not fit a GPU.
        # The names of the parts are of this command alone: another may predict with the same run.
        chosen, token = trainer.strategy.broadcast((str(self._run.folder), uuid.uuid4().hex[:8]))
        folder = Path(chosen)
        folder.mkdir(parents=True, exist_ok=True)
        parts = [folder / f".predictions.{rank}.{token}.tmp" for rank in range(trainer.world_size)]
        sites = _sites(trainer)
        save_tensors(joined, parts[trainer.global_rank], sites)
        trainer.strategy.barrier("predictions")
        if not trainer.is_global_zero:
            return
        path = folder / "predictions.safetensors"
        if len(parts) == 1:
            os.replace(parts[0], path)
        else:
            save_tensors(interleaved([load_file(part) for part in parts]), path, sites)
            for part in parts:
                part.unlink()
            joined = load_file(path) if shows_rows(trainer) else joined
        if "features" in joined:
            log_rows(trainer, {key: joined[key] for key in _COLOURS if key in joined})
        print(f"predictions: {path} ({', '.join(joined)})", flush=True)


def _sites(trainer: Trainer) -> dict[str, str]:
    """Return the sites that `site` numbers, with their domains, as metadata of the file."""
    side = next(iter((getattr(trainer.datamodule, "sides", None) or {}).values()), None)  # type: ignore[attr-defined]
    sites = getattr(side, "sites", [])
    described = [
        {"name": s.name, "area": s.area, "city": s.city, "frequency": s.carrier_frequency} | s.domain for s in sites
    ]
    return {"sites": json.dumps(described)} if described else {}


def _plain(value: Any) -> float | None:
    number = float(value) if value is not None else math.nan
    return number if math.isfinite(number) else None  # JSON knows no NaN


def _parameters(module: LightningModule) -> dict[str, int]:
    everything = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return {"params_total": everything, "params_trained": trained}


def _hardware(trainer: Trainer) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    device = trainer.strategy.root_device
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "processes": trainer.world_size,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return None


#: what results are written to, which `make reproduce` changes between two runs
_NO_CODE = (":(top)", ":(top,exclude)experiments/results.csv", ":(top,exclude)RESULTS.md")


def _commit(here: Path = Path(__file__)) -> dict[str, Any]:
    """Return the commit of the code, and whether files of the repository differ from it, except results.

    Args:
        here: A file of the repository.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie inside someone else's repository
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *_NO_CODE)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
