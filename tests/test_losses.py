"""Losses: numbers by hand, and those of the released reference implementations (vectors.npz)."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from boxseg.train.affinity import (
    NEIGHBOURS,
    directed_edges,
    label_agreement,
    shifted_pair,
    smoothed_masks,
)
from boxseg.train.losses import (
    centerness,
    counted_focal_loss,
    counted_mask_loss,
    depth_loss,
    dice_loss,
    distance_iou,
    focal_loss,
    mask_affinity_loss,
    pairwise_loss,
    projection_loss,
    varifocal_loss,
)

VECTORS = np.load(Path(__file__).with_name("vectors.npz"))


def reference(name: str) -> torch.Tensor:
    return torch.from_numpy(VECTORS[name])


def close(value: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def slow_pairwise(
    logits: torch.Tensor, box_masks: torch.Tensor, similarity: torch.Tensor, threshold: float
) -> tuple[float, int]:
    """Sum and number over all 8 directed neighbours, with probabilities in float64."""
    count, height, width = logits.shape
    p = logits.double().sigmoid()
    offsets = [(dy, dx) for dy in (-2, 0, 2) for dx in (-2, 0, 2) if dy or dx]
    total, pairs = 0.0, 0
    for n in range(count):
        for k, (dy, dx) in enumerate(offsets):
            for y in range(height):
                for x in range(width):
                    v, u = y + dy, x + dx
                    if not (0 <= v < height and 0 <= u < width):
                        continue
                    if box_masks[n, y, x] and similarity[k, y, x] >= threshold:
                        same = p[n, y, x] * p[n, v, u] + (1 - p[n, y, x]) * (1 - p[n, v, u])
                        total -= math.log(float(same))
                        pairs += 1
    return total, pairs


def test_the_counted_mask_loss_is_cross_entropy_and_dice_by_hand() -> None:
    # p = .5 everywhere: cross entropy ln 2; of the three counted cells two are foreground, so
    # dice is 1 - 2 * 1 / (.75 + 2). The fourth cell is absurdly wrong and does not count.
    logits = torch.tensor([[[0.0, 0.0, 0.0, 50.0]]])
    targets = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    counted = torch.tensor([[[True, True, True, False]]])
    expected = math.log(2) + 1 - 2 / 2.75
    close(counted_mask_loss(logits, targets, counted), torch.tensor([expected]))
    # of logits, not of probabilities: a sure and right answer costs nothing
    right = torch.tensor([[[50.0, 50.0, -50.0, 50.0]]])
    close(counted_mask_loss(right, targets, counted), torch.zeros(1))


def test_the_counted_focal_loss_is_a_mean_by_hand() -> None:
    # p = .5: .25 * .25 ln 2 for each of two foreground cells, .75 * .25 ln 2 for the other
    logits = torch.tensor([[[0.0, 0.0, 0.0, 50.0]]])
    targets = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    counted = torch.tensor([[[True, True, True, False]]])
    expected = (2 * 0.0625 + 0.1875) / 3 * math.log(2)
    close(counted_focal_loss(logits, targets, counted), torch.tensor([expected]))


@pytest.mark.parametrize("loss", [counted_mask_loss, counted_focal_loss])
def test_where_nothing_counts_there_is_no_loss_and_no_gradient(
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    logits = torch.randn(2, 3, 3, requires_grad=True)
    targets = torch.ones(2, 3, 3)
    counted = torch.zeros(2, 3, 3, dtype=torch.bool)
    counted[1, 0, 0] = True
    value = loss(logits, targets, counted)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value[0].item() == 0 < value[1].item()
    assert (gradient != 0).nonzero().tolist() == [[1, 0, 0]]
    assert loss(logits[:0], targets[:0], counted[:0]).shape == (0,)


def test_focal_loss_of_an_even_guess_is_known_by_hand() -> None:
    # p = 0.5: a positive costs .25 * .25 * ln 2, a negative .75 * .25 * ln 2
    value = focal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]))
    assert value.item() == pytest.approx(0.25 * math.log(2))


def test_focal_loss_matches_the_reference() -> None:
    close(focal_loss(reference("cls_logits"), reference("cls_target")), reference("focal_sum"))


@pytest.mark.parametrize(("alpha", "name"), [(0.25, "vfl_sum_alpha25"), (0.75, "vfl_sum_alpha75")])
def test_varifocal_loss_matches_the_reference(alpha: float, name: str) -> None:
    value = varifocal_loss(reference("cls_logits"), reference("vfl_target"), alpha=alpha)
    close(value, reference(name))


@pytest.mark.parametrize(
    ("constant_weight", "negative"),
    [
        # p = .5: the weight .25 * p^2 = 1/16 times the slope p of the cross entropy
        (True, 1 / 32),
        # and, as published, the slope 2 * .25 * p * p (1 - p) of the weight times ln 2
        (False, 1 / 32 + math.log(2) / 16),
    ],
)
def test_the_gradient_of_varifocal_loss_is_known_by_hand(
    constant_weight: bool, negative: float
) -> None:
    # a positive of quality .8 at p = .5: .8 * (.5 - .8)
    logits = torch.zeros(2, requires_grad=True)
    targets = torch.tensor([0.8, 0.0])
    loss = varifocal_loss(logits, targets, constant_weight=constant_weight)
    assert loss.item() == pytest.approx((0.8 + 1 / 16) * math.log(2))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.tolist() == pytest.approx([-0.24, negative])


def test_distance_iou_of_nested_boxes_is_known_by_hand() -> None:
    # areas 4 and 16 around one point, hull 16, union 16: IoU (4 + 1) / (16 + 1), no hull penalty
    iou, giou = distance_iou(torch.ones(1, 4), torch.full((1, 4), 2.0))
    assert iou.item() == pytest.approx(5 / 17)
    assert giou.item() == pytest.approx(5 / 17)


def test_distance_iou_matches_the_reference() -> None:
    iou, giou = distance_iou(reference("ltrb_pred"), reference("ltrb_target"))
    close(iou, reference("ltrb_iou_plus1"))
    close(giou, reference("ltrb_giou_plus1"))


def test_centerness_is_one_at_the_centre_and_falls_to_the_side() -> None:
    # min/max is 1/3 horizontally and 1 vertically: sqrt(1/3)
    value = centerness(torch.tensor([[2.0, 2, 2, 2], [1.0, 2, 3, 2]]))
    close(value, torch.tensor([1.0, math.sqrt(1 / 3)]))


def test_dice_is_zero_for_equal_masks_and_one_for_disjoint_ones() -> None:
    # half overlap: 1 - 2 * 1 / (2 + 2) = 0.5
    a = torch.tensor([[1.0, 1, 0, 0]])
    values = [dice_loss(a, b).item() for b in (a, 1 - a, torch.tensor([[0.0, 1, 1, 0]]))]
    assert values == pytest.approx([0.0, 1.0, 0.5], abs=1e-5)


def test_dice_matches_the_reference() -> None:
    probability = reference("mask_logits").sigmoid().flatten(1)
    close(
        dice_loss(probability, reference("dice_target").flatten(1)),
        reference("dice_per_instance"),
    )


def test_projection_of_half_a_box_is_known_by_hand() -> None:
    # The box has cells (0, 0) and (0, 1) of 2 x 2, the first mask only (0, 0), the second all four,
    # the third is the box. 1 0 against 1 1 is 1 - 2 / (1 + 2): the first's columns, the second's
    # rows; all else is equal.
    masks = torch.tensor([[[1.0, 0], [0, 0]], [[1, 1], [1, 1]], [[1, 1], [0, 0]]])
    box = torch.tensor([[1.0, 1], [0, 0]]).expand(3, 2, 2)
    value = projection_loss(100 * (2 * masks - 1), box)
    close(value, torch.tensor([1 / 3, 1 / 3, 0.0]))


def test_projection_teaches_the_largest_logit_of_a_row_and_a_column_alone() -> None:
    logits = torch.tensor([[[0.5, -1.0], [-2.0, -3.0]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(projection_loss(logits, torch.ones(1, 2, 2)).sum(), logits)
    # (0, 0) is the largest of row 0 and of column 0, (0, 1) of column 1, (1, 0) of row 1
    assert (gradient < 0).tolist() == [[[True, True], [True, False]]]
    assert gradient[0, 1, 1].item() == 0


def test_projection_matches_the_reference() -> None:
    value = projection_loss(reference("mask_logits"), reference("box_masks"))
    close(value, reference("projection_per_instance"))


def test_pairwise_matches_the_reference() -> None:
    similarity = reference("colour_similarity")[None]
    logits = reference("mask_logits")
    total, pairs = pairwise_loss(
        logits,
        reference("box_masks"),
        directed_edges(similarity, 0.3),
        torch.zeros(len(logits), dtype=torch.long),
    )
    close(total / pairs, reference("pairwise_loss"))


def test_pairwise_equals_a_loop_over_all_directed_neighbours_of_two_images() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(2, 6, 7, generator=generator)
    boxes = torch.zeros(2, 6, 7)
    boxes[0, 1:4, 2:6] = 1
    boxes[1, 0:6, 0:3] = 1
    similarity = torch.rand(2, 8, 6, 7, generator=generator)
    total, pairs = pairwise_loss(
        logits, boxes, directed_edges(similarity, 0.5), torch.tensor([0, 1])
    )
    expected = [
        slow_pairwise(logits[n : n + 1], boxes[n : n + 1], similarity[n], 0.5) for n in (0, 1)
    ]
    assert pairs.item() == expected[0][1] + expected[1][1]
    assert total.item() == pytest.approx(expected[0][0] + expected[1][0], rel=1e-5)


def test_pairwise_stays_finite_for_huge_logits() -> None:
    logits = torch.tensor([300.0, -300.0]).repeat(3)[:5].expand(1, 5, 5).clone().requires_grad_()
    edges = torch.ones(2, 4, 1, 5, 5, dtype=torch.bool)
    total, _ = pairwise_loss(logits, torch.ones(1, 5, 5), edges, torch.zeros(1, dtype=torch.long))
    total.backward()
    assert torch.isfinite(total)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_the_affinity_of_masks_matches_the_reference() -> None:
    smooth = smoothed_masks(reference("dice_target"))
    valid = reference("colour_valid")
    expected = reference("pseudo_affinity")
    for number, offset in enumerate(NEIGHBOURS):
        there = shifted_pair(valid, offset)[1]
        here = shifted_pair(expected[:, number], offset)[0]
        close(label_agreement(*shifted_pair(smooth, offset)) * there, here)


def slow_mask_affinity(
    logits: torch.Tensor, affinity: torch.Tensor, inside: torch.Tensor, threshold: float
) -> float:
    """Mean of -log P(same label) of one instance over 8 directed neighbours."""
    total, pairs = slow_pairwise(logits[None], inside[None], affinity, threshold)
    return total / max(pairs, 1)


def test_mask_affinity_equals_a_loop_over_the_reference_affinities() -> None:
    affinity = reference("pseudo_affinity")
    boxes = reference("box_masks") > 0
    valid = (reference("colour_valid") > 0).expand_as(boxes)
    logits = reference("mask_logits")
    # two instances of object 2, one of object 0, one of weight 0
    rows, weights = torch.tensor([2, 0, 2, 1]), torch.tensor([0.5, 0.25, 1.0, 0.0])
    value = mask_affinity_loss(
        logits,
        weights,
        rows,
        masks=reference("dice_target"),
        inside=boxes,
        valid=valid,
        threshold=0.5,
    )
    expected = sum(
        float(weight) * slow_mask_affinity(logits[k], affinity[row], boxes[row], 0.5)
        for k, (row, weight) in enumerate(zip(rows.tolist(), weights, strict=True))
    )
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_mask_affinity_of_even_logits_is_the_weight_times_ln_2() -> None:
    # every pair has P(same) = 1/2, so each mean is ln 2, whatever the pairs are
    masks = torch.zeros(1, 6, 6)
    masks[0, :3] = 1
    value = mask_affinity_loss(
        torch.zeros(2, 6, 6),
        torch.tensor([0.5, 0.25]),
        torch.tensor([0, 0]),
        masks=masks,
        inside=torch.ones(1, 6, 6, dtype=torch.bool),
        valid=torch.ones(1, 6, 6, dtype=torch.bool),
        threshold=0.5,
    )
    assert value.item() == pytest.approx(0.75 * math.log(2))


def test_mask_affinity_without_instances_or_pairs_is_zero() -> None:
    everywhere = torch.ones(1, 4, 4, dtype=torch.bool)
    for count, inside in ((0, everywhere[:0]), (0, everywhere), (1, ~everywhere)):
        value = mask_affinity_loss(
            torch.ones(count, 4, 4),
            torch.ones(count),
            torch.zeros(count, dtype=torch.long),
            masks=inside.float(),
            inside=inside,
            valid=inside,
            threshold=0.5,
        )
        assert value.item() == 0


def test_gradient_of_mask_affinity_is_right() -> None:
    generator = torch.Generator().manual_seed(5)
    masks = (torch.rand(1, 5, 6, generator=generator) > 0.4).float()
    everywhere = torch.ones(1, 5, 6, dtype=torch.bool)
    logits = torch.randn(1, 5, 6, generator=generator).requires_grad_()

    def loss(values: torch.Tensor) -> torch.Tensor:
        return mask_affinity_loss(
            values,
            torch.ones(1),
            torch.zeros(1, dtype=torch.long),
            masks=masks,
            inside=everywhere,
            valid=everywhere,
            threshold=0.5,
        )

    (gradient,) = torch.autograd.grad(loss(logits), logits)
    step = 1e-2
    for y, x in ((0, 0), (2, 3), (4, 5)):
        shift = torch.zeros_like(logits)
        shift[0, y, x] = step
        slope = (loss(logits + shift) - loss(logits - shift)) / (2 * step)
        assert gradient[0, y, x].item() == pytest.approx(slope.item(), abs=1e-4)


def test_gradients_are_right_in_double_precision() -> None:
    x = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.rand(3, 4, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(lambda v: distance_iou(v + 0.05, y)[1], x)
    assert torch.autograd.gradcheck(lambda v: focal_loss(v, (y > 0.6).double()), x)


def test_sums_over_nothing_are_zero() -> None:
    empty = torch.zeros(0, 3)
    assert focal_loss(empty, empty).item() == 0
    assert varifocal_loss(empty, empty).item() == 0
    assert varifocal_loss(empty, empty, constant_weight=False).item() == 0
    assert F.relu(dice_loss(empty, empty)).shape == (0,)
    assert [each.shape for each in distance_iou(torch.zeros(0, 4), torch.zeros(0, 4))] == [(0,)] * 2
    assert centerness(torch.zeros(0, 4)).shape == (0,)
    none = torch.zeros(0, 5, 5)
    assert projection_loss(none, none).shape == (0,)
    edges = torch.ones(2, 4, 1, 5, 5, dtype=torch.bool)
    total, pairs = pairwise_loss(none, none, edges, torch.zeros(0, dtype=torch.long))
    assert total.item() == pairs.item() == 0


def test_depth_loss_is_known_by_hand_and_zero_without_cells() -> None:
    # instance 0 of image 1: cells 0.5 - 51 / 255 = 0.3 and 0.9 - 255 / 255 = -0.1 count:
    # (0.09 + 0.01) / 2 = 0.05; instance 1 has no cell that counts
    depth = torch.tensor([[[0.5, 0.9, 0.1]], [[0.5, 0.5, 0.5]]])
    target = torch.tensor([[[7.0, 7, 7]], [[51.0, 255, 7]]])
    counted = torch.tensor([[[True, True, False]], [[False, False, False]]])
    found = depth_loss(depth, target, counted, torch.tensor([1, 0]))
    torch.testing.assert_close(found, torch.tensor([0.05, 0.0]))
    none = depth_loss(depth[:0], target, counted[:0], torch.zeros(0, dtype=torch.long))
    assert none.shape == (0,)


def test_gradient_of_the_depth_loss_reaches_counted_cells_alone() -> None:
    # d/dD (D - t)^2 / 2 cells = D - t
    depth = torch.tensor([[[0.5, 0.9, 0.1]]], requires_grad=True)
    counted = torch.tensor([[[True, True, False]]])
    depth_loss(depth, torch.tensor([[[51.0, 255, 7]]]), counted, torch.tensor([0])).sum().backward()
    torch.testing.assert_close(depth.grad, torch.tensor([[[0.3, -0.1, 0.0]]]))
