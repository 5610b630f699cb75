"""Zero-shot tasks by the similarity of environment and channel embeddings.

Environment-channel sections III-B1 and IV-B. Nothing is trained. Of several environments, the one whose embedding has
the largest cosine similarity with that of the channel is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
import shapely.affinity
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules import Environment, Site
from datamodules.maps.raster import BS_PIXEL, USER_PIXEL, Entry, map_image
from datamodules.sites.site import area_numbers
from foundation.gather import concatenate, gather_rows
from foundation.losses.clip import credit, matching, unit
from heads.feedback import error_terms
from heads.metrics import decibels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: true scale among [0.8 s, s, 1.2 s] (section IV-B)
SCALES = (0.8, 1.0, 1.2)
#: distance by which a building is moved, in units of its width, and number of directions tried
_MOVE, _DIRECTIONS = 1.0, 8
#: distance from the direct line within which buildings are removed from a map [pixels]
_CLEARANCE = 2.5


def los_options(geometry: Tensor) -> Tensor:
    """Return the geometry vectors (B, 8) with LOS status 0 and 1, (B, 2, 8) (eq 13)."""
    options = geometry.unsqueeze(1).repeat(1, 2, 1)
    options[:, 0, Entry.LOS], options[:, 1, Entry.LOS] = 0.0, 1.0
    return options


def scale_options(geometry: Tensor) -> Tensor:
    """Return the geometry vectors (B, 8) with the map scale multiplied by 0.8, 1 and 1.2, (B, 3, 8)."""
    options = geometry.unsqueeze(1).repeat(1, len(SCALES), 1)
    options[:, :, Entry.SCALE] *= options.new_tensor(SCALES)
    return options


def los_credit(similarity: Tensor, los: Tensor) -> Tensor:
    """Return the score (B,) of the cosines (B, 2) of `los_options` of links whose LOS status (B,) is known."""
    return credit(similarity, similarity.gather(1, (1 - los.long()).unsqueeze(1)).squeeze(1))


def scale_credit(similarity: Tensor) -> Tensor:
    """Return the score (B,) of the cosines (B, 3) of `scale_options`."""
    return credit(similarity, similarity[:, SCALES.index(1.0)])


def cleared(image: Tensor, geometry: Tensor) -> Tensor:
    """Remove from maps (B, 1, size, size) all within `_CLEARANCE` pixels of the direct line of geometry (B, 8)."""
    size = image.shape[-1]
    axis = (torch.arange(size, device=image.device) + 0.5) / size
    pixel = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).reshape(1, -1, 2)
    station = geometry[:, None, BS_PIXEL]
    line = geometry[:, None, USER_PIXEL] - station
    along = ((pixel - station) * line).sum(-1) / line.square().sum(-1).clamp_min(1e-12)
    nearest = station + along.clamp(0, 1).unsqueeze(-1) * line
    kept = (pixel - nearest).square().sum(-1) > (_CLEARANCE / size) ** 2
    return image * kept.reshape(-1, 1, size, size)


def similarities(queries: Tensor, options: Tensor) -> Tensor:
    """Return the cosine of each query (B, D) with each of its options (B, O, D), (B, O), in single precision."""
    # no autocast: bfloat16 cannot resolve cosines that differ by less than 1/256
    with torch.autocast(queries.device.type, enabled=False):
        return (unit(options) @ unit(queries).unsqueeze(-1)).squeeze(-1)


def compare(
    encoder: Callable[[Tensor, Tensor], Tensor],
    batch: dict[str, Tensor],
    options: Tensor,
    channel: Tensor,
    environment: Tensor,
) -> Tensor:
    """Return the cosine similarities (B, O) of each channel with environments of other geometry vectors.

    Args:
        encoder: Embeds maps (B, 1, 64, 64) and geometry vectors (B, 8).
        batch: The batch, with `map` and `geometry`.
        options: Geometry vectors (B, O, 8).
        channel: Embeddings of the channels (B, D).
        environment: Embeddings of the true environments (B, D), reused for options equal to the geometry of the batch.
    """
    embeddings = environment.unsqueeze(1).repeat(1, options.shape[1], 1)
    row, number = (options != batch["geometry"].unsqueeze(1)).any(-1).nonzero(as_tuple=True)
    embeddings[row, number] = encoder(batch["map"][row], options[row, number]).to(embeddings.dtype)
    return similarities(channel, embeddings)


def move_obstacle(
    environment: Environment, station: NDArray[np.float32], users: NDArray[np.float32]
) -> tuple[Environment, NDArray[np.bool_]] | None:
    """Move the building that blocks the direct lines of most users, as in figure 8 of the paper.

    Args:
        environment: The area.
        station: Base station (3,) [m].
        users: Users (U, 3) [m].

    Returns:
        The area with the building moved, and a mask (U,) of the users whose direct line it blocked before and does not
        block after; None when no building blocks a direct line.
    """
    lines = shapely.linestrings([[station[:2], user[:2]] for user in users])
    buildings = environment.polygons
    blocks = np.array([shapely.intersects(building, lines) for building in buildings])
    if not len(blocks) or not blocks.any():
        return None
    chosen = int(blocks.sum(1).argmax())
    x_min, y_min, x_max, y_max = buildings[chosen].bounds
    reach = _MOVE * max(x_max - x_min, y_max - y_min)
    best: tuple[int, NDArray[np.float64], NDArray[np.bool_]] | None = None
    for direction in np.arange(_DIRECTIONS) * 2 * math.pi / _DIRECTIONS:
        shift = reach * np.array([math.cos(direction), math.sin(direction)])
        moved = shapely.affinity.translate(buildings[chosen], *shift)
        cleared = blocks[chosen] & ~shapely.intersects(moved, lines)
        if best is None or cleared.sum() > best[0]:
            best = (int(cleared.sum()), shift, cleared)
    assert best is not None
    footprints = list(environment.footprints)
    footprints[chosen] = footprints[chosen] + best[1]
    return replace(environment, footprints=tuple(footprints)), best[2]


class ZeroShot:
    """Accumulates the test side in batches and scores all tasks.

    Args:
        sites: The sites, indexed by `site` in a batch.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = sites
        self.area = torch.tensor(area_numbers(sites))
        self.parts: list[dict[str, Tensor]] = []
        self.moved: dict[int, tuple[Tensor, NDArray[np.bool_]] | None] = {}

    def add(
        self,
        batch: dict[str, Any],
        channel: Tensor,
        environment: Tensor | None,
        rebuilt: Tensor | None,
        encoder: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> None:
        """Add a batch.

        Args:
            batch: The batch.
            channel: Embeddings of its channels (B, D).
            environment: Embeddings of its environments (B, D), or None.
            rebuilt: Channels reconstructed from their embeddings (B, R*T, K), or None.
            encoder: Environment tower, of maps (B, 1, 64, 64) and geometry vectors (B, 8), or None.
        """
        kept = {key: batch[key].cpu() for key in ("site", "user", "los", "position", "bs_position")}
        kept["channel"] = channel.float().cpu()
        if rebuilt is not None:
            kept["error"] = error_terms(rebuilt, batch).cpu()
        if environment is not None and encoder is not None:
            kept["environment"] = environment.float().cpu()
            geometry = batch["geometry"]
            for name, options in (("los", los_options(geometry)), ("scale", scale_options(geometry))):
                kept[f"{name}_options"] = compare(encoder, batch, options, channel, environment).cpu()
            other, affected = self._moved(batch)
            wrong = encoder(other, geometry)
            kept["map_options"] = similarities(channel, torch.stack([environment, wrong], dim=1)).cpu()
            kept["map_affected"] = affected
        self.parts.append(kept)

    def _moved(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the maps (B, 1, 64, 64) with one building moved, and a mask of the NLOS links that it had blocked."""
        images, affected = batch["map"].clone(), torch.zeros(len(batch["site"]), dtype=torch.bool)
        served, user = batch["site"].cpu(), batch["user"].cpu()
        for number in served.unique().tolist():
            if number not in self.moved:
                site = self.sites[number]
                found = move_obstacle(site.environment, site.bs_position.numpy(), site.links.position.numpy())
                self.moved[number] = None if found is None else (map_image(found[0], images.shape[-1])[0], found[1])
            entry = self.moved[number]
            if entry is not None:
                rows = (served == number).nonzero().squeeze(1)
                images[rows.to(images.device)] = entry[0].to(images)
                affected[rows] = torch.from_numpy(entry[1])[user[rows]]
        return images, affected & (batch["los"].cpu() == 0)

    def gathered(self) -> ZeroShot:
        """Return the rows of all processes as one batch; a collective operation."""
        whole = ZeroShot(self.sites)
        whole.parts = [gather_rows(concatenate(self.parts))]
        return whole

    def scores(self) -> dict[str, float]:
        """Return score and chance level of every task, as fractions, and the NMSE of the reconstruction [dB]."""
        found = concatenate(self.parts)
        scores: dict[str, float] = {}
        if "environment" in found:
            known = found["los"] >= 0
            scores["los_accuracy"] = _mean(los_credit(found["los_options"][known], found["los"][known]))
            share = _mean(found["los"][known] == 1)
            scores["los_chance"] = max(share, 1 - share)  # prediction of the more frequent class
            scores["scale_accuracy"] = _mean(scale_credit(found["scale_options"]))
            scores["scale_chance"] = 1 / len(SCALES)
            if found["map_affected"].any():
                options = found["map_options"][found["map_affected"]]
                scores["map_accuracy"] = _mean(credit(options, options[:, 0]))
                scores["map_chance"] = 0.5
            for name, group in (("user", found["site"]), ("area", self.area[found["site"]])):
                hit, chance = matching(found["channel"], found["environment"], group)
                scores[f"match_{name}"] = _mean(hit)
                scores[f"match_{name}_chance"] = _mean(chance)
        if "error" in found:
            error, counted = found["error"].sum(0).unbind()
            scores["nmse_db"] = float(decibels(error / counted))  # NaN if no link has power
        return scores

    def figures(self) -> dict[str, Figure]:
        """Draw similarity matrices (figures 5 and 6 of the paper) and embeddings (figure 3)."""
        from foundation.evaluation.embeddings import draw

        found = concatenate(self.parts)
        return draw(found, self.area[found["site"]], self.sites) if "environment" in found else {}


def _mean(values: Tensor) -> float:
    return float(values.float().mean())
