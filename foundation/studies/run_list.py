"""Lists of command-line runs, made one after another and resumable after an interruption."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.progress import SharedProgress
from datamodules.yaml_file import read_yaml
from foundation.runtime.runs import read_summary
from foundation.studies.rows import ROWS, Durations, read


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Attributes:
        experiment: Name of the study.
        run: Id of the run.
        make: Makes the run and returns the exit status.
        seconds: Estimated duration [s].
    """

    experiment: str
    run: str
    make: Callable[[], int]
    seconds: float


def finished(folder: Path) -> bool:
    """Return whether a run has ended: trained, and tested if its command includes a test."""
    summary = read_summary(folder / "summary.json")
    if summary.get("metrics"):
        return True
    config = folder / "config.yaml"
    return bool(summary) and not (config.is_file() and read_yaml(config).get("then_test"))


def run_all(experiment: str, commands: Sequence[tuple[str, list[str]]], runs: Path) -> int:
    """Make the unfinished runs of a list of (run id, arguments); stopped runs resume.

    Returns:
        The exit status: that of the first run that failed, or 0.

    Raises:
        InputError: A run cannot work that starts from the checkpoint of another one of the list.
    """
    todo = [(run_id, args) for run_id, args in commands if not finished(runs / experiment / run_id)]
    if not todo:
        return 0
    from foundation.dry_run import check_followers  # imported late, as the import is slow

    check_followers([(runs / experiment / run_id, args) for run_id, args in todo])
    seconds = Durations(read(ROWS)).of
    jobs = [(run_id, command(runs / experiment / run_id, args)) for run_id, args in todo]
    return run_jobs([Job(experiment, run_id, make, seconds(experiment, run_id)) for run_id, make in jobs])


def run_jobs(jobs: Sequence[Job], done: Callable[[Job], None] = lambda job: None) -> int:
    """Make runs one after another, with one progress bar: the run, its epoch and metric, and the remaining time.

    Args:
        jobs: The runs.
        done: Called after each successful run.

    Returns:
        The exit status: that of the first run that failed, or 0.
    """
    with SharedProgress([job.seconds for job in jobs]) as progress:
        for number, job in enumerate(jobs, 1):
            name = f"[{number}/{len(jobs)}] {job.experiment}/{job.run}"
            print(name, flush=True)
            progress.begin(name)
            started = time.monotonic()
            if status := job.make():
                print("stopped: the same command resumes with this run", file=sys.stderr)
                return status
            done(job)
            progress.end()
            print(f"    {time.monotonic() - started:.0f} s", flush=True)
    return 0


def command(folder: Path, args: list[str]) -> Callable[[], int]:
    """Return a function that runs the command line with arguments, resuming the run of a folder if it was stopped."""

    def make() -> int:
        from foundation.cli import main  # imported late, as the import is slow

        stopped = (folder / "checkpoints" / "last.ckpt").exists()
        return main([*args, "--ckpt_path", "last"] if stopped else args)

    return make
