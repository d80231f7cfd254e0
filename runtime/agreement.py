"""When two answers to the same image count as equal, whatever engine gave them.

N and M detections, H x W pixels of a frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from boxseg.runtime.metadata import Metadata


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed difference of a tensor: the greater of the two."""

    absolute: float
    relative: float
    """Share of the tensor's largest magnitude."""
    rms: float = math.inf
    """Besides: RMS of the difference as a share of the tensor's RMS."""


class Answer(Protocol):
    """What the gate reads of detections."""

    @property
    def xyxy(self) -> NDArray[np.float32]:
        """x1, y1, x2, y2 in pixels of the frame, (N, 4)."""
        ...

    @property
    def scores(self) -> NDArray[np.float32]:
        """Final scores, (N,)."""
        ...

    @property
    def labels(self) -> NDArray[Any]:
        """Index of each class, (N,)."""
        ...

    def dense(self) -> NDArray[np.bool_]:
        """Return the masks, (N, H, W)."""
        ...


SCORE_TOLERANCE = 1e-3
IOU_LIMIT = 0.99
"""Smallest IoU of a box and of a mask with its partner."""
MASK_PIXELS = 4
"""A mask that differs in no more pixels than this passes too: one edge pixel of a mask of 20
pixels is already an IoU of 0.95."""
UNMATCHED_SHARE = 0.02
"""Share of detections that may have no partner, because a tie went the other way."""


class Limits(Protocol):
    """How far detections may differ."""

    @property
    def score(self) -> float:
        """Largest difference of the scores of partners."""
        ...

    @property
    def iou(self) -> float:
        """Smallest IoU of a box and of a mask with its partner."""
        ...

    @property
    def unmatched(self) -> float:
        """Share of detections that may have no partner."""
        ...


@dataclass(frozen=True)
class FixedLimits:
    """Limits that a file states."""

    score: float = SCORE_TOLERANCE
    iou: float = IOU_LIMIT
    unmatched: float = UNMATCHED_SHARE


EXACT = FixedLimits()
"""Of fp32."""


def score_cut(metadata: Metadata) -> float:
    """Return the smallest score that a file can report.

    Args:
        metadata: Of the file.
    """
    # otherwise the cut is on another score than the reported one
    return metadata.candidate_score if metadata.final_score == "score0" else 0.0


@dataclass(frozen=True)
class DetectionDifference:
    """How the detections of a file match those of torch, over all images."""

    expected: int
    """Detections of torch that are clear of the score cut."""
    matched: int
    score: float = 0.0
    """Largest difference of the scores of partners."""
    box_iou: float = 1.0
    """Smallest IoU of partners."""
    mask_iou: float = 1.0
    """Smallest mask IoU of partners that differ in more than 4 pixels."""
    missing: tuple[str, ...] = ()
    """Detections without a partner of the same class, box, mask and score."""
    unmatched: float = UNMATCHED_SHARE
    """Share that may have no partner."""

    @property
    def passed(self) -> bool:
        """Whether all but the allowed share have a partner."""
        return self.expected - self.matched <= int(self.unmatched * self.expected)

    def line(self) -> str:
        """Return one line of a report."""
        verdict = "ok" if self.passed else "FAILED"
        return (
            f"detections      {self.matched} of {self.expected} matched, "
            f"score diff <= {self.score:.1e}, box IoU >= {self.box_iou:.4f}, "
            f"mask IoU >= {self.mask_iou:.4f}  {verdict}"
        )


def box_iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the IoU of all pairs of x1, y1, x2, y2 boxes, (N, 4) and (M, 4) -> (N, M)."""
    a, b = first.astype(np.float64)[:, None], second.astype(np.float64)[None]
    size = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inter = np.clip(size, 0, None).prod(axis=-1)  # (N, M)
    areas = [np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(axis=-1) for boxes in (a, b)]
    union = areas[0] + areas[1] - inter
    iou: NDArray[np.float64] = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return iou


def _mask_match(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return the IoU of two masks (H, W), or 1 if they differ in a few pixels only."""
    if int((first ^ second).sum()) <= MASK_PIXELS:
        return 1.0
    return float((first & second).sum() / (first | second).sum())


def match_detections(
    image: str,
    expected: Answer,
    found: Answer,
    *,
    cut: float,
    full: bool,
    limits: Limits = EXACT,
) -> DetectionDifference:
    """Find a partner for every detection of torch.

    Args:
        image: Name, for messages.
        expected: Of the network in torch.
        found: Of the file.
        cut: Smallest score that either could report; detections that are as near to it as scores
            may differ are left out, as rounding decides whether they are there.
        full: The number of detections is the largest allowed, so the least score is a cut too.
        limits: What partners may differ in.
    """
    limit = cut + limits.score
    if full and len(expected.scores):
        limit = max(limit, float(expected.scores.min()) + limits.score)
    wanted = np.flatnonzero(expected.scores > limit)
    overlap = box_iou(expected.xyxy, found.xyxy)  # (N, M)
    overlap[expected.labels[:, None] != found.labels[None]] = 0.0
    masks, other = expected.dense(), found.dense()
    free = np.ones(len(found.scores), dtype=bool)
    matched, score, worst_box, worst_mask = 0, 0.0, 1.0, 1.0
    missing = []
    for index in wanted[np.argsort(-expected.scores[wanted], kind="stable")]:
        gaps = np.abs(found.scores - expected.scores[index])
        candidates = np.flatnonzero(free & (overlap[index] >= limits.iou) & (gaps <= limits.score))
        partner, mask = -1, 0.0
        for candidate in candidates[np.argsort(-overlap[index, candidates], kind="stable")]:
            mask = _mask_match(masks[index], other[candidate])
            if mask >= limits.iou:
                partner = int(candidate)
                break
        if partner < 0:
            box = ", ".join(f"{side:.1f}" for side in expected.xyxy[index])
            missing.append(
                f"{image}: class {int(expected.labels[index])} "
                f"{expected.scores[index]:.3f} at [{box}]"
            )
            continue
        free[partner] = False
        matched += 1
        score = max(score, float(gaps[partner]))
        worst_box = min(worst_box, float(overlap[index, partner]))
        worst_mask = min(worst_mask, mask)
    return DetectionDifference(
        len(wanted), matched, score, worst_box, worst_mask, tuple(missing), limits.unmatched
    )


def merge(parts: Sequence[DetectionDifference]) -> DetectionDifference:
    """Join the differences of several images."""
    return DetectionDifference(
        expected=sum(part.expected for part in parts),
        matched=sum(part.matched for part in parts),
        score=max((part.score for part in parts), default=0.0),
        box_iou=min((part.box_iou for part in parts), default=1.0),
        mask_iou=min((part.mask_iou for part in parts), default=1.0),
        missing=tuple(line for part in parts for line in part.missing),
        unmatched=max((part.unmatched for part in parts), default=UNMATCHED_SHARE),
    )
