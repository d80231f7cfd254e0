"""Geometry of the loader: numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from boxseg.train.transforms import (
    AnnotatedImage,
    Geometry,
    collate,
    sample_depth,
    scaled_size,
)

NOTHING = np.arange(2, dtype=np.int64)


def annotated(height: int = 40, width: int = 60, **changes: object) -> AnnotatedImage:
    """A noisy image with one box from (10, 4) to (30, 24)."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    plain = AnnotatedImage(
        image=image,
        boxes=np.array([[10, 4, 30, 24]], dtype=np.float32),
        labels=np.array([1], dtype=np.int64),
        image_id=7,
        file_name="a.jpg",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # the tests pass what fits


def flipping(flip: object = "on", short: int = 40) -> tuple[Geometry, int]:
    """A geometry and the first index that it flips."""
    geometry = Geometry((short,), 640, flip=flip)  # type: ignore[arg-type]  # any rule
    return geometry, next(index for index in range(100) if geometry.draw(0, index)[1])


@pytest.mark.parametrize(
    ("size", "short", "long", "expected"),
    [
        ((400, 600), 320, 640, (320, 480)),  # 0.8
        ((600, 400), 320, 640, (480, 320)),
        ((300, 900), 320, 640, (213, 640)),  # 640 / 900 = 0.7111; 213.33
        ((335, 344), 320, 640, (320, 329)),  # 344 * 320 / 335 = 328.6
        ((2, 1000), 320, 100, (1, 100)),  # 2 * 0.1 = 0.2, but at least 1
        ((64, 101), 32, 640, (32, 51)),  # 50.5 rounds up
    ],
)
def test_scaled_size_follows_the_short_side_until_the_long_side_limits_it(
    size: tuple[int, int], short: int, long: int, expected: tuple[int, int]
) -> None:
    assert scaled_size(*size, short, long) == expected


def test_boxes_are_multiplied_by_new_over_old_of_each_axis() -> None:
    # 40 x 61 at short side 20: 20 x 31 (30.5 rounds up); x by 31/61, y by 1/2.
    frame = annotated(40, 61)
    sample = Geometry((20,), 640, flip="off")(frame, NOTHING, epoch=0, index=0)
    assert sample.image.shape == (3, 20, 31)
    assert sample.image.dtype == torch.uint8
    expected = torch.tensor([[10 * 31 / 61, 2.0, 30 * 31 / 61, 12.0]])
    torch.testing.assert_close(sample.boxes, expected)
    assert sample.scale == (0.5, 31 / 61)
    assert sample.original_size == (40, 61)


def test_a_flip_mirrors_image_and_boxes() -> None:
    geometry, index = flipping()
    frame = annotated()
    sample = geometry(frame, NOTHING, epoch=0, index=index)
    # Width 60: x 10..30 becomes 30..50. Scale 1, so pixels stay what they are.
    assert sample.flipped
    assert sample.boxes.tolist() == [[30.0, 4.0, 50.0, 24.0]]
    np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), frame.image[:, ::-1])


def test_a_flip_mirrors_masks_and_depth_with_the_image() -> None:
    geometry, index = flipping()
    masks = np.zeros((1, 40, 60), dtype=np.uint8)
    masks[0, 4:24, 10:30] = 1
    depth = np.random.default_rng(1).random((20, 30), dtype=np.float32) * 255
    straight = replace_flip(geometry)(
        annotated(masks=masks, depth=depth), NOTHING, epoch=0, index=index
    )
    mirrored = geometry(annotated(masks=masks, depth=depth), NOTHING, epoch=0, index=index)
    assert straight.masks is not None
    assert mirrored.masks is not None
    assert mirrored.masks[0, 4:24, 30:50].all()
    assert int(mirrored.masks.sum()) == 400
    # 60 is a multiple of 4, so the stride-4 centres of the mirrored image are the mirrored centres.
    assert straight.depth is not None
    assert mirrored.depth is not None
    torch.testing.assert_close(mirrored.depth, straight.depth.flip(1))


def replace_flip(geometry: Geometry) -> Geometry:
    """The same geometry without flips."""
    return Geometry(geometry.short_sides, geometry.long_side, flip="off", seed=geometry.seed)


def test_flip_off_never_flips() -> None:
    geometry = Geometry((40,), 640, flip="off")
    assert not any(geometry.draw(0, index)[1] for index in range(50))


def test_a_flip_swaps_the_classes_of_a_pair() -> None:
    geometry, index = flipping({"left": "right"})
    table = geometry.mirrored_labels(["body", "left", "right"])
    assert table.tolist() == [0, 2, 1]
    sample = geometry(annotated(), table, epoch=0, index=index)
    assert sample.labels.tolist() == [2]


def test_an_unflipped_image_keeps_its_classes() -> None:
    geometry = Geometry((40,), 640, flip={"left": "right"})
    table = geometry.mirrored_labels(["body", "left", "right"])
    index = next(index for index in range(100) if not geometry.draw(0, index)[1])
    assert geometry(annotated(), table, epoch=0, index=index).labels.tolist() == [1]


def test_every_draw_follows_from_seed_epoch_and_index() -> None:
    first, second = (Geometry((32, 48, 64, 80), 640, seed=3) for _ in range(2))
    # Order of the questions does not matter.
    asked = [(epoch, index) for epoch in range(3) for index in range(40)]
    answers = {key: first.draw(*key) for key in asked}
    assert {key: second.draw(*key) for key in reversed(asked)} == answers
    assert {short for short, _ in answers.values()} == {32, 48, 64, 80}
    assert 30 < sum(flipped for _, flipped in answers.values()) < 90
    other = Geometry((32, 48, 64, 80), 640, seed=4)
    assert {key: other.draw(*key) for key in asked} != answers
    assert [first.draw(0, index) for index in range(40)] != [
        first.draw(1, index) for index in range(40)
    ]


def test_one_size_per_batch_is_drawn_by_step_and_flips_by_image() -> None:
    geometry = Geometry((32, 48, 64, 80), 640, size_per="batch", seed=3)
    by_image = Geometry((32, 48, 64, 80), 640, seed=3)
    sizes = []
    for step in range(40):
        draws = [geometry.draw(epoch=1, index=index, step=step) for index in range(6)]
        assert len({short for short, _ in draws}) == 1
        assert [flip for _, flip in draws] == [by_image.draw(1, index)[1] for index in range(6)]
        sizes.append(draws[0][0])
    assert set(sizes) == {32, 48, 64, 80}
    assert sizes == [geometry.draw(0, 0, step)[0] for step in range(40)]


def test_depth_is_sampled_at_stride_4_centres_with_one_scale_per_axis() -> None:
    # Image 8 x 14, map 4 x 7: one map cell per two pixels, cell centres at (2j + 1, 2i + 1).
    # Image centres x 2, 6, 10 (14 would be the next edge, so a fourth at 14) lie half way between
    # cells, so a map that holds its column number gives x / 2 - 0.5.
    depth = np.tile(np.arange(7, dtype=np.float32), (4, 1))
    sampled = sample_depth(depth, (8, 14), flipped=False)
    assert sampled.shape == (2, 4)
    # The last centre, 14, is the right edge: it clamps to the last column.
    np.testing.assert_allclose(sampled[0], [0.5, 2.5, 4.5, 6.0])


def test_depth_of_an_odd_image_uses_map_length_over_image_length() -> None:
    # Image width 7, map width 4 (rounded up): centre 2 lies at 2 * 4 / 7 = 1.142857 map pixels,
    # which is 0.642857 in cells; centre 6 at 3.428571, 2.928571 in cells.
    depth = np.tile(np.arange(4, dtype=np.float32), (4, 1))
    sampled = sample_depth(depth, (8, 7), flipped=False)
    np.testing.assert_allclose(sampled[0], [0.642857, 2.928571], atol=1e-5)


def test_an_image_without_boxes_stays_an_image() -> None:
    frame = annotated(
        boxes=np.zeros((0, 4), dtype=np.float32),
        labels=np.zeros(0, dtype=np.int64),
        masks=np.zeros((0, 40, 60), dtype=np.uint8),
    )
    geometry, index = flipping()
    sample = geometry(frame, NOTHING, epoch=0, index=index)
    batch = collate([sample])
    assert batch.boxes[0].shape == (0, 4)
    assert batch.labels[0].shape == (0,)
    assert batch.masks is not None
    assert batch.masks[0].shape == (0, 16, 16)


def test_a_batch_is_padded_right_and_below_to_multiples_of_32() -> None:
    geometry = Geometry((40,), 640, flip="off")
    low = geometry(annotated(40, 60), NOTHING, epoch=0, index=0)
    high = geometry(annotated(50, 40), NOTHING, epoch=0, index=1)
    batch = collate([low, high])
    assert batch.images.shape == (2, 3, 64, 64)  # 50 and 60, rounded up
    assert batch.images.dtype == torch.uint8
    assert batch.sizes.tolist() == [[40, 60], [50, 40]]
    assert batch.original_sizes.tolist() == [[40, 60], [50, 40]]
    torch.testing.assert_close(batch.images[0, :, :40, :60], low.image)
    assert batch.images[0, :, 40:].amin(dim=(1, 2)).tolist() == [124, 116, 104]
    assert batch.images[0, :, :, 60:].amax(dim=(1, 2)).tolist() == [124, 116, 104]
    assert batch.masks is None
    assert batch.depth is None
    assert batch.image_ids == (7, 7)


def test_a_stride_4_mask_cell_is_set_if_half_of_its_pixels_are() -> None:
    masks = np.zeros((1, 32, 32), dtype=np.uint8)
    masks[0, 0:4, 0:2] = 1  # cell (0, 0): 8 of 16
    masks[0, 4:8, 4:8] = 1
    masks[0, 4, 4] = 0  # cell (1, 1): 15 of 16
    masks[0, 8:11, 8:10] = 1
    masks[0, 11, 8] = 1  # cell (2, 2): 7 of 16
    geometry = Geometry((32,), 640, flip="off")
    batch = collate([geometry(annotated(32, 32, masks=masks), NOTHING, epoch=0, index=0)])
    assert batch.masks is not None
    expected = torch.zeros(8, 8)
    expected[0, 0] = expected[1, 1] = 1
    torch.testing.assert_close(batch.masks[0][0], expected)


def test_depth_lies_on_the_stride_4_grid_of_the_batch() -> None:
    depth = np.full((20, 30), 90, dtype=np.float32)
    geometry = Geometry((40,), 640, flip="off")
    batch = collate([geometry(annotated(depth=depth), NOTHING, epoch=0, index=0)])
    assert batch.depth is not None
    assert batch.depth.shape == (1, 16, 16)
    assert (batch.depth[0, :10, :15] == 90).all()
    assert (batch.depth[0, 10:] == 0).all()


def test_a_batch_moves_to_a_device_as_a_whole() -> None:
    geometry = Geometry((40,), 640, flip="off")
    batch = collate([geometry(annotated(), NOTHING, epoch=0, index=0)]).to("cpu")
    assert batch.file_names == ("a.jpg",)
    assert batch.boxes[0].device.type == "cpu"


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        collate([])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"short_sides": ()}, r"data\.short_sides needs lengths of at least 1 px, got \[\]"),
        ({"short_sides": (0,)}, r"data\.short_sides needs lengths"),
        ({"long_side": 30}, r"data\.long_side must be at least the largest short side 40, got 30"),
        ({"flip": "maybe"}, r"data\.flip must be off, on or .*, got 'maybe'"),
        ({"flip": {"a": "b", "b": "c"}}, r"data\.flip names 'b' more than once"),
    ],
)
def test_a_wrong_rule_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Geometry(**{"short_sides": (40,), "long_side": 640, **given})  # type: ignore[arg-type]


def test_a_flip_of_an_unknown_class_is_refused() -> None:
    geometry = Geometry((40,), 640, flip={"left": "wright"})
    with pytest.raises(ValueError, match=r"unknown class 'wright'; classes are left, right"):
        geometry.mirrored_labels(["left", "right"])


def test_careless_boxes_move_by_a_fraction_of_their_size_and_stay_the_same() -> None:
    boxes = np.array([[100, 100, 140, 200], [0, 0, 10, 10]], dtype=np.float32)
    rule = Geometry((64,), 64, box_jitter=0.1, seed=3)
    moved = rule.careless(boxes, (300, 300), index=5)
    apart = np.abs(moved - boxes)
    assert (apart[0] <= [4, 10, 4, 10]).all()
    assert (apart[0] > 0).all()
    assert moved.min() >= 0
    np.testing.assert_array_equal(moved, rule.careless(boxes, (300, 300), index=5))
    assert not np.array_equal(moved, rule.careless(boxes, (300, 300), index=6))


def test_without_jitter_boxes_stay_and_a_box_never_vanishes() -> None:
    boxes = np.array([[1, 1, 3, 3]], dtype=np.float32)
    np.testing.assert_array_equal(Geometry((64,), 64).careless(boxes, (9, 9), 0), boxes)
    for index in range(50):
        moved = Geometry((64,), 64, box_jitter=0.4).careless(boxes, (9, 9), index)
        assert (moved[0, 2:] - moved[0, :2] >= 2).all()
    none = np.zeros((0, 4), dtype=np.float32)
    assert Geometry((64,), 64, box_jitter=0.4).careless(none, (9, 9), 0).shape == (0, 4)


def test_boxes_at_the_border_never_leave_the_image() -> None:
    # in float32, 277 * (195 / 277) is 195.00002; mirrored, it is -0.00002
    for width in (277, 303, 319, 325, 331):
        frame = AnnotatedImage(
            image=np.zeros((250, width, 3), dtype=np.uint8),
            boxes=np.array([[0, 0, width, 250], [width - 30.3, 9, width, 250]], dtype=np.float32),
            labels=np.zeros(2, dtype=np.int64),
            image_id=1,
            file_name="a",
        )
        rule = Geometry((176,), 352, flip="on")
        for epoch in range(4):
            sample = rule(frame, np.zeros(1, dtype=np.int64), epoch=epoch, index=0)
            assert sample.boxes.min() >= 0
            assert sample.boxes[:, 2].max() <= sample.image.shape[2]
            assert sample.boxes[:, 3].max() <= sample.image.shape[1]
