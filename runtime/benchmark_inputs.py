"""Seeded inputs of the native benchmark: boxes, logits and mask grids as a network gives them.

N boxes, L locations, C classes, D masks, K instances, P parameters, H x W pixels of the frame,
h x w of the mask grid. numpy only; the same seed gives the same numbers on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CLASSES = 80
FRAME = (720, 1280)
"""Height and width of the frame that boxes lie in."""
CANDIDATE_PROBABILITY = 0.05

HEAD_WIDTHS = (8, 8, 1)
HEAD_CHANNELS = 8
HEAD_SCALES = (64.0, 128.0, 256.0, 512.0, 1024.0)
HEAD_PARAMETERS = 169  # 10 x 8 + 8 x 8 + 8 weights, 17 biases


@dataclass(frozen=True)
class ScoredBoxes:
    """Input of non-maximum suppression.

    Attributes:
        boxes: x1, y1, x2, y2 in frame pixels, (N, 4).
        scores: No two are equal, (N,).
        classes: (N,).
    """

    boxes: Floats
    scores: Floats
    classes: NDArray[np.uint32]


def _without_ties(scores: NDArray[np.float64]) -> Floats:
    """Round scores to float32 and part equal ones, because peers order ties differently."""
    order = np.argsort(scores, kind="stable")
    bits = scores.astype(np.float32)[order].view(np.uint32).astype(np.int64)
    steps = np.arange(len(bits))
    bits = np.maximum.accumulate(bits - steps) + steps  # at least one step above the one before
    apart = np.empty(len(bits), np.float32)
    apart[order] = bits.astype(np.uint32).view(np.float32)
    return apart


def realistic_boxes(n: int, seed: int = 0) -> ScoredBoxes:
    """Boxes as a detector gives them on a frame of 720 x 1280 with 30 objects and 80 classes.

    60 % lie around an object, 15 % of these with a wrong class; 40 % are noise. Boxes of the right
    class mostly score above the others, so that a list of the best meets many duplicates. At IoU
    0.6 about half of all is kept.
    """
    rng = np.random.default_rng(seed)
    height, width = FRAME
    objects = 30
    object_centres = rng.uniform(0, 1, (objects, 2)) * (width - 80, height - 80) + 40
    object_sizes = np.exp(rng.uniform(np.log(30), np.log(400), (objects, 2)))
    object_classes = rng.integers(0, CLASSES, objects)
    owner = rng.integers(0, objects, n)
    centres = object_centres[owner] + rng.normal(0, 0.06, (n, 2)) * object_sizes[owner]
    sizes = object_sizes[owner] * np.exp(rng.normal(0, 0.1, (n, 2)))
    classes = object_classes[owner]
    wrong = rng.random(n) < 0.15
    classes[wrong] = rng.integers(0, CLASSES, int(wrong.sum()))
    noise = rng.random(n) < 0.4
    count = int(noise.sum())
    centres[noise] = rng.uniform(0, 1, (count, 2)) * (width, height)
    sizes[noise] = np.exp(rng.uniform(np.log(10), np.log(300), (count, 2)))
    classes[noise] = rng.integers(0, CLASSES, count)
    scores = 0.05 + 0.35 * rng.random(n) ** 2
    right = ~noise & ~wrong
    scores[right] = 0.2 + 0.75 * rng.beta(2, 2, int(right.sum()))
    return _scored(centres, sizes, classes, scores)


def adversarial_boxes(n: int, seed: int = 0) -> ScoredBoxes:
    """Boxes of one class spread evenly, of which most are kept: the worst case of a greedy list."""
    rng = np.random.default_rng(seed)
    height, width = FRAME
    centres = rng.uniform(0, 1, (n, 2)) * (width, height)
    sizes = np.exp(rng.uniform(np.log(12), np.log(140), (n, 2)))
    return _scored(centres, sizes, np.zeros(n, np.int64), rng.uniform(0.05, 1, n))


def _scored(
    centres: NDArray[np.float64],
    sizes: NDArray[np.float64],
    classes: NDArray[np.int64],
    scores: NDArray[np.float64],
) -> ScoredBoxes:
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    boxes = boxes.clip(0, np.tile(FRAME[::-1], 2))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)  # none is empty at the border
    return ScoredBoxes(boxes.astype(np.float32), _without_ties(scores), classes.astype(np.uint32))


def class_logits(locations: int = 8400, hot: int = 400, seed: int = 0) -> Floats:
    """Class logits (L, 80) of which `hot` pass a probability of 0.05; the others are far below."""
    rng = np.random.default_rng(seed)
    logits = rng.uniform(-9, -4, (locations, CLASSES)).astype(np.float32)
    places = rng.choice(locations * CLASSES, hot, replace=False)
    logits.ravel()[places] = rng.uniform(-2.5, 2, hot)
    return logits


OBJECT_WIDTHS = (30.0, 500.0)
"""Pixels of a frame of 1280."""


def object_boxes(
    count: int,
    height: int,
    width: int,
    seed: int = 0,
    sizes: tuple[float, float] = OBJECT_WIDTHS,
) -> Floats:
    """Boxes (count, 4) inside height x width, their width log-uniform in `sizes` of 1280 pixels."""
    rng = np.random.default_rng(seed)
    widths = np.exp(rng.uniform(np.log(sizes[0]), np.log(sizes[1]), count)) * width / 1280
    heights = np.minimum(widths * np.exp(rng.uniform(np.log(0.5), np.log(1.5), count)), height - 2)
    x = rng.uniform(0, 1, count) * (width - widths)
    y = rng.uniform(0, 1, count) * (height - heights)
    return np.stack([x, y, x + widths, y + heights], axis=1).astype(np.float32)


def mask_grids(count: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Mask logits of blobs on a 160 x 160 grid of stride 4, the content 360 x 640 input pixels.

    Returns:
        Logits (count, 160, 160) and boxes in input pixels (count, 4).
    """
    rng = np.random.default_rng(seed)
    boxes = object_boxes(count, 360, 640, seed)
    centres = (np.arange(160) + 0.5) * 4
    grids = np.empty((count, 160, 160), np.float32)
    for grid, box in zip(grids, boxes.astype(np.float64), strict=True):
        x = (centres - (box[0] + box[2]) / 2) / ((box[2] - box[0]) / 2)
        y = ((centres - (box[1] + box[3]) / 2) / ((box[3] - box[1]) / 2))[:, None]
        radius, angle = np.hypot(x, y), np.arctan2(y, x)
        wobble = 0.12 * np.sin(rng.integers(2, 6) * angle + rng.uniform(0, 6.28))
        grid[:] = 6 * (0.9 - radius * (1 + wobble)) + rng.normal(0, 0.15, (160, 160))
    return grids, boxes


@dataclass(frozen=True)
class NetworkOutputs:
    """What a network gives for one frame of 16 : 9 in an input of 640 x 640, form `dense`.

    Attributes:
        outputs: class_logits (1, L, 80), quality_logits (1, L), boxes (1, L, 4), parameters
            (1, 169, L), mask_features (1, 8, 80, 80).
        best: Location of each object's best candidate, (K,).
    """

    outputs: dict[str, Floats]
    best: NDArray[np.int64]


STRIDES = (8, 16, 32, 64, 128)


def locations(
    strides: tuple[int, ...], side: int = 640
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return x, y (L, 2) and level (L,) of every location of a square input."""
    points, levels = [], []
    for level, stride in enumerate(strides):
        y, x = np.mgrid[: -(-side // stride), : -(-side // stride)] * stride + stride // 2
        points.append(np.stack([x.ravel(), y.ravel()], axis=1))
        levels.append(np.full(x.size, level))
    return np.concatenate(points).astype(np.float64), np.concatenate(levels)


def _smooth_fields(rng: np.random.Generator, count: int, side: int) -> Floats:
    """Random fields that change over eight cells, (count, side, side)."""
    coarse = rng.normal(0, 1, (count, side // 8 + 1, side // 8 + 1))
    places = np.arange(side) / 8
    low = places.astype(int)
    share = places - low
    rows = coarse[:, low] * (1 - share)[:, None] + coarse[:, low + 1] * share[:, None]
    fields = rows[:, :, low] * (1 - share) + rows[:, :, low + 1] * share
    return np.ascontiguousarray(fields, np.float32)


def _blob_parameters(
    rng: np.random.Generator, box: NDArray[np.float64], place: NDArray[np.float64], scale: float
) -> NDArray[np.float64]:
    """Parameters of a dynamic head whose mask is a rounded, uneven diamond in a box, (169,)."""
    half = (box[2:] - box[:2]) / 2 / scale
    centre = (place - (box[:2] + box[2:]) / 2) / scale  # relative coordinates of the box's centre
    first, bias1 = np.zeros((8, 10)), np.zeros(8)
    for axis in range(2):
        for row, sign in ((2 * axis, 1), (2 * axis + 1, -1)):
            first[row, axis] = sign / half[axis]
            bias1[row] = -sign * centre[axis] / half[axis]
    first[4:, 2:] = rng.normal(0, 0.4, (4, 8))
    second, bias2 = np.zeros((8, 8)), np.zeros(8)
    second[0, :2] = second[1, 2:4] = second[2, :2] = second[3, 2:4] = 1  # |dx| |dy| |dx| |dy|
    bias2[2:4] = -0.6
    second[4:, 4:] = rng.normal(0, 0.5, (4, 4))
    third = np.array([[-4.8, -4.8, -6, -6, *rng.normal(0, 1, 4)]])
    return np.concatenate(
        [first.ravel(), second.ravel(), third.ravel(), bias1, bias2, np.array([6.9])]
    )


def network_outputs(
    objects: int,
    candidates: int = 1000,
    seed: int = 0,
    sizes: tuple[float, float] = OBJECT_WIDTHS,
) -> NetworkOutputs:
    """Outputs with a number of objects that share the candidates evenly.

    Each object has its own run of close locations, whose boxes differ by a few percent, so that
    suppression leaves one of them per object.
    """
    rng = np.random.default_rng(seed)
    places, levels = locations(STRIDES)
    count = len(places)
    logits = rng.uniform(-9, -4, (count, CLASSES)).astype(np.float32)
    quality = rng.uniform(-3, 0, count).astype(np.float32)
    boxes = np.concatenate([places - 8, places + 8], axis=1)
    parameters = rng.normal(0, 0.3, (count, HEAD_PARAMETERS))
    free = np.ones(count, bool)
    best = np.empty(objects, np.int64)
    for number, box in enumerate(object_boxes(objects, 360, 640, seed, sizes).astype(np.float64)):
        centre = (box[:2] + box[2:]) / 2
        distance = np.abs(places - centre).max(axis=1) + np.where(free & (levels < 3), 0, 1e9)
        near = np.argsort(distance, kind="stable")[: candidates // objects]
        free[near] = False
        logits[near, number % CLASSES] = np.linspace(2.5, -1, len(near)) + rng.uniform(-0.01, 0.01)
        quality[near] = np.linspace(2, 0, len(near))
        size = np.tile(box[2:] - box[:2], 2)
        boxes[near] = box + rng.normal(0, 0.015, (len(near), 4)) * size
        for slot in near:
            scale = HEAD_SCALES[levels[slot]]
            parameters[slot] = _blob_parameters(rng, boxes[slot], places[slot], scale)
        best[number] = near[0]
    outputs = {
        "class_logits": logits[None],
        "quality_logits": quality[None],
        "boxes": boxes[None].astype(np.float32),
        "parameters": np.ascontiguousarray(parameters.T[None], np.float32),
        "mask_features": _smooth_fields(rng, HEAD_CHANNELS, 80)[None],
    }
    return NetworkOutputs(outputs, best)
