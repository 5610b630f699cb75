"""`make demo`: pre-training, adaptation and comparison with training from scratch on two small cities, in minutes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from foundation.runtime.stopping import exit_status
from foundation.studies.rows import Row, collect
from foundation.studies.run import run_study
from foundation.studies.study import Study
from foundation.studies.tables import format_values

#: for each head, the metric that is compared, and whether larger is better
_DECIDES = {"positioning": ("mean_m", False), "beam": ("top1", True)}


def main() -> None:
    """Trace two cities, pre-train CSI-CLIP on one, adapt it to the other, and compare with training from scratch."""
    argparse.ArgumentParser(prog="make demo", description=__doc__).parse_args()  # there are no options
    started = time.monotonic()

    def work() -> int:
        study = Study.named("demo")
        status = run_study(study, Path("runs"))
        if not status:
            print(f"\n{pretraining_effect(collect(Path('runs'), study))}")
            took = f"{time.monotonic() - started:.0f} s"
            print(f"{took}. Pictures: runs/demo/*/plots/, settings: runs/demo/*/config.yaml")
        return status

    sys.exit(exit_status(work))


def pretraining_effect(rows: Sequence[Row]) -> str:
    """Return one line that compares fine-tuning with training from scratch by the rows of the study.

    It states a gain where the fine-tuned tower is better than the same tower from scratch with every seed; both runs of
    a seed have the same labels.
    """
    parts = []
    for head, (metric, more) in _DECIDES.items():
        modes: dict[str, dict[int, float]] = {"finetune": {}, "scratch": {}, "control": {}}
        for row in rows:
            if row.head == head and row.metric == metric and row.mode in modes:
                modes[row.mode][row.seed] = row.value
        tuned, scratch, hand = modes.values()
        if not tuned or tuned.keys() != scratch.keys():
            continue
        gains = [(tuned[seed] - scratch[seed]) * (1 if more else -1) for seed in tuned]
        verdict = "a gain" if min(gains) > 0 else "a loss" if max(gains) < 0 else "no gain that holds"
        line = f"{head} {metric} {format_values(metric, tuned.values())} fine-tuned, "
        line += f"{format_values(metric, scratch.values())} from scratch: {verdict} with every seed"
        if hand and (sum(hand.values()) / len(hand) > sum(tuned.values()) / len(tuned)) == more:
            line += f", but hand-made profiles in place of the encoder have {format_values(metric, hand.values())}"
        parts.append(line)
    return "Effect of pre-training: " + "; ".join(parts) + "."


if __name__ == "__main__":
    main()
