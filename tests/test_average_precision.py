"""Precision and recall: worked cases, and equality with pycocotools on random ones."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest

from boxseg.runtime.average_precision import (
    AREAS,
    THRESHOLDS,
    Decided,
    match,
    precision_recall,
)

codec = pytest.importorskip("pycocotools.mask", reason="accuracy needs pycocotools")

SIDE = 200


def judged_by_pycocotools(
    objects: list[dict[str, Any]], found: list[dict[str, Any]], categories: list[int], kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R, K, A) and recall (T, K, A) as COCOeval says them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    class Evaluation(COCOeval):  # type: ignore[misc]  # pycocotools ships no types
        def _prepare(self) -> None:
            super()._prepare()
            for group in self._gts.values():
                for entry in group:
                    entry["ignore"] = entry["unjudged"]

    def indexed(entries: list[dict[str, Any]]) -> Any:
        coco = COCO()
        images = sorted({entry["image_id"] for entry in objects + found})
        coco.dataset = {
            "images": [{"id": key, "height": SIDE, "width": SIDE} for key in images],
            "categories": [{"id": key} for key in categories],
            "annotations": [{**entry, "id": row} for row, entry in enumerate(entries, start=1)],
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = Evaluation(indexed(objects), indexed(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]


def entry(image: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
    """An object or detection whose mask is its box without the lower right quarter."""
    x, y, w, h = box
    corner = [x, y, x + w, y, x + w, y + h / 2, x + w / 2, y + h / 2, x + w / 2, y + h, x, y + h]
    (mask,) = codec.frPyObjects([corner], SIDE, SIDE)
    made = {"image_id": image, "category_id": category, "bbox": box, "area": w * h, "iscrowd": 0}
    return made | {"segmentation": mask, "unjudged": False} | more


def random_case(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Objects of all sizes in crowds of their like, and detections near them, with equal scores."""
    generator = np.random.default_rng(seed)

    def number(high: int) -> int:
        return int(generator.integers(high))

    objects, found = [], []
    for _ in range(60):
        # a coarse grid, so that many overlaps are equal
        corner = generator.integers(0, 12, 2) * 10
        extent = generator.integers(1, 5, 2) * int(generator.choice([3, 10, 25]))
        box = [float(value) for value in (*corner, *extent)]
        crowd, difficult = number(6) == 0, number(6) == 0
        where = number(6), 1 + number(3)
        objects.append(entry(*where, box, iscrowd=int(crowd), unjudged=crowd or difficult))
        for _ in range(number(5)):
            moved = [float(value + generator.choice([0, 0, 1, 5])) for value in box]
            image = where[0] if number(5) else number(8)
            found.append(entry(image, where[1], moved, score=number(8) / 8))
    # more detections than count in one image
    found += [entry(2, 1, [10, 10, 30, 30 + row / 9], score=number(40) / 40) for row in range(130)]
    return objects, found


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(6))
def test_every_number_equals_pycocotools(seed: int, kind: str) -> None:
    objects, found = random_case(seed)
    categories = [1, 2, 3, 4]  # nobody has the last
    curves = precision_recall(objects, found, categories, kind)
    precision, recall = judged_by_pycocotools(objects, found, categories, kind)
    np.testing.assert_array_equal(curves.precision, precision)
    np.testing.assert_array_equal(curves.recall, recall)
    assert 0 < (precision > 0).mean() < 1
    assert (precision[..., 3, :] == -1).all()


@pytest.mark.parametrize("left", ["objects", "found"])
def test_one_side_alone_equals_pycocotools(left: str) -> None:
    objects, found = random_case(0)
    objects, found = (objects, []) if left == "objects" else ([], found)
    curves = precision_recall(objects, found, [1, 2], "bbox")
    precision, recall = judged_by_pycocotools(objects, found, [1, 2], "bbox")
    np.testing.assert_array_equal(curves.precision, precision)
    np.testing.assert_array_equal(curves.recall, recall)


def test_nothing_against_nothing_is_undefined() -> None:
    curves = precision_recall([], [], [5], "segm")
    assert (curves.precision == -1).all()
    assert curves.precision.shape == (10, 101, 1, 4)
    assert (curves.recall == -1).all()


def flags(*values: bool) -> np.ndarray:
    return np.repeat(np.array([values]), len(AREAS), axis=0)


def test_the_best_free_object_is_taken_and_of_equals_the_later() -> None:
    overlaps = np.array([[0.8, 0.8, 0.6], [0.9, 0.7, 0.5], [0.9, 0.9, 0.9]])
    matched, spared = match(overlaps, flags(False, False, False), np.zeros(3, np.bool_))
    # at 0.50: object 1, then object 0, then object 2
    assert matched[0, 0].tolist() == [True, True, True]
    # at 0.85: nothing, object 0, then object 2 (the later of 1 and 2)
    assert matched[0, 7].tolist() == [False, True, True]
    assert THRESHOLDS[7] == pytest.approx(0.85)
    assert not spared.any()


def test_an_object_that_counts_is_preferred_to_an_ignored_one() -> None:
    overlaps = np.array([[0.9, 0.6], [0.9, 0.6]])
    matched, spared = match(overlaps, flags(True, False), np.zeros(2, np.bool_))
    # at 0.50 the first takes object 1 though object 0 is nearer; the second is left with 0
    assert matched[0, 0].tolist() == [True, True]
    assert spared[0, 0].tolist() == [False, True]
    # at 0.65 object 1 is out of reach, and object 0 is used up by the first
    assert matched[0, 3].tolist() == [True, False]
    assert spared[0, 3].tolist() == [True, False]


def test_a_crowd_is_never_used_up() -> None:
    matched, spared = match(np.full((3, 1), 0.7), flags(True), np.ones(1, np.bool_))
    assert matched[0, 0].all()
    assert spared[0, 0].all()


def test_progress_counts_classes() -> None:
    told: list[tuple[int, int]] = []
    precision_recall(*random_case(1), [1, 2, 3], "bbox", lambda *step: told.append(step))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_best_confidence_has_the_highest_f1() -> None:
    scores = np.array([0.9, 0.8, 0.6, 0.55, 0.3])
    decided = Decided(scores, np.array([True, True, False, True, False]), objects=4)
    kept = decided.above(0.6)  # the score must be above it
    assert (kept.found, kept.wrong) == (2, 0)
    assert kept.f1 == pytest.approx(4 / 6)
    # four detections: 2 * 3 / (3 + 1 + 4); down to 0.30 nothing is added, and at 0.55 one is lost
    best = decided.best()
    assert (best.conf, best.found, best.wrong) == (0.54, 3, 1)
    assert best.f1 == pytest.approx(0.75)


def test_nothing_found_has_an_f1_of_zero() -> None:
    nothing = Decided(np.zeros(0), np.zeros(0, np.bool_), objects=3).best()
    assert (nothing.found, nothing.wrong, nothing.f1) == (0, 0, 0.0)
    assert Decided(np.zeros(0), np.zeros(0, np.bool_), objects=0).above(0.5).f1 == 0.0


def test_detections_of_all_classes_decide_together_and_crowds_do_not_count() -> None:
    def thing(category: int, x: float, **more: float) -> dict[str, Any]:
        box = {"image_id": 1, "category_id": category, "bbox": [x, 0.0, 10.0, 10.0], "area": 100.0}
        return {**box, **more}

    objects = [
        thing(1, 0, iscrowd=0, unjudged=0),
        thing(2, 50, iscrowd=0, unjudged=0),
        thing(2, 100, iscrowd=1, unjudged=1),
    ]
    found = [
        thing(1, 0, score=0.9),
        thing(1, 1, score=0.8),  # the same object again
        thing(1, 50, score=0.7),  # an object of the other class
        thing(2, 50, score=0.6),
        thing(2, 100, score=0.5),  # in the crowd
    ]
    decided = precision_recall(objects, found, [1, 2], "bbox").decided
    assert decided.objects == 2
    by_score = dict(zip(decided.scores.tolist(), decided.right.tolist(), strict=True))
    assert by_score == {0.9: True, 0.8: False, 0.7: False, 0.6: True}
