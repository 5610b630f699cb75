"""Studies: sets of command-line runs defined by one YAML."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from datamodules.errors import InputError
from datamodules.yaml_file import read_yaml
from foundation.runtime.runs import check_name

#: folder of the studies, which may be in folders below it
FOLDER = Path("experiments/studies")


@dataclass(frozen=True)
class Study:
    """Definition of a study.

    Attributes:
        name: Name of the study, and of the experiment of its runs.
        seeds: Seeds of every adaptation run, which draw initial weights and labelled links; the split is fixed.
        tasks: Heads, by the name of their YAML in `experiments/finetune/`.
        pretrain: Per variant, the arguments of `lightning fit`; with `pretrain_per_seed`, `{seed}` for the seed.
        pretrain_on: Per name of `data`, arguments that choose the pre-training data; empty if one pre-training is used
            for all data.
        sizes: Numbers of training links; every variant is pre-trained with each, as `<variant>-n<size>`.
        available: Per variant with fewer links than the largest of `sizes`, its number of links, used instead.
        modes: Modes of adaptation of each variant's checkpoint.
        baselines: Per name, arguments of a run to compare with, with `{seed}` for the seed.
        only: Per variant or baseline, its tasks, if not all.
        args: Arguments of every run.
        adapt: Arguments of every adaptation run.
        pretrain_per_seed: Whether to pre-train once for every seed; else one pre-training is used for all seeds.
        data: Per name, arguments that choose the data of an adaptation; every run is made on each, with separate lines
            in tables.
        areas: Per name, arguments that choose an area, likewise; tables show the mean over areas.
        checkpoints: Per variant pre-trained by another study, the path of its checkpoint, with `{seed}` for the seed
            and `{data}` for the name of the data.
        zero_shot: Arguments of `lightning test`, run for every variant, data and seed, with `{run}` for the folder of
            the variant's pre-training; empty for none.
        refine: Settings of the refinement of the variant `twin`, see `refinement.Refinement`; empty for none.
        paper: The paper whose tables the study reproduces, such as `csiclip`, see `results.PAPERS`; empty for several.
        tuned_on: The data on which sizes, steps and learning rates were chosen, such as `areas 207-223`.
        metric: The one metric of its table, with a line for each variant and reference and a column for each of `data`;
            empty for a table of all metrics with a line for each variant.
    """

    name: str
    seeds: list[int]
    tasks: list[str] = field(default_factory=list)
    pretrain: dict[str, list[str]] = field(default_factory=dict)
    pretrain_on: dict[str, list[str]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    available: dict[str, int] = field(default_factory=dict)
    modes: list[str] = field(default_factory=lambda: ["probe", "finetune"])
    baselines: dict[str, list[str]] = field(default_factory=dict)
    only: dict[str, list[str]] = field(default_factory=dict)
    args: list[str] = field(default_factory=list)
    adapt: list[str] = field(default_factory=list)
    pretrain_per_seed: bool = False
    data: dict[str, list[str]] = field(default_factory=dict)
    areas: dict[str, list[str]] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)
    zero_shot: list[str] = field(default_factory=list)
    refine: dict[str, Any] = field(default_factory=dict)
    paper: str = ""
    tuned_on: str = ""
    metric: str = ""

    @classmethod
    def load(cls, file: Path) -> Study:
        """Read a study, named after its file.

        Raises:
            InputError: There is no such file, or its content is invalid.
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
        for key, kind in get_type_hints(cls).items():
            if key in settings and not _fits(settings[key], kind):
                raise InputError(f"{file}: '{key}' must be {_words(kind)}, got {settings[key]!r}")
        study = cls(name=file.stem, **settings)
        study._check_names(file)
        if study.data and study.areas:
            raise InputError(f"{file}: has both 'data' and 'areas': give the areas alone, whose mean is shown")
        if study.pretrain_on and study.pretrain_on.keys() != study.data.keys():
            raise InputError(f"{file}: 'pretrain_on' must name what 'data' names: {', '.join(study.data) or 'nothing'}")
        try:
            study.commands(Path("runs"))
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(
                f"{file}: checkpoints take {{seed}} and {{data}} and are runs/STUDY/RUN/checkpoints/best.ckpt, "
                f"zero_shot takes {{run}}, and each baseline needs --model.mode ({error})"
            ) from error
        return study

    def _check_names(self, file: Path) -> None:
        """Check the names that become parts of run ids, and those that refer to others."""
        for key in ("pretrain", "checkpoints", "baselines", "data", "areas"):
            for name in getattr(self, key):
                check_name(f"{file}: '{key}' names", name)
        variants = {*self.pretrain, *self.checkpoints, *self._pretrainings}
        for key, given, known in (
            ("only", self.only, variants | set(self.baselines)),
            ("available", self.available, set(self.pretrain)),
        ):
            if strange := sorted(given.keys() - known):
                raise InputError(f"{file}: '{key}' names {strange[0]}, which is none of {_listed(sorted(known))}")
        if not self.seeds or min(self.seeds) < 0 or min(self.sizes, default=1) < 1:
            raise InputError(
                f"{file}: 'seeds' must be at least one number of 0 or more, and 'sizes' numbers of 1 or more"
            )

    @classmethod
    def named(cls, name: str, folder: Path = FOLDER) -> Study:
        """Read a study by name, from any folder below `folder`.

        Raises:
            InputError: There is none of that name, or its content is invalid.
        """
        return cls.load(find(name, folder))

    def commands(self, runs: Path) -> list[tuple[str, list[str]]]:
        """List (run id, arguments of `lightning`), in the order to run them."""
        common = ["--experiment", self.name, *self.args]
        commands = []
        seeds = self.seeds if self.pretrain_per_seed else [None]
        for (name, data), seed in product((self.pretrain_on or {"": []}).items(), seeds):
            drawn = [] if seed is None else ["--seed_everything", str(seed), "--data.seed", str(seed)]
            for variant, args in self._pretrainings.items():
                named = [arg.replace("{seed}", str(seed)) for arg in args] if drawn else args
                commands.append((_name("pretrain", variant, "", name, seed), ["fit", *named, *common, *data, *drawn]))
        by_name = self.data or self.areas or {"": []}
        for (name, data), seed in product(by_name.items(), self.seeds):
            for variant in self._variants if self.zero_shot else []:
                checkpoint = self._checkpoint(variant, name, seed)
                start = ["test", *(arg.format(run=Path(checkpoint).parents[1]) for arg in self.zero_shot), *common]
                start += ["--ckpt_path", checkpoint, *data]
                commands.append((_name(variant, "", "zeroshot", name, seed), start))
        for task, (name, data), seed in product(self.tasks, by_name.items(), self.seeds):
            start = ["fit", "--config", f"experiments/finetune/{task}.yaml", *common, *self.adapt, *data]
            start += ["--seed_everything", str(seed), "--data.seed", str(seed)]
            for variant, mode in product(filter(partial(self._takes, task), self._variants), self.modes):
                chosen = ["--model.mode", mode, "--model.checkpoint", self._checkpoint(variant, name, seed)]
                commands.append((_name(variant, task, mode, name, seed), [*start, *chosen]))
            for baseline in filter(partial(self._takes, task), self.baselines):
                args = self.baselines[baseline]
                mode = args[args.index("--model.mode") + 1]
                drawn = [arg.replace("{seed}", str(seed)) for arg in args]
                commands.append((_name(baseline, task, mode, name, seed), [*start, *drawn]))
        return [
            (run_id, [args[0], "--runs", str(runs), *(_within(runs, arg) for arg in args[1:]), "--run_id", run_id])
            for run_id, args in commands
        ]

    def source_run(self, runs: Path, variant: str, data: str, seed: int) -> Path | None:
        """Return the folder of the run of another study that a variant comes from (`checkpoints`); None for others."""
        if variant not in self.checkpoints:
            return None
        return Path(_within(runs, self._checkpoint(variant, data, seed))).parents[1]

    @property
    def _pretrainings(self) -> dict[str, list[str]]:
        """Return the arguments of `lightning fit` by variant, one for each size."""
        if not self.sizes:
            return self.pretrain
        return {
            f"{variant}-n{size}": [*args, "--data.num_labels", str(min(size, self.available.get(variant, size)))]
            for (variant, args), size in product(self.pretrain.items(), self.sizes)
        }

    @property
    def _variants(self) -> list[str]:
        return [*self._pretrainings, *self.checkpoints]

    def _takes(self, task: str, variant: str) -> bool:
        return task in self.only.get(variant, self.tasks)

    def _checkpoint(self, variant: str, data: str, seed: int) -> str:
        if variant in self.checkpoints:
            return self.checkpoints[variant].format(seed=seed, data=data)
        drawn = seed if self.pretrain_per_seed else None
        run = _name("pretrain", variant, "", data if self.pretrain_on else "", drawn)
        return f"runs/{self.name}/{run}/checkpoints/best.ckpt"


def studies(folder: Path = FOLDER) -> list[Path]:
    """Return the files of all studies, in the order of their names."""
    return sorted(folder.rglob("*.yaml"), key=lambda file: file.stem)


def find(name: str, folder: Path = FOLDER) -> Path:
    """Return the file of a study.

    Raises:
        InputError: There is none of that name.
    """
    by_name = {file.stem: file for file in studies(folder)}
    if name not in by_name:
        raise InputError(f"no study '{name}' in {folder}: must be one of {_listed(by_name)}")
    return by_name[name]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value of YAML is of a type, whose elements it may name."""
    inner = get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    return kind is Any or type(value) is kind


def _words(kind: Any) -> str:
    """Return a type in words."""
    inner = get_args(kind)
    if get_origin(kind) is list:
        return f"a list of {'whole numbers' if inner[0] is int else 'words, numbers among them in quotes'}"
    if get_origin(kind) is dict:
        return f"names with {'any value' if inner[1] is Any else _words(inner[1])}"
    return {int: "a whole number", bool: "true or false"}.get(kind, "text")


def _within(runs: Path, arg: str) -> str:
    """Return an argument with `runs/`, the prefix of paths to runs in a study, replaced by the folder of all runs."""
    return f"{runs}/{arg.removeprefix('runs/')}" if arg.startswith("runs/") else arg


def _name(variant: str, task: str, mode: str, data: str, seed: int | None) -> str:
    """Return the id of a run, which `rows.rows_of` parses for the variant."""
    parts = (variant, task, mode, f"@{data}" if data else "", "" if seed is None else f"s{seed}")
    return "-".join(part for part in parts if part)
