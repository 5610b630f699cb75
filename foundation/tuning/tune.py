"""`make tune`: hyperparameter search by Optuna; each trial is a run, and the same command resumes the search."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from datamodules.errors import InputError, check_whole, needs
from datamodules.files import write_whole
from foundation.runtime.stopping import exit_status
from foundation.studies.tables import ruled
from foundation.tuning.search_space import Search, assignments

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

#: number of trials, and of validations of a trial, before median pruning starts
_UNPRUNED, _VALIDATIONS = 5, 2
#: number of trials in the table
_BEST = 10


@contextlib.contextmanager
def opened(search: Search, folder: Path) -> Iterator[Study]:
    """Open or create the Optuna study of a search, locked for this process.

    Args:
        search: The search.
        folder: Folder of its experiment, where `tune.journal` lies.

    Raises:
        InputError: It was created with other settings, or another process has it open.
    """
    with needs("tune", "make tune searches by Optuna"):
        import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".tune.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{folder} is being tuned by another process: wait for it") from None
    try:
        journal = folder / "tune.journal"
        _repair(journal)
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name=search.name,
            direction=search.direction,
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(_UNPRUNED, n_warmup_steps=_VALIDATIONS),
        )
        # settings that were refused before the first trial may still be put right
        asked = study.user_attrs["asked"] if study.get_trials(deepcopy=False) else search.asked
        if changed := [key for key, value in search.asked.items() if asked.get(key) != value]:
            raise InputError(
                f"{folder} was begun with other {' and '.join(changed)}, so that its trials do not compare: put them "
                "back, give the YAML another name, or move the folder away"
            )
        study.set_user_attr("asked", search.asked)
        yield study
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _repair(journal: Path) -> None:
    """Remove an incomplete last line and the lock of an interrupted process."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.exists():
        content = journal.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(journal, content.rfind(b"\n") + 1)


def next_trial(study: Study, trials: int) -> Trial | None:
    """Return a stopped trial, else a new one, or None when `trials` trials exist."""
    import optuna

    stopped = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    number = stopped[0].number if stopped else len(study.get_trials(deepcopy=False))
    # seeded by the trial, so that a resumed search draws the same values, also of a trial stopped between two draws
    study.sampler = optuna.samplers.TPESampler(seed=number)
    if stopped:
        return optuna.trial.Trial(study, stopped[0]._trial_id)
    return study.ask() if number < trials else None


def tune(search: Search, trials: int, runs: Path) -> int:
    """Run trials until there are `trials`, and print the best.

    Args:
        search: The search.
        trials: Total number of trials, including those of earlier calls.
        runs: Folder of all experiments.

    Returns:
        The exit status: 0, or that of an interrupted run.

    Raises:
        InputError: A setting is invalid.
    """
    folder = runs / search.name
    print("loading Optuna and PyTorch", flush=True)
    with opened(search, folder) as study:
        done, started, made = sum(trial.state.is_finished() for trial in study.trials), time.monotonic(), 0
        if done < trials:
            check(search)
        while (trial := next_trial(study, trials)) is not None:
            values = search.suggest(trial)
            drawn = " ".join(f"{key}={_short(value)}" for key, value in values.items())
            print(f"[{trial.number + 1}/{trials}] {search.name}/{run_id(trial.number)} {drawn}", flush=True)
            _write(search, study, folder)
            begun = time.monotonic()
            status = _run(search, study, trial, assignments(values), runs)
            _write(search, study, folder)
            if status:
                print("search stopped: the same command resumes with this trial", file=sys.stderr)
                return status
            made += 1
            left = (time.monotonic() - started) / made * (trials - done - made)
            frozen = study.trials[trial.number]
            print(
                f"    {frozen.state.name.lower()}, {search.metric} {_short(frozen.value)}, "
                f"{time.monotonic() - begun:.0f} s; about {left / 60:.0f} min left",
                flush=True,
            )
        print(table(search, study, folder))
    return 0


def run_id(number: int) -> str:
    """Return the name of the run of a trial."""
    return f"trial-{number:04d}"


def check(search: Search) -> None:
    """Parse a command line with a value for each key, to refuse unknown keys before the first trial."""
    from foundation.cli import run

    values = {key: each.first for key, each in search.keys.items()}
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        run(["fit", *search.args, *assignments(values), "--print_config"])


def _run(search: Search, study: Study, trial: Trial, chosen: list[str], runs: Path) -> int:
    """Run a trial, and record its result in the study; an interrupted trial stays open, to be resumed."""
    from optuna.trial import TrialState

    from foundation.cli import main, user_error
    from foundation.task import DivergedError
    from foundation.tuning.trial_report import TrialReport

    report = TrialReport(trial, search.metric)
    named = ["--experiment", search.name, "--run_id", run_id(trial.number), "--runs", str(runs)]
    last = runs / search.name / run_id(trial.number) / "checkpoints" / "last.ckpt"
    goes_on = ["--ckpt_path", "last"] if last.exists() else []
    try:
        status = main(["fit", *search.args, *chosen, *named, *goes_on], callbacks=[report], raises=True)
    except Exception as error:
        line = user_error(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        trial.set_user_attr("error", line)
        study.tell(trial, state=TrialState.FAIL)
        alike = report.unlogged or all(other.value is None for other in study.trials)
        if alike and not isinstance(error, DivergedError):
            raise  # no trial has succeeded: the cause is not the values of this one
        print(f"    {line}", file=sys.stderr)
        return 0
    finally:
        gc.collect()  # frees the GPU memory of the trial
    if status:
        return status
    values = [value for value in study.trials[trial.number].intermediate_values.values() if math.isfinite(value)]
    if report.pruned:
        study.tell(trial, state=TrialState.PRUNED)
    elif values:
        study.tell(trial, max(values) if search.direction == "maximize" else min(values))
    else:
        trial.set_user_attr("error", f"{search.metric} was never a finite number")
        study.tell(trial, state=TrialState.FAIL)
    return 0


def _write(search: Search, study: Study, folder: Path) -> None:
    """Write `tune.json` atomically, which the report reads without Optuna."""
    trials = [
        {
            "number": trial.number,
            "state": trial.state.name,
            "value": trial.value if trial.value is not None and math.isfinite(trial.value) else None,
            "run_id": run_id(trial.number),
            "duration_s": None if trial.duration is None else round(trial.duration.total_seconds(), 1),
            "params": trial.params,
            **({"error": trial.user_attrs["error"]} if "error" in trial.user_attrs else {}),
        }
        for trial in study.trials
    ]
    content = {"study": search.name, "metric": search.metric, "direction": search.direction, "trials": trials}
    write_whole(folder / "tune.json", json.dumps(content, indent=2) + "\n")


def table(search: Search, study: Study, folder: Path) -> str:
    """Return a Markdown table of the best trials, the states of all, and the commands to train and test the best."""
    from optuna.trial import TrialState

    ended: list[FrozenTrial] = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    ended.sort(key=lambda trial: trial.values[0], reverse=search.direction == "maximize")
    rows = [["trial", search.metric, *search.keys]]
    rows += [
        [run_id(t.number), *map(_short, (t.value, *(t.params[key] for key in search.keys)))] for t in ended[:_BEST]
    ]
    states = [trial.state.name.lower() for trial in study.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    report = [ruled(rows), "", f"{len(states)} trials: {counts}; {folder}/tune.json"]
    if ended:
        best = folder / run_id(ended[0].number) / "config.yaml"
        report.append(
            f"train again: lightning fit --config {best}; test: lightning test --config {best} --ckpt_path best"
        )
    return "\n".join(report)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def main(args: Sequence[str] | None = None) -> int:
    """Search the keys that a YAML names by Optuna; each trial is a run."""
    epilog = "Further options are of `lightning fit`, for every trial: --trainer.max_epochs 5"
    parser = argparse.ArgumentParser(prog="make tune", description=main.__doc__, epilog=epilog, allow_abbrev=False)
    parser.add_argument("search", type=Path, help="a YAML of experiments/tune/")
    parser.add_argument("--trials", type=int, default=20, help="trials in all, those of earlier calls among them")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    given, further = parser.parse_known_args(args)

    def work() -> int:
        check_whole("make tune", TRIALS=given.trials)
        search = Search.load(given.search)
        return tune(replace(search, args=[*search.args, *further]), given.trials, given.runs)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
