"""Image files, folders and videos as RGB frames.

    H x W   pixels of the image as a person sees it: EXIF orientation is applied

Every way of storing a picture ends in the one array that the rest of boxseg reads: uint8,
(H, W, 3), RGB, contiguous. Training, evaluation and prediction all read through `read_image`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from boxseg.errors import BackendMissingError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif", ".avif"}
)
"""Files that a folder offers as images, lower case."""

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts"}
)
"""Files that are read as video, lower case."""

PIXEL_LIMIT = 89_478_485
"""Pixels above which an image is refused; a small file may claim to hold many gigabytes."""

SIDE_LIMIT = 32_768
"""Pixels of a side above which an image is refused: BXS_MAX_SIDE of the native library."""

TRANSPARENT = (124, 116, 104)
"""RGB under transparent pixels: the padding colour, so that nothing looks like nothing."""

_ORIENTATION_TAG = 0x0112
_SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})


def is_file(path: Path) -> bool:
    """Whether a path names a file; False too for a name that the system refuses, as too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def leaves_folder(name: str) -> bool:
    """Whether a file name that a data file gives is absolute or climbs out of its folder.

    Only the name is judged: a link inside the folder is its owner's will.
    """
    if os.path.isabs(name) or os.path.splitdrive(name)[0]:  # noqa: PTH117  a Path costs more
        return True
    return os.pardir in name and Path(os.path.normpath(name)).parts[0] == os.pardir


def _sixteen_to_eight(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale 0..65535 to 0..255 by value / 257, rounded to nearest."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _to_rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    """Convert any stored mode to RGB bytes, (H, W, 3), in stored orientation."""
    if image.mode in _SIXTEEN_BIT_MODES or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = _sixteen_to_eight(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)  # (H, W, 3)
    if image.mode in ("I", "F"):
        raise DataError(
            f"{path}: 32-bit pixels (mode {image.mode}) have no defined range; "
            "save the image with 8 or 16 bits"
        )
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*TRANSPARENT, 255))
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8; 1 (upright) if absent or damaged."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block says nothing about the orientation
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turn_upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation: 2-4 flip, 5-8 exchange height and width."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def refuse_huge(path: Path, height: int, width: int) -> None:
    """Refuse a size before its pixels are decoded.

    Raises:
        DataError: if it is above `PIXEL_LIMIT` or `SIDE_LIMIT`.
    """
    if width * height > PIXEL_LIMIT:
        raise DataError(f"{path}: {height} x {width} pixels; the limit is {PIXEL_LIMIT} pixels")
    if max(width, height) > SIDE_LIMIT:
        raise DataError(f"{path}: {height} x {width} pixels; the limit of a side is {SIDE_LIMIT}")


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read one image file.

    Grey, palette, CMYK and bilevel images become RGB. Transparent pixels are composited onto the
    padding colour. 16-bit greyscale is scaled by value / 257; 16-bit colour PNG keeps its high
    byte. Of an animation the first frame is read.

    Args:
        path: An image file of any format that Pillow reads.

    Returns:
        Pixels, uint8, RGB, (H, W, 3), contiguous, EXIF orientation applied.

    Raises:
        DataError: if the file is missing, truncated, no image, or larger than `PIXEL_LIMIT` or
            `SIDE_LIMIT` allow.
    """
    path = Path(path)
    try:
        file, folder = path.is_file(), path.is_dir()
    except OSError as error:  # of a name that is too long
        raise DataError(f"{path}: no such image file ({error.strerror})") from None
    if not file:
        what = "is a folder, not an image file" if folder else "no such image file"
        raise DataError(f"{path}: {what}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes and tags that are judged here
            with Image.open(path) as image:
                width, height = image.size
                refuse_huge(path, height, width)
                pixels = _turn_upright(_to_rgb(image, path), _orientation(image))
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image, or of a format that Pillow cannot read") from None
    except Image.DecompressionBombError:
        raise DataError(f"{path}: too many pixels; the limit is {PIXEL_LIMIT} pixels") from None
    except Exception as error:  # decoders of foreign bytes raise nearly everything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: truncated or damaged image ({reason})") from None
    return np.ascontiguousarray(pixels)


@dataclass(frozen=True)
class Frame:
    """One picture to be answered."""

    name: str
    """File name without suffix; frames of a video add their index: clip_000012."""
    path: Path
    """The file that it came from."""
    index: int
    """0-based position in its video; 0 for an image."""
    image: NDArray[np.uint8]
    """Pixels, RGB, (H, W, 3)."""

    @property
    def is_video(self) -> bool:
        """Whether the file is a video."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def _read_video(path: Path) -> Iterator[Frame]:
    """Decode a video frame by frame; nothing is kept."""
    try:
        import av
    except ImportError:
        raise BackendMissingError(
            f"{path}: reading video needs PyAV; pip install boxseg[video]"
        ) from None
    index = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: holds no video stream")
            stream = container.streams.video[0]
            refuse_huge(path, stream.height, stream.width)
            for picture in container.decode(stream):
                refuse_huge(path, picture.height, picture.width)  # streams may change theirs
                pixels = np.asarray(picture.to_ndarray(format="rgb24"), np.uint8)
                # The container stores a counter-clockwise turn in degrees.
                turns = round(getattr(picture, "rotation", 0) / 90) % 4
                upright: NDArray[np.uint8] = np.ascontiguousarray(np.rot90(pixels, turns))
                yield Frame(f"{path.stem}_{index:06d}", path, index, upright)
                index += 1
    except av.FFmpegError as error:
        raise DataError(
            f"{path}: cannot be decoded as video after {index} frames ({error.strerror})"
        ) from None
    if index == 0:
        raise DataError(f"{path}: holds no decodable frame")


def list_sources(source: str | Path) -> list[Path]:
    """Return the image and video files that a source names, sorted.

    Args:
        source: An image file, a video file, or a folder (its own files, not its subfolders').

    Raises:
        DataError: if the source does not exist or the folder holds no image or video.
    """
    source = Path(source)
    if source.is_dir():
        allowed = IMAGE_SUFFIXES | VIDEO_SUFFIXES
        files = sorted(
            file for file in source.iterdir() if file.is_file() and file.suffix.lower() in allowed
        )
        if not files:
            raise DataError(
                f"{source}: no images or videos in this folder; "
                f"looked for {', '.join(sorted(allowed))}"
            )
        return files
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    return [source]


def iterate_frames(
    source: str | Path, on_error: Callable[[DataError], None] | None = None
) -> Iterator[Frame]:
    """Yield the frames of an image file, a folder (sorted by name) or a video file.

    Args:
        source: What to read.
        on_error: Called with the error of each unreadable file, after which reading goes on with
            the next file; None raises it.

    Raises:
        DataError: if there is nothing to read, or a file is unreadable and `on_error` is None.
        BackendMissingError: if a video is met and PyAV is not installed.
    """
    for path in list_sources(source):
        try:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                yield from _read_video(path)
            else:
                yield Frame(path.stem, path, 0, read_image(path))
        except DataError as error:
            if on_error is None:
                raise
            on_error(error)
