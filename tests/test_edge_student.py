"""The edge student: what it costs, and that its norms are gone after export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from boxseg.config import ModelConfig
from boxseg.configs import find_recipe
from boxseg.export.to_onnx import trace
from boxseg.export.to_openvino import write_openvino
from boxseg.inference import describe
from boxseg.student import Student
from boxseg.train.recipe import read_recipe


def config(classes: int) -> ModelConfig:
    """Return the network of the recipe for so many classes."""
    recipe = read_recipe(find_recipe("boxinst_edge"))
    names = [f"class {number}" for number in range(classes)]
    return recipe.model.build(names, range(1, classes + 1))


def gmac(network: ModelConfig) -> float:
    """Count the multiplications of a frame of 640 x 640, in thousands of millions."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        Student(network).eval()(torch.zeros(1, 3, 640, 640))
    return float(counter.get_total_flops()) / 2e9  # a multiplication with its sum counts as two


def test_a_frame_costs_less_than_6_gmac_up_to_80_classes() -> None:
    # 6400 + 1600 + 400 + 100 + 25 = 8525 locations; 78 more classes: 64 * 9 * 78 * 8525 = 0.383
    few, many = gmac(config(2)), gmac(config(80))
    assert abs((many - few) - 0.383) < 0.001
    assert 5 < few < many < 6


def test_the_controller_is_slim() -> None:
    network = config(2)
    assert network.mask_head_parameters == 10 * 8 + 8 * 8 + 8 + 8 + 8 + 1 == 169
    # 64 * 9 * (233 - 169) * 8525 = 0.314
    assert abs(gmac(replace(network, mask_channels=16)) - gmac(network) - 0.314) < 0.01


def test_no_norm_is_left_after_export(tmp_path: Path) -> None:
    import openvino

    torch.manual_seed(0)
    network = replace(config(2), imgsz=(64, 64))
    student = Student(network).eval()
    with torch.no_grad():
        for name, value in student.named_buffers():  # norms that do something
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
    traced = trace(student, describe(network))
    assert "BatchNormalization" not in {node.op_type for node in traced.model.graph.node}
    model = openvino.Core().read_model(str(write_openvino(traced, tmp_path)))
    assert not [op for op in model.get_ops() if "BatchNorm" in op.get_type_name()]
