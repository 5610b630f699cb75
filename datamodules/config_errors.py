"""Conversion of parser errors to one line with the key, file or value at fault."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

_UNKNOWN_KEY = re.compile(
    r"(?:Option|(?:Group '([\w.]+)' )?does not accept option) '([^']+)'[\w ]*(?:\(known: ([^)]*)\))?"
)
_UNKNOWN_FLAG = re.compile(r"unrecognized arguments: (-*)([^\s=]+)")
#: settings of a model or of data whose class no earlier file or option has named
_NO_CLASS_YET = re.compile(r"Problem with given class_path '[\w.]*\.Lightning(?:Data)?Module'")
_MISSING = re.compile(r"the following arguments are required: ([\w.,\- ]+)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_NO_IMPORT = re.compile(r"Problem with given class_path '([^']+)':\s+((?:No module|.*has no attribute|.*import)[^\n]*)")
_NO_CALLABLE = re.compile(
    r"expects a function or a callable class: ([^\n]+?)\. Got value: (?:Namespace\(class_path=)?'?([\w.]+)"
)
_ABSTRACT = re.compile(r"class, but ([\w.]+) is abstract")
_NOT_SUBCLASS = re.compile(r"[Ii]mport path (\S+) does not correspond to a subclass of (\w+)")
_NOT_A = re.compile(r"Not a valid subclass of (\w+)")
_NO_FILE = re.compile(r"(?:File does not exist|Unable to read file|not a file)[^']*'([^']+)'")
_PARSER_KEY = re.compile(r"Parser key \"([^\"]+)\"")
_EXPECTED = re.compile(r"Expected an? ([^\n]+?)(?:\. Got value: ([^\n]*?))?(?:\. Got value: Namespace[^\n]*)?$", re.M)
_GIVEN = re.compile(r"Given value: (.+?)(?:\. Got value: Namespace.*)?$", re.M)
#: options that take a file, by the end of its name
_FLAGS = {".yaml": "--config", ".yml": "--config", ".ckpt": "--ckpt_path"}
_ANY_KEY = (
    "keys start with model., data. or trainer., and `lightning fit --help`, `--model.help CLASS` and `--data.help "
    "CLASS` list them"
)
_A_CLASS = "give the name of a class of this package, such as DeepMIMO, or module.Class for one of your own"
#: names of Python types in YAML terms
_NAMES = {
    "NoneType": "null",
    "str": "text",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
}


def with_known(message: str, parser: argparse.ArgumentParser) -> str:
    """Return a message of the parser of a class with the keys that it knows, where it refuses a key.

    Outer parsers add their keys to the message; which keys an inner one knows is known there alone.
    """
    if "is not accepted" in message or "does not accept option" in message:
        message += f" (known: {', '.join(action.dest for action in parser._actions)})"
    return message


def condense(
    message: str, files: Sequence[Path], options: Sequence[str], keys: Iterable[str], classes: Iterable[str]
) -> str:
    """Return an error of the configuration as one line.

    Args:
        message: Message of jsonargparse, of many lines for nested keys.
        files: The --config files in order, for the position of a key.
        options: The command line; keys given there are in no file.
        keys: Dotted keys of the command, for suggestions.
        classes: Names valid as a class_path, for suggestions.
    """

    def where(word: str) -> str:
        return _given_where(word, files, options)

    if found := _NO_FILE.search(message):
        wrong = "is a folder: give a file" if Path(found[1]).is_dir() else "does not exist"
        return f"config file {found[1]} {wrong}"
    if found := _NO_CLASS_YET.search(message):
        return (
            f"'{_dotted(message, found)}' has no class yet: put the --config of an experiment that names it first, "
            "such as experiments/csiclip.yaml, and what changes it after that"
        )
    if found := _UNKNOWN_KEY.search(message):
        group, name, known = found.groups()
        key = _without_children(f"{group}.{name}" if group else name)
        suggestion = (
            _suggest(key, _plain(known.split(", ")), listed=True) if known else _suggest(key, _with_parents(keys))
        )
        return f"unknown key '{_dotted(message, found, key)}'{where(key)}{suggestion}"
    if found := _UNKNOWN_FLAG.search(message):
        if not found[1]:
            flag = next((flag for end, flag in _FLAGS.items() if found[2].endswith(end)), "a key that starts with --")
            return f"'{found[2]}' on the command line follows no option: put {flag} before it"
        key = found[2].replace("init_args.", "")
        return f"unknown key '{_dotted(message, found, key)}' on the command line{_suggest(key, keys)}"
    if found := _NO_IMPORT.search(message):
        return f"class_path '{found[1]}' cannot be imported{where(found[1])}: {found[2].strip()}"
    if (found := _NO_CLASS.search(message)) and found[1] in (known := set(classes)):
        kind = _NOT_A.search(message)
        return (
            f"'{found[1]}'{where(found[1])} does not fit key '{_dotted(message, found)}'"
            f"{f': it is no {kind[1]}' if kind else ''}"
        )
    if found:
        key = f" of key '{_dotted(message, found)}'" if _PARSER_KEY.search(message) else ""
        return f"unknown class '{found[1]}'{key}{where(found[1])}{_suggest(found[1], known, _A_CLASS)}"
    if found := _NO_CALLABLE.search(message):
        return f"'{found[2]}'{where(found[2])} does not fit key '{_dotted(message, found)}': {found[1]}"
    if found := _ABSTRACT.search(message):
        return f"'{_dotted(message, found)}' needs the class_path of a kind of {found[1]}, before keys of it"
    if found := _NOT_SUBCLASS.search(message):
        return f"'{found[1]}'{where(found[1])} does not fit key '{_dotted(message, found)}': it is no {found[2]}"
    if found := _MISSING.search(message):
        # the outermost names carry the command, `fit.model`
        names = [re.sub(r"^(fit|validate|test|predict)\.", "", name.strip()) for name in found[1].split(",")]
        missing = " and ".join(f"'{_dotted(message, found, name)}'" for name in names)
        such = ", such as experiments/csiclip.yaml or the config.yaml of a run," if "model" in names else ""
        it = "it" if len(names) == 1 else "them"
        return f"missing {missing}: set {it} in a --config file{such} or on the command line"
    return _wrong_type(message, where) or _one_line(message)


def _wrong_type(message: str, where: Callable[[str], str]) -> str | None:
    keys = _PARSER_KEY.findall(message)
    deepest = message[message.rfind('Parser key "') :]
    found = _EXPECTED.findall(deepest.replace("Not a valid subclass of", "Expected a class_path of a"))
    if not keys or not found:
        return None
    # A complaint about one type ends with the value. Without it, every type of a union has complained once, and the
    # value stands below.
    types = [expected for expected, got in found if got] or [expected for expected, _ in found]
    value = next((got for _, got in found if got), None)
    if value is None and (given := _GIVEN.search(deepest)):
        value = given[1]
    names = " or ".join(dict.fromkeys(_type_name(name) for name in types))
    key = ".".join(_once(keys))
    return f"'{key}'{where(key)} must be {names}, got {_quote(value or 'nothing')}"


def _type_name(text: str) -> str:
    if found := re.fullmatch(r"<class '(?:[\w.]+\.)?(\w+)'>", text):
        return _NAMES.get(found[1], found[1])
    if found := re.fullmatch(r"(?:typing\.)?Literal\[(.+)\]", text):
        return f"one of {found[1]}"
    return text.replace("typing.", "").replace("collections.abc.", "")


def _quote(value: str) -> str:
    return f"'{value}'" if len(value) < 60 else f"'{value[:57]}...'"


def _dotted(message: str, found: re.Match[str], leaf: str | None = None) -> str:
    """Return the dotted key from the keys in the message before the match."""
    outer = _PARSER_KEY.findall(message[: found.start()])
    return ".".join([*outer, leaf] if leaf else outer)


def _without_children(key: str) -> str:
    """Return `modle` for `modle.class_path`: only the outermost unknown key is at fault."""
    return re.split(r"\.(?:class_path|init_args|dict_kwargs)\b", key)[0]


def _given_where(word: str, files: Sequence[Path], options: Sequence[str]) -> str:
    """Return the file and line of a key or class, or that it was given on the command line."""
    leaf = word.rsplit(".", 1)[-1]
    flags = [option.partition("=")[0] for option in options if option.startswith("--")]
    values = {option.partition("=")[2] if option.startswith("--") else option for option in options}
    if any(flag.lstrip("-").rsplit(".", 1)[-1] == leaf for flag in flags) or word in values:
        return " on the command line"
    as_key = rf"(?:^|[\s{{,-])['\"]?{re.escape(leaf)}['\"]?\s*:"
    as_value = rf":\s*['\"]?{re.escape(word)}['\"]?\s*(?:$|[,}}\]])"
    pattern = re.compile(f"{as_key}|{as_value}")
    for file in reversed(files):
        for number, line in enumerate(file.read_text().splitlines() if file.is_file() else [], start=1):
            if pattern.search(line.split(" #")[0]):
                return f" ({file}, line {number})"
    return ""


def _with_parents(keys: Iterable[str]) -> set[str]:
    parts = [key.split(".") for key in keys]
    return {".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)}


def _suggest(name: str, known: Iterable[str], otherwise: str = "", listed: bool = False) -> str:
    """Return what may have been meant by a name, or else where the known ones are found.

    Args:
        name: The unknown name.
        known: Known names.
        otherwise: What to say if none is close.
        listed: Whether to list the known names if none is close.
    """
    known = list(known)
    close = [key for key in known if key.rsplit(".", 1)[-1] == name] or difflib.get_close_matches(name, known, n=2)
    likeness = [difflib.SequenceMatcher(None, key, name).ratio() for key in close]
    if close:
        return (
            ": did you mean "
            + " or ".join(f"'{key}'" for key, r in zip(close, likeness, strict=True) if r >= likeness[0])
            + "?"
        )
    if listed and known:
        return f": must be one of {', '.join(known)}"
    return f": {otherwise or _ANY_KEY}"


def _plain(names: Iterable[str]) -> list[str]:
    """Return the names of settings, without those of `--help` and the like."""
    return [name for name in names if not name.endswith("help") and not name.startswith("print_")]


def _once(keys: list[str]) -> list[str]:
    """Return nested keys without the repetition by a union, of which every type complains of the same key."""
    for size in range(1, len(keys) // 2 + 1):
        if keys[-size:] == keys[-2 * size : -size]:
            return _once(keys[:-size])
    return keys


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 400 else f"{line[:397]}..."
