"""`make dashboard`: a W&B workspace that compares the runs of a folder."""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datamodules.errors import InputError, needs
from datamodules.files import write_whole
from datamodules.progress import Progress
from datamodules.yaml_file import read_yaml
from foundation.runtime.runs import check_name
from foundation.runtime.stopping import exit_status
from foundation.runtime.tracking import better

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

#: project of `experiments/wandb.yaml`
PROJECT = "csi-foundation"
#: settings of paths, logging and hardware, which do not affect the trained model
_IDLE = re.compile(r"(trainer\.(logger|callbacks|enable_|default_root)|experiment|run_id|runs|ckpt_path|then_test)")
#: most axes of the parallel coordinates, to keep them legible
_AXES = 8


class Content(NamedTuple):
    """Content of a workspace for the runs of some experiments.

    Attributes:
        experiments: Names of the experiments.
        curves: Names of metrics logged over epochs, `val/...` and `train/...`.
        scores: Names of test metrics, `test/...`.
        pictures: Names of the figures.
        varied: Settings that differ between the runs, in dotted notation as in W&B.
    """

    experiments: list[str]
    curves: list[str]
    scores: list[str]
    pictures: list[str]
    varied: list[str]


def collect_runs(runs: Path, experiment: str | None) -> Content:
    """Collect metrics, figures and differing settings of the runs of one experiment, or of all.

    A run whose files are damaged is left out, with a printed line.

    Args:
        runs: Folder of all experiments.
        experiment: Name of one; None for all.

    Raises:
        InputError: There is no such experiment, or no run.
    """
    folders = sorted({file.parent for file in runs.glob(f"{experiment or '*'}/*/config.yaml")})
    if not folders:
        there = sorted({file.parents[1].name for file in runs.glob("*/*/config.yaml")})
        hint = f"; there are: {', '.join(there)}" if there else ": run `make demo` or `lightning fit` first"
        raise InputError(f"no run lies in {runs / (experiment or '*')}{hint}")
    curves: set[str] = set()
    scores: set[str] = set()
    pictures: set[str] = set()
    values: dict[str, set[str]] = defaultdict(set)
    read: list[Path] = []
    with Progress(len(folders), "reading", "run", leave=False, delay=1.0) as progress:
        for folder in folders:
            progress.update()
            try:
                logged, settings = _columns(folder / "metrics.csv"), read_yaml(folder / "config.yaml")
            except (OSError, ValueError, csv.Error) as error:
                print(f"skipped {folder}: {error}", file=sys.stderr)
                continue
            read.append(folder)
            curves |= {name for name in logged if name.startswith(("val/", "train/"))}
            scores |= {name for name in logged if name.startswith("test/")}
            pictures |= {f"plots/{file.stem}" for file in folder.glob("plots/*.png")}
            for key, value in _flat(settings):
                values[key].add(json.dumps(value, default=str))
    if not read:
        raise InputError(f"none of the {len(folders)} runs in {runs / (experiment or '*')} can be read")
    varied = [key for key, found in values.items() if len(found) > 1 and not _IDLE.match(key)]
    names = sorted({folder.parent.name for folder in read})
    return Content(names, sorted(curves), sorted(scores), sorted(pictures), varied)


def _columns(file: Path) -> list[str]:
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        return next(csv.reader(stream), [])


def _flat(value: Any, key: str = "") -> Iterable[tuple[str, Any]]:
    """Yield nested settings by dotted name; a list is one value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def workspace(shown: Content, entity: str, project: str = PROJECT) -> Workspace:
    """Return the workspace: curves, bars for each head, settings that differ between runs, and figures.

    Args:
        shown: Its content.
        entity: User or team on the server.
        project: Project.

    Raises:
        InputError: The extra `dashboard` is not installed.
    """
    with needs("dashboard", "make dashboard builds its workspace with wandb-workspaces"):
        import wandb_workspaces.expr as expr
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as ws
    wr: Any = panels  # Any: the module re-exports its names by star imports

    def curve(name: str) -> Any:
        over = "epoch" if name.startswith("val/") else "trainer/global_step"
        return wr.LinePlot(title=name, x=over, y=[name], max_runs_to_show=50)

    def bars(name: str) -> Any:
        return wr.BarPlot(title=name.removeprefix("test/"), metrics=[name], max_runs_to_show=100)

    by_head: dict[str, list[str]] = defaultdict(list)
    for name in shown.scores:
        by_head["/".join(name.split("/")[1:-1]) or "zero-shot and reconstruction"].append(name)
    goals = [name for name in shown.scores if better(name)] or [f"{n}.{w}" for n in shown.curves if (w := better(n))]
    columns = [wr.Config(key) for key in shown.varied[: _AXES - 1]]
    axes = [wr.ParallelCoordinatesPlotColumn(metric=each) for each in [*columns, *map(wr.SummaryMetric, goals[:1])]]
    sections = [
        ws.Section(name="Validation", panels=[curve(n) for n in shown.curves if n.startswith("val/")], is_open=True),
        *(ws.Section(name=f"Test: {head}", panels=[*map(bars, of)], is_open=True) for head, of in by_head.items()),
        ws.Section(name="Which run is better, and why", panels=[
            wr.RunComparer(diff_only="split"),
            *([wr.ParallelCoordinatesPlot(title="settings that differ", columns=axes)] if columns else []),
        ], is_open=True),
        ws.Section(name="Pictures", panels=[
            wr.MediaBrowser(title=name.removeprefix("plots/"), media_keys=[name]) for name in shown.pictures
        ], is_open=True),
        ws.Section(name="Embeddings", panels=[wr.WeavePanelSummaryTable(table_name="embeddings")] if by_head else []),
        ws.Section(name="Training", panels=[curve(n) for n in shown.curves if n.startswith("train/")]),
    ]  # fmt: skip
    one = len(shown.experiments) == 1
    runset = ws.RunsetSettings(
        filters=expr.And(expr.Metric("Group") == shown.experiments[0]) if one else "",
        groupby=[] if one else [expr.Metric("Group"), expr.Metric("JobType")],
        pinned_columns=[f"summary:{name}" for name in goals[:4]],
    )
    name = f"csi-foundation: {shown.experiments[0] if one else 'all experiments'}"
    settings = ws.WorkspaceSettings(max_runs=50)
    kept = [section for section in sections if section.panels]
    return ws.Workspace(
        entity=entity, project=project, name=name, sections=kept, settings=settings, runset_settings=runset
    )


def definition(space: Workspace) -> str:
    """Return a workspace as the JSON that the server stores."""
    return str(space._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2))


def publish(runs: Path, experiment: str | None, entity: str | None, project: str) -> str:
    """Save the workspace on the server, or its definition in a file without a server, and return the next step.

    Args:
        runs: Folder of all experiments.
        experiment: Name of one; None for all.
        entity: User or team on the server; by default the owner of the API key.
        project: Project.

    Raises:
        InputError: There is no run.
    """
    from foundation.runtime.loggers import offline_reason

    shown = collect_runs(runs, experiment)
    print("building the workspace", flush=True)
    reason = offline_reason()
    if not reason:
        import wandb

        try:
            space: Any = workspace(shown, entity or str(wandb.Api().default_entity), project)
            return f"workspace: {space.save().url}"
        except (wandb.errors.Error, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
    file = runs / (experiment or "") / "dashboard.json"
    write_whole(file, definition(workspace(shown, entity or "", project)) + "\n")
    where = f"{runs}/{experiment or '*'}/*/wandb/offline-run-*"
    logged = any(runs.glob(f"{experiment or '*'}/*/wandb/offline-run-*"))
    records = f"`wandb sync {where}`" if logged else "add `--config experiments/wandb.yaml` to runs, `wandb sync` them"
    return f"workspace: {file} ({reason}); to open it: `wandb login`, {records}, then the same command again"


def main(args: Sequence[str] | None = None) -> int:
    """Compare the runs of one experiment, or of all, in a workspace of Weights & Biases."""
    parser = argparse.ArgumentParser(prog="make dashboard", description=main.__doc__)
    parser.add_argument("experiment", nargs="?", help="name of an experiment in the folder of runs [all]")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--entity", help="user or team on the server [that of the key]")
    parser.add_argument("--project", default=PROJECT, help="project of experiments/wandb.yaml")
    given = parser.parse_args(args)
    print("loading wandb", flush=True)

    def work() -> None:
        check_name("experiment", given.experiment or None)
        print(publish(given.runs, given.experiment or None, given.entity, given.project))

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
