"""Studies: many runs of the command line from one YAML, resumable, with a table at the end."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from foundation.evaluation.results import collect, table


@dataclass(frozen=True)
class Study:
    """What to run.

    Attributes:
        name: Name of the study, and of the experiment its runs belong to.
        seeds: Seeds of every adaptation run; each draws its own initial weights and label subset, on one split.
        tasks: Heads, by the name of their YAML in `experiments/finetune/`.
        pretrain: Per variant, the arguments of `lightning fit`.
        modes: Modes to run each variant's checkpoint in.
        baselines: Per name, arguments that make a run without pre-training.
        args: Arguments of every run.
        adapt: Arguments of every adaptation run.
    """

    name: str
    seeds: list[int]
    tasks: list[str]
    pretrain: dict[str, list[str]]
    modes: list[str] = field(default_factory=lambda: ["probe", "finetune"])
    baselines: dict[str, list[str]] = field(default_factory=dict)
    args: list[str] = field(default_factory=list)
    adapt: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, file: Path) -> Study:
        """Read a study; its name is the file's."""
        settings: dict[str, Any] = yaml.safe_load(file.read_text())
        return cls(name=file.stem, **settings)

    def commands(self, runs: Path) -> list[tuple[str, list[str]]]:
        """List (run id, arguments of `lightning`), in the order to run them."""
        common = ["--experiment", self.name, "--runs", str(runs), *self.args]
        commands = [(f"pretrain-{v}", ["fit", *args, *common]) for v, args in self.pretrain.items()]
        for task in self.tasks:
            for seed in self.seeds:
                start = ["fit", "--config", f"experiments/finetune/{task}.yaml", *common, *self.adapt]
                start += ["--seed_everything", str(seed), "--data.seed", str(seed)]
                for variant in self.pretrain:
                    checkpoint = runs / self.name / f"pretrain-{variant}" / "checkpoints" / "best.ckpt"
                    for mode in self.modes:
                        chosen = ["--model.mode", mode, "--model.checkpoint", str(checkpoint)]
                        commands.append((f"{variant}-{task}-{mode}-s{seed}", [*start, *chosen]))
                for name, args in self.baselines.items():
                    mode = args[args.index("--model.mode") + 1]
                    commands.append((f"{name}-{task}-{mode}-s{seed}", [*start, *args]))
        return [(run_id, [*args, "--run_id", run_id]) for run_id, args in commands]


def finished(folder: Path) -> bool:
    """Whether a run has come to its end: a pre-training fitted, an adaptation also tested."""
    file = folder / "summary.json"
    if not file.exists():
        return False
    summary = json.loads(file.read_text())
    return summary.get("mode") == "pretrain" or bool(summary.get("metrics"))


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
    sys.exit(run_study(Study.load(options.study), options.runs))


if __name__ == "__main__":
    main()
