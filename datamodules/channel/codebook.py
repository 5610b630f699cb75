"""DFT codebooks, beam power, codebook feedback, precoders and rates."""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.channel.arrays import Array, is_polarized
from datamodules.channel.ofdm import OFDM
from datamodules.channel.response import array_response
from datamodules.channel.synthesis import fastest_factors, synthesize
from datamodules.errors import InputError, check_size
from datamodules.sites.paths import Paths


def dft_codebook(array: Array, num_beams: int | None = None) -> Tensor:
    """Return the DFT beams of a linear or rectangular array.

    The n_b beams along an axis point at the direction cosines (q - floor(n_b / 2)) / (n_b spacing), q = 0 .. n_b - 1,
    so that -90 and +90 degrees, one and the same beam of a half-wavelength array, occur once. With as many beams as
    elements the codebook is unitary. A rectangular array takes the Kronecker product over rows and columns, both
    oversampled by the same factor, up to rounding; with two polarisations each beam occurs with the second in opposite
    phase and in phase.

    Args:
        array: The array; orientation and pattern have no effect.
        num_beams: Number Q of beams; by default the number of elements.

    Returns:
        Codebook, shape (Q, T), unit norm rows, complex64; a beam s is applied as H s.

    Raises:
        InputError: `num_beams` is no product of the beams over rows, columns and polarisations, or does not fit memory.
    """
    num_beams = num_beams or array.num_elements
    check_size(num_beams * array.num_elements, f"a codebook of {num_beams} beams of {array.num_elements} antennas")
    factor, phases = num_beams / array.num_elements, array.num_polarizations
    if array.rows > 1 and array.cols > 1:
        factor = factor**0.5
    rows, cols = (round(n * factor) if n > 1 else 1 for n in (array.rows, array.cols))
    if phases * rows * cols != num_beams or min(rows, cols) < 1:
        size = f"{array.rows} x {array.cols}{' of two polarisations' if phases > 1 else ''}"
        raise InputError(
            f"no DFT codebook of {num_beams} beams for an array of {size}: set data.num_beams, such as to "
            f"{array.num_elements} or {4 * array.num_elements}"
        )
    beams = torch.kron(_dft(array.rows, rows), _dft(array.cols, cols))
    return torch.kron(_dft(phases, phases), beams)


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
    """Return `beam_power` of the CSI of `paths`, without synthesis of the CSI.

    With c_p,b = g_p a_bs(aod_p) . s_b, the power of beam b is the quadratic form sum_pq c_p,b c_q,b^* U_pq F_pq, where
    U and F are the Gram matrices of the paths over receive antennas and over subcarriers: P^2 terms for each beam
    instead of R T K. Arrays of two polarisations, whose U differs between pairs, take the CSI itself.

    Returns:
        Power [W for 1 W sent in every subcarrier], shape (B, Q).
    """
    if is_polarized(bs, ue):
        return beam_power(synthesize(paths, bs, ue, ofdm, mount=mount), codebook)
    space, tones = (factor.permute(1, 2, 0) for factor in fastest_factors(paths, bs, Array(), ofdm, mount))
    gram = tones @ tones.mH
    if ue.num_elements > 1 or not ue.isotropic:
        arrival = array_response(paths.aoa[:, : space.shape[1]], ue)
        gram = gram * (arrival @ arrival.mH)
    beams = space @ codebook.T.to(space)
    return (beams * (gram @ beams.conj())).sum(1).real.clamp_min(0)


def dft_weights(csi: Tensor, codebook: Tensor) -> Tensor:
    """Return the correlation of each link with every codeword, z = |D^H h| (twin calibration section III).

    Args:
        csi: Shape (B, R, T, K). Powers are averaged over receive antennas and subcarriers; the paper has one each.
        codebook: Shape (Q, T), as `dft_codebook` returns it.

    Returns:
        Shape (B, Q).
    """
    return (beam_power(csi, codebook) / (csi.shape[1] * csi.shape[3])).sqrt()


def normalized_weights(weights: Tensor) -> Tensor:
    """Normalise weights (B, Q) to sum 1; zero weights remain zero."""
    return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)


def top_codewords(weights: Tensor, count: int) -> Tensor:
    """Return the codewords of the largest weights in descending order (twin calibration eq 9).

    Args:
        weights: Shape (B, Q).
        count: Number P of codewords.

    Returns:
        Indices, shape (B, P), int64.
    """
    return weights.topk(count, dim=-1).indices


def strongest_weights(weights: Tensor, count: int) -> Tensor:
    """Return weights (B, Q) with all but the `count` largest set to zero: codebook feedback (section IV-B)."""
    values, indices = weights.topk(count, dim=-1)
    return torch.zeros_like(weights).scatter(-1, indices, values)


def estimated_coefficients(
    csi: Tensor,
    codebook: Tensor,
    codewords: Tensor,
    noise: Tensor | None = None,
    drawn: Tensor | None = None,
) -> Tensor:
    """Return the coefficients that a user estimates from precoded pilots (twin calibration eq 10).

    One pilot of unit power for each codeword s gives the least-squares estimate of h s.

    Args:
        csi: True channel for 1 W sent in every subcarrier, shape (B, R, T, K).
        codebook: Shape (Q, T).
        codewords: Indices, shape (B, P).
        noise: Noise power of an estimate [W], shape (B,); by default there is none.
        drawn: Complex noise of unit power, shape (B, R, P, K), see `LinkDraws`.

    Returns:
        Complex, shape (B, R, P, K).
    """
    coefficients = torch.einsum("brtk,bpt->brpk", csi, codebook.to(csi)[codewords])
    if noise is None or drawn is None:
        return coefficients
    return coefficients + drawn * noise.sqrt()[:, None, None, None]


def least_norm_channel(coefficients: Tensor, codebook: Tensor, codewords: Tensor) -> Tensor:
    """Return the channel of least norm with the reported coefficients, w = Q x (twin calibration section IV-D).

    Args:
        coefficients: Shape (B, R, P, K).
        codebook: Shape (Q, T); the codewords need not be orthogonal.
        codewords: Indices, shape (B, P).

    Returns:
        Complex, shape (B, R, T, K).
    """
    chosen = codebook.to(coefficients)[codewords]
    parts: Tensor = torch.linalg.solve((chosen @ chosen.mH)[:, None], coefficients)
    return chosen.mH[:, None] @ parts


def is_selected(codewords: Tensor, weights: Tensor) -> Tensor:
    """Return 1 if the strongest codeword of a link is among the selected ones, otherwise 0, (B,).

    Args:
        codewords: Selected indices, shape (B, P).
        weights: True weights, shape (B, Q).
    """
    return (codewords == weights.argmax(-1, keepdim=True)).any(-1).float()


def noise_power(csi: Tensor, snr_db: float) -> Tensor:
    """Return the noise power [W] of each link at a given SNR, (B,).

    Args:
        csi: Channel for 1 W sent in every subcarrier, shape (B, R, T, K).
        snr_db: SNR [dB] between single antennas, averaged over antennas and subcarriers, without array gain.
    """
    return csi.abs().square().mean((1, 2, 3)) * 10 ** (-snr_db / 10)


def precoder(csi: Tensor) -> Tensor:
    """Return the beams of largest received power on every subcarrier, (B, T, K) of unit norm, from CSI (B, R, T, K).

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
        beams: Output of `precoder` for the estimated channel, shape (B, T, K).
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
