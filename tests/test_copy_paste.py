"""Pasting into one image: pixels, boxes, masks and depth worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from boxseg.train.copy_paste import (
    Canvas,
    Objects,
    PasteRules,
    Peer,
    Placement,
    Scene,
    boxes_left,
    nearer_depth,
    paste_peers,
    pixel_mask,
)

ANY_SIZE = PasteRules(min_pasted_area=0)


def peer_of(mask: list[list[float]], colour: int = 200, **changes: object) -> Peer:
    """A peer of one colour whose box is its whole crop."""
    cells = torch.tensor(mask, dtype=torch.float32)
    rows, columns = cells.shape
    plain = Peer(
        image=torch.full((3, 4 * rows, 4 * columns), colour, dtype=torch.uint8),
        mask=cells,
        counted=None,
        true_mask=None,
        depth=None,
        origin=(0, 0),
        box=(0.0, 0.0, 4.0 * columns, 4.0 * rows),
        label=3,
        quality=0.75,
        confidence=0.625,
        step=0,
        picture=0,
        number=0,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # the tests pass what fits


def objects_of(boxes: list[list[float]], masks: Tensor | None = None) -> Objects:
    """Objects on an 8 x 16 grid; their masks fill their boxes unless they are given."""
    count = len(boxes)
    table = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    if masks is None:
        masks = torch.zeros(count, 8, 16)
        for row, box in enumerate((table / 4).long().tolist()):
            masks[row, box[1] : box[3], box[0] : box[2]] = 1
    return {
        "boxes": table,
        "labels": torch.zeros(count, dtype=torch.int64),
        "masks": masks,
        "quality": torch.full((count,), 0.5),
        "confidence": torch.full((count,), 0.5),
        "pasted": torch.zeros(count, dtype=torch.bool),
        "accepted": torch.ones(count, dtype=torch.bool),
    }


def canvas_of(
    height: int = 32, width: int = 64, depth: Tensor | None = None, seed: int = 0
) -> Canvas:
    """A noisy image of 32 x 64 pixels, of which some are content."""
    generator = torch.Generator().manual_seed(seed)
    return Canvas(
        scene=Scene(height, width, np.zeros((0, 4)), np.zeros(0, dtype=np.int64)),
        image=torch.randint(0, 256, (3, 32, 64), dtype=torch.uint8, generator=generator),
        depth=depth,
        layers=torch.zeros(32, 64, dtype=torch.uint8),
    )


def test_one_cell_becomes_its_pixels_without_the_corners() -> None:
    # From the cell's centre, pixels lie 1/8 or 3/8 of a cell away on each axis:
    # corner .625 * .625 = .39, edge .625 * .875 = .55, middle .875 * .875 = .77
    expected = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]) > 0
    assert torch.equal(pixel_mask(torch.ones(1, 1)), expected)


def test_a_soft_cell_at_the_border_shrinks_as_if_zeros_lay_around_it() -> None:
    # A row of .6 through the middle: rows 1/8 away .6 * .875 = .525, 3/8 away .6 * .625 = .375
    cut = pixel_mask(torch.full((1, 5), 0.6))
    assert cut[:, 8:12].all(dim=1).tolist() == [False, True, True, False]
    assert not cut[0].any()


def test_a_mask_of_one_half_cuts_nothing_out() -> None:
    assert not pixel_mask(torch.full((3, 3), 0.5)).any()


def test_a_peer_goes_into_pixels_box_and_mask_at_its_place() -> None:
    canvas = canvas_of()
    before = canvas.image.clone()
    peer = peer_of([[1, 1], [1, 0.96]], box=(0.5, 0.0, 8.0, 7.5))
    made = paste_peers(canvas, [Placement(peer, 3, 5)], objects_of([]), ANY_SIZE)
    # Row 3, column 5 is the pixel (12, 20). All of 8 x 8 but the outermost corners is pasted; the
    # pixels beside the last corner have .96 * .625 * .875 = .525.
    pasted = torch.zeros(32, 64, dtype=torch.bool)
    pasted[12:20, 20:28] = True
    for y, x in ((12, 20), (12, 27), (19, 20), (19, 27)):
        pasted[y, x] = False
    assert (canvas.image[:, pasted] == 200).all()
    assert torch.equal(canvas.image[:, ~pasted], before[:, ~pasted])
    assert made["boxes"].tolist() == [[20.5, 12.0, 28.0, 19.5]]
    mask = torch.zeros(8, 16)
    mask[3:5, 5:7] = torch.tensor([[1, 1], [1, 0.96]])
    assert torch.equal(made["masks"], mask[None])
    assert made["labels"].tolist() == [3]
    assert made["quality"].tolist() == [0.75]
    assert made["confidence"].tolist() == [0.625]
    assert made["pasted"].tolist() == [True]
    assert made["accepted"].tolist() == [True]


def test_a_peer_is_cut_at_the_image_content_and_its_box_follows_its_mask() -> None:
    # A hook: a column down the left, a foot to the right in its last row. The content ends below
    # its first row, at pixel 16, so the foot is gone and the box is as wide as the column.
    canvas = canvas_of(height=16)
    before = canvas.image.clone()
    peer = peer_of([[1, 0, 0], [1, 0, 0], [1, 1, 1]])
    made = paste_peers(canvas, [Placement(peer, 3, 2)], objects_of([]), ANY_SIZE)
    assert made["boxes"].tolist() == [[8.0, 12.0, 12.0, 16.0]]
    assert made["masks"].nonzero().tolist() == [[0, 3, 2]]
    assert torch.equal(canvas.image[:, 16:], before[:, 16:])
    assert (canvas.image[:, 13:16, 8:12] == 200).all()


def test_a_cut_peer_keeps_the_distance_of_its_box_to_its_mask() -> None:
    # The crop starts two cells left of the image. Its mask spans columns 0 to 4 of the crop, its
    # box ends 1.5 px before the crop's end; what is left are cells 2 and 3.
    canvas = canvas_of()
    peer = peer_of([[1, 1, 1, 1]], box=(0.25, 0.5, 14.5, 4.0))
    made = paste_peers(canvas, [Placement(peer, 1, -2)], objects_of([]), ANY_SIZE)
    # The left side moves with the mask from 0.25 to 8.25, but not into the mask: 8, minus 8 is 0.
    assert made["boxes"].tolist() == [[0.0, 4.5, 6.5, 8.0]]


def test_content_that_ends_within_a_cell_ends_the_paste_there() -> None:
    canvas = canvas_of(width=30)
    before = canvas.image.clone()
    peer = peer_of([[1, 1], [1, 1]])
    made = paste_peers(canvas, [Placement(peer, 0, 6)], objects_of([]), ANY_SIZE)
    # Pixels 24..29; the second cell is half content, but its centre, 30, is not.
    assert made["boxes"].tolist() == [[24.0, 0.0, 30.0, 8.0]]
    assert made["masks"].nonzero().tolist() == [[0, 0, 6], [0, 1, 6]]
    assert torch.equal(canvas.image[:, :, 30:], before[:, :, 30:])


def test_too_small_a_paste_changes_nothing() -> None:
    # 2 x 2 cells show 60 px (64 without 4 corners).
    canvas, depth = canvas_of(), torch.rand(8, 16)
    canvas = replace(canvas, depth=depth.clone())
    before = canvas.image.clone()
    peer = peer_of([[1, 1], [1, 1]], depth=torch.full((2, 2), 9.0))
    objects = objects_of([[20, 12, 28, 20]])
    made = paste_peers(canvas, [Placement(peer, 3, 5)], objects, PasteRules(min_pasted_area=60))
    assert torch.equal(canvas.image, before)
    assert canvas.depth is not None
    assert torch.equal(canvas.depth, depth)
    assert made["accepted"].tolist() == [True, False]
    assert torch.equal(made["masks"][:1], objects["masks"])
    enough = paste_peers(canvas, [Placement(peer, 3, 5)], objects, PasteRules(min_pasted_area=59))
    assert enough["accepted"].tolist()[1]


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ((4, 20), (8, 16), [16.0, 4.0, 30.0, 20.0]),  # full height: the left side moves
        ((4, 20), (25, 40), [10.0, 4.0, 25.0, 20.0]),
        ((0, 9), (10, 30), [10.0, 9.0, 30.0, 20.0]),
        ((5, 20), (8, 16), [10.0, 4.0, 30.0, 20.0]),  # one row stays free: nothing moves
        ((4, 20), (14, 20), [10.0, 4.0, 30.0, 20.0]),  # both ends of the box are seen
        ((0, 0), (0, 0), [10.0, 4.0, 30.0, 20.0]),
    ],
)
def test_a_box_shrinks_past_columns_and_rows_that_are_hidden_as_a_whole(
    rows: tuple[int, int], columns: tuple[int, int], expected: list[float]
) -> None:
    cover = torch.ones(rows[1] - rows[0], columns[1] - columns[0], dtype=torch.bool)
    box = torch.tensor([[10.0, 4.0, 30.0, 20.0]])
    left, remains = boxes_left(box, cover, (rows[0], columns[0]), (32, 64))
    assert left.tolist() == [expected]
    assert remains.tolist() == [True]


def test_sides_that_did_not_move_keep_their_fractions() -> None:
    # Pixels 10..29 by 5..19 have their centres in the box; 10..15 are hidden.
    cover = torch.ones(15, 6, dtype=torch.bool)
    box = torch.tensor([[10.3, 4.6, 30.2, 20.4]])
    left, _ = boxes_left(box, cover, (5, 10), (32, 64))
    torch.testing.assert_close(left, torch.tensor([[16.0, 4.6, 30.2, 20.4]]))


def test_nothing_remains_of_a_box_that_is_hidden() -> None:
    cover = torch.ones(10, 10, dtype=torch.bool)
    boxes = torch.tensor([[2.0, 2.0, 8.0, 8.0], [4.6, 4.6, 5.2, 5.2], [4.0, 4.0, 11.0, 8.0]])
    _, remains = boxes_left(boxes, cover, (0, 0), (32, 64))
    assert remains.tolist() == [False, False, True]


def test_no_boxes_leave_none() -> None:
    cover = torch.ones(4, 4, dtype=torch.bool)
    left, remains = boxes_left(torch.zeros(0, 4), cover, (0, 0), (32, 64))
    assert left.shape == (0, 4)
    assert remains.shape == (0,)


def test_boxes_left_are_those_of_the_pixels_that_remain() -> None:
    generator = np.random.default_rng(7)
    moved = 0
    for _ in range(200):
        size = generator.integers(2, 12, 2)
        corner = generator.integers(0, 20 - size)
        cover = generator.random(size) < 0.97
        low = generator.integers(0, 14, 2)
        high = low + generator.integers(1, 7, 2)
        pixels = np.zeros((20, 20), dtype=bool)
        pixels[low[0] : high[0], low[1] : high[1]] = True
        pixels[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] &= ~cover
        box = torch.tensor([[low[1], low[0], high[1], high[0]]], dtype=torch.float32)
        place = int(corner[0]), int(corner[1])
        found, remains = boxes_left(box, torch.from_numpy(cover), place, (20, 20))
        assert bool(remains) == pixels.any()
        if pixels.any():
            rows, columns = np.nonzero(pixels)
            expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert found.tolist() == [expected]
            moved += found.tolist() != box.tolist()
    assert moved > 20


def covered_by_a_bar(objects: Objects, columns: int, rules: PasteRules = ANY_SIZE) -> Objects:
    """Paste a bar over the left of an 8-row image, wider than it by what its corners lack."""
    bar = peer_of([[1.0] * (columns + 1)] * 10)
    return paste_peers(canvas_of(), [Placement(bar, -1, -1)], objects, rules)


def test_an_object_loses_the_cells_that_are_hidden() -> None:
    # The bar hides the columns 0..7 px of an object from 4 to 16: 4 px of its box.
    made = covered_by_a_bar(objects_of([[4, 8, 16, 24]]), 2)
    assert made["boxes"][0].tolist() == [8.0, 8.0, 16.0, 24.0]
    mask = torch.zeros(8, 16)
    mask[2:6, 2:4] = 1
    assert torch.equal(made["masks"][0], mask)
    assert made["accepted"].tolist() == [True, True]
    assert made["quality"].tolist() == [0.5, 0.75]


def test_an_object_whose_box_moved_little_stays_however_small() -> None:
    # The left side moves from 1 to 8 px, 7; 4 cells = 64 px are left.
    made = covered_by_a_bar(objects_of([[1, 8, 16, 16]]), 2)
    assert made["boxes"][0].tolist() == [8.0, 8.0, 16.0, 16.0]
    assert made["accepted"].tolist()[0]


@pytest.mark.parametrize(("rows", "stays"), [(4, True), (3, False)])
def test_an_object_whose_box_moved_far_stays_if_enough_of_its_mask_is_left(
    rows: int, *, stays: bool
) -> None:
    # The left side moves from 0 to 12 px. 5 columns of cells are left: 4 rows make 320 px,
    # 3 rows 240 px; 300 must be exceeded.
    objects = objects_of([[0, 8, 32, 8 + 4 * rows]])
    made = covered_by_a_bar(objects, 3)
    assert made["boxes"][0, 0] == 12
    assert made["accepted"].tolist() == [stays, True]


def test_an_object_without_a_mask_is_judged_by_its_box() -> None:
    nothing = torch.zeros(2, 8, 16)
    objects = objects_of([[0, 8, 32, 24], [0, 8, 32, 20]], nothing)
    assert covered_by_a_bar(objects, 3)["accepted"].tolist() == [True, False, True]


def test_an_object_of_which_nothing_is_left_goes_even_if_its_box_did_not_move() -> None:
    # The mask fills the middle of a box whose corners stay visible.
    masks = torch.zeros(1, 8, 16)
    masks[0, 3:5, 5:7] = 1
    objects = objects_of([[8, 4, 40, 28]], masks)
    peer = peer_of([[1.0] * 4] * 4)
    made = paste_peers(canvas_of(), [Placement(peer, 2, 4)], objects, ANY_SIZE)
    assert made["boxes"][0].tolist() == [8.0, 4.0, 40.0, 28.0]
    assert made["accepted"].tolist() == [False, True]


@pytest.mark.parametrize(("share", "stays"), [(0.24, True), (0.25, False)])
def test_an_object_goes_when_too_small_a_share_of_its_mask_is_left(
    share: float, *, stays: bool
) -> None:
    # One of four columns of cells is left.
    rules = PasteRules(min_pasted_area=0, max_moved=100, min_left_share=share)
    made = covered_by_a_bar(objects_of([[0, 8, 16, 24]]), 3, rules)
    assert made["accepted"].tolist() == [stays, True]


def test_an_object_out_of_reach_stays_as_it_is() -> None:
    objects = objects_of([[48.25, 8.0, 60.0, 16.0]])
    made = covered_by_a_bar(objects, 2)
    for name, before in objects.items():
        assert torch.equal(made[name][:1], before), name


def test_a_box_that_becomes_too_thin_is_no_target() -> None:
    # The side moves by 8 px, but only 1.5 px of the box remain.
    masks = torch.zeros(1, 8, 16)
    masks[0, 2:4, 0:3] = 1
    made = covered_by_a_bar(objects_of([[0, 8, 9.5, 16]], masks), 2)
    assert made["boxes"][0].tolist() == [8.0, 8.0, 9.5, 16.0]
    assert made["accepted"].tolist() == [False, True]


def test_of_two_pasted_peers_the_later_covers_the_earlier() -> None:
    canvas = canvas_of()
    first, second = peer_of([[1.0] * 4] * 3, 100), peer_of([[1.0] * 4] * 5, 200)
    places = [Placement(first, 3, 2), Placement(second, 2, 4)]
    made = paste_peers(canvas, places, objects_of([[4, 12, 28, 24]]), ANY_SIZE)
    # The first spans 8..24 by 12..24 px, the second 16..32 by 8..28 px, so the object keeps 4..8
    # (and the first's corners, too little for a cell) and 28..32 never was its own.
    assert made["boxes"].tolist() == [
        [4.0, 12.0, 9.0, 24.0],
        [8.0, 12.0, 16.0, 24.0],
        [16.0, 8.0, 32.0, 28.0],
    ]
    cells = [
        {(row, 1) for row in (3, 4, 5)},
        {(row, column) for row in (3, 4, 5) for column in (2, 3)},
        {(row, column) for row in (2, 3, 4, 5, 6) for column in (4, 5, 6, 7)},
    ]
    for mask, expected in zip(made["masks"], cells, strict=True):
        assert {(y, x) for y, x in mask.nonzero().tolist()} == expected
    assert (canvas.image[:, 14:22, 16:30] == 200).all()
    assert (canvas.image[:, 14:22, 9:16] == 100).all()


def test_what_is_hidden_counts_as_background_and_so_does_all_around_a_peer() -> None:
    objects = objects_of([[4, 8, 16, 24]])
    objects["counted"] = torch.zeros(1, 8, 16, dtype=torch.bool)
    unsure = torch.tensor([[True, False], [False, True]])
    peer = peer_of([[1, 1], [0.2, 1]], counted=unsure)
    made = paste_peers(canvas_of(), [Placement(peer, 4, 3)], objects, ANY_SIZE)
    # Cells (4, 3), (4, 4) and (5, 4) are covered. In the peer's own mask only (4, 4) is unsure:
    # (5, 3) was, but the peer was not pasted there.
    assert made["counted"][0].nonzero().tolist() == [[4, 3], [4, 4], [5, 4]]
    assert (~made["counted"][1]).nonzero().tolist() == [[4, 4]]


def test_true_masks_follow_what_is_seen() -> None:
    objects = objects_of([[0, 0, 16, 16]])
    objects["true_masks"] = torch.ones(1, 8, 16)
    peer = peer_of([[1, 1, 0], [1, 1, 0]], true_mask=torch.tensor([[1.0, 0, 1], [1, 1, 1]]))
    made = paste_peers(canvas_of(), [Placement(peer, 1, 2)], objects, ANY_SIZE)
    hidden = {(1, 2), (1, 3), (2, 2), (2, 3)}
    assert {(y, x) for y, x in (made["true_masks"][0] == 0).nonzero().tolist()} == hidden
    # Its true cells outside of what was pasted, (1, 4) and (2, 4), did not come along.
    assert made["true_masks"][1].nonzero().tolist() == [[1, 2], [2, 2], [2, 3]]


def test_a_peer_that_is_not_near_enough_is_brought_before_what_it_covers() -> None:
    # 95th percentile of 50, 60, 70: 60 + .9 * 10 = 69; + 8 - median 20 = 57.
    behind = torch.tensor([[50.0, 60, 70, 255]])
    where = torch.tensor([[True, True, True, False]])
    made = nearer_depth(torch.tensor([[10.0, 20, 30, 40]]), behind, where, 8)
    torch.testing.assert_close(made, torch.tensor([[67.0, 77, 87, 255]]))


def test_a_peer_that_is_near_enough_keeps_its_depth() -> None:
    behind = torch.tensor([[50.0, 60, 70]])
    own = torch.tensor([[70.0, 80, 90]])  # 80 >= 69 + 8
    where = torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(nearer_depth(own, behind, where, 8), own)


def test_depth_stays_below_its_greatest_value() -> None:
    # 250 + 8 - 20 = 238: 248, 258 and 268
    own, behind = torch.tensor([[10.0, 20, 30]]), torch.full((1, 3), 250.0)
    made = nearer_depth(own, behind, torch.ones(1, 3, dtype=torch.bool), 8)
    assert made.tolist() == [[248.0, 255.0, 255.0]]


def test_depth_stays_where_nothing_is_covered() -> None:
    behind = torch.rand(2, 3)
    where = torch.zeros(2, 3, dtype=torch.bool)
    assert torch.equal(nearer_depth(torch.rand(2, 3), behind, where, 8), behind)


def test_depth_is_pasted_where_the_peer_is() -> None:
    depth = torch.full((8, 16), 100.0)
    canvas = canvas_of(depth=depth)
    peer = peer_of([[1, 1], [1, 0]], depth=torch.tensor([[30.0, 40], [50, 60]]))
    paste_peers(canvas, [Placement(peer, -1, 3)], objects_of([]), ANY_SIZE)
    # Only the crop's second row is in the image, there only its first cell: 100 + 8.
    expected = torch.full((8, 16), 100.0)
    expected[0, 3] = 108
    assert torch.equal(depth, expected)
