"""The teacher: averaging by hand-worked numbers, and what it says in the student's frame."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from boxseg.config import ModelConfig
from boxseg.student import Student
from boxseg.train.teacher import Teacher
from boxseg.train.transforms import Batch

CONFIG = ModelConfig(
    classes=("a", "b"),
    category_ids=(1, 2),
    backbone="resnet18",
    fpn_channels=16,
    tower_channels=16,
    tower_depth=1,
    mask_branch_channels=8,
    mask_branch_depth=1,
)


def new_student(seed: int = 0) -> Student:
    torch.manual_seed(seed)
    return Student(CONFIG)


def fill(student: Student, value: float) -> None:
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(value)


def a_weight(student: Student) -> float:
    return float(student.head.controller.weight.detach()[0, 0, 0, 0])


def batch_of(height: int, width: int, sizes: list[list[int]]) -> Batch:
    count = len(sizes)
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator
    )
    return Batch(
        images=images,
        sizes=torch.tensor(sizes),
        original_sizes=torch.tensor(sizes),
        boxes=[torch.tensor([[4.0, 4.0, 40.0, 40.0]])] * count,
        labels=[torch.tensor([0])] * count,
        masks=None,
        depth=None,
        image_ids=tuple(range(count)),
        file_names=tuple(str(index) for index in range(count)),
    )


def test_the_first_update_copies_parameters_and_buffers() -> None:
    teacher = Teacher(new_student(0), momentum=0.9, ramp=False)
    other = new_student(1)
    other.backbone.stages[0][1].running_mean.fill_(7.0)  # type: ignore[index]
    assert teacher.updates == 0
    teacher.update(other)
    assert teacher.updates == 1
    for name, value in teacher.network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_later_updates_keep_the_momentum_of_the_old_average() -> None:
    student = new_student()
    teacher = Teacher(student, momentum=0.75, ramp=False)
    for value in (1.0, 5.0, 5.0):
        fill(student, value)
        teacher.update(student)
    assert a_weight(teacher.network) == pytest.approx(0.75 * (0.75 * 1 + 0.25 * 5) + 0.25 * 5)


def test_the_ramp_is_the_plain_mean_until_it_reaches_the_momentum() -> None:
    student = new_student()
    teacher = Teacher(student, momentum=0.75, ramp=True)
    seen = []
    for value in (1.0, 3.0, 8.0, 4.0, 14.0):
        fill(student, value)
        teacher.update(student)
        seen.append(a_weight(teacher.network))
    # means of 1; 1, 3; 1, 3, 8; 1, 3, 8, 4; from then on three quarters of the old average
    assert seen == pytest.approx([1.0, 2.0, 4.0, 4.0, 0.75 * 4 + 0.25 * 14])


def test_buffers_are_copied_and_not_averaged() -> None:
    student = new_student()
    teacher = Teacher(student, momentum=0.9, ramp=False)
    for value in (1.0, 2.0):
        student.backbone.stages[0][1].running_mean.fill_(value)  # type: ignore[index]
        teacher.update(student)
    assert teacher.network.backbone.stages[0][1].running_mean.tolist() == [2.0] * 64  # type: ignore[index]


def test_it_is_in_eval_mode_and_learns_nothing() -> None:
    student = new_student().train()
    teacher = Teacher(student, momentum=0.9, ramp=False)
    teacher.update(student)
    assert not any(module.training for module in teacher.network.modules())
    found = teacher.ask(batch_of(64, 64, [[64, 64]]), 0.5)
    assert not found.predictions.boxes.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_distance_is_relative_to_the_student() -> None:
    student = new_student()
    teacher = Teacher(student, momentum=0.5, ramp=False)
    fill(student, 2.0)
    teacher.update(student)
    assert teacher.distance(student) == 0
    fill(student, 4.0)
    assert teacher.distance(student) == pytest.approx(0.5)


def test_state_goes_round() -> None:
    student = new_student()
    first = Teacher(student, momentum=0.5, ramp=True)
    first.update(student)
    fill(student, 3.0)
    first.update(student)
    second = Teacher(new_student(5), momentum=0.5, ramp=True)
    second.load_state_dict(first.state_dict())
    assert second.updates == 2
    fill(student, 9.0)
    first.update(student)
    second.update(student)
    assert a_weight(first.network) == a_weight(second.network)


def test_masks_at_one_geometry_are_the_half_pixel_upsampling() -> None:
    teacher = Teacher(new_student(), momentum=0.5, ramp=False)
    batch = batch_of(64, 96, [[60, 90], [64, 96]])
    found = teacher.ask(batch, 0.0)
    image, location = torch.tensor([0, 0, 1]), torch.tensor([3, 20, 50])
    logits = found.teacher.masks_at(found.predictions, image, location)
    expected = F.interpolate(logits[:, None], scale_factor=2, mode="bilinear")[:, 0].sigmoid()
    assert found.masks_at(image, location).shape == (3, 16, 24)
    torch.testing.assert_close(found.masks_at(image, location), expected, rtol=0, atol=1e-5)


def test_no_chosen_prediction_gives_no_mask() -> None:
    teacher = Teacher(new_student(), momentum=0.5, ramp=False)
    found = teacher.ask(batch_of(64, 96, [[64, 96]]), 0.0)
    none = torch.zeros(0, dtype=torch.long)
    assert found.masks_at(none, none).shape == (0, 16, 24)


def test_a_larger_view_is_told_in_the_students_pixels() -> None:
    teacher = Teacher(new_student(), momentum=0.5, ramp=False, imgsz=(96, 192))
    batch = batch_of(64, 96, [[48, 96], [64, 64]])
    found = teacher.ask(batch, 0.0)
    # 48 x 96 becomes 96 x 192, 64 x 64 becomes 96 x 96
    assert found.zoom.tolist() == [[2.0, 2.0], [1.5, 1.5]]
    assert found.predictions.mask_features.shape[-2:] == (12, 24)
    assert found.boxes[0].amax(dim=0).tolist()[2] <= 96
    assert found.boxes[1].amax(dim=0).tolist()[3] <= 64
    inside = found.predictions.boxes[1] / 1.5
    torch.testing.assert_close(
        found.boxes[1], torch.minimum(inside.clamp(min=0), torch.tensor(64.0))
    )


def test_masks_of_a_larger_view_are_sampled_at_the_students_cells() -> None:
    teacher = Teacher(new_student(), momentum=0.5, ramp=False, imgsz=(128, 128))
    found = teacher.ask(batch_of(64, 64, [[64, 64]]), 0.0)
    image, location = torch.tensor([0]), torch.tensor([5])
    logits = found.teacher.masks_at(found.predictions, image, location)[0]  # 16 x 16 cells of 8 px
    # zoom 2: the student's stride-4 centres are the teacher's stride-8 centres
    torch.testing.assert_close(
        found.masks_at(image, location)[0], logits.sigmoid(), rtol=0, atol=1e-5
    )


def test_scores_are_the_root_of_class_times_quality() -> None:
    teacher = Teacher(new_student(), momentum=0.5, ramp=False)
    found = teacher.ask(batch_of(64, 64, [[64, 64]]), 0.0)
    klass = found.predictions.class_logits[0, 4, 1].sigmoid().item()
    quality = found.predictions.quality_logits[0, 4].sigmoid().item()
    assert found.scores[0, 4, 1].item() == pytest.approx((klass * quality) ** 0.5, abs=1e-6)


def test_scores_are_those_of_classes_alone_where_the_network_is_scored_so() -> None:
    student = Student(replace(CONFIG, score0="cls"))
    found = Teacher(student, momentum=0.5, ramp=False).ask(batch_of(64, 64, [[64, 64]]), 0.0)
    found.predictions.class_logits.fill_(-1.0986123)  # odds of 1 to 3
    found.predictions.quality_logits.fill_(-5.0)
    assert torch.allclose(found.scores, torch.tensor(0.25))
