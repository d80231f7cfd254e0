"""Resize a camera frame into the buffer that a graph reads.

H x W pixels of the frame, H' x W' of the network's input. The frame is resized by the rule of the
file's metadata, lies at the top left of the input, and is padded at the right and at the bottom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from boxseg.runtime import _native

PADDING = (124, 116, 104)
"""RGB of the padding: the rounded ImageNet mean, about 0 after normalisation."""

DIVISOR = 32
"""Sides of the input are multiples of this."""

Colour = Literal["RGB", "BGR", "NV12", "YUYV"]
"""What the bytes of a frame are.

    RGB, BGR   (H, W, 3); gray (H, W) or (H, W, 1) too
    NV12       H rows of Y, then a row of U V pairs for every two of them, (H + H / 2, W); W is even
    YUYV       Y and alternately U or V of every pixel, (H, W, 2); W is even
"""

YuvRule = Literal["BT.601 limited", "BT.601 full", "BT.709 limited", "BT.709 full"]
"""How NV12 and YUYV become RGB; most cameras mean the first."""

_FORMATS = {"RGB": 0, "BGR": 1, "NV12": 3, "YUYV": 4}  # bxs_pixel_format


@dataclass(frozen=True)
class Fit:
    """Input of one fixed size; frames are fitted inside.

    Attributes:
        height: Pixels, a multiple of 32.
        width: Pixels, a multiple of 32.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            if side < DIVISOR or side % DIVISOR:
                raise ValueError(f"imgsz.{name} must be a multiple of {DIVISOR}, got {side}")


@dataclass(frozen=True)
class ShortLong:
    """Input that follows the frame: the shorter side is resized to `short` pixels.

    Attributes:
        short: Pixels of the shorter side, unless the longer one would pass `long`.
        long: Largest length of the longer side in pixels.
    """

    short: int
    long: int

    def __post_init__(self) -> None:
        if not 1 <= self.short <= self.long:
            raise ValueError(
                f"imgsz.short must be in 1..imgsz.long, got {self.short} and {self.long}"
            )


ImageSize = Fit | ShortLong


@dataclass(frozen=True)
class Letterbox:
    """Where a frame lies in the input.

    Attributes:
        frame_height: H.
        frame_width: W.
        content_height: Rows of the input that show the frame, from the top.
        content_width: Columns of the input that show the frame, from the left.
        height: H' with padding.
        width: W' with padding.
    """

    frame_height: int
    frame_width: int
    content_height: int
    content_width: int
    height: int
    width: int

    @property
    def scale_x(self) -> float:
        """Input pixels per frame pixel, across."""
        return self.content_width / self.frame_width

    @property
    def scale_y(self) -> float:
        """Input pixels per frame pixel, down."""
        return self.content_height / self.frame_height

    def as_tuple(self) -> tuple[int, int, int, int, int, int]:
        """Give the sizes in the order of the fields."""
        return (
            self.frame_height,
            self.frame_width,
            self.content_height,
            self.content_width,
            self.height,
            self.width,
        )


def plan_letterbox(size: ImageSize, frame_height: int, frame_width: int) -> Letterbox:
    """Work out where a frame of this size lies in the input."""
    if isinstance(size, Fit):
        return Letterbox(*_native.letterbox_fit(frame_height, frame_width, size.height, size.width))
    return Letterbox(
        *_native.letterbox_short_long(frame_height, frame_width, size.short, size.long, DIVISOR)
    )


def _readable(image: NDArray[np.uint8], what: str) -> NDArray[np.uint8]:
    """Refuse other types and shapes; copy layouts that the native code does not read."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(
            f"{what} must be a non-empty uint8 array (H, W) or (H, W, channels), "
            f"got {image.dtype} {image.shape}"
        )
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim == 3 and channels > 1 and image.strides[2] != 1:
        return np.ascontiguousarray(image)
    if image.strides[1] != channels or image.strides[0] < image.shape[1] * channels:
        return np.ascontiguousarray(image)
    return image


def frame_size(frame: NDArray[np.uint8], colour: Colour = "RGB") -> tuple[int, int]:
    """Return H and W of the picture that a frame holds.

    Raises:
        ValueError: if the array's shape is none of this colour's.
    """
    shape = frame.shape
    if colour not in get_args(Colour):
        raise ValueError(f"colour must be one of {', '.join(get_args(Colour))}, got {colour!r}")
    if colour == "NV12":
        if len(shape) != 2 or shape[0] < 2 or shape[0] % 3 == 1 or shape[1] < 2 or shape[1] % 2:
            raise ValueError(f"a frame of NV12 must be (H + H / 2, W) with an even W, got {shape}")
        # H + ceil(H / 2) rows
        return (2 * shape[0]) // 3, shape[1]
    if colour == "YUYV":
        if len(shape) != 3 or shape[2] != 2 or shape[1] % 2 or frame.size == 0:
            raise ValueError(f"a frame of YUYV must be (H, W, 2) with an even W, got {shape}")
        return shape[0], shape[1]
    if frame.ndim not in (2, 3) or frame.size == 0:
        raise ValueError(
            f"a frame must be a non-empty uint8 array (H, W) or (H, W, channels), "
            f"got {frame.dtype} {shape}"
        )
    if frame.ndim == 3 and shape[2] not in (1, 3):
        raise ValueError(f"a frame must have 1 or 3 channels, got {shape[2]}")
    return shape[0], shape[1]


class Letterboxer:
    """Letterboxes frames into reused buffers; one per thread."""

    def __init__(
        self,
        size: ImageSize,
        *,
        padding: tuple[int, int, int] = PADDING,
        yuv: YuvRule = "BT.601 limited",
    ) -> None:
        """Prepare for one rule; buffers grow to the largest frame seen and stay.

        Args:
            size: Rule that gives the input's size.
            padding: RGB outside the frame.
            yuv: How frames of NV12 and YUYV become RGB.

        Raises:
            ValueError: if there is no such rule.
        """
        if yuv not in get_args(YuvRule):
            raise ValueError(f"yuv must be one of {', '.join(get_args(YuvRule))}, got {yuv!r}")
        self.size = size
        self.padding = padding
        self._yuv = get_args(YuvRule).index(yuv)  # bxs_yuv
        self._scratch = np.empty(0, np.uint8)
        self._map: Letterbox | None = None

    def plan(self, frame_height: int, frame_width: int) -> Letterbox:
        """Work out the map; the last one is kept, because a camera rarely changes its size."""
        known = self._map
        if known and (known.frame_height, known.frame_width) == (frame_height, frame_width):
            return known
        planned = plan_letterbox(self.size, frame_height, frame_width)
        needed = _native.letterbox_scratch_size(planned.as_tuple())
        if needed > self._scratch.size:
            self._scratch = np.empty(needed, np.uint8)
        self._map = planned
        return planned

    def __call__(
        self,
        frame: NDArray[np.uint8],
        out: NDArray[np.uint8] | None = None,
        *,
        colour: Colour = "RGB",
    ) -> tuple[NDArray[np.uint8], Letterbox]:
        """Resize and pad one frame.

        Args:
            frame: Bytes 0..255 in the shape that `Colour` tells.
            out: RGB buffer (H', W', 3) to write into, or None for a new one.
            colour: What the frame's bytes are.

        Returns:
            The RGB input (H', W', 3) and the map.

        Raises:
            ValueError: if the frame is of another type or shape.
        """
        frame = _readable(frame, "a frame")
        planned = self.plan(*frame_size(frame, colour))
        shape = (planned.height, planned.width, 3)
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(
                f"out must be a contiguous uint8 array {shape}, got {out.dtype} {out.shape}"
            )
        where = planned.as_tuple()
        _native.letterbox_rgb8(
            frame, _FORMATS[colour], where, self.padding, self._scratch, out, 0, self._yuv
        )
        return out, planned


def letterbox(
    frame: NDArray[np.uint8],
    size: ImageSize,
    *,
    out: NDArray[np.uint8] | None = None,
    colour: Colour = "RGB",
    padding: tuple[int, int, int] = PADDING,
    yuv: YuvRule = "BT.601 limited",
) -> tuple[NDArray[np.uint8], Letterbox]:
    """Resize and pad one frame; see `Letterboxer` for a stream of them."""
    return Letterboxer(size, padding=padding, yuv=yuv)(frame, out, colour=colour)


def resize_bilinear(image: NDArray[np.uint8], new_height: int, new_width: int) -> NDArray[np.uint8]:
    """Resize bytes exactly as the letterbox does: half-pixel centres, no smoothing, rounded.

    Args:
        image: (H, W) or (H, W, 1..4), 0..255.
        new_height: Rows of the result, at least 1.
        new_width: Columns of the result, at least 1.

    Returns:
        A new array of the new size with the same number of axes and channels.
    """
    image = _readable(image, "an image")
    channels = image.shape[2] if image.ndim == 3 else 1
    if not 1 <= channels <= 4:
        raise ValueError(f"an image must have 1 to 4 channels, got {channels}")
    if new_height < 1 or new_width < 1:
        raise ValueError(f"a new size must be at least 1 x 1, got {new_height} x {new_width}")
    out = np.empty((new_height, new_width, *image.shape[2:]), np.uint8)
    scratch = np.empty(_native.resize_scratch_size(channels, new_width), np.uint8)
    _native.resize_u8(image, new_height, new_width, scratch, out)
    return out
