"""Every form as a file: outputs, free batch, and the same answers on every engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from boxseg.config import ModelConfig
from boxseg.errors import FileMismatchError
from boxseg.export.lowering import FLOAT_TYPES, lower, name_nodes
from boxseg.export.quantization import ChosenRange, layers_of, quantize
from boxseg.export.to_onnx import TracedGraph, trace, write_onnx
from boxseg.export.to_openvino import write_openvino
from boxseg.export.to_tensorrt import refused_nodes
from boxseg.export.verify import drawn_samples, hold
from boxseg.inference import TorchBackend, describe
from boxseg.runtime.backends import open_backend
from boxseg.runtime.segmenter import Segmenter
from boxseg.student import Student

BATCH = (1, 2, 3)


@pytest.fixture(scope="module")
def student() -> Student:
    """Return a network of few layers, because a free batch is traced slowly."""
    torch.manual_seed(0)
    config = ModelConfig(
        classes=("star", "ring"),
        category_ids=(3, 7),
        backbone="resnet18",
        fpn_channels=8,
        tower_channels=8,
        tower_depth=1,
        mask_channels=4,
        mask_branch_channels=8,
        mask_branch_depth=0,
        imgsz=(96, 128),
    )
    made = Student(config)
    torch.nn.init.normal_(made.head.class_logits.weight, std=0.5)  # else nearly all scores tie
    torch.nn.init.zeros_(made.get_parameter("head.class_logits.bias"))
    return made.eval()


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_every_location_passes_the_gate_in_a_free_batch(
    exporter: str, student: Student, tmp_path: Path
) -> None:
    traced = trace(student, describe(student.config, batch=BATCH), exporter=exporter)
    assert refused_nodes(traced.model) == []
    network = TorchBackend(student, short_long=False, batch=BATCH)
    for file in (
        write_onnx(traced, tmp_path / "best.onnx"),
        write_openvino(traced, tmp_path / "best_openvino_model"),
    ):
        report = hold(str(file), "network", open_backend(file), network, drawn_samples())
        assert report.passed, report.failure()
        assert report.detections.expected > 100


@pytest.fixture(scope="module", params=["topk", "graph"])
def form(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def graphs() -> dict[str, TracedGraph]:
    """Return what was traced so far, by form: pytest may come back to a form."""
    return {}


@pytest.fixture(scope="module")
def traced(form: str, student: Student, graphs: dict[str, TracedGraph]) -> TracedGraph:
    if form not in graphs:
        graphs[form] = trace(student, describe(student.config, form=form, batch=BATCH))
    return graphs[form]


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def file(
    request: pytest.FixtureRequest, traced: TracedGraph, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("forms")
    if request.param == "onnxruntime":
        return write_onnx(traced, folder / "best.onnx")
    return write_openvino(traced, folder / "best_openvino_model")


def test_the_outputs_are_those_of_the_form(form: str, traced: TracedGraph) -> None:
    found = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in traced.model.graph.output
    }
    # 257 locations of 2 classes are 514 pairs, fewer than the 1000 of the form topk
    count = 514 if form == "topk" else 300
    last = {"parameters": ["batch", count, 137], "mask_logits": ["batch", count, 12, 16]}
    name = "parameters" if form == "topk" else "mask_logits"
    assert found == {
        "scores": ["batch", count],
        "labels": ["batch", count],
        "boxes": ["batch", count, 4],
        "locations": ["batch", count, 2],
        "levels": ["batch", count],
        name: last[name],
        "mask_features": ["batch", 4, 12, 16],
    }
    kinds = {value.name: value.type.tensor_type.elem_type for value in traced.model.graph.output}
    integers = [name for name, kind in kinds.items() if kind == onnx.TensorProto.INT32]
    assert integers == ["labels", "levels"]


def test_every_weight_is_proven(student: Student, traced: TracedGraph) -> None:
    state = [
        value
        for name, value in student.state_dict().items()
        if not name.endswith("num_batches_tracked")
    ]
    assert traced.proof.weights == len(state)
    assert traced.proof.parameters == sum(value.numel() for value in state)
    assert all(int(np.prod(shape)) <= 16 for shape in traced.proof.constants.values())


def test_tensorrt_would_take_every_node(traced: TracedGraph) -> None:
    assert refused_nodes(traced.model) == []


def test_tensorrt_would_take_every_node_in_reduced_precision(traced: TracedGraph) -> None:
    model = name_nodes(traced.model)
    layers = layers_of(model)
    ranges = {name: ChosenRange("minmax", 1.0, {}) for each in layers for name in each.inputs}
    assert refused_nodes(quantize(model, layers, ranges)) == []
    assert refused_nodes(lower(model, FLOAT_TYPES["fp16"], set())) == []
    model.opset_import[0].version = FLOAT_TYPES["bf16"].oldest_opset
    assert refused_nodes(lower(model, FLOAT_TYPES["bf16"], set())) == []


def test_the_image_is_cast_before_anything_else(traced: TracedGraph) -> None:
    readers = [node.op_type for node in traced.model.graph.node if "image" in node.input]
    assert set(readers) <= {"Cast", "Shape"}


def test_a_file_whose_batch_is_not_the_promised_one_is_refused(
    traced: TracedGraph, tmp_path: Path
) -> None:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(traced.model)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    path = write_onnx(TracedGraph(fixed, traced.proof), tmp_path / "fixed.onnx")
    with pytest.raises(FileMismatchError, match=r"the graph has uint8 image \[1, 96, 128, 3\]"):
        open_backend(path)


def test_the_gate_passes_alone_and_in_a_batch(form: str, file: Path, student: Student) -> None:
    network = TorchBackend(student, short_long=False, form=form, batch=BATCH)
    report = hold(str(file), "network", open_backend(file), network, drawn_samples())
    assert report.passed, report.failure()
    assert report.detections.expected > 100


def test_the_forms_answer_alike_at_the_same_number_of_candidates(
    form: str, file: Path, student: Student
) -> None:
    dense = TorchBackend(student, short_long=False)
    found = Segmenter(file, conf=0.0)
    dense.metadata["nms"]["candidates"] = found.metadata.candidates
    expected = Segmenter(dense, conf=0.0)
    frames = list(drawn_samples(seed=1, count=4).frames.values())
    together = found.batch(frames)  # runs of 3 and 1
    for frame, answer in zip(frames, together, strict=True):
        truth = expected(frame)
        assert len(answer) == len(truth) > 50
        assert answer.labels.tolist() == truth.labels.tolist()
        np.testing.assert_allclose(answer.scores, truth.scores, atol=1e-5)
        np.testing.assert_allclose(answer.xyxy, truth.xyxy, atol=1e-2)
        assert (answer.dense() != truth.dense()).sum() <= 5
