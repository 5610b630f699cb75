"""Turns what the parser complains about into one line that names the key, the file or the value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

_UNKNOWN_KEY = re.compile(r"(?:Option|does not accept option) '([^']+)'(?: is not accepted)?(?: \(known: ([^)]*)\))?")
_UNKNOWN_FLAG = re.compile(r"unrecognized arguments: (.+)")
_MISSING = re.compile(r"the following arguments are required: ([\w.,\- ]+)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_NO_IMPORT = re.compile(r"Problem with given class_path '([^']+)':\s+((?:No module|.*has no attribute|.*import)[^\n]*)")
_NOT_SUBCLASS = re.compile(r"[Ii]mport path (\S+) does not correspond to a subclass of (\w+)")
_NO_FILE = re.compile(r"(?:File does not exist|Unable to read file|not a file)[^']*'([^']+)'")
_PARSER_KEY = re.compile(r"Parser key \"([^\"]+)\"")
_EXPECTED = re.compile(
    r"Expected an? ([^\n]+?)(?:\. Got value: ([^\n]*?))?\s*(?:\. Got value: Namespace[^\n]*)?$", re.M
)
_GIVEN = re.compile(r"Given value: (.+)")
_YAML_NAMES = {"NoneType": "null", "str": "text", "bool": "true or false"}


def condense(message: str, files: Sequence[Path], keys: Iterable[str], classes: Iterable[str]) -> str:
    """Say in one line what is wrong with the configuration.

    Args:
        message: What jsonargparse says, many lines for nested keys.
        files: The --config files, in order, to say where a key stands.
        keys: Dotted keys that the command knows, to suggest one.
        classes: Names that may stand as a class_path, to suggest one.
    """
    if "parsing config" in message or "Unexpected config" in message:
        for file in files:
            if broken := _broken_yaml(file):
                return broken
    if found := _NO_FILE.search(message):
        return f"config file {found[1]} does not exist"
    if found := _UNKNOWN_KEY.search(message):
        outer, key = _keys_before(message, found), _without_leaf(found[1])
        close = _suggest(key, found[2].split(", ") if found[2] else _with_parents(keys))
        return f"unknown key '{'.'.join([*outer, key])}'{_place(key, files)}{close}"
    if found := _UNKNOWN_FLAG.search(message):
        return f"unknown option {found[1].split()[0]}: see `lightning COMMAND --help`"
    if found := _NO_IMPORT.search(message):
        return f"class_path '{found[1]}' cannot be imported{_place(found[1], files)}: {found[2].strip()}"
    if found := _NO_CLASS.search(message):
        return f"unknown class '{found[1]}'{_place(found[1], files)}{_suggest(found[1], classes)}"
    if found := _NOT_SUBCLASS.search(message):
        keys = ".".join(_keys_before(message, found))
        return f"class_path '{found[1]}'{_place(found[1], files)} does not fit key '{keys}': it is no {found[2]}"
    if found := _MISSING.search(message):
        prefix = _keys_before(message, found)
        names = [name.strip().partition(".")[2] or name.strip() for name in found[1].split(",")]
        keys = " and ".join(f"'{'.'.join([*prefix, name])}'" for name in names)
        return f"missing {keys}: set it in a --config file or on the command line"
    if wrong := _wrong_type(message, files):
        return wrong
    return _one_line(message)


def _wrong_type(message: str, files: Sequence[Path]) -> str | None:
    keys = _PARSER_KEY.findall(message)
    deepest = message[message.rfind('Parser key "') :] if keys else message
    found = _EXPECTED.findall(deepest)
    if not keys or not found:
        return None
    value = next((got for _, got in found if got), None)
    if value is None and (given := _GIVEN.search(deepest)):
        value = given[1]
    # With a value, the complaint is about one type; without, every type of a union complained once.
    types = [expected for expected, got in found if got] or [expected for expected, _ in found]
    # The alternatives of an outer union (the class itself, or nothing) come after those of the inner key.
    names = list(dict.fromkeys(_type_name(name) for name in types))
    key = ".".join(keys)
    return f"'{key}'{_place(key, files)} must be {' or '.join(names)}, got {_quote(value)}"


def _type_name(text: str) -> str:
    found = re.fullmatch(r"<class '(?:[\w.]+\.)?(\w+)'>", text)
    name = found[1] if found else text.replace("typing.", "")
    return _YAML_NAMES.get(name, name)


def _quote(value: str | None) -> str:
    return "nothing" if value is None else f"'{value}'" if len(value) < 60 else f"'{value[:57]}...'"


def _keys_before(message: str, found: re.Match[str]) -> list[str]:
    return _PARSER_KEY.findall(message[: found.start()])


def _without_leaf(key: str) -> str:
    """Cut `modle.class_path` to `modle`: what is under an unknown key is not to blame."""
    parts = key.split(".")
    for end in range(1, len(parts)):
        if parts[end] in {"class_path", "init_args", "dict_kwargs"}:
            return ".".join(parts[:end])
    return key


def _place(key: str, files: Sequence[Path]) -> str:
    leaf = key.rsplit(".", 1)[-1]
    as_key = rf"(?:^|[\s{{,-])['\"]?{re.escape(leaf)}['\"]?\s*:"
    as_value = rf":\s*['\"]?{re.escape(key)}['\"]?\s*(?:$|[,}}])"
    pattern = re.compile(f"{as_key}|{as_value}")
    for file in reversed(files):
        for number, line in enumerate(file.read_text().splitlines() if file.is_file() else [], start=1):
            if pattern.search(line.split(" #")[0]):
                return f" ({file}, line {number})"
    return ""


def _with_parents(keys: Iterable[str]) -> set[str]:
    parts = [key.split(".") for key in keys]
    return {".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)}


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean '{close[0]}'?" if close else ": see `lightning COMMAND --help` for the known ones"


def _broken_yaml(file: Path) -> str | None:
    if not file.is_file():
        return None
    try:
        content = yaml.safe_load(file.read_text())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        return f"{file}{place}: {error.problem or 'no YAML'}"
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return f"{file}: no YAML: {_one_line(str(error))}"
    return None if isinstance(content, dict) else f"{file}: must hold `key: value` lines"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 400 else f"{line[:397]}..."
