"""What channel knowledge is worth: precoders of it, how well they fit the true channel, and the rate they reach."""

from __future__ import annotations

import torch
from torch import Tensor


def noise_power(csi: Tensor, snr_db: float) -> Tensor:
    """Return the noise power [W] of each link at a given SNR, (B,).

    Args:
        csi: Channel for 1 W sent in every subcarrier, shape (B, R, T, K).
        snr_db: SNR [dB] of a signal sent from one antenna, at one receive antenna, on average over all of them and the
            subcarriers; a beam that fits adds its array gain.
    """
    return csi.abs().square().mean((1, 2, 3)) * 10 ** (-snr_db / 10)


def precoder(csi: Tensor) -> Tensor:
    """Return the beams of most power on every subcarrier, (B, T, K) of unit norm, from CSI (B, R, T, K).

    A beam f is applied as H f. For one receive antenna it is h^* / |h|, else the strongest right singular vector.
    """
    matrices = csi.permute(0, 3, 1, 2)
    if csi.shape[1] == 1:
        beams = torch.nn.functional.normalize(matrices[:, :, 0].conj(), dim=-1, eps=torch.finfo(csi.real.dtype).tiny)
    else:
        beams = torch.linalg.svd(matrices, full_matrices=False)[2][:, :, 0].conj()
    return beams.permute(0, 2, 1)


def rate(csi: Tensor, beams: Tensor, noise: Tensor) -> Tensor:
    """Return the rate of each link [bit/s/Hz], the mean over subcarriers of log2(1 + |H f|^2 / noise).

    Twin feedback eq 4 with power shared evenly, divided by K; receive antennas are combined at maximum ratio.

    Args:
        csi: True channel for 1 W sent in every subcarrier, shape (B, R, T, K).
        beams: What `precoder` makes of the channel as it is known, shape (B, T, K).
        noise: Noise power [W], shape (B,).

    Returns:
        Shape (B,).
    """
    power = torch.einsum("brtk,btk->brk", csi, beams).abs().square().sum(1)
    rates: Tensor = (1 + power / noise[:, None]).log2().mean(1)
    return rates


def cosine(csi: Tensor, known: Tensor) -> Tensor:
    """Return |h^H w| / (|h| |w|) over transmit antennas (twin calibration eq 11), (B,) in [0, 1].

    The mean over receive antennas and subcarriers, each of which is precoded by itself; of those of the paper there is
    one. Where either vector is zero it is 0.

    Args:
        csi: True channel h, shape (B, R, T, K).
        known: Channel as it is known w, likewise.
    """
    inner = (csi.conj() * known).sum(2).abs()
    norms = torch.linalg.vector_norm(csi, dim=2) * torch.linalg.vector_norm(known, dim=2)
    cosines: Tensor = (inner / norms.clamp_min(torch.finfo(norms.dtype).tiny)).mean((1, 2))
    return cosines
