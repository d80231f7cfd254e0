"""Pasting objects that were cut out of other images into one image and all of its targets.

n objects of one image, H x W pixels of the padded image, h x w cells of the stride-4 grid, r x c
cells of a crop. Boxes are x1, y1, x2, y2 in pixels of the padded image unless a crop is named.

A crop starts at a whole cell and is moved by whole cells, so that its pixels, mask cells and depth
cells stay one above the other. What is pasted are the pixels where the crop's mask, upsampled
bilinearly, exceeds one half; nothing is blended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from boxseg.boxes import rasterise
from boxseg.train.affinity import MASK_LOSS_STRIDE
from boxseg.train.coco import SMALLEST_SIDE
from boxseg.train.options import Share

CELL_AREA = MASK_LOSS_STRIDE**2
"""Pixels of one cell."""


@dataclass(frozen=True)
class PasteRules:
    """What becomes of objects when one lies before another.

    Areas and distances are pixels of the resized image, whatever its size: a recipe for small
    images sets its own.
    """

    min_pasted_area: float = 300.0
    """Area of what is visible of a pasted peer, pixels, that must be exceeded."""
    max_moved: float = 10.0
    """Pixels by which the sides of an object's box may move when something covers it."""
    min_left_area: float = 300.0
    """Area of what is left of an object's mask, pixels, above which its box may move farther."""
    min_left_share: Share = 0.0
    """Share of an object's mask that must be exceeded by what is left of it, even if its box did
    not move. 0 drops what is hidden as a whole, which the released code keeps."""
    depth_margin: float = 8.0
    """Grey levels by which the median of a pasted peer is nearer, at least, than the 95th
    percentile of what it covers."""


@dataclass(frozen=True, eq=False)
class Peer:
    """An object cut out of the clean image that it was seen in.

    The crop covers the object's box in whole cells, r x c of them, and in pixels ends where the
    image content ends: p <= 4 r rows, q <= 4 c columns.
    """

    image: Tensor
    """uint8 RGB, (3, p, q)."""
    mask: Tensor
    """Pseudo mask in [0, 1], float32, (r, c)."""
    counted: Tensor | None
    """Cells that a loss counts, bool, (r, c)."""
    true_mask: Tensor | None
    """True mask where the data has masks, float32, (r, c)."""
    depth: Tensor | None
    """Inverse depth in [0, 255] where the data has depth, float32, (r, c)."""
    origin: tuple[int, int]
    """Row and column of the crop's first cell in the image that it comes from."""
    box: tuple[float, float, float, float]
    """True box in pixels of the crop."""
    label: int
    quality: float
    """Quality of the pseudo mask, in (0, 1]."""
    confidence: float
    """Mean score of the predictions that made the mask."""
    step: int
    """Optimizer step in which it was stored."""
    picture: int
    """Number of the stored image that it comes from."""
    number: int
    """Number of the peer, unique in its bank."""

    def to(self, device: torch.device) -> Peer:
        """The peer on another device."""
        tensors = {
            name: value.to(device) for name, value in items_of(self) if isinstance(value, Tensor)
        }
        return replace(self, **cast("dict[str, Any]", tensors))


def items_of(peer: Peer) -> list[tuple[str, Any]]:
    """Names and values of the fields."""
    return [(item.name, getattr(peer, item.name)) for item in fields(peer)]


@dataclass(frozen=True)
class Scene:
    """What placing needs to know of an image, as plain numbers."""

    height: int
    """Of the content."""
    width: int
    """Of the content."""
    boxes: NDArray[np.float64]
    """(n, 4)."""
    labels: NDArray[np.int64]
    """(n,)."""


@dataclass(frozen=True)
class Placement:
    """Where a peer goes."""

    peer: Peer
    row: int
    """Row of the image's grid at which the crop's first row of cells lies; may be outside."""
    column: int

    def shows_in(self, scene: Scene) -> bool:
        """Whether any pixel of the crop lies in the image content."""
        top, left = self.row * MASK_LOSS_STRIDE, self.column * MASK_LOSS_STRIDE
        rows, columns = self.peer.image.shape[1:]
        return -rows < top < scene.height and -columns < left < scene.width


def pixel_mask(mask: Tensor) -> Tensor:
    """Cut a mask on the stride-4 grid out in pixels.

    Args:
        mask: In [0, 1], taken as 0 around its border, (h, w).

    Returns:
        True where the bilinear surface through the cells exceeds one half, (4 h, 4 w).
    """
    ringed = F.pad(mask[None, None], (1, 1, 1, 1))
    surface = F.interpolate(
        ringed, scale_factor=MASK_LOSS_STRIDE, mode="bilinear", align_corners=False
    )
    inner = slice(MASK_LOSS_STRIDE, -MASK_LOSS_STRIDE)
    return surface[0, 0, inner, inner] > 0.5


def _covered_cells(pixels: Tensor) -> Tensor:
    """Cells of which at least half of the pixels are set, (4 h, 4 w) to (h, w)."""
    return F.avg_pool2d(pixels[None].float(), MASK_LOSS_STRIDE)[0] >= 0.5


def _first_and_end(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first flag of each row and that after the last, (..., length) to (...)."""
    numbers = flags.to(torch.uint8)
    return numbers.argmax(dim=-1), flags.shape[-1] - numbers.flip(-1).argmax(dim=-1)


def _extent(pixels: Tensor, top: int = 0, left: int = 0) -> Tensor:
    """Tight box of a mask whose first pixel is (top, left), float32, (4,); anything if empty."""
    x1, x2 = _first_and_end(pixels.any(dim=0))
    y1, y2 = _first_and_end(pixels.any(dim=1))
    return torch.stack([x1 + left, y1 + top, x2 + left, y2 + top]).float()


def _vector(like: Tensor, *values: float) -> Tensor:
    """Numbers on the device of `like`, (len(values),); unlike new_tensor, it does not wait."""
    return torch.stack([like.new_full((), value) for value in values])


def _remaining(
    low: Tensor, high: Tensor, covered: Tensor, offset: int, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Shrink intervals from both ends past what is covered, along one axis.

    Args:
        low: Start in pixels, (n,).
        high: End in pixels, (n,).
        covered: Pixels of the axis from `offset` on that are hidden for each, bool, (n, k).
        offset: Where `covered` starts.
        length: Pixels of the axis.

    Returns:
        New start and end, the old value where its pixel is not covered, both (n,), and whether
        anything remains, (n,).
    """
    start, end = _pixels_inside(low, high, length)
    place = torch.arange(length, device=low.device)
    open_ = (place >= start[:, None]) & (place < end[:, None])  # (n, length)
    open_[:, offset : offset + covered.shape[1]] &= ~covered
    first, after = _first_and_end(open_)
    return (
        torch.where(first == start, low, first.to(low.dtype)),
        torch.where(after == end, high, after.to(high.dtype)),
        open_.any(dim=1),
    )


def _pixels_inside(low: Tensor, high: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """First pixel whose centre lies in each interval and the one after the last, both (n,).

    Where there is none, it is the pixel nearest to the middle.
    """
    start = torch.ceil(low - 0.5).clamp(0, length).long()
    end = torch.ceil(high - 0.5).clamp(0, length).long()
    nearest = torch.floor((low + high) / 2).clamp(0, length - 1).long()
    empty = end <= start
    return torch.where(empty, nearest, start), torch.where(empty, nearest + 1, end)


def boxes_left(
    boxes: Tensor, cover: Tensor, corner: tuple[int, int], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Tight boxes of what remains of boxes behind a cover.

    Args:
        boxes: (n, 4).
        cover: Pixels that hide what is behind them, bool, (k, l).
        corner: Row and column of the cover's first pixel.
        size: H, W.

    Returns:
        Boxes whose sides moved past rows and columns that are hidden over the box's whole width
        or height, other sides exactly as they were, (n, 4); and whether anything remains, (n,).
    """
    down = F.pad(cover.cumsum(0, dtype=torch.int32), (0, 0, 1, 0))  # (k + 1, l)
    across = F.pad(cover.cumsum(1, dtype=torch.int32), (1, 0))  # (k, l + 1)
    top, bottom = _pixels_inside(boxes[:, 1], boxes[:, 3], size[0])
    left, right = _pixels_inside(boxes[:, 0], boxes[:, 2], size[1])

    def within(place: Tensor, start: int, count: int) -> Tensor:
        return (place - start).clamp(0, count)

    rows, columns = cover.shape
    # Hidden pixels of each column between the box's top and bottom, (n, l), and of each row
    # between its left and right, (n, k).
    in_column = down[within(bottom, corner[0], rows)] - down[within(top, corner[0], rows)]
    in_row = (
        across[:, within(right, corner[1], columns)] - across[:, within(left, corner[1], columns)]
    ).T
    x1, x2, wide = _remaining(
        boxes[:, 0], boxes[:, 2], in_column == (bottom - top)[:, None], corner[1], size[1]
    )
    y1, y2, high = _remaining(
        boxes[:, 1], boxes[:, 3], in_row == (right - left)[:, None], corner[0], size[0]
    )
    return torch.stack([x1, y1, x2, y2], dim=1), wide & high


def nearer_depth(depth: Tensor, behind: Tensor, where: Tensor, margin: float) -> Tensor:
    """Shift the depth of a pasted peer in front of what it covers.

    Args:
        depth: The peer's inverse depth, larger is nearer, (h, w).
        behind: Inverse depth of what it may cover, (h, w).
        where: Cells that it covers, bool, (h, w).
        margin: Grey levels between its median and the 95th percentile of what it covers.

    Returns:
        `depth` where it covers, raised by one number if it was not near enough, in [0, 255], and
        `behind` elsewhere, (h, w).
    """
    own = torch.where(where, depth, torch.nan).nanquantile(0.5)
    other = torch.where(where, behind, torch.nan).nanquantile(0.95)
    raised = (depth + (other + margin - own).clamp(min=0)).clamp(0, 255)
    return torch.where(where, raised, behind)


Objects = dict[str, Tensor]
"""Everything that belongs to the objects of one image, by name: boxes (n, 4), labels, quality,
confidence, pasted, accepted (n,), masks and, where there are such, counted and true_masks
(n, h, w)."""


@dataclass(frozen=True)
class Canvas:
    """One image of the batch while peers are pasted into it; the tensors are changed."""

    scene: Scene
    image: Tensor
    """uint8, (3, H, W)."""
    depth: Tensor | None
    """(h, w)."""
    layers: Tensor
    """Number of the peer that is seen at each pixel, 0 where none was pasted, uint8, (H, W)."""


def _paste_peer(
    canvas: Canvas, placement: Placement, number: int, rules: PasteRules
) -> tuple[Tensor, Tensor, Tensor]:
    """Paste a peer's pixels and depth.

    Returns:
        Its box, (4,); its cells on the grid, bool, (h, w); whether enough of it is visible, a
        bool scalar. Nothing is pasted where it is not.
    """
    peer, stride = placement.peer, MASK_LOSS_STRIDE
    top, left = placement.row * stride, placement.column * stride
    rows = slice(max(top, 0), min(top + peer.image.shape[1], canvas.scene.height))
    columns = slice(max(left, 0), min(left + peer.image.shape[2], canvas.scene.width))
    crop_rows = slice(rows.start - top, rows.stop - top)
    crop_columns = slice(columns.start - left, columns.stop - left)
    whole = pixel_mask(peer.mask)[: peer.image.shape[1], : peer.image.shape[2]]
    visible = whole[crop_rows, crop_columns]
    accepted = visible.sum() > rules.min_pasted_area
    shown = visible & accepted
    canvas.image[:, rows, columns] = torch.where(
        shown, peer.image[:, crop_rows, crop_columns], canvas.image[:, rows, columns]
    )
    canvas.layers[rows, columns].masked_fill_(shown, number)

    pixels = torch.zeros_like(canvas.layers, dtype=torch.bool)
    pixels[rows, columns] = shown
    cells = _covered_cells(pixels)
    if canvas.depth is not None:
        assert peer.depth is not None
        source, target = _overlap(placement, cells.shape)
        canvas.depth[target] = nearer_depth(
            peer.depth[source], canvas.depth[target], cells[target], rules.depth_margin
        )
    full = _extent(whole)
    seen = _extent(visible, crop_rows.start, crop_columns.start)
    box = _cut_box(_vector(full, *peer.box), full, seen) + _vector(full, left, top, left, top)
    height, width = canvas.scene.height, canvas.scene.width
    limit = _vector(box, width, height, width, height)
    return torch.minimum(box.clamp(min=0), limit), cells, accepted


def _cut_box(box: Tensor, full: Tensor, seen: Tensor) -> Tensor:
    """Move each side of an object's box as the side of its mask moved when it was cut off.

    Args:
        box: Its box, (4,).
        full: Tight box of its mask, (4,).
        seen: Tight box of what is left of the mask, (4,).

    Returns:
        The same box where the mask kept its side; elsewhere as far from the mask as before, never
        inside of it, (4,).
    """
    moved = box + (seen - full)
    outside = torch.cat([torch.minimum(moved[:2], seen[:2]), torch.maximum(moved[2:], seen[2:])])
    return torch.where(seen == full, box, outside)


def _overlap(
    placement: Placement, size: Sequence[int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Cells of a crop that lie on the grid, and the cells of the grid that they lie on."""
    source, target = [], []
    starts = (placement.row, placement.column)
    for start, count, limit in zip(starts, placement.peer.mask.shape, size, strict=True):
        first, end = max(start, 0), min(start + count, limit)
        target.append(slice(first, end))
        source.append(slice(first - start, end - start))
    return (source[0], source[1]), (target[0], target[1])


def _pasted_object(
    placement: Placement, box: Tensor, cells: Tensor, accepted: Tensor, like: Objects
) -> Objects:
    """One pasted peer as an object of its new image.

    Around it lies what is surely not the peer, so all of that is counted; where its own mask
    exceeds one half, what was counted in its image is.
    """
    peer = placement.peer
    source, target = _overlap(placement, cells.shape)

    def on_grid(part: Tensor, around: float) -> Tensor:
        grid = part.new_full((1, *cells.shape), around)
        grid[0][target] = part[source]
        return grid

    made = {
        "boxes": box[None],
        "labels": _vector(like["labels"], peer.label),
        "masks": on_grid(peer.mask, 0.0),
        "quality": _vector(like["quality"], peer.quality),
        "confidence": _vector(like["confidence"], peer.confidence),
        "pasted": _vector(like["pasted"], True),
        "accepted": accepted[None],
    }
    if "counted" in like:
        counted = torch.ones_like(peer.mask, dtype=torch.bool)
        if peer.counted is not None:
            counted = peer.counted | (peer.mask <= 0.5)
        made["counted"] = on_grid(counted, 1.0)
    if "true_masks" in like:
        assert peer.true_mask is not None
        made["true_masks"] = on_grid(peer.true_mask, 0.0) * cells
    return made


def _put_behind(
    objects: Objects, cover: Tensor, corner: tuple[int, int], rules: PasteRules
) -> Objects:
    """Take away from objects what a cover hides.

    An object stays while the sides of its box moved by no more than `max_moved` or while more than
    `min_left_area` of its mask is left. An object without a mask is judged by the cells of its box
    instead. One of whose mask no more than `min_left_share` is left goes in any case, and so does
    one whose box becomes too small to be a target.

    Args:
        objects: Of one image.
        cover: Pixels that hide what is behind them, bool, 4-aligned, (k, l).
        corner: Row and column of the cover's first pixel.
        rules: Holds the thresholds.

    Returns:
        The same objects, with `accepted` false for those that are to be dropped.
    """
    before = objects["masks"]
    height, width = before.shape[1:]
    stride = MASK_LOSS_STRIDE
    boxes, remains = boxes_left(objects["boxes"], cover, corner, (height * stride, width * stride))
    hidden = cover.new_zeros((height, width))
    row, column = corner[0] // stride, corner[1] // stride
    cells = _covered_cells(cover)
    hidden[row : row + cells.shape[0], column : column + cells.shape[1]] = cells
    open_ = rasterise(boxes, height, width, stride) * ~hidden  # (n, h, w)
    inside = before > 0.5
    whole = inside.flatten(1).sum(dim=1)
    left = torch.where((whole > 0)[:, None, None], inside & ~hidden, open_ > 0)
    left = left.flatten(1).sum(dim=1)  # (n,)
    moved = (boxes - objects["boxes"]).abs().amax(dim=1)
    sides = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1)
    stays = (moved <= rules.max_moved) | (left * CELL_AREA > rules.min_left_area)
    stays &= (
        remains & (left > whole * rules.min_left_share) & ((sides >= SMALLEST_SIDE) | (moved == 0))
    )
    changed = {"boxes": boxes, "masks": before * open_, "accepted": objects["accepted"] & stays}
    if "counted" in objects:  # what is hidden is known: it is not the object
        changed["counted"] = objects["counted"] | hidden
    if "true_masks" in objects:
        changed["true_masks"] = objects["true_masks"] * ~hidden
    return objects | changed


def paste_peers(
    canvas: Canvas, placements: Sequence[Placement], objects: Objects, rules: PasteRules
) -> Objects:
    """Paste peers into one image, one over the other.

    Returns:
        What was there and what was pasted, (n + len(placements)) objects, each without what lies
        before it.
    """
    groups = [objects]
    for number, placement in enumerate(placements, start=1):
        box, cells, accepted = _paste_peer(canvas, placement, number, rules)
        groups.append(_pasted_object(placement, box, cells, accepted, objects))
    targets = [_overlap(place, objects["masks"].shape[1:])[1] for place in placements]
    top, left = (min(target[axis].start for target in targets) for axis in (0, 1))
    bottom, right = (max(target[axis].stop for target in targets) for axis in (0, 1))
    stride = MASK_LOSS_STRIDE
    layers = canvas.layers[top * stride : bottom * stride, left * stride : right * stride]
    corner = (top * stride, left * stride)
    groups = [
        _put_behind(group, layers > number, corner, rules) for number, group in enumerate(groups)
    ]
    return {name: torch.cat([group[name] for group in groups]) for name in objects}
