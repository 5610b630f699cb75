"""What the case study of twin calibration scores, and under which names."""

from __future__ import annotations

from torch import nn

from foundation.link_metrics import LinkMean, LinkQuantile

#: numbers of codewords that testing sweeps over
SWEEP = range(1, 9)
#: what tells the channel, by the prefix of its scores, in the order of the table and of figure 4; the calibrator's own
#: have none, and `direct_` chooses no codewords
SHOWN = ("uncalibrated_", "direct_", "grid_", "neighbours_", "", "target_")
SCORES = ("cosine", "cosine_los", "cosine_nlos", "rate")


def metrics_of_test() -> nn.ModuleDict:
    """Return a metric of each name that testing logs: Lightning wants to know them from the start."""
    metrics: dict[str, nn.Module] = {}
    for name in SHOWN:
        metrics |= {f"{name}{key}": LinkMean() for key in SCORES}
        metrics |= {f"{name}{key}_p10": LinkQuantile(0.1) for key in SCORES if key != "rate"}
        if name != "direct_":
            metrics |= {f"{name}{key}": LinkMean() for key in ("hit_rate", *(f"cosine_of_{n}" for n in SWEEP))}
    return nn.ModuleDict(metrics)
