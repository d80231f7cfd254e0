"""A picture of what a step was taught: candidates, fused masks, and the student's view."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from boxseg.runtime.drawing import Instances, draw_instances, panel, write_picture
from boxseg.train.affinity import MASK_LOSS_STRIDE
from boxseg.train.pseudo_masks import PseudoMasks
from boxseg.train.supervision import Lesson
from boxseg.train.teacher import TeacherPredictions

PSEUDO_FILE = "pseudo_masks.png"
TITLES = (
    "box and best candidate (IoU)",
    "pseudo mask (quality)",
    "what the student saw and learned",
)


def draw_lesson(lesson: Lesson, classes: Sequence[str], path: Path, *, images: int = 3) -> None:
    """Draw the first images of a step, one a row; nothing before the teacher starts.

    Left the object boxes with the teacher's one prediction that fits best, then the masks that
    were made of all, with their quality, then the student's view with what was pasted.

    Args:
        lesson: What the step learned from.
        classes: Class names in the order of their indices.
        path: PNG to write.
        images: Rows of the picture.
    """
    if lesson.answer is None or lesson.unpasted is None or lesson.pseudo is None:
        return
    clean = lesson.answer.batch
    rows = []
    for image in range(min(images, len(clean.sizes))):
        found, overlap = _best_candidates(lesson.answer, image)
        names = [classes[int(label)] for label in clean.labels[image]]
        pasted_names = [classes[int(label)] for label in lesson.batch.labels[image]]
        size = tuple(clean.sizes[image].tolist())
        rows.append(
            [
                _drawn(clean.images[image], size, clean.boxes[image], names, found, overlap),
                _drawn_pseudo(
                    clean.images[image], size, clean.boxes[image], names, lesson.unpasted, image
                ),
                _drawn_pseudo(
                    lesson.images[image],
                    size,
                    lesson.batch.boxes[image],
                    pasted_names,
                    lesson.pseudo,
                    image,
                ),
            ]
        )
    temporary = path.with_suffix(".tmp.png")
    write_picture(temporary, panel(rows, titles=TITLES))
    os.replace(temporary, path)


@torch.no_grad()
def _best_candidates(answer: TeacherPredictions, image: int) -> tuple[Tensor, Tensor]:
    """Return the mask of the prediction that fits each object's box best, and that IoU."""
    boxes = answer.batch.boxes[image]
    if not len(boxes):
        height, width = (side // MASK_LOSS_STRIDE for side in answer.batch.images.shape[-2:])
        return boxes.new_zeros((0, height, width)), boxes.new_zeros(0)
    overlap, location = box_iou(answer.boxes[image], boxes).max(dim=0)
    return answer.masks_at(torch.full_like(location, image), location), overlap


def _drawn_pseudo(
    picture: Tensor,
    size: tuple[int, ...],
    boxes: Tensor,
    names: Sequence[str],
    pseudo: PseudoMasks,
    image: int,
) -> NDArray[np.uint8]:
    return _drawn(picture, size, boxes, names, pseudo.masks[image], pseudo.quality[image])


def _drawn(
    picture: Tensor,
    size: tuple[int, ...],
    boxes: Tensor,
    names: Sequence[str],
    masks: Tensor,
    scores: Tensor,
) -> NDArray[np.uint8]:
    """Draw masks of the stride-4 grid over the content of one image."""
    height, width = size
    pixels = picture[:, :height, :width].permute(1, 2, 0).to(torch.uint8).cpu().numpy()
    whole = (
        F.interpolate(
            masks[None].float(), scale_factor=MASK_LOSS_STRIDE, mode="bilinear", align_corners=False
        )[0]
        if len(masks)
        else masks.new_zeros((0, *picture.shape[-2:]))
    )
    inside = (whole[:, :height, :width] > 0.5).cpu().numpy()
    instances = Instances.from_dense(boxes.cpu().numpy(), names, scores.tolist(), inside)
    return draw_instances(np.ascontiguousarray(pixels), instances)
