"""Contradictions in a network's config are refused with the option's path."""

import re
from typing import Any

import pytest

from boxseg.config import ModelConfig


def config(**changes: Any) -> ModelConfig:
    return ModelConfig(**{"classes": ("a", "b"), "category_ids": (3, 7), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": (), "category_ids": ()}, "model.classes is empty"),
        ({"category_ids": (3,)}, "model.category_ids has 1 entries for 2 classes"),
        ({"backbone": "vgg"}, "model.backbone must be one of resnet18"),
        ({"tower_norm": "layer"}, "model.tower_norm must be one of group, batch, none"),
        ({"score0": "best"}, "model.score0 must be one of"),
        ({"fpn_channels": 0}, "model.fpn_channels must be an integer in 1..4096, got 0"),
        ({"tower_depth": -1}, "model.tower_depth must be an integer in 0..64, got -1"),
        ({"tower_channels": 10**9}, "model.tower_channels must be an integer in 1..4096, got 1000"),
        ({"max_det": True}, "model.max_det must be an integer in 1..1000000, got True"),
        ({"classes": ("a", 3)}, "model.classes must be names, got 3"),
        ({"category_ids": (3, "7")}, "model.category_ids must be integers of at least 0, got '7'"),
        ({"tower_channels": 12}, "model.tower_channels must be a multiple of 8"),
        (
            {"imgsz": (320, 630)},
            "model.imgsz must be multiples of 32 (height width), 32..32768, got 320 630",
        ),
        ({"imgsz": (32, 32800)}, "model.imgsz must be multiples of 32"),
        ({"short_long": (640, 320)}, "model.short_long must be 0 < short <= long"),
        ({"nms_iou": 1.5}, "model.nms_iou must be in [0, 1], got 1.5"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        config(**changes)


def test_a_config_survives_json_types() -> None:
    original = config(imgsz=(320, 640), short_long=(320, 640))
    assert ModelConfig.from_dict(original.to_dict()) == original


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(ValueError, match="model has unknown keys depth; known: "):
        ModelConfig.from_dict({**config().to_dict(), "depth": 3})


def test_one_dynamic_layer_is_a_dot_product() -> None:
    # 16 features and 2 coordinates to 1 logit, and a bias
    assert config(mask_head_layers=1).mask_head_parameters == 19
