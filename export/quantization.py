"""Write a graph in symmetric int8, with the range of every tensor chosen by what it costs.

Pairs of QuantizeLinear and DequantizeLinear stand before the convolutions, on their inputs (one
scale per tensor) and on their weights (one scale per output channel); zero points are 0. Nothing
stands between a convolution and its activation, so engines fuse the two. Biases and all other nodes
stay in fp32. ONNX Runtime, OpenVINO and TensorRT read this form; where an engine multiplies in
fp32, the rounding is the same.

One layer is one tensor of weights: the head's layers serve five levels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boxseg.export.calibration import open_session
from boxseg.export.lowering import FLOAT, tensor_types

if TYPE_CHECKING:
    import onnx

    from boxseg.export.equalization import Shift

STEPS = 127
"""int8 counts from -127 to 127 of these steps to the end of a range."""

PERCENTILE = 99.99
"""Of the magnitudes, for the choice of that name."""

SAMPLES = 16384
"""Numbers that are kept per tensor and image."""

SEARCH = 48
"""Ranges that the search for the least squared error tries, between a fifth of the peak and it."""

READERS = ("Conv", "Add", "MaxPool", "Resize")
"""Nodes that read the quantised tensor where there is one: they work on int8, or are fused into
convolutions that do."""


@dataclass(frozen=True)
class Layer:
    """The convolutions of one tensor of weights."""

    weights: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    """The tensors that they read, without repeats."""
    work: int
    """Multiply-accumulates of one image."""


@dataclass(frozen=True)
class ChosenRange:
    """The range of one tensor."""

    method: str
    """minmax, percentile or mse."""
    end: float
    """Largest magnitude that int8 holds."""
    errors: dict[str, float]
    """Method -> RMS error of the outputs of the convolutions behind, as a share of their RMS."""

    @property
    def scale(self) -> float:
        """Size of one step."""
        return self.end / STEPS


# ----------------------------------------------------------------------------------- the layers


def layers_of(model: onnx.ModelProto) -> list[Layer]:
    """List the convolutions with constant weights, in the order of the graph.

    Args:
        model: In fp32; every node has a name.
    """
    types = tensor_types(model)
    dims = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    groups: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in dims:
            groups[node.input[1]].append(node)
    found = []
    for weights, nodes in groups.items():
        outputs, *rest = dims[weights]
        places = sum(types[node.output[0]][1] for node in nodes) // outputs
        found.append(
            Layer(
                weights,
                tuple(node.name for node in nodes),
                tuple(dict.fromkeys(node.input[0] for node in nodes)),
                places * outputs * int(np.prod(rest)),
            )
        )
    return found


# -------------------------------------------------------------------------------------- weights


def quantize_weights(
    values: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round weights to int8 with one scale per output channel.

    Args:
        values: (outputs, ...).

    Returns:
        Integers in -127..127 of the same shape, and scales (outputs,); an empty channel has 1.
    """
    flat = values.reshape(len(values), int(np.prod(values.shape[1:]))).astype(np.float64)
    peaks = np.abs(flat).max(axis=1, initial=0.0)
    scales = np.where(peaks > 0, peaks / STEPS, 1.0).astype(np.float32)
    steps = np.rint(flat / scales[:, None].astype(np.float64))
    return np.clip(steps, -STEPS, STEPS).astype(np.int8).reshape(values.shape), scales


# --------------------------------------------------------------------------------------- ranges


def _least_error(magnitudes: NDArray[np.float64], peak: float) -> float:
    """Return the end of the range with the least squared error, rounding and cutting together."""
    ends = np.linspace(peak / 5, peak, SEARCH)
    scales = ends / STEPS
    best, least = peak, np.inf
    for end, scale in zip(ends, scales, strict=True):
        held = np.minimum(np.rint(magnitudes / scale), STEPS) * scale
        error = float(((magnitudes - held) ** 2).sum())
        if error < least:
            best, least = float(end), error
    return best


def candidates(samples: NDArray[np.float32], peak: float) -> dict[str, float]:
    """Return the end of the range by each method.

    Args:
        samples: Numbers of the tensor from all images.
        peak: Its largest magnitude on all images.
    """
    if peak == 0.0:
        return {"minmax": 1.0}
    magnitudes = np.abs(samples.astype(np.float64))
    # what lies beside the samples must not be lost: nothing is below the smallest normal number
    percentile = max(float(np.percentile(magnitudes, PERCENTILE)), 1e-30)
    thinned = magnitudes[:: max(1, len(magnitudes) // (8 * SAMPLES))]
    return {
        "minmax": peak,
        "percentile": min(percentile, peak),
        "mse": _least_error(thinned, peak),
    }


def without_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without outputs, for graphs that answer something else."""
    from onnx import ModelProto

    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    del copy.graph.value_info[:]
    return copy


def runs(
    model: onnx.ModelProto, inputs: Iterable[NDArray[np.uint8]], *, optimised: bool = True
) -> Iterator[dict[str, NDArray[Any]]]:
    """Run a graph on images and yield its outputs by name."""
    session = open_session(model, optimised=optimised)
    graph_input = session.get_inputs()[0]
    images = graph_input.shape[0] if isinstance(graph_input.shape[0], int) else 1
    names = [output.name for output in session.get_outputs()]
    for image in inputs:
        found = session.run(names, {graph_input.name: image.repeat(images, axis=0)})
        yield {name: np.asarray(value) for name, value in zip(names, found, strict=True)}


def sample(
    model: onnx.ModelProto, tensors: Sequence[str], inputs: Iterable[NDArray[np.uint8]]
) -> dict[str, tuple[NDArray[np.float32], float]]:
    """Run the fp32 graph and return, per tensor, numbers from all images and the peak."""
    from onnx import helper, numpy_helper

    types = tensor_types(model)
    watched = without_outputs(model)
    graph = watched.graph
    numbers = {"sample/flat": [-1], "sample/start": [0], "sample/end": [2**62]}
    numbers["sample/axis"] = [0]
    for name in tensors:
        numbers[f"{name}/step"] = [max(1, types[name][1] // SAMPLES)]
        taken, peak = f"{name}/taken", f"{name}/peak"
        slicing = ["sample/start", "sample/end", "sample/axis", f"{name}/step"]
        graph.node.extend(
            [
                helper.make_node("Reshape", [name, "sample/flat"], [f"{name}/flat"]),
                helper.make_node("Slice", [f"{name}/flat", *slicing], [taken]),
                helper.make_node("Abs", [name], [f"{name}/size"]),
                helper.make_node("ReduceMax", [f"{name}/size"], [peak], keepdims=0),
            ]
        )
        graph.output.append(helper.make_tensor_value_info(taken, FLOAT, None))
        graph.output.append(helper.make_tensor_value_info(peak, FLOAT, []))
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), name) for name, value in numbers.items()
    )
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in tensors}
    peaks = dict.fromkeys(tensors, 0.0)
    for found in runs(watched, inputs):
        for name in tensors:
            parts[name].append(np.asarray(found[f"{name}/taken"], np.float32))
            peaks[name] = max(peaks[name], float(found[f"{name}/peak"]))
    return {name: (np.concatenate(parts[name]), peaks[name]) for name in tensors}


def rounding_pair(
    source: str, target: str, scale: str, zero: str, name: str
) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """Return QuantizeLinear and DequantizeLinear, with one scale."""
    from onnx import helper

    stored = f"{target}_int8"
    return (
        helper.make_node("QuantizeLinear", [source, scale, zero], [stored], f"quantize_{name}"),
        helper.make_node("DequantizeLinear", [stored, scale, zero], [target], f"dequantize_{name}"),
    )


def choose_ranges(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    choices: Mapping[str, Mapping[str, float]],
    inputs: Iterable[NDArray[np.uint8]],
) -> dict[str, ChosenRange]:
    """Choose, for every tensor, the range that changes the convolutions behind it least.

    Each convolution is computed again on its quantised input, once per choice, beside the fp32
    graph, and the differences of its output are summed over the images.

    Args:
        model: In fp32.
        layers: From `layers_of`.
        choices: Tensor -> method -> end of the range.
        inputs: Images that judge.
    """
    from onnx import NodeProto, helper, numpy_helper

    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    wanted = {node for layer in layers for node in layer.nodes}
    for node in model.graph.node:
        if node.name in wanted:
            readers[node.input[0]].append(node)
    judged = without_outputs(model)
    graph = judged.graph
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "judge/zero"))
    for tensor, ends in choices.items():
        for method, end in ends.items():
            scale, rounded = f"{tensor}/{method}/scale", f"{tensor}/{method}/rounded"
            graph.initializer.append(
                numpy_helper.from_array(np.array(end / STEPS, np.float32), scale)
            )
            graph.node.extend(rounding_pair(tensor, rounded, scale, "judge/zero", rounded))
            for index, reader in enumerate(readers[tensor]):
                again = NodeProto()
                again.CopyFrom(reader)
                prefix = f"{tensor}/{method}/{index}"
                again.name, again.input[0], again.output[0] = prefix, rounded, f"{prefix}/out"
                graph.node.extend(
                    [
                        again,
                        helper.make_node(
                            "Sub", [f"{prefix}/out", reader.output[0]], [f"{prefix}/gap"]
                        ),
                        helper.make_node(
                            "ReduceSumSquare", [f"{prefix}/gap"], [f"{prefix}/noise"], keepdims=0
                        ),
                    ]
                )
                graph.output.append(helper.make_tensor_value_info(f"{prefix}/noise", FLOAT, []))
        for index, reader in enumerate(readers[tensor]):
            energy = f"{tensor}/{index}/energy"
            graph.node.append(
                helper.make_node("ReduceSumSquare", [reader.output[0]], [energy], keepdims=0)
            )
            graph.output.append(helper.make_tensor_value_info(energy, FLOAT, []))
    totals: dict[str, float] = defaultdict(float)
    for found in runs(judged, inputs):
        for name, value in found.items():
            totals[name] += float(value)
    chosen = {}
    for tensor, ends in choices.items():
        count = len(readers[tensor])
        errors = {}
        for method in ends:
            shares = [
                totals[f"{tensor}/{method}/{index}/noise"]
                / max(totals[f"{tensor}/{index}/energy"], 1e-30)
                for index in range(count)
            ]
            errors[method] = float(np.sqrt(np.mean(shares))) if shares else 0.0
        # a wider range also holds what calibration did not see, so it wins ties
        method = min(ends, key=lambda name: (round(errors[name], 6), -ends[name]))
        chosen[tensor] = ChosenRange(method, ends[method], errors)
    return chosen


# -------------------------------------------------------------------------------- what int8 costs

GIVEN_BACK = 0.03
"""Share of the cost of all layers that may go back to fp32, where it buys the most accuracy."""

TRIED = 24
"""Layers of a large graph that are put into int8 alone, beside the last ones."""

LEAST_GAIN = 0.01
"""A layer goes back only if this share of the squared error goes with it."""

MOVED = 64
"""Multiply-accumulates that count as much as moving one number to and from memory."""


LARGE = 1e9
"""Multiply-accumulates from which a graph is worth optimising before it runs."""


@dataclass(frozen=True)
class Cost:
    """What one layer in int8 does to the network."""

    layer: Layer
    error: float
    """RMS change of the last layers, as a share of their standard deviation, if this layer alone
    is in int8; of the last layers the worst."""
    gain: float
    """Squared error as a share of that of the whole network in int8."""
    cost: float
    """Share of all layers' arithmetic and memory traffic."""


def last_layers(model: onnx.ModelProto, layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers that no other layer reads: classes, boxes, quality, parameters, masks."""
    by_node = {node: layer.weights for layer in layers for node in layer.nodes}
    behind: dict[str, set[str]] = {}  # tensor -> layers that it depends on
    read: set[str] = set()
    for node in model.graph.node:
        found = {weights for name in node.input for weights in behind.get(name, ())}
        if node.name in by_node:
            read |= found
            found = {by_node[node.name]}
        for name in node.output:
            behind[name] = found
    return [layer for layer in layers if layer.weights not in read]


def behind_choice(model: onnx.ModelProto) -> set[str]:
    """Return the nodes that read what a TopK chose: none in a graph of the form dense."""
    found: set[str] = set()
    reached: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "TopK" or reached.intersection(node.input):
            found.add(node.name)
            reached.update(node.output)
    return found


def _ends(
    model: onnx.ModelProto,
    last: Sequence[Layer],
    inputs: Sequence[NDArray[np.uint8]],
    *,
    optimised: bool,
) -> list[NDArray[np.float64]]:
    """Run a graph and return what the last layers say, one vector per layer."""
    from onnx import helper

    watched = without_outputs(model)
    outputs = {node.name: node.output[0] for node in model.graph.node}
    tensors = [[outputs[node] for node in layer.nodes] for layer in last]
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, FLOAT, None) for names in tensors for name in names
    )
    parts: list[list[NDArray[Any]]] = [[] for _ in last]
    # optimising a small graph takes longer than running it
    for found in runs(watched, inputs, optimised=optimised):
        for part, names in zip(parts, tensors, strict=True):
            part += [np.asarray(found[name]).ravel() for name in names]
    return [np.concatenate(part).astype(np.float64) for part in parts]


def measure_costs(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    ranges: Mapping[str, ChosenRange],
    inputs: Sequence[NDArray[np.uint8]],
    shifts: Mapping[str, Shift] | None = None,
) -> list[Cost]:
    """Put layers that could go back into int8 alone and measure how the last layers move.

    Args:
        model: In fp32.
        layers: From `layers_of`.
        ranges: Of all their inputs.
        inputs: Few images: the graph runs once per layer and image.
        shifts: What biases take back, and how much each layer itself changes: the layers that
            change most are measured, and the last ones. Without it, and in small graphs, all are.
    """
    types = tensor_types(model)
    outputs = {node.name: node.output[0] for node in model.graph.node}
    chosen = behind_choice(model)
    # rounding may choose other pairs, and the rows of two answers would be no partners
    last = [each for each in last_layers(model, layers) if not chosen.intersection(each.nodes)]
    is_large = sum(layer.work for layer in layers) > LARGE
    truth = _ends(model, last, inputs, optimised=is_large)
    deviations = [max(float(part.std()), 1e-30) for part in truth]

    def error_of(chosen: Sequence[Layer]) -> float:
        graph = quantize(model, chosen, ranges, shifts=shifts)
        found = _ends(graph, last, inputs, optimised=is_large)
        return max(
            float(np.sqrt(((ours - theirs) ** 2).mean())) / deviation
            for ours, theirs, deviation in zip(truth, found, deviations, strict=True)
        )

    costs = []
    for layer in layers:
        moved = [*layer.inputs, *(outputs[node] for node in layer.nodes)]
        costs.append(layer.work + MOVED * sum(types[name][1] for name in moved))
    whole, total = max(error_of(layers), 1e-30), sum(costs)
    open_layers = [
        (layer, cost / total)
        for layer, cost in zip(layers, costs, strict=True)
        if cost <= GIVEN_BACK * total  # none other can go back
    ]
    if shifts is not None and is_large:  # in a small graph each is tried soon enough
        ends = {layer.weights for layer in last}
        open_layers.sort(key=lambda entry: -shifts[entry[0].weights].error)
        open_layers = [
            entry
            for place, entry in enumerate(open_layers)
            if place < TRIED or entry[0].weights in ends
        ]
    found = []
    for layer, cost in open_layers:
        error = error_of([layer])
        found.append(Cost(layer, error, (error / whole) ** 2, cost))
    return found


def give_back(costs: Iterable[Cost]) -> list[Cost]:
    """Choose the layers that return to fp32: the most gain for the cost, up to 3 % of all cost."""
    chosen: list[Cost] = []
    spent = 0.0
    for entry in sorted(costs, key=lambda entry: entry.gain / entry.cost, reverse=True):
        if entry.gain >= max(LEAST_GAIN, entry.cost) and spent + entry.cost <= GIVEN_BACK:
            chosen.append(entry)
            spent += entry.cost
    return chosen


# ------------------------------------------------------------------------------------- the graph


def never_negative(model: onnx.ModelProto) -> set[str]:
    """Return the tensors that cannot be negative on any image, by how they are made."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: set[str] = set()
    for node in model.graph.node:
        least = constants.get(node.input[1]) if node.op_type == "Clip" else None
        clipped = least is not None and float(numpy_helper.to_array(least)) >= 0
        passed = node.op_type in ("Add", "MaxPool") and all(name in found for name in node.input)
        if node.op_type in ("Relu", "Sigmoid") or clipped or passed:
            found.add(node.output[0])
    return found


def scale_after_activation(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which a positive factor comes after a ReLU instead of before.

    The two commute. Engines fold a factor that follows a convolution into its weights, and weights
    that are int8 times a factor are no longer int8.
    """
    from onnx import ModelProto, numpy_helper

    moved = ModelProto()
    moved.CopyFrom(model)
    graph = moved.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {value.name for value in graph.output}
    changed: dict[str, str] = {}  # name of a factor -> its ReLU, which take each other's place
    for node in graph.node:
        if node.op_type != "Mul" or node.output[0] in outputs:
            continue
        after = readers[node.output[0]]
        factor = constants.get(node.input[1])
        if factor is None or len(after) != 1 or after[0].op_type != "Relu":
            continue
        if (numpy_helper.to_array(factor) <= 0).any():
            continue
        relu = after[0]
        between, end = node.output[0], relu.output[0]
        relu.input[0], relu.output[0] = node.input[0], between
        node.input[0], node.output[0] = between, end
        changed[node.name] = relu.name
    by_name = {node.name: node for node in graph.node}
    other = changed | {relu: factor for factor, relu in changed.items()}
    ordered = [by_name[other.get(node.name, node.name)] for node in graph.node]
    copies = type(moved)().graph.node
    copies.extend(ordered)
    del graph.node[:]
    graph.node.extend(copies)
    del graph.value_info[:]
    return moved


def quantize(
    model: onnx.ModelProto,
    layers: Iterable[Layer],
    ranges: Mapping[str, ChosenRange],
    *,
    unsigned: bool = False,
    shifts: Mapping[str, Shift] | None = None,
) -> onnx.ModelProto:
    """Write a graph in which some layers are in int8.

    Args:
        model: In fp32; every node has a name.
        layers: Those to quantise.
        ranges: Of at least all tensors that they read.
        unsigned: Hold tensors that are never negative in 0..255 rather than -128..127, the zero
            point 0 in both. That is twice as fine; TensorRT reads signed ones alone.
        shifts: By weights, what rounding takes from the mean of each channel; biases give it back.
    """
    from onnx import ModelProto, NodeProto, helper, numpy_helper

    layers = list(layers)
    quantized = ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    weights = {layer.weights for layer in layers}
    in_int8 = {node for layer in layers for node in layer.nodes}
    needed = {name for layer in layers for name in layer.inputs}
    positive = never_negative(model) if unsigned else set()
    makers = {name: node for node in model.graph.node for name in node.output}
    constants: dict[str, NDArray[Any]] = {
        "int8_zero": np.array(0, np.int8),
        "uint8_zero": np.array(0, np.uint8),
    }
    result: list[NodeProto] = []
    for tensor in list(graph.initializer):
        if tensor.name not in weights:
            continue
        name = tensor.name
        steps, scales = quantize_weights(numpy_helper.to_array(tensor))
        graph.initializer.remove(tensor)
        read = [f"{name}_{part}" for part in ("int8", "scale", "zero")]
        constants[read[0]], constants[read[1]] = steps, scales
        constants[read[2]] = np.zeros(len(scales), np.int8)
        # what the layers read keeps its name: the weights that int8 stands for
        result.append(
            helper.make_node("DequantizeLinear", read, [name], f"dequantize_{name}", axis=0)
        )
    pairs: dict[tuple[str, float], str] = {}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}

    def unbiased(node: NodeProto) -> None:
        """Give a layer the bias that takes back what rounding shifts."""
        shift = (shifts or {}).get(node.input[1])
        if shift is None:
            return
        own = node.input[2] if len(node.input) > 2 else ""
        name = f"{node.input[1]}_{own or 'bias'}_unbiased"
        before = numpy_helper.to_array(stored[own]) if own else 0.0
        constants[name] = (before + shift.mean).astype(np.float32)
        del node.input[2:]
        node.input.append(name)

    def rounded(name: str, end: float) -> str:
        """Return the name of the tensor in int8 and back; MaxPool works on int8 too."""
        if (name, end) in pairs:
            return pairs[name, end]
        tag = name if all(known != name for known, _ in pairs) else f"{name}_again"
        zero, count = ("uint8_zero", 255) if name in positive else ("int8_zero", STEPS)
        constants[f"{tag}_scale"] = np.array(end / count, np.float32)
        pairs[name, end] = f"{tag}_rounded"
        result.extend(rounding_pair(name, f"{tag}_rounded", f"{tag}_scale", zero, tag))
        return pairs[name, end]

    ahead = {  # what a MaxPool reads can be rounded before it, to the same values
        makers[name].input[0]: ranges[name].end
        for name in needed
        if name in makers and makers[name].op_type == "MaxPool"
    }
    for original in graph.node:
        node = NodeProto()
        node.CopyFrom(original)
        if node.name in in_int8:
            unbiased(node)
        for index, name in enumerate(original.input):
            if name in needed and (
                (node.name in in_int8 and index == 0)
                or (node.op_type in READERS and node.op_type != "Conv")
            ):
                node.input[index] = rounded(name, ranges[name].end)
            elif node.op_type == "MaxPool" and name in ahead:
                node.input[index] = rounded(name, ahead[name])
        result.append(node)
    used = {name for node in result for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items() if name in used
    )
    del graph.node[:]
    graph.node.extend(result)
    del graph.value_info[:]
    return quantized
