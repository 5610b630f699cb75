"""The --config files of a command line, and how two configurations differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.errors import InputError
from datamodules.yaml_file import read_yaml


class Difference(NamedTuple):
    """A setting that two configurations have in common, with another value.

    Attributes:
        key: Dotted, as on the command line.
        old: Its value in the first.
        new: Its value in the second.
    """

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        """Say it in few words."""
        if len(f"{self.old}{self.new}") > 80:
            return self.key
        return f"{self.key} {self.new} instead of {self.old}"


def config_files(args: list[str]) -> list[Path]:
    """Return the --config files, in order, also of a command line that does not parse."""
    return [Path(file) for file, _ in _files(args) if file]


def replacing_sources(args: list[str]) -> list[str]:
    """Let a later --config that names a source replace that of an earlier one, arguments and all.

    Otherwise the arguments that both classes know would stay: one city with the window and the carrier of another.
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
    """Return the first file with a section such as `model`, else None."""
    return next((file for file in files if section in _content(file)), None)


def differences(old: Any, new: Any, key: str = "") -> Iterator[Difference]:
    """List what two composed configurations have in common but for the value.

    A setting that only one of them has came or went with the class, which differs then, or with a release. A class
    counts by its name, wherever it lies.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() & new.keys():
            inner = key if name == "init_args" else f"{key}.{name}" if key else str(name)
            yield from differences(old[name], new[name], inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{key}.{number}")
    elif key.endswith(".class_path"):
        if str(old).rsplit(".", 1)[-1] != str(new).rsplit(".", 1)[-1]:
            yield Difference(key.removesuffix(".class_path"), old, new)
    elif old != new:
        yield Difference(key, old, new)


def _files(args: list[str]) -> Iterator[tuple[str, str]]:
    """Pair every word of a command line with the file that it says to read, if any."""
    for flag, value in itertools.pairwise([*args, ""]):
        yield value if flag in ("-c", "--config") else flag.partition("--config=")[2], flag


def _content(file: Path) -> dict[str, Any]:
    try:
        return read_yaml(file)
    except InputError:
        return {}  # the parser says what is wrong with it


def _names_source(file: Path) -> bool:
    content: Any = _content(file)
    for key in ("data", "init_args", "source"):
        content = content.get(key) if isinstance(content, dict) else None
    return isinstance(content, list) or (isinstance(content, dict) and "class_path" in content)
