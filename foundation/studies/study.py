"""Studies: many runs of the command line from one YAML, resumable, with a table at the end."""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.yaml_file import read_yaml
from foundation.studies.results import collect, table
from foundation.studies.run_list import run_all


@dataclass(frozen=True)
class Study:
    """What to run.

    Attributes:
        name: Name of the study, and of the experiment its runs belong to.
        seeds: Seeds of every adaptation run; each draws its own initial weights and label subset, on one split.
        tasks: Heads, by the name of their YAML in `experiments/finetune/`.
        pretrain: Per variant, the arguments of `lightning fit`; with `pretrain_per_seed`, `{seed}` for the seed.
        sizes: Numbers of training links; every variant is pre-trained with each, as `<variant>-n<size>`.
        modes: Modes to run each variant's checkpoint in.
        baselines: Per name, arguments that make a run to compare with, with `{seed}` for the seed.
        args: Arguments of every run.
        adapt: Arguments of every adaptation run.
        pretrain_per_seed: Whether to pre-train anew for every seed; else one pre-training serves them all.
        data: Per name, arguments that choose the data of an adaptation; every run is made on each.
        checkpoints: Per variant pre-trained by another study, the path of its checkpoint, with `{seed}` for the seed.
        zero_shot: Arguments of `lightning test`, run for every variant, data and seed, with `{run}` for the folder of
            the variant's pre-training; empty for none.
        refine: How the pre-trained variant is refined in another world, see `refinement.Refinement`; empty for not.
    """

    name: str
    seeds: list[int]
    tasks: list[str] = field(default_factory=list)
    pretrain: dict[str, list[str]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    modes: list[str] = field(default_factory=lambda: ["probe", "finetune"])
    baselines: dict[str, list[str]] = field(default_factory=dict)
    args: list[str] = field(default_factory=list)
    adapt: list[str] = field(default_factory=list)
    pretrain_per_seed: bool = False
    data: dict[str, list[str]] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)
    zero_shot: list[str] = field(default_factory=list)
    refine: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path) -> Study:
        """Read a study; its name is the file's.

        Raises:
            InputError: There is no such file, or it is no study.
        """
        settings = read_yaml(file)
        if "places" in settings and "data" not in settings:
            warnings.warn(f"{file}: the key `places` is now called `data`: write data", FutureWarning, stacklevel=2)
            settings["data"] = settings.pop("places")
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
            for variant, args in self._pretrainings.items():
                named = [arg.replace("{seed}", str(seed)) for arg in args] if drawn else args
                commands.append((_pretraining(variant, seed), ["fit", *named, *common, *drawn]))
        by_name = self.data or {"": []}
        for (name, data), seed in product(by_name.items(), self.seeds):
            for variant in self._variants if self.zero_shot else []:
                checkpoint = self._checkpoint(runs, variant, seed)
                start = ["test", *(arg.format(run=Path(checkpoint).parents[1]) for arg in self.zero_shot), *common]
                start += ["--ckpt_path", checkpoint, *data]
                commands.append((_name(variant, "", "zeroshot", name, seed), start))
        for task, (name, data), seed in product(self.tasks, by_name.items(), self.seeds):
            start = ["fit", "--config", f"experiments/finetune/{task}.yaml", *common, *self.adapt, *data]
            start += ["--seed_everything", str(seed), "--data.seed", str(seed)]
            for variant, mode in product(self._variants, self.modes):
                chosen = ["--model.mode", mode, "--model.checkpoint", self._checkpoint(runs, variant, seed)]
                commands.append((_name(variant, task, mode, name, seed), [*start, *chosen]))
            for baseline, args in self.baselines.items():
                mode = args[args.index("--model.mode") + 1]
                drawn = [arg.replace("{seed}", str(seed)) for arg in args]
                commands.append((_name(baseline, task, mode, name, seed), [*start, *drawn]))
        return [(run_id, [*args, "--run_id", run_id]) for run_id, args in commands]

    @property
    def _pretrainings(self) -> dict[str, list[str]]:
        """Arguments of `lightning fit` by variant, one for each size."""
        if not self.sizes:
            return self.pretrain
        return {
            f"{variant}-n{size}": [*args, "--data.num_labels", str(size)]
            for (variant, args), size in product(self.pretrain.items(), self.sizes)
        }

    @property
    def _variants(self) -> list[str]:
        return [*self._pretrainings, *self.checkpoints]

    def _checkpoint(self, runs: Path, variant: str, seed: int) -> str:
        if variant in self.checkpoints:
            return self.checkpoints[variant].format(seed=seed)
        run = _pretraining(variant, seed if self.pretrain_per_seed else None)
        return str(runs / self.name / run / "checkpoints" / "best.ckpt")


def _pretraining(variant: str, seed: int | None) -> str:
    return f"pretrain-{variant}" if seed is None else f"pretrain-{variant}-s{seed}"


def _name(variant: str, task: str, mode: str, data: str, seed: int) -> str:
    """Return the id of a run, from which `results.rows_of` takes the variant."""
    return "-".join(part for part in (variant, task, mode, f"@{data}" if data else "", f"s{seed}") if part)


def run_study(study: Study, runs: Path) -> int:
    """Run what is not finished yet, and print the table.

    Returns:
        The exit status: that of the first run that failed, or 0.
    """
    status = run_all(study.name, study.commands(runs), runs)
    if not status and study.refine:
        from foundation.studies.refinement import refine

        return refine(study, runs)
    if not status:
        print(table(collect(runs, study.name)))
    return status


def main() -> None:
    """Run a study."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("study", type=Path, help="a YAML of experiments/studies/")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    options = parser.parse_args()
    try:
        status = run_study(Study.load(options.study), options.runs)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)


if __name__ == "__main__":
    main()
