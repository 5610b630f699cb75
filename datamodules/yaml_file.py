"""YAML files of users, read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from datamodules.errors import DatasetNotFoundError, InputError, refuse_pointer


class _Strict(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a mapping that holds a key twice, of which YAML would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = key.value if isinstance(key.value, str) else id(key), key.start_mark.line + 1
            if name in seen:
                problem = f"key '{name}' stands there twice, first on line {seen[name]}: join the two"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen[name] = line
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        DatasetNotFoundError: The file cannot be read.
        InputError: It is no YAML, holds something else, or a key twice; the message names the line.
    """
    content = load_yaml(file)
    if not isinstance(content, dict):
        raise InputError(f"{file}: must hold `key: value` lines")
    return content


def load_yaml(file: Path) -> Any:
    """Read a YAML file of any content.

    Raises:
        DatasetNotFoundError: The file cannot be read.
        InputError: It is no YAML, or holds a key twice; the message names the line.
    """
    refuse_pointer(file)
    try:
        content = yaml.load(file.read_text(), _Strict)
    except OSError as error:
        raise DatasetNotFoundError(f"config file {file} cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{file}{where}: {error.problem or 'no YAML'}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: no YAML: {' '.join(str(error).split())[:300]}") from error
    if _holds_itself(content, set(), set()):
        raise InputError(f"{file}: an anchor (&) stands within what it names: YAML of endless depth cannot be used")
    return content


def _holds_itself(value: Any, above: set[int], known: set[int]) -> bool:
    """Return whether a mapping or list holds itself.

    Args:
        value: What YAML has read.
        above: Ids of the mappings and lists around it.
        known: Ids of those that do not hold themselves.
    """
    if not isinstance(value, dict | list) or id(value) in known:
        return False
    if id(value) in above:
        return True
    inner = value.values() if isinstance(value, dict) else value
    if any(_holds_itself(each, above | {id(value)}, known) for each in inner):
        return True
    known.add(id(value))
    return False
