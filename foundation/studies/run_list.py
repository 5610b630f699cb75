"""Lists of runs of the command line, made one after another and gone on with after a kill."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from datamodules.yaml_file import read_yaml
from foundation.runtime.runs import read_summary


def finished(folder: Path) -> bool:
    """Whether a run has come to its end: fitted, and tested where it is to be."""
    summary = read_summary(folder / "summary.json")
    if summary.get("metrics"):
        return True
    config = folder / "config.yaml"
    return bool(summary) and not (config.is_file() and read_yaml(config).get("then_test"))


def run_all(experiment: str, commands: Sequence[tuple[str, list[str]]], runs: Path) -> int:
    """Run what is not finished yet of (run id, arguments), each run going on where it was stopped.

    Returns:
        The exit status: that of the first run that failed, or 0.
    """
    todo = [(run_id, args) for run_id, args in commands if not finished(runs / experiment / run_id)]
    for number, (run_id, args) in enumerate(todo, 1):
        from foundation.cli import main  # not before there is something to run: it is slow to import

        print(f"[{number}/{len(todo)}] {experiment}/{run_id}", flush=True)
        started = time.monotonic()
        if (runs / experiment / run_id / "checkpoints" / "last.ckpt").exists():
            args = [*args, "--ckpt_path", "last"]
        status = main(args)
        if status:
            print("the study stops here; the same command goes on with this run", file=sys.stderr)
            return status
        print(f"    {time.monotonic() - started:.0f} s", flush=True)
    return 0
