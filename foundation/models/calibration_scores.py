"""Names of the scores of the case study of twin calibration."""

from __future__ import annotations

from torch import nn

from foundation.link_metrics import LinkMean, LinkQuantile

#: numbers of codewords in the sweep of the test
SWEEP = range(1, 9)
#: prefixes of the scores of the references, in the order of the table and of figure 4; the calibrator has none, and
#: `direct_` selects no codewords
SHOWN = ("uncalibrated_", "direct_", "grid_", "neighbours_", "", "target_")
SCORES = ("cosine", "cosine_los", "cosine_nlos", "rate")


def metrics_of_test() -> nn.ModuleDict:
    """Return the metrics of the test by name; Lightning requires them as submodules."""
    metrics: dict[str, nn.Module] = {}
    for name in SHOWN:
        metrics |= {f"{name}{key}": LinkMean() for key in SCORES}
        metrics |= {f"{name}{key}_p10": LinkQuantile(0.1) for key in SCORES if key != "rate"}
        if name != "direct_":
            swept = [f"{key}_of_{count}" for key in ("cosine", "hit_rate") for count in SWEEP]
            metrics |= {f"{name}{key}": LinkMean() for key in ("hit_rate", *swept)}
    return nn.ModuleDict(metrics)
