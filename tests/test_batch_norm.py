"""Batch norms inside convolutions: the same answer without the node."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from boxseg.export.batch_norm import fold_batch_norms

NORM = {
    "scale": [2.0, 1.0],
    "shift": [1.0, 0.0],
    "mean": [3.0, 0.5],
    "variance": [3.0, 0.25],
}


def graph(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """Return a graph whose 1x1 convolution has the weights 4 and -1 and the bias 1 and 2."""
    tensors = {name: np.array(values, np.float32) for name, values in NORM.items()}
    tensors["w"] = np.array([4.0, -1.0], np.float32).reshape(2, 1, 1, 1)
    tensors["b"] = np.array([1.0, 2.0], np.float32)
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 1, 1, 2))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 2, 1, 2)) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    return model


def conv(output: str, *more: str) -> onnx.NodeProto:
    return helper.make_node("Conv", ["x", "w", *more], [output])


def norm(source: str, output: str) -> onnx.NodeProto:
    return helper.make_node("BatchNormalization", [source, *NORM], [output], epsilon=1.0)


def run(model: onnx.ModelProto) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    answers: list[NDArray[np.float32]] = session.run(
        None, {"x": np.array([5.0, -2.0], np.float32).reshape(1, 1, 1, 2)}
    )
    return answers


def test_a_folded_convolution_has_the_weights_worked_by_hand() -> None:
    # factor: 2 / sqrt(3 + 1) = 1 and 1 / sqrt(1.25) = 0.8944
    # weights 4 and -0.8944; biases (1 - 3) * 1 + 1 = -1 and (2 - 0.5) * 0.8944 = 1.3416
    model = graph(conv("c", "b"), norm("c", "y"))
    before = run(model)
    assert fold_batch_norms(model) == 1
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    weight, bias = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    np.testing.assert_allclose(weight.ravel(), [4.0, -0.894427], rtol=1e-6)
    np.testing.assert_allclose(bias, [-1.0, 1.341641], rtol=1e-6)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model)[0], before[0], rtol=1e-6)


def test_shared_weights_are_folded_once_for_all_their_uses() -> None:
    model = graph(conv("c"), norm("c", "y"), conv("d"), norm("d", "z"), outputs=("y", "z"))
    before = run(model)
    assert fold_batch_norms(model) == 2
    assert len(model.graph.initializer) == 2
    for ours, theirs in zip(run(model), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("more", ["c", "y"])
def test_a_convolution_that_others_read_keeps_its_norm(more: str) -> None:
    outputs = ("y", "c") if more == "c" else ("y",)
    nodes = [conv("c"), norm("c", "y")]
    if more == "y":
        nodes = [conv("c"), norm("c", "n"), helper.make_node("Add", ["n", "c"], ["y"])]
    model = graph(*nodes, outputs=outputs)
    before = model.SerializeToString()
    assert fold_batch_norms(model) == 0
    assert [node.op_type for node in model.graph.node][1] == "BatchNormalization"
    assert len(before) >= len(model.SerializeToString())


def test_a_graph_without_norms_stays_as_it_is() -> None:
    model = graph(conv("y", "b"))
    assert fold_batch_norms(model) == 0
    assert {tensor.name for tensor in model.graph.initializer} == {"w", "b"}
