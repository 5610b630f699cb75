"""Classes by their public names, which stay the same when files move."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

_PACKAGES = ("foundation", "heads", "datamodules")


def public_path(kind: type) -> str:
    """Return the path to import a class by, such as `foundation.ResNet`; of a class of others that of its module."""
    return current_path(f"{kind.__module__}.{kind.__qualname__}")


def current_path(path: str) -> str:
    """Return the path to import a class by, given the path it had when it was written down.

    A public class of the suite goes by its name alone, whatever file it lay in then.
    """
    package, name = path.partition(".")[0], path.rpartition(".")[2]
    public = package in _PACKAGES and name in import_module(package).__all__
    return f"{package}.{name}" if public else path


def current_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """Return the weights of a checkpoint by the names they have today: `anchors` of `Positioning` were `places`."""
    return {re.sub(r"(^|\.)places$", r"\1anchors", key): value for key, value in weights.items()}


def current_paths(settings: Any) -> Any:
    """Return settings, of any nesting, with the class paths in them as `current_path` has them."""
    if isinstance(settings, dict):
        return {
            key: current_path(value)
            if key in ("class_path", "_class_path") and isinstance(value, str)
            else current_paths(value)
            for key, value in settings.items()
        }
    if isinstance(settings, list | tuple):
        return type(settings)(map(current_paths, settings))
    return settings
