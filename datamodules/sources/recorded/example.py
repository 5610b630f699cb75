"""A small simulated recording as an example for `Recorded`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM, SPEED_OF_LIGHT
from datamodules.channel.synthesis import synthesize
from datamodules.errors import InputError
from datamodules.sites.paths import Paths

_BS, _GRID = Array(rows=1, cols=4), OFDM(32, 20e6)
_SNAPSHOTS, _INTERVAL, _CARRIER = 1500, 0.1, 3.5e9
_SCATTERERS, _SNR = 12, 10**2.5


def write_example(folder: Path) -> Path:
    """Write `example.safetensors`: one device that moves past an array for 150 s, with a gap of 5 s.

    The channel has a line of sight, blocked for a third of the track, and 12 fixed scatterers; the SNR is 25 dB.

    Args:
        folder: Folder to write to.

    Returns:
        The file: 2 MB, csi (1, 1500, 1, 4, 32), with positions, line of sight and timestamps.

    Raises:
        InputError: The file exists, or cannot be written.
    """
    file = folder / "example.safetensors"
    if file.exists():
        raise InputError(f"{file} is there already: remove it, or name another folder with --out")
    g = torch.Generator().manual_seed(0)
    step = torch.arange(_SNAPSHOTS, dtype=torch.float64)
    turn = 2 * torch.pi * step / 500  # three turns of a spiral
    radius = 15 + 25 * step / _SNAPSHOTS
    walk = torch.stack((60 + radius * turn.cos(), radius * turn.sin(), torch.full_like(step, 1.5)), 1)
    stations = torch.tensor([0.0, 0.0, 8.0], dtype=torch.float64)
    low, high = torch.tensor([10.0, -70.0, 0.0]), torch.tensor([120.0, 70.0, 15.0])
    scatterers = (low + (high - low) * torch.rand(_SCATTERERS, 3, generator=g)).double()
    loss = 0.1 * torch.rand(_SCATTERERS, generator=g).double()
    los = (step % 500 < 333).to(torch.int8)

    out = torch.cat([(walk - stations)[:, None], (scatterers - stations).expand(_SNAPSHOTS, -1, -1)], 1)
    back = torch.cat([(stations - walk)[:, None], scatterers - walk[:, None]], 1)
    length = out.norm(dim=2)
    length[:, 1:] += back[:, 1:].norm(dim=2)
    wavelength = SPEED_OF_LIGHT / _CARRIER
    weight = torch.cat([los[:, None].double(), loss.sqrt().expand(_SNAPSHOTS, -1)], 1)
    gain = torch.polar(weight * wavelength / (4 * torch.pi * length), -2 * torch.pi * (length / wavelength % 1))
    order = gain.abs().argsort(1, descending=True)
    pick = order[..., None].expand(-1, -1, 3)
    there = gain.gather(1, order).abs() > 0
    paths = Paths(
        gain=gain.gather(1, order).to(torch.complex64),
        delay=(length / SPEED_OF_LIGHT).gather(1, order).float() * there,
        aod=_angles(out.gather(1, pick)) * there[..., None],
        aoa=_angles(back.gather(1, pick)) * there[..., None],
        mask=there,
        position=walk.float(),
        los=los,
        bounces=(order > 0).to(torch.uint8) * there,
    )
    csi = synthesize(paths, _BS, Array(), _GRID)
    noise = torch.randn(csi.shape, dtype=torch.complex64, generator=g) * (csi.abs().square().mean() / _SNR).sqrt()
    stamps = 1.7e9 + _INTERVAL * step + 5.0 * (step >= 900)
    tensors = {
        "csi": (csi + noise)[None].contiguous(),
        "position": walk.float()[None].contiguous(),
        "los": los[None].contiguous(),
        "timestamps": stamps[None].contiguous(),
    }
    facts = {
        "carrier_frequency": _CARRIER, "bandwidth": _GRID.bandwidth, "bs_rows": _BS.rows, "bs_cols": _BS.cols,
        "ue_rows": 1, "ue_cols": 1, "bs_position": stations.tolist(),
    }  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file, metadata={key: json.dumps(value) for key, value in facts.items()})
        file.chmod(folder.stat().st_mode & 0o666)  # safetensors sets permissions for the owner only
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {file}: {error}") from error
    return file


def _angles(vector: torch.Tensor) -> torch.Tensor:
    """Return azimuth and zenith [rad] of vectors (..., 3), shape (..., 2), float32."""
    azimuth = torch.atan2(vector[..., 1], vector[..., 0])
    zenith = torch.acos((vector[..., 2] / vector.norm(dim=-1)).clamp(-1, 1))
    return torch.stack((azimuth, zenith), -1).float()
