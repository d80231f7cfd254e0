"""Change a network in fp32 so that int8 loses less: like ranges, and layers without bias.

A tensor has one scale for all its channels, so channels that are small beside others keep few
steps. Between two convolutions, `equalize` makes small channels larger before the activation and
divides the weights that read them by the same factor, which changes nothing in fp32. Weights have a
scale per output channel. Those of a depthwise convolution read one channel each, so its channels
grow as far as the activation lets them. Those of other convolutions share their steps between
channels, and smaller weights would keep fewer steps: there the factor balances both errors.

Rounding weights shifts the mean of a layer's outputs, by another amount in each channel, and such
shifts add up from layer to layer. `measure_shifts` finds them, and the biases take them back.
Both follow Nagel et al., "Data-free quantization through weight equalization and bias correction",
arXiv:1906.04721, but measure on images what is derived there.

C channels of a tensor.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boxseg.export.lowering import FLOAT, tensor_types
from boxseg.export.quantization import (
    STEPS,
    Layer,
    quantize_weights,
    rounding_pair,
    runs,
    without_outputs,
)

if TYPE_CHECKING:
    import onnx

    from boxseg.export.quantization import ChosenRange

HEADROOM = 2.0
"""A channel that reaches x on the images may reach twice that before the activation cuts it."""

LARGEST_FACTOR = 64.0
"""By which a channel is made larger at most."""


@dataclass(frozen=True)
class Pair:
    """A convolution, its activation and the convolution that alone reads it."""

    before: onnx.NodeProto
    activation: onnx.NodeProto
    after: onnx.NodeProto
    ceiling: float | None
    """Where the activation ends; None if it does not."""
    is_depthwise: bool
    """Whether each output of the second convolution reads one channel of its own."""


def find_pairs(model: onnx.ModelProto) -> list[Pair]:
    """List the places where channels can be scaled, in the order of the graph.

    Args:
        model: In fp32, norms folded into convolutions.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)

    def is_own(node: onnx.NodeProto | None) -> bool:
        """Whether a node is a convolution whose weights and biases nobody else reads."""
        return (
            node is not None
            and node.op_type == "Conv"
            and all(name in constants and uses[name] == 1 for name in node.input[1:])
        )

    found = []
    for node in graph.node:
        if not is_own(node):
            continue
        groups = {a.name: helper.get_attribute_value(a) for a in node.attribute}.get("group", 1)
        activation = makers.get(node.input[0])
        is_depthwise = groups > 1 and groups == constants[node.input[1]].dims[0]
        if activation is None or (groups > 1 and not is_depthwise):
            continue
        before = makers.get(activation.input[0])
        alone = uses[node.input[0]] == uses[activation.input[0]] == 1
        if before is None or not is_own(before) or not alone:
            continue
        if activation.op_type == "Relu":
            found.append(Pair(before, activation, node, None, is_depthwise))
        elif activation.op_type == "Clip" and len(activation.input) == 3:
            ends = [constants.get(name) for name in activation.input[1:]]
            low, high = (None if t is None else float(numpy_helper.to_array(t)) for t in ends)
            if low == 0.0 and high is not None and high > 0:
                found.append(Pair(before, activation, node, high, is_depthwise))
    return found


@dataclass(frozen=True)
class Channels:
    """What the channels of a tensor do on images, (C,) each."""

    peak: NDArray[np.float64]
    """Largest value."""
    energy: NDArray[np.float64]
    """Mean square."""


def watch_channels(
    model: onnx.ModelProto, tensors: Sequence[str], inputs: Iterable[NDArray[np.uint8]]
) -> dict[str, Channels]:
    """Run a graph and return what the channels of tensors of rank 4 do."""
    from onnx import helper, numpy_helper

    if not tensors:
        return {}
    watched = without_outputs(model)
    graph = watched.graph
    graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3], np.int64), "watch/axes"))
    for name in tensors:
        square, peak, energy = (f"{name}/watch/{part}" for part in ("square", "peak", "energy"))
        graph.node.extend(
            [
                helper.make_node("Mul", [name, name], [square]),
                helper.make_node("ReduceMax", [name, "watch/axes"], [peak], keepdims=0),
                helper.make_node("ReduceMean", [square, "watch/axes"], [energy], keepdims=0),
            ]
        )
        graph.output.extend(
            helper.make_tensor_value_info(part, FLOAT, None) for part in (peak, energy)
        )
    seen: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for found in runs(watched, inputs):
        for name, value in found.items():
            seen[name].append(np.asarray(value, np.float64))
    return {
        name: Channels(
            np.max(seen[f"{name}/watch/peak"], axis=0),
            np.mean(seen[f"{name}/watch/energy"], axis=0),
        )
        for name in tensors
    }


def factors(
    channels: Channels, ceiling: float | None, weights: NDArray[np.float32] | None = None
) -> NDArray[np.float64]:
    """Return by what each channel is made larger, at least 1, (C,).

    Args:
        channels: After the activation.
        ceiling: Where the activation ends: channels grow towards it, and keep their headroom.
            None lets them grow towards the largest.
        weights: Of an ordinary convolution that reads them, (outputs, C, rows, columns); None of a
            depthwise one.
    """
    largest = float(channels.peak.max(initial=0.0))
    goal = largest if ceiling is None else ceiling / HEADROOM
    most = goal / np.maximum(channels.peak, 1e-30)
    if weights is None:
        grown = most
    else:
        # by a factor f, rounding the channel costs step^2 W / f^2 and rounding its weights
        # energy D f^2, over 12 both; the sum is least where the two are equal
        squares = weights.astype(np.float64) ** 2
        step = (largest if ceiling is None else ceiling) / STEPS
        peaks = np.abs(weights.astype(np.float64)).max(axis=(1, 2, 3), initial=0.0)
        reading = squares.sum(axis=(0, 2, 3))  # W, (C,)
        fineness = weights[0, 0].size * float(((peaks / STEPS) ** 2).sum())  # D
        cost = np.maximum(channels.energy * fineness, 1e-30)
        grown = np.minimum((step**2 * reading / cost) ** 0.25, most)
    grown[channels.peak <= 0] = 1.0  # silent on these images: what it would do is not known
    return np.clip(grown, 1.0, LARGEST_FACTOR)


def equalize(model: onnx.ModelProto, inputs: Iterable[NDArray[np.uint8]]) -> onnx.ModelProto:
    """Return a copy in which the channels between convolutions have ranges that suit int8.

    Args:
        model: In fp32.
        inputs: Images to measure ranges on, at least one.
    """
    from onnx import ModelProto, numpy_helper

    copy = ModelProto()
    copy.CopyFrom(model)
    pairs = find_pairs(copy)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    watched = watch_channels(copy, [pair.after.input[0] for pair in pairs], inputs)

    def scale(name: str, by: NDArray[np.float64], axis: int) -> None:
        values = numpy_helper.to_array(constants[name])
        sides = [-1 if place == axis else 1 for place in range(values.ndim)]
        scaled = (values * by.reshape(sides)).astype(np.float32)
        constants[name].CopyFrom(numpy_helper.from_array(scaled, name))

    for pair in pairs:
        weights = numpy_helper.to_array(constants[pair.after.input[1]])
        channels = watched[pair.after.input[0]]
        by = factors(channels, pair.ceiling, None if pair.is_depthwise else weights)
        for name in pair.before.input[1:]:
            scale(name, by, 0)
        scale(pair.after.input[1], 1 / by, 0 if pair.is_depthwise else 1)
    return copy


# -------------------------------------------------------------------------------------- shifts


@dataclass(frozen=True)
class Shift:
    """What int8 does to the outputs of one layer whose inputs are those of the fp32 graph."""

    mean: NDArray[np.float32]
    """By how much each channel comes out too small, (C,)."""
    error: float
    """RMS of the change, as a share of the outputs' own RMS."""


def measure_shifts(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    ranges: Mapping[str, ChosenRange],
    inputs: Iterable[NDArray[np.uint8]],
) -> dict[str, Shift]:
    """Compute each layer once more, with input and weights in int8, beside the fp32 graph.

    Args:
        model: In fp32; every node has a name.
        layers: From `layers_of`.
        ranges: Of all tensors that they read.
        inputs: Images, at least one.

    Returns:
        By the layer's weights. A layer of several convolutions has their mean over all places.
    """
    from onnx import NodeProto, helper, numpy_helper

    if not layers:
        return {}
    types = tensor_types(model)
    nodes = {node.name: node for node in model.graph.node}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    watched = without_outputs(model)
    graph = watched.graph

    def constant(name: str, values: NDArray[Any]) -> str:
        graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    zero = constant("shift/zero", np.array(0, np.int8))
    axes = constant("shift/axes", np.array([0, 2, 3], np.int64))
    for tensor in dict.fromkeys(name for layer in layers for name in layer.inputs):
        scale = constant(f"{tensor}/shift/scale", np.array(ranges[tensor].end / STEPS, np.float32))
        rounded = f"{tensor}/shift/rounded"
        graph.node.extend(rounding_pair(tensor, rounded, scale, zero, rounded))
    for layer in layers:
        steps, scales = quantize_weights(numpy_helper.to_array(constants[layer.weights]))
        held = steps * scales.reshape(-1, *[1] * (steps.ndim - 1))
        weights = constant(f"{layer.weights}/shift", held.astype(np.float32))
        for name in layer.nodes:
            again = NodeProto()
            again.CopyFrom(nodes[name])
            again.name = f"{name}/shift"
            again.input[0], again.input[1] = f"{again.input[0]}/shift/rounded", weights
            truth, again.output[0] = again.output[0], f"{name}/shift/out"
            gap, mean, noise, energy = (
                f"{name}/shift/{part}" for part in ("gap", "mean", "noise", "energy")
            )
            graph.node.extend(
                [
                    again,
                    helper.make_node("Sub", [truth, again.output[0]], [gap]),
                    helper.make_node("ReduceMean", [gap, axes], [mean], keepdims=0),
                    helper.make_node("ReduceSumSquare", [gap], [noise], keepdims=0),
                    helper.make_node("ReduceSumSquare", [truth], [energy], keepdims=0),
                ]
            )
            graph.output.extend(
                helper.make_tensor_value_info(part, FLOAT, None) for part in (mean, noise, energy)
            )
    totals: dict[str, Any] = {}
    count = 0
    for found in runs(watched, inputs):
        count += 1
        for name, value in found.items():
            totals[name] = totals.get(name, 0.0) + np.asarray(value, np.float64)
    shifts = {}
    for layer in layers:
        places = np.array([types[nodes[name].output[0]][1] for name in layer.nodes], np.float64)
        means = np.stack([totals[f"{name}/shift/mean"] for name in layer.nodes]) / count
        mean = (means * (places / places.sum())[:, None]).sum(axis=0)
        changed = sum(float(totals[f"{name}/shift/noise"]) for name in layer.nodes)
        whole = sum(float(totals[f"{name}/shift/energy"]) for name in layer.nodes)
        error = float(np.sqrt(changed / max(whole, 1e-30)))
        shifts[layer.weights] = Shift(mean.astype(np.float32), error)
    return shifts
