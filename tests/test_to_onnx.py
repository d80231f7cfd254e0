"""The ONNX file: inputs, outputs, metadata, and which weights are inside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from boxseg.errors import ParityError, UnsupportedOperatorError
from boxseg.export.to_onnx import EXPORT_KEY, TracedGraph, trace, write_onnx
from boxseg.export.to_tensorrt import refused_nodes
from boxseg.export.verify import prove_strip
from boxseg.inference import OUTPUT_NAMES, DenseGraph, describe
from boxseg.runtime.metadata import METADATA_KEY
from boxseg.student import Student


def shape_of(value: onnx.ValueInfoProto) -> list[int]:
    return [int(side.dim_value) for side in value.type.tensor_type.shape.dim]


def test_graph_has_the_dense_form(tiny_graph: TracedGraph) -> None:
    graph = tiny_graph.model.graph
    assert [(value.name, shape_of(value)) for value in graph.input] == [("image", [1, 96, 128, 3])]
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    # locations at 96 x 128: 12*16 + 6*8 + 3*4 + 2*2 + 1*1 = 257
    # parameters: (4+2)*8 + 8*8 + 8*1 weights and 8 + 8 + 1 biases = 137
    assert [(value.name, shape_of(value)) for value in graph.output] == [
        ("class_logits", [1, 257, 2]),
        ("quality_logits", [1, 257]),
        ("boxes", [1, 257, 4]),
        ("parameters", [1, 137, 257]),
        ("mask_features", [1, 4, 12, 16]),
    ]


def test_file_answers_like_torch(
    tiny_student: Student, tiny_graph: TracedGraph, tmp_path: Path
) -> None:
    path = write_onnx(tiny_graph, tmp_path / "deep" / "tiny.onnx")
    image = np.random.default_rng(1).integers(0, 256, (1, 96, 128, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(list(OUTPUT_NAMES["dense"]), {"image": image})
    with torch.inference_mode():
        expected = DenseGraph(tiny_student)(torch.from_numpy(image))
    for truth, answer in zip(expected, found, strict=True):
        np.testing.assert_allclose(answer, truth.numpy(), rtol=1e-4, atol=1e-4)


def test_metadata_travel_inside(tiny_student: Student, tiny_graph: TracedGraph) -> None:
    stored = {entry.key: json.loads(entry.value) for entry in tiny_graph.model.metadata_props}
    assert stored[METADATA_KEY] == describe(tiny_student.config)
    assert stored[METADATA_KEY]["category_ids"] == [3, 7]
    assert stored[EXPORT_KEY]["opset"] == 18
    assert stored[EXPORT_KEY]["torch"] == str(torch.__version__)


def test_no_path_of_this_machine_is_inside(tiny_graph: TracedGraph) -> None:
    content = tiny_graph.model.SerializeToString()
    assert str(Path(__file__).resolve().parent.parent).encode() not in content
    assert b"stack_trace" not in content


def test_every_weight_is_proven(tiny_student: Student, tiny_graph: TracedGraph) -> None:
    state = {
        name: value
        for name, value in tiny_student.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert tiny_graph.proof.weights == len(state)
    assert tiny_graph.proof.parameters == sum(value.numel() for value in state.values())
    assert tiny_graph.proof.size_bytes == 4 * tiny_graph.proof.parameters
    assert all(int(np.prod(shape)) <= 16 for shape in tiny_graph.proof.constants.values())


def _written_opset(student: Student, asked: int) -> int:
    traced = trace(student, describe(student.config), opset=asked)
    return {entry.domain: int(entry.version) for entry in traced.model.opset_import}[""]


def test_a_newer_opset_is_written_as_asked(tiny_student: Student) -> None:
    assert _written_opset(tiny_student, 21) == 21


def test_the_oldest_opset_is_written_or_the_cure_is_named(tiny_student: Student) -> None:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 9):
        assert _written_opset(tiny_student, 17) == 17
        return
    cure = r"try --exporter torchscript|--opset 18 is written natively"
    with pytest.raises(UnsupportedOperatorError, match=cure):
        _written_opset(tiny_student, 17)


@pytest.mark.parametrize(
    ("exporter", "opset", "last"),
    [("dynamo", 16, 23), ("dynamo", 24, 23), ("torchscript", 16, 20), ("torchscript", 21, 20)],
)
def test_an_opset_out_of_range_is_refused(
    tiny_student: Student, exporter: str, opset: int, last: int
) -> None:
    message = rf"--opset must be in 17\.\.{last} for {exporter}, got {opset}"
    with pytest.raises(ValueError, match=message):
        trace(tiny_student, describe(tiny_student.config), opset=opset, exporter=exporter)


def test_torchscript_proves_equal_weights_one_by_one(tiny_student: Student) -> None:
    traced = trace(tiny_student, describe(tiny_student.config), exporter="torchscript", opset=17)
    state = {
        name: value
        for name, value in tiny_student.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    # fresh norms have the same numbers; TorchScript by itself keeps one of them
    assert traced.proof.weights == len(state) > len({v.numpy().tobytes() for v in state.values()})
    # places, levels and strides of the 257 locations are computed while it traces
    assert [257, 2] in traced.proof.constants.values()
    assert [value.name for value in traced.model.graph.input] == ["image"]
    versions = {entry.domain: entry.version for entry in traced.model.opset_import}
    assert versions[""] == 17
    stored = {entry.key: json.loads(entry.value) for entry in traced.model.metadata_props}
    assert stored[EXPORT_KEY]["exporter"] == "torch.onnx torchscript"
    assert refused_nodes(traced.model) == []


def test_an_exporter_that_fails_says_where(
    tiny_student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise torch.onnx.errors.OnnxExporterError("step 3/3 failed") from RuntimeError(
            "node %norm has no dtype\nand more"
        )

    monkeypatch.setattr(torch.onnx, "export", fails)
    message = (
        r"cannot write this network as ONNX opset 18 by dynamo: step 3/3 failed: node %norm has "
        r"no dtype; try --exporter torchscript$"
    )
    with pytest.raises(UnsupportedOperatorError, match=message):
        trace(tiny_student, describe(tiny_student.config))


def hand_made_graph(**tensors: np.ndarray) -> onnx.GraphProto:
    """Return a graph that holds nothing but these initialisers."""
    return onnx.helper.make_graph(
        [],
        "graph",
        [],
        [],
        [
            numpy_helper.from_array(value, name.replace("__", "."))
            for name, value in tensors.items()
        ],
    )


WEIGHT = np.arange(24, dtype=np.float32).reshape(4, 6)


def test_strip_proof_counts_weights_and_constants() -> None:
    graph = hand_made_graph(student__weight=WEIGHT, scale=np.ones(5, np.float32))
    proof = prove_strip(graph, {"weight": WEIGHT, "bn.num_batches_tracked": np.array(7)})
    assert proof.weights == 1
    assert proof.parameters == 24
    assert proof.size_bytes == 96
    assert proof.constants == {"scale": [5]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hand_made_graph(), "weight of the model is missing from the graph"),
        (
            lambda: hand_made_graph(student__weight=WEIGHT + np.float32(1e-6)),
            "weight has other values",
        ),
        (lambda: hand_made_graph(student__weight=WEIGHT.T), r"float32 \(6, 4\) in the graph"),
        (
            lambda: hand_made_graph(student__weight=WEIGHT.astype(np.float16)),
            "weight is float16",
        ),
        (
            lambda: hand_made_graph(student__weight=WEIGHT, depth_head__weight=WEIGHT),
            r"holds depth_head.weight \[4, 6\], which is not in the model's state dict",
        ),
    ],
)
def test_strip_proof_refuses_anything_else(
    make: Callable[[], onnx.GraphProto], message: str
) -> None:
    with pytest.raises(ParityError, match=message):
        prove_strip(make(), {"weight": WEIGHT})


def test_strip_proof_sees_weights_in_a_constant_node() -> None:
    graph = hand_made_graph(student__weight=WEIGHT)
    tensor = numpy_helper.from_array(WEIGHT, "hidden")
    graph.node.append(onnx.helper.make_node("Constant", [], ["hidden"], "sly", value=tensor))
    with pytest.raises(ParityError, match="node sly holds a constant of 24 numbers"):
        prove_strip(graph, {"weight": WEIGHT})
    for other in (WEIGHT.T, WEIGHT.astype(np.float64), WEIGHT + np.float32(1e-6)):
        with pytest.raises(ParityError, match="node sly holds a constant of 24 numbers"):
            prove_strip(graph, {"weight": WEIGHT}, [other])
    proof = prove_strip(graph, {"weight": WEIGHT}, [WEIGHT.T, WEIGHT])  # computed, to the byte
    assert proof.constants == {"hidden": [4, 6]}
