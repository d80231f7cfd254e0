"""The ROS 2 node's conversions, without ROS."""

from __future__ import annotations

import ast
import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest
from tools import RUNTIME

from boxseg.runtime import Detections, _native

FOLDER = RUNTIME / "examples" / "ros2"


@pytest.fixture(scope="module")
def messages() -> ModuleType:
    """Import the module from the examples' folder."""
    spec = importlib.util.spec_from_file_location("ros2_messages", FOLDER / "messages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ros2_messages"] = module
    spec.loader.exec_module(module)
    return module


def _found(*masks: list[list[int]]) -> Detections:
    """Detections of 3 x 4 masks with boxes around the whole frame, less one pixel each."""
    n = len(masks)
    height, width = 3, 4
    return Detections(
        xyxy=np.array([[i, 0, width, height] for i in range(n)], np.float32).reshape(n, 4),
        scores=np.linspace(0.9, 0.5, n).astype(np.float32),
        labels=np.arange(n) % 2,
        height=height,
        width=width,
        counts=tuple(_native.rle_encode(np.array(mask, np.uint8)) for mask in masks),
        class_names=("star", "ring"),
        category_ids=(1, 2),
        score0=np.zeros(n, np.float32),
        mask_scores=np.zeros(n, np.float32),
        areas=np.array([np.sum(mask) for mask in masks], np.int64).reshape(n),
    )


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "8UC3"])
def test_a_colour_image_is_viewed_with_its_step(encoding: str, messages: ModuleType) -> None:
    data = np.arange(2 * 10, dtype=np.uint8).tobytes()  # 2 rows of 3 pixels and one byte more
    frame, colour = messages.frame_of_image(data, height=2, width=3, step=10, encoding=encoding)
    assert frame.tolist() == [
        [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
        [[10, 11, 12], [13, 14, 15], [16, 17, 18]],
    ]
    assert colour == ("RGB" if encoding == "rgb8" else "BGR")
    assert np.shares_memory(frame, np.frombuffer(data, np.uint8))


def test_alpha_is_left_out_and_gray_has_two_axes(messages: ModuleType) -> None:
    data = bytes(range(16))
    frame, colour = messages.frame_of_image(data, height=2, width=2, step=8, encoding="bgra8")
    assert frame.tolist() == [[[0, 1, 2], [4, 5, 6]], [[8, 9, 10], [12, 13, 14]]]
    assert colour == "BGR"
    gray, _ = messages.frame_of_image(data, height=2, width=3, step=8, encoding="mono8")
    assert gray.tolist() == [[0, 1, 2], [8, 9, 10]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoding": "yuv422"}, "encoding must be one of"),
        ({"step": 8}, "step of 8"),
        ({"height": 0}, "0 rows"),
        ({"height": 3}, "got 18 bytes"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    changes: dict[str, object], message: str, messages: ModuleType
) -> None:
    arguments = {"height": 2, "width": 3, "step": 9, "encoding": "rgb8", **changes}
    with pytest.raises(ValueError, match=message):
        messages.frame_of_image(bytes(18), **arguments)


def test_the_label_image_numbers_instances_from_one(messages: ModuleType) -> None:
    first = [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    second = [[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    data, encoding, step = messages.label_image(_found(first, second))
    assert (encoding, step) == ("mono8", 4)
    assert list(data) == [1, 1, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0]  # the first is on top


def test_many_instances_need_16_bits(messages: ModuleType) -> None:
    mask = [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    data, encoding, step = messages.label_image(_found(*[mask] * 300))
    assert (encoding, step, len(data)) == ("mono16", 8, 24)


def test_boxes_carry_centre_size_name_and_label_value(messages: ModuleType) -> None:
    mask = [[1, 1, 1, 1]] * 3
    first, second = messages.boxes(_found(mask, mask))
    assert first == (1, "star", pytest.approx(0.9), 2.0, 1.5, 4.0, 3.0)
    assert second == (2, "ring", pytest.approx(0.5), 2.5, 1.5, 3.0, 3.0)  # x from 1 to 4


def test_no_instances_give_empty_messages(messages: ModuleType) -> None:
    data, encoding, _ = messages.label_image(_found())
    assert (set(data), encoding) == ({0}, "mono8")
    assert messages.boxes(_found()) == []


def test_only_the_node_imports_ros() -> None:
    def imported(name: str) -> set[str]:
        tree = ast.parse((FOLDER / name).read_text())
        return {
            (node.module or "").split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
        } | {
            alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }

    ros = {"rclpy", "sensor_msgs", "vision_msgs"}
    assert imported("node.py") >= ros
    assert not imported("messages.py") & ros
