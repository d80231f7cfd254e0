"""Which locations learn which object.

B images, L locations, N positives, n boxes of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boxseg.boxes import area
from boxseg.config import STRIDES

LEVEL_RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, float("inf")))
"""Range of max(l, t, r, b) in pixels that each level learns, both ends included."""

CENTRE_RADIUS = 1.5
"""Half side of the square of positives around a box centre, in strides."""


@dataclass(frozen=True)
class Assignment:
    """The positives of a batch, ordered by image and then by location."""

    image_index: Tensor
    """(N,)."""
    location_index: Tensor
    """(N,)."""
    object_index: Tensor
    """Row in the image's boxes, (N,)."""
    labels: Tensor
    """Class of each positive, (N,)."""
    distances: Tensor
    """l, t, r, b in strides of the level, (N, 4)."""


def assign_fcos(
    locations: Tensor, levels: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]
) -> Assignment:
    """Assign every location to the smallest box that wants it.

    A box wants the locations inside the square of half side 1.5 strides around its centre, cut
    at the box, whose largest distance to a side is in the level's range. Smallest area wins,
    lower index on a tie.

    Source: FCOS (arXiv:1904.01355) with centre sampling, as released.

    Args:
        locations: x, y in input pixels, (L, 2).
        levels: 0 for P3 to 4 for P7, (L,).
        boxes: Boxes of each image in input pixels, each (n, 4); n may be 0.
        labels: Classes of each image, each (n,).

    Returns:
        The positives; an image without boxes has none.
    """
    strides = locations.new_tensor(STRIDES)[levels]
    found = [
        _assign_image(locations, levels, strides, image_boxes, image_labels)
        for image_boxes, image_labels in zip(boxes, labels, strict=True)
    ]
    image_index = torch.cat(
        [torch.full_like(part.location_index, image) for image, part in enumerate(found)]
    )
    return Assignment(
        image_index=image_index,
        location_index=torch.cat([part.location_index for part in found]),
        object_index=torch.cat([part.object_index for part in found]),
        labels=torch.cat([part.labels for part in found]),
        distances=torch.cat([part.distances for part in found]),
    )


def _assign_image(
    locations: Tensor, levels: Tensor, strides: Tensor, boxes: Tensor, labels: Tensor
) -> Assignment:
    empty = torch.zeros(0, dtype=torch.long, device=locations.device)
    if not len(boxes):
        return Assignment(empty, empty, empty, empty, locations.new_zeros((0, 4)))
    left_top = locations[:, None] - boxes[None, :, :2]
    right_bottom = boxes[None, :, 2:] - locations[:, None]
    distances = torch.cat([left_top, right_bottom], dim=2)  # (L, n, 4)

    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    radius = (CENTRE_RADIUS * strides)[:, None, None]
    low = torch.maximum(centres - radius, boxes[None, :, :2])
    high = torch.minimum(centres + radius, boxes[None, :, 2:])
    here = locations[:, None]
    wanted = torch.minimum(here - low, high - here).amin(dim=2) > 0  # (L, n)

    ranges = locations.new_tensor(LEVEL_RANGES)[levels]  # (L, 2)
    reach = distances.amax(dim=2)
    wanted &= (reach >= ranges[:, :1]) & (reach <= ranges[:, 1:])

    size = torch.where(wanted, area(boxes)[None], float("inf"))
    smallest, owner = size.min(dim=1)
    location_index = torch.isfinite(smallest).nonzero()[:, 0]
    object_index = owner[location_index]
    return Assignment(
        image_index=torch.zeros_like(location_index),
        location_index=location_index,
        object_index=object_index,
        labels=labels[object_index],
        distances=distances[location_index, object_index] / strides[location_index, None],
    )


def best_per_object(
    image_index: Tensor, object_index: Tensor, scores: Tensor, images: int, per_image: int
) -> Tensor:
    """Choose the positives whose masks are trained: the best few of every object.

    Each of the g objects of an image that have a positive keeps its max(floor(per_image / g), 1)
    best.

    Source: BoxInst (arXiv:2012.02310), as released (64 per image).

    Args:
        image_index: (N,).
        object_index: (N,).
        scores: Higher is better, (N,).
        images: Number of images B.
        per_image: Positives to keep per image.

    Returns:
        Indices of the kept positives, ascending.
    """
    if not len(scores):
        return torch.zeros(0, dtype=torch.long, device=scores.device)
    objects = int(object_index.max()) + 1
    key = image_index * objects + object_index
    unique, group = key.unique(return_inverse=True)
    objects_per_image = torch.bincount(unique // objects, minlength=images)
    allowed = (per_image // objects_per_image.clamp(min=1)).clamp(min=1)[image_index]

    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(group[order], stable=True)]  # by object, best first
    sizes = torch.bincount(group, minlength=len(unique))
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(len(order), device=order.device) - starts[group[order]]
    return order[rank < allowed[order]].sort().values
