"""`make results`: writes all results to `experiments/results.csv` and RESULTS.md."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.errors import InputError
from datamodules.files import write_whole
from foundation.runtime.stopping import exit_status
from foundation.studies.continual import refinements
from foundation.studies.matrix import STUDIES, matrix
from foundation.studies.rows import ROWS, Row, collect, read, with_rows, write
from foundation.studies.study import FOLDER, Study, studies
from foundation.studies.tables import ruled, table

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
    "are missing there. Above the tables of a study its variants are described, the first column; docs has [models and",
    "tasks](docs/models.md), and [splits, metrics and controls](docs/protocols.md). All data are simulated.",
)
#: meaning of what all tables have
_COMMON = {
    "`mode`": "what was trained: `finetune` encoder and head, `probe` the head on a frozen encoder, `scratch` both "
    "from random weights, `control` a head on an encoder without training, or nothing, `pretrain` the whole model, "
    "`zeroshot` nothing after pre-training",
    "`labels`": "number of training links, labelled if the task has labels; of a zero-shot test those of its "
    "pre-training",
    "±, `seeds`": "standard deviation over seeds, which draw weights and labelled links on one split, and their "
    "number; several areas of one city are averaged within each seed first, and `place` has their number",
    "`split`": "rule that assigns users to sides: `spatial, guard 5 m` drops users of the train side within 5 m of a "
    "user of another side; `spatial` alone has no guard band, and `random` puts test users of a map beside training "
    "users, which makes both optimistic",
    "`checkpoint`": "checkpoint that was tested: `last` is the final one, `best of 4 by 186 links` the best of 4 on "
    "that number of labelled links of the validation side, in addition to `labels`",
    "*italics*": "references on the same test links",
    "training": "duration for the rows of the tables; a pre-training without a row of its own is not counted",
    "tuned on": "data on which sizes, steps and rates were chosen",
}
#: meaning of metrics, by the name or a part of it
_METRICS = {
    "accuracy": "share of links of the right class",
    "balanced_accuracy": "mean over classes of the share of their links that are found",
    "f1": "mean of F1 over classes, 0 to 1",
    "top1, top3, top5": "share of links whose best beam is the first, or among the first 3 or 5, of the prediction",
    "gain_db": "power of the chosen beam over that of the best one",
    "se_ratio": "spectral efficiency of the chosen beam over that of the best one; in CSI feedback over that with "
    "perfect CSI",
    "mean_m, median_m, cdf90_m": "horizontal positioning error: mean, median and 90th percentile",
    "nmse_db": "error power over power of the true channel of a link, mean over links; 0 dB is the NMSE of zeros",
    "nmse_antenna_db": "the same for each antenna and step ahead over subcarriers, mean over all, as in CSI-4CAST",
    "csi_nmse_db": "NMSE over all delays of the channel, of which a feedback network keeps the first",
    "cosine": "similarity of reconstructed and true channel, 0 to 1; `p10` is its 10th percentile, `los` and `nlos` "
    "are of users with and without line of sight",
    "rate, perfect_rate": "achievable rate [bit/s/Hz] by the reconstructed channel and by the true one, at an SNR of "
    "one antenna of 10 dB in CSI feedback and 20 dB in calibration",
    "rate_loss": "rate lost by the choice of beam [bit/s/Hz], at an SNR of 10 dB of the best one",
    "hit_rate": "share of links whose best codeword is among those that are sent",
    "kept_energy": "share of the channel's power in the delays that the code describes",
    "snr_db, fd_t": "SNR of the observed past; Doppler shift times interval, its mean and largest value (`fd_t_max`)",
    "macs, cpu_ms": "multiply-adds of matrix products and convolutions, and CPU time [ms], for one link",
    "match": "share of links whose environment is found among those of their base station (`user`) or their area",
    "scale, map": "zero-shot tasks: the true scale of a map among three, the true map beside one with a building moved",
    "chance": "the same by guessing; in CSI feedback the NMSE between unrelated channels",
    "pca, pursuit": "references of CSI feedback: principal components and matching pursuit with as many numbers",
    "hold, zero": "references of prediction: the last snapshot, and zeros",
    "ar1, kalman": "the last snapshot times one coefficient for all links, and the Kalman filter of that model",
    "wiener": "one linear filter for all links, fitted to the train side",
    "link_ar, pad, pad_vector": "an autoregression of each link, one of each angle-delay bin of it (PAD), and PAD by "
    "vector Prony",
    "limit, limit_bin": "linear MMSE predictors that know the rays of a link, from the past of all bins or of a bin "
    "alone",
    "held_nmse_db, replaces": "NMSE on held-out links of the target; share of seeds that keep the refined model",
    "forgotten_db": "increase of the NMSE in a world over the lowest of earlier stages",
    "correlation": "largest correlation of target links with links of the twin (twin feedback eq 14), mean over "
    "those of the largest NMSE or random ones",
}


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
    parts = ["# Results", "", *legend({row.metric for row in rows})]
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
            parts += _sweep(name, group, page) if paper == "calibration" else []
            parts += _prediction_pictures(rows, page) if name == "prediction" else []
    write_whole(page, "\n".join(parts))


def legend(metrics: set[str]) -> list[str]:
    """Return the lines that explain the tables, without metrics that there are none of.

    Args:
        metrics: Names of the metrics of all rows.
    """
    parts = {part for metric in metrics for part in _parts(metric)}
    known = {names: meaning for names, meaning in _METRICS.items() if parts & set(names.split(", "))}
    lines = [[", ".join(f"`{name}`" for name in names.split(", ")), meaning] for names, meaning in known.items()]
    explained = [ruled([["metric", "meaning"], *lines]), ""] if lines else []
    return [*_PREFACE, "", ruled([["everywhere", "meaning"], *map(list, _COMMON.items())]), "", *explained]


def _parts(metric: str) -> Iterator[str]:
    """Yield all runs of successive words of the name of a metric, such as `cosine` of `grid_cosine_los`."""
    words = metric.split("_")
    for start, end in itertools.combinations(range(len(words) + 1), 2):
        yield "_".join(words[start:end])


def _picture(name: str, rows: list[Row], page: Path) -> list[str]:
    """Draw figure 4 of twin feedback to `docs/<study>.png` beside the page, and return the lines that show it."""
    from foundation.evaluation.feedback_curves import PUBLISHED, curves, figure4, published

    if not curves(rows):
        return []
    figure = figure4(rows, published() if PUBLISHED.is_file() else {})
    caption = "NMSE against the number of samples, ours over the authors' (figure 4 of twin feedback)"
    return _shown(figure, name, caption, page)


def _sweep(name: str, rows: list[Row], page: Path) -> list[str]:
    """Draw the number of codewords of twin calibration to `docs/<study>.png`, and return the lines that show it."""
    from foundation.evaluation.calibration_curves import plot_sweep, swept

    caption = "Cosine similarity and hit rate over the number of codewords that are sent, means over seeds"
    found = swept(rows)
    return _shown(plot_sweep(found), name, caption, page) if found else []


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
    # a model that is tested on several data has a row for each, all with the time of its one training
    trainings = {(row.experiment, row.variant, row.head, row.mode, row.seed, row.wall_s) for row in rows}
    seconds = sum(wall_s for *_, wall_s in trainings)
    duration = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
    hardware = " and ".join(dict.fromkeys(row.hardware.replace("1 cores ", "1 core ") for row in rows))
    tuned = "; ".join(dict.fromkeys(row.tuned_on or "not recorded" for row in rows))
    return f"{cities}; {duration} of training on {hardware}. Tuned on: {tuned}."


def main() -> None:
    """Write rows of all runs of studies to `experiments/results.csv`, and rebuild RESULTS.md."""
    parser = argparse.ArgumentParser(prog="python -m foundation.studies.results", description=main.__doc__)
    parser.add_argument("studies", nargs="*", help="studies to collect; without any, only RESULTS.md is rebuilt")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()

    def work() -> None:
        rows = read(ROWS)
        for study in map(Study.named, options.studies):
            if not (new := collect(options.runs, study)):
                raise InputError(
                    f"no finished run in {options.runs / study.name}: make study STUDY={study.name} comes first"
                )
            rows = updated(rows, new, study)
        write(ROWS, rows)
        publish(rows)

    sys.exit(exit_status(work))


def updated(rows: Iterable[Row], new: list[Row], study: Study) -> list[Row]:
    """Return rows with `new` ones of a study, without its earlier rows of those runs and of runs that it no longer has.

    Rows of its other runs stay, so that the folder of runs does not have to hold all of them.
    """
    runs = {*(run for run, _ in study.commands(Path("runs"))), *refinements(study)}
    return with_rows([row for row in rows if row.experiment != study.name or row.run in runs], new)


if __name__ == "__main__":
    main()
