"""Tuning: the trials of an experiment, from its `tune.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from foundation.report.curves import finite


def read_tunings(experiments: Iterable[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the trials of experiments that have any, and warnings of damaged files."""
    read, warned = [], []
    for folder in experiments:
        file = folder / "tune.json"
        if file.is_file():
            try:
                read.append({"experiment": folder.name, **_study(json.loads(file.read_text()))})
            except (OSError, ValueError) as error:
                warned.append(f"skipped {file}: {error}")
    return read, warned


def _study(content: Any) -> dict[str, Any]:
    try:
        return {
            "metric": str(content["metric"]),
            "direction": "minimize" if content["direction"] == "minimize" else "maximize",
            "trials": [_trial(trial) for trial in content["trials"]],
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"it is no study ({error})") from error


def _trial(trial: dict[str, Any]) -> dict[str, Any]:
    params = {str(key): _param(value) for key, value in trial["params"].items()}
    facts = {"number": int(trial["number"]), "state": str(trial["state"]), "value": finite(trial.get("value"))}
    return facts | {"run": str(trial.get("run_id") or ""), "params": params}


def _param(value: Any) -> int | float | str:
    """Return a value in JSON; NaN and infinity, which browsers refuse, as text."""
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_number else str(value)
