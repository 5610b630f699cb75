"""Features of CSI as NumPy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.errors import InputError, check_whole
from datamodules.progress import Progress
from foundation.checkpoint import load_encoder, read_checkpoint
from foundation.contract import check_csi


def embed(
    checkpoint: str | Path, csi: NDArray[Any], part: str | None = None, batch_size: int = 256
) -> NDArray[np.float32]:
    """Return the features (U, D) of CSI, computed on a GPU if available.

    A warning is given if the power of the CSI differs strongly from that of the training data and the features depend
    on it.

    Args:
        checkpoint: A checkpoint, or a folder that `lightning export --to safetensors` wrote.
        csi: Complex, shape (U, R, T, K): users, receive antennas, transmit antennas, subcarriers, the lowest frequency
            first; (U, N, R, T, K) for an encoder of N snapshots.
        part: Name of the encoder in a model with several; by default the first.
        batch_size: Links in a batch.

    Raises:
        DatasetNotFoundError: There is no such checkpoint.
        InputError: It holds no encoder of CSI, or the CSI is not complex, has other antennas, subcarriers or snapshots
            than the encoder was trained on, or entries that are NaN or infinite.
    """
    check_whole("embed", batch_size=batch_size)
    encoder = load_encoder(checkpoint, tower=part)
    if encoder.input_keys != ("csi",):
        raise InputError(
            f"the {part or 'encoder'} reads {', '.join(encoder.input_keys)}, not csi alone: name another part"
        )
    array = np.asarray(csi)
    axes = encoder.input_axes["csi"].replace("B", "U")
    if array.dtype.kind != "c" or array.ndim != len(axes.split()):
        raise InputError(f"csi must be complex, of shape ({axes.replace(' ', ', ')}), got {array.dtype} {array.shape}")
    links = torch.from_numpy(np.ascontiguousarray(array, dtype=np.complex64))
    encoder.requires_grad_(False)
    check_csi(encoder, links, read_checkpoint(checkpoint).get("data", {}))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder.to(device)
    features = []
    with Progress(len(links), "embedding", "link", leave=False) as progress:
        for some in torch.split(links, batch_size):
            features.append(encoder(some.to(device)).float().cpu())
            progress.update(len(some))
    joined: NDArray[np.float32] = torch.cat(features).numpy()
    return joined
