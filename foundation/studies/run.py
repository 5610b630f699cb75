"""`make study`: make the unfinished runs of a study, and print its table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from foundation.runtime.stopping import exit_status
from foundation.studies.rows import collect
from foundation.studies.run_list import run_all
from foundation.studies.study import FOLDER, Study
from foundation.studies.tables import table


def run_study(study: Study, runs: Path) -> int:
    """Make the unfinished runs, print the table, and draw figures 4 and 5 of twin feedback for its studies.

    Returns:
        The exit status: that of the first run that failed, or 0.
    """
    if study.refine:
        from foundation.studies.continual import refine

        return refine(study, runs)
    status = run_all(study.name, study.commands(runs), runs)
    if not status:
        rows = collect(runs, study)
        print(table(rows, study.metric))
        if study.paper == "csifeedback":
            from foundation.evaluation.feedback_curves import draw

            for picture in draw(rows, runs / study.name):
                print(f"picture: {picture}")
    return status


def main() -> None:
    """Run a study."""
    parser = argparse.ArgumentParser(prog="python -m foundation.studies.run", description=main.__doc__)
    parser.add_argument("study", help=f"name of a YAML in {FOLDER}/ or below, or its path")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    options = parser.parse_args()

    def work() -> int:
        named = not options.study.endswith(".yaml")
        study = Study.named(options.study) if named else Study.load(Path(options.study))
        return run_study(study, options.runs)

    sys.exit(exit_status(work))


if __name__ == "__main__":
    main()
