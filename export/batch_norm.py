"""Fold batch norms into the convolutions before them.

The exporter's own pass leaves out convolutions whose weights several nodes share, which is the case
in towers that run on every level of the pyramid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """Return a number that a node may state."""
    from onnx import helper

    for attribute in node.attribute:
        if attribute.name == name:
            return float(helper.get_attribute_value(attribute))
    return default


def _folded(
    weight: NDArray[Any], bias: NDArray[Any] | None, norm: list[NDArray[Any]], epsilon: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weight and bias of one convolution that does the work of both.

    Args:
        weight: Output channels first.
        bias: Of the convolution, if it has one.
        norm: Scale, shift, mean and variance of each output channel.
        epsilon: Added to the variance.
    """
    scale, shift, mean, variance = (values.astype(np.float64) for values in norm)
    factor = scale / np.sqrt(variance + epsilon)
    before = np.zeros_like(mean) if bias is None else bias.astype(np.float64)
    scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    return scaled.astype(np.float32), ((before - mean) * factor + shift).astype(np.float32)


def fold_batch_norms(model: onnx.ModelProto) -> int:
    """Fold every batch norm whose input is the output of a convolution alone; in place.

    Args:
        model: A graph in fp32 with its weights inside.

    Returns:
        How many norms are gone.
    """
    from onnx import numpy_helper

    graph = model.graph
    stored: Mapping[str, onnx.TensorProto] = {t.name: t for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    made: dict[tuple[object, ...], tuple[str, str]] = {}
    gone = []
    for norm in graph.node:
        if norm.op_type != "BatchNormalization" or _attribute(norm, "training_mode", 0):
            continue
        conv = makers.get(norm.input[0])
        if conv is None or conv.op_type != "Conv" or uses[norm.input[0]] != 1:
            continue
        names = [*conv.input[1:], *norm.input[1:]]
        if not all(name in stored for name in names):
            continue
        epsilon = _attribute(norm, "epsilon", 1e-5)
        key = (*names, epsilon)
        if key not in made:
            values = [numpy_helper.to_array(stored[name]) for name in names]
            weight, bias = values[0], values[1] if len(conv.input) > 2 else None
            name = f"{conv.input[1]}.folded.{len(made)}"
            made[key] = (name, f"{name}.bias")
            for name, folded in zip(
                made[key], _folded(weight, bias, values[-4:], epsilon), strict=True
            ):
                graph.initializer.append(numpy_helper.from_array(folded, name))
        del conv.input[1:]
        conv.input.extend(made[key])
        conv.output[0] = norm.output[0]
        gone.append(norm)
    for norm in gone:
        graph.node.remove(norm)
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    for name in [name for name in stored if name not in used]:
        graph.initializer.remove(stored[name])
    inner = {name for node in graph.node for name in node.output}
    for info in [info for info in graph.value_info if info.name not in inner]:
        graph.value_info.remove(info)
    return len(gone)
