"""The picture of a lesson."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from test_teacher import batch_of, new_student

from boxseg.train.pseudo_masks import PseudoMasks
from boxseg.train.pseudo_pictures import draw_lesson
from boxseg.train.supervision import Lesson
from boxseg.train.teacher import Teacher

BATCH = batch_of(64, 96, [[64, 96], [48, 64]])


def lesson(boxes: list[torch.Tensor]) -> Lesson:
    batch = replace(BATCH, boxes=boxes, labels=[torch.zeros(len(rows)).long() for rows in boxes])
    pseudo = PseudoMasks(
        masks=[torch.ones(len(rows), 16, 24) for rows in boxes],
        quality=[torch.full((len(rows),), 0.75) for rows in boxes],
        confidence=[torch.ones(len(rows)) for rows in boxes],
    )
    answer = Teacher(new_student(), momentum=0.5, ramp=False).ask(batch, 0.5)
    return Lesson(batch, batch.images, pseudo, 3, {}, answer, pseudo)


def test_each_image_is_a_row_of_three_pictures(tmp_path: Path) -> None:
    path = tmp_path / "pseudo_masks.png"
    draw_lesson(lesson([torch.tensor([[4.0, 4.0, 40.0, 40.0]])] * 2), ("a", "b"), path)
    two = np.asarray(Image.open(path))
    draw_lesson(lesson([torch.tensor([[4.0, 4.0, 40.0, 40.0]])] * 2), ("a", "b"), path, images=1)
    one = np.asarray(Image.open(path))
    assert two.shape[1] == one.shape[1]
    assert two.shape[0] > 1.5 * one.shape[0]


def test_images_without_objects_are_drawn_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "pseudo_masks.png"
    draw_lesson(lesson([torch.zeros(0, 4)] * 2), ("a", "b"), path)
    assert np.asarray(Image.open(path)).ndim == 3


def test_before_the_teacher_starts_there_is_no_picture(tmp_path: Path) -> None:
    draw_lesson(Lesson(BATCH, BATCH.images), ("a", "b"), tmp_path / "pseudo_masks.png")
    assert list(tmp_path.iterdir()) == []
