"""`make demo`: the main job on one small city, in minutes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from foundation.evaluation.study import Study, run_study


def main() -> None:
    """Trace a small city, pre-train CSI-CLIP, adapt it, and compare with training from scratch."""
    started = time.monotonic()
    status = run_study(Study.load(Path("experiments/studies/demo.yaml")), Path("runs"))
    if not status:
        print(f"\n{time.monotonic() - started:.0f} s. Pictures: runs/demo/*/plots/, settings: runs/demo/*/config.yaml")
    sys.exit(status)


if __name__ == "__main__":
    main()
