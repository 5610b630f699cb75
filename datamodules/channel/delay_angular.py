"""The delay-angular domain of CSI feedback: where a channel has few entries that are not nearly zero, and back."""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from datamodules.channel.transforms import to_angle, to_delay

#: whose phase is taken out of a channel: its entry [0, 0], as the authors of twin feedback do, its strongest entry, or
#: no one's
PhaseReference = Literal["first", "strongest", "none"]


def delay_angular(csi: Tensor, rows: int = 32, reference: PhaseReference = "strongest") -> tuple[Tensor, Tensor]:
    """Return what a feedback network reads: the first delays over angles, of unit norm (twin feedback eq 12, 13).

    The DFTs are unitary. With H of the paper holding h_k^H in its rows, this is the conjugate of its G.

    Args:
        csi: Complex, shape (B, R, T, K).
        rows: How many delay taps to keep, at most K.
        reference: Whose phase to take out.

    Returns:
        Channel (B, rows, R*T) of unit Frobenius norm, and the complex scale (B,) that was divided out: the norm and the
        phase. A link whose kept taps are all zero stays zero, with a scale of 0.
    """
    channel = cut(csi, rows)
    flat = channel.flatten(1)
    norm = torch.linalg.vector_norm(flat, dim=1)
    scale = norm * _phase(flat, reference)
    divisor = torch.where(norm > 0, scale, torch.ones_like(scale))
    return channel / divisor[:, None, None], scale


def cut(csi: Tensor, rows: int) -> Tensor:
    """Return the first delay taps over angles, (B, R, T, K) to (B, rows, R*T), neither scaled nor turned.

    Raises:
        ValueError: There are fewer than `rows` subcarriers.
    """
    if not 1 <= rows <= csi.shape[-1]:
        raise ValueError(f"cannot keep {rows} delay taps of {csi.shape[-1]} subcarriers")
    # the first tap holds the delay 0: delays are absolute, so what is cut off is the longest
    return rearrange(to_delay(to_angle(csi))[..., :rows], "b r t l -> b l (r t)")


def to_csi(channel: Tensor, num_subcarriers: int, num_receive: int = 1, scale: Tensor | None = None) -> Tensor:
    """Return the CSI of a delay-angular channel, its missing delays taken as zero.

    Args:
        channel: Shape (B, rows, R*T).
        num_subcarriers: Number K of subcarriers.
        num_receive: Number R of receive antennas.
        scale: What `delay_angular` divided out (B,); by default 1.

    Returns:
        Complex, shape (B, R, T, K). Without a cut it is the CSI that the channel was made of.
    """
    if scale is not None:
        channel = channel * scale[:, None, None]
    angles = rearrange(channel, "b l (r t) -> b r t l", r=num_receive)
    padded = torch.nn.functional.pad(angles, (0, num_subcarriers - channel.shape[1]))
    csi: Tensor = torch.fft.fft(torch.fft.ifft(padded, dim=-2, norm="ortho"), dim=-1, norm="ortho")
    return csi


def kept_energy(csi: Tensor, rows: int) -> Tensor:
    """Return the share of each link's energy that the first delay taps hold, (B,); NaN for a link with none."""
    kept = cut(csi, rows).abs().square().sum((1, 2))
    return kept / csi.abs().square().sum((1, 2, 3))


def _phase(flat: Tensor, reference: PhaseReference) -> Tensor:
    """Return the phasor (B,) of an entry of each row (B, N); 1 where that entry is zero."""
    if reference == "none":
        return torch.ones_like(flat[:, 0])
    entry = flat[:, 0] if reference == "first" else flat.gather(1, flat.abs().argmax(1, keepdim=True)).squeeze(1)
    size = entry.abs()
    return torch.where(size > 0, entry / size.clamp_min(torch.finfo(size.dtype).tiny), torch.ones_like(entry))
