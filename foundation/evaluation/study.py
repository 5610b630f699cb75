"""Studies: many runs of the command line from one YAML, resumable, with a table at the end."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path

from datamodules.errors import InputError
from datamodules.yaml_file import read_yaml
from foundation.evaluation.results import collect, table
from foundation.runtime.runs import read_summary


@dataclass(frozen=True)
class Study:
    """What to run.

    Attributes:
        name: Name of the study, and of the experiment its runs belong to.
        seeds: Seeds of every adaptation run; each draws its own initial weights and label subset, on one split.
        tasks: Heads, by the name of their YAML in `experiments/finetune/`.
        pretrain: Per variant, the arguments of `lightning fit`; with `pretrain_per_seed`, `{seed}` for the seed.
        modes: Modes to run each variant's checkpoint in.
        baselines: Per name, arguments that make a run to compare with, with `{seed}` for the seed.
        args: Arguments of every run.
        adapt: Arguments of every adaptation run.
        pretrain_per_seed: Whether to pre-train anew for every seed; else one pre-training serves them all.
        places: Per name, arguments that choose the data of an adaptation; every run is made on each.
        checkpoints: Per variant pre-trained by another study, the path of its checkpoint, with `{seed}` for the seed.
        zero_shot: Arguments of `lightning test`, run for every variant, place and seed, with `{run}` for the folder of
            the variant's pre-training; empty for none.
    """

    name: str
    seeds: list[int]
    tasks: list[str] = field(default_factory=list)
    pretrain: dict[str, list[str]] = field(default_factory=dict)
    modes: list[str] = field(default_factory=lambda: ["probe", "finetune"])
    baselines: dict[str, list[str]] = field(default_factory=dict)
    args: list[str] = field(default_factory=list)
    adapt: list[str] = field(default_factory=list)
    pretrain_per_seed: bool = False
    places: dict[str, list[str]] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)
    zero_shot: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, file: Path) -> Study:
        """Read a study; its name is the file's.

        Raises:
            InputError: There is no such file, or it is no study.
        """
        settings = read_yaml(file)
        known = [entry.name for entry in fields(cls) if entry.name != "name"]
        if unknown := [key for key in settings if key not in known]:
            raise InputError(f"{file}: unknown key '{unknown[0]}': must be one of {', '.join(known)}")
        if "seeds" not in settings:
            raise InputError(f"{file}: 'seeds' is missing")
        return cls(name=file.stem, **settings)

    def commands(self, runs: Path) -> list[tuple[str, list[str]]]:
        """List (run id, arguments of `lightning`), in the order to run them."""
        common = ["--experiment", self.name, "--runs", str(runs), *self.args]
        commands = []
        for seed in self.seeds if self.pretrain_per_seed else [None]:
            drawn = [] if seed is None else ["--seed_everything", str(seed), "--data.seed", str(seed)]
            for variant, args in self.pretrain.items():
                named = [arg.replace("{seed}", str(seed)) for arg in args] if drawn else args
                commands.append((_pretraining(variant, seed), ["fit", *named, *common, *drawn]))
        places = self.places or {"": []}
        for (place, data), seed in product(places.items(), self.seeds):
            for variant in self._variants if self.zero_shot else []:
                checkpoint = self._checkpoint(runs, variant, seed)
                start = ["test", *(arg.format(run=Path(checkpoint).parents[1]) for arg in self.zero_shot), *common]
                start += ["--ckpt_path", checkpoint, *data]
                commands.append((_name(variant, "", "zeroshot", place, seed), start))
        for task, (place, data), seed in product(self.tasks, places.items(), self.seeds):
            start = ["fit", "--config", f"experiments/finetune/{task}.yaml", *common, *self.adapt, *data]
            start += ["--seed_everything", str(seed), "--data.seed", str(seed)]
            for variant, mode in product(self._variants, self.modes):
                chosen = ["--model.mode", mode, "--model.checkpoint", self._checkpoint(runs, variant, seed)]
                commands.append((_name(variant, task, mode, place, seed), [*start, *chosen]))
            for name, args in self.baselines.items():
                mode = args[args.index("--model.mode") + 1]
                drawn = [arg.replace("{seed}", str(seed)) for arg in args]
                commands.append((_name(name, task, mode, place, seed), [*start, *drawn]))
        return [(run_id, [*args, "--run_id", run_id]) for run_id, args in commands]

    @property
    def _variants(self) -> list[str]:
        return [*self.pretrain, *self.checkpoints]

    def _checkpoint(self, runs: Path, variant: str, seed: int) -> str:
        if variant in self.checkpoints:
            return self.checkpoints[variant].format(seed=seed)
        run = _pretraining(variant, seed if self.pretrain_per_seed else None)
        return str(runs / self.name / run / "checkpoints" / "best.ckpt")


def _pretraining(variant: str, seed: int | None) -> str:
    return f"pretrain-{variant}" if seed is None else f"pretrain-{variant}-s{seed}"


def _name(variant: str, task: str, mode: str, place: str, seed: int) -> str:
    """Return the id of a run, from which `results.rows_of` takes the variant."""
    return "-".join(part for part in (variant, task, mode, f"@{place}" if place else "", f"s{seed}") if part)


def finished(folder: Path) -> bool:
    """Whether a run has come to its end: a pre-training fitted, and tested where it is to be; others tested."""
    summary = read_summary(folder / "summary.json")
    if summary.get("metrics"):
        return True
    config = folder / "config.yaml"
    awaits_test = config.is_file() and read_yaml(config).get("then_test")
    return summary.get("mode") == "pretrain" and not awaits_test


def run_study(study: Study, runs: Path) -> int:
    """Run what is not finished yet, each run going on where it was stopped, and print the table.

    Returns:
        The exit status: that of the first run that failed, or 0.
    """
    commands = study.commands(runs)
    todo = [(run_id, args) for run_id, args in commands if not finished(runs / study.name / run_id)]
    for number, (run_id, args) in enumerate(todo, 1):
        from foundation.cli import main  # not before there is something to run: it is slow to import

        print(f"[{number}/{len(todo)}] {study.name}/{run_id}", flush=True)
        started = time.monotonic()
        if (runs / study.name / run_id / "checkpoints" / "last.ckpt").exists():
            args = [*args, "--ckpt_path", "last"]
        status = main(args)
        if status:
            print("the study stops here; the same command goes on with this run", file=sys.stderr)
            return status
        print(f"    {time.monotonic() - started:.0f} s", flush=True)
    print(table(collect(runs, study.name)))
    return 0


def main() -> None:
    """Run a study."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("study", type=Path, help="a YAML of experiments/studies/")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    options = parser.parse_args()
    try:
        study = Study.load(options.study)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(run_study(study, options.runs))


if __name__ == "__main__":
    main()
