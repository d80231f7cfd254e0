"""A small deployed file for tests: its metadata, random outputs, and graphs that engines load."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import openvino

Outputs = dict[str, NDArray[np.float32]]

STRIDES = (8, 16, 32, 64, 128)
SCALES = (64, 128, 256, 512, 1024)


def describe(**changes: Any) -> dict[str, Any]:
    """A small file's metadata: 3 classes, 96 x 160, head of 2 + 4 inputs; 51 parameters."""
    values: dict[str, Any] = {
        "format_version": 1,
        "producer": "boxseg 0.1.0",
        "task": "instance-segmentation",
        "form": "dense",
        "classes": ["star", "ring", "blob"],
        "category_ids": [3, 1, 7],
        "imgsz": {"rule": "fit", "height": 96, "width": 160},
        "batch": {"min": 1, "opt": 1, "max": 1},
        "input": {"name": "image", "layout": "NHWC", "dtype": "uint8", "colour": "RGB"},
        "letterbox": {"padding": [124, 116, 104], "side": "right_bottom", "divisor": 32},
        "strides": list(STRIDES),
        "head": {
            "mask_channels": 4,
            "layer_widths": [6, 1],
            "relative_coordinates": True,
            "coordinate_scales": list(SCALES),
            "mask_stride": 8,
        },
        "scores": {"score0": "sqrt_cls_quality", "final": "score0", "candidate_score": 0.05**0.5},
        "nms": {"iou": 0.6, "candidates": 1000, "max_det": 100},
        "precision": "fp32",
        "weights": "student",
        "licence": {"code": "Apache-2.0", "weights": "", "data": ""},
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            values[section] = {**values[section], key: value}
        else:
            values[section] = value
    return values


def locations(height: int, width: int) -> list[tuple[int, int, int]]:
    """Level, x and y of every location."""
    return [
        (level, x * stride + stride // 2, y * stride + stride // 2)
        for level, stride in enumerate(STRIDES)
        for y in range(-(-height // stride))
        for x in range(-(-width // stride))
    ]


def dense_outputs(seed: int, classes: int = 3, height: int = 96, width: int = 160) -> Outputs:
    """Random outputs with overlapping boxes around the locations, as a network gives them."""
    rng = np.random.default_rng(seed)
    places = np.array(locations(height, width), np.float64)
    n = len(places)
    centres = places[:, 1:]
    sizes = rng.uniform(4, 60, (n, 4))
    boxes = np.concatenate([centres - sizes[:, :2], centres + sizes[:, 2:]], axis=1)
    return {
        "class_logits": rng.normal(-2.5, 2, (1, n, classes)).astype(np.float32),
        "quality_logits": rng.normal(0, 1.5, (1, n)).astype(np.float32),
        "boxes": boxes[None].astype(np.float32),
        "parameters": rng.normal(0, 1, (1, 6 * 6 + 6 + 6 + 1, n)).astype(np.float32),
        "mask_features": rng.normal(0, 2, (1, 4, height // 8, width // 8)).astype(np.float32),
    }


def write_onnx(
    path: Path, outputs: Outputs, metadata: dict[str, Any] | None, *, name: str = "image"
) -> Path:
    """Write a graph that answers every image with these outputs plus its mean over 255.

    Only class_logits have the mean added, so that a test can see that the image arrived.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", [name], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "share"], ["brightness"]),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(1 / 255, np.float32), "share"),
        numpy_helper.from_array(np.array(0, np.float32), "nothing"),
    ]
    values = []
    for output, array in outputs.items():
        added = "brightness" if output == "class_logits" else "zero"
        nodes.append(helper.make_node("Add", [f"{output}_constant", added], [output]))
        constants.append(numpy_helper.from_array(array, f"{output}_constant"))
        values.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, array.shape))
    image = helper.make_tensor_value_info(name, TensorProto.UINT8, (1, 96, 160, 3))
    graph = helper.make_graph(nodes, "small", [image], values, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    if metadata is not None:
        model.metadata_props.add(key="boxseg", value=json.dumps(metadata))
    onnx.save(model, path)
    return path


@functools.cache
def _converted(seed: int) -> openvino.Model:
    """Convert the graph once for all tests."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = write_onnx(Path(folder) / "small.onnx", dense_outputs(seed), None)
        return openvino.convert_model(str(path))


def write_openvino(folder: Path, seed: int, metadata: dict[str, Any] | None) -> Path:
    """Write the graph of `dense_outputs(seed)` as an OpenVINO folder."""
    import openvino

    model = _converted(seed).clone()
    if metadata is not None:
        model.set_rt_info(json.dumps(metadata), "boxseg")
    folder.mkdir()
    openvino.save_model(model, str(folder / "small.xml"), compress_to_fp16=False)
    return folder


def write_sample(path: Path, frame: NDArray[np.uint8]) -> dict[str, Any]:
    """Write what `boxseg export` writes beside a file; return the manifest."""
    from PIL import Image

    from boxseg.runtime import golden_sample
    from boxseg.runtime.agreement import EXACT, Tolerance
    from boxseg.runtime.backends import open_backend

    tolerances = dict.fromkeys(dense_outputs(0), Tolerance(1e-4, 1e-4))
    backend = open_backend(path, threads=1)
    places = golden_sample.sidecars(path)
    Image.fromarray(frame).save(places.golden)
    manifest = {
        "format_version": 1,
        "files": golden_sample.describe_files(path),
        "golden": {
            "source": "noise of the tests",
            "reference": "the file itself",
            "image_sha256": golden_sample.sha256_of(places.golden),
            **golden_sample.expected_answer(backend, frame, tolerances, EXACT),
        },
    }
    places.manifest.write_text(json.dumps(manifest))
    return manifest
