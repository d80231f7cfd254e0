"""Slow and obvious truths that the fast code is held against; numpy only.

N instances, L locations, C classes, H x W pixels of the frame, h x w of the stride-8 grid.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def resize(image: NDArray[np.uint8], new_height: int, new_width: int) -> NDArray[np.float64]:
    """Sample bilinearly at half-pixel centres with clamped borders, in float64, unrounded."""
    image = image[:, :, None] if image.ndim == 2 else image
    height, width, channels = image.shape
    out = np.zeros((new_height, new_width, channels))
    for y in range(new_height):
        for x in range(new_width):
            u = min(max((x + 0.5) * width / new_width - 0.5, 0), width - 1)
            v = min(max((y + 0.5) * height / new_height - 0.5, 0), height - 1)
            j, i = math.floor(u), math.floor(v)
            j2, i2 = min(j + 1, width - 1), min(i + 1, height - 1)
            fx, fy = u - j, v - i
            out[y, x] = (
                image[i, j] * (1 - fx) * (1 - fy)
                + image[i, j2] * fx * (1 - fy)
                + image[i2, j] * (1 - fx) * fy
                + image[i2, j2] * fx * fy
            )
    return out


# ------------------------------------------------------------------------------ candidates


def sigmoid(x: float) -> float:
    """Evaluate the logistic function in float64 without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def box_is_valid(box: NDArray[np.float32]) -> bool:
    """Whether all sides are finite and none is empty."""
    return bool(np.all(np.isfinite(box)) and box[2] > box[0] and box[3] > box[1])


def candidates(
    class_logits: NDArray[np.float32],
    quality_logits: NDArray[np.float32] | None,
    boxes: NDArray[np.float32],
    *,
    content: tuple[int, int],
    candidate_score: float,
    best: int,
) -> list[tuple[float, int]]:
    """Score every (location, class) pair and sort all of them.

    Args:
        class_logits: (L, C).
        quality_logits: (L,), or None where score0 is the class probability.
        boxes: Input pixels, (L, 4).
        content: Height and width of the frame in the input.
        candidate_score: Strict lower limit of score0.
        best: How many to keep.

    Returns:
        (score0, location * C + class), best first.
    """
    found = []
    for location, box in enumerate(boxes):
        height, width = content
        outside = box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0
        if not box_is_valid(box) or outside:
            continue
        for index, logit in enumerate(class_logits[location]):
            score = sigmoid(float(logit)) if np.isfinite(logit) else 0.0
            if quality_logits is not None:
                quality = float(quality_logits[location])
                score *= sigmoid(quality) if math.isfinite(quality) else 0.0
                score = math.sqrt(score)
            rounded = float(np.float32(score))
            if rounded > candidate_score:
                found.append((rounded, location * class_logits.shape[1] + index))
    found.sort(key=lambda pair: (-pair[0], pair[1]))
    return found[:best]


def iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> np.float32:
    """Intersection over union, every step rounded to float32."""
    zero = np.float32(0)
    width = max(zero, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(zero, min(first[3], second[3]) - max(first[1], second[1]))
    inter = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    result: np.float32 = inter / (areas[0] + areas[1] - inter)
    return result


def nms(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.integer] | None,
    *,
    iou_threshold: float,
    score_threshold: float = -math.inf,
    max_keep: int = 2**31,
) -> list[int]:
    """Visit boxes by score and keep those that no kept box of their class covers."""
    valid = [
        i
        for i in range(len(boxes))
        if box_is_valid(boxes[i]) and np.isfinite(scores[i]) and scores[i] > score_threshold
    ]
    kept: list[int] = []
    for i in sorted(valid, key=lambda i: (-float(scores[i]), i)):
        rivals = [j for j in kept if classes is None or classes[i] == classes[j]]
        if all(float(iou(boxes[i], boxes[j])) <= iou_threshold for j in rivals):
            kept.append(i)
        if len(kept) == max_keep:
            break
    return kept


# ----------------------------------------------------------------------------------- masks


def mask_logits(
    parameters: NDArray[np.float32],
    features: NDArray[np.float32],
    location: tuple[float, float],
    scale: float,
    *,
    widths: tuple[int, ...],
    relative: bool = True,
    stride: int = 8,
) -> NDArray[np.float64]:
    """Evaluate a dynamic head on the whole grid, cell by cell.

    Args:
        parameters: Weights of all layers, each (out, in) row-major, then all biases, (P,).
        features: (M, h, w).
        location: x, y of the instance in input pixels.
        scale: Input pixels per unit of relative coordinate.
        widths: Outputs of each layer.
        relative: Whether two coordinates precede the features.
        stride: Input pixels per cell.

    Returns:
        (h, w).
    """
    channels, rows, columns = features.shape
    layers = []
    inputs, at = channels + 2 * relative, 0
    for width in widths:
        layers.append(parameters[at : at + width * inputs].reshape(width, inputs))
        at += width * inputs
        inputs = width
    biases = []
    for width in widths:
        biases.append(parameters[at : at + width])
        at += width
    assert at == len(parameters)
    out = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            values = features[:, i, j].astype(np.float64)
            if relative:
                x, y = (j + 0.5) * stride, (i + 0.5) * stride
                values = np.array([(location[0] - x) / scale, (location[1] - y) / scale, *values])
            for number, (weights, bias) in enumerate(zip(layers, biases, strict=True)):
                values = weights.astype(np.float64) @ values + bias
                if number + 1 < len(layers):
                    values = np.maximum(values, 0)
            out[i, j] = values[0]
    return out


def surface(
    logits: NDArray[np.floating],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    stride: int = 8,
) -> NDArray[np.float64]:
    """Sample the bilinear surface of a grid at input pixels x (n,) and y (m,): (m, n), float64."""
    rows, columns = logits.shape
    u = np.clip(x / stride - 0.5, 0, columns - 1)
    v = np.clip(y / stride - 0.5, 0, rows - 1)
    j, i = np.floor(u).astype(int), np.floor(v).astype(int)
    j2, i2 = np.minimum(j + 1, columns - 1), np.minimum(i + 1, rows - 1)
    fx, fy = u - j, (v - i)[:, None]
    z = logits.astype(np.float64)
    upper = z[i][:, j] * (1 - fx) + z[i][:, j2] * fx
    lower = z[i2][:, j] * (1 - fx) + z[i2][:, j2] * fx
    result: NDArray[np.float64] = upper * (1 - fy) + lower * fy
    return result


def frame_surface(
    logits: NDArray[np.floating],
    frame: tuple[int, int],
    content: tuple[int, int],
    stride: int = 8,
) -> NDArray[np.float64]:
    """Sample the surface at the centres of all frame pixels, (H, W)."""
    y = (np.arange(frame[0]) + 0.5) * content[0] / frame[0]
    x = (np.arange(frame[1]) + 0.5) * content[1] / frame[1]
    return surface(logits, x, y, stride)


def inside(low: float, high: float, side: int) -> NDArray[np.bool_]:
    """Pixels of an axis whose centre lies in low <= centre < high, else the nearest one."""
    centres = np.arange(side) + 0.5
    found: NDArray[np.bool_] = (centres >= low) & (centres < high)
    if not found.any():
        found[min(max(math.floor((low + high) / 2), 0), side - 1)] = True
    return found


def raster(box: NDArray[np.floating], height: int, width: int) -> NDArray[np.bool_]:
    """Pixels that belong to a box, (height, width)."""
    rows = inside(float(box[1]), float(box[3]), height)
    columns = inside(float(box[0]), float(box[2]), width)
    return rows[:, None] & columns[None]


def mask_score(logits: NDArray[np.floating], box: NDArray[np.floating], stride: int = 8) -> float:
    """Mean probability of the cells in a box that are on, else 0; see contracts on scores."""
    x = (np.arange(logits.shape[1]) + 0.5) * stride
    y = (np.arange(logits.shape[0]) + 0.5) * stride
    cells = ((y >= box[1]) & (y < box[3]))[:, None] & ((x >= box[0]) & (x < box[2]))[None]
    if cells.any():
        on = [sigmoid(float(z)) for z in logits[cells] if z > 0]
    else:
        centre = np.array([(box[0] + box[2]) / 2]), np.array([(box[1] + box[3]) / 2])
        on = [sigmoid(float(z)) for z in surface(logits, *centre, stride).ravel() if z > 0]
    return sum(on) / len(on) if on else 0.0


# --------------------------------------------------------------------------- run-length text


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Count the runs down the columns of a mask, off first."""
    counts, value, run = [], False, 0
    for pixel in mask.ravel(order="F").tolist():
        if bool(pixel) != value:
            counts.append(run)
            value, run = bool(pixel), 0
        run += 1
    return [*counts, run]


def run_text(counts: list[int]) -> bytes:
    """Write counts as COCO does: differences to the count two before, groups of five bits."""
    text = bytearray()
    for i, count in enumerate(counts):
        rest = count - counts[i - 2] if i > 2 else count
        while True:
            group = rest & 31
            rest >>= 5
            done = rest == (-1 if group & 16 else 0)
            text.append(group + (0 if done else 32) + 48)
            if done:
                break
    return bytes(text)
