"""Write a graph in fp16 or bf16, and in fp32 with the rounding of fp16 or bf16.

Weights are stored in the low type, every node has one type, and casts stand where types meet. The
graph's inputs and outputs keep their types. Which nodes stay in fp32 is decided in
`boxseg.export.precision`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from boxseg.errors import UnsupportedOperatorError

if TYPE_CHECKING:
    import onnx

FLOAT, UINT8, INT8, INT32, INT64, FLOAT16, BFLOAT16 = 1, 2, 3, 6, 7, 10, 16
"""ONNX's numbers of the types; onnx.TensorProto has them, and onnx is imported on use."""


@dataclass(frozen=True)
class FloatType:
    """A floating-point type of 16 bits."""

    name: str
    onnx_type: int
    bits: int
    """Significant bits, the hidden one included."""
    largest: float
    smallest: float
    """Least magnitude with all significant bits."""
    oldest_opset: int
    """First operator set in which convolutions take the type."""

    @property
    def unit(self) -> float:
        """Largest relative error of rounding."""
        return 2.0**-self.bits


FLOAT_TYPES = {
    "fp16": FloatType("fp16", FLOAT16, 11, 65504.0, 2.0**-14, 17),
    "bf16": FloatType("bf16", BFLOAT16, 8, 3.3895313892515355e38, 2.0**-126, 22),
}

FIXED = ("Constant", "ConstantOfShape", "Range", "EyeLike", "QuantizeLinear", "DequantizeLinear")
"""Their type does not follow from their inputs."""
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Layers with weights: nearly all of the work."""


def round_to(values: NDArray[np.float32], kind: FloatType) -> NDArray[np.float32]:
    """Round float32 values to the low type, to nearest with ties to even; too large is infinite."""
    if kind.name == "fp16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(values), rounded.astype(np.uint32).view(np.float32), values)


# ------------------------------------------------------------------------------ reading a graph


def name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which every node has a name of its own.

    Raises:
        UnsupportedOperatorError: if a node holds a graph (If, Loop): types inside would not follow.
    """
    from onnx import ModelProto

    copy = ModelProto()
    copy.CopyFrom(model)
    taken: set[str] = set()
    for index, node in enumerate(copy.graph.node):
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise UnsupportedOperatorError(
                f"{node.op_type} {node.name} holds a graph of its own; reduced precision needs a "
                "graph without branches"
            )
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)
    return copy


def tensor_types(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Return type and number of elements of every tensor; a free side counts as 1."""
    import onnx

    # the exporter's own notes fill in where inference does not know an operator
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    found = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        kind = value.type.tensor_type
        sides = [int(side.dim_value) or 1 for side in kind.shape.dim]
        found[value.name] = (int(kind.elem_type), int(np.prod(sides)))
    for tensor in inferred.graph.initializer:
        found[tensor.name] = (int(tensor.data_type), int(np.prod(tensor.dims)))
    return found


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operator set."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain == "")


def is_typed_input(node: onnx.NodeProto, index: int) -> bool:
    """Whether an input follows the node's type; scales and regions of a Resize are always fp32."""
    return not (node.op_type == "Resize" and index in (1, 2))


def float_inputs(node: onnx.NodeProto, types: Mapping[str, tuple[int, int]]) -> list[str]:
    """Return the float32 inputs that follow the node's type."""
    return [
        name
        for index, name in enumerate(node.input)
        if name and types[name][0] == FLOAT and is_typed_input(node, index)
    ]


def float_outputs(node: onnx.NodeProto, types: Mapping[str, tuple[int, int]]) -> list[str]:
    """Return the float32 outputs."""
    return [name for name in node.output if name and types[name][0] == FLOAT]


# ------------------------------------------------------------------------------------ lowering


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _low_nodes(
    model: onnx.ModelProto, stays: Container[str], types: Mapping[str, tuple[int, int]]
) -> set[str]:
    """Return the names of the nodes that compute in the low type."""
    return {
        node.name
        for node in model.graph.node
        if node.name not in stays
        and (float_inputs(node, types) or float_outputs(node, types))
        and node.op_type not in FIXED
    }


class _Weights:
    """Gives initialisers in the type that a node wants."""

    def __init__(
        self,
        model: onnx.ModelProto,
        low: set[str],
        kind: FloatType,
        *,
        stored_low: bool,
    ) -> None:
        """Prepare.

        Args:
            model: Whose initialisers are replaced; changed in place.
            low: Names of the lowered nodes.
            kind: Their type.
            stored_low: Store lowered weights in the low type; else as rounded float32.
        """
        from onnx import numpy_helper

        self._graph = model.graph
        self._kind = kind
        self._stored_low = stored_low
        self._values = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in model.graph.initializer
            if tensor.data_type == FLOAT
        }
        self._high = {
            name
            for node in model.graph.node
            for index, name in enumerate(node.input)
            if node.name not in low or not is_typed_input(node, index)
        }
        self._high.update(value.name for value in model.graph.output)
        self._names: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def low(self, name: str, taken: set[str]) -> str:
        """Return the name of the lowered copy; the tensor itself where nobody needs fp32."""
        if name not in self._names:
            own = name if name not in self._high else _unused(f"{name}_{self._kind.name}", taken)
            self._names[name] = own
            if own == name:
                old = next(t for t in self._graph.initializer if t.name == name)
                old.CopyFrom(self._tensor(name, own))
            else:
                self._graph.initializer.append(self._tensor(name, own))
        return self._names[name]

    def _tensor(self, name: str, own: str) -> onnx.TensorProto:
        from onnx import TensorProto, numpy_helper

        rounded = round_to(np.asarray(self._values[name], np.float32), self._kind)
        if not self._stored_low:
            return numpy_helper.from_array(rounded, own)
        if self._kind.name == "fp16":
            return numpy_helper.from_array(rounded.astype(np.float16), own)
        tensor = TensorProto(name=own, data_type=BFLOAT16, dims=rounded.shape)
        tensor.raw_data = (rounded.view(np.uint32) >> 16).astype("<u2").tobytes()
        return tensor


def lower(model: onnx.ModelProto, kind: FloatType, stays: Container[str]) -> onnx.ModelProto:
    """Write a graph in the low type, all but the nodes that stay.

    Inputs and outputs of the graph keep their types.

    Args:
        model: The fp32 graph; every node has a name (`name_nodes`).
        kind: The asked type.
        stays: Names of the nodes that stay in fp32.
    """
    from onnx import ModelProto, NodeProto, helper

    lowered = ModelProto()
    lowered.CopyFrom(model)
    graph, types = lowered.graph, tensor_types(model)
    low = _low_nodes(lowered, stays, types)
    weights = _Weights(lowered, low, kind, stored_low=True)
    taken = set(types)
    stored: dict[str, int] = {}  # tensors that are in the low type now
    casts: dict[tuple[str, int], str] = {}
    outputs = {value.name for value in graph.output}
    nodes: list[NodeProto] = []

    def cast(name: str, to: int) -> str:
        if (name, to) not in casts:
            suffix = kind.name if to == kind.onnx_type else "fp32"
            target = _unused(f"{name}_{suffix}", taken)
            nodes.append(helper.make_node("Cast", [name], [target], f"cast_{target}", to=to))
            casts[name, to] = target
        return casts[name, to]

    renamed: dict[str, str] = {}
    for original in graph.node:
        node = NodeProto()
        node.CopyFrom(original)
        wanted = kind.onnx_type if node.name in low else FLOAT
        for index, name in enumerate(original.input):
            if not name or types[name][0] != FLOAT:
                continue
            want = wanted if is_typed_input(node, index) else FLOAT
            if name in weights:
                if want != FLOAT:
                    node.input[index] = weights.low(name, taken)
                continue
            current = renamed.get(name, name)
            if stored.get(current, FLOAT) != want:
                current = cast(current, want)
            node.input[index] = current
        if node.name in low:
            if node.op_type == "Cast":
                del node.attribute[:]
                node.attribute.append(helper.make_attribute("to", kind.onnx_type))
            for index, name in enumerate(original.output):
                if not name or types[name][0] != FLOAT:
                    continue
                if name in outputs:
                    renamed[name] = _unused(f"{name}_{kind.name}", taken)
                    node.output[index] = renamed[name]
                stored[renamed.get(name, name)] = kind.onnx_type
        nodes.append(node)
        nodes.extend(
            helper.make_node("Cast", [renamed[name]], [name], f"cast_{name}", to=FLOAT)
            for name in original.output
            if name in renamed
        )
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return lowered


def rounded_graph(
    model: onnx.ModelProto, kind: FloatType, stays: Container[str]
) -> onnx.ModelProto:
    """Write a graph in fp32 that rounds like one in the low type.

    Every lowered node gets weights and inputs that the low type can hold, computes in fp32 and has
    its outputs rounded: what hardware does that multiplies in 16 bits and adds in 32.

    Args:
        model: The fp32 graph; every node has a name (`name_nodes`).
        kind: The type to imitate.
        stays: Names of the nodes that do not round.
    """
    from onnx import ModelProto, NodeProto, helper

    rounded = ModelProto()
    rounded.CopyFrom(model)
    graph, types = rounded.graph, tensor_types(model)
    low = _low_nodes(rounded, stays, types)
    weights = _Weights(rounded, low, kind, stored_low=False)
    taken = set(types)
    known: dict[str, str] = {}  # tensor -> its rounded copy, or itself
    nodes: list[NodeProto] = []

    def round_off(name: str, target: str) -> None:
        between = _unused(f"{name}_{kind.name}", taken)
        nodes.append(helper.make_node("Cast", [name], [between], between, to=kind.onnx_type))
        nodes.append(helper.make_node("Cast", [between], [target], f"{between}_up", to=FLOAT))

    for original in graph.node:
        node = NodeProto()
        node.CopyFrom(original)
        if node.name in low:
            for index, name in enumerate(original.input):
                if not name or types[name][0] != FLOAT or not is_typed_input(node, index):
                    continue
                if name in weights:
                    node.input[index] = weights.low(name, taken)
                    continue
                if name not in known:
                    known[name] = _unused(f"{name}_rounded", taken)
                    round_off(name, known[name])
                node.input[index] = known[name]
        nodes.append(node)
        if node.name in low:
            for index, name in enumerate(original.output):
                if name and types[name][0] == FLOAT:
                    node.output[index] = _unused(f"{name}_exact", taken)
                    round_off(node.output[index], name)
                    known[name] = name
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return rounded
