"""Instances of one frame, with masks in the form that the caller asks for.

N instances ordered by score, H x W pixels of the frame. Boxes are float32 x1, y1, x2, y2 in frame
pixels. Masks are held as run-length text; every other form is made from it when asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxseg.errors import counted, one_line
from boxseg.runtime import _native

SHOWN = 3
"""Instances that `repr` names."""


class Crop(NamedTuple):
    """A mask cut to the smallest rectangle around it.

    Attributes:
        x: Column of the frame where the rectangle starts.
        y: Row of the frame where it starts.
        mask: True on the instance, (rows, columns); 0 x 0 for an empty mask.
    """

    x: int
    y: int
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Detections:
    """Instances of one frame.

    Attributes:
        xyxy: Boxes clipped to the frame, (N, 4).
        scores: Final scores, (N,), highest first.
        labels: Class indices, (N,).
        height: H.
        width: W.
        counts: COCO's compressed run-length counts of the H x W mask, one per instance.
        class_names: Names of all classes, by class index.
        category_ids: The data set's ids of all classes, by class index.
        score0: Scores of the detection alone, (N,).
        mask_scores: Mean probability inside the masks, (N,).
        areas: Pixels of the masks, (N,).
        complete: False if a time budget ended the work before all instances were there.
        times_ms: Milliseconds per stage: letterbox, engine, select, masks and their total.
    """

    xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    height: int
    width: int
    counts: tuple[bytes, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    score0: NDArray[np.float32]
    mask_scores: NDArray[np.float32]
    areas: NDArray[np.int64]
    complete: bool = True
    times_ms: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.counts)
        for name in ("scores", "labels", "score0", "mask_scores", "areas"):
            if getattr(self, name).shape != (n,):
                raise ValueError(
                    f"{name} must have shape ({n},) like counts, got {getattr(self, name).shape}"
                )
        if self.xyxy.shape != (n, 4):
            raise ValueError(f"xyxy must have shape ({n}, 4) like counts, got {self.xyxy.shape}")

    def __repr__(self) -> str:
        """Name the best instances; the arrays and run lengths of all would fill the screen."""
        best = zip(self.labels[:SHOWN].tolist(), self.scores[:SHOWN].tolist(), strict=True)
        words = [f"{one_line(self.class_names[label])} {score:.2f}" for label, score in best]
        more = ", ..." if len(self) > SHOWN else ""
        cut = "" if self.complete else ", cut short by the time budget"
        listed = f": {', '.join(words)}{more}" if words else ""
        count = counted(len(self), "detection")
        return f"<{count} in {self.height} x {self.width}{cut}{listed}>"

    def __len__(self) -> int:
        """N."""
        return len(self.counts)

    def __getitem__(
        self, index: int | slice | Sequence[int] | NDArray[np.integer | np.bool_]
    ) -> Detections:
        """Pick instances by position, slice, positions or a boolean mask; always Detections."""
        chosen = np.atleast_1d(np.arange(len(self))[index])
        return replace(
            self,
            xyxy=self.xyxy[chosen],
            scores=self.scores[chosen],
            labels=self.labels[chosen],
            counts=tuple(self.counts[i] for i in chosen.tolist()),
            score0=self.score0[chosen],
            mask_scores=self.mask_scores[chosen],
            areas=self.areas[chosen],
        )

    def __iter__(self) -> Iterator[Detections]:
        """One instance after the other, each as Detections of length 1."""
        return (self[i] for i in range(len(self)))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.height, self.width

    def rle(self) -> list[dict[str, Any]]:
        """Give the masks as pycocotools takes them: {"size": [H, W], "counts": text}."""
        size = [self.height, self.width]
        return [{"size": list(size), "counts": counts.decode("ascii")} for counts in self.counts]

    def crops(self) -> list[Crop]:
        """Give each mask cut to the smallest rectangle around it."""
        return [_crop(counts, self.height, self.width) for counts in self.counts]

    def dense(self, out: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        """Give all masks in full size, (N, H, W); N times H times W bytes.

        Args:
            out: C-contiguous array of this shape to write into; None makes one.
        """
        out = _cleared(out, (len(self), self.height, self.width), np.dtype(np.bool_))
        window = (0, 0, self.width, self.height)
        for counts, mask in zip(self.counts, out.view(np.uint8), strict=True):
            _native.rle_paint(counts, self.height, self.width, window, 1, mask)
        return out

    def label_image(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Give one picture of all masks, (H, W): 0 is background, i + 1 is instance i.

        Where masks overlap, the higher score is on top. uint8 for up to 255 instances, else uint16.
        """
        out: NDArray[Any] = np.empty(self.size, np.uint8 if len(self) < 256 else np.uint16)
        scratch = np.empty(_native.label_image_scratch_size(*self.size), np.uint8)
        _native.label_image(self.counts, *self.size, scratch, out)
        return out

    def polygons(self) -> list[list[NDArray[np.float32]]]:
        """Give the outlines of each mask along its pixels' edges.

        Returns:
            Per instance a list of closed rings, (K, 2) corners x, y in frame pixels without the
            first repeated. Outer rings have the mask on their right in image axes (clockwise on the
            screen, positive shoelace area), holes run the other way, so that the signed areas sum
            to the pixels of the mask. Pixels that touch at a corner only are separate.
        """
        return [_rings(counts, self.height, self.width) for counts in self.counts]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Give COCO results: dataset category ids, boxes as x, y, width, height, masks as RLE."""
        boxes = self.xyxy.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        return [
            {
                "image_id": image_id,
                "category_id": self.category_ids[label],
                "bbox": box,
                "score": score,
                "segmentation": mask,
            }
            for label, box, score, mask in zip(
                self.labels.tolist(), boxes.tolist(), self.scores.tolist(), self.rle(), strict=True
            )
        ]

    def to_supervision(self) -> dict[str, Any]:
        """Give the arguments of supervision's Detections, which is not imported here.

        `sv.Detections(**found.to_supervision())`; masks become dense, (N, H, W).
        """
        names = np.array([self.class_names[i] for i in self.labels.tolist()], dtype=np.str_)
        return {
            "xyxy": self.xyxy.copy(),
            "mask": self.dense(),
            "confidence": self.scores.copy(),
            "class_id": self.labels.astype(int),
            "data": {"class_name": names},
        }


def _cleared(
    out: NDArray[Any] | None, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return the caller's array filled with zeros, or a new one."""
    if out is None:
        return np.zeros(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"out must be a C-contiguous {dtype} array {shape}, got {out.dtype} {out.shape}"
        )
    out.fill(0)
    return out


def _crop(counts: bytes, height: int, width: int) -> Crop:
    _, (x0, y0, x1, y1) = _native.rle_measure(counts, height, width)
    mask = np.empty((y1 - y0, x1 - x0), np.uint8)
    if mask.size:
        _native.rle_bytes(counts, height, width, (x0, y0, x1, y1), mask)
    return Crop(x0, y0, mask.view(np.bool_))


def _rings(counts: bytes, height: int, width: int) -> list[NDArray[np.float32]]:
    points, ends = _native.rle_polygons(counts, height, width)
    rings = np.frombuffer(points, np.float32).reshape(-1, 2).copy()
    return np.split(rings, np.frombuffer(ends, np.uint32).astype(np.intp))[:-1]
