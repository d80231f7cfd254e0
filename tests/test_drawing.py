"""Pictures of instances and panels of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from boxseg.runtime.drawing import (
    Instances,
    compare,
    draw_instances,
    instance_colour,
    panel,
    write_picture,
)
from boxseg.runtime.images import read_image


def _image() -> np.ndarray:
    return np.full((60, 80, 3), 100, np.uint8)


def _disc() -> tuple[np.ndarray, np.ndarray]:
    """A disc of radius 15 around (40, 30) and its box."""
    y, x = np.mgrid[:60, :80]
    return np.array([[25, 15, 56, 46]]), ((x - 40) ** 2 + (y - 30) ** 2 <= 225)[None]


def test_mask_is_tinted_inside_and_nothing_else_changes() -> None:
    boxes, masks = _disc()
    instances = Instances.from_dense(boxes, ["disc"], [0.9], masks)
    drawn = draw_instances(_image(), instances, labels=False, boxes=False)
    # 100 * 0.55 + colour * 0.45, colour (255, 87, 51)
    np.testing.assert_array_equal(drawn[30, 40], [170, 94, 78])
    np.testing.assert_array_equal(drawn[30, 25], instance_colour(0))  # outline
    np.testing.assert_array_equal(drawn[~masks[0]], _image()[~masks[0]])


def test_the_given_image_stays_as_it_is() -> None:
    boxes, masks = _disc()
    image = _image()
    draw_instances(image, Instances.from_dense(boxes, ["disc"], None, masks))
    np.testing.assert_array_equal(image, _image())


def test_scale_magnifies_the_picture() -> None:
    boxes, masks = _disc()
    instances = Instances.from_dense(boxes, ["disc"], [0.9], masks)
    drawn = draw_instances(_image(), instances, scale=3.0, labels=False, boxes=False)
    assert drawn.shape == (180, 240, 3)
    np.testing.assert_array_equal(drawn[91, 121], [170, 94, 78])


def test_no_instances_leave_the_image() -> None:
    empty = Instances.from_dense(np.zeros((0, 4)), [], [], np.zeros((0, 60, 80)))
    np.testing.assert_array_equal(draw_instances(_image(), empty), _image())


def test_boxes_and_masks_beyond_the_image_are_drawn_as_far_as_seen() -> None:
    mask = np.ones((1, 60, 80), bool)
    instances = Instances.from_dense([[-20, -20, 500, 500]], ["all"], [0.5], mask)
    assert draw_instances(_image(), instances).shape == (60, 80, 3)


def test_an_empty_mask_draws_nothing() -> None:
    empty = Instances.from_dense([[1, 1, 5, 5]], ["none"], None, np.zeros((1, 60, 80)))
    np.testing.assert_array_equal(
        draw_instances(_image(), empty, labels=False, boxes=False), _image()
    )


def test_labels_do_not_cover_one_another() -> None:
    boxes = np.array([[10, 40, 60, 90], [12, 41, 60, 90], [14, 42, 60, 90]])
    image = np.full((120, 200, 3), 90, np.uint8)
    instances = Instances.from_dense(boxes, ["a", "b", "c"], [0.9, 0.8, 0.7])
    drawn = draw_instances(image, instances, boxes=False)
    areas = [int((drawn == instance_colour(i)).all(axis=2).sum()) for i in range(3)]
    assert min(areas) > 0.8 * max(areas)


def test_colours_of_forty_instances_differ() -> None:
    colours = [instance_colour(i) for i in range(40)]
    for a, b in itertools.combinations(colours, 2):
        assert np.abs(np.subtract(a, b)).sum() > 12


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="scores must have 1 entries, got 2"):
        Instances.from_dense([[0, 0, 1, 1]], ["a"], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"boxes must be \(2, 4\)"):
        Instances.from_dense([[0, 0, 1, 1]], ["a", "b"])
    with pytest.raises(ValueError, match="colours must have 1 entries"):
        draw_instances(_image(), Instances.from_dense([[0, 0, 1, 1]], ["a"]), colours=[])


def test_annotations_of_every_form_are_drawn() -> None:
    pytest.importorskip("pycocotools", reason="COCO masks need pycocotools")
    truth = Instances.from_annotations(
        [
            {
                "bbox": [10, 10, 20, 20],
                "category_id": 3,
                "segmentation": [[10, 10, 30, 10, 10, 30]],
            },
            {
                "bbox": [0, 0, 2, 60],
                "category_id": 4,
                "segmentation": {"size": [60, 80], "counts": [0, 120, 4680]},
            },
            {"bbox": [40, 10, 20, 20], "category_id": 4},
        ],
        {3: "star", 4: "ring"},
        60,
        80,
    )
    assert truth.names == ("star", "ring", "ring")
    np.testing.assert_array_equal(truth.boxes[0], [10, 10, 30, 30])
    assert truth.masks is not None
    assert truth.masks[0] is not None
    assert abs(int(truth.masks[0].mask.sum()) - 200) < 20
    assert truth.masks[1] is not None
    assert truth.masks[1].mask.shape == (60, 2)
    assert truth.masks[2] is None
    draw_instances(_image(), truth)


def test_a_prediction_takes_the_colour_of_its_object() -> None:
    # the first prediction is the second object, the second prediction is no object
    truth = Instances.from_dense([[0, 0, 20, 20], [40, 20, 60, 40]], ["a", "b"])
    found = Instances.from_dense([[41, 20, 61, 40], [60, 0, 80, 20]], ["b", "a"], [0.9, 0.4])
    _, drawn = compare(_image(), truth, found, labels=False)
    np.testing.assert_array_equal(drawn[30, 41], instance_colour(1))
    np.testing.assert_array_equal(drawn[10, 60], instance_colour(2))


def test_panel_sets_pictures_side_by_side() -> None:
    red, blue = np.zeros((30, 40, 3), np.uint8), np.zeros((60, 80, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = panel([[red, blue], [blue]], cell_width=80, margin=10)
    # 10 + 2 * (80 + 10) wide, 10 + 2 * (60 + 10) high
    assert sheet.shape == (150, 190, 3)
    np.testing.assert_array_equal(sheet[40, 50], [255, 0, 0])
    np.testing.assert_array_equal(sheet[40, 140], [0, 0, 255])
    np.testing.assert_array_equal(sheet[110, 50], [0, 0, 255])
    np.testing.assert_array_equal(sheet[110, 140], [250, 250, 250])


def test_titles_and_captions_take_room() -> None:
    cell = np.zeros((60, 80, 3), np.uint8)
    plain = panel([[cell, cell]], cell_width=80)
    worded = panel([[cell, cell]], titles=["truth", "found"], captions=["a.png"], cell_width=80)
    assert worded.shape[0] > plain.shape[0]
    assert worded.shape[1] == plain.shape[1]


def test_an_empty_panel_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        panel([])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pictures_are_written_and_read_again(tmp_path: Path, suffix: str) -> None:
    write_picture(tmp_path / f"a.{suffix}", _image())
    assert np.abs(read_image(tmp_path / f"a.{suffix}").astype(int) - 100).max() <= 2
