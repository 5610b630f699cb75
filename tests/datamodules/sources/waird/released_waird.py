"""WAIR-D's released layout, written from DATA.md section 2 alone and ways to read it."""

import io
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.sites.site import Site
from datamodules.sources.waird.source import WAIRD

SIZE = (240, 180)  # map units of 0.5 m
EMPTY = "bs1_ue7"


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 wrote its `str`."""

    def save_string(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(raw)) + raw)  # type: ignore[attr-defined]  # BINSTRING

    dispatch: ClassVar[Any] = {**pickle._Pickler.dispatch, str: save_string, bytes: save_string}


def save_python2(file: Path, value: Any) -> None:
    """np.save of NumPy 1.x under Python 2: version 1.0 header, protocol 2, `numpy.core` names."""
    array = np.asarray(value) if isinstance(value, np.ndarray) else np.array(value, dtype=object)
    shape = "({})".format("".join(f"{n}L, " for n in array.shape))
    descr = "|O" if array.dtype == object else array.dtype.str
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    stream = io.BytesIO()
    if array.dtype == object:
        Python2Pickler(stream, 2).dump(array)
        body = stream.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
        assert b"numpy.core.multiarray" in body
    else:
        body = array.tobytes()
    file.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body)


def draw_link(
    rng: np.random.Generator, bs: NDArray[Any], ue: NDArray[Any], los: bool
) -> tuple[dict[str, Any], NDArray[Any]]:
    """Rays of one link in the released units, in no order."""
    step = 0.5 * (ue - bs)
    distance = np.sqrt(step @ step + 4.5**2)
    count = int(rng.integers(1, 7))
    taud = (distance + rng.uniform(1, 200, count)) / 0.3
    dod = np.stack((rng.uniform(0.3, 2.8, count), rng.uniform(0, 2 * np.pi, count)), axis=-1)
    doa = np.stack((rng.uniform(0.3, 2.8, count), rng.uniform(-np.pi, np.pi, count)), axis=-1)
    gain = 1e-6 * (rng.normal(size=count) + 1j * rng.normal(size=count))
    if los:
        azimuth = np.arctan2(step[1], step[0]) % (2 * np.pi)
        zenith = np.arccos(-4.5 / distance)
        taud[-1], dod[-1], doa[-1] = distance / 0.3, (zenith, azimuth), (np.pi - zenith, azimuth - np.pi)
        gain[-1] = 1e-5 * np.exp(1j)
    return {"taud": taud, "dod": dod, "doa": doa}, gain


def write_area(folder: Path, scenario: int, seed: int) -> None:
    """One area in the released layout, from DATA.md 2.1 and 2.2."""
    rng = np.random.default_rng(seed)
    num_bs, num_ue = (5, 30) if scenario == 1 else (1, 40)
    bs, ue = rng.uniform((0, 0), SIZE, (num_bs, 2)), rng.uniform((0, 0), SIZE, (num_ue, 2))
    if scenario == 1:
        rows = [np.concatenate((bs[row // 30], ue[row % 30])) for row in range(150)]
        info = np.concatenate((SIZE, *rows))
    else:
        info = np.concatenate((SIZE, bs[0], ue.reshape(-1)))
    rays, gains = {}, {}
    for b in range(num_bs):
        for u in range(num_ue):
            key = f"bs{b}_ue{u}" if scenario == 1 else f"bs{b}_ue{u:05d}"
            rays[key], gains[key] = draw_link(rng, bs[b], ue[u], los=(b + u) % 2 == 0)
    if scenario == 1:
        rays[EMPTY] = {"taud": np.zeros(0), "dod": np.zeros((0, 2)), "doa": np.zeros((0, 2))}
        gains[EMPTY] = np.zeros(0, dtype=complex)
    folder.mkdir(parents=True)
    save_python2(folder / "Info.npy", info)
    save_python2(folder / "Path.npy", rays)
    save_python2(folder / "H_28_0_G.npy", gains)
    pixels = np.full((SIZE[1], SIZE[0], 3), 255, dtype=np.uint8)
    pixels[10:40, 20:100] = 90  # rows 10 .. 39 from the top: y from 70 m to 85 m, x from 10 m to 50 m
    Image.fromarray(pixels).save(folder / "environment.png")


def load(file: Path) -> Any:
    """Read one object, as the released code does."""
    return np.load(file, allow_pickle=True, encoding="latin1").item()


def read(root: Path, cache: Path, **options: Any) -> list[Site]:
    """Read sites through the source."""
    return WAIRD(root=str(root), cache=str(cache), **options).sites()


def read_area(area: Path) -> list[Site]:
    """Read the one area of a data set."""
    return read(area.parents[1], area.parents[1] / "cache")


def relative_error(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Norm of the difference over the norm."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
