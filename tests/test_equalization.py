"""Before int8: channels of like range, and biases that take back what rounding shifts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from small_networks import diagonal, image, layer, network, run

from boxseg.export.calibration import CalibrationSet
from boxseg.export.equalization import (
    Channels,
    equalize,
    factors,
    find_pairs,
    measure_shifts,
)
from boxseg.export.quantization import ChosenRange, layers_of, quantize


def plain(end: float) -> ChosenRange:
    return ChosenRange("minmax", end, {"minmax": 0.0})


def depthwise(source: str, target: str, name: str = "deep") -> onnx.NodeProto:
    return helper.make_node("Conv", [source, f"{name}.weight"], [target], name, group=3)


def clip(source: str, target: str, low: str = "zero") -> onnx.NodeProto:
    return helper.make_node("Clip", [source, low, "six"], [target], "clip")


def column(*values: float) -> NDArray[np.float32]:
    """Return weights of a depthwise convolution of three channels."""
    return np.array(values, np.float32).reshape(3, 1, 1, 1)


BOUNDS = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}


def mobile(*, bias: bool = True) -> onnx.ModelProto:
    """Return x * (0.02, 0.002, 0), plus 0.1 in the second channel, cut at 6, times (1, 2, 3)."""
    names = ["x", "first.weight", "first.bias"] if bias else ["x", "first.weight"]
    nodes = [
        helper.make_node("Conv", names, ["y"], "first"),
        clip("y", "z"),
        depthwise("z", "out"),
    ]
    weights = {"first.weight": diagonal(0.02, 0.002, 0), "deep.weight": column(1, 2, 3), **BOUNDS}
    if bias:
        weights["first.bias"] = np.array([0, 0.1, 0], np.float32)
    return network(nodes, weights)


def stored(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def channels(peaks: list[float], energies: list[float] | None = None) -> Channels:
    return Channels(np.array(peaks), np.array(peaks if energies is None else energies))


def test_small_channels_grow_to_half_of_the_ceiling_and_no_further() -> None:
    # to 6 / 2 = 3: by 1, 10, 3000 but at most 64; a silent channel and a large one stay
    found = factors(channels([3.0, 0.3, 0.0, 0.001, 6.0]), 6.0)
    np.testing.assert_allclose(found, [1, 10, 1, 64, 1], rtol=1e-6)
    # without a ceiling, to the largest
    np.testing.assert_allclose(factors(channels([4.0, 1.0]), None), [1, 4])
    assert factors(channels([]), None).shape == (0,)


def test_where_weights_share_their_steps_both_errors_become_equal() -> None:
    # one output reads three channels by 1, 1 and 0.01, so its weights have steps of 1 / 127;
    # channels have steps of 6 / 127. By f, the error of a channel is (6 w / f)^2 and that of its
    # weight energy f^2, in units of 1 / 127^2 / 12: equal at f^4 = 36 w^2 / energy
    weights = np.array([1, 1, 0.01], np.float32).reshape(1, 3, 1, 1)
    found = factors(channels([0.01, 0.01, 0.01], [0.0001, 2.25, 0.0004]), 6.0, weights)
    np.testing.assert_allclose(found, [360_000**0.25, 2, 1.732051], rtol=1e-5)
    # but no further than half of the ceiling
    assert factors(channels([0.5], [0.0001]), 6.0, weights[:, :1])[0] == pytest.approx(6)


def test_channels_grow_and_shrink_again_and_the_answer_is_the_same() -> None:
    model = mobile()
    pixels = image(100, 100, 100)
    # 2, 0.2 + 0.1 and 0 after the activation: the first grows by 1.5, the second by 10
    found = equalize(model, [pixels])
    values = stored(found)
    weights = np.diag(values["first.weight"][:, :, 0, 0])
    np.testing.assert_allclose(weights, [0.03, 0.02, 0], rtol=1e-6)
    np.testing.assert_allclose(values["first.bias"], [0, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(values["deep.weight"].ravel(), [1 / 1.5, 0.2, 3], rtol=1e-6)
    np.testing.assert_allclose(run(found, pixels), [2, 0.6, 0], rtol=1e-6)
    assert stored(model)["first.weight"][0, 0] == np.float32(0.02)  # a copy was changed


def test_a_small_channel_loses_less_in_int8_afterwards() -> None:
    model, pixels = mobile(bias=False), image(100, 100, 100)

    def second_channel(graph: onnx.ModelProto) -> float:
        layers = [found for found in layers_of(graph) if found.weights == "deep.weight"]
        return float(run(quantize(graph, layers, {"z": plain(6.0)}), pixels)[1])

    # 0.2 in steps of 6 / 127 is 4.23 steps, so 4 of 0.04724, times 2
    assert second_channel(model) == pytest.approx(8 * 6 / 127, rel=1e-5)
    # grown by 15 to 3: 63.5 steps, ties go to even, so 64 of 0.04724, times 2 / 15
    found = second_channel(equalize(model, [pixels]))
    assert found == pytest.approx(64 * 6 / 127 * 2 / 15, rel=1e-5)


def test_an_ordinary_layer_reads_channels_that_grew() -> None:
    nodes = [layer("first", "x", "y"), clip("y", "z"), layer("second", "z", "out")]
    mix = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]], np.float32)[:, :, None, None]
    weights = {"first.weight": diagonal(0.02, 0.0002, 0.01), "second.weight": mix, **BOUNDS}
    model, pixels = network(nodes, weights), image(100, 100, 100)
    found = equalize(model, [pixels])
    # 2, 0.02 and 1 after the activation. Two outputs read each channel and three have steps of
    # 1 / 127: f^4 = 36 * 2 / (3 * square), 1.57, 15.7 and 2.21, the first at most 6 / 2 / 2
    by = np.diag(stored(found)["first.weight"][:, :, 0, 0]) / [0.02, 0.0002, 0.01]
    np.testing.assert_allclose(by, [1.5, 24**0.25 / 0.02**0.5, 24**0.25], rtol=1e-5)
    np.testing.assert_allclose(stored(found)["second.weight"][:, 1, 0, 0], [1 / by[1]] * 2 + [0])
    np.testing.assert_allclose(run(found, pixels), [2.02, 1.02, 3], rtol=1e-5)


@pytest.mark.parametrize(
    "nodes",
    [
        [layer("first", "x", "y"), clip("y", "z", "minus"), depthwise("z", "out")],
        [layer("first", "x", "z"), depthwise("z", "out")],  # no activation
        [clip("x", "z"), depthwise("z", "out")],  # no layer before it
        [  # somebody else reads the activation
            layer("first", "x", "y"),
            clip("y", "z"),
            depthwise("z", "a"),
            helper.make_node("Add", ["a", "z"], ["out"]),
        ],
        [  # another layer has the same weights
            layer("first", "x", "w"),
            helper.make_node("Conv", ["w", "first.weight"], ["y"], "again"),
            clip("y", "z"),
            depthwise("z", "out"),
        ],
    ],
)
def test_other_places_are_left_alone(nodes: list[onnx.NodeProto]) -> None:
    inputs = {name for node in nodes for name in node.input}
    weights = {
        "first.weight": diagonal(1, 1, 1),
        "deep.weight": column(1, 1, 1),
        "minus": np.array(-1, np.float32),
        **BOUNDS,
    }
    model = network(nodes, {name: value for name, value in weights.items() if name in inputs})
    assert find_pairs(model) == []
    assert equalize(model, [image(1, 2, 3)]) == model


def uneven(bias: float | None) -> onnx.ModelProto:
    """Return a layer whose second and third weight are half a step of the first's."""
    weights = {"first.weight": np.tile(np.array([1, 0.004, 0.004], np.float32), (3, 1))}
    weights["first.weight"] = weights["first.weight"][:, :, None, None]
    names = ["x", "first.weight"]
    if bias is not None:
        weights["first.bias"] = np.full(3, bias, np.float32)
        names.append("first.bias")
    return network([helper.make_node("Conv", names, ["out"], "first")], weights)


@pytest.mark.parametrize("bias", [None, 5.0])
def test_a_bias_takes_back_what_rounding_shifts(bias: float | None) -> None:
    model, ranges = uneven(bias), {"x": plain(127.0)}
    layers = layers_of(model)
    # 0.004 is 0.508 steps of 1 / 127, so one step: 100 * 2 / 127 = 1.5748 in place of 0.8
    shifts = measure_shifts(model, layers, ranges, [image(0, 100, 100)])
    mean = 0.8 - 200 / 127
    np.testing.assert_allclose(shifts["first.weight"].mean, [mean] * 3, rtol=1e-4)
    truth = 0.8 + (bias or 0.0)
    assert shifts["first.weight"].error == pytest.approx(-mean / truth, rel=1e-4)
    plainly = run(quantize(model, layers, ranges), image(0, 100, 100))
    np.testing.assert_allclose(plainly, [truth - mean] * 3, rtol=1e-4)
    found = quantize(model, layers, ranges, shifts=shifts)
    np.testing.assert_allclose(run(found, image(0, 100, 100)), [truth] * 3, rtol=1e-4)
    assert "first.bias" not in stored(found)
    # a layer that stays in fp32 keeps its bias
    kept = run(quantize(model, [], {}, shifts=shifts), image(0, 100, 100))
    np.testing.assert_allclose(kept, [truth] * 3, rtol=1e-4)


def test_shifts_are_means_over_images_and_over_the_places_of_a_shared_layer() -> None:
    model, ranges = uneven(None), {"x": plain(127.0)}
    images = [image(0, 100, 100), image(0, 0, 0)]
    shifts = measure_shifts(model, layers_of(model), ranges, images)
    np.testing.assert_allclose(shifts["first.weight"].mean, [(0.8 - 200 / 127) / 2] * 3, rtol=1e-4)
    assert measure_shifts(model, [], {}, images) == {}


def test_a_part_of_a_calibration_set_is_spread_over_it() -> None:
    frames = tuple(np.full((2, 2, 3), value, np.uint8) for value in range(8))
    whole = CalibrationSet((), "drawn", frames)
    assert [int(frame[0, 0, 0]) for frame in whole.evenly(3).frames] == [0, 2, 5]
    assert len(whole.evenly(99)) == 8
