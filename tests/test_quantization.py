"""int8: integers by hand, ranges chosen by what they cost, and where the pairs stand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_networks import diagonal, image, layer, network, run

from boxseg.export.lowering import FLOAT_TYPES, lower, name_nodes
from boxseg.export.quantization import (
    ChosenRange,
    Cost,
    Layer,
    behind_choice,
    candidates,
    choose_ranges,
    give_back,
    last_layers,
    layers_of,
    measure_costs,
    never_negative,
    quantize,
    quantize_weights,
    sample,
    scale_after_activation,
)
from boxseg.export.to_onnx import TracedGraph
from boxseg.export.to_tensorrt import refused_nodes


def plain(end: float) -> ChosenRange:
    return ChosenRange("minmax", end, {"minmax": 0.0})


def readers(model: onnx.ModelProto, name: str) -> list[str]:
    return [node.name for node in model.graph.node if name in node.input]


# -------------------------------------------------------------------------------------- weights


def test_weights_have_one_scale_per_output_and_known_integers() -> None:
    values = np.array([[1.0, -0.5], [0.0, 0.0], [2.54, 0.02]], np.float32)
    steps, scales = quantize_weights(values)
    # 127 steps to the largest: 1/127, none, 2.54/127 = 0.02; -0.5 is -63.5 steps, ties go to even
    np.testing.assert_array_equal(steps, [[127, -64], [0, 0], [127, 1]])
    np.testing.assert_allclose(scales, [1 / 127, 1.0, 0.02], rtol=1e-6)
    assert steps.dtype == np.int8


def test_no_weights_give_no_integers() -> None:
    steps, scales = quantize_weights(np.zeros((0, 3), np.float32))
    assert steps.shape == (0, 3)
    assert scales.shape == (0,)


# --------------------------------------------------------------------------------------- ranges


def test_a_tensor_that_is_always_zero_gets_a_range() -> None:
    assert candidates(np.zeros(5, np.float32), 0.0) == {"minmax": 1.0}


def test_methods_differ_where_there_are_outliers() -> None:
    numbers = np.concatenate([np.linspace(-1, 1, 99_999), [50.0]]).astype(np.float32)
    found = candidates(numbers, 50.0)
    assert found["minmax"] == 50.0
    # the largest of ten thousand is cut: below 50, about 1
    assert 0.99 < found["percentile"] < 1.01
    assert found["mse"] <= 50.0


def test_the_range_with_the_least_squared_error_is_found() -> None:
    # 254 numbers of 1 and one of 2. At the end 2 steps are 2/127 = 0.01575: 1 is 63.5 steps, off by
    # half a step. No end below 2 cuts 2 for less than that: 254 * 0.0079^2 = 0.0158 = 0.126^2.
    numbers = np.array([1.0] * 254 + [2.0], np.float32)
    end = candidates(numbers, 2.0)["mse"]
    held = np.minimum(np.rint(numbers / (end / 127)), 127) * (end / 127)
    assert ((held - numbers) ** 2).sum() < 0.0158
    assert 2.0 - 0.126 < end < 2.0


def test_the_range_is_chosen_by_what_the_next_layer_says() -> None:
    # red is large and unread; green and blue are 1. With steps of 255/127 they vanish, with steps
    # of 1.27/127 they are 100 steps.
    model = network([layer("first", "x", "out")], {"first.weight": diagonal(0, 1, 1)})
    chosen = choose_ranges(
        model,
        layers_of(model),
        {"x": {"minmax": 255.0, "percentile": 1.27}},
        [image(255, 1, 1)],
    )
    assert chosen["x"].method == "percentile"
    assert chosen["x"].errors["minmax"] == pytest.approx(1.0)
    assert chosen["x"].errors["percentile"] == pytest.approx(0.0, abs=1e-6)
    # where red counts, cutting it costs nearly all
    model = network([layer("first", "x", "out")], {"first.weight": diagonal(1, 1, 1)})
    choices = {"x": {"minmax": 255.0, "percentile": 1.27}}
    chosen = choose_ranges(model, layers_of(model), choices, [image(255, 1, 1)])
    assert chosen["x"].method == "minmax"
    assert chosen["x"].scale == pytest.approx(255 / 127)


def test_equal_costs_go_to_the_wider_range() -> None:
    model = network([layer("first", "x", "out")], {"first.weight": diagonal(1, 1, 1)})
    choices = {"x": {"percentile": 127.0, "minmax": 254.0}}
    chosen = choose_ranges(model, layers_of(model), choices, [image(2, 4, 6)])
    assert chosen["x"].method == "minmax"


def test_samples_come_from_every_image() -> None:
    model = network([layer("first", "x", "out")], {"first.weight": diagonal(1, 1, 1)})
    numbers, peak = sample(model, ["x"], [image(1, 2, 3), image(7, 0, 0)])["x"]
    assert peak == 7.0
    assert sorted(set(numbers.tolist())) == [0.0, 1.0, 2.0, 3.0, 7.0]


# -------------------------------------------------------------------------------------- layers


def test_a_layer_is_one_tensor_of_weights_with_all_its_work() -> None:
    nodes = [layer("shared", "x", "y"), helper.make_node("Conv", ["y", "shared.weight"], ["out"])]
    model = network(nodes, {"shared.weight": diagonal(1, 1, 1)})
    # 3 x 3 weights at 4 pixels, twice
    assert layers_of(model) == [Layer("shared.weight", ("shared", "Conv_3"), ("x", "y"), 72)]
    assert layers_of(network([helper.make_node("Relu", ["x"], ["out"])], {})) == []


def test_the_last_layers_are_those_that_no_layer_reads() -> None:
    nodes = [
        layer("first", "x", "y"),
        helper.make_node("Relu", ["y"], ["z"]),
        layer("left", "z", "a"),
        layer("right", "z", "b"),
        helper.make_node("Add", ["a", "b"], ["out"]),
    ]
    weights = {f"{name}.weight": diagonal(1, 1, 1) for name in ("first", "left", "right")}
    model = network(nodes, weights)
    found = last_layers(model, layers_of(model))
    assert [entry.weights for entry in found] == ["left.weight", "right.weight"]


def test_what_a_choice_decides_is_no_judge_of_a_layer() -> None:
    # `after` reads the two largest of four pixels, in the order of their values
    nodes = [
        layer("before", "x", "y"),
        helper.make_node("Reshape", ["y", "flat"], ["rows"]),
        helper.make_node("TopK", ["rows", "two"], ["best", "places"], "choose"),
        layer("after", "best", "z"),
        helper.make_node("Identity", ["z"], ["out"], "name"),
    ]
    weights: dict[str, np.ndarray] = {f"{n}.weight": diagonal(1, 1, 1) for n in ("before", "after")}
    weights |= {"flat": np.array([1, 3, 1, 4]), "two": np.array([2])}
    model = network(nodes, weights)
    assert behind_choice(model) == {"choose", "after", "name"}
    assert behind_choice(network(nodes[:1], weights)) == set()


def test_only_layers_that_could_go_back_are_measured() -> None:
    nodes = [layer("first", "x", "y"), layer("second", "y", "out")]
    weights = {"first.weight": diagonal(1, 1, 1), "second.weight": diagonal(1, 1, 1)}
    model = network(nodes, weights)
    ranges = {"x": plain(255.0), "y": plain(255.0)}
    # each is half of the cost
    assert measure_costs(model, layers_of(model), ranges, [image(1, 2, 3)]) == []


def test_the_best_bargains_go_back_until_three_percent_are_spent() -> None:
    def cost(name: str, gain: float, cost: float) -> Cost:
        return Cost(Layer(name, (name,), (), 1), 0.1, gain, cost)

    costs = [
        cost("dear", 0.5, 0.2),  # above all that may be spent
        cost("second", 0.10, 0.01),
        cost("first", 0.20, 0.005),
        cost("third", 0.05, 0.02),  # 0.035 would be spent
        cost("fourth", 0.04, 0.015),
        cost("nothing", 0.009, 0.0001),  # gains less than 1 %
        cost("bad", 0.01, 0.012),  # gains less than it costs
    ]
    assert [entry.layer.weights for entry in give_back(costs)] == ["first", "second", "fourth"]
    assert give_back([]) == []


# ------------------------------------------------------------------------------------- the graph


def test_a_known_layer_in_int8_gives_known_numbers() -> None:
    model = network([layer("first", "x", "out")], {"first.weight": diagonal(0.5, 1, 2)})
    found = quantize(model, layers_of(model), {"x": plain(254.0)})
    # steps of 2: 3 is a tie and goes to 2 steps = 4, 100 is exact, 255 is cut to 254
    np.testing.assert_allclose(run(found, image(3, 100, 255)), [2, 100, 508], rtol=1e-6)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.graph.initializer}
    assert stored["first.weight_int8"].dtype == np.int8
    np.testing.assert_array_equal(np.diag(stored["first.weight_int8"][:, :, 0, 0]), [127] * 3)
    np.testing.assert_allclose(stored["first.weight_scale"], [0.5 / 127, 1 / 127, 2 / 127])
    assert "first.weight" not in stored
    # TensorRT reads no bytes without sign, not even unused ones
    assert np.uint8 not in {value.dtype.type for value in stored.values()}


def test_only_the_named_layers_are_in_int8() -> None:
    nodes = [layer("first", "x", "y"), layer("second", "y", "out")]
    weights = {"first.weight": diagonal(1, 1, 1), "second.weight": diagonal(1, 1, 1)}
    model = network(nodes, weights)
    first, second = layers_of(model)
    found = quantize(model, [second], {"y": plain(254.0)})
    assert readers(found, "x") == ["first"]
    names = {tensor.name for tensor in found.graph.initializer}
    assert {"first.weight", "second.weight_int8"} <= names
    assert run(quantize(model, [], {}), image(1, 2, 3)).tolist() == [1, 2, 3]
    assert first.nodes == ("first",)


def test_unsigned_tensors_are_twice_as_fine_and_only_where_nothing_is_negative() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu"), layer("first", "y", "out")]
    model = network(nodes, {"first.weight": diagonal(1, 1, 1)})
    ranges = {"y": plain(255.0)}
    # steps of 255 / 255 = 1 against 255 / 127 = 2.008: 101 is 50.3 steps, so 50 * 2.00787
    fine = quantize(model, layers_of(model), ranges, unsigned=True)
    coarse = quantize(model, layers_of(model), ranges)
    np.testing.assert_allclose(run(fine, image(101, 255, 1)), [101, 255, 1], rtol=1e-5)
    np.testing.assert_allclose(
        run(coarse, image(101, 255, 1)), [50 * 255 / 127, 255, 0], rtol=1e-5, atol=1e-6
    )
    # the image itself is not known to be positive
    model = network([layer("first", "x", "out")], {"first.weight": diagonal(1, 1, 1)})
    found = quantize(model, layers_of(model), {"x": plain(255.0)}, unsigned=True)
    zeros = {n.input[2] for n in found.graph.node if n.op_type == "QuantizeLinear"}
    assert zeros == {"int8_zero"}


def test_tensorrt_reads_every_node_of_a_network_in_every_precision(tiny_graph: TracedGraph) -> None:
    model = name_nodes(tiny_graph.model)
    layers = layers_of(model)
    ranges = {name: plain(1.0) for entry in layers for name in entry.inputs}
    assert refused_nodes(quantize(model, layers, ranges)) == []
    assert refused_nodes(lower(model, FLOAT_TYPES["fp16"], set())) == []
    model.opset_import[0].version = 22  # the first in which bf16 is known everywhere
    assert refused_nodes(lower(model, FLOAT_TYPES["bf16"], set())) == []
    # unsigned tensors are for OpenVINO alone
    model.opset_import[0].version = 18
    assert refused_nodes(quantize(model, layers, ranges, unsigned=True)) != []


def test_tensors_that_are_never_negative_are_known_by_their_makers() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["relu"]),
        helper.make_node("Clip", ["x", "zero", "six"], ["relu6"]),
        helper.make_node("Clip", ["x", "minus", "six"], ["both"]),
        helper.make_node("Add", ["relu", "relu6"], ["sum"]),
        helper.make_node("Add", ["relu", "x"], ["mixed"]),
        helper.make_node("MaxPool", ["sum"], ["out"], kernel_shape=[2, 2]),
    ]
    bounds = {"zero": 0, "six": 6, "minus": -1}
    model = network(nodes, {name: np.array(v, np.float32) for name, v in bounds.items()})
    assert never_negative(model) == {"relu", "relu6", "sum", "out"}


def test_nothing_stands_between_a_layer_and_its_activation() -> None:
    nodes = [
        layer("first", "x", "y"),
        helper.make_node("Relu", ["y"], ["z"], "relu"),
        layer("second", "z", "a"),
        helper.make_node("Add", ["a", "z"], ["out"], "residual"),
    ]
    weights = {"first.weight": diagonal(1, 1, 1), "second.weight": diagonal(1, 1, 1)}
    model = network(nodes, weights)
    found = quantize(model, layers_of(model), {"x": plain(254.0), "z": plain(254.0)})
    assert readers(found, "y") == ["relu"]
    assert readers(found, "z") == ["quantize_z"]
    # the sum reads the same int8 tensor as the layer, so that nothing is kept twice
    assert readers(found, "z_rounded") == ["second", "residual"]
    assert readers(found, "a") == ["residual"]


def test_a_tensor_is_rounded_before_the_pool_that_it_passes() -> None:
    pool = helper.make_node("MaxPool", ["x"], ["y"], "pool", kernel_shape=[2, 2])
    model = network([pool, layer("first", "y", "out")], {"first.weight": diagonal(1, 1, 1)})
    found = quantize(model, layers_of(model), {"y": plain(254.0)})
    assert readers(found, "x") == ["quantize_x"]
    assert readers(found, "x_rounded") == ["pool"]
    pixels = image(3, 0, 0)
    pixels[0, 1, 1] = (101, 9, 0)
    # steps of 2, ties to even: 101 -> 50.5 -> 50 -> 100; 9 -> 4.5 -> 4 -> 8
    np.testing.assert_allclose(run(found, pixels), [100, 8, 0], rtol=1e-6)


def test_a_positive_factor_moves_behind_the_activation() -> None:
    nodes = [
        layer("first", "x", "y"),
        helper.make_node("Mul", ["y", "factor"], ["far"], "scale"),
        helper.make_node("Relu", ["far"], ["out"], "relu"),
    ]
    for factor, order in ((3.0, ["relu", "scale"]), (-3.0, ["scale", "relu"])):
        weights = {"first.weight": diagonal(1, -1, 1), "factor": np.array(factor, np.float32)}
        model = network(nodes, weights)
        moved = scale_after_activation(model)
        assert [node.name for node in moved.graph.node][-2:] == order
        pixels = image(5, 6, 7)
        np.testing.assert_array_equal(run(moved, pixels), run(model, pixels))
