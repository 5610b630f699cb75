"""Files with the links of a training side, such as a selection by the error of a model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from datamodules.errors import InputError, refuse_pointer
from datamodules.files import replacing
from datamodules.sites.site import Site


def save_links(file: str | Path, sites: Sequence[Site], links: NDArray[np.int64] | Sequence[int]) -> None:
    """Write links to a file for `data.train_links`: the rows of each site by its name.

    After a selection by error, with `error` the NMSE of each row of a test side:

        side = data.sides["test"]
        save_links("chosen.json", side.sites, side.links[select(error, "top", 40)])

    Args:
        file: The file, `.json` or `.safetensors`.
        sites: The sites that number the links, in their order.
        links: Numbers of the links, counted through the sites in order, any shape.

    Raises:
        InputError: The name of the file ends otherwise, or it cannot be written, or two sites have the same name.
    """
    file, starts = Path(file), np.cumsum([0, *(len(site) for site in sites)])
    chosen = np.unique(np.asarray(links))
    site = np.searchsorted(starts, chosen, side="right") - 1
    _check_unique((sites[number].name for number in np.unique(site)), sites)
    rows = {sites[number].name: chosen[site == number] - starts[number] for number in np.unique(site)}
    try:
        with replacing(file) as temporary:
            if _is_json(file):
                temporary.write_text(json.dumps({name: part.tolist() for name, part in rows.items()}))
            else:
                save_file({name: torch.from_numpy(part) for name, part in rows.items()}, temporary)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {file}: {error}") from error


def read_links(file: str | Path, sites: Sequence[Site]) -> NDArray[np.int64]:
    """Read a file of links.

    Args:
        file: What `save_links` wrote: an object of lists of rows by name of the site in JSON, or an integer tensor (n,)
            by name of the site in safetensors.
        sites: The sites that number the links, in their order; they may be more than the file names.

    Returns:
        Numbers of the links, counted through the sites in order, shape (n,), ascending.

    Raises:
        InputError: The file is not there or holds something else, or names a site or a row that the data lack,
            or a site of which they hold two.
    """
    file = Path(file).expanduser()
    refuse_pointer(file)
    try:
        named = json.loads(file.read_text()) if _is_json(file) else load_file(file)
        rows = {name: torch.as_tensor(part) for name, part in named.items()}
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"cannot read links from {file}: {error}") from error
    starts = np.cumsum([0, *(len(site) for site in sites)])
    known = {site.name: number for number, site in enumerate(sites)}
    _check_unique(rows, sites)
    links: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    for name, part in rows.items():
        if name not in known:
            raise InputError(f"{file} names the site {name}, which the data lack")
        if part.ndim != 1 or (len(part) and (part.is_floating_point() or part.dtype == torch.bool)):
            raise InputError(f"{file}: the rows of site {name} must be whole numbers, in one list")
        size = len(sites[known[name]])
        outside = part[(part < 0) | (part >= size)]
        if len(outside):
            raise InputError(f"{file} names row {int(outside[0])} of site {name}, which has {size} links")
        links.append(starts[known[name]] + part.long().numpy())
    return np.unique(np.concatenate(links))


def _check_unique(names: Iterable[str], sites: Sequence[Site]) -> None:
    counts = Counter(site.name for site in sites)
    for name in names:
        if counts[name] > 1:
            raise InputError(
                f"{counts[name]} sites of the data are named {name}, which a file of links cannot tell apart: give "
                "their sources different names"
            )


def _is_json(file: Path) -> bool:
    if file.suffix not in (".json", ".safetensors"):
        raise InputError(f"a file of links is .json or .safetensors, got {file}")
    return file.suffix == ".json"
