"""`make refine`: a model of a digital twin meets the real world in three phases (twin feedback sections V-B, V-C)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import InputError
from foundation.adaptation.refine import replaces, select
from foundation.evaluation.twin_pictures import markdown
from foundation.runtime.runs import read_summary
from foundation.studies.run_list import finished, run_all

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from foundation.studies.study import Study

#: the authors' results, drawn beside ours
PUBLISHED = Path("experiments/published/twin_feedback.csv")
#: links scored at once
_CHUNK = 256
#: the worlds of a refinement, in `experiments/data/twins_feedback.yaml`
_BOTH = ["--data.train_on", "{variant: [twin, target]}"]


@dataclass(frozen=True)
class Way:
    """How a model is refined.

    Attributes:
        rule: Which links of the target world are chosen, see `select`.
        rehearse: Whether training goes over the links of the twin as well.
        mix: Share of the target's links in training, see `rehearsal`; by default that of the union.
        threshold_db: For the rule `threshold`.
        args: Further arguments of `lightning fit`.
    """

    rule: Any
    rehearse: bool = False
    mix: float | None = None
    threshold_db: float | None = None
    args: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """A refined model, or the offline one.

    Attributes:
        way: Name of the way; `twin` for the offline model.
        count: Chosen links of the target world.
        test_db: NMSE on test links of the target world [dB].
        held_db: NMSE on its held-out links, which decide [dB].
        replaces: Whether it takes the place of the offline model.
    """

    way: str
    count: int
    test_db: float
    held_db: float
    replaces: bool


def refine(study: Study, runs: Path) -> int:
    """Choose links, refine the twin's model in every way, and keep it where that made nothing better.

    The study pre-trains one variant, `twin`, for every seed. The links chosen stand in `<run id>.links.json` beside the
    runs, what replaced what in `refinement.json`, and figure 4 in `plots/figure4.png`.

    Returns:
        The exit status: that of the first run that failed, or 0.

    Raises:
        InputError: The study says otherwise.
    """
    counts, ways = _settings(study)
    folder, results = runs / study.name, []
    for seed in study.seeds:
        offline = folder / f"pretrain-twin-s{seed}"
        names = {(name, count): f"{name}-n{count}-s{seed}" for name in ways for count in counts}
        record = folder / f"pretrain-twin-s{seed}" / "refinement.json"
        if not (record.is_file() and all(finished(folder / run_id) for run_id in names.values())):
            world = _World(study, runs, offline, seed)
            for (name, count), run_id in names.items():
                world.choose(ways[name], count, folder / f"{run_id}.links.json", seed)
            commands = [
                (run_id, _command(study, runs, ways[name], offline, folder / f"{run_id}.links.json", seed, run_id))
                for (name, _), run_id in names.items()
            ]
            if status := run_all(study.name, commands, runs):
                return status
            held = {run_id: world.errors(folder / run_id, "validation") for run_id in names.values()}
            before = world.errors(offline, "validation")
            decided = {
                run_id: {"held_nmse_db": _db(error), "replaces": replaces(before, error)}
                for run_id, error in held.items()
            }
            _write(record, {offline.name: {"held_nmse_db": _db(before), "replaces": False}, **decided})
        told = json.loads(record.read_text())
        entries = {("twin", 0): offline.name, **names}
        results += [Result(*key, _tested(folder / run_id), *told[run_id].values()) for key, run_id in entries.items()]
    print(f"\n{result_table(results)}")
    picture = folder / "plots" / "figure4.png"
    picture.parent.mkdir(exist_ok=True)
    figure4(results, published() if PUBLISHED.is_file() else {}).savefig(picture, dpi=150, bbox_inches="tight")
    print(f"picture: {picture}; which model is kept: {folder}/pretrain-twin-s*/refinement.json")
    return 0


def _settings(study: Study) -> tuple[list[int], dict[str, Way]]:
    """Return the counts and the ways of a study."""
    given = dict(study.refine)
    try:
        counts, ways = [int(count) for count in given.pop("counts")], given.pop("ways")
        known = {name: Way(**{**way, "args": tuple(way.get("args", ()))}) for name, way in ways.items()}
        if given:
            raise TypeError(f"refine has the unknown key {next(iter(given))!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"study {study.name}: refine needs counts, and ways by name ({error})") from error
    if list(study.pretrain) != ["twin"] or not study.pretrain_per_seed:
        raise InputError(f"study {study.name}: a refinement pre-trains one variant, twin, and that for every seed")
    return counts, known


def _command(study: Study, runs: Path, way: Way, offline: Path, links: Path, seed: int, run_id: str) -> list[str]:
    """Return the arguments of `lightning fit` for one refinement."""
    # the arguments of the pre-training but for its own worlds, which come after and overrule them
    twin = [arg.replace("{seed}", str(seed)) for arg in study.pretrain["twin"]]
    start = ["fit", *twin, "--experiment", study.name, "--runs", str(runs), *study.args, *study.adapt]
    data = ["--data.train_links", str(links), "--data.num_labels", "null", "--data.validate_on", "{variant: target}"]
    worlds = _BOTH if way.rehearse else ["--data.train_on", "{variant: target}"]
    if way.mix is not None:
        data = ["--data", "RehearsalDataModule", "--data.mix", str(way.mix), *data]
    start += [*data, *worlds, "--model.start_from", str(offline / "checkpoints" / "best.ckpt"), *way.args]
    drawn = ["--seed_everything", str(seed), "--data.seed", str(seed)]
    return [*start, *drawn, "--run_id", run_id]


class _World:
    """The links of both worlds, and the errors of models on them."""

    def __init__(self, study: Study, runs: Path, offline: Path, seed: int) -> None:
        from foundation.cli import run

        args = ["validate", "--config", str(offline / "config.yaml"), "--ckpt_path", "best", *_BOTH]
        args += ["--data.validate_on", "{variant: target}", "--trainer.enable_progress_bar", "false"]
        commands = run([*args, "--trainer.enable_model_summary", "false"])
        self.model, self.data = commands.model, commands.datamodule
        side = self.data.sides["train"]
        from foundation.adaptation.rehearsal import in_world

        is_target = in_world(side, "target")
        self.twin, self.target = side.links[~is_target], side.links[is_target]
        self._offline = offline
        self._error: Tensor | None = None
        self.positions = np.flatnonzero(is_target)

    def errors(self, run: Path, side: str, positions: Any = None) -> Tensor:
        """Return the NMSE of links of a side under the best checkpoint of a run, linear, shape (n,)."""
        from foundation.checkpoint import read_checkpoint

        self.model.load_state_dict(read_checkpoint(run / "checkpoints" / "best.ckpt")["state_dict"])
        self.model.eval()
        return torch.cat(list(self._errors(side, positions)))

    @torch.no_grad()
    def _errors(self, side: str, positions: Any) -> Iterator[Tensor]:
        dataset = self.data.sides[side]
        rows = np.arange(len(dataset)) if positions is None else positions
        for start in range(0, len(rows), _CHUNK):
            batch = self.data.finish(dataset.__getitems__(rows[start : start + _CHUNK].tolist()))
            yield self.model.predict_step(batch, 0)["nmse"]

    def choose(self, way: Way, count: int, file: Path, seed: int) -> None:
        """Write which links to refine with; a file that is there already stays."""
        from datamodules.sites.link_file import save_links

        if file.is_file():
            return
        if self._error is None:
            self._error = self.errors(self._offline, "train", self.positions)
        chosen = self.target[select(self._error, way.rule, count, way.threshold_db, seed).numpy()]
        file.parent.mkdir(parents=True, exist_ok=True)
        links = np.concatenate([self.twin, chosen]) if way.rehearse else chosen
        save_links(file, self.data.sides["train"].sites, links)


def result_table(results: list[Result]) -> str:
    """Return a table, a line for each way and count: NMSE and how many of the seeds replaced the offline model."""
    lines = [["refined by", "target links", "NMSE, test [dB]", "NMSE, held out [dB]", "replaces the twin's model"]]
    for way, count in dict.fromkeys((result.way, result.count) for result in results):
        group = [result for result in results if (result.way, result.count) == (way, count)]
        test, held = ([getattr(result, key) for result in group] for key in ("test_db", "held_db"))
        kept = f"{sum(result.replaces for result in group)} of {len(group)}" if count else ""
        lines.append([way if count else "nothing (twin only)", str(count), _cell(test), _cell(held), kept])
    return markdown(lines)


def published(file: Path = PUBLISHED) -> dict[str, list[float]]:
    """Read the authors' curves: `samples`, and NMSE [dB] by name."""
    lines = [line.split(";") for line in file.read_text().splitlines() if not line.startswith("#")]
    return {name: [float(value) for value in values] for name, *values in zip(*lines, strict=True)}


def figure4(results: list[Result], theirs: dict[str, list[float]]) -> Figure:
    """Draw NMSE against the number of target links, ours over the authors' (twin feedback figure 4).

    Args:
        results: What was reached.
        theirs: What `published` returns; may be empty.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.6), layout="constrained", dpi=120)
    axes = figure.subplots()
    for number, name in enumerate(name for name in theirs if name != "samples"):
        axes.plot(theirs["samples"], theirs[name], ":", color=f"C{number}", linewidth=1.2, label=f"{name} [authors]")
    offline = [result.test_db for result in results if not result.count]
    axes.axhline(float(np.mean(offline)), color="black", linewidth=1.0, label="twin only, ours")
    for number, way in enumerate(dict.fromkeys(result.way for result in results if result.count)):
        group = [result for result in results if result.way == way]
        counts = sorted({result.count for result in group})
        means = [float(np.mean([r.test_db for r in group if r.count == count])) for count in counts]
        axes.plot(counts, means, "o-", color=f"C{number + 3}", label=f"{way.replace('_', ' ')}, ours")
    axes.set(xscale="log", xlabel="samples of the target world", ylabel="NMSE on the target world [dB]")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize="x-small", ncols=3)
    return figure


def _tested(run: Path) -> float:
    return float(read_summary(run / "summary.json")["metrics"]["test/nmse_db"])


def _db(error: Tensor) -> float:
    return float(10 * error.mean().log10())


def _cell(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def _write(file: Path, content: dict[str, Any]) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(file)
