"""The base class of sources, and the cache of sites."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from datamodules.errors import InputError
from datamodules.progress import Progress, activity
from datamodules.sites.inventory import cache_folder
from datamodules.sites.site import FORMAT, Site


@dataclass(frozen=True)
class Recipe:
    """A unit of work that makes one or more sites.

    Attributes:
        names: Names of the sites, in order.
        parameters: All settings that determine the result, as plain data; their hash is part of the folder names.
        make: Called with a folder for unfinished work, which survives an interruption and is removed after success;
            yields the sites in the order of `names`.

    Raises:
        InputError: A name cannot be that of a folder.
    """

    names: tuple[str, ...]
    parameters: dict[str, Any]
    make: Callable[[Path], Iterable[Site]]

    def __post_init__(self) -> None:
        for name in self.names:
            if not name or Path(name).name != name or name.startswith("."):
                raise InputError(f"{name!r} cannot name a site: names hold no '/' and begin with no dot")

    @property
    def digest(self) -> str:
        """Ten hexadecimal digits that change with any parameter."""
        text = json.dumps({"format": FORMAT, **self.parameters}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def folders(self, cache: Path) -> list[Path]:
        """Return the folders of the sites, in the order of `names`."""
        return [cache / f"{name}-{self.digest}" for name in self.names]

    def work(self, cache: Path) -> Path:
        """Return the folder of unfinished work; a killed process leaves it behind, even after the last site."""
        return cache / f".{self.names[0]}-{self.digest}.partial"

    def is_made(self, cache: Path) -> bool:
        """Return whether all sites exist."""
        return all(folder.is_dir() for folder in self.folders(cache))


class Source(ABC):
    """Base class of sources of channels, which make sites once and then read them from the cache.

    The constructor arguments of a source are its settings in YAML. A subclass implements `recipes`.

    Args:
        cache: Folder of finished sites; by default `$CSI_CACHE`, or `data/sites` under the working folder.
    """

    def __init__(self, cache: str | None = None) -> None:
        self.cache = cache_folder(cache)

    @abstractmethod
    def recipes(self) -> list[Recipe]:
        """List the recipes. It is called often, and reads only what determines names and parameters."""

    def originals(self) -> list[Source]:
        """Return the sources that the data come from; a source that combines others returns those."""
        return [self]

    def sites(self, verify: bool = True) -> list[Site]:
        """Make missing sites, and open all.

        Args:
            verify: Whether the checksums of all files are verified.

        Raises:
            InputError: The source cannot make a site, or a cached one is damaged.
        """
        folders: list[Path] = []
        for recipe in self.recipes():
            make(recipe, self.cache)
            folders += recipe.folders(self.cache)
        with Progress(len(folders), "opening sites", "site", leave=False, delay=1.0) as progress:
            found = []
            for folder in folders:
                found.append(Site.load(folder, verify))
                progress.update()
        return found


def listed(source: Source | list[Source]) -> list[Source]:
    """Return one or several sources as a list.

    Raises:
        InputError: There is none.
    """
    sources = source if isinstance(source, list) else [source]
    if not sources:
        raise InputError("data.source names no source: give one, such as those of experiments/data/")
    return sources


def data_root(kind: str, root: str | None) -> Path:
    """Return `root` if given, else `$CSI_DATA/<kind>`, else `data/<kind>`."""
    return (
        Path(root).expanduser() if root is not None else Path(os.environ.get("CSI_DATA") or "data").expanduser() / kind
    )


def file_stamps(files: list[Path]) -> dict[str, list[int]]:
    """Return size [bytes] and modification time [ns] by file name, parameters by which changed files are read again."""
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def renamed(owner: str, old: str, old_value: Any, new: str, value: Any) -> Any:
    """Return the value of an argument, given by its name or, with a warning, by its former name.

    Args:
        owner: Class or command that has the argument.
        old: Former name.
        old_value: Value given by the former name, None if not given.
        new: Name.
        value: Value given by the name, None if not given.

    Raises:
        InputError: It is given by both names.
    """
    if old_value is None:
        return value
    if value is not None:
        raise InputError(f"`{old}` is the old name of `{new}`: give `{new}` alone")
    warnings.warn(f"`{old}` of {owner} is now called `{new}`: write {new}", FutureWarning, stacklevel=3)
    return old_value


def make(recipe: Recipe, cache: Path) -> None:
    """Make the sites of one recipe unless they exist; other processes wait for it."""
    work = recipe.work(cache)
    if recipe.is_made(cache) and not work.exists():
        return
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(work.with_suffix(".lock")):
        for folder in recipe.folders(cache):
            for killed in cache.glob(f".{folder.name}.*.tmp"):  # of a run that ended while it saved the site
                shutil.rmtree(killed)
        if not recipe.is_made(cache):
            work.mkdir(exist_ok=True)
            with activity(f"making {recipe.names[0]}"):
                for folder, site in zip(recipe.folders(cache), recipe.make(work), strict=True):
                    if not folder.is_dir():
                        site.save(folder)
        if work.exists():
            shutil.rmtree(work)


def store_chunk(work: Path, index: int, tensors: dict[str, Tensor], made: str) -> None:
    """Write a finished chunk atomically into the work folder of a recipe, with its checksum in its name.

    Args:
        work: Work folder of the recipe.
        index: Number of the chunk.
        tensors: Content.
        made: Verb of the error message: traced, drawn.

    Raises:
        InputError: The disk is full or cannot be written.
    """
    data = save_tensors(tensors)
    file = work / f"{index:07d}.{hashlib.sha256(data).hexdigest()}.safetensors"
    try:
        file.with_suffix(".tmp").write_bytes(data)
        os.replace(file.with_suffix(".tmp"), file)
    except OSError as error:
        raise InputError(f"cannot write the {made} links to {file}: {error}") from error


def restore_chunk(work: Path, index: int) -> dict[str, Tensor] | None:
    """Return the finished chunk of an earlier run; None if it is missing or damaged."""
    for file in work.glob(f"{index:07d}.*.safetensors"):
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() == file.name.split(".")[1]:
            return load_tensors(data)
        file.unlink()
    return None
