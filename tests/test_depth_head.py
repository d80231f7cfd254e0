"""Depth-guided mask head: values by hand, and that it can be stripped."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import frame_surface
from torch import Tensor

from boxseg.config import ModelConfig
from boxseg.student import DensePredictions, Student
from boxseg.train.criterion import build_criterion
from boxseg.train.depth_head import DepthHead, Form, GuidedMasks


def config(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "classes": ("a",),
        "category_ids": (1,),
        "backbone": "resnet18",
        "fpn_channels": 16,
        "tower_channels": 16,
        "tower_depth": 1,
        "mask_channels": 4,
        "mask_branch_channels": 8,
        "mask_branch_depth": 1,
    }
    return ModelConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def predictions() -> DensePredictions:
    torch.manual_seed(0)
    found: DensePredictions = Student(config()).eval()(torch.rand(2, 3, 64, 96) * 255)
    return found


PLACES = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 95, 11, 128])
"""Two corners of P3 in the first image; a corner of P3 and the one cell of P7 in the second."""


def guided(
    predictions: DensePredictions, z: Tensor, d: Tensor, form: Form = "contract"
) -> GuidedMasks:
    """Guide one mask of logits z, (h, w), by d, (h, w): M_d is the identity on F1 = logit of d."""
    head = DepthHead(config(mask_head_channels=1), form)
    with torch.no_grad():
        head.controller.weight.zero_()
        assert head.controller.bias is not None
        head.controller.bias.copy_(torch.tensor([1.0, 0.0]))
    one = torch.zeros(1, dtype=torch.long)
    hidden = [torch.logit(d)[None, None], d.new_zeros((0, 1, *d.shape))]
    found: GuidedMasks = head(predictions, one, one, z[None], hidden)
    return found


def test_surfaces_are_sampled_first_and_multiplied_afterwards(
    predictions: DensePredictions,
) -> None:
    # stride-4 centres of a row of two cells lie at -0.25, 0.25, 0.75 and 1.25 cells, clamped:
    # Z = -4, -2, 2, 4 and D = 0.2, 0.35, 0.65, 0.8, so D' = 0.24, 0.3825, 0.6675, 0.81
    found = guided(predictions, torch.tensor([[-4.0, 4.0]]), torch.tensor([[0.2, 0.8]]))
    torch.testing.assert_close(found.plain[0, 0], torch.tensor([-4.0, -2, 2, 4]))
    torch.testing.assert_close(found.depth[0, 0], torch.tensor([0.2, 0.35, 0.65, 0.8]))
    torch.testing.assert_close(found.logits[0, 1], torch.tensor([-0.96, -0.765, 1.335, 3.24]))


def test_the_form_of_the_paper_interpolates_the_product(predictions: DensePredictions) -> None:
    # z d = -0.8, 3.2; between them -0.8 + 4 / 4 = 0.2, where Z is -2
    found = guided(predictions, torch.tensor([[-4.0, 4.0]]), torch.tensor([[0.2, 0.8]]), "paper")
    torch.testing.assert_close(found.logits[0, 0], torch.tensor([-0.8, 0.2, 2.2, 3.2]))
    torch.testing.assert_close(found.plain[0, 0], torch.tensor([-4.0, -2, 2, 4]))


def test_a_mask_is_the_same_with_and_without_the_branch(predictions: DensePredictions) -> None:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(8, 12, generator=generator) * 3
    # from certainly far, where d is 0 in float32, to certainly near
    d = (torch.randn(8, 12, generator=generator) * 60).sigmoid()
    assert d.min() < 1e-30
    found = guided(predictions, z, d)
    assert torch.equal(found.logits.sign(), found.plain.sign())
    # at the pixels of a frame, through a letterbox: both surfaces are sampled where the pixel lies
    plain = frame_surface(z.numpy(), (150, 221), (64, 94))
    nearness = frame_surface(d.numpy(), (150, 221), (64, 94))
    assert ((plain * (0.05 + 0.95 * nearness) > 0) == (plain > 0)).all()
    # which is no matter of course: the paper's form and a product without the floor move masks
    paper = guided(predictions, z, d, "paper")
    assert not torch.equal(paper.logits.sign(), paper.plain.sign())


def test_the_controller_is_a_convolution_at_chosen_locations(
    predictions: DensePredictions,
) -> None:
    head = DepthHead(config())
    assert head.controller.bias is not None
    torch.nn.init.normal_(head.controller.weight)
    torch.nn.init.normal_(head.controller.bias)
    images, places = PLACES
    hidden = [torch.rand(2, 8, 8, 12), torch.rand(2, 8, 8, 12)]
    found = head(predictions, images, places, torch.ones(4, 8, 12), hidden)
    whole = [head.controller(level).flatten(2) for level in predictions.box_features]
    vectors = torch.cat(whole, dim=2)[images, :, places]  # (4, 9)
    response = (torch.cat(hidden) * vectors[:, :8, None, None]).sum(dim=1) + vectors[
        :, 8, None, None
    ]
    expected = F.interpolate(response.sigmoid()[None], scale_factor=2, mode="bilinear")[0]
    torch.testing.assert_close(found.depth, expected, rtol=1e-4, atol=1e-5)


def test_features_in_half_precision_are_read_as_float32(predictions: DensePredictions) -> None:
    halves = replace(
        predictions, box_features=tuple(level.bfloat16() for level in predictions.box_features)
    )
    hidden = [torch.rand(2, 8, 8, 12), torch.rand(2, 8, 8, 12)]
    found = DepthHead(config())(halves, *PLACES, torch.ones(4, 8, 12), hidden)
    assert found.depth.dtype == found.logits.dtype == torch.float32


def test_the_student_ships_without_the_branch() -> None:
    shape = config()
    torch.manual_seed(0)
    without = Student(shape).state_dict()
    torch.manual_seed(0)
    student = Student(shape)
    criterion = build_criterion({"focal": {}, "depth": {}}, shape)
    # 9 x 16 x 3 x 3 weights and 9 biases are the criterion's
    assert sum(value.numel() for value in criterion.parameters()) == 9 * 16 * 9 + 9
    beside = student.state_dict()
    assert list(beside) == list(without)
    assert all(torch.equal(beside[name], value) for name, value in without.items())


def test_depth_starts_undecided(predictions: DensePredictions) -> None:
    hidden = [torch.rand(2, 8, 8, 12), torch.rand(2, 8, 8, 12)]
    found = DepthHead(config())(predictions, *PLACES, torch.full((4, 8, 12), 2.0), hidden)
    # d = 0.5: 2 * (0.05 + 0.95 / 2) = 1.05
    assert math.isclose(found.logits.mean().item(), 1.05, abs_tol=0.1)


@pytest.mark.parametrize("form", ["contract", "paper"])
def test_a_share_of_the_guidance_lies_between_the_masks_as_they_ship_and_all_of_it(
    form: Form, predictions: DensePredictions
) -> None:
    hidden = [torch.rand(2, 8, 8, 12), torch.rand(2, 8, 8, 12)]
    logits = torch.randn(4, 8, 12)
    head = DepthHead(config(), form)
    none, quarter, whole = (
        head(predictions, *PLACES, logits, hidden, part) for part in (0, 0.25, 1)
    )
    assert torch.equal(none.logits, none.plain)
    assert not torch.allclose(whole.logits, none.logits)
    torch.testing.assert_close(quarter.logits, 0.75 * none.logits + 0.25 * whole.logits)
    # the depth is learned whatever its share
    assert torch.equal(none.depth, whole.depth)


def test_a_mask_head_without_a_hidden_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="mask_head_layers must be at least 2, got 1"):
        DepthHead(config(mask_head_layers=1))
