"""Maps of areas, rasterised once, stored in the cache of sites, and indexed by batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from datamodules.files import replacing
from datamodules.maps.raster import geometry, map_frame, map_image
from datamodules.sites.environment import Environment
from datamodules.sites.site import Site

#: grows when a change draws other maps of the same areas
_DRAWING = 1


@dataclass(frozen=True)
class AreaMaps:
    """Maps of the areas of sites, indexed on the device.

    Attributes:
        images: Map of each area, shape (areas, 1, size, size), uint8: 41 MB for 10,000 areas.
        area: Row of `images` for each site, shape (sites,), int64.
        offset: Upper left corner of each site's map [m], shape (sites, 2).
        scale: Scale of each site's map [pixels per metre], shape (sites,).
    """

    images: Tensor
    area: Tensor
    offset: Tensor
    scale: Tensor

    @classmethod
    def draw(cls, sites: Sequence[Site], size: int = 64, edges: bool = True, cache: Path | None = None) -> AreaMaps:
        """Return the maps of all environments of the sites, each rasterised once.

        Args:
            sites: The sites.
            size: Pixels a side.
            edges: Whether maps have the outlines of buildings rather than filled buildings.
            cache: Folder of finished sites, in whose folder `maps` maps are stored; by default none are stored.

        Raises:
            InputError: `size` is not positive, or the bounds of an area are not finite.
        """
        environments = {site.environment.digest: site.environment for site in sites}
        rows = {digest: row for row, digest in enumerate(environments)}
        frames = [map_frame(environment, size) for environment in environments.values()]
        images = [_image(environment, size, edges, cache) for environment in environments.values()]
        area = torch.tensor([rows[site.environment.digest] for site in sites])
        corners, scales = zip(*frames, strict=True)
        return cls(torch.stack(images), area, torch.stack(corners)[area], torch.tensor(scales)[area])

    def to(self, device: torch.device | str) -> AreaMaps:
        """Return the maps on a device."""
        return AreaMaps(*(value.to(device) for value in (self.images, self.area, self.offset, self.scale)))

    def map(self, site: Tensor) -> Tensor:
        """Return the maps of a batch of site indices (B,), shape (B, 1, size, size), float32."""
        return self.images[self.area[site]].float()

    def geometry(
        self, site: Tensor, bs_position: Tensor, position: Tensor, los: Tensor, with_los: bool = True
    ) -> Tensor:
        """Return the geometry vectors (B, 8) of a batch of site indices (B,); arguments as in `geometry`."""
        size = self.images.shape[-1]
        return geometry(bs_position, position, los, self.offset[site], self.scale[site], size, with_los)


def _image(environment: Environment, size: int, edges: bool, cache: Path | None) -> Tensor:
    """Return a map (1, size, size), uint8, from the cache if it is there and undamaged."""
    if cache is None:
        return map_image(environment, size, edges)[0].byte()
    # the name changes with all that decides the map, so that a map found is never an old one
    name = hashlib.sha256(environment.digest + f"{_DRAWING} {size} {edges}".encode()).hexdigest()[:32]
    file = cache / "maps" / f"{name}.safetensors"
    image = _read(file, size)
    if image is None:
        image = map_image(environment, size, edges)[0].byte()
        with suppress(OSError):  # a shared cache may be read-only, and a map that is not kept is but drawn again
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                temporary.write_bytes(save({"image": image, "sha256": _checksum(image)}))
    return image


def _read(file: Path, size: int) -> Tensor | None:
    """Return a map of the cache, None if it is missing or damaged."""
    try:
        tensors = load(file.read_bytes())
        image, checksum = tensors["image"], tensors["sha256"]
    except (OSError, SafetensorError, KeyError):
        return None
    sound = image.shape == (1, size, size) and image.dtype == torch.uint8 and torch.equal(checksum, _checksum(image))
    return image if sound else None


def _checksum(image: Tensor) -> Tensor:
    """Return the SHA-256 of an image, shape (32,), uint8."""
    return torch.tensor(list(hashlib.sha256(image.numpy().tobytes()).digest()), dtype=torch.uint8)
