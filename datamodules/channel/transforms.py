"""Transforms of complex CSI to the real inputs of networks, and constants on its device."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from datamodules.errors import check_choice

#: entry whose phase is removed from a channel: the first one, as in the code of twin feedback, the strongest, or none
PhaseReference = Literal["first", "strongest", "none"]


def to_delay(csi: Tensor) -> Tensor:
    """Return the channel impulse response: the unitary inverse DFT over subcarriers, (..., K) to (..., L = K)."""
    taps: Tensor = torch.fft.ifft(csi, dim=-1, norm="ortho") if csi.numel() else csi  # MKL rejects empty batches
    return taps


def to_angle(csi: Tensor) -> Tensor:
    """Return the unitary DFT over transmit antennas, (..., T, K) to (..., T, K)."""
    angles: Tensor = torch.fft.fft(csi, dim=-2, norm="ortho") if csi.numel() else csi
    return angles


def image(channel: Tensor) -> Tensor:
    """Return real and imaginary part as an image of antenna pairs by subcarriers (or taps).

    Args:
        channel: Complex, shape (B, R, T, K).

    Returns:
        Shape (B, 2, R*T, K).
    """
    return rearrange(torch.view_as_real(channel), "b r t k c -> b c (r t) k")


def power_db(csi: Tensor) -> Tensor:
    """Return the mean power of each link over antennas and subcarriers [dB], shape (B,).

    Args:
        csi: Complex, shape (B, ...).
    """
    power = csi.abs().square().flatten(1).mean(1)
    return 10 * torch.log10(power.clamp_min(1e-30))


def received(csi: Tensor) -> Tensor:
    """Return a mask of the links with nonzero power, shape (B,), bool; the others are excluded from input statistics.

    Args:
        csi: Complex, shape (B, ...).
    """
    return csi.flatten(1).abs().amax(1) > 0


def deviation(values: Tensor) -> Tensor:
    """Return the standard deviation over the first axis; of fewer than two values, which have none, return 1."""
    return values.std(0) if len(values) > 1 else values.new_ones(values.shape[1:])


def standard_level(csi: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the power of each link [dB], standardised by mean and deviation of the train side [dB], shape (B,).

    The value of a link without power is -4, four deviations below the mean.
    """
    return torch.where(received(csi), (power_db(csi) - mean) / std, -4.0)


def unit_power(csi: Tensor) -> Tensor:
    """Normalise every link to mean power 1; a zero link remains zero."""
    power = csi.abs().square().flatten(1).mean(1)
    scale = torch.where(power > 0, power, torch.ones_like(power)).rsqrt()
    return csi * scale.reshape(-1, *[1] * (csi.ndim - 1))


def log_level(channel: Tensor) -> Tensor:
    """Return log(1 + 10 |h|) of a unit-power channel, sensitive to entries down to 20 dB below the mean power."""
    return (10.0 * channel.abs()).log1p()


def level_image(csi: Tensor) -> Tensor:
    """Return the log-magnitude of the unit-power channel over angle and delay, without and with a Hann window.

    Without window the resolution is best; with the window weak paths are visible beside strong ones. The phases, which
    change by a full turn within a wavelength, are not contained.

    Args:
        csi: Complex, shape (B, R, T, K).

    Returns:
        Shape (B, 2, R*T, K).
    """
    channel = unit_power(csi)
    planes = torch.stack([log_level(to_delay(to_angle(each))) for each in (channel, tapered(channel))], dim=1)
    return rearrange(planes, "b c r t k -> b c (r t) k")


def tapered(csi: Tensor) -> Tensor:
    """Multiply antennas and subcarriers of (..., T, K) by a Hann window, whose side lobes are 31 dB down."""
    antennas, subcarriers = (
        # without the zeros at both ends, so that a single antenna has weight 1
        torch.hann_window(count + 2, periodic=False, device=csi.device, dtype=csi.real.dtype)[1:-1]
        for count in csi.shape[-2:]
    )
    return csi * torch.outer(antennas, subcarriers)


def aligned(channel: Tensor) -> Tensor:
    """Multiply each channel (B, ...) by a phase that makes its strongest entry real and positive."""
    turn = _phase(channel.flatten(1), "strongest").conj()
    return channel * turn.reshape(-1, *[1] * (channel.ndim - 1))


def delay_angular(csi: Tensor, rows: int = 32, reference: PhaseReference = "strongest") -> tuple[Tensor, Tensor]:
    """Return the truncated, normalised channel in the delay-angular domain (twin feedback eq 12, 13).

    The DFTs are unitary. With H of the paper holding h_k^H in its rows, this is the conjugate of its G.

    Args:
        csi: Complex, shape (B, R, T, K).
        rows: Number of delay taps, the first ones, at most K.
        reference: Entry whose phase is removed.

    Returns:
        Channel (B, rows, R*T) of unit Frobenius norm, and the complex factor (B,) of norm and phase by which it was
        divided. Zero channels remain zero, with a factor of 0.
    """
    channel = cut(csi, rows)
    flat = channel.flatten(1)
    norm = torch.linalg.vector_norm(flat, dim=1)
    scale = norm * _phase(flat, reference)
    divisor = torch.where(norm > 0, scale, torch.ones_like(scale))
    return channel / divisor[:, None, None], scale


def cut(csi: Tensor, rows: int) -> Tensor:
    """Return the first delay taps in the delay-angular domain, (B, R, T, K) to (B, rows, R*T), not normalised.

    Raises:
        ValueError: There are fewer than `rows` subcarriers.
    """
    if not 1 <= rows <= csi.shape[-1]:
        raise ValueError(f"cannot keep {rows} delay taps of {csi.shape[-1]} subcarriers")
    # delays are absolute and the first tap is delay 0, so the longest delays are removed
    return rearrange(to_delay(to_angle(csi))[..., :rows], "b r t l -> b l (r t)")


def to_csi(channel: Tensor, num_subcarriers: int, num_receive: int = 1, scale: Tensor | None = None) -> Tensor:
    """Return the CSI of a delay-angular channel, zero-padded to K delay taps.

    Args:
        channel: Shape (B, rows, R*T).
        num_subcarriers: Number K of subcarriers.
        num_receive: Number R of receive antennas.
        scale: Factor returned by `delay_angular` (B,); by default 1.

    Returns:
        Complex, shape (B, R, T, K).
    """
    if scale is not None:
        channel = channel * scale[:, None, None]
    angles = rearrange(channel, "b l (r t) -> b r t l", r=num_receive)
    padded = torch.nn.functional.pad(angles, (0, num_subcarriers - channel.shape[1]))
    csi: Tensor = torch.fft.fft(torch.fft.ifft(padded, dim=-2, norm="ortho"), dim=-1, norm="ortho")
    return csi


def kept_energy(csi: Tensor, rows: int) -> Tensor:
    """Return the fraction of the energy of each link in the first delay taps, (B,); NaN without energy."""
    kept = cut(csi, rows).abs().square().sum((1, 2))
    return kept / csi.abs().square().sum((1, 2, 3))


def _phase(flat: Tensor, reference: PhaseReference) -> Tensor:
    """Return the phasor (B,) of the reference entry of each row (B, N); 1 if that entry is zero."""
    check_choice("reference", reference, PhaseReference)
    if reference == "none":
        return torch.ones_like(flat[:, 0])
    entry = flat[:, 0] if reference == "first" else flat.gather(1, flat.abs().argmax(1, keepdim=True)).squeeze(1)
    size = entry.abs()
    return torch.where(size > 0, entry / size.clamp_min(torch.finfo(size.dtype).tiny), torch.ones_like(entry))


@lru_cache(maxsize=256)
def constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers, in tuples of any depth, as a tensor, copied to the device once: every copy waits for a GPU."""
    with torch.inference_mode(False):  # else no gradient could pass through what a call without gradients has cached
        return torch.tensor(values, dtype=dtype).to(device)
