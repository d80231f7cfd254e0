"""Which nodes stay in fp32 and why, what a lowered graph computes, and what an audit sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from boxseg.errors import DataError, PrecisionError, UnsupportedOperatorError
from boxseg.export.calibration import (
    CalibrationSet,
    calibration_set,
    doubts_about,
    measure_ranges,
    open_session,
)
from boxseg.export.lowering import FLOAT_TYPES, lower, name_nodes, round_to, rounded_graph
from boxseg.export.precision import Kept, lower_network, outside_int8, plan
from boxseg.export.precision_audit import Audit, audit
from boxseg.export.quantization import layers_of
from boxseg.export.to_onnx import TracedGraph
from boxseg.export.to_openvino import write_openvino
from boxseg.export.verify import drawn_samples
from boxseg.runtime.backends import openvino_settings
from boxseg.runtime.preprocess import Fit

FP16, BF16 = FLOAT_TYPES["fp16"], FLOAT_TYPES["bf16"]
WHITE = np.full((1, 2, 2, 3), 255, np.uint8)

Weights = dict[str, NDArray[np.float32]]


def network(
    nodes: list[onnx.NodeProto], weights: Weights, output: str = "out", opset: int = 18
) -> onnx.ModelProto:
    """Return a graph of an image of 2 x 2 pixels; `x` is its bytes as float32, (1, 3, 2, 2)."""
    head = [
        helper.make_node("Transpose", ["image"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["x"], "widen", to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        head + nodes,
        "by_hand",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, (1, 2, 2, 3))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    return onnx.shape_inference.infer_shapes(model)


def layer(name: str, source: str, target: str) -> onnx.NodeProto:
    """Return a 1 x 1 convolution with the weights `<name>.weight`."""
    return helper.make_node("Conv", [source, f"{name}.weight"], [target], name)


def weight(value: float, outputs: int = 3, inputs: int = 3) -> NDArray[np.float32]:
    """Return weights of a 1 x 1 convolution that are zero but for the diagonal."""
    return (np.eye(outputs, inputs) * value).astype(np.float32)[:, :, None, None]


def two_layers(second: float) -> onnx.ModelProto:
    """Return two convolutions by 0.5 and by `second`."""
    nodes = [layer("first", "x", "y"), layer("second", "y", "out")]
    return network(nodes, {"first.weight": weight(0.5), "second.weight": weight(second)})


def by_node(kept: list[Kept]) -> dict[str, Kept]:
    return {entry.node: entry for entry in kept}


def run(model: onnx.ModelProto, image: NDArray[np.uint8] = WHITE) -> NDArray[np.float32]:
    onnx.checker.check_model(model, full_check=True)
    return np.asarray(open_session(model).run(None, {"image": image})[0])


# ------------------------------------------------------------------------------------- rounding


def test_rounding_is_to_nearest_and_ties_go_to_even() -> None:
    # float16 has 11 bits: above 2048 it counts by 2. bfloat16 has 8: above 256 it counts by 2.
    values = np.array([2049, 2051, 65504, 65520, -1, 0], np.float32)
    np.testing.assert_array_equal(round_to(values, FP16), [2048, 2052, 65504, np.inf, -1, 0])
    values = np.array([257, 259, 255, 70000, -np.inf], np.float32)
    # 70000 = 2^16 + 4464; steps of 512 there: 8.7 steps, so 9 * 512
    np.testing.assert_array_equal(round_to(values, BF16), [256, 260, 255, 70144, -np.inf])
    assert np.isnan(round_to(np.array([np.nan], np.float32), BF16)).all()
    assert round_to(np.zeros(0, np.float32), BF16).shape == (0,)


def test_ranges_are_those_of_all_images() -> None:
    model = two_layers(2.0)
    images = [WHITE, np.zeros_like(WHITE)]
    found = measure_ranges(model, {"x": 12, "y": 12}, images, TensorProto.FLOAT16)
    # x is 255 on one image and 0 on the other: RMS sqrt(255^2 / 2); all are exact in float16
    assert found["x"].peak == 255.0
    assert found["x"].rms == pytest.approx(255 / 2**0.5)
    assert found["y"].peak == 127.5
    assert found["y"].rounding == 0.0
    assert measure_ranges(model, {}, images, TensorProto.FLOAT16) == {}


# ------------------------------------------------------------------------------------- the list


def test_a_harmless_network_keeps_nothing() -> None:
    assert plan(two_layers(2.0), FP16, [WHITE]) == []


def test_a_tensor_that_overflows_keeps_its_layer() -> None:
    # 255 * 0.5 * 200 = 25500, four times that is 102000
    kept = by_node(plan(two_layers(200.0), FP16, [WHITE]))
    assert list(kept) == ["second"]
    assert kept["second"].rule == "overflow"
    assert kept["second"].reason == (
        "out reaches 2.55e+04; fp16 ends at 65504 with 4 times of headroom"
    )


def test_weights_that_overflow_keep_their_layer_without_headroom() -> None:
    # the product is 0.000255 * 70000 * 0.5 and harmless
    nodes = [layer("first", "x", "y"), layer("second", "y", "out")]
    values = {"first.weight": weight(0.001), "second.weight": weight(70000.0)}
    kept = by_node(plan(network(nodes, values), FP16, [WHITE]))
    assert "second.weight holds 7e+04" in kept["second"].reason
    assert "headroom" not in kept["second"].reason


def test_weights_below_the_normal_range_keep_their_layer() -> None:
    nodes = [layer("first", "x", "out")]
    # steps of 2^-24 = 6.0e-8 below 2^-14: 1e-7 becomes 1.19e-7
    kept = by_node(plan(network(nodes, {"first.weight": weight(1e-7)}), FP16, [WHITE]))
    assert kept["first"].rule == "subnormal"
    assert "first.weight (RMS 5.77e-08) changes by 19.2 % in fp16" in kept["first"].reason


@pytest.mark.parametrize(
    ("op_type", "rule"),
    [("Sigmoid", "curve"), ("Exp", "curve"), ("ReduceMean", "norm"), ("ReduceL2", "norm")],
)
def test_curves_and_sums_stay(op_type: str, rule: str) -> None:
    nodes = [layer("first", "x", "y"), helper.make_node(op_type, ["y"], ["out"], "node")]
    kept = by_node(plan(network(nodes, {"first.weight": weight(0.01)}), FP16, [WHITE]))
    assert {name: entry.rule for name, entry in kept.items()} == {"node": rule}


def test_boxes_are_decoded_in_fp32_and_their_layer_too_where_bits_are_few() -> None:
    nodes = [
        layer("other", "x", "y"),
        layer("sides", "y", "distances"),
        helper.make_node("Mul", ["distances", "stride"], ["far"], "scale"),
        helper.make_node("Add", ["far", "locations"], ["boxes"], "shift"),
    ]
    values = {
        "other.weight": weight(1.0),
        "sides.weight": weight(0.01),
        "stride": np.array(128, np.float32),
        "locations": np.array(300, np.float32),
    }
    # 255 * 0.01 * 128 + 300 = 626.4 pixels: half a step is 626.4 * 2^-11 = 0.31 in fp16
    kept = by_node(plan(network(nodes, values, "boxes"), FP16, [WHITE]))
    assert {name: entry.rule for name, entry in kept.items()} == {
        "scale": "coordinates",
        "shift": "coordinates",
    }
    assert "coordinates up to 626.4 pixels would be rounded by up to 0.31" in kept["shift"].reason
    # and 626.4 * 2^-8 = 2.4 in bf16, above half a pixel
    kept = by_node(plan(network(nodes, values, "boxes", opset=22), BF16, [WHITE]))
    assert {name: entry.rule for name, entry in kept.items()} == {
        "sides": "coordinates",
        "scale": "coordinates",
        "shift": "coordinates",
    }
    assert "up to 626.4 pixels, rounded by up to 2.4, 0.5 allowed" in kept["sides"].reason


def test_ranking_and_what_follows_it_stays() -> None:
    nodes = [
        layer("first", "x", "y"),
        helper.make_node("Reshape", ["y", "flat"], ["scores"], "flatten"),
        helper.make_node("TopK", ["scores", "k"], ["best", "index"], "rank"),
        helper.make_node("Mul", ["best", "best"], ["out"], "square"),
    ]
    values = {"first.weight": weight(0.5)}
    model = network(nodes, values)
    model.graph.initializer.append(numpy_helper.from_array(np.array([12]), "flat"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([3]), "k"))
    model = onnx.shape_inference.infer_shapes(model)
    kept = by_node(plan(model, FP16, [WHITE]))
    assert {name: entry.rule for name, entry in kept.items()} == {
        "flatten": "choice",
        "rank": "choice",
        "square": "choice",
    }


def test_an_operator_without_the_type_is_said_so() -> None:
    # InstanceNormalization takes bfloat16 from operator set 22 on, Conv too
    with pytest.raises(PrecisionError, match="bf16 needs --opset 22 or later, the graph has 18"):
        plan(two_layers(1.0), BF16, [WHITE])
    constant = helper.make_node(
        "ConstantOfShape",
        ["shape"],
        ["y"],
        "fill",
        value=numpy_helper.from_array(np.ones(1, np.float32)),
    )
    model = network([constant, helper.make_node("Mul", ["x", "y"], ["out"], "times")], {})
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 3, 2, 2]), "shape"))
    kept = by_node(plan(onnx.shape_inference.infer_shapes(model), FP16, [WHITE]))
    assert kept["fill"].rule == "operator"


def test_int8_leaves_nodes_in_fp32_by_design_and_says_why() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["scaled"], "scale"),
        layer("first", "scaled", "y"),
        helper.make_node("Relu", ["y"], ["positive"], "activation"),
        helper.make_node("Add", ["positive", "scaled"], ["sum"], "shortcut"),
        helper.make_node("Relu", ["sum"], ["again"], "late"),
        helper.make_node("InstanceNormalization", ["again", "one", "zero"], ["even"], "norm"),
        layer("second", "even", "sides"),
        helper.make_node("MatMul", ["even", "even"], ["product"], "product"),
        helper.make_node("Concat", ["product", "product"], ["both"], "join", axis=1),
        helper.make_node("Sigmoid", ["both"], ["share"], "share"),
        helper.make_node("Exp", ["sides"], ["distances"], "decode"),
        helper.make_node("ReduceMean", ["share"], ["mean"], "mean", keepdims=0),
        helper.make_node("Sub", ["distances", "mean"], ["boxes"], "shift"),
    ]
    ones = np.ones(3, np.float32)
    values = {"factor": ones[:1], "one": ones, "zero": 0 * ones}
    values |= {"first.weight": weight(1.0), "second.weight": weight(1.0)}
    model = network(nodes, values, "boxes")
    kept = outside_int8(model, layers_of(model), Fit(320, 640))
    found = [(entry.node, entry.op_type, entry.rule) for entry in kept]
    assert found == [
        ("widen", "Cast", "arithmetic"),
        ("scale", "Mul", "arithmetic"),
        ("activation", "Relu", "fused"),
        ("shortcut", "Add", "rounded"),  # it reads what the first layer reads
        ("late", "Relu", "arithmetic"),
        ("norm", "InstanceNormalization", "norm"),
        ("product", "MatMul", "operator"),
        ("join", "Concat", "coordinates"),
        ("share", "Sigmoid", "coordinates"),
        ("decode", "Exp", "coordinates"),
        ("mean", "ReduceMean", "coordinates"),
        ("shift", "Sub", "coordinates"),
    ]
    assert all(entry.reason for entry in kept)
    # 640 pixels in 127 steps: half a step is 2.52 pixels
    assert "up to 640 pixels would be rounded by up to 2.5" in kept[-1].reason
    # without boxes nothing is decoded
    model.graph.output[0].name = model.graph.node[-1].output[0] = "out"
    rules = {e.node: e.rule for e in outside_int8(model, layers_of(model), Fit(320, 640))}
    assert (rules["join"], rules["share"], rules["mean"]) == ("neighbour", "curve", "norm")
    # a layer that was given back leaves nothing rounded around it
    rules = {e.node: e.rule for e in outside_int8(model, [], Fit(320, 640))}
    assert (rules["activation"], rules["shortcut"]) == ("arithmetic", "arithmetic")
    assert "first" not in rules
    # a convolution whose weights the graph computes cannot be in int8
    made = helper.make_node("Identity", ["first.weight"], ["only.weight"], "make")
    model = network([made, layer("only", "x", "out")], {"first.weight": weight(1.0)})
    rules = {e.node: e.rule for e in outside_int8(model, layers_of(model), Fit(32, 32))}
    assert rules == {"widen": "arithmetic", "make": "neighbour", "only": "operator"}


def test_graphs_with_branches_are_refused() -> None:
    inner = helper.make_graph([], "inner", [], [])
    branch = helper.make_node("If", ["c"], ["out"], "branch", then_branch=inner, else_branch=inner)
    model = helper.make_model(helper.make_graph([branch], "g", [], []))
    with pytest.raises(UnsupportedOperatorError, match="If branch holds a graph of its own"):
        name_nodes(model)


def test_nodes_get_names_of_their_own() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["y"], ["out"], "a")]
    nodes.append(helper.make_node("Relu", ["x"], ["z"], "a"))
    names = [node.name for node in name_nodes(network(nodes, {})).graph.node]
    assert len(set(names)) == 5
    assert all(names)


# ------------------------------------------------------------------------------------- lowering


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_lowered_weights_are_stored_in_the_type_and_outputs_stay_float() -> None:
    lowered = lower(two_layers(2.0), FP16, {"second"})
    assert types_of(lowered) == {"first.weight": 10, "second.weight": 1}
    assert [value.type.tensor_type.elem_type for value in lowered.graph.output] == [1]
    # bytes 255 * 0.5 * 2 are exact in float16
    np.testing.assert_array_equal(run(lowered), np.full((1, 3, 2, 2), 255, np.float32))


def test_a_tensor_that_two_types_read_is_stored_in_both() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "shared"], ["y"], "first"),
        helper.make_node("Conv", ["y", "shared"], ["out"], "second"),
    ]
    model = network(nodes, {"shared": weight(1 / 3)})
    lowered = lower(model, FP16, {"second"})
    assert types_of(lowered) == {"shared": 1, "shared_fp16": 10}
    # float16(1/3) = 0.333251953125; 255 of it is 84.979..., which float16 has as 85 (steps of 1/16)
    third = np.float64(np.float16(1 / 3))
    expected = np.float16(255 * third).astype(np.float64) / 3
    found = run(rounded_graph(model, FP16, {"second"}))
    np.testing.assert_allclose(found, np.full((1, 3, 2, 2), expected), rtol=1e-6)


def test_a_lowered_output_keeps_its_name_and_consumers() -> None:
    nodes = [layer("first", "x", "out"), helper.make_node("Relu", ["out"], ["more"], "last")]
    model = network(nodes, {"first.weight": weight(0.5)})
    more_value = helper.make_tensor_value_info("more", TensorProto.FLOAT, (1, 3, 2, 2))
    model.graph.output.append(more_value)
    for stays in (set(), {"last"}, {"first"}):
        lowered = lower(model, FP16, stays)
        onnx.checker.check_model(lowered, full_check=True)
        out, more = open_session(lowered).run(["out", "more"], {"image": WHITE})
        assert out.dtype == more.dtype == np.float32
        assert (out == 127.5).all()
        assert (more == 127.5).all()


def test_rounding_happens_after_every_node_in_both_types() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "third"], ["y"], "times"),
        helper.make_node("Mul", ["y", "three"], ["out"], "back"),
    ]
    values = {"third": np.array(1 / 3, np.float32), "three": np.array(3, np.float32)}
    model = network(nodes, values, opset=22)
    # float16: 1/3 is 0.333251953125, 255 of it 84.979, steps of 1/16 there: 85; 3 * 85 = 255.
    # bfloat16: 1/3 is 0.333984375, 255 of it 85.166, steps of 1/2: 85; so 200 in place of 255:
    # 66.797 -> 67 -> 201, exact; in float16 66.65 -> 66.625 (1/16) -> 199.875, exact.
    image = np.full((1, 2, 2, 3), 200, np.uint8)
    for kind, expected in ((FP16, 199.875), (BF16, 201.0)):
        found = run(rounded_graph(model, kind, set()), image)
        np.testing.assert_array_equal(found, np.full((1, 3, 2, 2), expected, np.float32))


def test_bf16_weights_have_the_upper_half_of_the_bits() -> None:
    model = network([layer("first", "x", "out")], {"first.weight": weight(1 / 3)}, opset=22)
    stored = lower(model, BF16, set()).graph.initializer[0]
    assert stored.data_type == TensorProto.BFLOAT16
    # 1/3 = 0x3EAAAAAB, upper half 0x3EAA, the rest is above one half: 0x3EAB
    assert np.frombuffer(stored.raw_data, "<u2")[0] == 0x3EAB


def test_a_network_that_cannot_be_lowered_at_all_exits_7(
    tiny_graph: TracedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = tuple(drawn_samples().frames.values())
    kept = [Kept(n.name, n.op_type, "overflow", "all of it") for n in tiny_graph.model.graph.node]
    monkeypatch.setattr("boxseg.export.precision.plan", lambda *_: kept)
    with pytest.raises(PrecisionError, match="no layer of this network can be in fp16: all of it"):
        lower_network(tiny_graph, "fp16", CalibrationSet((), "drawn", frames))


# ---------------------------------------------------------------------------------- calibration


@pytest.fixture
def photos(tmp_path: Path) -> Callable[[int], list[Path]]:
    """Return a function that writes some small pictures, each of one grey."""

    def write(count: int) -> list[Path]:
        files = [tmp_path / f"{index:02}.png" for index in range(count)]
        for index, file in enumerate(files):
            Image.new("RGB", (8, 4), (index, index, index)).save(file)
        return files

    return write


def test_too_few_images_are_refused(photos: Callable[[int], list[Path]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 15 images; calibration needs at least 16"):
        calibration_set(photos(15), tmp_path, 64)
    assert len(calibration_set(photos(16), tmp_path, 64)) == 16


def test_copies_of_an_image_are_one_image(
    photos: Callable[[int], list[Path]], tmp_path: Path
) -> None:
    files = photos(16)
    files[3].write_bytes(files[9].read_bytes())
    message = "16 files hold 15 different images; calibration needs at least 16"
    with pytest.raises(DataError, match=message):
        calibration_set(files, tmp_path, 64)
    files[3].unlink()
    with pytest.raises(DataError, match=r"03\.png: cannot be read"):
        calibration_set(files, tmp_path, 64)


def test_calibration_spreads_over_the_files_and_letterboxes_like_the_runtime(
    photos: Callable[[int], list[Path]], tmp_path: Path
) -> None:
    chosen = calibration_set(photos(32), tmp_path, 16)
    assert [file.name for file in chosen.files] == [f"{index:02}.png" for index in range(0, 32, 2)]
    first = next(iter(chosen.inputs(Fit(32, 32))))
    assert first.shape == (1, 32, 32, 3)
    # 4 x 8 pixels of black fill the upper 16 rows; below lies the padding
    assert (first[0, :16] == 0).all()
    assert (first[0, 16:] == (124, 116, 104)).all()


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"abc")
    record = CalibrationSet((file,), "one").record()
    # FIPS 180-2, appendix B.1
    assert record["files"] == ["ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]
    assert record["images"] == 1
    other = CalibrationSet((file, file), "two").record()
    assert other["sha256"] != record["sha256"]


def test_calibration_on_the_images_that_ap_is_measured_on_is_told(
    photos: Callable[[int], list[Path]], tmp_path: Path
) -> None:
    files = photos(20)
    chosen = calibration_set(files[:16], tmp_path, 16)
    assert doubts_about(chosen, "val.json", files[16:], files[16:]) == ()
    copy = tmp_path / "another name.png"
    copy.write_bytes(files[0].read_bytes())
    judged = [copy, *files[14:], tmp_path / "missing.png"]
    # the copy of 00.png, and 14.png and 15.png themselves
    assert doubts_about(chosen, "val.json", judged, judged) == (
        "3 of the 16 calibration images are also among the images of val.json that AP is measured "
        "on: on others it may be lower",
    )
    assert doubts_about(chosen, "val.json", judged, []) == ()
    (told,) = doubts_about(chosen, "val.json", judged, [copy])
    assert told.startswith("1 of the 16 calibration images is also among")


def test_calibration_on_images_of_another_look_is_told(tmp_path: Path) -> None:
    def write(name: str, count: int, *levels: int) -> list[Path]:
        """Write halves of two colours around a level: contrast and colour are known."""
        folder = tmp_path / name
        folder.mkdir()
        for index in range(count):
            red, green, half = levels[0] + index, levels[1] + index, levels[2]
            pixels = np.full((4, 8, 3), (red, green, green), np.uint8)
            pixels[:, :4] -= np.uint8(half)
            pixels[:, 4:] += np.uint8(half)
            Image.fromarray(pixels).save(folder / f"{index:02}.png")
        return sorted(folder.iterdir())

    chosen = calibration_set(write("calib", 16, 60, 60, 5), tmp_path, 16)
    # grey levels 60 to 75, contrast 5, no colour; of 16 levels, 1.5 steps in from either end are
    # the 10th and the 90th percentile: 61.5 and 73.5
    alike = write("alike", 16, 70, 70, 10)  # 77.5 in the middle, within 8 of 73.5
    assert doubts_about(chosen, "alike", alike, []) == ()
    light = write("light", 16, 100, 100, 5)
    assert doubts_about(chosen, "light", light, []) == (
        "the images of light look otherwise than those for calibration (mean grey level 108 in the "
        "middle, of most calibration images 62 to 74): ranges may not fit them",
    )
    # 84 and 54 give 64 on the average and a gap of 30; 64 +- 20 is a contrast of 20
    (told,) = doubts_about(chosen, "x", write("coloured", 16, 84, 54, 20), [])
    assert "grey" not in told
    assert "contrast 20 in the middle, of most calibration images 5 to 5" in told
    assert "colour 30 in the middle, of most calibration images 0 to 0" in told
    assert doubts_about(chosen, "few", light[:15], []) == ()
    light[0].write_text("no image")
    assert doubts_about(chosen, "15 that can be read", light, []) == ()
    drawn = CalibrationSet((), "drawn", (np.zeros((4, 8, 3), np.uint8),))
    assert doubts_about(drawn, "light", light, light) == ()


# ---------------------------------------------------------------------------------------- audit


def report(**changes: object) -> Audit:
    fields: dict[str, object] = {
        "asked": "fp16",
        "engine": "an engine",
        "stored": {"fp16": 3, "fp32": 1},
        "executed": {"fp32": 4},
        "supported": ("fp32",),
        "expected": 3,
    }
    return Audit(**(fields | changes))  # type: ignore[arg-type]  # the changes fit by their names


def test_an_engine_that_widens_is_no_failure_but_is_told() -> None:
    found = report()
    assert found.failure() is None
    assert not found.executes
    assert "does not compute this graph in fp16" in found.lines()[1]


def test_a_file_that_stores_another_type_fails() -> None:
    failure = report(stored={"fp32": 4}).failure()
    assert failure == "fp16 was asked for 3 layers, the file stores 0 in it (fp32: 4 layers)"


def test_an_engine_that_could_and_does_not_fails() -> None:
    failure = report(supported=("fp32", "fp16")).failure()
    assert failure is not None
    assert "an engine executes 0 in it (fp32: 4 layers) although it can" in failure
    assert report(supported=("fp32", "fp16"), executed={"fp16": 3, "fp32": 1}).failure() is None


def test_bf16_under_the_name_of_fp32_fails() -> None:
    failure = report(asked="fp32", stored={"fp32": 4}, executed={"bf16": 4}, expected=4).failure()
    assert failure is not None
    assert "executes 0 in it (bf16: 4 layers)" in failure


def test_the_files_of_a_network_are_audited_by_what_is_in_them(
    tiny_graph: TracedGraph, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.onnx"
    onnx.save(tiny_graph.model, path)
    layers = sum(node.op_type == "Conv" for node in tiny_graph.model.graph.node)
    found = audit(path, "fp32")
    assert found.stored == found.executed == {"fp32": layers}
    assert found.executes
    with pytest.raises(PrecisionError, match=r"tiny\.onnx: fp16 was asked for 5 layers, the file"):
        audit(path, "fp16", 5)
    lowered = lower(name_nodes(tiny_graph.model), FP16, set())
    onnx.save(lowered, path)
    assert audit(path, "fp16", layers).stored == {"fp16": layers}
    with pytest.raises(PrecisionError, match="fp32 was asked"):
        audit(path, "fp32")


def test_openvino_executes_what_the_file_stores(tiny_graph: TracedGraph, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    plain = name_nodes(tiny_graph.model)
    onnx.save(plain, tmp_path / "fp32.onnx")
    onnx.save(lower(plain, FP16, set()), tmp_path / "fp16.onnx")
    layers = sum(node.op_type == "Conv" for node in plain.graph.node)
    for name, expected in (("fp32", "fp32"), ("fp16", "fp32")):
        model = openvino.convert_model(str(tmp_path / f"{name}.onnx"))
        openvino.save_model(model, tmp_path / f"{name}.xml", compress_to_fp16=False)
        found = audit(tmp_path / f"{name}.xml", name)
        assert found.stored == {name: layers}
        assert found.executed == {expected: layers}
    if has_bf16:
        # what happens without the runtime's settings, and what the audit makes of it
        from boxseg.export.precision_audit import executed_by_openvino

        careless = executed_by_openvino(core.compile_model(model, "CPU", {}))
        assert careless == {"bf16": layers}
        found = replace(audit(tmp_path / "fp32.xml", "fp32"), executed=careless)
        assert found.failure() is not None


def test_a_file_that_openvino_cannot_compile_is_not_run(
    tiny_graph: TracedGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("openvino")
    path = write_openvino(tiny_graph, tmp_path)

    def refuse(*_: object) -> None:
        raise RuntimeError("Exception from src/plugin.cpp:1:\nno such layer here\n")

    monkeypatch.setattr(openvino.Core, "compile_model", refuse)
    found = audit(path, "fp32")
    assert not found.runs
    assert "not by OpenVINO on the CPU on this machine: no such layer here" in found.lines()[1]


def test_fp32_files_ask_openvino_for_fp32_and_others_for_their_own_types() -> None:
    assert openvino_settings("fp32")["INFERENCE_PRECISION_HINT"] == "f32"
    for precision in ("fp16", "bf16", "int8"):
        settings = openvino_settings(precision)
        assert settings["EXECUTION_MODE_HINT"] == "ACCURACY"
        assert "INFERENCE_PRECISION_HINT" not in settings
