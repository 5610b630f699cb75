"""What a model asks of data, and the description of the training data in checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from datamodules.batch import SETTINGS
from datamodules.channel.impairments import Noise
from datamodules.channel.motion import MOBILITIES, SPEEDS
from datamodules.channel.ofdm import SPEED_OF_LIGHT
from datamodules.channel.transforms import power_db, received
from datamodules.errors import InputError
from foundation.encoder import Encoder

#: number of links for mean and deviation of the power
_LINKS = 256
#: deviations from the mean power from which a warning is given, and the least deviation assumed [dB]
_FAR, _LEAST_DB = 4.0, 3.0


def check_keys(datamodule: Any, reads: str, keys: Iterable[str]) -> None:
    """Check that batches of a datamodule have the given keys.

    Args:
        datamodule: The datamodule; None, or one that does not say its `batch_keys`, is not checked.
        reads: Beginning of the message, such as `encoder ResNet reads`.
        keys: The keys.

    Raises:
        InputError: A key is missing.
    """
    held = getattr(datamodule, "batch_keys", None)
    lacking = [key for key in keys if held is not None and key not in held]
    if lacking:
        hints = dict.fromkeys(SETTINGS[key] for key in lacking if key in SETTINGS)
        hint = f": {' and '.join(hints)}" if hints else ""
        raise InputError(f"{reads} {', '.join(lacking)}, which the data lack{hint}")


def check_inputs(datamodule: Any, reads: str, keys: Iterable[str]) -> None:
    """Check that a datamodule has the inputs of an encoder for every link; labels may be unknown for some.

    Raises:
        InputError: A key is missing, or it is `position`, and that of some users is unknown.
    """
    check_keys(datamodule, reads, keys)
    sites = getattr(getattr(datamodule, "sides", {}).get("all"), "sites", ())
    unlocated = next((site.name for site in sites if not site.is_located), None)
    if "position" in keys and unlocated is not None:
        raise InputError(
            f"{reads} position, which is unknown for some users of site {unlocated}: leave those users out of the "
            "data, or take an encoder of csi"
        )


def describe_data(datamodule: Any) -> dict[str, Any]:
    """Return the description of the training data that is stored in checkpoints.

    Args:
        datamodule: A `ChannelDataModule` after its setup; the description of any other is empty.

    Returns:
        `csi`, the numbers R, T and K; `snapshots` N, or None; `power_db`, mean and deviation over training links [dB];
        `snr_db`, range of the SNR of added noise [dB], or None; `doppler`, range of f_D T, the Doppler shift times the
        snapshot interval, or None; and names of `sources` and `cities` of the links.
    """
    if not hasattr(datamodule, "sides") or not hasattr(datamodule, "observation"):
        return {}
    train = datamodule.sides["train"]
    rows = torch.linspace(0, len(train) - 1, min(len(train), _LINKS)).long().tolist()
    csi = datamodule.finish(train.__getitems__(rows))["csi"]
    level = power_db(csi[received(csi)]).double()
    noises = [v for v in (*(datamodule.views or ()), *datamodule.observation) if isinstance(v, Noise)]
    spans = [noise.snr_db for noise in noises]
    return {
        "csi": list(csi.shape[-3:]),
        "snapshots": None if datamodule.sequence is None else csi.shape[-4],
        "power_db": [float(level.mean()), float(level.std(correction=0))],
        "snr_db": [min(low for low, _ in spans), max(high for _, high in spans)] if spans else None,
        "doppler": _doppler(datamodule.sequence, train.sites),
        "sources": sorted({type(each).__name__ for source in datamodule.sources for each in source.originals()}),
        "cities": list(train.cities),
    }


def with_earlier(data: dict[str, Any], earlier: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add sources and cities of earlier trainings, which the initial weights come from, to a description."""
    former = [*earlier]
    return data | {
        key: list(dict.fromkeys(chain(data[key], *(each.get(key, ()) for each in former))))
        for key in ("sources", "cities")
        if key in data
    }


def _doppler(sequence: Any, sites: Any) -> list[float] | None:
    """Return the range of f_D T; None without a sequence, and for recordings, whose speeds are unknown."""
    if sequence is None or len(sequence.times) < 2 or not all(site.links.has_rays for site in sites):
        return None
    weights = sequence.mobility or dict.fromkeys(MOBILITIES, 1.0)
    drawn = [sequence.speed] if sequence.speed else [SPEEDS[name] for name, weight in weights.items() if weight > 0]
    shifts = [
        speed * site.carrier_frequency / SPEED_OF_LIGHT
        for site in sites
        for span in ([site.domain["speed"]] if "speed" in site.domain else drawn)
        for speed in span
    ]
    interval = float(sequence.times[1] - sequence.times[0])
    return [float(min(shifts) * interval), float(max(shifts) * interval)]


def csi_shape(data: Mapping[str, Any], encoder: Encoder | None = None) -> tuple[int, int, int] | None:
    """Return R, T and K of the training data; 1 and R*T for R and T if only the product is known.

    Args:
        data: Description of the data in the checkpoint.
        encoder: The encoder, whose `csi_size` is used without a description.
    """
    if data.get("csi"):
        receive, transmit, subcarriers = data["csi"]
        return int(receive), int(transmit), int(subcarriers)
    size = None if encoder is None else encoder.csi_size
    return None if size is None else (1, *size)


def check_csi(encoder: Encoder, csi: Tensor, data: Mapping[str, Any]) -> None:
    """Check that CSI has the size of the training data, and warn if its power differs strongly.

    Args:
        encoder: The encoder, in eval mode.
        csi: Complex (U, R, T, K), or (U, N, R, T, K) for an encoder of sequences.
        data: Description of the data in the checkpoint, which may be empty.

    Raises:
        InputError: The size differs.
    """
    wanted = csi_shape(data)
    if wanted is not None and tuple(csi.shape[-3:]) != wanted:
        raise InputError(
            f"csi has (R, T, K) = {tuple(csi.shape[-3:])}, but the encoder was trained on {wanted}: bring it to these "
            "receive antennas, transmit antennas and subcarriers, or pre-train on data like yours"
        )
    heard = csi[received(csi)]
    if "power_db" not in data or not len(heard):
        return
    mean, std = data["power_db"]
    level = float(power_db(heard).median())
    if abs(level - mean) <= _FAR * max(std, _LEAST_DB):
        return
    few = heard[:16]
    if torch.allclose(encoder(few), encoder(few * 10 ** ((mean - level) / 20)), rtol=1e-3, atol=1e-3):
        return  # it does not see the scale
    warnings.warn(
        f"the median power of csi is {level:.0f} dB, but the encoder was trained on {mean:.0f} dB with a deviation of "
        f"{std:.0f} dB: multiply csi by {10 ** ((mean - level) / 20):.2g}, or its features mean little",
        stacklevel=3,
    )
