"""What a step is taught: the order of teacher, pseudo masks, pasting and view, and its state."""

import colorsys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from test_teacher import batch_of, new_student

from boxseg.train.memory_bank import MemoryBank
from boxseg.train.pseudo_masks import PseudoMasks
from boxseg.train.recipe import ViewRecipe
from boxseg.train.supervision import StudentView, Supervision
from boxseg.train.teacher import Teacher, TeacherPredictions
from boxseg.train.transforms import Batch


class Maker:
    """Gives every object an empty mask of quality .5 and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[TeacherPredictions] = []
        self.in_autocast: list[bool] = []

    def __call__(self, teacher: TeacherPredictions) -> PseudoMasks:
        self.asked.append(teacher)
        self.in_autocast.append(torch.is_autocast_enabled("cpu"))
        height, width = (side // 4 for side in teacher.batch.images.shape[-2:])
        return PseudoMasks(
            masks=[torch.zeros(len(rows), height, width) for rows in teacher.batch.boxes],
            quality=[torch.full((len(rows),), 0.5) for rows in teacher.batch.boxes],
            confidence=[torch.full((len(rows),), 0.5) for rows in teacher.batch.boxes],
        )

    def state_dict(self) -> dict[str, Any]:
        return {"asked": len(self.asked)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.restored = state["asked"]


class Bank:
    """Pastes a white image and remembers what it stored."""

    def __init__(self) -> None:
        self.stored: list[Batch] = []
        self.restored: dict[str, Any] = {}

    def paste(
        self, batch: Batch, pseudo: PseudoMasks, *, step: int, teacher_step: int
    ) -> tuple[Batch, PseudoMasks]:
        self.steps = (step, teacher_step)
        return replace(batch, images=torch.full_like(batch.images, 255)), pseudo

    def store(self, batch: Batch, pseudo: PseudoMasks, *, step: int) -> None:
        self.stored.append(batch)

    def diagnostics(self, step: int) -> dict[str, float]:
        return {"bank_fill": 0.25}

    def state_dict(self) -> dict[str, Any]:
        return {"entries": len(self.stored)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.restored = state


def supervision(maker: Maker, bank: Bank | None = None, **changes: Any) -> Supervision:
    values: dict[str, Any] = {
        "max_iters": 100,
        "start_step": 30,
        "teacher": Teacher(new_student(), momentum=0.5, ramp=False),
        "maker": maker,
        "bank": cast(MemoryBank, bank),
    }
    return Supervision(**{**values, **changes})


BATCH = batch_of(64, 64, [[64, 64], [48, 64]])


def test_before_the_teacher_starts_there_are_no_pseudo_masks() -> None:
    maker = Maker()
    taught = supervision(maker)
    lesson = taught.prepare(BATCH, new_student(1), 29)
    assert lesson.pseudo is None
    assert lesson.images is BATCH.images
    assert lesson.diagnostics == {}
    taught.after_step(new_student(1), 29)
    assert maker.asked == []
    assert taught.teacher is not None
    assert taught.teacher.updates == 0


def test_at_its_start_the_teacher_is_the_student() -> None:
    taught = supervision(Maker())
    student = new_student(1)
    lesson = taught.prepare(BATCH, student, 30)
    assert lesson.teacher_step == 0
    assert taught.teacher is not None
    assert taught.teacher.distance(student) == 0
    taught.after_step(student, 30)
    assert taught.teacher.updates == 2


def test_the_teacher_sees_what_is_not_pasted_and_the_student_what_is() -> None:
    maker, bank = Maker(), Bank()
    lesson = supervision(maker, bank).prepare(BATCH, new_student(), 55)
    assert maker.asked[0].batch is BATCH
    assert maker.asked[0].progress == pytest.approx(0.55)
    assert bank.stored == [BATCH]
    assert bank.steps == (55, 25)
    assert lesson.batch.images.min() == 255
    assert lesson.images.min() == 255
    told = {name: float(value) for name, value in lesson.diagnostics.items()}
    assert told == {"pseudo_share": 1.0, "pseudo_quality": 0.5, "bank_fill": 0.25}


def test_in_mixed_precision_the_teacher_is_halved_and_its_masks_are_not() -> None:
    maker = Maker()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        supervision(maker).prepare(BATCH, new_student(), 30)
    assert maker.asked[0].predictions.class_logits.dtype == torch.bfloat16
    assert maker.in_autocast == [False]


def test_a_batch_without_boxes_has_no_share_and_no_quality() -> None:
    empty = replace(BATCH, boxes=[torch.zeros(0, 4)] * 2, labels=[torch.zeros(0).long()] * 2)
    lesson = supervision(Maker()).prepare(empty, new_student(), 30)
    assert {float(value) for value in lesson.diagnostics.values()} == {0.0}


def test_state_is_the_teachers_for_all_and_the_banks_for_each() -> None:
    maker, bank = Maker(), Bank()
    first = supervision(maker, bank)
    first.prepare(BATCH, new_student(3), 40)
    shared, own = first.shared_state(), first.own_state()
    assert set(shared) == {"teacher"}
    assert own == {"pseudo_masks": {"asked": 1}, "bank": {"entries": 1}}
    maker, bank = Maker(), Bank()
    second = supervision(maker, bank)
    second.load_state(shared, own)
    assert maker.restored == 1
    assert bank.restored == {"entries": 1}
    assert second.teacher is not None
    assert second.teacher.distance(new_student(3)) == 0


def test_a_teacher_without_a_way_to_make_masks_is_refused() -> None:
    with pytest.raises(ValueError, match="go together"):
        Supervision(max_iters=9, maker=Maker())


def test_the_view_changes_the_content_and_never_the_padding() -> None:
    torch.manual_seed(0)
    view = StudentView(ViewRecipe(jitter=1, grayscale=1, blur=1))(BATCH)
    assert view.dtype == torch.uint8
    assert torch.equal(view[1, :, 48:], BATCH.images[1, :, 48:])
    assert not torch.equal(view[1, :, :48], BATCH.images[1, :, :48])
    content = view[1, :, :48].int()
    assert (content[0] - content[1]).abs().max() <= 1  # grey


def test_a_view_of_no_probability_is_the_clean_image() -> None:
    view = StudentView(ViewRecipe(jitter=0, grayscale=0, blur=0))(BATCH)
    assert torch.equal(view, BATCH.images)
    assert view is not BATCH.images


def views(recipe: ViewRecipe, image: torch.Tensor, count: int = 300) -> torch.Tensor:
    """Return views of one image (3, 8, 8), (count, 3, 8, 8)."""
    torch.manual_seed(0)
    clean = replace(
        BATCH, images=image[None].repeat(count, 1, 1, 1), sizes=torch.tensor([[8, 8]] * count)
    )
    return StudentView(recipe)(clean)


def test_jitter_has_the_published_strengths_and_probability() -> None:
    # Brightness alone changes an even grey: 100 becomes 60 to 140, in four of five images; one in
    # 80 of those keeps its value. Each change may round down. The standard error of a share of 300
    # is at most .03.
    grey = views(ViewRecipe(), torch.full((3, 8, 8), 100, dtype=torch.uint8))[:, 0, 0, 0].int()
    assert 57 <= int(grey.min()) < 66
    assert 132 < int(grey.max()) <= 140
    assert abs(float((grey == 100).float().mean()) - 0.21) < 0.1
    # Of these changes hue alone turns the hue of an even colour, by up to a tenth of the circle.
    colour = torch.tensor([160, 80, 80], dtype=torch.uint8)[:, None, None].expand(3, 8, 8)
    turned = []
    for red, green, blue in views(ViewRecipe(jitter=1, grayscale=0), colour)[:, :, 0, 0].tolist():
        hue = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)[0]
        turned.append((hue + 0.5) % 1 - 0.5)
    assert -0.12 < min(turned) < -0.08
    assert 0.08 < max(turned) < 0.12


def test_colour_is_lost_and_sharpness_too_as_often_as_published() -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=generator)
    grey = views(ViewRecipe(jitter=0, blur=0), noise)
    assert abs(float((grey[:, 0] == grey[:, 1]).flatten(1).all(dim=1).float().mean()) - 0.2) < 0.1
    blurred = views(ViewRecipe(jitter=0, grayscale=0), noise)
    # a sigma near .1 changes nothing: a tenth of the blurs
    assert abs(float((blurred != noise).flatten(1).any(dim=1).float().mean()) - 0.45) < 0.1
