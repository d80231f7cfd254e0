"""Suppression against the slow rule, torchvision and hand-worked overlaps."""

import math

import numpy as np
import pytest
import reference
from numpy.typing import NDArray

from boxseg.runtime import _native

Floats = NDArray[np.float32]


def _nms(
    boxes: Floats,
    scores: Floats,
    classes: NDArray[np.integer] | None = None,
    *,
    iou: float = 0.6,
    score: float = -math.inf,
    max_keep: int = 10**6,
) -> list[int]:
    """Suppress at every level of the machine, which must agree."""
    class_count = 1 if classes is None else 80
    scratch = np.empty(_native.nms_scratch_size(len(scores), class_count), np.uint8)
    found = []
    for level in range(1, len(_native.simd_levels()) + 1):
        scratch.fill(255)  # what an earlier call left must not matter
        keep = np.zeros(len(scores), np.uint32)
        n = _native.nms(
            np.asarray(boxes, np.float32).reshape(-1, 4),
            np.asarray(scores, np.float32),
            None if classes is None else classes.astype(np.uint32),
            class_count,
            iou,
            score,
            max_keep,
            scratch,
            keep,
            level,
        )
        found.append([int(i) for i in keep[:n]])
    assert all(other == found[0] for other in found)
    return found[0]


def _crowd(rng: np.random.Generator, n: int) -> tuple[Floats, Floats, NDArray[np.integer]]:
    """Boxes jittered around a few objects, so that many overlap; some scores are equal."""
    objects = rng.uniform(0, 600, (12, 4))
    centre = objects[rng.integers(0, 12, n), :2] + rng.normal(0, 8, (n, 2))
    half = objects[rng.integers(0, 12, n), 2:] / 8 * rng.uniform(0.8, 1.2, (n, 2)) + 2
    boxes = np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)
    scores = (rng.integers(1, 200, n) / 200).astype(np.float32)
    return boxes, scores, rng.integers(0, 3, n)


def test_the_lower_scored_of_two_overlapping_boxes_is_dropped() -> None:
    # intersection 8 x 10, union 120, IoU 2/3
    boxes = np.array([[0, 0, 10, 10], [2, 0, 12, 10]], np.float32)
    scores = np.array([0.5, 0.9], np.float32)
    assert _nms(boxes, scores, iou=0.6) == [1]
    assert _nms(boxes, scores, iou=0.7) == [1, 0]


def test_an_iou_equal_to_the_threshold_is_kept() -> None:
    # intersection 10, union 20: IoU is .5 exactly
    boxes = np.array([[0, 0, 4, 5], [0, 0, 2, 5]], np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    assert _nms(boxes, scores, iou=0.5) == [0, 1]
    assert _nms(boxes, scores, iou=math.nextafter(0.5, 0)) == [0]


@pytest.mark.parametrize(("iou", "step"), [(0.5, 1), (0.49, 2)])
def test_boxes_at_the_threshold_are_told_apart_by_division(iou: float, step: int) -> None:
    # widths 1, 2, 4, ... and one height: neighbours have IoU 1/2, the others 1/4 or less
    widths = 2.0 ** np.arange(20)
    boxes = np.stack([0 * widths, 0 * widths, widths, 0 * widths + 1], axis=1)
    three = np.concatenate([boxes, boxes, boxes])
    classes = np.repeat([0, 7, 79], 20)
    kept = _nms(three, np.linspace(1, 0.1, 60), classes, iou=iou)
    assert kept == [20 * i + j for i in range(3) for j in range(0, 20, step)]


def test_a_float_iou_is_compared_with_the_double_threshold() -> None:
    # intersection 6, union 10: float32(.6) = .60000002 is above the double .6
    boxes = np.array([[0, 0, 10, 1], [0, 0, 6, 1]], np.float32)
    assert _nms(boxes, np.array([0.9, 0.8], np.float32), iou=0.6) == [0]
    assert _nms(boxes, np.array([0.9, 0.8], np.float32), iou=float(np.float32(0.6))) == [0, 1]


def test_touching_boxes_do_not_overlap_at_threshold_zero() -> None:
    boxes = np.array([[0, 0, 5, 5], [5, 0, 10, 5]], np.float32)
    assert _nms(boxes, np.array([0.9, 0.8], np.float32), iou=0.0) == [0, 1]


def test_equal_scores_go_by_the_lower_index() -> None:
    boxes = np.array([[0, 0, 9, 9], [0, 0, 10, 10], [50, 50, 60, 60]], np.float32)
    assert _nms(boxes, np.full(3, 0.5, np.float32)) == [0, 2]


def test_classes_do_not_suppress_one_another() -> None:
    boxes = np.tile(np.array([[0, 0, 10, 10]], np.float32), (3, 1))
    scores = np.array([0.3, 0.2, 0.1], np.float32)
    assert _nms(boxes, scores, np.array([0, 1, 0])) == [0, 1]


@pytest.mark.parametrize(
    "bad",
    [
        [math.nan, 0, 10, 10],
        [0, 0, math.inf, 10],
        [-math.inf, 0, 10, 10],
        [10, 0, 10, 10],
        [0, 10, 10, 0],
    ],
)
def test_bad_boxes_are_dropped_and_suppress_nothing(bad: list[float]) -> None:
    boxes = np.array([bad, [0, 0, 10, 10], [1, 0, 10, 10]], np.float32)
    assert _nms(boxes, np.array([0.9, 0.8, 0.7], np.float32)) == [1]


def test_scores_must_be_finite_and_above_the_threshold() -> None:
    boxes = np.array([[20 * i, 0, 20 * i + 10, 10] for i in range(5)], np.float32)
    scores = np.array([math.nan, 0.5, math.inf, 0.6, -math.inf], np.float32)
    assert _nms(boxes, scores, score=0.5) == [3]


def test_boxes_whose_area_overflows_are_kept() -> None:
    boxes = np.array([[0, 0, 3e19, 3e19], [0, 0, 3e19, 3e19]], np.float32)
    assert _nms(boxes, np.array([0.9, 0.8], np.float32)) == [0, 1]


def test_no_box_and_one_box() -> None:
    assert _nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32)) == []
    assert _nms(np.array([[0, 0, 1, 1]], np.float32), np.ones(1, np.float32)) == [0]


def test_max_keep_cuts_the_list() -> None:
    rng = np.random.default_rng(0)
    boxes, scores, classes = _crowd(rng, 300)
    full = _nms(boxes, scores, classes)
    assert _nms(boxes, scores, classes, max_keep=7) == full[:7]
    assert _nms(boxes, scores, classes, max_keep=0) == []


def test_random_sets_equal_the_slow_rule() -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        boxes, scores, classes = _crowd(rng, int(rng.integers(1, 120)))
        threshold = float(rng.choice([0.0, 0.3, 0.5, 0.6, 1.0]))
        slow = reference.nms(boxes, scores, classes, iou_threshold=threshold)
        assert _nms(boxes, scores, classes, iou=threshold) == slow


def _per_class(
    boxes: Floats, scores: Floats, classes: NDArray[np.integer] | None, iou: float
) -> list[int]:
    """Suppress each class by torchvision alone; by score, ties by the lower index."""
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    kept: list[int] = []
    for c in [0] if classes is None else np.unique(classes).tolist():
        members = np.arange(len(scores)) if classes is None else np.flatnonzero(classes == c)
        chosen = ops.nms(torch.from_numpy(boxes[members]), torch.from_numpy(scores[members]), iou)
        kept += members[chosen.numpy()].tolist()
    return sorted(kept, key=lambda i: (-scores[i], i))


def _compare_random_sets(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        boxes, scores, classes = _crowd(rng, int(rng.integers(1, 600)))
        iou = float(rng.choice([0.3, 0.5, 0.6, 0.7, 0.9]))
        assert _nms(boxes, scores, classes, iou=iou) == _per_class(boxes, scores, classes, iou)


def test_random_sets_equal_torchvision_per_class() -> None:
    _compare_random_sets(500, seed=2)


@pytest.mark.slow
def test_ten_thousand_random_sets_equal_torchvision_per_class() -> None:
    _compare_random_sets(10_000, seed=20)


@pytest.mark.parametrize("iou", [0.02, 0.05, 0.1, 0.3, 0.5, 0.6, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("kind", ["spread", "sizes", "clusters", "far", "lines"])
def test_a_large_class_is_suppressed_as_by_comparing_all(kind: str, iou: float) -> None:
    # more than a few hundred kept boxes of one class are looked up in a grid
    rng = np.random.default_rng(int(iou * 100))
    n = 2500
    centre, side = rng.uniform(0, 400, (n, 2)), rng.uniform(2, 60, (n, 2))
    if kind == "sizes":
        side = np.exp(rng.uniform(-7, 6, (n, 2)))
        centre = rng.normal(0, 30, (n, 2))
    elif kind == "clusters":
        centre[: n // 2] = centre[: n // 2] * 1e-3 + 50
        side[: n // 2] *= 1e-3
    elif kind == "far":
        centre += (2e6, -3e4)
    elif kind == "lines":
        side[:, 1] = 0.01
        centre[:, 1] = rng.integers(0, 40, n)
    boxes = np.concatenate([centre - side / 2, centre + side / 2], axis=1).astype(np.float32)
    scores = rng.random(n).astype(np.float32)
    kept = _nms(boxes, scores, iou=iou)
    # torchvision keeps boxes that are empty after rounding
    valid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    assert kept == [i for i in _per_class(boxes, scores, None, iou) if valid[i]]


def test_several_large_classes_do_not_mix() -> None:
    rng = np.random.default_rng(5)
    boxes, scores, _ = _crowd(rng, 6000)
    boxes += np.tile(rng.integers(0, 20, (6000, 1)) * np.float32(40), (1, 4))
    classes = rng.integers(0, 4, 6000)
    assert _nms(boxes, scores, classes, iou=0.7) == _per_class(boxes, scores, classes, 0.7)


def test_small_and_large_classes_are_kept_in_one_order() -> None:
    rng = np.random.default_rng(11)
    boxes, scores, _ = _crowd(rng, 1500)
    boxes[::50, 2] = np.nan
    classes = np.where(rng.random(1500) < 0.6, 5, rng.integers(0, 80, 1500))
    assert np.count_nonzero(classes == 5) > 800  # most other classes have fewer than 16
    kept = _nms(boxes, scores, classes)
    alone = [
        members[_nms(boxes[members], scores[members])]
        for members in (np.flatnonzero(classes == i) for i in range(80))
    ]
    index = np.sort(np.concatenate(alone))
    assert kept == index[np.argsort(-scores[index], kind="stable")].tolist()
    for max_keep in (1, 376, len(kept) - 1):
        assert _nms(boxes, scores, classes, max_keep=max_keep) == kept[:max_keep]


def test_a_limit_gives_the_start_of_the_whole_list() -> None:
    rng = np.random.default_rng(6)
    n = 5000
    boxes, _, classes = _crowd(rng, n)
    samples_mislead = rng.random(n) * 0.5
    samples_mislead[:: n // 256] = 0.99
    for scores in (
        rng.random(n),
        np.full(n, 0.5),
        rng.integers(0, 3, n) / 2,
        samples_mislead,
        -np.exp(rng.uniform(-60, 60, n)),
        np.where(rng.random(n) < 0.9, math.nan, rng.random(n)),
    ):
        single = scores.astype(np.float32)
        full = _nms(boxes, single, classes)
        for limit in (1, 20, 150, 400):
            assert _nms(boxes, single, classes, max_keep=limit) == full[:limit]


def test_the_order_of_input_does_not_change_the_set() -> None:
    rng = np.random.default_rng(3)
    boxes, scores, classes = _crowd(rng, 200)
    scores = rng.permutation(np.linspace(0.1, 0.9, 200)).astype(np.float32)  # no ties
    turn = rng.permutation(200)
    kept = _nms(boxes, scores, classes)
    assert [int(turn[i]) for i in _nms(boxes[turn], scores[turn], classes[turn])] == kept


def test_scratch_grows_with_the_boxes_and_is_refused_to_impossible_numbers() -> None:
    sizes = [_native.nms_scratch_size(n, 80) for n in (0, 1, 15, 16, 500, 513, 600, 10**4, 10**6)]
    assert sizes == sorted(sizes)
    assert sizes[0] > 0
    for n, classes in ((2**31, 1), (2**62, 1), (-1, 1), (10, 0), (10, 65536)):
        assert _native.nms_scratch_size(n, classes) == 0


def test_bad_arguments_are_named() -> None:
    boxes, scores = np.zeros((2, 4), np.float32), np.zeros(2, np.float32)
    scratch = np.empty(_native.nms_scratch_size(2, 1), np.uint8)
    keep = np.zeros(2, np.uint32)
    with pytest.raises(ValueError, match="BXS_ERROR_VALUE"):
        _native.nms(boxes, scores, None, 1, 1.5, 0.0, 2, scratch, keep)
    with pytest.raises(ValueError, match="BXS_ERROR_VALUE"):
        _native.nms(boxes, scores, np.full(2, 9, np.uint32), 1, 0.5, 0.0, 2, scratch, keep)
    with pytest.raises(ValueError, match="BXS_ERROR_SCRATCH"):
        _native.nms(boxes, scores, None, 1, 0.5, 0.0, 2, scratch[:10], keep)
    with pytest.raises(ValueError, match="boxes must hold at least 8 items, got 4"):
        _native.nms(boxes[:1], scores, None, 1, 0.5, 0.0, 2, scratch, keep)
    with pytest.raises(ValueError, match="scores must be float32"):
        _native.nms(boxes, np.zeros(2), None, 1, 0.5, 0.0, 2, scratch, keep)
