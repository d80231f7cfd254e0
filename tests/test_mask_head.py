"""Dynamic mask head in torch against the reference (vectors.npz) and by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from boxseg.config import ModelConfig
from boxseg.mask_head import (
    COORDINATE_SCALES,
    dynamic_mask_head,
    dynamic_mask_layers,
    split_parameters,
)

VECTORS = np.load(Path(__file__).with_name("vectors.npz"))


@pytest.mark.parametrize("name", ["head233", "head169"])
def test_logits_match_the_reference(name: str) -> None:
    part = {
        key: torch.from_numpy(VECTORS[f"{name}_{key}"])
        for key in ("features", "params", "locations", "levels", "logits")
    }
    scales = torch.tensor(COORDINATE_SCALES)[part["levels"]]
    found = dynamic_mask_head(
        part["features"], part["params"], part["locations"].float(), scales, (8, 8, 1)
    )
    torch.testing.assert_close(found, part["logits"], rtol=1e-5, atol=1e-5)


def test_a_one_layer_head_is_a_dot_product_with_coordinates_first() -> None:
    # weights (rel x, rel y, feature) = (1, 0, 2), bias 3; location x = 68, scale 64,
    # cell centres x = 4 and 12: rel x = 1 and 0.875
    features = torch.tensor([[[10.0, 20.0]]])
    found = dynamic_mask_head(
        features,
        torch.tensor([[1.0, 0.0, 2.0, 3.0]]),
        torch.tensor([[68.0, 4.0]]),
        torch.tensor([64.0]),
        (1,),
    )
    torch.testing.assert_close(found, torch.tensor([[[1 + 20 + 3.0, 0.875 + 40 + 3]]]))


def test_a_head_of_one_layer_has_no_hidden_layer() -> None:
    _, hidden = dynamic_mask_layers(
        torch.ones(1, 2, 3), torch.ones(4, 4), torch.ones(4, 2), torch.ones(4), (1,)
    )
    assert hidden.shape == (4, 0, 2, 3)


def test_no_instance_gives_no_mask() -> None:
    found = dynamic_mask_head(
        torch.zeros(16, 4, 5), torch.zeros(0, 233), torch.zeros(0, 2), torch.zeros(0), (8, 8, 1)
    )
    assert found.shape == (0, 4, 5)


@pytest.mark.parametrize(("channels", "parameters"), [(16, 233), (8, 169)])
def test_config_counts_the_parameters_of_the_papers(channels: int, parameters: int) -> None:
    config = ModelConfig(classes=("a",), category_ids=(1,), mask_channels=channels)
    assert config.mask_head_parameters == parameters


def test_a_wrong_number_of_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="got 168 parameters per instance, need 169"):
        split_parameters(torch.zeros(1, 168), 10, (8, 8, 1))


def test_several_images_at_once_are_each_image_alone() -> None:
    torch.manual_seed(0)
    features, parameters = torch.randn(3, 4, 5, 6), torch.randn(3, 2, 137)
    locations, scales = torch.rand(3, 2, 2) * 48, torch.tensor([[64.0, 128.0]]).expand(3, 2)
    found = dynamic_mask_head(features, parameters, locations, scales, (8, 8, 1))
    assert found.shape == (3, 2, 5, 6)
    for image in range(3):
        alone = dynamic_mask_head(
            features[image], parameters[image], locations[image], scales[image], (8, 8, 1)
        )
        torch.testing.assert_close(found[image], alone)
