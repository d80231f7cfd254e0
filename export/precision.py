"""Decide which nodes of a graph stay in fp32, and why, and write it in the asked precision.

One pass over the ONNX graph serves every engine. What stays is found by measuring the tensors of
the fp32 graph on calibration images. The same plan gives an imitation: fp32 with rounding after
every lowered node, which is what an engine that executes the low type computes, up to the order of
sums. Accuracy is measured on it where no engine at hand executes the type.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boxseg.errors import PrecisionError, UnsupportedOperatorError
from boxseg.export.calibration import CalibrationSet, TensorRange, measure_ranges
from boxseg.export.lowering import (
    FIXED,
    FLOAT,
    FLOAT_TYPES,
    PRODUCTS,
    FloatType,
    float_inputs,
    float_outputs,
    lower,
    name_nodes,
    opset_of,
    round_to,
    rounded_graph,
    tensor_types,
)
from boxseg.export.to_onnx import EXPORT_KEY, TracedGraph
from boxseg.runtime.metadata import METADATA_KEY, Metadata
from boxseg.runtime.preprocess import Fit

if TYPE_CHECKING:
    import onnx

    from boxseg.export.equalization import Shift
    from boxseg.export.quantization import ChosenRange, Cost, Layer

HEADROOM = 4.0
"""A tensor that reaches x on the calibration images may reach 4 x elsewhere."""

LOST_UNITS = 2.0
"""Rounding errors are at most one unit where all bits are there; a tensor whose RMS error passes
two has lost values below the type's normal range."""

PIXELS = 0.5
"""Largest rounding of a box side by the layer that predicts it, in input pixels."""

PIXEL_OUTPUTS = ("boxes",)
"""Outputs in pixels: coordinates up to the image size with parts of a pixel."""

NORMS = (
    "InstanceNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "BatchNormalization",
    "RMSNormalization",
    "MeanVarianceNormalization",
    "LpNormalization",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceMean",
    "ReduceSum",
)
CURVES = ("Exp", "Log", "Pow", "Sigmoid", "Softmax", "LogSoftmax", "Softplus", "Reciprocal", "Sqrt")
MOVES = (
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""They move values and compute nothing."""
ACTIVATIONS = ("Relu", "LeakyRelu", "PRelu", "Clip", "HardSigmoid", "HardSwish")
"""Engines compute them inside the convolution before them."""


@dataclass(frozen=True)
class Kept:
    """A node that stays in fp32."""

    node: str
    op_type: str
    rule: str
    """overflow, norm, curve, subnormal, coordinates, choice, operator or neighbour; in int8 also
    given back of a layer that costs too much, and fused, rounded and arithmetic."""
    reason: str
    """One sentence, with the measured numbers where measuring decided."""


def _takes(node: onnx.NodeProto, opset: int, kind: FloatType) -> bool:
    """Whether the operator set knows this node with the low type on its first input."""
    from onnx import defs

    try:
        schema = defs.get_schema(node.op_type, opset, node.domain)
    except defs.SchemaError:
        return False
    wanted = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}[kind.name]
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    return all(
        wanted in allowed.get(formal.type_str, [wanted])
        for formal in (*schema.inputs[:1], *schema.outputs[:1])
    )


# ---------------------------------------------------------------------------------- what stays


def _weights_range(values: NDArray[np.float32], kind: FloatType) -> TensorRange:
    """Return what a constant tensor does in the low type."""
    exact = values.astype(np.float64)
    low = round_to(values, kind).astype(np.float64)
    energy = float((exact**2).sum())
    noise = float(((exact - low) ** 2).sum()) if np.isfinite(low).all() else np.inf
    share = np.sqrt(noise / energy) if energy > 0 else 0.0
    peak = float(np.abs(exact).max(initial=0.0))
    return TensorRange(peak, float(np.sqrt(energy / max(1, exact.size))), float(share))


def _upstream(graph: onnx.GraphProto, names: Iterable[str]) -> tuple[set[str], set[str]]:
    """Walk from tensors to the layers with weights that they come from.

    Returns:
        Names of the nodes on the way, and of the layers where it ends.
    """
    makers = {name: node for node in graph.node for name in node.output if name}
    passed: set[str] = set()
    layers: set[str] = set()
    waiting = list(names)
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or node.name in passed or node.name in layers:
            continue
        if node.op_type in PRODUCTS:
            layers.add(node.name)
            continue
        passed.add(node.name)
        waiting += [name for name in node.input if name]
    return passed, layers


def _choosing(graph: onnx.GraphProto) -> set[str]:
    """Return the nodes that rank pairs, and all that works on the chosen ones.

    Rounded scores would tie, and the order would be another; what follows multiplies coordinates of
    hundreds of pixels with predicted weights. A graph of the form dense has none.
    """
    ranks = [node for node in graph.node if node.op_type == "TopK"]
    found, _ = _upstream(graph, [node.input[0] for node in ranks])
    follows = {node.name for node in ranks}
    reached = {name for node in ranks for name in node.output}
    for node in graph.node:
        if reached.intersection(node.input):
            follows.add(node.name)
            reached.update(node.output)
    return found | follows


def _judge(
    node: onnx.NodeProto,
    tensors: list[str],
    ranges: Mapping[str, TensorRange],
    constants: set[str],
    kind: FloatType,
) -> Kept | None:
    """Hold the tensors of a node against the low type; None if it can be lowered."""
    for name in tensors:
        found = ranges[name]
        spare = 1.0 if name in constants else HEADROOM
        if not found.peak * spare <= kind.largest:
            reached = "holds" if name in constants else "reaches"
            with_spare = "" if name in constants else f" with {HEADROOM:g} times of headroom"
            reason = f"{name} {reached} {found.peak:.4g}; {kind.name} ends at {kind.largest:.5g}"
            return Kept(node.name, node.op_type, "overflow", reason + with_spare)
    largest = max((ranges[name].peak for name in tensors if name not in constants), default=0.0)
    if node.op_type in NORMS:
        return Kept(
            node.name,
            node.op_type,
            "norm",
            f"sums over many elements, squares up to {largest**2:.3g}; "
            f"{kind.name} has {kind.bits} bits and ends at {kind.largest:.5g}",
        )
    if node.op_type in CURVES:
        return Kept(
            node.name,
            node.op_type,
            "curve",
            f"a steep or saturating function of values up to {largest:.3g}",
        )
    for name in tensors:
        found = ranges[name]
        if found.rounding > LOST_UNITS * kind.unit:
            return Kept(
                node.name,
                node.op_type,
                "subnormal",
                f"{name} (RMS {found.rms:.3g}) changes by {100 * found.rounding:.3g} % in "
                f"{kind.name}, whose full precision begins at {kind.smallest:.2g}",
            )
    return None


def plan(
    model: onnx.ModelProto, kind: FloatType, inputs: Iterable[NDArray[np.uint8]]
) -> list[Kept]:
    """Decide which nodes stay in fp32, from what their tensors do on images.

    Args:
        model: The fp32 graph; every node has a name (`name_nodes`).
        kind: The asked type.
        inputs: RGB bytes (1, H, W, 3), at least one.

    Returns:
        The nodes that stay, in the order of the graph.

    Raises:
        PrecisionError: if the graph's operator set has no layers of the type.
    """
    from onnx import numpy_helper

    opset = opset_of(model)
    if opset < kind.oldest_opset:
        raise PrecisionError(
            f"{kind.name} needs --opset {kind.oldest_opset} or later, the graph has {opset}: "
            f"convolutions do not take {kind.name} before"
        )
    graph, types = model.graph, tensor_types(model)
    constants = {
        tensor.name: np.asarray(numpy_helper.to_array(tensor), np.float32)
        for tensor in graph.initializer
        if tensor.data_type == FLOAT
    }
    watched = {
        name: types[name][1]
        for node in graph.node
        for name in node.output
        if name and types[name][0] == FLOAT
    }
    ranges = measure_ranges(model, watched, inputs, kind.onnx_type)
    ranges |= {name: _weights_range(values, kind) for name, values in constants.items()}
    tail, layers = _upstream(
        graph, [value.name for value in graph.output if value.name in PIXEL_OUTPUTS]
    )
    choosing = _choosing(graph)
    reach = max((ranges[name].peak for name in PIXEL_OUTPUTS if name in ranges), default=0.0)
    step = reach * kind.unit

    kept: dict[str, Kept] = {}
    high: set[str] = set()  # outputs of nodes that stay
    for node in graph.node:
        tensors = [*float_inputs(node, types), *float_outputs(node, types)]
        tensors = [name for name in tensors if name in ranges]
        if not tensors:
            continue
        found: Kept | None
        if node.op_type in FIXED or not _takes(node, opset, kind):
            reason = f"{node.op_type} has no {kind.name} in operator set {opset}"
            found = Kept(node.name, node.op_type, "operator", reason)
        elif node.name in choosing:
            reason = f"ranks pairs or works on the chosen ones: {kind.name} would tie their scores"
            found = Kept(node.name, node.op_type, "choice", reason)
        elif node.name in tail:
            reason = (
                f"decodes boxes: coordinates up to {reach:.4g} pixels would be rounded by up to "
                f"{step:.2g}"
            )
            found = Kept(node.name, node.op_type, "coordinates", reason)
        elif node.name in layers and step > PIXELS:
            reason = (
                f"predicts box sides: up to {reach:.4g} pixels, rounded by up to {step:.2g}, "
                f"{PIXELS:g} allowed"
            )
            found = Kept(node.name, node.op_type, "coordinates", reason)
        else:
            found = _judge(node, tensors, ranges, set(constants), kind)
        if found is None and node.op_type in MOVES:
            computed = [name for name in float_inputs(node, types) if name not in constants]
            if computed and high.issuperset(computed):
                reason = "moves values that are in fp32 already"
                found = Kept(node.name, node.op_type, "neighbour", reason)
        if found is not None:
            kept[node.name] = found
            high.update(node.output)
    return list(kept.values())


# ------------------------------------------------------------------------------------ the pass


@dataclass(frozen=True)
class Reduced:
    """A network in reduced precision, and how it came about."""

    precision: str
    traced: TracedGraph
    """What is written; the metadata inside say the precision."""
    imitation: onnx.ModelProto | None
    """A graph that ONNX Runtime executes with the rounding of the asked type on any machine; None
    if what is written is one: int8 rounds where its graph says so, whatever an engine multiplies
    in."""
    layers: int
    """Layers whose weights are stored in the asked type."""
    kept: list[Kept]
    calibration: CalibrationSet
    for_openvino: TracedGraph | None = None
    """What is written for OpenVINO, where that differs: unsigned int8."""
    ranges: Mapping[str, ChosenRange] = field(default_factory=dict)
    """Of int8: tensor -> range."""
    costs: list[Cost] = field(default_factory=list)
    """Of int8: what each layer does to the network, of those that could go back."""
    equalized: onnx.ModelProto | None = None
    """Of int8: the graph in fp32 that is rounded."""
    shifts: Mapping[str, Shift] = field(default_factory=dict)
    """Of int8: what its biases take back."""

    def graph_for(self, kind: str) -> TracedGraph:
        """Return what is written in a format."""
        unsigned = self.for_openvino if kind == "openvino" else None
        return self.traced if unsigned is None else unsigned

    def lines(self) -> list[str]:
        """Return the report for people."""
        counts = Counter((entry.rule, entry.op_type) for entry in self.kept)
        by_rule: dict[str, list[str]] = {}
        for (rule, op_type), count in counts.items():
            by_rule.setdefault(rule, []).append(f"{count} {op_type}")
        lines = [
            f"{self.precision:<12} {self.layers} layers; {len(self.kept)} nodes stay in fp32, "
            f"measured on {self.calibration.source}"
        ]
        for rule, words in by_rule.items():
            example = next(entry for entry in self.kept if entry.rule == rule)
            lines.append(f"  {rule:<11} {', '.join(words)}: {example.reason}")
        if self.ranges:
            methods = Counter(chosen.method for chosen in self.ranges.values())
            words = [f"{count} by {method}" for method, count in methods.items()]
            lines.append(
                f"  ranges      {', '.join(words)}: by what each changes in the next layer"
            )
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "precision": self.precision,
            "layers": self.layers,
            "kept": [asdict(entry) for entry in self.kept],
            "calibration": self.calibration.record(),
            "ranges": {name: asdict(chosen) for name, chosen in self.ranges.items()},
            "costs": [
                {
                    "layer": entry.layer.weights,
                    "convolutions": list(entry.layer.nodes),
                    "error": entry.error,
                    "gain": entry.gain,
                    "cost": entry.cost,
                }
                for entry in sorted(self.costs, key=lambda entry: -entry.gain)
            ],
        }


def _with_metadata(
    model: onnx.ModelProto, precision: str, kept: int, calibration: CalibrationSet
) -> onnx.ModelProto:
    """Let the graph say its precision and the images it was made with; changed in place."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            described = json.loads(entry.value) | {"precision": precision}
            entry.value = json.dumps(described, sort_keys=True)
        elif entry.key == EXPORT_KEY:
            made_by = json.loads(entry.value)
            made_by["precision"] = {"asked": precision, "kept_in_fp32": kept}
            made_by["calibration"] = calibration.record()
            entry.value = json.dumps(made_by, sort_keys=True)
    return model


def _input_size(model: onnx.ModelProto) -> Fit:
    """Return the size that the metadata of a graph state."""
    described = next(entry.value for entry in model.metadata_props if entry.key == METADATA_KEY)
    size = Metadata.from_json(described).imgsz
    if not isinstance(size, Fit):
        raise PrecisionError("reduced precision needs a fixed input size")
    return size


def _check(model: onnx.ModelProto, precision: str) -> None:
    """Let onnx's checker judge what was written."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedOperatorError(
            f"onnx.checker refuses the graph in {precision}: {reason}"
        ) from error


def lower_network(traced: TracedGraph, precision: str, calibration: CalibrationSet) -> Reduced:
    """Write a traced network in fp16 or bf16.

    Args:
        traced: In fp32.
        precision: fp16 or bf16.
        calibration: Images to measure ranges on.

    Raises:
        PrecisionError: if the graph cannot be written in that type.
        UnsupportedOperatorError: if onnx's checker refuses what was written.
    """
    kind = FLOAT_TYPES[precision]
    model = name_nodes(traced.model)
    kept = plan(model, kind, calibration.inputs(_input_size(model)))
    stays = {entry.node for entry in kept}
    constants = {tensor.name for tensor in model.graph.initializer}
    layers = sum(
        node.op_type in PRODUCTS and node.name not in stays and node.input[1] in constants
        for node in model.graph.node
    )
    if layers == 0:
        raise PrecisionError(
            f"no layer of this network can be in {precision}: {kept[0].reason if kept else 'none'}"
        )
    lowered = lower(model, kind, stays)
    imitation = rounded_graph(model, kind, stays)
    for graph in (lowered, imitation):
        _with_metadata(graph, precision, len(kept), calibration)
        _check(graph, precision)
    return Reduced(precision, replace(traced, model=lowered), imitation, layers, kept, calibration)


PEAK_IMAGES = 16
"""Images, of those for calibration, on which the ranges of single channels are measured."""
JUDGES = 8
"""Images, of those for calibration, on which choices are compared."""
COST_IMAGES = 2
"""Images on which each layer is put into int8 alone."""


def outside_int8(model: onnx.ModelProto, layers: Iterable[Layer], size: Fit) -> list[Kept]:
    """Say why int8 leaves a node in fp32 by design, whatever its tensors do.

    Args:
        model: In fp32; every node has a name.
        layers: Those in int8.
        size: Of the input.

    Returns:
        Every node that computes or moves float numbers and is no convolution that could be in
        int8, in the order of the graph.
    """
    from boxseg.export.quantization import READERS, STEPS, layers_of

    graph, types, layers = model.graph, tensor_types(model), list(layers)
    convolutions = {node for layer in layers_of(model) for node in layer.nodes}
    in_int8 = {node for layer in layers for node in layer.nodes}
    sums = {name for node in graph.node if node.name in in_int8 for name in node.output}
    read = {name for layer in layers for name in layer.inputs}
    choosing = _choosing(graph)
    tail, _ = _upstream(
        graph, [value.name for value in graph.output if value.name in PIXEL_OUTPUTS]
    )
    reach = max(size.height, size.width)
    step = f"coordinates up to {reach} pixels would be rounded by up to {reach / STEPS / 2:.2g}"

    def judge(node: onnx.NodeProto) -> tuple[str, str]:
        if node.name in choosing:
            return "choice", "ranks pairs or works on the chosen ones: int8 would tie their scores"
        if node.name in tail:
            return "coordinates", f"decodes boxes: {step}"
        if node.op_type in PRODUCTS:
            return "operator", "int8 is written for convolutions with constant weights alone"
        if node.op_type in NORMS:
            return "norm", f"sums over many elements; int8 has {2 * STEPS + 1} values"
        if node.op_type in CURVES:
            return "curve", "a steep or saturating function: one step before it is many behind it"
        if node.op_type in ACTIVATIONS and sums.intersection(node.input):
            return "fused", "engines compute it inside the convolution before it; rounding follows"
        if node.op_type in READERS and read.intersection((*node.input, *node.output)):
            return "rounded", "stands beside rounded values: engines that can compute it in int8"
        if node.op_type in MOVES:
            return "neighbour", "moves values and computes nothing"
        return "arithmetic", "few operations on each number: int8 would save little and round more"

    return [
        Kept(node.name, node.op_type, *judge(node))
        for node in graph.node
        if node.name not in convolutions
        and (float_inputs(node, types) or float_outputs(node, types))
    ]


def quantize_network(traced: TracedGraph, calibration: CalibrationSet) -> Reduced:
    """Write a traced network in int8.

    Args:
        traced: In fp32.
        calibration: Images to measure ranges on.

    Raises:
        PrecisionError: if the network has no layer that can be in int8.
        UnsupportedOperatorError: if onnx's checker refuses what was written.
    """
    from boxseg.export import quantization as q
    from boxseg.export.equalization import equalize, measure_shifts

    model = q.scale_after_activation(name_nodes(traced.model))
    size = _input_size(model)
    model = equalize(model, calibration.evenly(PEAK_IMAGES).inputs(size))
    layers = q.layers_of(model)
    tensors = list(dict.fromkeys(name for layer in layers for name in layer.inputs))
    if not layers:
        raise PrecisionError("no layer of this network can be in int8: it has no convolution")
    choices = {
        name: q.candidates(numbers, peak)
        for name, (numbers, peak) in q.sample(model, tensors, calibration.inputs(size)).items()
    }
    judges = list(calibration.evenly(JUDGES).inputs(size))
    ranges = q.choose_ranges(model, layers, choices, judges)
    shifts = measure_shifts(model, layers, ranges, judges)
    costs = q.measure_costs(model, layers, ranges, judges[:COST_IMAGES], shifts)
    back = q.give_back(costs)
    kept = [
        Kept(
            node,
            "Conv",
            "given back",
            f"{entry.layer.weights} in int8 alone moves the last layers by "
            f"{100 * entry.error:.2g} % of their deviation: {100 * entry.gain:.2g} % of the "
            f"squared error of the whole for {100 * entry.cost:.2g} % of its cost",
        )
        for entry in back
        for node in entry.layer.nodes
    ]
    returned = {entry.layer.weights for entry in back}
    chosen = [layer for layer in layers if layer.weights not in returned]
    kept += outside_int8(model, chosen, size)
    graphs = [
        q.quantize(model, chosen, ranges, unsigned=unsigned, shifts=shifts)
        for unsigned in (False, True)
    ]
    for graph in graphs:
        _with_metadata(graph, "int8", len(kept), calibration)
        _check(graph, "int8")
    signed, unsigned = (replace(traced, model=graph) for graph in graphs)
    count = sum(len(layer.nodes) for layer in chosen)
    return Reduced(
        "int8", signed, None, count, kept, calibration, unsigned, ranges, costs, model, shifts
    )


def reduce_network(traced: TracedGraph, precision: str, calibration: CalibrationSet) -> Reduced:
    """Write a traced network in fp16, bf16 or int8; see `lower_network` and `quantize_network`."""
    if precision == "int8":
        return quantize_network(traced, calibration)
    return lower_network(traced, precision, calibration)
