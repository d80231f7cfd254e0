"""Pseudo depth from an off-the-shelf network, cached as PNG beside the images.

H x W pixels of an image, h x w of what a network predicts. Maps are inverse depth, larger is
nearer, relative to their own image: its least value becomes 0, its greatest 255 (8 bits) or 65535
(16 bits).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxseg.errors import BackendMissingError, DataError, FileMismatchError
from boxseg.runtime.external_data import refuse_escaping_files
from boxseg.runtime.images import is_file, read_image
from boxseg.runtime.metadata import METADATA_KEY
from boxseg.train.annotation_table import (
    is_box,
    parse_annotation_file,
    write_annotation_file,
)

if TYPE_CHECKING:
    import onnxruntime

InputRange = Literal["0..255", "0..1", "imagenet"]

DEPTH_FOLDER = "depth"
ANNOTATION_FILES = ("train.json", "val.json")

DEFAULT_SHORT_SIDE = 448
"""Pixels of the short side that a network of free size sees."""

DEFAULT_DIVISOR = 32

TRANSFORMERS = "transformers:"
"""What the name of a network from transformers starts with."""

_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], dtype=np.float32)
_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class DepthPredictor(Protocol):
    """A network that sees one image."""

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what the network says of an image.

        Args:
            image: RGB, (H, W, 3).

        Returns:
            One number per cell over the same view, at any size, (h, w).
        """
        ...


class OnnxDepth:
    """Any depth network in ONNX that maps one image to one map.

    Name, type and layout of the input are read from the file, its size too where it is fixed;
    otherwise the short side is resized to `short_side` and both are rounded up to the divisor.
    """

    def __init__(
        self,
        path: Path,
        *,
        input_range: InputRange = "imagenet",
        short_side: int = DEFAULT_SHORT_SIDE,
        divisor: int = DEFAULT_DIVISOR,
        device: str = "cpu",
    ) -> None:
        """Load a network.

        Args:
            path: The .onnx file.
            input_range: What RGB values a network of float input expects: bytes as they are,
                divided by 255, or then normalised by ImageNet's mean and deviation.
            short_side: Pixels, for a network of free size.
            divisor: What both sides are multiples of, for a network of free size.
            device: "cpu" or "cuda".

        Raises:
            BackendMissingError: if ONNX Runtime or the device is not there.
            FileNotFoundError: if there is no such file.
            FileMismatchError: if the file is damaged, or maps no image to a map.
        """
        if not path.exists():
            raise FileNotFoundError(f"--predictor: there is no file {path}")
        if not path.is_file():
            raise FileMismatchError(f"--predictor: {path} is no file")
        self._path = path
        self._input_range: InputRange = input_range
        self._short_side = short_side
        self._divisor = divisor
        self._session = _open_session(path, device)
        if METADATA_KEY in self._session.get_modelmeta().custom_metadata_map:
            raise FileMismatchError(f"{path} is a segmenter of boxseg, no depth network")
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            shapes = ", ".join(f"{entry.name} {entry.shape}" for entry in inputs)
            raise FileMismatchError(
                f"{path}: a depth network takes one image (n, 3, h, w) or (n, h, w, 3), "
                f"this one takes {shapes}"
            )
        self._name = inputs[0].name
        self._type = inputs[0].type
        if self._type not in (*_NUMPY_TYPES, "tensor(uint8)"):
            raise FileMismatchError(
                f"{path}: input {self._name} is {self._type}; float, float16 or uint8 can be fed"
            )
        shape = list(inputs[0].shape)
        self._channels_last = shape[3] == 3 and shape[1] != 3
        sides = shape[1:3] if self._channels_last else shape[2:4]
        channels = shape[3] if self._channels_last else shape[1]
        if isinstance(channels, int) and channels != 3:
            raise FileMismatchError(f"{path}: input {self._name} {shape} has no 3 colour channels")
        self._sides = [side if isinstance(side, int) else None for side in sides]

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width at which the network sees an image."""
        scale = self._short_side / min(height, width)
        free = [
            max(1, math.ceil(round(side * scale) / self._divisor)) * self._divisor
            for side in (height, width)
        ]
        rows, columns = (
            fixed if fixed is not None else side
            for fixed, side in zip(self._sides, free, strict=True)
        )
        return rows, columns

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the network's map, (h, w); see `DepthPredictor`.

        Raises:
            FileMismatchError: if the network does not answer with one map.
        """
        height, width = self.input_size(*image.shape[:2])
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        values = np.asarray(resized)
        if self._type != "tensor(uint8)":
            values = _as_floats(values, self._input_range).astype(_NUMPY_TYPES[self._type])
        if not self._channels_last:
            values = values.transpose(2, 0, 1)
        try:
            outputs = self._session.run(None, {self._name: np.ascontiguousarray(values[None])})
        except Exception as error:  # its exceptions have no common class of their own
            raise FileMismatchError(
                f"{self._path}: cannot run at {height} x {width} pixels: {_first_line(error)}"
            ) from None
        found = np.asarray(outputs[0])
        if found.ndim == 4 and 1 in (found.shape[1], found.shape[3]):
            found = found[:, 0] if found.shape[1] == 1 else found[..., 0]
        if found.ndim != 3 or len(found) != 1:
            raise FileMismatchError(
                f"{self._path}: a depth network answers (n, 1, h, w) or (n, h, w), "
                f"this one {np.asarray(outputs[0]).shape}"
            )
        answer: NDArray[np.float32] = found[0].astype(np.float32)
        return answer


def _as_floats(values: NDArray[np.uint8], input_range: InputRange) -> NDArray[np.float32]:
    """Return bytes (H, W, 3) in the range that a network expects."""
    floats: NDArray[np.float32] = values.astype(np.float32)
    if input_range != "0..255":
        floats /= 255
    if input_range == "imagenet":
        floats -= _MEAN
        floats /= _DEVIATION
    return floats


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _open_session(path: Path, device: str) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise BackendMissingError(
            "ONNX Runtime is not installed; pip install boxseg[onnxruntime]"
        ) from None
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    if provider not in onnxruntime.get_available_providers():
        raise BackendMissingError(
            f"--device {device} is not available in this ONNX Runtime; pip install onnxruntime-gpu"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors reach the caller as exceptions
    refuse_escaping_files(path)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # its exceptions have no common class of their own
        raise FileMismatchError(
            f"{path}: not an ONNX file that ONNX Runtime loads: {_first_line(error)}"
        ) from None


class TransformersDepth:
    """A network of Hugging Face's `depth-estimation` pipeline: DPT, Depth Anything and others."""

    def __init__(self, name: str, *, device: str = "cpu") -> None:
        """Load a network.

        Args:
            name: On the hub, such as Intel/dpt-large, or a local folder.
            device: "cpu" or "cuda".

        Raises:
            BackendMissingError: if transformers is not installed.
            FileMismatchError: if there is no such network.
        """
        try:
            from transformers import pipeline  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise BackendMissingError(
                f"--predictor {TRANSFORMERS}{name}: transformers is not installed; "
                "pip install transformers"
            ) from None
        try:
            self._pipeline = pipeline("depth-estimation", model=name, device=device)
        except (OSError, ValueError) as error:
            raise FileMismatchError(
                f"--predictor {TRANSFORMERS}{name}: cannot be loaded: {_first_line(error)}"
            ) from None

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the network's map, (h, w); see `DepthPredictor`."""
        answer: Mapping[str, Any] = self._pipeline(Image.fromarray(image))
        found = np.asarray(answer["predicted_depth"], dtype=np.float32)
        return found.reshape(found.shape[-2:])


def inverted(predict: DepthPredictor) -> DepthPredictor:
    """Return a predictor of inverse depth from a predictor of distance."""

    def inverse(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        distance = predict(image)
        if not distance.min() > 0:
            raise DataError(
                f"--invert needs distances above 0, the network predicts {distance.min():g}; "
                "without --invert its map is taken for inverse depth"
            )
        return np.reciprocal(distance)

    return inverse


def encode_map(
    inverse_depth: NDArray[np.float32], size: tuple[int, int], bits: int
) -> tuple[bytes, tuple[float, float]]:
    """Write a map as PNG.

    Args:
        inverse_depth: (h, w), finite.
        size: Height and width of the image. A map larger than half of that (rounded up) shrinks to
            it: training samples every fourth pixel.
        bits: 8 or 16.

    Returns:
        The file's bytes, and the values that became 0 and the greatest grey. A flat map is all 0.
    """
    rows, columns = (-(-side // 2) for side in size)
    rows, columns = min(rows, inverse_depth.shape[0]), min(columns, inverse_depth.shape[1])
    if (rows, columns) != inverse_depth.shape:
        picture = Image.fromarray(inverse_depth)  # mode F; Pillow averages when it shrinks
        shrunk = picture.resize((columns, rows), Image.Resampling.BILINEAR)
        inverse_depth = np.asarray(shrunk)
    low, high = float(inverse_depth.min()), float(inverse_depth.max())
    greatest = 2**bits - 1
    share = (inverse_depth.astype(np.float64) - low) / ((high - low) or 1.0)
    grey = np.floor(share * greatest + 0.5).astype(np.uint8 if bits == 8 else np.uint16)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, format="PNG")
    return file.getvalue(), (low, high)


@dataclass
class DepthReport:
    """What `make_depth_maps` did."""

    images: int = 0
    """Images of the annotation files, each counted once."""
    made: int = 0
    kept: int = 0
    """Images whose map was there."""
    flat: int = 0
    """Maps without any difference: the network saw nothing."""
    nearer: int = 0
    """Boxes that are nearer than a frame around them, among the images whose map was made."""
    boxes: int = 0
    """Boxes that were compared with a frame around them."""
    unreadable: list[str] = field(default_factory=list)
    """One line per image that could not be read."""
    written: list[Path] = field(default_factory=list)
    """Annotation files that were changed."""


@dataclass(frozen=True)
class _Work:
    name: str
    """`file_name` of the image."""
    target: str
    """`depth_file_name` that its map gets."""
    boxes: list[list[float]]
    """x, y, width, height."""
    found: str | None
    """`depth_file_name` of a map that is there already."""


def depth_name(file_name: str) -> str:
    """Return where an image's map goes: images/a/b.jpg becomes depth/a/b.png.

    Raises:
        DataError: if the name leads out of the data folder.
    """
    path = PurePosixPath(file_name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise DataError(f"file_name {file_name!r} leads out of the data folder")
    parts = path.parts[1:] if path.parts[0] == "images" and len(path.parts) > 1 else path.parts
    return str(PurePosixPath(DEPTH_FOLDER, *parts).with_suffix(".png"))


def _collect(folder: Path, contents: Mapping[Path, dict[str, Any]]) -> list[_Work]:
    """List every image once, in the order of the files."""
    works: dict[str, _Work] = {}
    taken: set[str] = set()
    owners = {
        str(entry.get("depth_file_name")): entry.get("file_name")
        for content in contents.values()
        for entry in content["images"]
    }
    for path, content in contents.items():
        boxes: dict[Any, list[list[float]]] = {}
        for entry in content["annotations"]:
            if is_box(entry.get("bbox")):
                boxes.setdefault(entry.get("image_id"), []).append(entry["bbox"])
        for position, entry in enumerate(content["images"]):
            name = entry.get("file_name")
            if not isinstance(name, str) or not name:
                raise DataError(f"{path}: images[{position}]: 'file_name' must be a text")
            if name in works:
                continue
            target = depth_name(name)
            if target in taken or owners.get(target, name) != name:  # a.jpg and a.png
                target = str(PurePosixPath(target).with_name(f"{PurePosixPath(name).name}.png"))
            taken.add(target)
            present = entry.get("depth_file_name")
            usable = isinstance(present, str) and present and is_file(folder / present)
            works[name] = _Work(
                name, target, boxes.get(entry.get("id"), []), present if usable else None
            )
    return list(works.values())


def make_depth_maps(
    folder: Path,
    predict: DepthPredictor,
    *,
    bits: int = 16,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> DepthReport:
    """Give every image of a data folder a depth map.

    Maps are written one by one, each at once or not at all; the annotation files follow when all
    maps are there. Whoever is interrupted starts again where it stopped.

    Args:
        folder: Data folder with train.json, val.json or both.
        predict: Inverse depth of an image.
        bits: 8 or 16, of the PNG files.
        overwrite: Make maps anew that are there.
        progress: Called after each image with the number done and the number of all.

    Returns:
        What was done. Unreadable images are left without a map.

    Raises:
        DataError: if the folder has no annotation file, or it or a map cannot be written.
    """
    contents = {
        path: parse_annotation_file(path, with_masks=True)
        for path in (folder / name for name in ANNOTATION_FILES)
        if is_file(path)
    }
    if not contents:
        raise DataError(f"{folder}: holds neither {' nor '.join(ANNOTATION_FILES)}")
    works = _collect(folder, contents)
    report = DepthReport(images=len(works))
    entries: dict[str, dict[str, Any]] = {}
    for number, work in enumerate(works, start=1):
        made = _make(folder, work, predict, bits, overwrite, report)
        if made is not None:
            entries[work.name] = made
        if progress is not None:
            progress(number, len(works))
    for path, content in contents.items():
        new = [entry | entries.get(entry["file_name"], {}) for entry in content["images"]]
        if new != content["images"]:
            write_annotation_file({**content, "images": new}, path)
            report.written.append(path)
    return report


def _make(
    folder: Path,
    work: _Work,
    predict: DepthPredictor,
    bits: int,
    overwrite: bool,
    report: DepthReport,
) -> dict[str, Any] | None:
    """Make one map unless it is there; return what its image's entry says of it."""
    if not overwrite and work.found is not None:
        report.kept += 1
        return {}
    file = folder / work.target
    if not overwrite and is_file(file):  # of an interrupted run
        report.kept += 1
        return {"depth_file_name": work.target}
    try:
        image = read_image(folder / work.name)
    except DataError as error:
        report.unreadable.append(str(error))
        return None
    inverse_depth = predict(image)
    if not np.isfinite(inverse_depth).all():
        raise DataError(f"{folder / work.name}: the network predicts values that are no numbers")
    size = (image.shape[0], image.shape[1])
    encoded, (low, high) = encode_map(inverse_depth, size, bits)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + ".part")
        part.write_bytes(encoded)
        part.replace(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {error.strerror}") from None
    report.made += 1
    report.flat += low == high
    for inside, around in _contrasts(inverse_depth, size, work.boxes):
        report.boxes += 1
        report.nearer += inside > around
    return {"depth_file_name": work.target, "depth_min_max": [low, high]}


def _contrasts(
    inverse_depth: NDArray[np.float32], size: tuple[int, int], boxes: list[list[float]]
) -> Iterator[tuple[float, float]]:
    """Yield the mean inverse depth in the middle of each box and in a frame around the box.

    The middle is half as wide and high as the box, the frame reaches a quarter beyond it; boxes of
    which one of the two holds no cell are passed over.
    """
    scale = np.array([inverse_depth.shape[1] / size[1], inverse_depth.shape[0] / size[0]])
    for x, y, width, height in boxes:
        centre = np.array([x + width / 2, y + height / 2]) * scale
        half = np.array([width, height]) / 2 * scale
        spans = {
            part: [
                slice(max(0, round(float(low))), max(0, round(float(high))))
                for low, high in zip(centre - part * half, centre + part * half, strict=True)
            ]
            for part in (0.5, 1.0, 1.5)
        }
        middle, box, outer = (inverse_depth[spans[part][1], spans[part][0]] for part in spans)
        cells = outer.size - box.size
        if middle.size and cells:
            around = (outer.sum(dtype=np.float64) - box.sum(dtype=np.float64)) / cells
            yield float(middle.mean()), float(around)
