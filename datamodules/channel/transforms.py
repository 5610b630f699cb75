"""From complex CSI to what a network reads: the only place where complex becomes real."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def to_delay(csi: Tensor) -> Tensor:
    """Return the channel impulse response: the unitary inverse DFT over subcarriers, (..., K) to (..., L = K)."""
    taps: Tensor = torch.fft.ifft(csi, dim=-1, norm="ortho") if csi.numel() else csi  # MKL refuses no links
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
    """Tell which links have any power, shape (B,) bool: those without, say to a base station out of reach, are zeros.

    They count in no statistic of the input.

    Args:
        csi: Complex, shape (B, ...).
    """
    return csi.flatten(1).abs().amax(1) > 0


def standard_level(csi: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the power of each link [dB] over mean and deviation [dB] of the train side, shape (B,).

    A link without power, whose level has no end, counts as four deviations below the mean.
    """
    return torch.where(received(csi), (power_db(csi) - mean) / std, -4.0)


def unit_power(csi: Tensor) -> Tensor:
    """Scale every link to a mean power of one; a link of zeros stays zero."""
    power = csi.abs().square().flatten(1).mean(1)
    scale = torch.where(power > 0, power, torch.ones_like(power)).rsqrt()
    return csi * scale.reshape(-1, *[1] * (csi.ndim - 1))


def log_level(channel: Tensor) -> Tensor:
    """Return log(1 + 10 |h|) of a unit-power channel: entries are seen down to 20 dB below their mean power."""
    return (10.0 * channel.abs()).log1p()


def level_image(csi: Tensor) -> Tensor:
    """Return the log-magnitude of the unit-power channel over angle and delay, plain and Hann-windowed, as an image.

    The plain plane keeps the resolution, the windowed one shows weak paths beside strong ones. Phases are left out: one
    of the oscillator, and one that turns once a wavelength, which no network learns from few links.

    Args:
        csi: Complex, shape (B, R, T, K).

    Returns:
        Shape (B, 2, R*T, K).
    """
    channel = unit_power(csi)
    planes = torch.stack([log_level(to_delay(to_angle(each))) for each in (channel, tapered(channel))], dim=1)
    return rearrange(planes, "b c r t k -> b c (r t) k")


def tapered(csi: Tensor) -> Tensor:
    """Weigh antennas and subcarriers of (..., T, K) by a Hann window: side lobes of angle and delay end 31 dB down."""
    antennas, subcarriers = (
        # without the zeros at both ends: a single antenna keeps its weight of one
        torch.hann_window(count + 2, periodic=False, device=csi.device, dtype=csi.real.dtype)[1:-1]
        for count in csi.shape[-2:]
    )
    return csi * torch.outer(antennas, subcarriers)


def aligned(channel: Tensor) -> Tensor:
    """Turn each channel (B, ...) so that its strongest entry is real and positive; zeros stay zeros."""
    flat = channel.flatten(1)
    strongest = flat.gather(1, flat.abs().argmax(1, keepdim=True))
    size = strongest.abs()
    turn = torch.where(size > 0, strongest.conj() / size.clamp_min(torch.finfo(size.dtype).tiny), 1.0)
    return channel * turn.reshape(-1, *[1] * (channel.ndim - 1))
