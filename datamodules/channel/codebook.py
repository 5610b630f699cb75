"""DFT beam codebooks and the power each beam receives."""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM
from datamodules.channel.response import array_response, link_factors
from datamodules.sites.paths import Paths


def dft_codebook(array: Array, num_beams: int | None = None) -> Tensor:
    """Return the DFT beams of a linear or rectangular array.

    The beams of n elements point at the n_b direction cosines (2 q - n_b) / n_b x spacing^-1 / 2, q = 0 .. n_b - 1, so
    that -90 and +90 degrees, one and the same beam of a half-wavelength array, occur once. With as many beams as
    elements the codebook is unitary. A rectangular array takes the Kronecker product over rows and columns, both
    oversampled by the same factor.

    Args:
        array: The array; its orientation and pattern do not enter.
        num_beams: Number of beams Q; by default one an element.

    Returns:
        Codebook, shape (Q, T), unit norm rows, complex64; a beam s is applied as H s.

    Raises:
        ValueError: `num_beams` is not the number of elements times a whole factor (its square for a rectangle).
    """
    num_beams = num_beams or array.num_elements
    factor = num_beams / array.num_elements
    if array.rows > 1 and array.cols > 1:
        factor = factor**0.5
    rows, cols = (round(n * factor) if n > 1 else 1 for n in (array.rows, array.cols))
    if rows * cols != num_beams or min(rows, cols) < 1:
        raise ValueError(f"no DFT codebook of {num_beams} beams for an array of {array.rows} x {array.cols}")
    return torch.kron(_dft(array.rows, rows), _dft(array.cols, cols))


def _dft(num_elements: int, num_beams: int) -> Tensor:
    """Return beams (num_beams, num_elements), matched to e^{+j 2 pi n q / num_beams}, directions in rising order."""
    beams = torch.arange(num_beams, dtype=torch.float64) - num_beams // 2
    turns = -beams[:, None] * torch.arange(num_elements, dtype=torch.float64) / num_beams
    return torch.polar(torch.full_like(turns, num_elements**-0.5), 2 * torch.pi * turns).to(torch.complex64)


def beam_power(csi: Tensor, codebook: Tensor) -> Tensor:
    """Return ||H s_b||^2 summed over subcarriers and receive antennas (CSI-CLIP eq 5 and above).

    Args:
        csi: Shape (B, R, T, K).
        codebook: Shape (Q, T).

    Returns:
        Power [W for 1 W sent in every subcarrier], shape (B, Q).
    """
    return torch.einsum("brtk,qt->brqk", csi, codebook.to(csi)).abs().square().sum((1, 3))


def beam_power_of_paths(
    paths: Paths, bs: Array, ue: Array, ofdm: OFDM, codebook: Tensor, mount: Tensor | None = None
) -> Tensor:
    """Return what `beam_power` gives for the CSI of `paths`, without making the CSI.

    With c_p,b = g_p a_bs(aod_p) . s_b, the power of beam b is the quadratic form sum_pq c_p,b c_q,b^* U_pq F_pq, where
    U and F are the Gram matrices of the paths over receive antennas and over subcarriers: P^2 terms a beam instead of
    R T K.

    Returns:
        Power [W for 1 W sent in every subcarrier], shape (B, Q).
    """
    space, tones = link_factors(paths, Array(), ue, ofdm)
    space, tones = space.permute(1, 2, 0), tones.permute(1, 2, 0)
    gram = (space @ space.mH) * (tones @ tones.mH)
    beams = array_response(paths.aod, bs, mount) @ codebook.T.to(space)
    return (beams * (gram @ beams.conj())).sum(1).real.clamp_min(0)
