"""The deployed network: shapes, geometry and that every parameter is used."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from boxseg.backbone import Backbone
from boxseg.config import BackboneName, ModelConfig
from boxseg.errors import FileMismatchError
from boxseg.fcos_head import LevelBatchNorms
from boxseg.mask_head import COORDINATE_SCALES, dynamic_mask_head
from boxseg.student import PIXEL_MEAN, Student, grid_locations


def small(**changes: Any) -> Student:
    values: dict[str, Any] = {
        "classes": ("a", "b", "c"),
        "category_ids": (1, 2, 3),
        "backbone": "resnet18",
        "fpn_channels": 16,
        "tower_channels": 16,
        "tower_depth": 1,
        "mask_channels": 4,
        "mask_branch_channels": 8,
        "mask_branch_depth": 1,
    }
    return Student(ModelConfig(**{**values, **changes}))


@pytest.mark.parametrize("name", get_args(BackboneName))
def test_every_backbone_gives_a_pyramid_of_strides_8_to_128(name: BackboneName) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        levels = Backbone(name, 8).eval()(torch.zeros(1, 3, 64, 96))
    sizes = [tuple(level.shape[1:]) for level in levels]
    assert sizes == [(8, 8, 12), (8, 4, 6), (8, 2, 3), (8, 1, 2), (8, 1, 1)]


def test_predictions_have_the_shapes_of_the_contract() -> None:
    student = small().eval()
    with torch.no_grad():
        found = student(torch.zeros(2, 3, 64, 96, dtype=torch.uint8))
    locations = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1
    parameters = 6 * 8 + 8 * 8 + 8 + 8 + 8 + 1
    assert found.class_logits.shape == (2, locations, 3)
    assert found.quality_logits.shape == (2, locations)
    assert found.boxes.shape == (2, locations, 4)
    assert found.parameters.shape == (2, parameters, locations)
    assert found.mask_features.shape == (2, 4, 8, 12)
    assert found.levels.bincount().tolist() == [96, 24, 6, 2, 1]


def test_boxes_lie_around_their_locations_in_strides() -> None:
    student = small().eval()
    with torch.no_grad():
        found = student(torch.rand(1, 3, 64, 64) * 255)
    strides = torch.tensor([8.0, 16, 32, 64, 128])[found.levels][:, None]
    left_top = found.locations - found.distances[0, :, :2] * strides
    torch.testing.assert_close(found.boxes[0, :, :2], left_top)
    assert (found.distances >= 0).all()


def test_cell_centres_follow_the_stride() -> None:
    locations, levels = grid_locations([(1, 2), (1, 1), (1, 1), (1, 1), (1, 1)])
    assert locations.tolist() == [[4, 4], [12, 4], [8, 8], [16, 16], [32, 32], [64, 64]]
    assert levels.tolist() == [0, 0, 1, 2, 3, 4]


def test_every_parameter_is_used_on_every_frame() -> None:
    student = small().eval()
    found = student(torch.rand(1, 3, 128, 128) * 255)
    masks = student.masks_at(found, torch.zeros(1, dtype=torch.long), torch.tensor([3]))
    total = found.class_logits.sum() + found.quality_logits.sum() + found.boxes.sum()
    (total + masks.sum()).backward()
    assert [name for name, value in student.named_parameters() if value.grad is None] == []


def test_bytes_and_floats_give_the_same_answer_and_the_mean_colour_is_zero() -> None:
    student = small().eval()
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(student(image).boxes, student(image.float()).boxes)
        mean = torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1).expand(1, 3, 32, 32)
        inside: list[torch.Tensor] = []
        student.backbone.register_forward_pre_hook(lambda _, given: inside.append(given[0]))
        student(mean)
    assert inside[0].abs().max() == 0


def test_a_size_that_is_no_multiple_of_32_is_refused() -> None:
    with pytest.raises(ValueError, match="image sides must be multiples of 32, got 64 100"):
        small()(torch.zeros(1, 3, 64, 100))


def test_masks_of_several_images_are_those_of_each_image_alone() -> None:
    student = small().eval()
    with torch.no_grad():
        found = student(torch.rand(2, 3, 64, 64) * 255)
        together = student.masks_at(found, torch.tensor([0, 1, 1]), torch.tensor([5, 0, 70]))
        scale = torch.tensor(COORDINATE_SCALES)
        for row, (image, place) in enumerate(((0, 5), (1, 0), (1, 70))):
            alone = dynamic_mask_head(
                found.mask_features[image],
                found.parameters[image, :, place][None],
                found.locations[place][None],
                scale[found.levels[place]][None],
                (8, 8, 1),
            )
            torch.testing.assert_close(together[row], alone[0], rtol=1e-5, atol=1e-5)


def test_the_layers_of_a_mask_are_its_logits_and_what_the_last_layer_read() -> None:
    torch.manual_seed(1)
    student = small(mask_head_channels=5).eval()
    images, places = torch.tensor([0, 1, 1]), torch.tensor([5, 0, 70])
    with torch.no_grad():
        found = student(torch.rand(3, 3, 64, 64) * 255)
        logits, hidden = student.mask_layers_at(found, images, places)
        assert [tuple(part.shape) for part in hidden] == [(1, 5, 8, 8), (2, 5, 8, 8), (0, 5, 8, 8)]
        assert torch.equal(logits, student.masks_at(found, images, places))
        # parameters: weights 5 x 6, 5 x 5, 1 x 5, then biases 5, 5, 1
        vectors = found.parameters[images, :, places]
        last_weight, last_bias = vectors[:, 55:60], vectors[:, 70]
        again = (torch.cat(hidden) * last_weight[:, :, None, None]).sum(1) + last_bias[
            :, None, None
        ]
    assert all((part >= 0).all() for part in hidden)
    torch.testing.assert_close(logits, again)


def test_the_box_features_are_what_controller_and_boxes_read() -> None:
    student = small().eval()
    with torch.no_grad():
        found = student(torch.rand(2, 3, 64, 96) * 255)
        sizes = [tuple(level.shape) for level in found.box_features]
        assert sizes == [(2, 16, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3), (2, 16, 1, 2), (2, 16, 1, 1)]
        levels = [student.head.controller(level).flatten(2) for level in found.box_features]
    torch.testing.assert_close(torch.cat(levels, dim=2), found.parameters)


def test_parameters_of_chosen_locations_are_those_of_everywhere() -> None:
    student = small().eval()
    torch.nn.init.normal_(student.head.controller.weight)
    with torch.no_grad():
        found = student(torch.rand(2, 3, 64, 96) * 255)
        count = found.parameters.shape[2]
        # all of them, corners and edges of every level too, in another order per image
        chosen = torch.stack([torch.arange(count), torch.randperm(count)])
        parameters = student.head.parameters_at(
            found.box_features, found.locations[chosen], found.levels[chosen]
        )
    for image in range(2):
        expected = found.parameters[image][:, chosen[image]].T
        torch.testing.assert_close(parameters[image], expected, rtol=1e-5, atol=1e-5)


def test_no_instance_has_no_mask_and_keeps_the_gradient_whole() -> None:
    student = small()
    found = student(torch.rand(2, 3, 64, 64) * 255)
    none = torch.zeros(0, dtype=torch.long)
    masks = student.masks_at(found, none, none)
    assert masks.shape == (0, 8, 8)


def test_a_backbone_starts_from_a_file(tmp_path: Path) -> None:
    import torchvision.models

    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = Backbone("resnet18", 8, str(tmp_path / "weights.pth"))
    ours = backbone.stages[1].get_parameter("0.conv1.weight")
    assert torch.equal(ours, network.get_parameter("layer1.0.conv1.weight"))


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(FileMismatchError, match="is not a state_dict of torchvision's resnet18"):
        Backbone("resnet18", 8, str(tmp_path / "weights.pth"))


def test_an_unknown_weight_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="must be a file or one of IMAGENET1K_V1 for resnet18"):
        Backbone("resnet18", 8, "IMAGENET")


def test_batch_norms_in_towers_keep_the_levels_apart() -> None:
    norms = LevelBatchNorms(2)
    for norm in norms:
        norm.momentum = 1.0  # statistics in use are those of the last step
    generator = torch.Generator().manual_seed(0)
    features = [
        torch.randn(2, 2, 40, 40, generator=generator) * (1 + level) + 10 * level
        for level in range(5)
    ]
    trained = [norms(feature, level) for level, feature in enumerate(features)]
    used = [norms.eval()(feature, level) for level, feature in enumerate(features)]
    for level in range(5):
        torch.testing.assert_close(used[level], trained[level], atol=2e-3, rtol=1e-3)
        assert abs(used[level].mean().item()) < 1e-4
        assert abs(used[level].std().item() - 1) < 1e-3


def test_a_student_with_batch_norms_has_twenty_of_them_in_its_towers() -> None:
    student = small(tower_norm="batch", tower_depth=2)
    # 2 towers of 2 layers, 5 levels each; the convolutions are shared
    norms = [m for m in student.head.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 20
    assert sum(value.ndim == 4 for value in student.head.class_tower.state_dict().values()) == 2
