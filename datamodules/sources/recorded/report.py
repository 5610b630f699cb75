"""Summary of recorded CSI: axes, times, gaps, duplicates, subcarriers, power and delays."""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.sites.recording import Recording, regular

#: number of links read at a time
_ROWS = 256
#: a gap is a time step above this multiple of the median step
_PAUSE = 10.0
#: number of gaps and subcarriers listed; further ones are counted
_LISTED = 5
#: tolerance of a constant subcarrier relative to the largest magnitude, that of half precision
_CONSTANT = 2e-3


def report(recording: Recording, carrier: float | None = None) -> dict[str, str]:
    """Return axes, arrays, grid, times, gaps, duplicates, empty subcarriers, power and delays, as text by name.

    Args:
        recording: Links (U, R, T, K) or (U, N, R, T, K).
        carrier: Frequency of subcarrier 0 [Hz].
    """
    shape = recording.pairs.shape[:-1]
    letters = ("U", "N", "R", "T", "K") if len(shape) == 5 else ("U", "R", "T", "K")
    axes = ", ".join(f"{letter} {size}" for letter, size in zip(letters, shape, strict=True))
    users, antennas = shape[-3:-1]
    arrays = [
        f"{side} {rows[0]} x {rows[1]}" if rows else f"{side} {count}, of unknown rows and columns"
        for side, rows, count in (("T", recording.bs_shape, antennas), ("R", recording.ue_shape, users))
    ]
    words = {"axes": axes + " (U snapshots of one device)" * recording.is_series, "arrays": "; ".join(arrays)}
    if recording.bandwidth is not None:
        spacing = recording.bandwidth / shape[-1]
        words["subcarriers"] = f"{shape[-1]} on {recording.bandwidth / 1e6:g} MHz, {spacing / 1e3:g} kHz apart"
        if carrier is not None:
            middle = carrier + spacing * (shape[-1] // 2)
            words["carrier"] = f"{carrier / 1e9:.9g} GHz at the lowest subcarrier, {middle / 1e9:.9g} GHz at the middle"
    words |= _of_times(recording)
    located = int(recording.position.isfinite().all(1).sum())
    words["positions"] = f"{located} of {len(recording)} links"
    return words | _of_values(recording)


def _of_times(recording: Recording) -> dict[str, str]:
    stamps = recording.timestamps
    apart = f", snapshots {recording.interval:.4g} s apart" if recording.interval else ""
    if stamps is None:
        return {"time": f"not recorded{apart}"}
    first, last = float(stamps.min()), float(stamps.max())
    words = {"time": f"{last - first:.4g} s, from {first:.3f} to {last:.3f} s{apart}"}
    if stamps.ndim == 1 and len(stamps) > 1:
        steps = stamps.diff()
        step = recording.interval or float(steps.median())
        late = steps > _PAUSE * step if not recording.is_series else (steps > step) & ~regular(steps, step)
        gaps = late.nonzero().flatten().tolist()
        shown = ", ".join(f"{float(steps[g]):.4g} s after link {g}" for g in gaps[:_LISTED])
        words["gaps"] = _counted(len(gaps), shown)
        words["gaps"] += f"; {float(steps[late].sum()):.4g} s in all" if gaps else ""
    return words


def _of_values(recording: Recording) -> dict[str, str]:
    subcarriers = recording.pairs.shape[-2]
    zero = torch.ones(subcarriers, dtype=torch.bool)
    constant = torch.full((subcarriers,), len(recording) > 1)
    profile = torch.zeros(subcarriers, dtype=torch.float64)
    seen: set[int] = set()
    first = recording.csi(slice(0, 1))
    limit = _CONSTANT * float(recording.scale.max())
    for start in range(0, len(recording), _ROWS):
        rows = slice(start, start + _ROWS)
        csi = recording.csi(rows)
        zero &= ~(csi != 0).reshape(-1, subcarriers).any(0)
        constant &= ((csi - first).abs() <= limit).reshape(-1, subcarriers).all(0)
        profile += _profile(csi.reshape(-1, subcarriers))
        seen |= {hash(row.numpy().tobytes()) for row in torch.view_as_real(csi).flatten(1)}
    power = recording.power[recording.has_path].double().clamp_min(1e-300).log10() * 10
    unserved = len(recording) - len(power)
    words = {
        "duplicates": _counted(len(recording) - len(seen), "links that equal an earlier one in every value"),
        "zero subcarriers": _tones(zero),
        "constant subcarriers": _tones(constant & ~zero),
        "power": f"{power.min():.1f} to {power.max():.1f} dB, {power.median():.1f} dB in the median"
        if len(power)
        else "",
    }
    words["power"] += f"; {unserved} links without any" if unserved else ""
    quarter = subcarriers // 4
    before, after = float(profile[-quarter:].sum()), float(profile[1 : quarter + 1].sum())
    if quarter >= 4 and before > 2 * after:
        words["delays"] = (
            "more power arrives before the strongest path than after it: pairs may be (imaginary, real), see `pairs`, "
            "or subcarriers in falling order"
        )
    return words


def _profile(csi: Tensor) -> Tensor:
    """Return the power delay profile, rotated to start at the strongest tap, (K,), summed over channels (M, K)."""
    power = torch.fft.ifft(csi, dim=1).abs().square().double()
    power = power / power.sum(1, keepdim=True).clamp_min(1e-300)
    taps = power.shape[1]
    order = (power.argmax(1, keepdim=True) + torch.arange(taps)) % taps
    profile: Tensor = power.gather(1, order).sum(0)
    return profile


def _tones(chosen: Tensor) -> str:
    numbers = chosen.nonzero().flatten().tolist()
    share = f"{100 * len(numbers) / len(chosen):.3g} %: "
    return _counted(len(numbers), share + ", ".join(map(str, numbers[:_LISTED])))


def _counted(count: int, shown: str) -> str:
    more = ", ..." if count > _LISTED and "," in shown else ""
    return f"{count} ({shown}{more})" if count else "none"
