"""Public names of classes, which do not depend on their module."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

_PACKAGES = ("foundation", "heads", "datamodules")


def public_path(kind: type) -> str:
    """Return the public import path of a class, such as `foundation.ResNet`, otherwise that of its module."""
    return current_path(f"{kind.__module__}.{kind.__qualname__}")


def current_path(path: str) -> str:
    """Return the current import path of a class, given that of an older release.

    A public class of the suite goes by its name alone, whatever file it lay in then.
    """
    package, name = path.partition(".")[0], path.rpartition(".")[2]
    public = package in _PACKAGES and name in import_module(package).__all__
    return f"{package}.{name}" if public else path


def current_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """Return weights of a checkpoint under current names.

    `anchors` of `Positioning` were `places`; the positions' scale and the U-Net of `TwinCalibration` were not in its
    calibrator.
    """
    if "position_mean" in weights:
        weights = {re.sub(r"^(?=position_)|^net\.", _into_calibrator, key): value for key, value in weights.items()}
    return {re.sub(r"(^|\.)places$", r"\1anchors", key): value for key, value in weights.items()}


def _into_calibrator(found: re.Match[str]) -> str:
    return "net.unet." if found[0] else "net."


def current_paths(settings: Any) -> Any:
    """Return nested settings with all class paths replaced by `current_path`."""
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
