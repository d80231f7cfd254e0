"""COCO boxes: annotation file in, images with boxes out.

Letters: N instances, H x W pixels of the scaled image. Boxes are float32 x1, y1, x2, y2 in pixels
of the named frame. Masks are dropped at the door: their entries are deleted while the file is
parsed, unless the recipe asks for them.
"""

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import Dataset

from boxseg.errors import DataError
from boxseg.runtime.accuracy import Rle, encode_mask
from boxseg.runtime.images import PIXEL_LIMIT, is_file, read_image
from boxseg.train.transforms import AnnotatedImage, Geometry, Sample

SMALLEST_SIDE = 2.0
"""Boxes with a side below this many pixels of the original frame are no targets."""

TOO_SMALL = "boxes under 2 px"
MISSING_IMAGE = "missing images"
CORRUPT_IMAGE = "corrupt images"
SIZE_MISMATCH = "images whose size is not the one in the json"
MISSING_DEPTH = "images without a depth map"
CROWD = "crowd or difficult objects"
OTHER_CLASS = "objects of classes left out"
_DEFECTS = (TOO_SMALL, MISSING_IMAGE, CORRUPT_IMAGE, SIZE_MISMATCH, MISSING_DEPTH)

_ORIENTATION_TAG = 0x0112


def _without_masks(entry: dict[str, Any]) -> dict[str, Any]:
    """Delete the mask of an annotation while the file is being parsed."""
    entry.pop("segmentation", None)
    return entry


def parse_annotation_file(path: str | Path, *, with_masks: bool) -> dict[str, Any]:
    """Read a COCO file and make sure that its three lists are there.

    Args:
        path: The json file.
        with_masks: Keep `segmentation` entries; otherwise they are deleted while parsing.

    Returns:
        The file's object. `images`, `annotations` and `categories` are lists of objects; their
        entries are not looked at.

    Raises:
        DataError: The file is missing, is no json, or is no COCO file.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a COCO json" if path.is_dir() else "no such annotation file"
        raise DataError(f"{path}: {what}")
    try:
        with path.open("rb") as file:
            content = json.load(file, object_hook=None if with_masks else _without_masks)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: broken json at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 (byte {error.start})") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: broken json: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: a COCO file is an object with images, annotations and categories, "
            f"got a {type(content).__name__}"
        )
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise DataError(f"{path}: the key {key!r} is missing; a COCO file has it")
        entries = content[key]
        if not isinstance(entries, list):
            raise DataError(f"{path}: {key!r} must be a list, got a {type(entries).__name__}")
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise DataError(f"{path}: {key}[{position}] must be an object, got {entry!r:.40}")
    return content


def write_annotation_file(content: Mapping[str, Any], path: str | Path) -> None:
    """Write a COCO file, at once or not at all; a link stays one, what it points to is written.

    Args:
        content: The file's object.
        path: Where it goes; an existing file is replaced.

    Raises:
        DataError: It cannot be written.
    """
    path = Path(path)
    target = path.resolve()
    part = target.with_name(target.name + ".part")
    try:
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")
        if target.exists():
            shutil.copymode(target, part)
        part.replace(target)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file as a person sees it, without decoding its pixels.

    Truncation is noticed all the same: PNG files are checked by their own checksums, a JPEG file is
    sound if it ends in its end marker, and anything else is decoded.

    Raises:
        DataError: The file is missing, no image, or damaged.
    """
    path = Path(path)
    if not is_file(path):
        raise DataError(f"{path}: no such image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes and tags that are judged here
            with Image.open(path) as image:
                width, height = image.size
                exact = image.format == "PNG"
                turned = image.getexif().get(_ORIENTATION_TAG, 1) in (5, 6, 7, 8)
            if width * height > PIXEL_LIMIT:
                raise DataError(
                    f"{path}: {height} x {width} pixels; the limit is {PIXEL_LIMIT} pixels"
                )
            if exact:
                with Image.open(path) as image:  # verifying must come before all other reading
                    image.verify()
        if not exact and not _ends_as_jpeg(path):
            height, width = read_image(path).shape[:2]
            turned = False
    except DataError:
        raise
    except Exception as error:  # decoders of foreign bytes raise nearly everything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not an image, or damaged ({reason})") from None
    return (width, height) if turned else (height, width)


def _ends_as_jpeg(path: Path) -> bool:
    """Whether the last kilobyte of a file holds the end marker of a JPEG."""
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(-min(file.tell(), 1024), 2)
        return b"\xff\xd9" in file.read()


def read_depth(path: str | Path) -> NDArray[np.float32]:
    """Read a map of inverse depth: 8-bit grey as it is, 16-bit grey divided by 257.

    Returns:
        Values in [0, 255], larger is nearer, (height, width) of the map.

    Raises:
        DataError: The file is missing, damaged, or not grey.
    """
    path = Path(path)
    if not is_file(path):
        raise DataError(f"{path}: no such depth map")
    try:
        with Image.open(path) as image:
            mode = image.mode
            values = np.asarray(image)
    except Exception as error:  # decoders of foreign bytes raise nearly everything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: damaged depth map ({reason})") from None
    if mode == "L":
        return values.astype(np.float32)
    if mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        return (values.astype(np.float64) / 257.0).astype(np.float32)
    raise DataError(f"{path}: a depth map is an 8- or 16-bit grey PNG, got mode {mode}")


def _identifier(entry: Mapping[str, Any], key: str, where: str) -> int:
    """Read an integer id of an entry."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        raise DataError(f"{where}: {key!r} must be an integer, got {value!r:.40}")
    return value


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    """Read a non-empty text of an entry."""
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: {key!r} must be a text, got {value!r:.40}")
    return value


def is_box(value: object) -> TypeGuard[Sequence[float]]:
    """Whether a value of a json is four finite numbers of a size that pixels can have."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(
            isinstance(number, int | float) and not isinstance(number, bool) and -1e9 < number < 1e9
            for number in value
        )
    )


def _box(entry: Mapping[str, Any], where: str) -> tuple[float, float, float, float]:
    """Read bbox (x, y, width, height) as x1, y1, x2, y2."""
    value = entry.get("bbox")
    if not is_box(value):
        raise DataError(f"{where}: 'bbox' must be numbers x, y, width, height, got {value!r:.60}")
    x, y, width, height = (float(number) for number in value)
    return x, y, x + width, y + height


@dataclass(frozen=True)
class _Category:
    identifier: int
    name: str
    count: int


def _read_categories(content: Mapping[str, Any], path: Path) -> list[_Category]:
    """Categories in the order of their ids, with the number of annotations of each."""
    names: dict[int, str] = {}
    for position, entry in enumerate(content["categories"]):
        where = f"{path}: categories[{position}]"
        identifier = _identifier(entry, "id", where)
        name = _text(entry, "name", where)
        if identifier in names:
            raise DataError(f"{where}: category id {identifier} is used twice")
        if name in names.values():
            raise DataError(f"{where}: category name {name!r} is used twice")
        names[identifier] = name
    if not names:
        raise DataError(f"{path}: 'categories' is empty")
    counts: Counter[int] = Counter()
    for position, entry in enumerate(content["annotations"]):
        where = _annotation_place(path, position, entry)
        category = _identifier(entry, "category_id", where)
        if category not in names:
            raise DataError(
                f"{where}: unknown category id {category}; "
                f"known are {', '.join(str(key) for key in sorted(names))}"
            )
        counts[category] += 1
    return [_Category(key, names[key], counts[key]) for key in sorted(names)]


def _annotation_place(path: Path, position: int, entry: Mapping[str, Any]) -> str:
    """Name an annotation in a message."""
    return f"{path}: annotations[{position}] (id {entry.get('id')}, image {entry.get('image_id')})"


def _choose_classes(
    categories: Sequence[_Category], classes: Sequence[str] | None, path: Path
) -> list[_Category]:
    """Categories to train: the named ones, or all that have an annotation."""
    if classes is None:
        chosen = [category for category in categories if category.count]
        if not chosen:
            raise DataError(f"{path}: no annotations, so there is nothing to learn from")
        return chosen
    by_name = {category.name: category for category in categories}
    for name in classes:
        if name not in by_name:
            raise DataError(
                f"{path}: unknown class {name!r}; "
                f"categories are {', '.join(category.name for category in categories)}"
            )
    if len(set(classes)) != len(classes):
        raise ValueError(f"data.classes names a class twice: {', '.join(classes)}")
    return [by_name[name] for name in classes]


@dataclass(frozen=True)
class _Targets:
    """Annotations of one file, grouped by image: those of image i are starts[i]:starts[i + 1]."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    starts: NDArray[np.int64]
    masks: list[Rle] | None


class CocoBoxes(Dataset[Sample]):
    """Images of a COCO file with their boxes, in the order of their image ids.

    What is in the set is settled when it is opened: unusable images and boxes are dropped then,
    counted in `dropped` and told in `notes`, so that every epoch and every worker sees the same.
    Images without boxes stay, as background.
    """

    classes: tuple[str, ...]
    """Class names in the order of their indices."""
    category_ids: tuple[int, ...]
    """The file's category id of each class."""
    dropped: Counter[str]
    """How many objects or images were left out, by reason."""
    notes: tuple[str, ...]
    """One line for each thing worth telling a person: what was dropped, which classes are empty."""

    def __init__(
        self,
        annotation_file: str | Path,
        image_root: str | Path | None = None,
        *,
        transform: Geometry,
        classes: Sequence[str] | None = None,
        with_masks: bool = False,
        with_depth: bool = False,
        strict: bool = False,
    ) -> None:
        """Read the annotations and look at every image file.

        Args:
            annotation_file: COCO json.
            image_root: Folder that file names are relative to; the json's own folder if None.
            transform: Scale and flip.
            classes: Names of the classes to use, in the order of their indices; None takes the
                categories that have an annotation, in the order of their ids.
            with_masks: Load true masks. Only a mask-supervised recipe does.
            with_depth: Load the depth maps that `depth_file_name` names.
            strict: Make what would be dropped with a warning an error.

        Raises:
            DataError: The file is no COCO file, holds no usable image, or is defective while
                `strict`.
            ValueError: The flip rule or `classes` does not fit the file.
        """
        self._path = Path(annotation_file)
        self._root = self._path.parent if image_root is None else Path(image_root)
        self._transform = transform
        self._with_depth = with_depth
        self._strict = strict
        self.dropped = Counter()
        self._first: dict[str, str] = {}

        content = parse_annotation_file(self._path, with_masks=with_masks)
        categories = _read_categories(content, self._path)
        chosen = _choose_classes(categories, classes, self._path)
        self.classes = tuple(category.name for category in chosen)
        self.category_ids = tuple(category.identifier for category in chosen)
        self._mirrored = transform.mirrored_labels(self.classes)
        self.left_out = tuple(item.name for item in categories if item not in chosen)

        self._keep_images(content["images"])
        self._targets = self._read_targets(content["annotations"], with_masks=with_masks)
        empty = [category.name for category in chosen if not category.count]
        self.notes = tuple(self._tell(empty))

    def _drop(self, reason: str, where: str) -> None:
        """Count something that is left out; a defect is an error when strict."""
        if self._strict and reason in _DEFECTS:
            raise DataError(f"{where} (strict)")
        self.dropped[reason] += 1
        self._first.setdefault(reason, where)

    def _depth_cures(self) -> str:
        """Say what to do about images without depth."""
        return (
            f"make depth maps with boxseg data depth {self._root} --predictor FILE.onnx, or train "
            "without depth: -o terms.depth=null -o terms.depth_consistency=null"
        )

    def _keep_images(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Settle which images are in the set, in the order of their ids."""
        if not entries:
            raise DataError(f"{self._path}: 'images' is empty")
        self._all_ids: set[int] = set()
        kept: list[tuple[int, str, str, tuple[int, int]]] = []
        for position, entry in enumerate(entries):
            where = f"{self._path}: images[{position}] (id {entry.get('id')})"
            identifier = _identifier(entry, "id", where)
            name = _text(entry, "file_name", where)
            if identifier in self._all_ids:
                raise DataError(f"{where}: image id {identifier} is used twice")
            self._all_ids.add(identifier)
            file = self._root / name
            if not is_file(file):
                self._drop(MISSING_IMAGE, f"{file}: no such image file (image {identifier})")
                continue
            try:
                size = image_size(file)
            except DataError as error:
                self._drop(CORRUPT_IMAGE, f"{error} (image {identifier})")
                continue
            stated = (entry.get("height"), entry.get("width"))
            if None not in stated and stated != size:
                self._drop(
                    SIZE_MISMATCH,
                    f"{file}: height x width is {size[0]} x {size[1]}, "
                    f"the json says {stated[0]} x {stated[1]} (image {identifier})",
                )
                continue
            depth = ""
            if self._with_depth:
                depth = str(entry.get("depth_file_name") or "")
                if not depth or not is_file(self._root / depth):
                    self._drop(
                        MISSING_DEPTH,
                        f"{self._root / depth if depth else name}: no depth map "
                        f"(image {identifier}, depth_file_name {depth!r})",
                    )
                    continue
            kept.append((identifier, name, depth, size))
        if not kept:
            raise DataError(
                f"{self._path}: none of {len(entries)} images is usable: "
                + "; ".join(f"{count} {reason}" for reason, count in self.dropped.items())
                + f"; first: {next(iter(self._first.values()))}"
                + (f"; {self._depth_cures()}" if MISSING_DEPTH in self.dropped else "")
            )
        kept.sort()
        self.image_ids = np.array([item[0] for item in kept], dtype=np.int64)
        self._names = np.array([item[1] for item in kept])
        self._depth_names = np.array([item[2] for item in kept])
        self._sizes = np.array([item[3] for item in kept], dtype=np.int64)

    def _read_targets(self, entries: Sequence[Mapping[str, Any]], *, with_masks: bool) -> _Targets:
        """Boxes inside their images, without crowds and what is too small to be seen."""
        label_of = {identifier: label for label, identifier in enumerate(self.category_ids)}
        row_of = {int(identifier): row for row, identifier in enumerate(self.image_ids)}
        rows: list[int] = []
        boxes: list[tuple[float, float, float, float]] = []
        labels: list[int] = []
        masks: list[Rle] = []
        for position, entry in enumerate(entries):
            where = _annotation_place(self._path, position, entry)
            image = _identifier(entry, "image_id", where)
            box = _box(entry, where)
            if image not in row_of:
                if image not in self._all_ids:
                    raise DataError(f"{where}: unknown image id {image}")
                continue
            if entry.get("iscrowd") or entry.get("difficult"):
                self._drop(CROWD, where)
                continue
            label = label_of.get(entry["category_id"])
            if label is None:
                self._drop(OTHER_CLASS, where)
                continue
            height, width = (int(side) for side in self._sizes[row_of[image]])
            x1, y1 = max(box[0], 0.0), max(box[1], 0.0)
            x2, y2 = min(box[2], float(width)), min(box[3], float(height))
            if x2 - x1 < SMALLEST_SIDE or y2 - y1 < SMALLEST_SIDE:
                self._drop(TOO_SMALL, f"{where}: bbox {entry['bbox']} is under 2 px in the image")
                continue
            if with_masks:
                if "segmentation" not in entry:
                    raise DataError(
                        f"{where}: the recipe asks for masks, 'segmentation' is missing"
                    )
                encoded = encode_mask(entry["segmentation"], height, width, where, coco_mask)
                if encoded is None:
                    raise DataError(f"{where}: the recipe asks for masks, this one is empty")
                masks.append(encoded)
            rows.append(row_of[image])
            boxes.append((x1, y1, x2, y2))
            labels.append(label)
        order = np.argsort(np.array(rows, dtype=np.int64), kind="stable")
        starts = np.zeros(len(self.image_ids) + 1, dtype=np.int64)
        np.add.at(starts, np.array(rows, dtype=np.int64) + 1, 1)
        return _Targets(
            boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4)[order],
            labels=np.array(labels, dtype=np.int64)[order],
            starts=np.cumsum(starts),
            masks=[masks[index] for index in order] if with_masks else None,
        )

    def _tell(self, empty: Sequence[str]) -> list[str]:
        """Lines for a person."""
        lines = []
        if self.left_out:
            lines.append(f"{self._path}: classes left out: {', '.join(self.left_out)}")
        if empty:
            lines.append(f"{self._path}: classes without an annotation: {', '.join(empty)}")
        for reason, count in self.dropped.items():
            line = f"{self._path}: dropped {count} {reason}"
            if reason in _DEFECTS:
                line = f"{line}, first {self._first[reason]}"
            if reason == MISSING_DEPTH:
                line = f"{line}; {self._depth_cures()}"
            lines.append(line)
        return lines

    def __len__(self) -> int:
        """Number of usable images."""
        return len(self.image_ids)

    @property
    def num_boxes(self) -> int:
        """Number of targets in all images."""
        return len(self._targets.labels)

    def load(self, index: int) -> AnnotatedImage:
        """Read one image with its targets in the original frame.

        Raises:
            DataError: The image changed since the set was opened, or its pixels are damaged.
        """
        file = self._root / str(self._names[index])
        image = read_image(file)
        height, width = (int(side) for side in self._sizes[index])
        if image.shape[:2] != (height, width):
            raise DataError(
                f"{file}: height x width was {height} x {width} when the set was opened, "
                f"now {image.shape[0]} x {image.shape[1]}"
            )
        span = slice(int(self._targets.starts[index]), int(self._targets.starts[index + 1]))
        annotated = AnnotatedImage(
            image=image,
            boxes=self._targets.boxes[span],
            labels=self._targets.labels[span],
            image_id=int(self.image_ids[index]),
            file_name=str(self._names[index]),
        )
        if self._targets.masks is not None:
            masks = np.zeros((span.stop - span.start, height, width), dtype=np.uint8)
            for row, encoded in enumerate(self._targets.masks[span]):
                masks[row] = coco_mask.decode(encoded)
            annotated = replace(annotated, masks=masks)
        if self._with_depth:
            depth = read_depth(self._root / str(self._depth_names[index]))
            annotated = replace(annotated, depth=depth)
        return annotated

    def sample(self, index: int, *, epoch: int, step: int = 0) -> Sample:
        """One image as a step of an epoch sees it, scaled and perhaps flipped, with its targets."""
        return self._transform(
            self.load(index), self._mirrored, epoch=epoch, index=index, step=step
        )

    def __getitem__(self, index: int) -> Sample:
        """One image as the first epoch sees it."""
        return self.sample(index, epoch=0)
