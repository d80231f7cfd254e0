"""Graphs of a few 1 x 1 convolutions, whose numbers can be worked by hand."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from boxseg.export.calibration import open_session
from boxseg.export.lowering import name_nodes

Weights = dict[str, NDArray[np.float32]]


def network(nodes: list[onnx.NodeProto], weights: Weights, side: int = 2) -> onnx.ModelProto:
    """Return a graph of a square image; `x` is its bytes as float32, (1, 3, side, side)."""
    head = [
        helper.make_node("Transpose", ["image"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["x"], "widen", to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        head + nodes,
        "by_hand",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, (1, side, side, 3))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return onnx.shape_inference.infer_shapes(name_nodes(model))


def layer(name: str, source: str, target: str) -> onnx.NodeProto:
    """Return a 1 x 1 convolution with the weights `<name>.weight`."""
    return helper.make_node("Conv", [source, f"{name}.weight"], [target], name)


def diagonal(*values: float) -> NDArray[np.float32]:
    """Return weights of a 1 x 1 convolution of three channels."""
    return np.diag(values).astype(np.float32)[:, :, None, None]


def image(*rgb: int, side: int = 2) -> NDArray[np.uint8]:
    return np.broadcast_to(np.array(rgb, np.uint8), (1, side, side, 3)).copy()


def run(model: onnx.ModelProto, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the three channels of the first pixel."""
    onnx.checker.check_model(model, full_check=True)
    return np.asarray(open_session(model).run(None, {"image": pixels})[0])[0, :, 0, 0]
