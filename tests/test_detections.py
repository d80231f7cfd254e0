"""Detections and every form of their masks."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from boxseg.runtime import _native
from boxseg.runtime.detections import Detections


def _detections(masks: NDArray[np.bool_]) -> Detections:
    n, height, width = masks.shape
    scores = np.linspace(0.9, 0.5, n, dtype=np.float32)
    boxes = np.tile(np.array([1, 2, 4, 6], np.float32), (n, 1))
    return Detections(
        xyxy=boxes,
        scores=scores,
        labels=np.arange(n) % 2,
        height=height,
        width=width,
        counts=tuple(_native.rle_encode(mask.view(np.uint8)) for mask in masks),
        class_names=("star", "ring"),
        category_ids=(3, 1),
        score0=scores,
        mask_scores=scores,
        areas=masks.sum(axis=(1, 2)),
    )


def _random_masks(n: int, seed: int = 0) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((n, 9, 13)) < 0.4


def _squares() -> NDArray[np.bool_]:
    """Two overlapping squares and an empty mask, 6 x 8."""
    masks = np.zeros((3, 6, 8), bool)
    masks[0, 1:4, 1:4] = True
    masks[1, 2:5, 2:6] = True
    return masks


def test_dense_and_crops_are_the_masks() -> None:
    masks = _random_masks(5)
    found = _detections(masks)
    assert np.array_equal(found.dense(), masks)
    for crop, mask in zip(found.crops(), masks, strict=True):
        again = np.zeros_like(mask)
        again[crop.y : crop.y + crop.mask.shape[0], crop.x : crop.x + crop.mask.shape[1]] = (
            crop.mask
        )
        assert np.array_equal(again, mask)
        assert crop.mask[0].any()
        assert crop.mask[-1].any()
        assert crop.mask[:, 0].any()
        assert crop.mask[:, -1].any()


def test_an_empty_mask_has_an_empty_crop_and_no_polygon() -> None:
    found = _detections(_squares())
    assert found.crops()[2].mask.shape == (0, 0)
    assert found.polygons()[2] == []


def test_the_label_image_shows_the_higher_score_on_top() -> None:
    label = _detections(_squares()).label_image()
    assert label.dtype == np.uint8
    assert label[1:4, 1:4].tolist() == [[1, 1, 1]] * 3
    assert label[4].tolist() == [0, 0, 2, 2, 2, 2, 0, 0]
    assert label[2].tolist() == [0, 1, 1, 1, 2, 2, 0, 0]


def test_the_label_image_of_many_instances_has_16_bits() -> None:
    label = _detections(np.ones((300, 2, 2), bool)[:, :, :]).label_image()
    assert label.dtype == np.uint16
    assert label.max() == 1


def test_the_polygon_of_a_rectangle_has_four_corners() -> None:
    ring = _detections(_squares()).polygons()[1][0]
    # columns 2..5, rows 2..4: clockwise on the screen from the left top
    assert ring.tolist() == [[2, 2], [6, 2], [6, 5], [2, 5]]
    assert ring.dtype == np.float32


def _area(ring: NDArray[np.float32]) -> float:
    """The signed area by the shoelace formula."""
    x, y = ring.astype(np.float64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def test_a_hole_runs_the_other_way() -> None:
    mask = np.ones((1, 5, 5), bool)
    mask[0, 2, 2] = False
    outer, hole = _detections(mask).polygons()[0]
    assert _area(outer) == 25
    assert _area(hole) == -1


def test_pixels_that_touch_at_a_corner_are_separate() -> None:
    mask = np.eye(2, dtype=bool)[None]
    rings = _detections(np.ascontiguousarray(mask)).polygons()[0]
    assert [ring.tolist() for ring in rings] == [
        [[0, 0], [1, 0], [1, 1], [0, 1]],
        [[1, 1], [2, 1], [2, 2], [1, 2]],
    ]


def test_polygons_enclose_exactly_the_pixels() -> None:
    masks = _random_masks(20, seed=3)
    for mask, rings in zip(masks, _detections(masks).polygons(), strict=True):
        assert sum(_area(ring) for ring in rings) == mask.sum()
        # even-odd rule at the pixel centres: count the vertical edges to the right
        for y, x in np.ndindex(*mask.shape):
            crossings = 0
            for ring in rings:
                ends = np.roll(ring, -1, axis=0)
                vertical = (ring[:, 0] == ends[:, 0]) & (ring[:, 0] > x + 0.5)
                low, high = np.minimum(ring[:, 1], ends[:, 1]), np.maximum(ring[:, 1], ends[:, 1])
                crossings += int((vertical & (low < y + 0.5) & (high > y + 0.5)).sum())
            assert (crossings % 2 == 1) == mask[y, x]


def test_coco_results_have_the_data_sets_ids() -> None:
    codec = pytest.importorskip("pycocotools.mask")
    masks = _squares()
    results = _detections(masks).to_coco(17)
    assert [entry["category_id"] for entry in results] == [3, 1, 3]
    assert results[0]["image_id"] == 17
    assert results[0]["bbox"] == [1, 2, 3, 4]
    assert results[0]["score"] == pytest.approx(0.9)
    for entry, mask in zip(results, masks, strict=True):
        assert entry["segmentation"]["size"] == [6, 8]
        assert np.array_equal(codec.decode(entry["segmentation"]), mask)


def test_picking_always_gives_detections() -> None:
    found = _detections(_random_masks(4))
    assert len(found[1]) == 1
    assert found[-1].scores[0] == found.scores[3]
    assert len(found[1:3]) == 2
    assert found[[2, 0]].counts == (found.counts[2], found.counts[0])
    assert len(found[found.scores > 0.6]) == int((found.scores > 0.6).sum())
    assert len(found[[]]) == 0
    assert [len(one) for one in (found[i] for i in range(4))] == [1, 1, 1, 1]
    with pytest.raises(IndexError):
        found[4]


def test_printing_names_the_best_instances() -> None:
    # scores fall from 0.9 by 0.2, classes take turns
    assert repr(_detections(_random_masks(3))) == (
        "<3 detections in 9 x 13: star 0.90, ring 0.70, star 0.50>"
    )
    # four of them by 0.4 / 3
    many = repr(_detections(_random_masks(4)))
    assert many == "<4 detections in 9 x 13: star 0.90, ring 0.77, star 0.63, ...>"
    one = _detections(_random_masks(1))
    assert str(one) == "<1 detection in 9 x 13: star 0.90>"
    assert repr(replace(one, complete=False, class_names=("a\nb\x1b[2J",))) == (
        r"<1 detection in 9 x 13, cut short by the time budget: a b\x1b[2J 0.90>"
    )
    assert repr(_detections(np.zeros((0, 6, 8), bool))) == "<0 detections in 6 x 8>"


def test_iteration_ends() -> None:
    assert [one.scores[0] for one in _detections(_random_masks(3))] == pytest.approx(
        [0.9, 0.7, 0.5]
    )


def test_nothing_found() -> None:
    found = _detections(np.zeros((0, 6, 8), bool))
    assert len(found) == 0
    assert list(found) == []
    assert found.rle() == found.to_coco(1) == []
    assert found.crops() == []
    assert found.polygons() == []
    assert found.dense().shape == (0, 6, 8)
    assert found.label_image().max() == 0


def test_supervisions_arguments_need_no_supervision() -> None:
    arguments = _detections(_random_masks(3)).to_supervision()
    assert set(arguments) == {"xyxy", "mask", "confidence", "class_id", "data"}
    assert arguments["mask"].shape == (3, 9, 13)
    assert arguments["data"]["class_name"].tolist() == ["star", "ring", "star"]


def test_supervision_takes_the_arguments() -> None:
    supervision = pytest.importorskip("supervision")
    masks = _random_masks(3)
    given = supervision.Detections(**_detections(masks).to_supervision())
    assert len(given) == 3
    assert np.array_equal(given.mask, masks)
    assert given.class_id.tolist() == [0, 1, 0]


def test_dense_masks_fill_the_callers_array() -> None:
    masks = _random_masks(4)
    found = _detections(masks)
    room = np.ones(masks.shape, bool)
    assert found.dense(out=room) is room
    assert np.array_equal(room, masks)
    bytes_: NDArray[Any] = np.zeros(masks.shape, np.uint8)
    for bad in (np.zeros((3, 9, 13), bool), bytes_, room[:, ::-1]):
        with pytest.raises(ValueError, match="out must be a C-contiguous bool array"):
            found.dense(out=bad)


def test_lengths_that_do_not_agree_are_named() -> None:
    found = _detections(_random_masks(2))
    with pytest.raises(ValueError, match=r"scores must have shape \(2,\)"):
        Detections(**{**found.__dict__, "scores": found.scores[:1]})
    with pytest.raises(ValueError, match=r"xyxy must have shape \(2, 4\)"):
        Detections(**{**found.__dict__, "xyxy": found.xyxy[:1]})


def test_the_runtime_loads_no_engine_until_it_is_asked() -> None:
    code = (
        "import sys, boxseg.runtime; "
        "print(sorted({'torch', 'cv2', 'onnxruntime', 'openvino', 'supervision', 'pycocotools'} "
        "& set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
