"""Similarity of neighbouring cells: in colour, in depth, and in the label that a mask gives them.

B images, h x w cells of the stride-4 grid, 8 neighbours in row-major order without the centre.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MASK_LOSS_STRIDE = 4
"""Pixels per cell of the grid on which masks are trained."""

DILATION = 2
"""Cells between a cell and its neighbours (BoxInst, arXiv:2012.02310)."""

NEIGHBOURS = tuple(
    (dy * DILATION, dx * DILATION) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx
)
"""Row and column offset of the 8 neighbours."""

PAIR_OFFSETS = NEIGHBOURS[4:]
"""One of each pair of opposite neighbours: the four that lie right or below."""


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB bytes to CIE L*a*b* (D65, 2 degrees).

    Source: IEC 61966-2-1 (transfer curve and matrix) and CIE 15 (L*a*b*).

    Args:
        rgb: 0..255, (..., 3, h, w).

    Returns:
        L in 0..100, a and b unscaled, float32, (..., 3, h, w).
    """
    values = rgb.float() / 255
    linear = torch.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    matrix = linear.new_tensor(
        [
            [0.412453, 0.357580, 0.180423],
            [0.212671, 0.715160, 0.072169],
            [0.019334, 0.119193, 0.950227],
        ]
    )
    white = linear.new_tensor([0.95047, 1.0, 1.08883])
    xyz = torch.einsum("ij,...jhw->...ihw", matrix / white[:, None], linear)
    curve = torch.where(xyz > 0.008856, xyz.clamp(min=1e-12) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = curve.unbind(dim=-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def mean_colour(images: Tensor) -> Tensor:
    """Return the mean colour of every stride-4 cell as bytes.

    Args:
        images: Clean RGB bytes, neither jittered nor normalised, (B, 3, H, W).

    Returns:
        RGB in 0..255, whole numbers, float32, (B, 3, H / 4, W / 4).
    """
    return F.avg_pool2d(images.float(), MASK_LOSS_STRIDE).floor()


def valid_cells(sizes: Tensor, height: int, width: int, removed_rows: Tensor) -> Tensor:
    """Mark stride-4 cells whose centre lies in the image content.

    Args:
        sizes: Height and width of the content of each padded image, pixels, (B, 2).
        height: Rows of the grid.
        width: Columns of the grid.
        removed_rows: Rows of pixels at the bottom that do not count, (B,).

    Returns:
        Bool, (B, height, width).
    """
    centre_y = torch.arange(height, device=sizes.device) * MASK_LOSS_STRIDE + MASK_LOSS_STRIDE // 2
    centre_x = torch.arange(width, device=sizes.device) * MASK_LOSS_STRIDE + MASK_LOSS_STRIDE // 2
    rows = centre_y[None] < (sizes[:, 0] - removed_rows)[:, None]
    columns = centre_x[None] < sizes[:, 1, None]
    return rows[:, :, None] & columns[:, None, :]


def _similarity(values: Tensor, valid: Tensor) -> Tensor:
    """Return exp(-0.5 Euclidean distance) of (B, C, h, w) towards the neighbours, (B, 8, h, w)."""
    similarity = values.new_zeros((values.shape[0], len(NEIGHBOURS), *values.shape[-2:]))
    for number, offset in enumerate(NEIGHBOURS):
        here, there = shifted_pair(values, offset)
        target, _ = shifted_pair(similarity[:, number], offset)
        distance = (here - there).square().sum(dim=1).sqrt()
        target.copy_(torch.exp(-0.5 * distance) * shifted_pair(valid, offset)[1])
    return similarity


def colour_similarity(lab: Tensor, valid: Tensor) -> Tensor:
    """Return exp(-0.5 distance) between each cell and its 8 neighbours.

    Source: BoxInst (arXiv:2012.02310), equation 4 with theta 2.

    Args:
        lab: L*a*b* of every cell, (B, 3, h, w).
        valid: Cells that may be a neighbour, bool, (B, h, w).

    Returns:
        In [0, 1], 0 towards invalid neighbours and across the border, (B, 8, h, w).
    """
    return _similarity(lab, valid)


def depth_similarity(depth: Tensor, valid: Tensor) -> Tensor:
    """Return exp(-0.5 |dD|) between each cell and its 8 neighbours.

    Pairs as in `colour_similarity`. In grey levels a similarity of at least 0.5 means a step of
    at most 2 ln 2 = 1.386.

    Args:
        depth: Inverse depth of every cell, float32, 0..255, larger is nearer, (B, h, w).
        valid: Cells that may be a neighbour, bool, (B, h, w).

    Returns:
        In [0, 1], 0 towards invalid neighbours and across the border, (B, 8, h, w).
    """
    return _similarity(depth[:, None], valid)


def smoothed_masks(masks: Tensor) -> Tensor:
    """Return the mean of each mask and its 3 x 3 average, 0 outside of the grid.

    Source: BoxTeacher (arXiv:2210.05174), as released.

    Args:
        masks: Bool or in [0, 1], (N, h, w).

    Returns:
        In [0, 1], float32, (N, h, w).
    """
    masks = masks.float()
    return (F.avg_pool2d(masks[:, None], 3, stride=1, padding=1)[:, 0] + masks) / 2


def label_agreement(first: Tensor, second: Tensor) -> Tensor:
    """Return the probability that two cells have one label, p q + (1 - p)(1 - q).

    Args:
        first: Foreground probability p of the first ends of pairs, any shape.
        second: Foreground probability q of the second ends, same shape.
    """
    return first * second + (1 - first) * (1 - second)


def directed_edges(similarity: Tensor, threshold: float) -> Tensor:
    """Return which pairs pass the threshold, for each unordered offset from both of its ends.

    Args:
        similarity: From a cell to its 8 neighbours, (B, 8, h, w).
        threshold: Smallest similarity that counts.

    Returns:
        Bool, (2, 4, B, h, w): [0] from the upper or left end of the pair, whose position indexes
        the entry, [1] from the other end, indexed by the same position.
    """
    passes = similarity >= threshold
    edges = passes.new_zeros((2, len(PAIR_OFFSETS), *passes[:, 0].shape))
    for number, offset in enumerate(PAIR_OFFSETS):
        edges[0, number] = passes[:, 4 + number]
        back = passes[:, 3 - number]  # the opposite neighbour
        shifted_pair(edges[1, number], offset)[0].copy_(shifted_pair(back, offset)[1])
    return edges


def shifted_pair(grid: Tensor, offset: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return two views of a grid that hold the two ends of every pair `offset` apart.

    Args:
        grid: (..., h, w).
        offset: Rows and columns from the first end to the second.

    Returns:
        First ends and second ends, both (..., h - |dy|, w - |dx|).
    """
    dy, dx = offset
    height, width = grid.shape[-2:]
    first = grid[..., max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)]
    second = grid[..., max(dy, 0) : height - max(-dy, 0), max(dx, 0) : width - max(-dx, 0)]
    return first, second
