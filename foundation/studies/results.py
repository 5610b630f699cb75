"""`make results`: writes all results to `experiments/results.csv` and RESULTS.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.errors import InputError
from foundation.runtime.runs import write_whole
from foundation.studies.matrix import STUDIES, matrix
from foundation.studies.rows import ROWS, Row, collect, read, write
from foundation.studies.study import FOLDER, Study, studies
from foundation.studies.tables import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: the page built from the rows
PAGE = Path("RESULTS.md")
#: titles of the papers by `Study.paper`, in the order of the page
PAPERS = {
    "csiclip": "CSI-CLIP",
    "envchannel": "Environment-channel",
    "contwin": "ConTwin",
    "csifeedback": "CSI feedback by a digital twin",
    "calibration": "Calibration of a digital twin",
    "": "Several papers",
}

#: introduction to the tables
_PREFACE = (
    "Built from `experiments/results.csv` by `make results`, without manual entries. `make reproduce` makes rows that",
    "are missing there. ± is the standard deviation over seeds; several areas of one city are averaged within each",
    "seed first, and `place` has their number. `labels` is the number of labelled training links. `checkpoint` is the",
    "checkpoint that was tested: `last` is the final one, `best of 4 by 186 links` the best of 4 on that number of",
    "labelled links of the validation side, in addition to `labels`. `split` is the rule that assigns users to sides:",
    "`spatial, guard 5 m` drops users of the train side within 5 m of a user of another side; rows with `spatial`",
    "alone have no guard band, which makes them optimistic. *Tuned on* names the data on which sizes, steps and rates",
    "were chosen.",
)


def publish(rows: list[Row], page: Path = PAGE, folder: Path = FOLDER) -> None:
    """Write RESULTS.md: the matrix of models by heads, then the tables and pictures of each paper.

    Args:
        rows: All rows of `results.csv`.
        page: The file to write.
        folder: Folder of the studies.
    """
    files = {file.stem: file for file in studies(folder)}
    loaded = {name: Study.load(file) for name, file in files.items()}
    papers = {name: study.paper for name, study in loaded.items() if study.paper in PAPERS}
    experiments = list(dict.fromkeys(row.experiment for row in rows))
    parts = ["# Results", "", *_PREFACE, ""]
    if made := [name for name in STUDIES if name in experiments]:
        commands = " and ".join(f"`make study STUDY={name}`" for name in made)
        comments = [line for name in made for line in [*_comment(files[name]), ""]]
        group = [row for row in rows if row.experiment in made]
        parts += ["## Every model by every head", "", *comments, f"{commands}: {_facts(group)}", "", matrix(rows), ""]
    for paper, title in PAPERS.items():
        names = [name for name in experiments if papers.get(name, "") == paper and name not in STUDIES]
        parts += [f"## {title}", ""] if names else []
        for name in names:
            group = [row for row in rows if row.experiment == name]
            comment = _comment(files[name]) if name in files else []
            command = f"`make study STUDY={name}`: {_facts(group)}"
            metric = loaded[name].metric if name in loaded else ""
            parts += [f"### {name}", "", *comment, "", command, "", table(group, metric), ""]
            parts += _picture(name, group, page) if paper == "csifeedback" else []
            parts += _prediction_pictures(rows, page) if name == "prediction" else []
    write_whole(page, "\n".join(parts))


def _picture(name: str, rows: list[Row], page: Path) -> list[str]:
    """Draw figure 4 of twin feedback to `docs/<study>.png` beside the page, and return the lines that show it."""
    from foundation.evaluation.feedback_curves import PUBLISHED, curves, figure4, published

    if not curves(rows):
        return []
    figure = figure4(rows, published() if PUBLISHED.is_file() else {})
    caption = "NMSE against the number of samples, ours over the authors' (figure 4 of twin feedback)"
    return _shown(figure, name, caption, page)


def _prediction_pictures(rows: list[Row], page: Path) -> list[str]:
    """Draw the studies of prediction to `docs/prediction_<name>.png`, and return the lines that show them."""
    from foundation.evaluation.prediction_curves import CAPTIONS, pictures

    return [line for name, figure in pictures(rows).items() for line in _shown(figure, name, CAPTIONS[name], page)]


def _shown(figure: Figure, name: str, caption: str, page: Path) -> list[str]:
    """Write a picture to `docs/<name>.png` beside the page, and return the lines that show it."""
    file = Path("docs", f"{name}.png")
    (page.parent / file).parent.mkdir(exist_ok=True)
    figure.savefig(page.parent / file, dpi=110, bbox_inches="tight", metadata={"Software": None})
    return [f"![{caption}]({file})", ""]


def _comment(file: Path) -> list[str]:
    """Return the lines of the header comment of a study, without `#` and without the command that runs it."""
    comment = [line.removeprefix("#").strip() for line in file.read_text().splitlines() if line.startswith("#")]
    return [line for line in comment if not line.startswith("Run:")]


def _facts(rows: list[Row]) -> str:
    """Return cities, training time, hardware and tuning data of rows, in words."""
    sides = ([row.train_cities for row in rows], [row.test_cities for row in rows])
    cities = " -> ".join(dict.fromkeys(", ".join(dict.fromkeys(side)) for side in sides))
    hours = sum(wall_s for *_, wall_s in {(row.experiment, row.run, row.wall_s) for row in rows}) / 3600
    tuned = "; ".join(dict.fromkeys(row.tuned_on or "not recorded" for row in rows))
    return f"{cities}; {hours:.1f} h of training in all on {rows[0].hardware}. Tuned on: {tuned}."


def main() -> None:
    """Write rows of studies to `experiments/results.csv`, replacing their earlier rows, and rebuild RESULTS.md."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("studies", nargs="*", help="studies to collect; without any, only RESULTS.md is rebuilt")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    try:
        made = [row for name in options.studies for row in collect(options.runs, Study.named(name))]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    rows = replaced(read(ROWS), made)
    write(ROWS, rows)
    publish(rows)


def replaced(rows: Iterable[Row], new: list[Row]) -> list[Row]:
    """Return rows in which those of each study of `new` replace its earlier ones."""
    names = {row.experiment for row in new}
    kept = list(rows)
    order = list(dict.fromkeys(row.experiment for row in [*kept, *new]))
    merged = [row for row in kept if row.experiment not in names] + new
    return sorted(merged, key=lambda row: order.index(row.experiment))


if __name__ == "__main__":
    main()
