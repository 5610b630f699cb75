"""`make refine`: refinement of a digital twin's model on the target world (twin feedback sections V-B, V-C)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.errors import InputError
from datamodules.files import write_whole
from foundation.runtime.runs import add_metrics, read_summary
from foundation.studies.run_list import finished, run_all

if TYPE_CHECKING:
    from torch import Tensor

    from foundation.studies.study import Study
    from foundation.studies.worlds import Worlds

#: the worlds of a refinement, in `experiments/data/twins_feedback.yaml`
TWIN, TARGET = "twin", "target"
#: metrics that a refinement adds to the summaries of its runs: NMSE [dB] on held-out target links, and whether the
#: refined model replaces the one before
HELD, REPLACES = "refine/held_nmse_db", "refine/replaces"
#: rules that choose links, see `foundation.adaptation.refine.Selection`
RULES = ("random", "threshold", "top")


@dataclass(frozen=True)
class Method:
    """A refinement method.

    Attributes:
        rule: Rule that chooses links of the target world, see `select`.
        counts: Numbers of chosen links; by default those of the study.
        rehearse: Whether training includes the links of the twin.
        mix: Share of the target's links in training, see `rehearsal`; by default that of the union. With 0
            training continues on the twin alone, a control for the effect of more training steps.
        threshold_db: NMSE threshold [dB] of the rule `threshold`.
        args: Further arguments of `lightning fit`.
    """

    rule: Any
    counts: tuple[int, ...] = ()
    rehearse: bool = False
    mix: float | None = None
    threshold_db: float | None = None
    args: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Method:
        """Build it from its entry in a study.

        Raises:
            ValueError: A value is out of range, or lacks another one.
            TypeError: A value is of another kind.
        """
        lists = {"counts": whole(settings.get("counts", [])), "args": tuple(settings.get("args", []))}
        method = cls(**{**settings, **lists})
        if method.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {method.rule}")
        if method.rule == "threshold" and (method.threshold_db is None or not math.isfinite(method.threshold_db)):
            raise ValueError(f"the rule threshold needs threshold_db, an NMSE [dB], got {method.threshold_db}")
        if method.mix is not None and not (method.rehearse and 0 <= method.mix <= 1):
            given = f"mix {method.mix}, rehearse {method.rehearse}"
            raise ValueError(f"mix must be in [0, 1] and needs rehearse, got {given}")
        return method


@dataclass(frozen=True)
class Refinement:
    """The refinement settings of a study.

    Attributes:
        methods: Refinement methods by name.
        counts: Numbers of chosen links of the target world, for methods without their own.
        continual: Settings of a sequence of worlds, see `continual.Continual`; empty for none.
    """

    methods: dict[str, Method]
    counts: tuple[int, ...] = ()
    continual: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, study: Study) -> Refinement:
        """Read it from a study.

        Raises:
            InputError: The settings of the study are invalid.
        """
        given = dict(study.refine)
        try:
            methods = {name: _method(name, method) for name, method in given.pop("methods").items()}
            made = cls(methods, whole(given.pop("counts", [])), given.pop("continual", {}))
            if given:
                raise TypeError(f"refine has the unknown key {next(iter(given))!r}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"study {study.name}: refine needs methods by name ({error})") from error
        if lacking := [name for name, method in methods.items() if not (method.counts or made.counts)]:
            raise InputError(f"study {study.name}: refine needs counts, or the method {lacking[0]} its own")
        if TWIN not in study.pretrain or not study.pretrain_per_seed:
            raise InputError(f"study {study.name}: a refinement pre-trains a variant {TWIN}, and that for every seed")
        return made

    def runs(self, seed: int) -> dict[str, tuple[str, int]]:
        """Return method and number of links by run id, in order."""
        named = ((name, count) for name, method in self.methods.items() for count in method.counts or self.counts)
        return {f"{name}-n{count}-s{seed}": (name, count) for name, count in named}


def whole(counts: Any) -> tuple[int, ...]:
    """Return a list of numbers of links as a tuple.

    Raises:
        ValueError: It is no list, or a number is no integer of at least 1.
    """
    if not isinstance(counts, list) or any(type(count) is not int or count < 1 for count in counts):
        raise ValueError(f"counts must be a list of whole numbers of 1 or more, got {counts}")
    return tuple(counts)


def _method(name: str, settings: Mapping[str, Any]) -> Method:
    try:
        return Method.of(settings)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{name}: {error}") from error


def offline_of(study: Study) -> str:
    """Return the name of the variant that is refined."""
    return f"{TWIN}-n{max(study.sizes)}" if study.sizes else TWIN


def refine_seed(study: Study, settings: Refinement, runs: Path, offline: Path, seed: int) -> int:
    """Refine the model of a seed by every method, and decide whether each result replaces it."""
    from foundation.adaptation.refine import replaces  # imported late, as the import is slow

    folder, named = runs / study.name, settings.runs(seed)
    if all(finished(folder / run_id) and has_metrics(folder / run_id, {REPLACES}) for run_id in named):
        return 0
    worlds = worlds_of(offline, (TWIN, TARGET))
    for run_id, (name, count) in named.items():
        method, file = settings.methods[name], links_of(folder, run_id)
        if not file.is_file():  # a stopped run keeps its links
            chosen = worlds.choose(offline, TARGET, method.rule, count, method.threshold_db, seed)
            worlds.save(file, np.concatenate([worlds.links(TWIN), chosen]) if method.rehearse else chosen)
    if status := run_all(study.name, commands(study, settings, runs, offline, seed), runs):
        return status
    _write_correlations(worlds, offline, folder / f"correlation-s{seed}.json", seed)
    before = worlds.errors(offline, "validation", TARGET)
    known = before.isfinite()  # a link without power has no error under any model
    if not known.any():
        raise InputError(f"study {study.name}: no validation link of {TARGET} has power to compare models on")
    add_metrics(offline / "summary.json", {HELD: in_db(before)})
    for run_id in named:
        held = worlds.errors(folder / run_id, "validation", TARGET)
        decided = {HELD: in_db(held), REPLACES: float(replaces(before[known], held[known]))}
        add_metrics(folder / run_id / "summary.json", decided)
    return 0


def commands(study: Study, settings: Refinement, runs: Path, offline: Path, seed: int) -> list[tuple[str, list[str]]]:
    """List (run id, arguments of `lightning`) of the refinements of the model of a seed, in order."""
    listed = []
    for run_id, (name, _) in settings.runs(seed).items():
        method = settings.methods[name]
        seen = (TWIN, TARGET) if method.rehearse else (TARGET,)
        listed.append((run_id, command(study, runs, method, offline, seen, seed, run_id)))
    return listed


def links_of(folder: Path, run_id: str) -> Path:
    """Return the file of the links that a run trains on."""
    return folder / f"{run_id}.links.json"


def to_use(folder: Path, offline: Path, named: Iterable[str]) -> str:
    """Say which model of a seed is to be used: the refined one of least NMSE, if any replaces the offline one.

    Args:
        folder: Folder of the runs of the study.
        offline: Folder of the run of the offline model.
        named: Ids of the refined runs.
    """
    runs = [offline, *(folder / run for run in named)]
    metrics = {run: read_summary(run / "summary.json")["metrics"] for run in runs}
    held = {run: of_run[HELD] for run, of_run in metrics.items() if of_run.get(REPLACES, 1.0)}
    best = min(held, key=lambda run: held[run])
    told = "no refined model is better" if best == offline else f"{held[offline]:.2f} dB before the refinement"
    checkpoint = best / "checkpoints" / "best.ckpt"
    return f"model to use: {checkpoint}, NMSE {held[best]:.2f} dB on held-out target links, {told}"


def worlds_of(offline: Path, names: tuple[str, ...]) -> Worlds:
    """Open worlds, the twin with the training links of the offline model."""
    from foundation.studies.worlds import Worlds

    return Worlds(offline, names, read_summary(offline / "summary.json")["n_train"])


def command(
    study: Study, runs: Path, method: Method, before: Path, seen: tuple[str, ...], seed: int, run_id: str
) -> list[str]:
    """Return the arguments of `lightning fit` for one refinement.

    Args:
        study: The study.
        runs: Folder of all runs.
        method: Refinement method.
        before: Folder of the run whose best checkpoint it starts from.
        seen: Worlds to train on; validation and test use the last one, which is new.
        seed: Seed.
        run_id: Name of the run.
    """
    # the arguments of the pre-training, whose worlds are overridden by the later ones
    twin = [arg.replace("{seed}", str(seed)) for arg in study.pretrain[TWIN]]
    given = ["fit", *twin, "--experiment", study.name, "--runs", str(runs), *study.args, *study.adapt]
    new = f"{{variant: {seen[-1]}}}"
    links, start = links_of(runs / study.name, run_id), before / "checkpoints" / "best.ckpt"
    data = ["--data.train_links", str(links), "--data.num_labels", "null"]
    data += ["--data.train_on", f"{{variant: [{', '.join(seen)}]}}", "--data.validate_on", new, "--data.test_on", new]
    if method.mix is not None:
        data = ["--data", "RehearsalDataModule", "--data.mix", str(method.mix), "--data.target", seen[-1], *data]
    given += [*data, "--model.start_from", str(start), *method.args]
    return [*given, "--seed_everything", str(seed), "--data.seed", str(seed), "--run_id", run_id]


def _write_correlations(worlds: Worlds, offline: Path, file: Path, seed: int) -> None:
    found = {name: values.sort().values for name, values in worlds.correlations(TARGET, seed).items()}
    rounded = {name: [round(float(v), 5) for v in values] for name, values in found.items()}
    write_whole(file, json.dumps(rounded) + "\n")
    means = {f"refine/correlation_{name}": float(values.mean()) for name, values in found.items()}
    add_metrics(offline / "summary.json", means)


def world_metric(world: str, what: str) -> str:
    """Return the name of the metric `nmse_db` or `forgotten_db` in a world of continual refinement."""
    return f"refine/{world}_{what}"


def has_metrics(run: Path, names: Collection[str]) -> bool:
    """Return whether the summary of a run has all these metrics."""
    known: dict[str, Any] = read_summary(run / "summary.json").get("metrics", {})
    return set(names) <= known.keys()


def in_db(error: Tensor) -> float:
    """Return the mean of the NMSE of links (n,), linear, in decibels, without links of zero power (NaN)."""
    return float(10 * error.nanmean().log10())
