"""Terms: what a recipe may list, and what the loss does on small cases."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from boxseg.config import ModelConfig
from boxseg.student import Student
from boxseg.train.criterion import StepContext, build_criterion
from boxseg.train.pseudo_masks import PseudoMasks
from boxseg.train.transforms import Batch

BOX_TERMS: dict[str, dict[str, Any]] = {
    name: {} for name in ("focal", "giou", "centerness", "projection")
}
ALL_TERMS: dict[str, dict[str, Any]] = {
    **BOX_TERMS,
    "pairwise": {"warmup_steps": 10, "bottom_pixels": 0},
}


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return Student(
        ModelConfig(
            classes=("a", "b"),
            category_ids=(1, 2),
            backbone="resnet18",
            fpn_channels=16,
            tower_channels=16,
            tower_depth=1,
            mask_branch_channels=8,
            mask_branch_depth=1,
        )
    )


def batch_of(boxes: list[list[list[float]]], masks: list[torch.Tensor] | None = None) -> Batch:
    count = len(boxes)
    generator = torch.Generator().manual_seed(1)
    return Batch(
        images=torch.randint(0, 256, (count, 3, 64, 96), dtype=torch.uint8, generator=generator),
        sizes=torch.tensor([[64, 96]] * count),
        original_sizes=torch.tensor([[64, 96]] * count),
        boxes=[torch.tensor(rows, dtype=torch.float32).view(-1, 4) for rows in boxes],
        labels=[torch.arange(len(rows)) % 2 for rows in boxes],
        masks=masks,
        depth=None,
        image_ids=tuple(range(count)),
        file_names=tuple(str(index) for index in range(count)),
    )


BOXES: list[list[list[float]]] = [[[8, 8, 56, 40]], [[0, 0, 30, 30], [40, 10, 90, 60]]]


def losses(
    student: Student, terms: dict[str, Any], batch: Batch, step: int = 100
) -> dict[str, torch.Tensor]:
    predictions = student(batch.images)
    criterion = build_criterion(terms)
    found: dict[str, torch.Tensor] = criterion(StepContext(student, predictions, batch, step))
    return found


def test_every_listed_term_is_a_finite_positive_scalar(student: Student) -> None:
    found = losses(student, ALL_TERMS, batch_of(BOXES))
    assert list(found) == list(ALL_TERMS)
    assert all(value.shape == () and value.item() > 0 for value in found.values())


def test_a_batch_without_boxes_touches_every_parameter(student: Student) -> None:
    found = losses(student, ALL_TERMS, batch_of([[], []]))
    student.zero_grad()
    torch.stack(list(found.values())).sum().backward()
    missing = [name for name, value in student.named_parameters() if value.grad is None]
    assert missing == []
    assert found["giou"].item() == found["projection"].item() == found["pairwise"].item() == 0


def test_weights_scale_and_the_pairwise_term_warms_up_by_steps(student: Student) -> None:
    batch = batch_of(BOXES)
    student.eval()
    full = losses(student, ALL_TERMS, batch, step=10)
    half = losses(student, ALL_TERMS, batch, step=5)
    double = losses(student, {**ALL_TERMS, "giou": {"weight": 2}}, batch, step=0)
    student.train()
    torch.testing.assert_close(half["pairwise"], full["pairwise"] / 2)
    torch.testing.assert_close(double["giou"], 2 * full["giou"])
    assert double["pairwise"].item() == 0


def test_the_loss_does_not_depend_on_the_order_of_the_boxes(student: Student) -> None:
    student.eval()
    first = losses(student, BOX_TERMS, batch_of([[[0, 0, 30, 30], [40, 10, 90, 60]]]))
    turned = batch_of([[[40, 10, 90, 60], [0, 0, 30, 30]]])
    turned.labels[0] = torch.tensor([1, 0])
    second = losses(student, BOX_TERMS, turned)
    student.train()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name])


def test_true_masks_are_asked_for_only_by_the_supervised_term(student: Student) -> None:
    batch = batch_of(BOXES)
    terms = {**BOX_TERMS, "mask_dice": {}}
    with pytest.raises(ValueError, match=r"terms\.mask_dice needs data with masks"):
        losses(student, terms, batch)
    masks = [torch.ones(len(rows), 16, 24) for rows in BOXES]
    assert 0 < losses(student, terms, batch_of(BOXES, masks))["mask_dice"].item() <= 1
    assert build_criterion(terms).needs_masks
    assert not build_criterion(ALL_TERMS).needs_masks


def test_masks_reach_the_positives_of_their_own_object(student: Student) -> None:
    # two objects in the second image with distinct masks; the first image has one
    masks = [torch.full((len(rows), 16, 24), 0.0) for rows in BOXES]
    masks[0][0] += 1
    masks[1][0] += 2
    masks[1][1] += 3
    batch = batch_of(BOXES, masks)
    context = StepContext(student, student(batch.images), batch, 0)
    values = context.of_objects(masks)[:, 0, 0]
    boxes = context.object_boxes
    expected = {8.0: 1.0, 0.0: 2.0, 40.0: 3.0}
    assert len(values) > 3
    assert values.tolist() == [expected[box[0].item()] for box in boxes]


PSEUDO_TERMS: dict[str, dict[str, Any]] = {
    "focal": {},
    "pseudo_mask": {"warmup_steps": 10},
    "pseudo_affinity": {"warmup_steps": 10, "bottom_pixels": 0},
}


def pseudo_of(batch: Batch, quality: list[list[float]]) -> PseudoMasks:
    """Left half of each box as its mask, of probability 0.8."""
    masks = []
    for boxes in batch.boxes:
        image = torch.zeros(len(boxes), 16, 24)
        for row, (x1, y1, x2, y2) in enumerate((boxes / 4).round().int().tolist()):
            image[row, y1:y2, x1 : (x1 + x2) // 2] = 0.8
        masks.append(image)
    numbers = [torch.tensor(each, dtype=torch.float32) for each in quality]
    return PseudoMasks(masks=masks, quality=numbers, confidence=numbers)


def pseudo_context(
    student: Student, quality: list[list[float]], teacher_step: int = 10
) -> StepContext:
    batch = batch_of(BOXES)
    return StepContext(
        student,
        student(batch.images),
        batch,
        0,
        pseudo=pseudo_of(batch, quality),
        teacher_step=teacher_step,
    )


def test_pseudo_terms_are_zero_without_a_teacher_or_without_quality(student: Student) -> None:
    none = pseudo_context(student, [[0.0], [0.0, 0.0]])
    for context in (none, replace(none, pseudo=None)):
        found = build_criterion(PSEUDO_TERMS)(context)
        for name in ("pseudo_mask", "pseudo_affinity"):
            assert found[name].item() == 0
            assert found[name].requires_grad
    assert build_criterion(PSEUDO_TERMS).needs_teacher
    assert not build_criterion(ALL_TERMS).needs_teacher


def test_the_pseudo_mask_term_is_equation_1(student: Student) -> None:
    context = pseudo_context(student, [[0.0], [0.5, 0.25]])
    quality = {(0, 0): 0.0, (1, 0): 0.5, (1, 1): 0.25}
    assert context.pseudo is not None
    found = {
        target: build_criterion({"focal": {}, "pseudo_mask": {"target": target}})(
            replace(context, teacher_step=10000)
        )["pseudo_mask"].item()
        for target in ("hard", "soft")
    }
    for target, expected_of in (("hard", torch.ceil), ("soft", torch.clone)):
        total, count = 0.0, 0
        owners = context.assignment.object_index[context.chosen].tolist()
        for k, image in enumerate(context.mask_image_index.tolist()):
            s = quality[image, owners[k]]
            x = context.mask_logits[k].detach().double().sigmoid()
            t = expected_of(context.pseudo.masks[image][owners[k]]).double()
            total += s * (1 - 2 * (x * t).sum() / (x * x + t * t).sum()).item()
            count += s > 0
        assert count > 1
        assert found[target] == pytest.approx(0.5 * total / count, rel=1e-4)
    assert found["hard"] != pytest.approx(found["soft"], rel=1e-3)


def test_pseudo_terms_warm_up_with_the_steps_of_the_teacher(student: Student) -> None:
    context = pseudo_context(student, [[0.3], [0.5, 0.25]])
    full, half, start = (
        build_criterion(PSEUDO_TERMS)(replace(context, teacher_step=step)) for step in (10, 5, 0)
    )
    for name in ("pseudo_mask", "pseudo_affinity"):
        assert full[name].item() > 0
        torch.testing.assert_close(half[name], full[name] / 2)
        assert start[name].item() == 0


def test_cells_that_do_not_count_change_nothing(student: Student) -> None:
    context = pseudo_context(student, [[0.3], [0.5, 0.25]])
    assert context.pseudo is not None
    counted = [torch.ones(len(rows), 16, 24, dtype=torch.bool) for rows in BOXES]
    for each in counted:
        each[:, :, 12:] = False
    ignored = replace(context.pseudo, counted=counted)
    other = [mask.clone() for mask in context.pseudo.masks]
    for mask in other:
        mask[:, :, 12:] = 1 - mask[:, :, 12:]
    criterion = build_criterion(PSEUDO_TERMS)
    first = criterion(replace(context, pseudo=ignored))
    second = criterion(replace(context, pseudo=replace(ignored, masks=other)))
    plain = criterion(context)
    assert first["pseudo_mask"].item() == pytest.approx(second["pseudo_mask"].item())
    assert first["pseudo_mask"].item() != pytest.approx(plain["pseudo_mask"].item())
    assert first["pseudo_affinity"].item() != pytest.approx(plain["pseudo_affinity"].item())


def test_pseudo_terms_reach_masks_of_objects_with_quality_alone(student: Student) -> None:
    context = pseudo_context(student, [[0.0], [0.5, 0.0]])
    found = build_criterion(PSEUDO_TERMS)(context)
    logits = context.mask_logits
    for name in ("pseudo_mask", "pseudo_affinity"):
        (gradient,) = torch.autograd.grad(found[name], logits, retain_graph=True)
        touched = gradient.flatten(1).abs().sum(dim=1) > 0
        owners = context.assignment.object_index[context.chosen]
        assert touched.tolist() == ((context.mask_image_index == 1) & (owners == 0)).tolist()


def test_every_rank_averages_equally_often_with_and_without_positives(student: Student) -> None:
    counts = []
    for boxes in (BOXES, [[], []]):
        calls: list[float] = []

        def mean(value: torch.Tensor, calls: list[float] = calls) -> torch.Tensor:
            calls.append(value.item())
            return value

        batch = batch_of(boxes)
        batch = replace(batch, masks=[torch.ones(len(rows), 16, 24) for rows in boxes])
        pseudo = pseudo_of(batch, [[1.0] * len(rows) for rows in boxes])
        context = StepContext(
            student, student(batch.images), batch, 5, mean, pseudo=pseudo, teacher_step=5
        )
        terms = {**ALL_TERMS, **PSEUDO_TERMS, "mask_dice": {}}
        assert all(value.requires_grad for value in build_criterion(terms)(context).values())
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "terms is empty"),
        ({"giou": {}}, "terms must list focal or varifocal, exactly one"),
        ({"focal": {}, "varifocal": {}}, "exactly one"),
        ({"focal": {}, "dice": {}}, "terms.dice is unknown; known terms: focal"),
        ({"focal": {"alfa": 1}}, "terms.focal.alfa is unknown; known options: weight"),
        ({"focal": {"alpha": -1}}, "terms.focal.alpha must be a number of at least 0, got -1"),
        ({"focal": {"alpha": "x"}}, "terms.focal.alpha must be a number of at least 0, got 'x'"),
        (
            {"focal": {}, "pairwise": {"warmup_steps": 1.5}},
            "terms.pairwise.warmup_steps must be a whole number, got 1.5",
        ),
        (
            {"focal": {}, "pseudo_mask": {"target": "firm"}},
            "terms.pseudo_mask.target must be hard or soft, got 'firm'",
        ),
        (
            {"focal": {}, "pseudo_mask": {"target": 1}},
            "terms.pseudo_mask.target must be hard or soft, got 1",
        ),
        (
            {"focal": {}, "pseudo_affinity": {"threshold": 1.5}},
            "terms.pseudo_affinity.threshold must be a number in [0, 1], got 1.5",
        ),
        (
            {"focal": {}, "pseudo_mask": {"weight": float("nan")}},
            "terms.pseudo_mask.weight must be a number of at least 0, got nan",
        ),
        (
            {"focal": {}, "pseudo_mask": {"weight": True}},
            "terms.pseudo_mask.weight must be a number of at least 0, got True",
        ),
    ],
)
def test_a_wrong_term_is_refused_with_its_path(terms: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_criterion(terms)
