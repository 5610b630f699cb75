"""Folders of runs: `runs/<experiment>/<run id>/`."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from datamodules.errors import InputError
from datamodules.files import replacing, write_whole

#: checkpoints of every run, by their names on the command line
CHECKPOINTS = ("best", "last")
_NAME = re.compile(r"[\w@+=,:][\w@+=,:.-]*")


@dataclass(frozen=True)
class Run:
    """One run of an experiment.

    Attributes:
        root: Folder of all experiments.
        experiment: Name of the experiment.
        id: Name of the run within the experiment.
        part: Folder within the run for results on other data than its own; empty for its own results.
    """

    root: Path
    experiment: str
    id: str
    part: str = ""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.root / self.experiment / self.name

    @property
    def name(self) -> str:
        """Name of the folder below that of the experiment."""
        return f"{self.id}/{self.part}" if self.part else self.id

    def checkpoint(self, name: str) -> Path:
        """Path of the checkpoint `best` or `last`, which may not exist yet."""
        return self.folder / "checkpoints" / f"{name}.ckpt"

    @property
    def latest(self) -> Path | None:
        """The checkpoint to resume from: that of the last epoch, or a later one written on a signal of SLURM."""
        found = [path for path in (self.checkpoint("last"), *self.folder.glob("hpc_ckpt_*.ckpt")) if path.exists()]
        return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)

    @property
    def has_result(self) -> bool:
        """Whether the run has results that a restart would lose."""
        left = ("checkpoints/last.ckpt", "summary.json", "predictions.safetensors")
        return any((self.folder / name).exists() for name in left)

    @classmethod
    def new(cls, root: Path, experiment: str, seed: int | bool, run_id: str | None = None) -> Run:
        """Name a new run, and create its folder in the first process of the job.

        Creating the folder reserves the name: of two runs started in the same second, the later one takes another name.
        The other processes of a job receive the folder from Lightning, which broadcasts it. A run with a given id that
        was stopped before its first checkpoint is restarted in its folder.

        Args:
            root: Folder of all experiments.
            experiment: Name of the experiment.
            seed: Seed, part of the run id.
            run_id: Id of the run, by default from date, time and seed.

        Raises:
            InputError: A run of that id exists.
        """
        if run_id is not None:
            run = cls(root, experiment, run_id)
            if first_process() and run.has_result:
                raise InputError(
                    f"run {run.folder} exists: give another --run_id, or continue it with --ckpt_path last"
                )
            if first_process():
                run.folder.mkdir(parents=True, exist_ok=True)
            return run
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-s{int(seed)}"
        attempt = 1
        while True:
            run = cls(root, experiment, stem if attempt == 1 else f"{stem}-{attempt}")
            if not first_process():
                return run
            try:
                run.folder.mkdir(parents=True)
            except FileExistsError:
                attempt += 1
            else:
                return run

    @classmethod
    def newest(cls, root: Path, experiment: str, checkpoint: str, run_id: str | None = None) -> Run:
        """Return the run of an experiment with the newest checkpoint.

        Args:
            root: Folder of all experiments.
            experiment: Name of the experiment.
            checkpoint: `best` or `last`.
            run_id: Id of the run, by default any.

        Raises:
            InputError: There is no such run.
        """
        found = list((root / experiment).glob(f"{run_id or '*'}/checkpoints/{checkpoint}.ckpt"))
        if not found:
            raise InputError(
                f"--ckpt_path {checkpoint}: no {root / experiment / (run_id or '*')}/checkpoints/{checkpoint}.ckpt; "
                "give a file, name the run with --experiment and --run_id, or run `lightning fit` first"
            )
        newest = max(found, key=lambda path: path.stat().st_mtime_ns)
        return cls(root, experiment, newest.parent.parent.name)

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Run | None:
        """Return the run of a checkpoint or of a config file."""
        path = Path(path)
        folder = path.parent.parent if path.suffix == ".ckpt" else path.parent
        if not (folder / "checkpoints").is_dir():
            return None
        return cls(folder.parent.parent, folder.parent.name, folder.name)

    def claim(self) -> FileLock:
        """Lock the run against training by other processes, until `release`.

        Raises:
            InputError: Another process has the lock.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"run {self.folder} is at work in another process: wait for it, or give another --run_id"
            ) from None
        return lock

    def release(self, lock: FileLock | None) -> None:
        """Release the lock, and remove the folder of a run without results."""
        if lock is not None:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def check_name(option: str, name: str | None) -> None:
    """Check that a name is a plain name, without path separators or pattern characters.

    Args:
        option: How it is given on the command line, such as `--run_id`.
        name: The name; None is not checked.

    Raises:
        InputError: It is not.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise InputError(f"{option} '{name}' is no plain name: use letters, digits and any of _ - . @ + = , :")


def plain_name(text: str) -> str:
    """Return a plain name from any text."""
    return re.sub(r"[^\w@+=,:.-]", "_", text).lstrip(".-") or "run"


def read_summary(file: Path) -> dict[str, Any]:
    """Read a `summary.json`; empty if missing. A damaged file is renamed, with a warning."""
    if not file.exists():
        return {}
    try:
        summary: dict[str, Any] = dict(json.loads(file.read_text()))
    except (ValueError, TypeError):
        _set_aside(file)
        return {}
    return summary


def write_summary(file: Path, summary: dict[str, Any]) -> None:
    """Write a `summary.json` atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(summary, indent=2) + "\n")


def add_metrics(file: Path, metrics: dict[str, float]) -> None:
    """Add to the metrics of a `summary.json`; values that are not finite become null."""
    summary = read_summary(file)
    added = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    write_summary(file, {**summary, "metrics": {**summary.get("metrics", {}), **added}})


def first_process() -> bool:
    """Whether this is the first process of a job, which owns the run folder; also before there is a process group."""
    # Lightning's launcher starts one process a node by hand, told apart by NODE_RANK alone.
    return rank() == 0 and os.environ.get("NODE_RANK", "0") == "0"


def rank() -> int:
    """Return the rank of this process, from the environment or, once it exists, from the process group."""
    from lightning_utilities.core.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0)


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read columns and complete rows of a `metrics.csv`; a kill, a full disk or a copy may have truncated a row."""
    lines = path.read_bytes().decode(errors="replace").replace("\0", "\ufffd").splitlines(keepends=True)
    reader = csv.DictReader(line for line in lines if line.endswith(("\n", "\r")) and "\ufffd" not in line)
    columns = list(reader.fieldnames or [])
    if "step" not in columns:
        return columns, []
    return columns, [row for row in reader if None not in row and None not in row.values() and row["step"].isdigit()]


class MetricsFile:
    """A `metrics.csv`, to which rows are appended, complete at any time.

    Args:
        path: The file; its rows are kept.
        before_step: Remove the rows from this step on, which a resumed run writes again; None keeps all.
    """

    def __init__(self, path: Path, before_step: int | None = None) -> None:
        self._path = path
        self._keys: list[str] = []
        if rows := self._read():
            self._keys = list(rows[0])
            self._rewrite([row for row in rows if before_step is None or int(row["step"]) < before_step])

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; missing columns are empty."""
        new = [key for key in row if key not in self._keys]
        if new:
            rows = self._read()
            self._keys += new
            self._rewrite([*rows, row])
            return
        # Not buffered, so that a killed run loses no row before its last checkpoint.
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._keys).writerow(row)

    def _read(self) -> list[dict[str, str]]:
        if not self._path.exists():
            return []
        columns, rows = read_rows(self._path)
        if "step" not in columns:
            _set_aside(self._path)
        return rows

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._keys)
            writer.writeheader()
            writer.writerows(rows)


def _set_aside(file: Path) -> None:
    aside = file.with_name(f"{file.name}.damaged")
    warnings.warn(f"{file} is damaged: set aside as {aside.name}", stacklevel=3)
    with contextlib.suppress(OSError):
        os.replace(file, aside)
