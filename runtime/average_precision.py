"""COCO's matching and its precision-recall curves, over arrays.

    T overlap thresholds, A ranges of area, R points of recall, K classes
    D detections and G objects of one class in one image, N detections of one class in all images

Source: pycocotools' COCOeval. The rules are the same, each of them is named where it is followed,
and the numbers are equal, not only close. Overlaps come from pycocotools' C code; what it does in
Python for each threshold and each range of area one after the other is done here at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    _Entries = Sequence[Mapping[str, Any]]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
"""Smallest and largest area of all, small, medium and large objects, both inclusive, (A, 2)."""
MOST_DETECTIONS = 100
"""Of one class in one image, by score."""


@dataclass(frozen=True)
class Kept:
    """What the detections above a confidence are worth at an IoU of 0.5, all classes together."""

    conf: float
    objects: int
    """To be found."""
    found: int
    wrong: int
    """Detections that find no object, or one that is found already."""

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, in [0, 1]; 0 where there is nothing."""
        return 2 * self.found / max(1, self.found + self.wrong + self.objects)


@dataclass(frozen=True)
class Decided:
    """Every detection that counts, at an IoU of 0.5, all classes together."""

    scores: NDArray[np.float64]
    """(N,)."""
    right: NDArray[np.bool_]
    """Found an object, (N,)."""
    objects: int

    def above(self, conf: float) -> Kept:
        """Count what is left of detections with a score above a confidence."""
        right = self.right[self.scores > conf]
        return Kept(conf, self.objects, int(right.sum()), int((~right).sum()))

    def best(self) -> Kept:
        """Return the confidence of the highest F1 among 0.00, 0.01 .. 0.99; of equals the last."""
        return max((self.above(step / 100) for step in range(100)), key=lambda k: (k.f1, k.conf))


@dataclass(frozen=True)
class Curves:
    """Precision and recall; -1 where there is no object to be found."""

    precision: NDArray[np.float64]
    """Best precision at or beyond each recall, (T, R, K, A)."""
    recall: NDArray[np.float64]
    """Recall of all detections, (T, K, A)."""
    decided: Decided


@dataclass(frozen=True)
class _Judged:
    """Detections of one class in one image, best first."""

    scores: NDArray[np.float64]
    """(D,)."""
    matched: NDArray[np.bool_]
    """Found an object, (A, T, D)."""
    ignored: NDArray[np.bool_]
    """Counts neither as right nor as wrong, (A, T, D)."""
    objects: NDArray[np.int64]
    """Objects to be found, (A,)."""


def _outside(areas: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which areas lie outside each range, (A, number of areas)."""
    return (areas < AREAS[:, :1]) | (areas > AREAS[:, 1:])


def _last_of_best(values: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return place and value of the largest in the last axis; of equals the last."""
    place = values.shape[-1] - 1 - np.argmax(values[..., ::-1], axis=-1)
    return place, np.take_along_axis(values, place[..., None], axis=-1)[..., 0]


def match(
    overlaps: NDArray[np.float64], ignored: NDArray[np.bool_], crowds: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Give each detection, best first, an object, for every threshold and range of area.

    A detection takes the object that it overlaps most, the later one of equals, among those that
    count and are free; only if there is none, among those that are ignored. A crowd is never used
    up.

    Args:
        overlaps: Of detections, best first, with objects, (D, G).
        ignored: Objects that do not count in a range of area, (A, G).
        crowds: Objects that stand for many, (G,).

    Returns:
        Which detections found an object, and which of them an ignored one, both (A, T, D).
    """
    shape = len(ignored), len(THRESHOLDS), len(overlaps)
    matched, spared = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    limits = np.minimum(THRESHOLDS, 1 - 1e-10)
    free = np.ones((*shape[:2], overlaps.shape[1]), np.bool_)  # (A, T, G)
    counting = ~ignored[:, None]  # (A, 1, G)
    rows, columns = np.indices(shape[:2])
    for detection in np.flatnonzero(overlaps.max(axis=1) >= limits[0]):
        overlap = overlaps[detection]
        reached = np.where(free & (overlap >= limits[:, None]), overlap, -1.0)  # (A, T, G)
        place, best = _last_of_best(np.where(counting, reached, -1.0))
        other, other_best = _last_of_best(np.where(counting, -1.0, reached))
        counted = best >= 0
        place = np.where(counted, place, other)
        found = counted | (other_best >= 0)
        matched[..., detection] = found
        spared[..., detection] = found & ~counted
        taken = found & ~crowds[place]
        free[rows[taken], columns[taken], place[taken]] = False
    return matched, spared


def _judge(objects: _Entries, found: _Entries, overlaps: NDArray[np.float64] | None) -> _Judged:
    """Judge one class in one image; `overlaps` is None where there is nothing to overlap."""
    unjudged = np.array([bool(entry["unjudged"]) for entry in objects], np.bool_)
    crowds = np.array([bool(entry["iscrowd"]) for entry in objects], np.bool_)
    ignored = unjudged | _outside(np.array([entry["area"] for entry in objects], np.float64))
    outside = _outside(np.array([entry["area"] for entry in found], np.float64))  # (A, D)
    shape = len(AREAS), len(THRESHOLDS), len(found)
    if overlaps is None:
        matched, spared = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    else:
        matched, spared = match(overlaps, ignored, crowds)
    return _Judged(
        scores=np.array([entry["score"] for entry in found], np.float64),
        matched=matched,
        # what found nothing and has another size is of another range
        ignored=spared | (~matched & outside[:, None]),
        objects=(~ignored).sum(axis=1),
    )


def _best_first(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the best detections, equals in their order."""
    order = np.argsort([-entry["score"] for entry in found], kind="mergesort")
    return [found[index] for index in order[:MOST_DETECTIONS]]


def _curve(judged: Sequence[_Judged]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision (T, R, A) and recall (T, A) of one class."""
    precision = np.full((len(THRESHOLDS), len(RECALLS), len(AREAS)), -1.0)
    recall = np.full((len(THRESHOLDS), len(AREAS)), -1.0)
    if not judged:
        return precision, recall
    scores = np.concatenate([one.scores for one in judged])
    order = np.argsort(-scores, kind="mergesort")
    matched = np.concatenate([one.matched for one in judged], axis=2)[..., order]  # (A, T, N)
    counted = ~np.concatenate([one.ignored for one in judged], axis=2)[..., order]
    totals = np.sum([one.objects for one in judged], axis=0)
    for area in np.flatnonzero(totals):
        right = np.cumsum(matched[area] & counted[area], axis=1, dtype=np.float64)  # (T, N)
        wrong = np.cumsum(~matched[area] & counted[area], axis=1, dtype=np.float64)
        reached = right / totals[area]
        exact = right / (wrong + right + np.spacing(1))
        # precision never falls towards lower recall
        exact = np.maximum.accumulate(exact[:, ::-1], axis=1)[:, ::-1]
        recall[:, area] = reached[:, -1] if len(order) else 0.0
        for threshold in range(len(THRESHOLDS)):
            places = np.searchsorted(reached[threshold], RECALLS, side="left")
            inside = places < len(order)
            values = np.zeros(len(RECALLS))
            values[inside] = exact[threshold, places[inside]]
            precision[threshold, :, area] = values
    return precision, recall


def _decide(judged: Sequence[_Judged]) -> Decided:
    """Put the detections of all classes and images together, of objects of any size."""
    counts = [~one.ignored[0, 0] for one in judged]
    return Decided(
        scores=np.concatenate(
            [np.zeros(0), *(one.scores[kept] for one, kept in zip(judged, counts, strict=True))]
        ),
        right=np.concatenate(
            [
                np.zeros(0, np.bool_),
                *(one.matched[0, 0][kept] for one, kept in zip(judged, counts, strict=True)),
            ]
        ),
        objects=int(sum(one.objects[0] for one in judged)),
    )


def precision_recall(
    objects: _Entries,
    found: _Entries,
    categories: Sequence[int],
    kind: str,
    progress: Callable[[int, int], None] | None = None,
) -> Curves:
    """Compare detections with the truth.

    Args:
        objects: `image_id`, `category_id`, `area`, `iscrowd`, `unjudged`, and `bbox` (x, y, width,
            height) or `segmentation` (RLE).
        found: `image_id`, `category_id`, `area`, `score`, and `bbox` or `segmentation`.
        categories: Ids of the K classes.
        kind: "bbox" or "segm", which of the two is compared.
        progress: Called after each class with the number done and the number of all.

    Returns:
        The curves, classes in the order of `categories`.
    """
    from pycocotools import mask as codec

    key = {"bbox": "bbox", "segm": "segmentation"}[kind]
    truth: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    answers: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    images: dict[int, set[int]] = defaultdict(set)
    for groups, entries in ((truth, objects), (answers, found)):
        for entry in entries:
            place = int(entry["category_id"]), int(entry["image_id"])
            groups[place].append(entry)
            images[place[0]].add(place[1])
    precisions, recalls = [], []
    everything: list[_Judged] = []
    for done, category in enumerate(categories, start=1):
        judged = []
        # detections of equal score come in the order of their images
        for image in sorted(images[category]):
            wanted = truth.get((category, image), [])
            given = _best_first(answers.get((category, image), []))
            overlaps = None
            if wanted and given:
                overlaps = codec.iou(
                    [entry[key] for entry in given],
                    [entry[key] for entry in wanted],
                    [int(entry["iscrowd"]) for entry in wanted],
                )
            judged.append(_judge(wanted, given, overlaps))
        precision, recall = _curve(judged)
        precisions.append(precision)
        recalls.append(recall)
        everything += judged
        if progress is not None:
            progress(done, len(categories))
    return Curves(np.stack(precisions, axis=2), np.stack(recalls, axis=1), _decide(everything))
