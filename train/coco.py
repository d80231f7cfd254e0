"""COCO boxes: annotation file in, images with boxes out.

Letters: I images and N objects of the file; N instances of an image, H x W pixels of the scaled
image. Boxes are float32 x1, y1, x2, y2 in pixels of the named frame. Masks are dropped at the door:
they are skipped while the file is parsed, unless the recipe asks for them.
"""

import hashlib
import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import Dataset

from boxseg.errors import DataError, counted
from boxseg.runtime.accuracy import Rle, encode_mask
from boxseg.runtime.images import PIXEL_LIMIT, is_file, leaves_folder, read_image, refuse_huge
from boxseg.train.annotation_table import (
    AnnotationTable,
    Texts,
    from_arrays,
    read_bytes,
    read_table,
    to_arrays,
)
from boxseg.train.data_cache import cache_file, read_cache, write_cache
from boxseg.train.transforms import AnnotatedImage, Geometry, Sample

SMALLEST_SIDE = 2.0
"""Boxes with a side below this many pixels of the original frame are no targets."""

TOO_SMALL = "boxes under 2 px"
OUTSIDE = "images outside the data folder"
MISSING_IMAGE = "missing images"
CORRUPT_IMAGE = "corrupt images"
SIZE_MISMATCH = "images whose size is not the one in the json"
MISSING_DEPTH = "images without a depth map"
CROWD = "crowd or difficult objects"
OTHER_CLASS = "objects of classes left out"
_DEFECTS = (TOO_SMALL, OUTSIDE, MISSING_IMAGE, CORRUPT_IMAGE, SIZE_MISMATCH, MISSING_DEPTH)

CACHED_FROM = 16_000_000
"""Bytes of an annotation file from which on what was found is kept for the next start."""

_ORIENTATION_TAG = 0x0112


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
            refuse_huge(path, height, width)
            if exact:
                with Image.open(path) as image:  # verifying must come before all other reading
                    image.verify()
        if not exact and not _ends_as_jpeg(path):
            height, width = read_image(path).shape[:2]
            turned = False
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{path}: too many pixels; the limit is {PIXEL_LIMIT} pixels") from None
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


WIDE_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes of grey pictures of more than 8 bits."""


def read_stored(path: Path, what: str) -> tuple[NDArray[Any], str]:
    """Read the numbers that a picture stores, such as palette indices, without making colours.

    Args:
        path: A file that exists.
        what: What it should be, for messages.

    Returns:
        The numbers, (height, width) or with channels last, and Pillow's mode of the picture.

    Raises:
        DataError: The file is damaged or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes, which are judged here
            with Image.open(path) as image:
                refuse_huge(path, image.height, image.width)
                return np.asarray(image), image.mode
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{path}: too many pixels; the limit is {PIXEL_LIMIT} pixels") from None
    except Exception as error:  # decoders of foreign bytes raise nearly everything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: damaged {what} ({reason})") from None


def read_depth(path: str | Path) -> NDArray[np.float32]:
    """Read a map of inverse depth: 8-bit grey as it is, 16-bit grey divided by 257.

    Returns:
        Values in [0, 255], larger is nearer, (height, width) of the map.

    Raises:
        DataError: The file is missing, damaged, too large, or not grey.
    """
    path = Path(path)
    if not is_file(path):
        raise DataError(f"{path}: no such depth map")
    values, mode = read_stored(path, "depth map")
    if mode == "L":
        return values.astype(np.float32)
    if mode in WIDE_GREY:
        return (values.astype(np.float64) / 257.0).astype(np.float32)
    raise DataError(f"{path}: a depth map is an 8- or 16-bit grey PNG, got mode {mode}")


@dataclass(frozen=True)
class ImageFacts:
    """What looking at image files found, by row of the annotation table."""

    files: NDArray[np.int64]
    """Length in bytes and time of the last change in nanoseconds; -1 without a file, (I, 2)."""
    sizes: NDArray[np.int64]
    """Height and width as a person sees the image; 0 where it cannot be used, (I, 2)."""

    def equal(self, other: "ImageFacts") -> bool:
        """Whether both say the same."""
        return np.array_equal(self.files, other.files) and np.array_equal(self.sizes, other.sizes)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name."""
        return {"image.files": self.files, "image.sizes": self.sizes}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "ImageFacts":
        """Return what `to_arrays` took apart.

        Raises:
            ValueError: The arrays are others.
        """
        files, sizes = arrays.get("image.files"), arrays.get("image.sizes")
        shape = (len(arrays["image_ids"]), 2)
        for array in (files, sizes):
            if array is None or array.shape != shape or array.dtype != np.int64:
                raise ValueError("the facts of the images do not fit the table")
        assert files is not None
        assert sizes is not None
        return cls(files, sizes)


def look_at_images(
    root: Path,
    names: Texts,
    known: ImageFacts | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ImageFacts, dict[int, tuple[str, str]]]:
    """Find the size of every image, reading the head of each file that is not known yet.

    Args:
        root: Folder that the names are relative to.
        names: File names, (I,).
        known: What an earlier look found; a file of the same length and time is not read again.
        progress: Called with the number done and the number of all.

    Returns:
        The facts; and of each row that cannot be used the reason and one line about it.
    """
    files = np.full((len(names), 2), -1, dtype=np.int64)
    sizes = np.zeros((len(names), 2), dtype=np.int64)
    wrong: dict[int, tuple[str, str]] = {}
    for row, name in enumerate(names):
        if leaves_folder(name):
            wrong[row] = OUTSIDE, f"{name!r} lies outside {root}"
            continue
        try:
            found = os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118  a Path costs more
        except (OSError, ValueError):
            found = None
        if found is None or not stat.S_ISREG(found.st_mode):
            wrong[row] = MISSING_IMAGE, f"{root / name}: no such image file"
            continue
        files[row] = found.st_size, found.st_mtime_ns
        if known is not None and known.sizes[row, 0] and (known.files[row] == files[row]).all():
            sizes[row] = known.sizes[row]
        else:
            try:
                sizes[row] = image_size(root / name)
            except DataError as error:
                wrong[row] = CORRUPT_IMAGE, str(error)
        if progress is not None:
            progress(row + 1, len(names))
    return ImageFacts(files, sizes), wrong


@dataclass(frozen=True)
class _Category:
    identifier: int
    name: str
    count: int


def _read_categories(table: AnnotationTable) -> list[_Category]:
    """Categories in the order of their ids, with the number of annotations of each."""
    counts = Counter(table.labels.tolist())
    names = dict(zip(table.category_ids.tolist(), table.category_names, strict=True))
    return [_Category(key, names[key], counts[key]) for key in sorted(names)]


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
    sha256: str
    """Of the annotation file, hexadecimal."""

    def __init__(
        self,
        annotation_file: str | Path,
        image_root: str | Path | None = None,
        *,
        transform: Geometry,
        classes: Sequence[str] | None = None,
        with_masks: bool = False,
        with_depth: bool = False,
        without_depth: Sequence[str] = (),
        strict: bool = False,
        progress: Callable[[int, int], None] | None = None,
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
            without_depth: Settings with which the recipe does without them, for messages.
            strict: Make what would be dropped with a warning an error.
            progress: Called after each image with the number looked at and the number of all.

        Raises:
            DataError: The file is no COCO file, holds no usable image, or is defective while
                `strict`.
            ValueError: The flip rule or `classes` does not fit the file.
        """
        self._path = Path(annotation_file)
        self._root = self._path.parent if image_root is None else Path(image_root)
        self._transform = transform
        self._with_depth = with_depth
        self._without_depth = tuple(without_depth)
        self._strict = strict
        self.dropped = Counter()
        self._first: dict[str, str] = {}

        table, known, cache = self._open(with_masks=with_masks)
        categories = _read_categories(table)
        chosen = _choose_classes(categories, classes, self._path)
        self.classes = tuple(category.name for category in chosen)
        self.category_ids = tuple(category.identifier for category in chosen)
        self._mirrored = transform.mirrored_labels(self.classes)
        self.left_out = tuple(item.name for item in categories if item not in chosen)

        facts = self._keep_images(table, known, progress)
        self._targets = self._read_targets(table)
        empty = [category.name for category in chosen if not category.count]
        self.notes = tuple(self._tell(empty))
        if known is not None:
            self.notes += (f"{self._path}: known from an earlier start, {cache}",)
        if cache is not None and (known is None or not facts.equal(known)):
            self.notes += (self._keep(cache, table, facts),)

    def _open(self, *, with_masks: bool) -> tuple[AnnotationTable, ImageFacts | None, Path | None]:
        """Read the file or its cache.

        Returns:
            The table, what is known of its images, and the cache's file if one is worth while.
        """
        text = read_bytes(self._path)
        self.sha256 = hashlib.sha256(text).hexdigest()
        if len(text) < CACHED_FROM:
            return read_table(self._path, text, with_masks=with_masks), None, None
        file = cache_file(self.sha256, self._root)
        arrays = read_cache(file)
        try:
            table = None if arrays is None else from_arrays(self._path, arrays)
            known = None if arrays is None else ImageFacts.from_arrays(arrays)
        except ValueError:
            table, known = None, None
        if table is None or with_masks:
            table = read_table(self._path, text, with_masks=with_masks)
        return table, known, file

    def _keep(self, cache: Path, table: AnnotationTable, facts: ImageFacts) -> str:
        """Write the cache and say so; a run does not depend on it."""
        try:
            write_cache(cache, to_arrays(table) | facts.to_arrays())
        except OSError as error:
            return (
                f"{self._path}: not kept for the next start, {cache.parent} cannot be written: "
                f"{error.strerror}; BOXSEG_CACHE names another folder"
            )
        return f"{self._path}: kept for a quick next start in {cache}"

    def _drop(self, reason: str, where: str) -> None:
        """Count something that is left out; a defect is an error when strict."""
        if self._strict and reason in _DEFECTS:
            raise DataError(f"{where} (strict)")
        self.dropped[reason] += 1
        self._first.setdefault(reason, where)

    def _depth_cures(self) -> str:
        """Say what to do about images without depth."""
        make = f"make depth maps with boxseg data depth {self._root} --predictor FILE.onnx"
        if not self._without_depth:
            return make
        settings = " ".join(f"-o {setting}" for setting in self._without_depth)
        return f"{make}, or train without depth: {settings}"

    def _keep_images(
        self,
        table: AnnotationTable,
        known: ImageFacts | None,
        progress: Callable[[int, int], None] | None,
    ) -> ImageFacts:
        """Settle which images are in the set, in the order of their ids."""
        facts, wrong = look_at_images(self._root, table.file_names, known, progress)
        sizes = facts.sizes
        stated = ~np.isnan(table.sizes).any(axis=1)
        differs = stated & (table.sizes != sizes).any(axis=1)
        rows = []
        for row in range(len(sizes)):
            image = f"(image {table.image_ids[row]})" if row in wrong or differs[row] else ""
            if row in wrong:
                reason, what = wrong[row]
                self._drop(reason, f"{what} {image}")
            elif differs[row]:
                height, width = sizes[row]
                self._drop(
                    SIZE_MISMATCH,
                    f"{self._root / table.file_names[row]}: height x width is {height} x {width}, "
                    f"the json says {table.sizes[row, 0]:g} x {table.sizes[row, 1]:g} {image}",
                )
            elif not self._with_depth or self._has_depth(table, row):
                rows.append(row)
        if not rows:
            raise DataError(
                f"{self._path}: none of {counted(len(sizes), 'image')} is usable: "
                + "; ".join(f"{reason} ({count})" for reason, count in self.dropped.items())
                + f"; first: {next(iter(self._first.values()))}"
                + (f"; {self._depth_cures()}" if MISSING_DEPTH in self.dropped else "")
            )
        kept = np.array(rows, dtype=np.int64)
        kept = kept[np.argsort(table.image_ids[kept])]
        self.image_ids = table.image_ids[kept]
        self._names = table.file_names.take(kept)
        self._depth_names = table.depth_names.take(kept)
        self._sizes = sizes[kept]
        return facts

    def _has_depth(self, table: AnnotationTable, row: int) -> bool:
        """Whether the depth map of an image is there; without one the image is dropped."""
        name, depth = table.file_names[row], table.depth_names[row]
        if depth and leaves_folder(depth):
            what = f"{depth!r} lies outside {self._root}"
        elif not depth or not is_file(self._root / depth):
            what = f"{self._root / depth if depth else name}: no depth map"
        else:
            return True
        self._drop(
            MISSING_DEPTH, f"{what} (image {table.image_ids[row]}, depth_file_name {depth!r})"
        )
        return False

    def _read_targets(self, table: AnnotationTable) -> _Targets:
        """Boxes inside their images, without crowds and what is too small to be seen."""
        places = np.searchsorted(self.image_ids, table.owners)  # (N,)
        places = np.minimum(places, len(self.image_ids) - 1)
        usable = self.image_ids[places] == table.owners
        self._leave_out(CROWD, usable & table.unjudged, table)
        usable &= ~table.unjudged
        label_of = {identifier: label for label, identifier in enumerate(self.category_ids)}
        labels = np.array([label_of.get(key, -1) for key in table.labels.tolist()], np.int64)
        self._leave_out(OTHER_CLASS, usable & (labels < 0), table)
        usable &= labels >= 0
        limits = self._sizes[places][:, ::-1].astype(np.float64)  # (N, 2), width first
        low = np.maximum(table.boxes[:, :2], 0.0)
        high = np.minimum(table.boxes[:, :2] + table.boxes[:, 2:], limits)
        small = (high - low < SMALLEST_SIDE).any(axis=1)
        self._leave_out(TOO_SMALL, usable & small, table)
        usable &= ~small
        rows = np.flatnonzero(usable)
        rows = rows[np.argsort(places[rows], kind="stable")]
        masks: list[Rle] | None = None
        if table.segmentations is not None:
            masks = [self._mask(table, int(row), int(places[row])) for row in rows]
        counts = np.bincount(places[rows], minlength=len(self.image_ids))
        return _Targets(
            boxes=np.concatenate([low, high], axis=1)[rows].astype(np.float32),
            labels=labels[rows],
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            masks=masks,
        )

    def _leave_out(self, reason: str, chosen: NDArray[np.bool_], table: AnnotationTable) -> None:
        """Count the chosen annotations as dropped."""
        rows = np.flatnonzero(chosen)
        if not len(rows):
            return
        where = table.place(rows[0])
        if reason == TOO_SMALL:
            box = ", ".join(f"{value:g}" for value in table.boxes[rows[0]])
            where += f": bbox [{box}] is under 2 px in the image"
        self._drop(reason, where)
        self.dropped[reason] += len(rows) - 1

    def _mask(self, table: AnnotationTable, row: int, place: int) -> Rle:
        """Return the mask of an annotation as RLE."""
        height, width = (int(side) for side in self._sizes[place])
        where = table.place(row)
        encoded = encode_mask(table.segmentation(row), height, width, where, coco_mask)
        if encoded is None:
            raise DataError(f"{where}: the recipe asks for masks, this one is empty")
        return encoded

    def _tell(self, empty: Sequence[str]) -> list[str]:
        """Lines for a person."""
        lines = []
        if self.left_out:
            lines.append(f"{self._path}: classes left out: {', '.join(self.left_out)}")
        if empty:
            lines.append(f"{self._path}: classes without an annotation: {', '.join(empty)}")
        for reason, count in self.dropped.items():
            line = f"{self._path}: dropped {reason} ({count})"
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

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Height and width of each usable image on disk, (I, 2)."""
        return self._sizes

    def file_name(self, index: int) -> str:
        """File name of one usable image, as the json has it."""
        return self._names[index]

    def load(self, index: int) -> AnnotatedImage:
        """Read one image with its targets in the original frame.

        Raises:
            DataError: The image changed since the set was opened, or its pixels are damaged.
        """
        file = self._root / self._names[index]
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
            file_name=self._names[index],
        )
        if self._targets.masks is not None:
            masks = np.zeros((span.stop - span.start, height, width), dtype=np.uint8)
            for row, encoded in enumerate(self._targets.masks[span]):
                masks[row] = coco_mask.decode(encoded)
            annotated = replace(annotated, masks=masks)
        if self._with_depth:
            depth = read_depth(self._root / self._depth_names[index])
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
