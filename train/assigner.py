"""Which locations learn which object, and which detections belong to which object.

B images, L locations, N positives, n boxes of one image, D detections of one image, h x w cells of
the stride-4 grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from boxseg.boxes import area
from boxseg.config import STRIDES
from boxseg.train.affinity import DILATION, NEIGHBOURS, depth_similarity, shifted_pair

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


def assign_by_score(overlap: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Let detections, best first, each take the still-free object that they overlap most.

    Source: BoxTeacher (arXiv:2210.05174), box-based pseudo-mask assignment.

    Args:
        overlap: Box IoU of detections with objects, (D, n).
        scores: Of the detections, (D,).
        threshold: Smallest IoU at which a detection takes an object.

    Returns:
        Detection of each object, -1 where none took it, (n,).
    """
    free = overlap.cpu().numpy().copy()
    taken = torch.full((overlap.shape[1],), -1, dtype=torch.long)
    if free.size:
        for detection in scores.argsort(descending=True, stable=True).tolist():
            wanted = int(free[detection].argmax())
            if free[detection, wanted] >= threshold:
                taken[wanted] = detection
                free[:, wanted] = -1
    return taken.to(overlap.device)


def match_one_to_one(scores: Tensor) -> Tensor:
    """Match every object with a detection so that the sum of scores is largest.

    Source: Pseudo-Depth (arXiv:2403.01214), the Hungarian matching. Where there are fewer
    detections than objects, all are taken as often as it needs.

    Args:
        scores: Of every object with every detection, (n, D).

    Returns:
        Detection of each object, (n,); -1 if there is no detection.
    """
    objects, detections = scores.shape
    matched = torch.full((objects,), -1, dtype=torch.long)
    if objects and detections:
        times = -(-objects // detections)
        table = scores.repeat(1, times).double().cpu().numpy()
        rows, columns = linear_sum_assignment(table, maximize=True)
        matched[torch.from_numpy(rows)] = torch.from_numpy(columns) % detections
    return matched.to(scores.device)


CONSISTENT_DEPTH = 0.5
"""Depth similarity above which two cells lie on one surface (Pseudo-Depth, arXiv:2403.01214)."""

DEPTH_EDGE = 0.1
"""Depth similarity below which an edge lies between two cells (Pseudo-Depth, as released)."""


def consistent_depth(depth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the depth step to the right is clearly none or clearly an edge.

    Args:
        depth: Inverse depth in 0..255, (B, h, w).
        valid: Cells of the image content, bool, (B, h, w).

    Returns:
        1 where the similarity to the right neighbour is above 0.5 or below 0.1, and 1 where there
        is a right neighbour, both float32, (B, h, w).
    """
    right = (0, DILATION)
    similarity = depth_similarity(depth, valid)[:, NEIGHBOURS.index(right)]
    known = torch.zeros_like(valid)
    here, there = shifted_pair(valid, right)
    shifted_pair(known, right)[0].copy_(here & there)
    clear = (similarity > CONSISTENT_DEPTH) | (similarity < DEPTH_EDGE)
    return (clear & known).float(), known.float()


def depth_match_scores(masks: Tensor, agrees: Tensor, known: Tensor) -> Tensor:
    """Return the share of each mask's mass in each object whose depth step is clear.

    Source: Pseudo-Depth (arXiv:2403.01214), S_dmatch as released, which counts clear edges like
    clear surfaces; cells without a right neighbour do not count, where the release lets them.

    Args:
        masks: Probabilities of detections, (..., D, h, w).
        agrees: Cells of each object whose step is clear, 0 or 1, (..., n, h, w).
        known: Cells of each object that have a right neighbour, 0 or 1, (..., n, h, w).

    Returns:
        In [0, 1], (..., n, D).
    """
    mass = masks.flatten(-2).transpose(-1, -2)  # (..., hw, D)
    return agrees.flatten(-2) @ mass / (known.flatten(-2) @ mass).clamp(min=1)
