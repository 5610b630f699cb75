"""Classical predictors by the protocol and the metric of CSI-4CAST, compared with its published values.

The protocol is that of `experiments/paper/data_csi4cast.yaml`: Sionna's clustered delay lines, 16 past snapshots to 4
future ones, noise on the past only, Doppler shifts by the angles at the base station as in their data. The metric is
the mean over links, antennas and steps of squared error over power, both summed over subcarriers. It exceeds the NMSE
of whole links, as antennas in a fade have equal weight.
"""

from __future__ import annotations

import argparse
import math
import sys

import torch
from einops import rearrange
from torch import Tensor

from datamodules.channel.arrays import Array
from datamodules.channel.impairments import Noise
from datamodules.channel.motion import Sequence
from datamodules.channel.ofdm import OFDM
from datamodules.module import ChannelDataModule
from datamodules.sources.tr38901.cdl import CDL
from foundation.baselines.prediction import hold, link_ar, pad, pad_vector
from foundation.runtime.stopping import exit_status
from foundation.studies.tables import ruled
from heads.prediction import prediction_error

#: TDD, CDL-A, 30 ns, 25 dB: NMSE [dB] by predictor and speed [m/s]; AI4OPT/CSI-4CAST. Its PAD, whose code is not
#: public, is compared with one filter for the link and with one for each antenna
PUBLISHED = {
    "hold": {1.0: -14.2, 9.0: 1.4},
    "pad_vector": {1.0: -23.2, 9.0: -9.3},
    "pad_antenna": {1.0: -23.2, 9.0: -9.3},
    "LLM4CP": {1.0: -23.2, 9.0: -10.6},
    "CSI-4CAST": {1.0: -24.6, 9.0: -12.2},
}
_HORIZON, _BATCH = 4, 50
#: links of each of their cells
_PUBLISHED_LINKS = 100


def pad_antenna(past: Tensor, horizons: int) -> Tensor:
    """Predict each antenna by a vector Prony of its own subcarriers, see `pad_vector`."""
    r, t = past.shape[2:4]
    alone = rearrange(past, "b n r t k -> (b r t) n 1 1 k")
    return rearrange(pad_vector(alone, horizons), "(b r t) h 1 1 k -> b h r t k", r=r, t=t)


_PREDICTORS = {"hold": hold, "pad_vector": pad_vector, "pad_antenna": pad_antenna, "pad": pad, "link_ar": link_ar}


def cell(speed: float, links: int, seed: int = 0, snr_db: float = 25.0) -> dict[str, tuple[float, float]]:
    """Return the NMSE [dB] of each predictor in CDL-A at 30 ns, and its standard error over links [dB]."""
    data = ChannelDataModule(
        CDL(["A"], [30e-9], [speed], 2.4e9, links, polarization="dual", doppler="departure", seed=seed),
        bs=Array(4, 4, pattern="tr38901", polarization="cross"), ue=Array(), ofdm=OFDM(300, 9e6),
        split="random", batch_size=_BATCH,
        sequence=Sequence(16, 2.352e-3, horizon=_HORIZON, directions="any"), observation=[Noise((snr_db, snr_db))],
        seed=seed,
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    errors: dict[str, list[Tensor]] = {name: [] for name in _PREDICTORS}
    for rows in data.predict_dataloader():
        batch = data.finish(rows)
        for name, predict in _PREDICTORS.items():
            error = prediction_error(predict(batch["csi"], _HORIZON), batch, antennas=True)
            errors[name].append(error.mean(1).double())
    found = {}
    for name, parts in errors.items():
        each = torch.cat(parts)
        spread = float(each.std() / each.mean()) / math.sqrt(len(each))
        found[name] = (10 * math.log10(float(each.mean())), 10 / math.log(10) * spread)
    return found


def report(cells: dict[float, dict[str, tuple[float, float]]], links: int) -> str:
    """Return a Markdown table of the cells of so many links by speed [m/s], with the published values.

    The standard error of a published value is that of ours at their 100 links.
    """
    columns = [f"{speed:g} m/s{kind}" for speed in cells for kind in ("", ", published")]
    lines = [["NMSE [dB]", *columns]]
    for name in (*_PREDICTORS, *(name for name in PUBLISHED if name not in _PREDICTORS)):
        values = []
        for speed, found in cells.items():
            values.append(f"{found[name][0]:.2f} ± {found[name][1]:.2f}" if name in found else "")
            known = f"{PUBLISHED[name][speed]:.1f}" if speed in PUBLISHED.get(name, {}) else ""
            if known and name in found:
                known += f" ± {found[name][1] * math.sqrt(links / _PUBLISHED_LINKS):.1f}"
            values.append(known)
        lines.append([name, *values])
    return ruled(lines)


def main() -> None:
    """Print the NMSE of classical predictors in two cells of CSI-4CAST's table, with the published values."""
    parser = argparse.ArgumentParser(prog="python -m foundation.evaluation.csi4cast", description=main.__doc__)
    parser.add_argument("--links", type=int, default=400, help="links of each cell [400]")
    parser.add_argument("--seed", type=int, default=0, help="draws links, motion and noise [0]")
    options = parser.parse_args()

    def work() -> None:
        print(report({speed: cell(speed, options.links, options.seed) for speed in (1.0, 9.0)}, options.links))

    sys.exit(exit_status(work))


if __name__ == "__main__":
    main()
