"""The OpenVINO file: full precision, the same outputs, metadata inside."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch

from boxseg.export.to_onnx import EXPORT_KEY, TracedGraph
from boxseg.export.to_openvino import write_openvino
from boxseg.inference import OUTPUT_NAMES, DenseGraph, describe
from boxseg.runtime.metadata import METADATA_KEY
from boxseg.student import Student


@pytest.fixture(scope="module")
def xml(tiny_graph: TracedGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_openvino(tiny_graph, tmp_path_factory.mktemp("ov") / "best_openvino_model")


def test_folder_holds_the_two_files_users_expect(xml: Path) -> None:
    assert sorted(path.name for path in xml.parent.iterdir()) == ["best.bin", "best.xml"]


def test_metadata_travel_in_rt_info(xml: Path, tiny_student: Student) -> None:
    model = openvino.Core().read_model(str(xml))
    stored = json.loads(model.get_rt_info(METADATA_KEY).astype(str))
    assert stored == describe(tiny_student.config)
    made_by = json.loads(model.get_rt_info(EXPORT_KEY).astype(str))
    assert made_by["openvino"] == openvino.__version__


def test_weights_are_stored_as_float32(xml: Path, tiny_graph: TracedGraph) -> None:
    model = openvino.Core().read_model(str(xml))
    types = {
        operation.get_element_type().get_type_name()
        for operation in model.get_ops()
        if operation.get_type_name() == "Constant"
    }
    assert "f16" not in types
    assert "bf16" not in types
    # Batch norm is folded into convolutions, so a little less than all numbers remains.
    assert xml.with_suffix(".bin").stat().st_size > 0.95 * tiny_graph.proof.size_bytes


def test_file_answers_like_torch_in_full_precision(xml: Path, tiny_student: Student) -> None:
    image = np.random.default_rng(2).integers(0, 256, (1, 96, 128, 3), dtype=np.uint8)
    compiled = openvino.Core().compile_model(
        str(xml), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    found = compiled(image)
    with torch.inference_mode():
        expected = DenseGraph(tiny_student)(torch.from_numpy(image))
    for name, truth in zip(OUTPUT_NAMES["dense"], expected, strict=True):
        np.testing.assert_allclose(found[name], truth.numpy(), rtol=1e-4, atol=1e-4)
