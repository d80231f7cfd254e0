"""Arithmetic on boxes.

N boxes, M other boxes. A box is float x1, y1, x2, y2 in pixels of one frame. Distances are
l, t, r, b from a location to the four sides, in any one unit.
"""

from __future__ import annotations

import torch
from torch import Tensor


def distances_to_boxes(locations: Tensor, distances: Tensor) -> Tensor:
    """Return the boxes that lie `distances` around `locations`.

    Args:
        locations: x, y in pixels, (..., 2).
        distances: l, t, r, b in pixels, (..., 4).

    Returns:
        Boxes, (..., 4).
    """
    return torch.cat([locations - distances[..., :2], locations + distances[..., 2:]], dim=-1)


def area(boxes: Tensor) -> Tensor:
    """Return the area of each box, (N,); an inverted side counts as zero."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def rasterise(boxes: Tensor, height: int, width: int, stride: float) -> Tensor:
    """Mark the cells of a grid that belong to each box.

    A cell belongs to a box if its centre does; a box that holds no centre takes the cell nearest
    to its own centre.

    Args:
        boxes: Boxes in pixels, (N, 4).
        height: Rows of the grid.
        width: Columns of the grid.
        stride: Pixels per cell; the centre of cell (i, j) is ((j + .5) stride, (i + .5) stride).

    Returns:
        1 inside and 0 outside, float, (N, height, width).
    """
    columns = (torch.arange(width, device=boxes.device, dtype=boxes.dtype) + 0.5) * stride
    rows = (torch.arange(height, device=boxes.device, dtype=boxes.dtype) + 0.5) * stride
    inside_x = _inside(columns, boxes[:, 0], boxes[:, 2], stride)  # (N, width)
    inside_y = _inside(rows, boxes[:, 1], boxes[:, 3], stride)  # (N, height)
    return (inside_y[:, :, None] & inside_x[:, None, :]).to(boxes.dtype)


def _inside(centres: Tensor, low: Tensor, high: Tensor, stride: float) -> Tensor:
    inside = (centres[None] >= low[:, None]) & (centres[None] < high[:, None])
    middle = (low + high) / 2
    nearest = torch.floor(middle / stride).clamp(0, centres.numel() - 1).long()
    only = torch.arange(centres.numel(), device=centres.device)[None] == nearest[:, None]
    return torch.where(inside.any(dim=1, keepdim=True), inside, only)
