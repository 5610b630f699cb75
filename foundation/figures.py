"""Pictures of a run: saved under `plots/` and shown by every logger that can."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_figures(trainer: Trainer, figures: dict[str, Figure]) -> None:
    """Save figures as `<run folder>/plots/<name>.png` and hand them to the loggers that take images."""
    if trainer.log_dir is None:
        return
    folder = Path(trainer.log_dir) / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        file = folder / f"{name}.png"
        figure.savefig(file, dpi=150, bbox_inches="tight")
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image(key=f"plots/{name}", images=[str(file)])
