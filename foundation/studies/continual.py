"""A study of refinement, and refinement again and again: what was learned of earlier worlds must last."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from datamodules.errors import InputError
from foundation.adaptation.refine import forgotten
from foundation.evaluation.feedback_curves import PUBLISHED, figure4, figure5, published
from foundation.runtime.runs import add_metrics, read_summary
from foundation.studies.refinement import TWIN, Refinement, Way, command, in_db, offline_of, refine_seed, worlds_of
from foundation.studies.rows import collect
from foundation.studies.run_list import run_all
from foundation.studies.tables import table

if TYPE_CHECKING:
    from foundation.studies.study import Study


@dataclass(frozen=True)
class Continual:
    """The twin's model is refined by one world after another, each time from where it was.

    A way that rehearses trains over the twin's links and all links that were chosen so far, others over the new ones
    alone. After every stage the model is tested in all worlds, `<world>_nmse_db`; `<world>_forgotten_db` is what the
    last stage is worse by than the best one.

    Attributes:
        study: The study.
        worlds: The worlds to come, by domain label `variant`.
        count: Links of each that are fed back whole.
        ways: How the model is refined, by name.
    """

    study: Study
    worlds: tuple[str, ...]
    count: int
    ways: dict[str, Way]

    @classmethod
    def of(cls, study: Study, settings: Refinement) -> Continual:
        """Read it from a study, whose ways by those names it takes.

        Raises:
            InputError: The study says otherwise.
        """
        given = dict(settings.continual)
        try:
            worlds, count, names = tuple(given.pop("worlds")), int(given.pop("count")), given.pop("ways")
            ways = {name: settings.ways[name] for name in names}
            if given or not worlds:
                raise TypeError(f"continual has the unknown key {next(iter(given))!r}" if given else "it has no world")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"study {study.name}: refine.continual needs worlds, a count, and ways of refine by name ({error})"
            ) from error
        return cls(study, worlds, count, ways)

    def run(self, runs: Path, offline: Path, seed: int) -> int:
        """Refine through all worlds in every way, and write what is forgotten into the metrics of the runs.

        Returns:
            The exit status: that of the first run that failed, or 0.
        """
        folder = runs / self.study.name
        stages = {name: [folder / f"{name}-to-{world}-s{seed}" for world in self.worlds] for name in self.ways}
        if all(_scored(stage) for of_way in stages.values() for stage in of_way):
            return 0
        worlds = worlds_of(self.study, offline, (TWIN, *self.worlds))
        for name, of_way in stages.items():
            way, before, learned = self.ways[name], offline, worlds.links(TWIN)
            for number, (world, stage) in enumerate(zip(self.worlds, of_way, strict=True)):
                file = folder / f"{stage.name}.links.json"
                if not file.is_file():  # those of a run that was stopped stay
                    chosen = worlds.choose(before, world, way.rule, self.count, way.threshold_db, seed)
                    worlds.save(file, np.concatenate([learned, chosen]) if way.rehearse else chosen)
                seen = (TWIN, *self.worlds[: number + 1]) if way.rehearse else (world,)
                start = before / "checkpoints" / "best.ckpt"
                args = command(self.study, runs, way, start, file, seen, seed, stage.name)
                if status := run_all(self.study.name, [(stage.name, args)], runs):
                    return status
                before, learned = stage, worlds.read(file)
        names = (TWIN, *self.worlds)
        for of_way in stages.values():
            levels = torch.tensor(
                [[in_db(worlds.errors(run, "test", world)) for world in names] for run in (offline, *of_way)]
            )
            for run, values in zip((offline, *of_way), levels, strict=True):
                add_metrics(run / "summary.json", _named("nmse_db", names, values))
            add_metrics(of_way[-1] / "summary.json", _named("forgotten_db", names, forgotten(levels)))
        return 0


def _named(metric: str, names: tuple[str, ...], values: torch.Tensor) -> dict[str, float]:
    return {f"refine/{name}_{metric}": float(value) for name, value in zip(names, values, strict=True)}


def _scored(run: Path) -> bool:
    return f"refine/{TWIN}_nmse_db" in read_summary(run / "summary.json").get("metrics", {})


def refine(study: Study, runs: Path) -> int:
    """Pre-train, choose links, refine the twin's model in every way, and keep it where that made nothing better.

    All of a seed comes before the next one. With sizes, the twin's model of the largest is refined. The links chosen
    stand in `<run id>.links.json` beside the runs; `held_nmse_db` and `replaces` of a refined run say how it does on
    held-out target links and whether it takes the place of the model before. Figure 4 is drawn of the results, figure 5
    of `correlation-s<seed>.json`, whose means stand in the metrics of the offline model.

    Returns:
        The exit status: that of the first run that failed, or 0.

    Raises:
        InputError: The study says otherwise.
    """
    settings = Refinement.of(study)
    continual = Continual.of(study, settings) if settings.continual else None
    folder = runs / study.name
    for seed in study.seeds:
        offline = folder / f"pretrain-{offline_of(study)}-s{seed}"
        pretraining = dataclasses.replace(study, seeds=[seed]).commands(runs)
        if status := run_all(study.name, pretraining, runs) or refine_seed(study, settings, runs, offline, seed):
            return status
        if continual is not None and (status := continual.run(runs, offline, seed)):
            return status
        print(f"\n{table(collect(runs, study))}")
        for name, figure in {
            "figure4": figure4(collect(runs, study), published() if PUBLISHED.is_file() else {}),
            "figure5": figure5([json.loads(file.read_text()) for file in folder.glob("correlation-s*.json")]),
        }.items():
            picture = folder / "plots" / f"{name}.png"
            picture.parent.mkdir(exist_ok=True)
            figure.savefig(picture, dpi=150, bbox_inches="tight")
            print(f"picture: {picture}")
    return 0
