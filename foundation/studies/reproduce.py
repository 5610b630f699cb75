"""`make reproduce`: run what is needed for the rows that are missing in `experiments/results.csv`."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from datamodules.errors import InputError
from datamodules.yaml_file import read_yaml
from foundation.runtime.stopping import exit_status
from foundation.studies import results
from foundation.studies.continual import SCORED, refinements
from foundation.studies.refinement import HELD, REPLACES, TWIN, Refinement, has_metrics, offline_of
from foundation.studies.rows import ROWS, Durations, Row, collect, read, with_rows, write
from foundation.studies.run_list import Job, command, finished, run_jobs
from foundation.studies.study import FOLDER, Study, studies


@dataclass(frozen=True)
class MissingRun:
    """A run with missing rows.

    Attributes:
        study: Its study.
        run: Its id.
        args: Arguments of `lightning`; None for runs that `continual.refine` makes.
    """

    study: Study
    run: str
    args: list[str] | None


def missing(chosen: Sequence[Study], rows: Sequence[Row], runs: Path) -> list[MissingRun]:
    """Return the tested runs of studies that have missing rows, in the order to make them."""
    held: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        held[row.experiment, row.run].append(row)
    then_test = cache(_then_test)  # most runs of a study have the same files
    wanted = []
    for study in chosen:
        tested = [MissingRun(study, run, args) for run, args in study.commands(runs) if is_tested(args, then_test)]
        for each in [*tested, *(MissingRun(study, run, None) for run in refinements(study))]:
            found = held[study.name, each.run]
            if not found or len(found) < found[0].metrics:
                wanted.append(each)
    return wanted


def _then_test(file: Path) -> bool | None:
    """Return `then_test` of a YAML; None if the file has no such key, or is yet to be written by a run."""
    return read_yaml(file).get("then_test") if file.is_file() else None


def is_tested(args: Sequence[str], then_test: Callable[[Path], bool | None] = _then_test) -> bool:
    """Return whether a command is a test, or includes one, whose metrics are rows."""
    if args[0] == "test":
        return True
    tested = False
    for flag, value in options(args):
        if flag == "--config":
            found = then_test(Path(value))
            tested = tested if found is None else found
        elif flag == "--then_test":
            tested = value == "true"
    return tested


def options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Return options and their values, of both `--key value` and `--key=value`."""
    for arg, following in itertools.pairwise([*args, ""]):
        flag, equals, value = arg.partition("=")
        if flag.startswith("--"):
            yield flag, value if equals else following


def complete(study: Study, run: str, runs: Path) -> bool:
    """Return whether a run is finished, including the metrics that its refinement adds."""
    folder = runs / study.name / run
    return finished(folder) and (not study.refine or has_metrics(folder, _added(study, run)))


def _added(study: Study, run: str) -> set[str]:
    """Return the metrics that a refinement adds to a run of a study."""
    settings, seed = Refinement.of(study), int(run.rpartition("-s")[2])
    if run in settings.runs(seed):
        return {REPLACES}
    of_stage = {SCORED} if settings.continual else set[str]()
    if run == f"pretrain-{offline_of(study)}-s{seed}":
        return {HELD, *of_stage}
    return of_stage if run in refinements(study) else set()


class Plan:
    """The runs to make: the wanted ones and those whose checkpoints they need.

    Args:
        wanted: The runs whose rows are missing.
        rows: The existing rows, from whose durations those of the runs are estimated.
        runs: Folder of all runs.
        folder: Folder of the studies.
    """

    def __init__(self, wanted: Sequence[MissingRun], rows: Sequence[Row], runs: Path, folder: Path = FOLDER) -> None:
        self.runs, self.folder = runs, folder
        self.jobs: dict[tuple[str, str], Job] = {}
        self._sources: dict[str, tuple[Study, dict[str, list[str]]]] = {}
        self.durations = Durations(rows)
        for each in wanted:
            if each.study.refine and (part := alone(each.study, each.run)) is not None:
                self._refine(each, part)
            elif each.args is not None:
                self._add(each.study, each.run, each.args)

    def _refine(self, wanted: MissingRun, part: Study) -> None:
        from foundation.studies.continual import refine

        whole = (part.name, f"all of s{part.seeds[0]}")
        if whole in self.jobs or complete(wanted.study, wanted.run, self.runs):
            return
        key = whole if part.refine == wanted.study.refine else (part.name, wanted.run)
        self.jobs[key] = Job(*key, partial(refine, part, self.runs), self.durations.of(part.name, wanted.run))

    def _add(self, study: Study, run: str, args: list[str]) -> None:
        if (study.name, run) in self.jobs or finished(self.runs / study.name / run):
            return
        for name, other in _needed(args, self.runs):
            source, commands = self._source(study if name == study.name else name)
            if other not in commands:
                raise InputError(f"study {study.name}: needs the run {other} of {name}, which makes no such run")
            self._add(source, other, commands[other])
        make = command(self.runs / study.name / run, args)
        self.jobs[study.name, run] = Job(study.name, run, make, self.durations.of(study.name, run))

    def _source(self, study: Study | str) -> tuple[Study, dict[str, list[str]]]:
        """Return a study, given itself or by name, and the arguments of its runs."""
        name = study if isinstance(study, str) else study.name
        if name not in self._sources:
            source = Study.named(study, self.folder) if isinstance(study, str) else study
            self._sources[name] = source, dict(source.commands(self.runs))
        return self._sources[name]

    def summary(self) -> str:
        """Return the number of runs and their estimated duration, in words."""
        total = sum(job.seconds for job in self.jobs.values())
        guess = (
            f", {_minutes(self.durations.guessed)} of it a guess without rows of such runs"
            if self.durations.guessed
            else ""
        )
        return f"{_counted(len(self.jobs))}, about {_minutes(total)} on the hardware of the existing rows{guess}"


def _needed(args: Sequence[str], runs: Path) -> list[tuple[str, str]]:
    """Return study and id of each run whose files a command reads."""
    values = [value for flag, value in options(args) if flag != "--runs" and value.startswith(f"{runs}/")]
    parts = [Path(value).relative_to(runs).parts for value in values]
    return list(dict.fromkeys((part[0], part[1]) for part in parts if len(part) > 2))


def alone(study: Study, run: str) -> Study | None:
    """Return the smallest part of a refinement study that makes a run; None for a run without refinement.

    The model that is refined, and stages of continual refinement, need the whole study of their seed.
    """
    seed = int(run.rpartition("-s")[2])
    whole, named = replace(study, seeds=[seed]), Refinement.of(study).runs(seed)
    if run in named:
        name, count = named[run]
        methods = {name: {**study.refine["methods"][name], "counts": [count]}}
        sizes = [max(study.sizes)] if study.sizes else []
        return replace(whole, pretrain={TWIN: study.pretrain[TWIN]}, sizes=sizes, refine={"methods": methods})
    pretrained = run.startswith("pretrain-") and run != f"pretrain-{offline_of(study)}-s{seed}"
    return None if pretrained else whole


def _counted(runs: int) -> str:
    return f"{runs} run" if runs == 1 else f"{runs} runs"


def _minutes(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def reproduce(chosen: Sequence[Study], runs: Path, folder: Path = FOLDER) -> int:
    """Make the rows of studies that are missing in `results.csv`, and write RESULTS.md where there were any.

    Rows of runs that are finished in `runs` are read from there. Rows are written after every run, so that the same
    command resumes after an interruption.

    Returns:
        The exit status: that of the first run that failed, or 0.
    """
    rows = read(ROWS)
    wanted = missing(chosen, rows, runs)
    if not wanted:
        print(f"nothing is missing: {ROWS} has all rows of {', '.join(study.name for study in chosen)}")
        return 0
    plan = Plan(wanted, rows, runs, folder)
    names = list(dict.fromkeys(each.study.name for each in wanted))
    lacking = f"rows in {ROWS} are missing of {_counted(len(wanted))} of {', '.join(names)}"
    print(f"{lacking}: {plan.summary()}", flush=True)
    by_name = {(each.study.name, each.run): each for each in wanted}

    def take() -> None:
        there = [each for each in by_name.values() if complete(each.study, each.run, runs)]
        for study in {each.study.name: each.study for each in there}.values():
            names = {each.run for each in there if each.study.name == study.name}
            made = [row for row in collect(runs, study) if row.run in names]
            write(ROWS, with_rows(read(ROWS), made))
        for each in there:
            del by_name[each.study.name, each.run]

    take()
    try:
        return run_jobs(list(plan.jobs.values()), lambda _: take())
    finally:
        results.publish(read(ROWS), results.PAGE, folder)


def choose(paper: str, folder: Path = FOLDER) -> list[Study]:
    """Return the studies of a paper, or the one of that name; all for an empty string.

    Raises:
        InputError: There is no such paper or study.
    """
    every = [Study.load(file) for file in studies(folder)]
    chosen = [study for study in every if paper in ("", study.paper, study.name)]
    if not chosen:
        raise InputError(f"no paper and no study '{paper}': papers are {', '.join(filter(None, results.PAPERS))}")
    return chosen


def main() -> None:
    """Make every row that is missing in `experiments/results.csv`."""
    parser = argparse.ArgumentParser(prog="python -m foundation.studies.reproduce", description=main.__doc__)
    parser.add_argument("paper", nargs="?", default="", help="a paper, such as csiclip, or a study; by default all")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    options = parser.parse_args()
    sys.exit(exit_status(lambda: reproduce(choose(options.paper), options.runs)))


if __name__ == "__main__":
    main()
