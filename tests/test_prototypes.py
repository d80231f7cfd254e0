"""Semantic prototypes and the pseudo masks of SIM."""

import math
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F

from boxseg.config import ModelConfig
from boxseg.student import DensePredictions, Student, grid_locations
from boxseg.train.prototypes import Prototypes, sinkhorn
from boxseg.train.pseudo_masks import Semantic, build_pseudo_masks
from boxseg.train.teacher import TeacherPredictions
from boxseg.train.transforms import Batch

CENTRE = (27, 28, 35, 36)
"""Locations of P3 of a 64 x 64 image that lie at x, y of 28 and 36: the positives of BOX."""
BOX = [16.0, 16.0, 48.0, 48.0]
"""Stride-4 cells 4..11 on both axes: 64 cells."""


class FixedMasks:
    """Stands for the teacher network: each location has one constant mask logit per cell."""

    config = ModelConfig(classes=("a", "b", "c"), category_ids=(1, 2, 3))

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits  # (L, h, w)

    def masks_at(self, _: Any, image_index: torch.Tensor, location: torch.Tensor) -> torch.Tensor:
        assert len(image_index) == len(location)
        return self.logits[location]


def teacher_of(
    boxes: list[list[list[float]]],
    labels: list[list[int]] | None = None,
    *,
    logits: torch.Tensor | None = None,
    features: torch.Tensor | None = None,
    predicted: dict[int, list[float]] | None = None,
    zoom: int = 1,
) -> TeacherPredictions:
    """Predictions on 64 x 64 images: every class and quality 0.5, every box BOX."""
    count, side = len(boxes), 64 * zoom
    sizes = [(side // stride, side // stride) for stride in (8, 16, 32, 64, 128)]
    sizes = [(max(rows, 1), max(columns, 1)) for rows, columns in sizes]
    locations, levels = grid_locations(sizes)
    found = torch.tensor(BOX).expand(count, len(levels), 4) * zoom
    found = found.clone()
    for location, box in (predicted or {}).items():
        found[:, location] = torch.tensor(box) * zoom
    if logits is None:
        logits = torch.zeros(len(levels), side // 8, side // 8)
    if features is None:
        features = torch.ones(count, 2, side // 8, side // 8)
    batch = Batch(
        images=torch.zeros(count, 3, 64, 64, dtype=torch.uint8),
        sizes=torch.tensor([[64, 64]] * count),
        original_sizes=torch.tensor([[64, 64]] * count),
        boxes=[torch.tensor(rows, dtype=torch.float32).view(-1, 4) for rows in boxes],
        labels=[torch.tensor(row, dtype=torch.long) for row in labels or [[0] * len(boxes[0])]],
        masks=None,
        depth=None,
        image_ids=tuple(range(count)),
        file_names=tuple(str(index) for index in range(count)),
    )
    return TeacherPredictions(
        teacher=cast(Student, FixedMasks(logits)),
        predictions=DensePredictions(
            class_logits=torch.zeros(count, len(levels), 3),
            quality_logits=torch.zeros(count, len(levels)),
            distances=torch.zeros(count, len(levels), 4),
            boxes=found,
            parameters=torch.zeros(count, 1, len(levels)),
            mask_features=features,
            box_features=(),
            locations=locations,
            levels=levels,
        ),
        batch=batch,
        zoom=torch.full((count, 2), float(zoom)),
        progress=0.5,
    )


def knowing(vectors: list[list[float]], **options: Any) -> Semantic:
    """A maker whose class 0 has these prototypes and whose other two classes have none."""
    maker = Semantic(**options)
    maker.prototypes = Prototypes(classes=3, channels=2, per_class=len(vectors))
    known(maker.prototypes, vectors)
    return maker


def known(prototypes: Prototypes, vectors: list[list[float]], label: int = 0) -> None:
    """Give a class its prototypes, as if seen often."""
    prototypes.vectors[label] = torch.tensor(vectors)
    prototypes.seen[label] = 1e6


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def slow_sinkhorn(cosines: torch.Tensor, eps: float, iterations: int) -> torch.Tensor:
    plan = (cosines.double() / eps).exp()
    cells, prototypes = plan.shape
    for _ in range(iterations):
        for column in range(prototypes):
            total = sum(float(plan[row, column]) for row in range(cells))
            for row in range(cells):
                plan[row, column] /= total * prototypes
        for row in range(cells):
            total = sum(float(plan[row, column]) for column in range(prototypes))
            for column in range(prototypes):
                plan[row, column] /= total * cells
    return plan


def test_the_plan_of_each_group_is_that_of_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand((9, 4), generator=generator) * 2 - 1
    group = torch.tensor([0, 2, 0, 0, 2, 0, 2, 0, 0])  # group 1 has no cell
    plan = sinkhorn(cosines, group, 3)
    for number in (0, 2):
        rows = group == number
        torch.testing.assert_close(
            plan[rows], slow_sinkhorn(cosines[rows], 0.05, 3).float(), rtol=1e-4, atol=1e-6
        )


def test_many_rounds_share_the_cells_evenly() -> None:
    generator = torch.Generator().manual_seed(1)
    cosines = torch.rand((12, 3), generator=generator) * 0.2
    plan = sinkhorn(cosines, torch.zeros(12, dtype=torch.long), 1, iterations=100)
    torch.testing.assert_close(plan.sum(dim=0), torch.full((3,), 1 / 3), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plan.sum(dim=1), torch.full((12,), 1 / 12))


def test_the_plan_gives_a_cell_to_a_prototype_that_it_likes_less_to_keep_the_balance() -> None:
    # both cells like the first prototype best; the first cell minds the second one less
    plan = sinkhorn(torch.tensor([[0.9, 0.8], [0.9, 0.1]]), torch.zeros(2, dtype=torch.long), 1)
    assert plan.argmax(dim=1).tolist() == [1, 0]


def test_opposite_cosines_and_no_cells_stay_finite() -> None:
    plan = sinkhorn(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), torch.tensor([0, 1]), 2)
    torch.testing.assert_close(plan, torch.full((2, 2), 0.5))
    assert sinkhorn(torch.zeros((0, 2)), torch.zeros(0, dtype=torch.long), 0).shape == (0, 2)


def test_a_product_of_prototype_and_feature_is_a_cosine() -> None:
    # fails if the axis of the prototypes is normalised, where no vector has unit length
    prototypes = Prototypes(classes=2, channels=16, per_class=10)
    torch.testing.assert_close(prototypes.vectors.norm(dim=2), torch.ones(2, 10))
    own = prototypes.vectors[1].T[:, :, None]  # every prototype of class 1 as a cell, (D, 10, 1)
    cosines = prototypes.cosines(own, torch.tensor([1]))
    torch.testing.assert_close(cosines[0, :, :, 0].diagonal(), torch.ones(10))
    assert cosines.abs().max() <= 1 + 1e-6
    prototypes.average(torch.randn(2, 10, 16), torch.ones(2, 10))
    torch.testing.assert_close(prototypes.vectors.norm(dim=2), torch.ones(2, 10))


def test_the_semantic_map_takes_the_closest_prototype() -> None:
    prototypes = Prototypes(classes=2, channels=2, per_class=2)
    known(prototypes, [[1, 0], [0, 1]])
    features = torch.tensor([0.6, 0.8]).view(2, 1, 1)
    cosines = prototypes.cosines(features, torch.tensor([0]))
    assert cosines.flatten().tolist() == pytest.approx([0.6, 0.8])
    value = prototypes.semantic_map(cosines, torch.tensor([0]), temperature=0.5)
    assert value.item() == pytest.approx(1 / (1 + math.exp(-1.6)))


def test_a_prototype_that_was_never_seen_does_not_count() -> None:
    prototypes = Prototypes(classes=2, channels=2, per_class=2)
    known(prototypes, [[1, 0], [0, 1]])
    prototypes.seen[0, 1] = 0
    features = torch.tensor([0.6, 0.8]).view(2, 1, 1)
    cosines = prototypes.cosines(features, torch.tensor([0, 1]))
    value = prototypes.semantic_map(cosines, torch.tensor([0, 1]), temperature=0.5)
    assert value.flatten().tolist() == pytest.approx([1 / (1 + math.exp(-1.2)), 0.0])


def test_the_first_centroid_replaces_the_random_start_then_a_mean_then_the_momentum() -> None:
    prototypes = Prototypes(classes=1, channels=2, per_class=1, momentum=0.75)
    along_x, along_y = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    prototypes.average(0.5 * along_x, torch.ones(1, 1))
    assert prototypes.vectors.flatten().tolist() == [1, 0]
    prototypes.average(along_y, torch.ones(1, 1))  # the mean of two: (.5, .5), length sqrt(.5)
    assert prototypes.vectors.flatten().tolist() == pytest.approx([0.5**0.5, 0.5**0.5])
    prototypes.seen.fill_(100)
    prototypes.vectors = along_x
    prototypes.average(along_y, torch.ones(1, 1))  # .75 and .25, length sqrt(.625)
    assert prototypes.vectors.flatten().tolist() == pytest.approx(
        [0.75 / 0.625**0.5, 0.25 / 0.625**0.5]
    )
    prototypes.vectors = along_x
    prototypes.average(along_y, torch.full((1, 1), 2.0))  # two images: .75^2 stays
    assert prototypes.vectors[0, 0, 0].item() == pytest.approx(0.5625 / math.hypot(0.5625, 0.4375))
    before = prototypes.vectors
    prototypes.average(along_x * torch.nan, torch.zeros(1, 1))
    assert torch.equal(prototypes.vectors, before)


def test_centroids_are_taken_per_image_over_the_cells_of_the_class_only() -> None:
    # image 0: two cells of class 1 at (1, 0) and (0, 1); image 1: one cell of class 1 at (0, 1);
    # everything else is (-1, 0) and must not be seen
    prototypes = Prototypes(classes=2, channels=2, per_class=1)
    features = torch.zeros(2, 2, 2, 2)
    features[:, 0] = -1
    inside = torch.zeros(2, 2, 2, dtype=torch.bool)
    for image, y, x, vector in (
        (0, 0, 1, (1.0, 0.0)),
        (0, 1, 1, (0.0, 1.0)),
        (1, 0, 0, (0.0, 1.0)),
    ):
        features[image, :, y, x] = torch.tensor(vector)
        inside[image, y, x] = True
    start = prototypes.vectors[0].clone()
    classes = torch.tensor([1, 1])
    cosines = torch.stack([prototypes.cosines(part, classes[:1])[0] for part in features])
    prototypes.update(features, cosines, inside, torch.tensor([0, 1]), classes)
    # centroids (.5, .5) and (0, 1): their mean is (.25, .75)
    expected = F.normalize(torch.tensor([0.25, 0.75]), dim=0)
    torch.testing.assert_close(prototypes.vectors[1, 0], expected)
    assert torch.equal(prototypes.vectors[0], start)
    assert prototypes.seen.tolist() == [[0], [2]]


def test_cells_that_all_prefer_one_prototype_are_shared_out() -> None:
    prototypes = Prototypes(classes=1, channels=2, per_class=2)
    prototypes.vectors = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    features = torch.tensor([[0.8, 1.0], [0.6, 0.0]]).view(1, 2, 1, 2)  # (.8, .6), (1, 0)
    zero = torch.tensor([0])
    cosines = prototypes.cosines(features[0], zero)
    inside = torch.ones(1, 1, 2, dtype=torch.bool)
    prototypes.update(features, cosines, inside, zero, zero)
    # the second cell is nearer to the first prototype, the first cell goes to the other
    assert prototypes.vectors.flatten().tolist() == pytest.approx([1.0, 0.0, 0.8, 0.6])


def test_a_mask_without_cells_moves_nothing() -> None:
    prototypes = Prototypes(classes=1, channels=2, per_class=3)
    before = prototypes.vectors.clone()
    features = F.normalize(torch.ones(1, 2, 2, 2), dim=1)
    cosines = prototypes.cosines(features[0], torch.tensor([0]))[None, 0]
    nothing = torch.zeros(1, 2, 2, dtype=torch.bool)
    prototypes.update(features, cosines, nothing, torch.tensor([0]), torch.tensor([0]))
    assert torch.equal(prototypes.vectors, before)
    assert prototypes.seen.sum() == 0


def test_positives_with_better_boxes_weigh_more() -> None:
    # IoU 1 for one positive, 0.5 for three (half of the box): weights e^5 and e^2.5 three times
    logits = torch.zeros(85, 8, 8)
    logits[27] = logit(0.9)
    half = [16.0, 16.0, 48.0, 32.0]
    teacher = teacher_of([[BOX]], logits=logits, predicted=dict.fromkeys(CENTRE[1:], half))
    maps, confidence = Semantic().instance_maps(teacher)
    share = math.exp(5) / (math.exp(5) + 3 * math.exp(2.5))
    assert maps[0, 8, 8].item() == pytest.approx(0.9 * share + 0.5 * (1 - share))
    # sqrt(.5 * .5) at every positive
    assert confidence.tolist() == pytest.approx([0.5])
    mean, _ = Semantic(mu=0).instance_maps(teacher)
    assert mean[0, 8, 8].item() == pytest.approx((0.9 + 3 * 0.5) / 4)


def test_a_mask_is_where_class_and_instance_agree_and_the_doubtful_cells_do_not_count() -> None:
    # instance map .9 everywhere; the semantic map is sigmoid(10) on the left half of the image,
    # sigmoid(-10) right: fused .95 and .45 (ignored: between .4 and .7)
    features = torch.zeros(1, 2, 8, 8)
    features[:, 0, :, :4], features[:, 0, :, 4:] = 1, -1
    features[:, 1] = 1e-6
    maker = knowing([[1, 0]], temperature=0.1)
    teacher = teacher_of([[BOX]], logits=torch.full((85, 8, 8), logit(0.9)), features=features)
    found = maker(teacher)
    mask = torch.zeros(16, 16)
    mask[4:12, 4:8] = 1
    assert torch.equal(found.masks[0][0], mask)
    assert found.counted is not None
    assert torch.equal(found.counted[0][0], mask > 0)
    assert found.quality[0].item() == pytest.approx(0.95, abs=1e-4)
    assert found.confidence[0].item() == pytest.approx(0.5)
    # instance map .6: .8 and .3; the right half is background now, and counts
    found = maker(teacher_of([[BOX]], logits=torch.full((85, 8, 8), logit(0.6)), features=features))
    assert torch.equal(found.masks[0][0], mask)
    assert found.counted is not None
    assert found.counted[0].sum() == 64
    assert found.quality[0].item() == pytest.approx(0.8, abs=1e-4)


@pytest.mark.parametrize(("temperature", "taught"), [(1.0, True), (0.1, False)])
def test_a_cell_that_is_somewhat_like_its_class_can_be_background(
    temperature: float, taught: bool
) -> None:
    # cosine .5 everywhere, instance map .1: sigmoid(.5) = .62 makes .36, which is below .4;
    # sigmoid(5) = .99 makes .55, which is neither
    features = torch.zeros(1, 2, 8, 8)
    features[:, 0], features[:, 1] = 0.5, 0.75**0.5
    maker = knowing([[1, 0]], temperature=temperature)
    logits = torch.full((85, 8, 8), logit(0.1))
    found = maker(teacher_of([[BOX]], logits=logits, features=features))
    assert found.masks[0].sum() == 0
    assert found.counted is not None
    assert found.counted[0].sum() == (64 if taught else 0)
    assert Semantic().temperature == 1.0


def test_a_class_without_prototypes_is_judged_by_the_instance_map_and_gets_some() -> None:
    maker = Semantic()
    found = maker(teacher_of([[BOX]], [[2]], logits=torch.full((85, 8, 8), logit(0.75))))
    assert found.masks[0].sum() == 64
    assert found.quality[0].item() == pytest.approx(0.75)
    assert maker.prototypes is not None
    assert (maker.prototypes.seen[2] > 0).any()
    assert maker.prototypes.seen[:2].sum() == 0
    # all features point to (1, 1), so what was seen does
    seen = maker.prototypes.vectors[2][maker.prototypes.seen[2] > 0]
    torch.testing.assert_close(seen, torch.full_like(seen, 0.5**0.5))


def test_an_empty_mask_has_no_quality_and_moves_no_prototype() -> None:
    maker = Semantic()
    found = maker(teacher_of([[BOX]], logits=torch.full((85, 8, 8), logit(0.5))))
    assert found.masks[0].sum() == found.quality[0].sum() == 0
    assert maker.state_dict()["seen"].sum() == 0


def test_an_object_without_positives_has_neither_mask_nor_quality_nor_counted_cells() -> None:
    # the outer box loses its centre to the small one of the same centre
    # (the semantic map alone would call both foreground)
    maker = knowing([[0.5**0.5, 0.5**0.5]], alpha=0)
    small = [27.0, 27.0, 37.0, 37.0]
    found = maker(teacher_of([[BOX, small]], [[0, 0]], logits=torch.full((85, 8, 8), logit(0.9))))
    assert found.counted is not None
    assert found.masks[0][0].sum() == found.counted[0][0].sum() == 0
    assert found.quality[0][0] == found.confidence[0][0] == 0
    assert found.quality[0][1] > 0


def test_no_boxes_at_all_are_no_masks() -> None:
    found = Semantic()(teacher_of([[], []], [[], []]))
    assert [part.shape for part in found.masks] == [(0, 16, 16)] * 2
    assert [part.shape for part in found.quality] == [(0,)] * 2


def test_images_keep_their_own_objects() -> None:
    logits = torch.full((85, 8, 8), logit(0.9))
    found = Semantic()(teacher_of([[], [BOX], [BOX, BOX]], [[], [1], [0, 1]], logits=logits))
    assert [len(part) for part in found.masks] == [0, 1, 2]
    assert found.masks[1].sum() == 64


def test_a_teacher_that_sees_larger_images_answers_in_the_students_cells() -> None:
    # the left half of its 16 x 16 cells is foreground
    logits = torch.full((341, 16, 16), logit(0.1))
    logits[:, :, :8] = logit(0.9)
    found = Semantic()(teacher_of([[BOX]], logits=logits, zoom=2))
    mask = torch.zeros(16, 16)
    mask[4:12, 4:8] = 1
    assert torch.equal(found.masks[0][0], mask)


def test_the_released_threshold_is_the_value_at_the_rank_of_sure_cells() -> None:
    maker = Semantic(foreground="ranked")
    fused = torch.tensor([[[0.95, 0.78, 0.74, 0.1]]] * 4)
    instance = torch.tensor(
        [
            [[0.9, 0.9, 0.1, 0.1]],  # 2 sure cells: the second value, .78
            [[0.9, 0.9, 0.9, 0.9]],  # the fourth, .1, is raised to .7
            [[0.9, 0.1, 0.1, 0.1]],  # the first, .95, is lowered to .8
            [[0.7, 0.1, 0.1, 0.1]],  # none is above .7: as the first
        ]
    )
    assert maker.thresholds(fused, instance).tolist() == pytest.approx([0.78, 0.7, 0.8, 0.8])
    assert Semantic().thresholds(fused, instance).tolist() == pytest.approx([0.7] * 4)
    assert maker.thresholds(fused[:0], instance[:0]).shape == (0,)


def test_prototypes_survive_saving_and_refuse_other_numbers() -> None:
    maker, again = Semantic(), Semantic()
    again.load_state_dict(maker.state_dict())  # before the first call there is nothing
    assert again.state_dict() == {}
    teacher = teacher_of([[BOX]], logits=torch.full((85, 8, 8), logit(0.9)))
    maker(teacher)
    again.load_state_dict(maker.state_dict())
    maker(teacher)
    again(teacher)
    for name, value in maker.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    with pytest.raises(ValueError, match=r"vectors is \(3, 10, 2\).*needs \(3, 4, 2\)"):
        Semantic(per_class=4).load_state_dict(maker.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.9}, r"semantic needs low <= high <= highest, got 0\.9 0\.7 0\.8"),
        ({"temperature": 0}, r"pseudo_masks\.semantic\.temperature must be above 0, got 0"),
        ({"alpha": 1.5}, r"pseudo_masks\.semantic\.alpha must be a number in \[0, 1\], got 1\.5"),
        ({"prototypes": 3}, r"pseudo_masks\.semantic\.prototypes is unknown"),
    ],
)
def test_nonsense_in_a_recipe_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_pseudo_masks({"semantic": options})
