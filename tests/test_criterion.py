"""Terms: what a recipe may list, and what the loss does on small cases."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from boxseg.config import ModelConfig
from boxseg.student import Student
from boxseg.train.criterion import (
    Criterion,
    DepthConsistencyTerm,
    PairwiseTerm,
    StepContext,
    build_criterion,
)
from boxseg.train.pseudo_masks import PseudoMasks, Semantic
from boxseg.train.teacher import Teacher
from boxseg.train.transforms import Batch

BOX_TERMS: dict[str, dict[str, Any]] = {
    name: {} for name in ("focal", "giou", "centerness", "projection")
}
ALL_TERMS: dict[str, dict[str, Any]] = {
    **BOX_TERMS,
    "pairwise": {"warmup_steps": 10, "bottom_pixels": 0},
}


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


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return Student(CONFIG)


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
    criterion = build_criterion(terms, CONFIG)
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


def test_the_order_of_the_terms_changes_no_gradient(student: Student) -> None:
    gradients = []
    for names in (list(ALL_TERMS), list(reversed(ALL_TERMS))):
        student.zero_grad()
        found = losses(student, {name: ALL_TERMS[name] for name in names}, batch_of(BOXES))
        torch.stack(list(found.values())).sum().backward()
        gradients.append([parameter.grad for parameter in student.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert first is not None
        assert second is not None
        torch.testing.assert_close(first, second)


def test_true_masks_are_asked_for_only_by_the_supervised_term(student: Student) -> None:
    batch = batch_of(BOXES)
    terms = {**BOX_TERMS, "mask_dice": {}}
    with pytest.raises(ValueError, match=r"terms\.mask_dice needs data with masks"):
        losses(student, terms, batch)
    masks = [torch.ones(len(rows), 16, 24) for rows in BOXES]
    assert 0 < losses(student, terms, batch_of(BOXES, masks))["mask_dice"].item() <= 1
    assert build_criterion(terms, CONFIG).needs_masks
    assert not build_criterion(ALL_TERMS, CONFIG).needs_masks


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
        found = build_criterion(PSEUDO_TERMS, CONFIG)(context)
        for name in ("pseudo_mask", "pseudo_affinity"):
            assert found[name].item() == 0
            assert found[name].requires_grad
    assert build_criterion(PSEUDO_TERMS, CONFIG).needs_teacher
    assert not build_criterion(ALL_TERMS, CONFIG).needs_teacher


def test_the_pseudo_mask_term_is_equation_1(student: Student) -> None:
    context = pseudo_context(student, [[0.0], [0.5, 0.25]])
    quality = {(0, 0): 0.0, (1, 0): 0.5, (1, 1): 0.25}
    assert context.pseudo is not None
    found = {
        target: build_criterion({"focal": {}, "pseudo_mask": {"target": target}}, CONFIG)(
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
        build_criterion(PSEUDO_TERMS, CONFIG)(replace(context, teacher_step=step))
        for step in (10, 5, 0)
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
    criterion = build_criterion(PSEUDO_TERMS, CONFIG)
    first = criterion(replace(context, pseudo=ignored))
    second = criterion(replace(context, pseudo=replace(ignored, masks=other)))
    plain = criterion(context)
    assert first["pseudo_mask"].item() == pytest.approx(second["pseudo_mask"].item())
    assert first["pseudo_mask"].item() != pytest.approx(plain["pseudo_mask"].item())
    assert first["pseudo_affinity"].item() != pytest.approx(plain["pseudo_affinity"].item())


def test_pseudo_terms_reach_masks_of_objects_with_quality_alone(student: Student) -> None:
    context = pseudo_context(student, [[0.0], [0.5, 0.0]])
    found = build_criterion(PSEUDO_TERMS, CONFIG)(context)
    logits = context.mask_logits
    for name in ("pseudo_mask", "pseudo_affinity"):
        (gradient,) = torch.autograd.grad(found[name], logits, retain_graph=True)
        touched = gradient.flatten(1).abs().sum(dim=1) > 0
        owners = context.assignment.object_index[context.chosen]
        assert touched.tolist() == ((context.mask_image_index == 1) & (owners == 0)).tolist()


DEPTH: dict[str, dict[str, Any]] = {
    "depth": {},
    "depth_consistency": {"start_steps": 20, "warmup_steps": 10},
}
DEPTH_RECIPE: dict[str, dict[str, Any]] = {"focal": {}, "projection": {}, **DEPTH}


def depth_step(
    student: Student,
    depth: torch.Tensor | None,
    terms: dict[str, dict[str, Any]] = DEPTH_RECIPE,
    step: int = 30,
    boxes: list[list[list[float]]] = BOXES,
    height: int = 64,
) -> tuple[Criterion, StepContext, dict[str, torch.Tensor]]:
    """Criterion with a seeded head, its context and its losses; content `height` of 64 rows."""
    batch = replace(batch_of(boxes), depth=depth, sizes=torch.tensor([[height, 96]] * 2))
    torch.manual_seed(5)
    criterion = build_criterion(terms, CONFIG)
    context = StepContext(
        student, student(batch.images), batch, step, depth_head=criterion.depth_head
    )
    return criterion, context, criterion(context)


def test_guidance_by_depth_grows_over_its_warm_up() -> None:
    eased = build_criterion({"focal": {}, "depth": {"warmup_steps": 40}}, CONFIG)
    assert [eased.guidance(step) for step in (0, 10, 40, 90)] == [0.0, 0.25, 1.0, 1.0]
    assert build_criterion({"focal": {}, "depth": {}}, CONFIG).guidance(0) == 1.0
    assert build_criterion({"focal": {}}, CONFIG).guidance(0) == 1.0


def test_masks_take_the_share_of_guidance_of_the_step(student: Student) -> None:
    _, context, _ = depth_step(student, torch.zeros(2, 16, 24))
    plain = replace(context, guidance=0.0)
    assert torch.equal(plain.mask_logits, plain.guided_masks.plain)
    assert not torch.allclose(context.mask_logits, plain.mask_logits)


def test_only_the_depth_term_brings_a_depth_head_and_its_weights_are_the_criterions(
    student: Student,
) -> None:
    both = build_criterion(DEPTH_RECIPE, CONFIG)
    names = ["depth_head.controller.weight", "depth_head.controller.bias"]
    assert list(both.state_dict()) == [name for name, _ in both.named_parameters()] == names
    assert both.state_dict()[names[0]].shape == (9, 16, 3, 3)
    assert both.needs_depth
    alone = build_criterion({"focal": {}, "depth_consistency": {}}, CONFIG)
    assert alone.needs_depth
    assert alone.depth_head is None
    assert not build_criterion(ALL_TERMS, CONFIG).needs_depth


def test_the_depth_term_is_the_mean_over_the_cells_of_each_box(student: Student) -> None:
    # depth 51 in the left half of the first image, 255 elsewhere: targets 0.2 and 1
    depth = torch.full((2, 16, 24), 255.0)
    depth[0, :, :12] = 51
    # rows 40 and below are padding, centres of rows 0..9 lie in the content; what is there is junk
    depth[:, 10:] = -1e6
    _, context, found = depth_step(student, depth, height=40)
    expected = 0.0
    for k, image in enumerate(context.mask_image_index.tolist()):
        x1, y1, x2, y2 = context.object_boxes[k].tolist()
        errors = [
            (context.guided_masks.depth[k, i, j].item() - (0.2 if image == 0 and j < 12 else 1))
            ** 2
            for i in range(10)
            for j in range(24)
            if x1 <= 4 * j + 2 < x2 and y1 <= 4 * i + 2 < y2
        ]
        expected += sum(errors) / len(errors)
    assert len(context.chosen) > 3
    assert found["depth"].item() == pytest.approx(expected / len(context.chosen), rel=1e-5)


def test_all_mask_terms_train_on_the_guided_masks(student: Student) -> None:
    student.eval()
    _, guided, found = depth_step(student, torch.zeros(2, 16, 24))
    _, plain, without = depth_step(student, None, {"focal": {}, "projection": {}})
    student.train()
    torch.testing.assert_close(guided.guided_masks.plain, plain.mask_logits)
    factor = 0.05 + 0.95 * guided.guided_masks.depth
    torch.testing.assert_close(guided.mask_logits, plain.mask_logits * factor)
    assert found["projection"].item() != pytest.approx(without["projection"].item(), rel=1e-3)
    inside = guided.box_masks > 0
    largest = guided.diagnostics["depth_logit_max"]
    assert largest.item() == plain.mask_logits[inside].abs().max().item()
    assert not largest.requires_grad


def test_depth_edges_decide_which_neighbours_are_consistent(student: Student) -> None:
    # equal depth: every pair passes. Columns of period 4, two of depth 0 and two of depth 9: a cell
    # differs from those two columns away, not from those in its own: 2 of 8 neighbours pass
    terms: dict[str, dict[str, Any]] = {"focal": {}, "depth_consistency": {"start_steps": 0}}
    terms["depth_consistency"]["warmup_steps"] = 0
    boxes = [[[16.0, 16.0, 48.0, 48.0]], [[20.0, 20.0, 60.0, 44.0]]]  # no neighbour beyond a border
    stripes = torch.tensor([0.0, 0, 9, 9]).repeat(6).expand(2, 16, 24)
    found = {}
    for name, depth in (("flat", torch.full((2, 16, 24), 7.0)), ("stripes", stripes)):
        _, context, losses = depth_step(student, depth, terms, boxes=boxes)
        found[name] = context.diagnostics["depth_edge_share"].item()
        steps = [(dy, dx) for dy in (-2, 0, 2) for dx in (-2, 0, 2) if dy or dx]
        steps = [step for step in steps if name == "flat" or step[1] == 0]
        total, pairs = 0.0, 0
        p = context.mask_logits.detach().double().sigmoid()
        for k, i, j in context.box_masks.nonzero().tolist():
            for dy, dx in steps:
                a, b = p[k, i, j], p[k, i + dy, j + dx]
                total -= torch.log(a * b + (1 - a) * (1 - b)).item()
                pairs += 1
        assert losses["depth_consistency"].item() == pytest.approx(total / pairs, rel=1e-4)
    assert found == {"flat": 1.0, "stripes": 0.25}


def test_depth_consistency_starts_and_warms_up_by_steps(student: Student) -> None:
    student.eval()
    values = {}
    for step in (0, 20, 25, 30, 1000):
        _, context, found = depth_step(student, torch.zeros(2, 16, 24), step=step)
        values[step] = found["depth_consistency"].item()
        assert context.diagnostics["depth_edge_share"].item() == 1
    student.train()
    assert values[0] == values[20] == 0
    assert values[25] == pytest.approx(values[30] / 2)
    assert values[30] == values[1000] > 0
    term = DepthConsistencyTerm(start_steps=3, warmup_steps=0)
    assert [term.warm_up(step) for step in (2, 3)] == [0, 1]


def test_depth_terms_reach_the_depth_head_and_the_student(student: Student) -> None:
    for name in DEPTH:
        criterion, _, found = depth_step(student, torch.rand(2, 16, 24) * 2)
        student.zero_grad()
        found[name].backward()
        learning = [*criterion.parameters(), *student.mask_branch.parameters()]
        learning += list(student.head.box_tower.parameters())
        assert all(value.grad is not None and value.grad.any() for value in learning)
        assert not any(value.grad is not None for value in student.head.class_tower.parameters())


def test_a_batch_without_boxes_touches_the_depth_head_too(student: Student) -> None:
    criterion, context, found = depth_step(student, torch.rand(2, 16, 24), boxes=[[], []])
    for name in DEPTH:
        assert found[name].item() == 0
        (gradient,) = torch.autograd.grad(
            found[name], [criterion.get_parameter("depth_head.controller.bias")], retain_graph=True
        )
        assert not gradient.any()
    assert context.diagnostics["depth_logit_max"].item() == 0
    assert context.diagnostics["depth_edge_share"].item() == 1  # all depths lie in [0, 1]


@pytest.mark.parametrize("name", list(DEPTH))
def test_data_without_depth_is_refused_by_the_depth_terms(student: Student, name: str) -> None:
    with pytest.raises(ValueError, match=f"terms.{name} needs data with depth maps"):
        depth_step(student, None, {"focal": {}, name: {}})


SEMANTIC_TERMS: dict[str, dict[str, Any]] = {
    "focal": {},
    "semantic_mask": {},
    "semantic_focal": {"warmup_steps": 0},
    "pasted_mask": {},
}


def test_the_semantic_terms_are_means_over_the_masks_that_have_a_target(student: Student) -> None:
    context = pseudo_context(student, [[0.0], [0.5, 0.25]])
    assert context.pseudo is not None
    counted = [torch.ones(len(rows), 16, 24, dtype=torch.bool) for rows in BOXES]
    for each in counted:
        each[:, :, 20:] = False
    pasted = [torch.tensor([True]), torch.tensor([False, True])]
    pseudo = replace(context.pseudo, counted=counted, pasted=pasted)
    found = build_criterion(SEMANTIC_TERMS, CONFIG)(replace(context, pseudo=pseudo))
    owners = context.assignment.object_index[context.chosen].tolist()
    sums = {"semantic_mask": [0.0, 0], "semantic_focal": [0.0, 0], "pasted_mask": [0.0, 0]}
    for k, image in enumerate(context.mask_image_index.tolist()):
        if image == 0:
            continue  # quality 0
        p = context.mask_logits[k].detach().double().sigmoid()[:, :20]
        t = (context.pseudo.masks[1][owners[k]][:, :20] > 0.5).double()
        entropy = -(t * p.log() + (1 - t) * (1 - p).log())
        both = entropy.mean() + 1 - 2 * (p * t).sum() / (p * p + t * t).sum()
        focal = (t * 0.25 * (1 - p) ** 2 + (1 - t) * 0.75 * p**2) * entropy
        values = {"semantic_mask": both, "semantic_focal": focal.mean(), "pasted_mask": both}
        for name, value in values.items():
            if name != "pasted_mask" or owners[k] == 1:
                sums[name][0] += value.item()
                sums[name][1] += 1
    weights = {"semantic_mask": 0.5, "semantic_focal": 0.3, "pasted_mask": 1.0}
    assert sums["semantic_mask"][1] > sums["pasted_mask"][1] > 0
    for name, (total, count) in sums.items():
        assert found[name].item() == pytest.approx(weights[name] * total / count, rel=1e-4)


def test_the_semantic_terms_are_zero_without_a_target(student: Student) -> None:
    none = pseudo_context(student, [[0.0], [0.0, 0.0]])
    for context in (none, replace(none, pseudo=None)):
        found = build_criterion(SEMANTIC_TERMS, CONFIG)(context)
        for name in ("semantic_mask", "semantic_focal", "pasted_mask"):
            assert found[name].item() == 0
            assert found[name].requires_grad
    # nothing was pasted
    unpasted = build_criterion(SEMANTIC_TERMS, CONFIG)(
        pseudo_context(student, [[0.5], [0.5, 0.25]])
    )
    assert unpasted["pasted_mask"].item() == 0
    assert unpasted["semantic_mask"].item() > 0
    assert build_criterion({"focal": {}, "pasted_mask": {}}, CONFIG).needs_teacher


def test_the_released_semantic_term_grows_over_the_whole_schedule(student: Student) -> None:
    context = replace(pseudo_context(student, [[0.5], [0.5, 0.25]]), teacher_step=27000)
    terms: dict[str, dict[str, Any]] = {"focal": {}, "semantic_focal": {}}
    full = build_criterion(SEMANTIC_TERMS, CONFIG)(context)["semantic_focal"]
    torch.testing.assert_close(
        build_criterion(terms, CONFIG)(context)["semantic_focal"], 0.1 * full
    )


def test_sims_masks_teach_the_student_and_nobody_else(student: Student) -> None:
    batch = batch_of(BOXES)
    teacher = Teacher(student, momentum=0.9, ramp=False)
    maker = Semantic(low=0.0, high=0.0)
    pseudo = maker(teacher.ask(batch, 0.5))
    assert [len(quality) for quality in pseudo.quality] == [1, 2]
    context = StepContext(student, student(batch.images), batch, 0, pseudo=pseudo, teacher_step=1)
    pseudo = replace(pseudo, quality=[torch.ones_like(each) for each in pseudo.quality])
    loss = build_criterion({"focal": {}, "semantic_mask": {}}, CONFIG)(
        replace(context, pseudo=pseudo)
    )
    student.zero_grad()
    loss["semantic_mask"].backward()
    touched = {name for name, value in student.named_parameters() if value.grad is not None}
    assert {"head.controller.weight", "mask_branch.project.weight"} <= touched
    assert not any("class" in name for name in touched)
    assert all(value.grad is None for value in teacher.network.parameters())
    state = [*maker.state_dict().values(), *pseudo.masks, *pseudo.quality, *pseudo.confidence]
    assert not any(value.requires_grad for value in state)
    assert maker.state_dict()["seen"].sum() > 0
    student.zero_grad()


def test_every_rank_averages_equally_often_with_and_without_positives(student: Student) -> None:
    counts: list[tuple[int, list[str]]] = []
    nothing: list[list[list[float]]] = [[], []]
    for boxes in (BOXES, nothing):
        calls: list[float] = []

        def mean(value: torch.Tensor, calls: list[float] = calls) -> torch.Tensor:
            calls.append(value.item())
            return value

        batch = batch_of(boxes)
        masks = [torch.ones(len(rows), 16, 24) for rows in boxes]
        batch = replace(batch, masks=masks, depth=torch.zeros(2, 16, 24))
        pseudo = pseudo_of(batch, [[1.0] * len(rows) for rows in boxes])
        terms = {**ALL_TERMS, **PSEUDO_TERMS, **SEMANTIC_TERMS, **DEPTH, "mask_dice": {}}
        criterion = build_criterion(terms, CONFIG)
        context = StepContext(
            student,
            student(batch.images),
            batch,
            5,
            mean,
            pseudo=pseudo,
            teacher_step=5,
            depth_head=criterion.depth_head,
        )
        assert all(value.requires_grad for value in criterion(context).values())
        counts.append((len(calls), sorted(context.diagnostics)))
    assert counts[0] == counts[1]
    assert counts[0][0] > 0
    assert counts[0][1] == ["depth_edge_share", "depth_logit_max"]


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
            {"focal": {}, "depth": {"form": "sum"}},
            "terms.depth.form must be contract or paper, got 'sum'",
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
        build_criterion(terms, CONFIG)


def test_pairs_of_like_colour_need_like_depth_where_the_recipe_says_so(student: Student) -> None:
    # one colour everywhere, so that colour passes all pairs inside the grid of 16 x 24 cells
    batch = batch_of(BOXES)
    plain = replace(batch, images=torch.full_like(batch.images, 90))
    # depth steps by 9 grey levels between columns 11 and 12, by 10 between rows 7 and 8
    depth = torch.zeros(2, 16, 24)
    depth[:, :, 12:] += 9
    depth[:, 8:] += 10
    context = StepContext(student, student(plain.images), replace(plain, depth=depth), 100)
    built = build_criterion(
        {"focal": {}, "pairwise": {"bottom_pixels": 0, "depth_threshold": 0.01}}, CONFIG
    )
    assert built.needs_depth
    term = built.terms["pairwise"]
    assert isinstance(term, PairwiseTerm)
    edges = term.edges(context)[0]  # (4, B, 16, 24): right; below left, below, below right
    right, below = edges[0, 0], edges[2, 0]
    # exp(-4.5) is .011 and exp(-5) .0067; neighbours lie two cells apart
    assert right[:, :22].all()
    assert below[:6].all()
    assert not below[6:8].any()
    assert below[8:14].all()
    # both steps at once are 19 levels
    assert not edges[3, 0, 6:8, 10:12].any()
    without = PairwiseTerm(bottom_pixels=0).edges(context)[0]
    assert without[2, 0, 6:8].all()


def test_pairs_of_like_depth_need_depth_maps(student: Student) -> None:
    terms: dict[str, Any] = {"focal": {}, "pairwise": {"depth_threshold": 0.01}}
    with pytest.raises(ValueError, match=r"terms\.pairwise needs data with depth maps"):
        losses(student, terms, batch_of(BOXES))
    assert not build_criterion({"focal": {}, "pairwise": {}}, CONFIG).needs_depth
