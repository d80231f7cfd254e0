"""Pseudo masks: every formula by hand-worked numbers, the fusion against loops."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from boxseg.boxes import rasterise
from boxseg.config import ModelConfig
from boxseg.student import Student
from boxseg.train import pseudo_masks
from boxseg.train.criterion import StepContext, build_criterion
from boxseg.train.pseudo_masks import (
    PseudoMaskMaker,
    PseudoMasks,
    QualityAware,
    adaptive_count,
    build_pseudo_masks,
    foreground_mean,
)
from boxseg.train.teacher import Teacher, TeacherPredictions
from boxseg.train.transforms import Batch

HEIGHT, WIDTH = 64, 96  # pixels; the grid is 16 x 24
NAMES = ("quality_aware", "box_teacher", "depth_matched")


@dataclass
class GivenTeacher:
    """A teacher whose answers a test writes down."""

    batch: Batch
    boxes: Tensor
    """(B, L, 4)."""
    scores: Tensor
    """(B, L, C)."""
    masks: Tensor
    """(B, L, h, w)."""
    progress: float = 0.0
    most_at_once: int = 0

    def masks_at(self, image_index: Tensor, location_index: Tensor) -> Tensor:
        assert image_index.tolist() == sorted(image_index.tolist())
        self.most_at_once = max(self.most_at_once, len(image_index))
        return self.masks[image_index, location_index].clone()


def ask(method: PseudoMaskMaker, teacher: GivenTeacher) -> PseudoMasks:
    return method(cast(TeacherPredictions, teacher))


def batch_of(boxes: list[list[list[float]]], labels: list[list[int]] | None = None) -> Batch:
    count = len(boxes)
    classes = labels or [[0] * len(rows) for rows in boxes]
    return Batch(
        images=torch.zeros((count, 3, HEIGHT, WIDTH), dtype=torch.uint8),
        sizes=torch.tensor([[HEIGHT, WIDTH]] * count),
        original_sizes=torch.tensor([[HEIGHT, WIDTH]] * count),
        boxes=[torch.tensor(rows, dtype=torch.float32).view(-1, 4) for rows in boxes],
        labels=[torch.tensor(rows, dtype=torch.long) for rows in classes],
        masks=None,
        depth=None,
        image_ids=tuple(range(count)),
        file_names=tuple(str(index) for index in range(count)),
    )


def flat(values: list[float]) -> Tensor:
    """Masks of one value each, one image."""
    return torch.tensor(values)[None, :, None, None].repeat(1, 1, HEIGHT // 4, WIDTH // 4)


def one_image(
    predicted: list[list[float]],
    scores: list[list[float]],
    masks: Tensor,
    boxes: list[list[float]],
    labels: list[int] | None = None,
) -> GivenTeacher:
    return GivenTeacher(
        batch=batch_of([boxes], None if labels is None else [labels]),
        boxes=torch.tensor([predicted]),
        scores=torch.tensor([scores]),
        masks=masks,
    )


OBJECT = [0.0, 0.0, 40.0, 40.0]


# ---------------------------------------------------------------------------------------------
# Equation 4


@pytest.mark.parametrize(
    ("area", "count"),
    [
        (1.0, 2),
        (1024.0, 2),
        (1535.0, 2),  # 2 + 8 * 511 / 8192 = 2.499
        (1536.0, 3),  # 2 + 8 * 512 / 8192 = 2.5
        (5120.0, 6),  # half way
        (8703.0, 9),  # 10 - 8 * 513 / 8192 = 9.499
        (8704.0, 10),
        (9216.0, 10),
        (1e6, 10),
    ],
)
def test_adaptive_count_grows_from_2_to_10_with_the_area(area: float, count: int) -> None:
    assert adaptive_count(torch.tensor([area])).tolist() == [count]


def test_the_area_counts_in_pixels_of_the_original_image() -> None:
    # 40 x 40 in the student's pixels; the original is 2 times as high and 1.5 times as wide:
    # 4800 pixels, K = floor(2 + 8 * 3776 / 8192 + .5) = floor(6.1875) = 6. In the first row
    # mask k covers cell k.
    masks = torch.zeros(1, 9, 16, 24)
    masks[:, :, 5] = 1
    for number in range(9):
        masks[0, number, 0, number] = 1
    teacher = one_image([OBJECT] * 9, [[0.9]] * 9, masks, [OBJECT])
    teacher.batch = replace(teacher.batch, original_sizes=torch.tensor([[128, 144]]))
    found = ask(QualityAware(fusion="mean"), teacher)
    assert (found.masks[0][0, 0] > 0).sum().item() == 6


# ---------------------------------------------------------------------------------------------
# Quality-aware module


def three_predictions() -> GivenTeacher:
    """IoU 1, 1/2 and 3/4; the third scores less than 0.1."""
    return one_image(
        [OBJECT, [0.0, 0.0, 40.0, 20.0], [0.0, 0.0, 40.0, 30.0]],
        [[0.64, 0.1], [0.5, 0.9], [0.05, 0.0]],
        flat([0.9, 0.3, 1.0]),
        [OBJECT],
    )


def test_fusion_is_equation_2_and_quality_equation_5() -> None:
    # q = sqrt(.64 * 1) = .8 and sqrt(.5 * .5) = .5; M = (.8 * .9 + .5 * .3) / 1.3 = .87 / 1.3
    # mean score (.64 + .5) / 2 = .57; every cell of the box is above .5, so their mean is M
    found = ask(QualityAware(), three_predictions())
    fused = 0.87 / 1.3
    expected = torch.zeros(16, 24)
    expected[:10, :10] = fused
    torch.testing.assert_close(found.masks[0][0], expected)
    assert found.confidence[0].item() == pytest.approx(0.57)
    assert found.quality[0].item() == pytest.approx(math.sqrt(0.57 * fused))


@pytest.mark.parametrize(
    ("fusion", "value"),
    [("best", 0.9), ("mean", 0.6), ("vote", 0.0)],  # one of two votes is no majority
)
def test_other_fusions_are_known_by_hand(fusion: Any, value: float) -> None:
    found = ask(QualityAware(fusion=fusion, quality="one"), three_predictions())
    assert found.masks[0][0, 0, 0].item() == pytest.approx(value)
    assert found.quality[0].item() == (1.0 if value else 0.0)
    assert found.confidence[0].item() == pytest.approx(0.57 if value else 0.0)


def test_the_released_class_check_drops_other_classes_and_loose_boxes() -> None:
    # the second predicts class 1 better; the third, now of a good score, overlaps by .75
    teacher = three_predictions()
    teacher.scores[0, 2] = torch.tensor([0.4, 0.0])
    found = ask(QualityAware(fusion="mean", quality="one", class_check=True), teacher)
    assert found.masks[0][0, 0, 0].item() == pytest.approx((0.9 + 1.0) / 2)
    teacher.boxes[0, 2, 3] = 20  # IoU is exactly one half, which is not above it
    found = ask(QualityAware(fusion="mean", quality="one", class_check=True), teacher)
    assert found.masks[0][0, 0, 0].item() == pytest.approx(0.9)


def test_the_released_quality_is_known_by_hand() -> None:
    # Masks over 8, 8 and 4 cells: two of the three agree on 8 cells, which is the fused mask.
    masks = torch.zeros(1, 3, 16, 24)
    masks[0, 0, :2, :4] = 0.8
    masks[0, 1, :2, :4] = 0.6
    masks[0, 2, :2, 2:4] = 0.9
    masks[0, 2, :2, 5:6] = 0.9
    teacher = one_image([OBJECT] * 3, [[0.8], [0.6], [0.4]], masks, [OBJECT])
    found = ask(QualityAware(candidates=3, fusion="vote", quality="consensus"), teacher)
    # IoU 1, 1 and 4 / 10; mass / area .8, .6 and 6 * .9 / 8 = .675
    expected = (math.sqrt(0.9 * 0.8) + math.sqrt(0.8 * 0.6) + math.sqrt(0.7 * 0.4 * 0.675)) / 3
    assert found.quality[0].item() == pytest.approx(expected)
    assert found.masks[0][0].sum().item() == 8


def test_no_candidate_above_the_score_threshold_means_no_mask() -> None:
    teacher = three_predictions()
    teacher.scores[:] = 0.09
    for method in (QualityAware(), QualityAware(quality="one"), QualityAware(candidates=2)):
        found = ask(method, teacher)
        assert found.quality[0].tolist() == found.confidence[0].tolist() == [0.0]
        assert not found.masks[0].any()


def test_predictions_elsewhere_are_no_candidates() -> None:
    teacher = three_predictions()
    teacher.boxes[:] = torch.tensor([50.0, 0.0, 90.0, 40.0])
    found = ask(QualityAware(), teacher)
    assert found.quality[0].tolist() == found.confidence[0].tolist() == [0.0]


def random_teacher(seed: int) -> GivenTeacher:
    """Three images with 3, 0 and 2 objects, 30 locations, 2 classes, depth."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(count: int) -> Tensor:
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([50.0, 30.0])
        side = 16 + torch.rand(count, 2, generator=generator) * 24
        return torch.cat([corner, corner + side], dim=1)

    objects = [boxes(count) for count in (3, 0, 2)]
    batch = batch_of([each.tolist() for each in objects], [[0, 1, 0], [], [1, 0]])
    sizes = torch.tensor([[HEIGHT, WIDTH], [HEIGHT, WIDTH], [HEIGHT, WIDTH - 16]])
    depth = torch.randint(0, 6, (3, 16, 24), generator=generator).float() * 2
    predicted = torch.stack([boxes(30) for _ in range(3)])
    for image, rows in enumerate(objects):
        if len(rows):  # half of the predictions lie around objects
            near = rows[torch.arange(15) % len(rows)]
            predicted[image, :15] = near + 6 * torch.randn(15, 4, generator=generator)
    return GivenTeacher(
        batch=replace(batch, sizes=sizes, original_sizes=sizes * 2, depth=depth),
        boxes=predicted,
        scores=torch.rand(3, 30, 2, generator=generator),
        masks=torch.rand(3, 30, 16, 24, generator=generator),
        progress=0.25,
    )


def slow_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def slow_depth_match(mask: Tensor, inside: Tensor, depth: Tensor, columns: int) -> float:
    """Share of a mask's mass whose step in depth to the cell two to the right is clear."""
    clear, total = 0.0, 0.0
    for y in range(mask.shape[0]):
        for x in range(columns - 2):
            if inside[y, x]:
                p = mask[y, x].item()
                similarity = math.exp(-0.5 * abs((depth[y, x] - depth[y, x + 2]).item()))
                total += p
                clear += p * (similarity > 0.5 or similarity < 0.1)
    return clear / max(total, 1.0)


def slow_quality_aware(teacher: GivenTeacher, options: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Mask, quality and confidence of every object, one after the other."""
    found: list[tuple[Any, ...]] = []
    batch = teacher.batch
    for image, boxes in enumerate(batch.boxes):
        for box, label in zip(boxes.tolist(), batch.labels[image].tolist(), strict=True):
            # sizes are doubled along both axes
            area = 4 * (box[2] - box[0]) * (box[3] - box[1])
            wanted = options.get("candidates", "adaptive")
            if wanted == "adaptive":
                between = 2 + 8 * (area - 1024) / 8192
                wanted = math.floor(min(max(between, 2.0), 10.0) + 0.5)
            inside = rasterise(torch.tensor([box]), 16, 24, 4)[0]
            ranked = [(slow_iou(box, p), k) for k, p in enumerate(teacher.boxes[image].tolist())]
            ranked = sorted((pair for pair in ranked if pair[0] > 0), reverse=True)
            b = options.get("depth_ranking", 0.0) * 0.75
            if b:
                assert batch.depth is not None
                columns = int(batch.sizes[image, 1]) // 4
                again = []
                for u, k in ranked[: 2 * wanted]:
                    match = slow_depth_match(
                        teacher.masks[image, k], inside, batch.depth[image], columns
                    )
                    again.append(((1 - b) * u + b * match, u, k))
                ranked = [(u, k) for _, u, k in sorted(again, reverse=True)]
            kept = []
            for u, k in ranked[:wanted]:
                s = teacher.scores[image, k, label].item()
                if options.get("class_check") and (
                    u <= 0.5 or teacher.scores[image, k].argmax().item() != label
                ):
                    continue
                if s >= 0.1:
                    kept.append((u, s, teacher.masks[image, k]))
            found.append(slow_fusion(kept, inside, **options))
    return found


def slow_fusion(
    kept: list[tuple[float, float, Tensor]],
    inside: Tensor,
    fusion: str = "weighted",
    quality: str = "paper",
    **other: Any,
) -> tuple[Tensor, float, float]:
    if not kept:
        return torch.zeros_like(inside), 0.0, 0.0
    if fusion == "best":
        fused = max(kept, key=lambda each: each[0])[2]
    elif fusion == "mean":
        fused = sum((m for _, _, m in kept), torch.zeros_like(inside)) / len(kept)
    elif fusion == "weighted":
        total = sum(math.sqrt(s * u) for u, s, _ in kept)
        fused = sum((math.sqrt(s * u) / total * m for u, s, m in kept), torch.zeros_like(inside))
    else:
        votes = sum(((m > 0.5).float() for _, _, m in kept), torch.zeros_like(inside))
        fused = (votes / len(kept) > 0.5).float()
    cut = fused * inside
    confidence = sum(s for _, s, _ in kept) / len(kept)
    if not (cut > 0.5).any():
        return torch.zeros_like(inside), 0.0, 0.0
    if quality == "one":
        return cut, 1.0, confidence
    if quality == "paper":
        return cut, math.sqrt(confidence * cut[cut > 0.5].mean().item()), confidence
    agreed = fused > 0.5
    each = []
    for _, s, m in kept:
        single = m > 0.5
        overlap = (single & agreed).sum().item() / (single | agreed).sum().item()
        mass = m[single].sum().item() / max(agreed.sum().item(), 1)
        each.append(math.sqrt((s + 1) / 2 * overlap * mass))
    return cut, sum(each) / len(each), confidence


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fusion": "best", "quality": "one"},
        {"fusion": "mean", "quality": "one"},
        {"fusion": "mean", "quality": "paper"},
        {"fusion": "weighted", "quality": "consensus", "candidates": 4},
        {"fusion": "vote", "quality": "consensus", "candidates": 20, "class_check": True},
        {"candidates": 1},
        {"candidates": 100},
        {"depth_ranking": 0.3},
        {"depth_ranking": 1.0, "candidates": 2, "fusion": "best"},
    ],
)
@pytest.mark.parametrize("at_once", [1, 128])
def test_the_module_equals_a_loop_over_objects(
    options: dict[str, Any], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pseudo_masks, "MASKS_AT_ONCE", at_once)
    teacher = random_teacher(7)
    found = ask(build_pseudo_masks({"quality_aware": options}), teacher)
    expected = slow_quality_aware(teacher, options)
    assert [len(each) for each in found.masks] == [3, 0, 2]
    assert sum(quality > 0 for _, quality, _ in expected) >= 3
    for got, index in ((found.masks, 0), (found.quality, 1), (found.confidence, 2)):
        for value, row in zip(torch.cat(got), expected, strict=True):
            torch.testing.assert_close(value, torch.as_tensor(row[index]), rtol=1e-4, atol=1e-5)


def test_fewer_masks_are_held_than_the_objects_need() -> None:
    teacher = one_image(
        [OBJECT] * 10, [[0.9]] * 10, flat([0.9] * 10), [[0.0, 0.0, 96.0, 64.0]] * 40
    )
    teacher.batch = replace(teacher.batch, original_sizes=teacher.batch.sizes * 2)
    found = ask(QualityAware(), teacher)  # 40 objects of K = 10
    assert (found.quality[0] > 0).all()
    assert teacher.most_at_once <= 128


def test_ranking_by_depth_prefers_the_mask_that_follows_it_early_in_training() -> None:
    # K = 1. IoU .8 with a mask on a slope of 2 grey levels (similarity e^-1: neither .5 nor .1),
    # IoU .6 with a mask on even ground. b = .3: .7 * .8 + .3 * 0 = .56 < .7 * .6 + .3 * 1 = .72;
    # at the end of the schedule only the IoU counts.
    masks = torch.zeros(1, 2, 16, 24)
    masks[0, 0, :5, :8] = 0.9
    masks[0, 1, 5:10, :8] = 0.9
    teacher = one_image(
        [[0.0, 0.0, 40.0, 32.0], [0.0, 0.0, 40.0, 24.0]], [[0.5], [0.5]], masks, [OBJECT]
    )
    depth = torch.zeros(1, 16, 24)
    depth[0, :5] = torch.arange(24.0)
    teacher.batch = replace(teacher.batch, depth=depth)
    method = QualityAware(candidates=1, depth_ranking=0.3)
    early = ask(method, teacher)
    assert early.masks[0][0, 7, 0].item() == pytest.approx(0.9)
    assert early.quality[0].item() == pytest.approx(math.sqrt(0.5 * 0.9))
    late = ask(method, replace(teacher, progress=0.99))
    assert late.masks[0][0, 2, 0].item() == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("name", "option"), [("quality_aware", "depth_ranking"), ("depth_matched", "depth_weight")]
)
def test_depth_that_the_data_lack_is_asked_for_with_both_cures(name: str, option: str) -> None:
    method = build_pseudo_masks({name: {option: 0.3}})
    assert method.needs_depth
    path = f"pseudo_masks.{name}.{option}"
    message = f"{path} needs depth maps and the data have none: write them with `boxseg data depth`"
    with pytest.raises(ValueError, match=re.escape(message) + f".*or set {path}=0"):
        ask(method, three_predictions())
    without = build_pseudo_masks({name: {option: 0}})
    assert not without.needs_depth
    teacher = three_predictions()
    teacher.scores[..., 1] = 0
    assert ask(without, teacher).quality[0].item() > 0


# ---------------------------------------------------------------------------------------------
# BoxTeacher


def test_box_teacher_gives_the_better_rescored_detection_and_cuts_its_mask() -> None:
    # score0 .8 with a mask of .6 is sqrt(.48), score0 .7 with a mask of .9 is sqrt(.63): the
    # second, of another class and with IoU 3/4, takes the object. Half of its mask is outside.
    masks = flat([0.6, 0.9])
    masks[0, 1, :, :5] = 0.2
    teacher = one_image(
        [OBJECT, [10.0, 0.0, 40.0, 40.0]], [[0.8, 0.0], [0.0, 0.7]], masks, [OBJECT]
    )
    found = ask(build_pseudo_masks({"box_teacher": {}}), teacher)
    expected = torch.zeros(16, 24)
    expected[:10, 5:10] = 1
    torch.testing.assert_close(found.masks[0][0], expected)
    assert found.quality[0].item() == pytest.approx(math.sqrt(0.7 * 0.9))
    assert found.confidence[0].item() == pytest.approx(0.7)
    released = ask(build_pseudo_masks({"box_teacher": {"quality": "released"}}), teacher)
    assert released.quality[0].item() == pytest.approx(math.sqrt(math.sqrt(0.7) * 0.9))
    alone = ask(build_pseudo_masks({"box_teacher": {"quality": "one"}}), teacher)
    assert alone.quality[0].item() == 1


def test_box_teacher_looks_for_foreground_inside_the_box_alone_in_the_papers_form() -> None:
    masks = flat([0.6])
    masks[0, 0, 12:] = 1.0  # below the object, 4 of 16 rows: mean (12 * .6 + 4) / 16 = .7
    teacher = one_image([OBJECT], [[0.8]], masks, [OBJECT])
    paper = ask(build_pseudo_masks({"box_teacher": {}}), teacher)
    released = ask(build_pseudo_masks({"box_teacher": {"quality": "released"}}), teacher)
    assert paper.quality[0].item() == pytest.approx(math.sqrt(0.8 * 0.6))
    assert released.quality[0].item() == pytest.approx(math.sqrt(math.sqrt(0.8) * 0.7))


def test_a_detection_serves_one_object_and_suppressed_ones_serve_none() -> None:
    # The second detection has IoU 39/40 with the first and is suppressed; the third is below the
    # candidate score. Two equal objects: only the first gets a mask.
    near = [0.0, 0.0, 40.0, 39.0]
    teacher = one_image(
        [OBJECT, near, OBJECT], [[0.8], [0.7], [0.2]], flat([0.9] * 3), [OBJECT] * 2
    )
    for name in ("box_teacher", "depth_matched"):
        options = {"depth_weight": 0} if name == "depth_matched" else {}
        found = ask(build_pseudo_masks({name: options}), teacher)
        matched = 1 if name == "box_teacher" else 2  # the Hungarian one takes it twice
        assert (found.quality[0] > 0).sum().item() == matched
        assert found.confidence[0][0].item() == pytest.approx(0.8)


# ---------------------------------------------------------------------------------------------
# Pseudo-Depth


def test_depth_matching_is_known_by_hand() -> None:
    # One object, two detections of IoU 1 and 1/2 (hull = box, so GIoU is the same) that score .6
    # and .7; depth is even below row 5 and a slope of 2 levels per pair above it.
    # S = .1 * 1 + .3 * 0 + .6 * .6 = .46 and .1 * .5 + .3 * 1 + .6 * .7 = .77 at the start.
    masks = torch.zeros(1, 2, 16, 24)
    masks[0, 0, :5, :8] = 0.9
    masks[0, 1, 5:12, :8] = 0.8
    teacher = one_image([OBJECT, [0.0, 20.0, 40.0, 40.0]], [[0.6], [0.7]], masks, [OBJECT])
    depth = torch.zeros(1, 16, 24)
    depth[0, :5] = torch.arange(24.0)
    teacher.batch = replace(teacher.batch, depth=depth)
    found = ask(build_pseudo_masks({"depth_matched": {"quality": "match"}}), teacher)
    expected = torch.zeros(16, 24)
    expected[5:10, :8] = 0.8  # soft, cut at the box
    torch.testing.assert_close(found.masks[0][0], expected)
    assert found.quality[0].item() == pytest.approx(0.77)
    assert found.confidence[0].item() == pytest.approx(0.7)
    one = ask(build_pseudo_masks({"depth_matched": {}}), teacher)
    assert one.quality[0].item() == 1
    refused = ask(build_pseudo_masks({"depth_matched": {"match_threshold": 0.78}}), teacher)
    assert refused.quality[0].item() == refused.masks[0].sum().item() == 0
    # half way through b is .15: .1 * 1 + .75 * .6 = .55 and .05 + .15 + .75 * .7 = .725
    later = ask(
        build_pseudo_masks({"depth_matched": {"quality": "match"}}), replace(teacher, progress=0.5)
    )
    assert later.quality[0].item() == pytest.approx(0.725)


@pytest.mark.parametrize(
    ("options", "overlap"),
    [
        # 20 x 20 shared of 2 * 1600 - 400; the hull has 60 x 60
        ({}, 1 / 7),
        ({"overlap": "giou"}, 1 / 7 - 800 / 3600),
    ],
)
def test_a_detection_beside_its_object_overlaps_it_as_the_recipe_says(
    options: dict[str, Any], overlap: float
) -> None:
    teacher = one_image([[20.0, 20.0, 60.0, 60.0]], [[0.6]], flat([0.9]), [OBJECT])
    options = {"depth_weight": 0, "quality": "match", **options}
    found = ask(build_pseudo_masks({"depth_matched": options}), teacher)
    assert found.quality[0].item() == pytest.approx(0.1 * overlap + 0.9 * 0.6)


# ---------------------------------------------------------------------------------------------
# All methods


def options_without_depth(name: str) -> dict[str, Any]:
    return {"depth_weight": 0} if name == "depth_matched" else {}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("counts", [(0,), (0, 0), (0, 2)])
def test_images_without_objects_get_empty_lists(name: str, counts: tuple[int, ...]) -> None:
    batch = batch_of([[OBJECT] * count for count in counts])
    given = three_predictions()
    images = len(counts)
    teacher = replace(
        given,
        batch=batch,
        boxes=given.boxes.repeat(images, 1, 1),
        scores=given.scores.repeat(images, 1, 1),
        masks=given.masks.repeat(images, 1, 1, 1),
    )
    found = ask(build_pseudo_masks({name: options_without_depth(name)}), teacher)
    assert [tuple(each.shape) for each in found.masks] == [(count, 16, 24) for count in counts]
    assert [len(each) for each in found.quality] == list(counts)
    assert [len(each) for each in found.confidence] == list(counts)


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_that_sees_nothing_gives_nothing(name: str) -> None:
    teacher = three_predictions()
    teacher.scores[:] = 0.0
    found = ask(build_pseudo_masks({name: options_without_depth(name)}), teacher)
    assert found.quality[0].tolist() == found.confidence[0].tolist() == [0.0]
    assert not found.masks[0].any()


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_objects_does_not_matter(name: str) -> None:
    teacher = random_teacher(11)
    turned = replace(
        teacher.batch,
        boxes=[each.flip(0) for each in teacher.batch.boxes],
        labels=[each.flip(0) for each in teacher.batch.labels],
    )
    method = build_pseudo_masks({name: {}})
    first, second = ask(method, teacher), ask(method, replace(teacher, batch=turned))
    assert torch.cat(first.quality).any()
    for a, b in zip(first.masks + first.quality, second.masks + second.quality, strict=True):
        torch.testing.assert_close(a, b.flip(0))


def test_foreground_mean_is_taken_over_cells_above_the_threshold() -> None:
    masks = torch.tensor([[[0.5, 0.6, 0.8]], [[0.1, 0.2, 0.5]]])
    assert foreground_mean(masks).tolist() == pytest.approx([0.7, 0.0])
    assert foreground_mean(masks[:0]).shape == (0,)


def new_student() -> Student:
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


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_the_student_and_not_the_teacher(name: str) -> None:
    student = new_student()
    with torch.no_grad():  # scores above the thresholds, boxes of about 16 pixels on P3
        for convolution in (student.head.class_logits, student.head.box_distances):
            assert convolution.bias is not None
            convolution.bias.fill_(2.0)
    teacher = Teacher(student, momentum=0.9, ramp=False)
    teacher.update(student)
    batch = batch_of([[[24.0, 24.0, 56.0, 56.0]], [[2.0, 2.0, 30.0, 36.0], OBJECT]])
    batch = replace(batch, depth=torch.rand(2, 16, 24))
    options = {"match_iou": 0.05} if name == "box_teacher" else {}
    method: Callable[..., PseudoMasks] = build_pseudo_masks({name: options})
    found = method(teacher.ask(batch, 0.0))
    for masks in found.masks:
        assert not masks.requires_grad
        masks.copy_((masks > 0).float())  # whatever an untrained network says
    ones = [torch.ones_like(each) for each in found.quality]
    context = StepContext(
        student,
        student(batch.images),
        batch,
        0,
        pseudo=replace(found, quality=ones),
        teacher_step=10000,
    )
    terms: dict[str, dict[str, Any]] = {"focal": {}, "pseudo_mask": {}, "pseudo_affinity": {}}
    losses = build_criterion(terms, student.config)(context)
    (losses["pseudo_mask"] + losses["pseudo_affinity"]).backward()
    assert student.head.controller.weight.grad is not None
    assert student.head.controller.weight.grad.abs().sum() > 0
    assert all(value.grad is None for value in teacher.network.parameters())


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({}, "pseudo_masks must name exactly one of quality_aware, box_teacher, depth_matched"),
        (
            {"quality_aware": {}, "box_teacher": {}},
            "depth_matched, semantic; got quality_aware, box_teacher",
        ),
        ({"boxseg": {}}, "pseudo_masks.boxseg is unknown; known methods: quality_aware"),
        (
            {"quality_aware": {"k": 3}},
            "pseudo_masks.quality_aware.k is unknown; known options: candidates, fusion",
        ),
        (
            {"quality_aware": {"candidates": "many"}},
            "pseudo_masks.quality_aware.candidates must be adaptive or a number of at least 1, "
            "got 'many'",
        ),
        ({"quality_aware": {"candidates": 0}}, "quality_aware.candidates must be adaptive or a"),
        ({"quality_aware": {"candidates": 2.5}}, "must be adaptive or a whole number, got 2.5"),
        (
            {"quality_aware": {"fusion": "sum"}},
            "quality_aware.fusion must be best or mean or weighted or vote, got 'sum'",
        ),
        (
            {"quality_aware": {"class_check": 1}},
            "quality_aware.class_check must be true or false, got 1",
        ),
        (
            {"box_teacher": {"match_iou": 1.5}},
            "pseudo_masks.box_teacher.match_iou must be a number in [0, 1], got 1.5",
        ),
        (
            {"depth_matched": {"box_weight": 0.8}},
            "depth_matched.box_weight + depth_weight must be at most 1, got 0.8 + 0.3",
        ),
    ],
)
def test_a_wrong_method_is_refused_with_its_path(methods: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_pseudo_masks(methods)
