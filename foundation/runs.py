"""Where a run lies on disk: `runs/<experiment>/<run id>/`."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import InputError

#: checkpoints that every run keeps, by the word that names them on the command line
CHECKPOINTS = ("best", "last")


@dataclass(frozen=True)
class Run:
    """One run of an experiment.

    Attributes:
        root: Folder of all experiments.
        experiment: Name of the experiment.
        id: Name of the run within the experiment.
    """

    root: Path
    experiment: str
    id: str

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.root / self.experiment / self.id

    def checkpoint(self, name: str) -> Path:
        """Path of the checkpoint `best` or `last`, which may not exist yet."""
        return self.folder / "checkpoints" / f"{name}.ckpt"

    @classmethod
    def new(cls, root: Path, experiment: str, seed: int | bool, run_id: str | None = None) -> Run:
        """Name a new run, and make its folder where this is the first process of the job.

        The folder is the claim: of two runs that start in the same second, the later one takes another name. The other
        processes of a job only name a run and learn the first one's folder from Lightning, which broadcasts it.

        Args:
            root: Folder of all experiments.
            experiment: Name of the experiment.
            seed: Seed, part of the run id.
            run_id: Name to take instead of date, time and seed.

        Raises:
            InputError: `run_id` is taken.
        """
        if run_id is not None:
            run = cls(root, experiment, run_id)
            if first_process() and run.folder.exists() and any(run.folder.iterdir()):
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
        """Find the run of an experiment whose checkpoint was written last.

        Args:
            root: Folder of all experiments.
            experiment: Name of the experiment.
            checkpoint: `best` or `last`.
            run_id: Only this run will do.

        Raises:
            InputError: There is none.
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
        """Return the run that a checkpoint, or the config of a run, belongs to."""
        path = Path(path)
        folder = path.parent.parent if path.suffix == ".ckpt" else path.parent
        if not (folder / "checkpoints").is_dir():
            return None
        return cls(folder.parent.parent, folder.parent.name, folder.name)

    def discard_if_empty(self) -> None:
        """Remove the folder of a run that ended before it wrote anything."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def first_process() -> bool:
    """Whether this is the process of a job that owns the run folder; decided before any process group exists."""
    # Lightning's launcher starts one process a node by hand, told apart by NODE_RANK alone.
    return rank() == 0 and os.environ.get("NODE_RANK", "0") == "0"


def rank() -> int:
    """Return the rank of this process, from the environment before and from the process group after it exists."""
    from lightning_utilities.core.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0)
