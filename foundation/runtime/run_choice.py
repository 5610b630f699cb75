"""Selection of run and checkpoint of a command, and checks of its settings against those of the run."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.errors import InputError
from datamodules.yaml_file import load_yaml, read_yaml
from foundation.runtime.runs import CHECKPOINTS, Run, check_name, first_process, plain_name

#: settings that a resumed run may change; all others are those of its checkpoint
_MAY_CHANGE = re.compile(r"(trainer|experiment|runs|run_id|ckpt_path|then_test)(\.|$)|data\.(batch_size|predict_on)$")
#: settings without effect on the data
_IDLE = re.compile(r"data\.num_workers$|data\..*\b(cache|root|download)$|model\..*\bcheckpoint$|model\.start_from")
#: settings that are mappings of any entries
_MAPPING = re.compile(
    r"(^|\.)(train_on|validate_on|test_on|num_labels|mobility|variants|angle_spreads|weights|thresholds|lambdas|start_from)$"
)


class Choice(NamedTuple):
    """Run and checkpoint of a command.

    Attributes:
        run: The run.
        checkpoint: Path of the checkpoint to load, or None.
        resumes: Whether training of the run is resumed from the checkpoint.
    """

    run: Run
    checkpoint: str | None
    resumes: bool


def choose(config: Any, command: str, files: list[Path], composed: Callable[[], dict[str, Any]]) -> Choice:
    """Find the run that a command resumes or evaluates, or name a new one.

    Args:
        config: Parsed settings of the command.
        command: `fit`, `validate`, `test` or `predict`.
        files: The --config files.
        composed: Returns the settings as plain data.

    Raises:
        InputError: A name is invalid, the run or checkpoint does not exist, or the run cannot have these settings.
    """
    check_name("--experiment", config.experiment)
    check_name("--run_id", config.run_id)
    root, run_id = Path(config.runs).expanduser(), config.run_id
    wanted = config.ckpt_path and os.path.expanduser(config.ckpt_path)
    file = first_with("model", files)
    config_of = Run.of(file) if file and run_id is None else None
    experiment = config.experiment
    if experiment is None:
        experiment = plain_name(file.stem if file else str(config.model.class_path).rsplit(".", 1)[-1].lower())
    if config_of is not None and command != "fit" and wanted is None:
        wanted = "best"  # the configuration of a run asks about that run, not about new weights
    owner: Run | None = None
    if command == "fit" and (wanted == "last" or (wanted is None and run_id and _restarted())):
        # The config of a run names that run, not the newest.
        named = config_of or (Run(root, experiment, run_id) if run_id else None)
        owner = named if named and (named.latest or named.folder.is_dir()) else None
        if owner is None and wanted is not None:
            owner = Run.newest(root, experiment, wanted, run_id)
        wanted = owner and owner.latest
        if owner is not None and wanted is None:
            if first_process():
                print(f"{owner.folder} was stopped before its first checkpoint: it starts over", flush=True)
            return Choice(owner, None, False)
    elif wanted in CHECKPOINTS:
        named = config_of or Run(root, experiment, run_id or "")
        owner = Run.newest(named.root, named.experiment, wanted, named.id or None)
        wanted = owner.checkpoint(wanted)
    elif wanted is not None:
        owner = Run.of(wanted)
    if (
        owner
        and (config.experiment not in (None, owner.experiment) or run_id not in (None, owner.id))
        and not config_of
    ):
        _refuse_other_model(owner, command, composed)
        owner = None
    checkpoint = None if wanted is None else str(wanted)
    if owner is not None and command != "fit":
        return Choice(replace(owner, part=_part(owner, command, files, composed())), checkpoint, False)
    # Training goes on in place only from where it stopped; any other checkpoint starts a new run.
    if owner is not None and Path(str(checkpoint)) in (owner.checkpoint("last"), owner.latest):
        _check_settings(owner, composed())
        return Choice(owner, checkpoint, True)
    if owner is not None:
        _refuse_other_model(owner, command, composed)
    return Choice(Run.new(root, experiment, config.seed_everything, run_id), checkpoint, False)


def _restarted() -> bool:
    """Whether SLURM or torchrun has restarted this command."""
    return any(os.environ.get(f"{name}_RESTART_COUNT", "0") != "0" for name in ("SLURM", "TORCHELASTIC"))


def _changes(run: Run, composed: dict[str, Any]) -> list[Difference]:
    """List the differences from the settings of a run; empty if the run has no config."""
    file = run.folder / "config.yaml"
    old = read_yaml(file) if file.is_file() else {}
    return sorted(differences(old, composed), key=lambda change: change.key)


def _check_settings(run: Run, composed: dict[str, Any]) -> None:
    """Print changed settings of a resumed run, and refuse those that its checkpoint overrides."""
    changes = [change for change in _changes(run, composed) if not _IDLE.match(change.key)]
    fixed = [change for change in changes if not _MAY_CHANGE.match(change.key)]
    if fixed:
        raise InputError(
            f"run {run.folder} cannot go on with {_list(fixed)}: its checkpoint belongs to the settings in its "
            "config.yaml; give those, or start a new run"
        )
    shown = [change for change in changes if change.key not in ("experiment", "runs", "run_id", "ckpt_path")]
    if shown and first_process():
        print(f"{run.folder} goes on with {_list(shown)}", flush=True)


def _refuse_other_model(run: Run, command: str, composed: Callable[[], dict[str, Any]]) -> None:
    """Refuse training from a checkpoint of another run with settings that the checkpoint overrides."""
    if command == "fit" and (changes := _of("model", run, composed())):
        raise InputError(
            f"a checkpoint of {run.folder} cannot be trained on with {_list(changes)}: it holds an optimizer of its "
            "own settings; leave them as they are"
        )


def _part(run: Run, command: str, files: list[Path], composed: dict[str, Any]) -> str:
    """Return the name of a folder for results of a run on other data than its own, otherwise an empty name."""
    idle = {"data.batch_size"} | ({"data.predict_on"} if command != "predict" else set())
    changes = [change for change in _of("data", run, composed) if change.key not in idle]
    if not changes:
        return ""
    if [change.key for change in changes] == ["data.predict_on"]:
        return f"on-{changes[0].new}"
    digest = hashlib.sha256(json.dumps(composed.get("data"), sort_keys=True).encode()).hexdigest()[:8]
    file = first_with("data", [file for file in reversed(files) if Run.of(file) is None])
    if file is None:
        return f"on-{digest}"
    part = f"on-{plain_name(file.stem)}"
    return f"{part}-{digest}" if _of("data", replace(run, part=part), composed) else part


def _of(section: str, run: Run, composed: dict[str, Any]) -> list[Difference]:
    return [c for c in _changes(run, composed) if c.key.split(".")[0] == section and not _IDLE.match(c.key)]


def _list(changes: list[Difference]) -> str:
    more = f" and {len(changes) - 4} more" if len(changes) > 4 else ""
    return ", ".join(map(str, changes[:4])) + more


class Difference(NamedTuple):
    """A setting with different values in two configurations.

    Attributes:
        key: Dotted key, as on the command line.
        old: Value in the first configuration.
        new: Value in the second configuration.
    """

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        """Return the difference as text."""
        if len(f"{self.old}{self.new}") > 80:
            return self.key
        return f"{self.key} {self.new} instead of {self.old}"


def config_files(args: list[str]) -> list[Path]:
    """Return the --config files in order, also of an invalid command line."""
    return [Path(file) for file, _ in _files(args) if file]


def check_yaml(args: list[str]) -> None:
    """Check every YAML file that a command line names, directly or through another file.

    Raises:
        InputError: A file is no YAML, a --config file is no mapping, or a file has a key twice.
    """
    for file in filter(Path.is_file, config_files(args)):
        _check_classes(read_yaml(file), file)
    waiting = [Path(word) for word in _yaml_names([word.partition("=")[2] or word for word in args])]
    seen: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file not in seen and file.is_file():
            seen.add(file)
            names = _yaml_names(load_yaml(file))
            # the parser looks beside the file first
            waiting += [file.parent / name if (file.parent / name).is_file() else Path(name) for name in names]


def _check_classes(value: Any, file: Path, key: str = "") -> None:
    """Check that classes in nested settings are names, and their arguments mappings."""
    if isinstance(value, list):
        for inner in value:
            _check_classes(inner, file, key)
    for name, inner in value.items() if isinstance(value, dict) else ():
        if name == "class_path" and not isinstance(inner, str):
            raise InputError(f"{file}: '{key}.class_path' must be the name of a class, got {inner!r}")
        if name == "init_args" and "class_path" in value and not isinstance(inner, dict):
            raise InputError(f"{file}: '{key}.init_args' must hold `key: value` lines, or be left out, got {inner!r}")
        _check_classes(inner, file, key if name == "init_args" else f"{key}.{name}" if key else str(name))


def replacing_sources(args: list[str]) -> list[str]:
    """Make a later --config with a source replace the source of an earlier one including its arguments.

    Otherwise arguments common to both classes would be merged, such as the window of one city with another city.
    """
    replaced: list[str] = []
    named = False
    for file, flag in _files(args):
        if file and _names_source(Path(file)):
            if named:
                replaced.append("--data.source=[]")
            named = True
        replaced.append(flag)
    return replaced


def first_with(section: str, files: list[Path]) -> Path | None:
    """Return the first file with a section such as `model`, otherwise None."""
    return next((file for file in files if section in _content(file)), None)


def is_mapping(key: str) -> bool:
    """Return whether the entries of a setting are given by the user, not by a class or a release."""
    return _MAPPING.search(key) is not None


def differences(old: Any, new: Any, key: str = "", mapping: bool = False) -> Iterator[Difference]:
    """List the settings with different values in two composed configurations.

    Settings of only one configuration are ignored: they differ by class, which is itself listed, or by release. Entries
    of mappings, such as the conditions of a side, are not. Classes are compared by name without their module.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        mapping = (mapping or is_mapping(key)) and "class_path" not in old
        if mapping and old.keys() != new.keys():
            yield Difference(key, old, new)
            return
        for name in old.keys() & new.keys():
            inner = key if name == "init_args" else f"{key}.{name}" if key else str(name)
            yield from differences(old[name], new[name], inner, mapping)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{key}.{number}")
    elif key.endswith(".class_path"):
        if str(old).rsplit(".", 1)[-1] != str(new).rsplit(".", 1)[-1]:
            yield Difference(key.removesuffix(".class_path"), old, new)
    elif old != new:
        yield Difference(key, old, new)


def _files(args: list[str]) -> Iterator[tuple[str, str]]:
    """Return every word of a command line with the file that it names, if any."""
    for flag, value in itertools.pairwise([*args, ""]):
        yield value if flag in ("-c", "--config") else flag.partition("--config=")[2], flag


def _content(file: Path) -> dict[str, Any]:
    try:
        return read_yaml(file)
    except InputError:
        return {}  # the parser says what is wrong with it


def _yaml_names(value: Any) -> Iterator[str]:
    """List the names of YAML files in nested settings."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _yaml_names(inner)
    elif isinstance(value, str) and value.endswith((".yaml", ".yml")):
        yield value


def _names_source(file: Path) -> bool:
    content: Any = _content(file)
    for key in ("data", "init_args", "source"):
        content = content.get(key) if isinstance(content, dict) else None
    return isinstance(content, list) or (isinstance(content, dict) and "class_path" in content)
