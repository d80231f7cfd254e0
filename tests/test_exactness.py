"""Many random inputs against torchvision, float64 and pycocotools; the full counts are slow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from numpy.typing import NDArray

from boxseg.runtime import _native
from boxseg.runtime.preprocess import Fit, Letterbox, plan_letterbox

Floats = NDArray[np.float32]
LEVELS = range(1, len(_native.simd_levels()) + 1)


# ------------------------------------------------------------------------------- suppression


def _random_set(
    rng: np.random.Generator, most: int
) -> tuple[Floats, Floats, NDArray[np.uint32], float]:
    """Boxes around a few objects or spread evenly, with ties, thin and huge ones."""
    n = int(np.exp(rng.uniform(0, np.log(most))))
    objects = rng.uniform(0, 1000, (int(rng.integers(1, 40)), 4))
    chosen = rng.integers(0, len(objects), n)
    half = objects[chosen, 2:] / rng.uniform(4, 20) * rng.uniform(0.8, 1.25, (n, 2)) + 0.5
    centre = objects[chosen, :2] + rng.normal(0, rng.uniform(0.5, 30), (n, 2))
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    if rng.random() < 0.3:  # whole pixels: many overlaps are equal
        boxes = np.round(boxes)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    boxes *= rng.choice([1e-3, 1, 1, 1, 1e4])
    scores = rng.random(n)
    if rng.random() < 0.5:
        scores = np.round(scores, 2) + 0.01  # ties
    classes = rng.integers(0, rng.integers(1, 81), n)
    # as float32 and back: what is compared as double must be the float's value
    threshold = float(np.float32(rng.choice([0.3, 0.5, 0.6, 0.7, rng.uniform(0.05, 0.95)])))
    return (
        boxes.astype(np.float32),
        scores.astype(np.float32),
        classes.astype(np.uint32),
        threshold,
    )


def _kept(
    boxes: Floats,
    scores: Floats,
    classes: NDArray[np.uint32],
    threshold: float,
    max_keep: int,
    level: int,
) -> list[int]:
    scratch = np.empty(_native.nms_scratch_size(len(scores), 80), np.uint8)
    keep = np.zeros(len(scores), np.uint32)
    n = _native.nms(
        boxes, scores, classes, 80, threshold, -math.inf, max_keep, scratch, keep, level
    )
    return [int(i) for i in keep[:n]]


def _suppression_is_torchvisions(sets: int, most: int) -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    rng = np.random.default_rng(20)
    for _ in range(sets):
        boxes, scores, classes, threshold = _random_set(rng, most)
        valid = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # rounding may have emptied some
        expected: list[int] = []
        for c in np.unique(classes):
            members = np.flatnonzero((classes == c) & valid)
            # a stable order by score, ties by the lower index, which torchvision keeps
            members = members[np.argsort(-scores[members], kind="stable")]
            kept = ops.nms(
                torch.from_numpy(boxes[members]), torch.from_numpy(scores[members]), threshold
            )
            expected += members[kept.numpy()].tolist()
        expected.sort(key=lambda i: (-scores[i], i))
        cap = int(rng.integers(0, len(scores) + 1))
        for level in LEVELS:
            assert _kept(boxes, scores, classes, threshold, 10**6, level) == expected
            assert _kept(boxes, scores, classes, threshold, cap, level) == expected[:cap]


def test_500_random_sets_are_suppressed_as_torchvision_does_per_class() -> None:
    _suppression_is_torchvisions(500, 1000)


@pytest.mark.slow
def test_10000_random_sets_are_suppressed_as_torchvision_does_per_class() -> None:
    _suppression_is_torchvisions(10_000, 3000)


# ------------------------------------------------------------------------------------- masks


def _random_logits(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """Blobs, stripes or noise, sometimes with exact zeros and large values."""
    y, x = np.mgrid[:rows, :columns]
    kind = rng.integers(0, 4)
    if kind == 0:
        centre = rng.uniform(0, (rows, columns))
        size = rng.uniform(1, 0.6 * max(rows, columns), 2)
        logits = 3 - 3 * np.hypot((y - centre[0]) / size[0], (x - centre[1]) / size[1])
    elif kind == 1:
        waves = rng.uniform(0.05, 2, 2)
        logits = np.sin(waves[0] * x + rng.uniform(0, 6)) + np.cos(waves[1] * y)
    else:
        logits = rng.normal(0, 1, (rows, columns))
    logits = logits + rng.normal(0, rng.choice([0, 0.05, 0.5]), (rows, columns))
    if kind == 3:
        logits = np.round(logits)
    return np.asarray(logits * rng.choice([1e-2, 1, 1, 50]), np.float32)


def _random_plan(rng: np.random.Generator) -> Letterbox:
    size = Fit(*(32 * rng.integers(1, 11, 2)).tolist())
    height, width = np.exp(rng.uniform(0, np.log(1100), 2)).astype(int).tolist()
    return plan_letterbox(size, height, width)


def _random_box(rng: np.random.Generator, plan: Letterbox) -> tuple[float, float, float, float]:
    corner = rng.uniform(-0.1, 1, 2) * (plan.content_width, plan.content_height)
    side = np.exp(rng.uniform(np.log(0.3), np.log(1.5 * max(plan.content_width, 1) + 1), 2))
    # at least partly on the content
    low = np.minimum(corner, np.array((plan.content_width, plan.content_height)) - 0.2)
    high = np.maximum(low + side, 0.2)
    return (float(low[0]), float(low[1]), float(high[0]), float(high[1]))


def _masks_are_exact(count: int) -> None:
    codec = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(21)
    for _ in range(count):
        plan = _random_plan(rng)
        stride = int(rng.choice([4, 8]))
        rows, columns = plan.height // stride, plan.width // stride
        logits = _random_logits(rng, rows, columns)
        box = _random_box(rng, plan)
        _, frame_box, pixels, cells = _native.cut_box(box, plan.as_tuple(), stride)
        part = np.ascontiguousarray(logits[cells[1] : cells[3], cells[0] : cells[2]].T)
        scratch = np.empty(
            _native.surface_scratch_size(plan.frame_height, plan.frame_width, rows), np.uint8
        )
        where = plan.as_tuple()
        inside = np.zeros((pixels[3] - pixels[1], pixels[2] - pixels[0]), np.uint8)
        room = np.empty(_native.surface_text_size(where, rows), np.uint8)
        _native.surface_bytes(part, cells, rows, columns, stride, where, pixels, scratch, inside)
        length, area = _native.surface_rle(
            part, cells, rows, columns, stride, where, pixels, scratch, room
        )
        frame = (plan.frame_height, plan.frame_width)
        mask = np.zeros(frame, np.uint8)
        mask[pixels[1] : pixels[3], pixels[0] : pixels[2]] = inside
        # inside the box the bilinear surface, outside it nothing
        assert np.array_equal(
            reference.raster(np.array(frame_box), *frame).nonzero()[0][[0, -1]],
            [pixels[1], pixels[3] - 1],
        )
        x = (np.arange(pixels[0], pixels[2]) + 0.5) * plan.scale_x
        y = (np.arange(pixels[1], pixels[3]) + 0.5) * plan.scale_y
        exact = reference.surface(logits, np.asarray(x), np.asarray(y), stride)
        clear = np.abs(exact) > 1e-4
        assert np.array_equal(inside[clear] == 1, (exact > 0)[clear])
        assert room[:length].tobytes() == codec.encode(np.asfortranarray(mask))["counts"]
        assert area == mask.sum()


def test_200_random_masks_equal_float64_and_pycocotools() -> None:
    _masks_are_exact(200)


@pytest.mark.slow
def test_2000_random_masks_equal_float64_and_pycocotools() -> None:
    _masks_are_exact(2000)
