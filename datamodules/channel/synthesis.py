"""Synthesis of CSI from paths, for given arrays, subcarriers and velocities.

The sum over paths is a batched matrix product of the two factors of `datamodules.channel.response`, one over antennas
and one over subcarriers.

The time of small batches is dominated by the number of tensor operations. On the CPU, without gradients and for
isotropic elements, `datamodules.channel.synthesis_cpu` therefore computes both factors in one compiled call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.channel.arrays import Array, Reference, is_polarized, unit_vector
from datamodules.channel.ofdm import OFDM
from datamodules.channel.response import link_factors, unit_phasor
from datamodules.sites.paths import Paths

#: links synthesised at a time, so that the factors fit into the cache of the processor
_CHUNK = 128


def synthesize(
    paths: Paths,
    bs: Array,
    ue: Array,
    ofdm: OFDM,
    *,
    mount: Tensor | None = None,
    velocity: Tensor | None = None,
    times: Tensor | None = None,
    wavelength: float | Tensor | None = None,
    reference: Reference = "corner",
    out: Tensor | None = None,
) -> Tensor:
    r"""Sum the paths of every link into its CSI.

    .. math:: h[r, t, k] = \sum_p g_p\, a_{ue}[r](aoa_p)\, a_{bs}[t](aod_p)\, e^{-j 2 \pi k (B / K) \tau_p}

    The response a of an element at position q [wavelengths] is e^{+j 2 pi q . u} times its pattern; with two
    polarisations, g_p and the patterns are replaced by `polarized_gain`. The result equals `compute_channels` of
    DeepMIMO 4 times sqrt(K). With `times`, path p has the Doppler factor e^{+j 2 pi f_p t}, f_p = velocity . u_aoa /
    wavelength (3GPP TR 38.901 eq 7.5-22).

    Args:
        paths: Paths of U links.
        bs: Array of the base station.
        ue: Array of the user.
        ofdm: Subcarrier grid.
        mount: Rotation of the frame of each base station, local to global, shape (U, 3, 3), within which
            `bs.orientation` rotates the array. By default the global frame.
        velocity: User velocity [m/s], shape (3,) or (U, 3); needs `times` and `wavelength`.
        times: Snapshot instants [s], shape (N,), or (U, N) of each link; adds the axis N.
        wavelength: Carrier wavelength [m], a number or of shape () or (U,).
        reference: Phase reference of both arrays: the corner element (DeepMIMO) or the centre (Sionna).
        out: Output tensor of the same shape, such as an earlier result; not with autograd.

    Returns:
        CSI, shape (U, R, T, K), or (U, N, R, T, K) with `times`, complex64. A link with no path is zero.

    Raises:
        InputError: An array has two polarisations, and the paths have no `polarization`; or the reference is unknown.
        ValueError: Only some of `velocity`, `times` and `wavelength` are given, or `out` has the wrong shape.
    """
    given = [value is not None for value in (velocity, times, wavelength)]
    if any(given) and not all(given):
        raise ValueError("velocity, times and wavelength must be given together or not at all")
    num_times = 1 if times is None else times.shape[-1]
    rows = num_times * ue.num_elements * bs.num_elements
    num_links, num_tones = len(paths), ofdm.num_subcarriers
    shape: tuple[int, ...] = (num_links, ue.num_elements, bs.num_elements, num_tones)
    if times is not None:
        shape = (num_links, num_times, *shape[1:])
    if out is not None and (out.shape != shape or out.dtype != torch.complex64 or not out.is_contiguous()):
        raise ValueError(f"out must be contiguous complex64 of shape {shape}, got {out.dtype} {tuple(out.shape)}")
    if velocity is not None:
        velocity = velocity.to(paths.gain.device).expand(num_links, 3)
    if isinstance(wavelength, Tensor):
        wavelength = wavelength.to(paths.gain.device).expand(num_links)

    moving = [value for value in (mount, velocity, times, wavelength) if isinstance(value, Tensor)]
    needs_grad = _needs_grad(*paths.as_dict().values(), *moving)
    fused = _is_fusable(paths, bs, ue)

    def product(start: int, stop: int, into: Tensor | None) -> Tensor:
        part = paths if stop - start == num_links else paths[start:stop]
        frames = None if mount is None else mount[start:stop]
        if fused and into is not None and velocity is None:
            from datamodules.channel.synthesis_cpu import batched_product, sum_paths  # numba is slow to import

            if batched_product() is not None:
                sum_paths(part, bs, ue, ofdm, frames, reference, into)
                return into
        if needs_grad:  # a graph would hold the memory of the fastest factors, which the next call overwrites
            space, tones = link_factors(_filled(part), bs, ue, ofdm, frames, reference)
        else:
            space, tones = fastest_factors(part, bs, ue, ofdm, frames, reference)
        if velocity is not None and times is not None and wavelength is not None:
            length = wavelength[start:stop, None] if isinstance(wavelength, Tensor) else wavelength
            space = _with_doppler(
                space, part, velocity[start:stop], times if times.ndim == 1 else times[start:stop], length
            )
        return torch.bmm(space.permute(1, 0, 2), tones.permute(1, 2, 0), out=into)

    if needs_grad:
        return product(0, num_links, None).reshape(shape)
    result = torch.empty(shape, dtype=torch.complex64, device=paths.gain.device) if out is None else out
    flat = result.view(num_links, rows, num_tones)
    with torch.inference_mode():  # a third less overhead an operation; the result itself is an ordinary tensor
        for start in range(0, num_links, _CHUNK):
            stop = min(start + _CHUNK, num_links)
            product(start, stop, flat if stop - start == num_links else flat[start:stop])
    return result


def fastest_factors(
    paths: Paths, bs: Array, ue: Array, ofdm: OFDM, mount: Tensor | None = None, reference: Reference = "corner"
) -> tuple[Tensor, Tensor]:
    """Return the factors of `link_factors`, by `synthesis_cpu` if it applies, with P that of the longest link.

    Returns:
        The space factor (R*T, U, P), including gains, and the frequency factor (K, U, P), both complex64, valid until
        the next call of the thread.
    """
    if _is_fusable(paths, bs, ue):
        from datamodules.channel.synthesis_cpu import link_factors as fused_factors  # numba is slow to import

        return fused_factors(paths, bs, ue, ofdm, mount, reference)
    return link_factors(_filled(paths), bs, ue, ofdm, mount, reference)


def _needs_grad(*values: Tensor) -> bool:
    return torch.is_grad_enabled() and any(value.requires_grad for value in values)


def _is_fusable(paths: Paths, bs: Array, ue: Array) -> bool:
    """Return whether `synthesis_cpu` applies: isotropic single-polarised arrays, CPU, no gradients or compilation."""
    plain = bs.isotropic and ue.isotropic and not is_polarized(bs, ue) and paths.gain.device.type == "cpu"
    return plain and not torch.compiler.is_compiling() and not _needs_grad(*paths.as_dict().values())


def _filled(paths: Paths) -> Paths:
    """Remove columns that are padding in every link, on the CPU alone, since a GPU would need a synchronisation."""
    if paths.gain.device.type != "cpu":
        return paths
    width = max(1, int(paths.mask.any(0).sum()))
    return paths if width == paths.num_paths else paths.narrow(width)


def _with_doppler(space: Tensor, paths: Paths, velocity: Tensor, times: Tensor, wavelength: float | Tensor) -> Tensor:
    """Multiply the space factor (R*T, U, P) by the Doppler factors of N snapshots, to (N*R*T, U, P)."""
    arrival = unit_vector(paths.aoa[:, : space.shape[-1]].double())
    doppler = torch.einsum("upx,ux->up", arrival, velocity.double()) / wavelength
    turns = unit_phasor(times.to(doppler).reshape(-1, times.shape[-1]).T.unsqueeze(-1) * doppler)
    return (turns[:, None] * space).flatten(0, 1)
