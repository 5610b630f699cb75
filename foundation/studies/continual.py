"""Refinement studies, and continual refinement over several worlds with the forgetting of earlier ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datamodules.errors import InputError
from foundation.runtime.runs import add_metrics
from foundation.studies.refinement import (
    TWIN,
    Method,
    Refinement,
    command,
    commands,
    has_metrics,
    in_db,
    links_of,
    offline_of,
    refine_seed,
    to_use,
    whole,
    world_metric,
    worlds_of,
)
from foundation.studies.rows import collect
from foundation.studies.run_list import finished, run_all
from foundation.studies.tables import table

if TYPE_CHECKING:
    import torch

    from foundation.studies.study import Study

#: the metric that is added last to the runs of continual refinement, by which they are known to be complete
SCORED = world_metric(TWIN, "nmse_db")


@dataclass(frozen=True)
class Continual:
    """Refines the twin's model on one world after another, each time from the previous model.

    With rehearsal, training uses the twin's links and all links chosen so far, else the new links only. After every
    stage the model is tested in all worlds, `<world>_nmse_db`; `<world>_forgotten_db` is the NMSE of the last stage
    minus that of the best stage [dB].

    Attributes:
        study: The study.
        worlds: The worlds in order, by domain label `variant`.
        count: Number of links of each world that are fed back without compression.
        methods: Refinement methods by name.
    """

    study: Study
    worlds: tuple[str, ...]
    count: int
    methods: dict[str, Method]

    @classmethod
    def of(cls, study: Study, settings: Refinement) -> Continual:
        """Read it from a study, with the refinement methods of the study by name.

        Raises:
            InputError: The settings of the study are invalid.
        """
        given = dict(settings.continual)
        try:
            worlds, [count], names = given.pop("worlds"), whole([given.pop("count")]), given.pop("methods")
            if not isinstance(worlds, list):
                raise TypeError(f"worlds must be a list, got {worlds}")
            methods = {name: settings.methods[name] for name in names}
            if given or not worlds:
                raise TypeError(f"continual has the unknown key {next(iter(given))!r}" if given else "it has no world")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"study {study.name}: refine.continual needs worlds, a count, and methods of refine by name ({error})"
            ) from error
        return cls(study, tuple(worlds), count, methods)

    def run(self, runs: Path, offline: Path, seed: int) -> int:
        """Refine through all worlds by every method, and write the forgetting into the metrics of the runs.

        Returns:
            The exit status: that of the first run that failed, or 0.
        """
        import torch  # imported late, as the import is slow: the names of the runs are listed without it

        from foundation.adaptation.refine import forgotten

        folder = runs / self.study.name
        stages = {name: [folder / f"{name}-to-{world}-s{seed}" for world in self.worlds] for name in self.methods}
        if all(has_metrics(stage, {SCORED}) for of_method in stages.values() for stage in of_method):
            return 0
        worlds = worlds_of(offline, (TWIN, *self.worlds))
        for name, of_method in stages.items():
            method, before, learned = self.methods[name], offline, worlds.links(TWIN)
            for number, (world, stage) in enumerate(zip(self.worlds, of_method, strict=True)):
                file = links_of(folder, stage.name)
                if not file.is_file():  # a stopped run keeps its links
                    chosen = worlds.choose(before, world, method.rule, self.count, method.threshold_db, seed)
                    worlds.save(file, np.concatenate([learned, chosen]) if method.rehearse else chosen)
                seen = (TWIN, *self.worlds[: number + 1]) if method.rehearse else (world,)
                args = command(self.study, runs, method, before, seen, seed, stage.name)
                if status := run_all(self.study.name, [(stage.name, args)], runs):
                    return status
                before, learned = stage, worlds.read(file)
        names = (TWIN, *self.worlds)
        for of_method in stages.values():
            levels = torch.tensor(
                [[in_db(worlds.errors(run, "test", world)) for world in names] for run in (offline, *of_method)]
            )
            # before the others, by which a stage is known for scored
            add_metrics(of_method[-1] / "summary.json", _named("forgotten_db", names, forgotten(levels)))
            for run, values in zip((offline, *of_method), levels, strict=True):
                add_metrics(run / "summary.json", _named("nmse_db", names, values))
        return 0


def _named(metric: str, names: tuple[str, ...], values: torch.Tensor) -> dict[str, float]:
    return {world_metric(name, metric): float(value) for name, value in zip(names, values, strict=True)}


def refine(study: Study, runs: Path) -> int:
    """Pre-train, choose links, refine the twin's model by every method, and decide which results replace it.

    Seeds are processed one after another. With several sizes, the twin's model of the largest is refined. The chosen
    links are written to `<run id>.links.json` in the folder of the study. Of a refined run, `held_nmse_db` is the NMSE
    on held-out target links and `replaces` whether it is lower than that of the model before. Figure 4 is drawn from
    the results, figure 5 from `correlation-s<seed>.json`, whose means are in the metrics of the offline model.

    Returns:
        The exit status: that of the first run that failed, or 0.

    Raises:
        InputError: The settings of the study are invalid.
    """
    from foundation.dry_run import check_followers
    from foundation.evaluation.feedback_curves import draw

    settings = Refinement.of(study)
    continual = Continual.of(study, settings) if settings.continual else None
    folder = runs / study.name
    for seed in study.seeds:
        offline = folder / f"pretrain-{offline_of(study)}-s{seed}"
        pretraining = dataclasses.replace(study, seeds=[seed]).commands(runs)
        if seed == study.seeds[0] and not finished(offline):
            every = [*pretraining, *commands(study, settings, runs, offline, seed)]
            check_followers([(folder / run_id, args) for run_id, args in every])
        if status := run_all(study.name, pretraining, runs) or refine_seed(study, settings, runs, offline, seed):
            return status
        if continual is not None and (status := continual.run(runs, offline, seed)):
            return status
        print(f"\n{table(collect(runs, study))}")
        print(to_use(folder, offline, settings.runs(seed)))
        for picture in draw(collect(runs, study), folder):
            print(f"picture: {picture}")
    return 0


def refinements(study: Study) -> list[str]:
    """Return the ids of the runs in which a study refines its model, of all seeds."""
    if not study.refine:
        return []
    settings = Refinement.of(study)
    continual = Continual.of(study, settings) if settings.continual else None
    stages = (
        [] if continual is None else [f"{name}-to-{world}" for name in continual.methods for world in continual.worlds]
    )
    return [run for seed in study.seeds for run in (*settings.runs(seed), *(f"{stage}-s{seed}" for stage in stages))]
