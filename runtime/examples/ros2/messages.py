"""Conversions between camera frames, detections and what ROS 2 messages hold, without rclpy.

H x W pixels of the frame, N instances. Headers pass through the node untouched.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxseg.runtime import Detections

Bytes = NDArray[np.uint8]

_CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "8UC1": 1, "8UC3": 3}


class Box(NamedTuple):
    """One detection as vision_msgs/Detection2D has it.

    Attributes:
        identity: Value of the instance in the label image, 1..N.
        label: Name of the class.
        score: Final score.
        centre_x: Pixels of the frame.
        centre_y: Pixels of the frame.
        width: Pixels of the frame.
        height: Pixels of the frame.
    """

    identity: int
    label: str
    score: float
    centre_x: float
    centre_y: float
    width: float
    height: float


def frame_of_image(
    data: Any, *, height: int, width: int, step: int, encoding: str
) -> tuple[Bytes, str]:
    """View the pixels of a sensor_msgs/Image.

    Args:
        data: The message's bytes, any object with a buffer.
        height: Rows.
        width: Columns.
        step: Bytes from one row to the next.
        encoding: rgb8, bgr8, rgba8, bgra8, mono8, 8UC1 or 8UC3 (taken as BGR, as OpenCV does).

    Returns:
        The frame, (H, W, 3) or (H, W), without a copy where the pixels have no alpha, and its
        colour order, "RGB" or "BGR".

    Raises:
        ValueError: if the encoding is another, or the bytes are too few.
    """
    if encoding not in _CHANNELS:
        raise ValueError(f"encoding must be one of {', '.join(_CHANNELS)}, got {encoding!r}")
    channels = _CHANNELS[encoding]
    pixels = np.frombuffer(data, np.uint8)
    if height < 1 or width < 1 or step < width * channels:
        raise ValueError(f"{height} rows of {width} {encoding} pixels do not fit a step of {step}")
    if pixels.size < (height - 1) * step + width * channels:
        raise ValueError(f"{height} rows of {step} bytes are needed, got {pixels.size} bytes")
    frame = np.lib.stride_tricks.as_strided(
        pixels, (height, width, channels), (step, channels, 1), writeable=False
    )
    colour = "RGB" if encoding.startswith("rgb") else "BGR"
    if channels == 1:
        return frame[:, :, 0], colour
    if channels == 4:
        return np.ascontiguousarray(frame[:, :, :3]), colour
    return frame, colour


def label_image(found: Detections) -> tuple[bytes, str, int]:
    """Give data, encoding and step of a label image: 0 background, i + 1 instance i.

    mono8 for up to 255 instances, else mono16 in the byte order of this machine.
    """
    labels = np.ascontiguousarray(found.label_image())
    encoding = "mono8" if labels.dtype == np.uint8 else "mono16"
    return labels.tobytes(), encoding, labels.shape[1] * labels.itemsize


def boxes(found: Detections) -> list[Box]:
    """Give what a vision_msgs/Detection2DArray lists, best first."""
    sides = found.xyxy.astype(np.float64)
    return [
        Box(
            identity=i + 1,
            label=found.class_names[label],
            score=score,
            centre_x=(x0 + x1) / 2,
            centre_y=(y0 + y1) / 2,
            width=x1 - x0,
            height=y1 - y0,
        )
        for i, (label, score, (x0, y0, x1, y1)) in enumerate(
            zip(found.labels.tolist(), found.scores.tolist(), sides.tolist(), strict=True)
        )
    ]
