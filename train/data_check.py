"""Every defect of a COCO file and of its images in one pass, and a repaired copy.

Boxes are x, y, width, height as in the file. The walk that finds a defect also decides its repair,
so that what is reported and what is repaired cannot drift apart.
"""

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from boxseg.errors import DataError, counted
from boxseg.runtime.accuracy import encode_mask
from boxseg.runtime.images import is_file, leaves_folder, read_image
from boxseg.train.annotation_table import is_box, parse_annotation_file, write_annotation_file
from boxseg.train.coco import SMALLEST_SIDE, read_depth

EDGE_TOLERANCE = 0.5
"""Pixels by which a box may pass the edge of its image: rounding, no defect."""
LOOSE_PIXELS = 2.0
LOOSE_SHARE = 0.05
"""A box is loose if a side lies further from its mask than both allow: pixels, share of the box."""

_DROP = "annotations dropped"
_RENUMBER = "annotations renumbered"

_Entry = dict[str, Any]


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong."""

    kind: str
    """Short name by which defects are counted."""
    where: str
    """Image and annotation id, or category id."""
    what: str
    repair: str
    """What a repaired copy does about it; empty if nothing."""

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.where}: {self.kind}: {self.what}"


@dataclass
class Report:
    """What a check found."""

    path: Path
    images: int = 0
    annotations: int = 0
    defects: list[Defect] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """Worth knowing, but not wrong."""
    repaired: _Entry = field(default_factory=dict)
    """The file's object with every repair made."""

    @property
    def counts(self) -> Counter[str]:
        """Number of defects of each kind."""
        return Counter(defect.kind for defect in self.defects)

    @property
    def repairs(self) -> Counter[str]:
        """Number of repairs of each sort; the key "" counts what is left as it is."""
        return Counter(defect.repair for defect in self.defects)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_MIRROR = {"left": "right", "right": "left"}


def _mirrored_name(name: str) -> str | None:
    """The name with left and right exchanged; None if it holds neither as a word of its own."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[^A-Za-z]+", name)
    swapped = [_MIRROR.get(word.lower()) or word for word in words]
    if swapped == words:
        return None
    return "".join(swapped)


def _is_loose(box: Sequence[float], tight: Sequence[float]) -> bool:
    """Whether a side of a box lies too far from that of the box around its mask."""
    for axis in (0, 1):
        low = abs(box[axis] - tight[axis])
        high = abs(box[axis] + box[axis + 2] - tight[axis] - tight[axis + 2])
        if max(low, high) > max(LOOSE_PIXELS, LOOSE_SHARE * box[axis + 2]):
            return True
    return False


class _Walk:
    """One pass over a file; the repaired object grows beside the list of defects."""

    def __init__(self, path: Path, root: Path, content: _Entry, *, flip: bool) -> None:
        self.report = Report(path)
        self.root = root
        self.content = content
        self.flip = flip
        self.sizes: dict[int, tuple[int, int] | None] = {}
        """Height and width by image id; None for images that are dropped."""

    def add(self, kind: str, where: str, what: str, repair: str = "") -> None:
        self.report.defects.append(Defect(kind, where, what, repair))

    def categories(self) -> list[_Entry]:
        """Check the categories; return the repaired ones."""
        kept: dict[int, _Entry] = {}
        for position, entry in enumerate(self.content["categories"]):
            identifier, name = entry.get("id"), entry.get("name")
            where = f"category {identifier}"
            if not _is_id(identifier):
                self.add(
                    "category id",
                    f"categories[{position}]",
                    f"id must be an integer, got {identifier!r:.40}",
                    "categories dropped",
                )
                continue
            if identifier in kept:
                self.add(
                    "duplicate category id",
                    where,
                    f"used by {kept[identifier]['name']!r} and by {name!r:.40}",
                    "categories dropped",
                )
                continue
            entry = dict(entry)
            if not isinstance(name, str) or not name:
                self.add(
                    "category name", where, f"must be a text, got {name!r:.40}", "categories named"
                )
                entry["name"] = f"class_{identifier}"
            elif name in (other["name"] for other in kept.values()):
                self.add(
                    "duplicate category name", where, f"{name!r} is used twice", "categories named"
                )
                entry["name"] = f"{name}_{identifier}"
            kept[identifier] = entry
        self._category_gaps(sorted(kept))
        if self.flip:
            self._left_and_right([entry["name"] for entry in kept.values()])
        return list(kept.values())

    def _category_gaps(self, identifiers: Sequence[int]) -> None:
        for low, high in itertools.pairwise(identifiers):
            if high - low > 1:
                gap = str(low + 1) if high - low == 2 else f"{low + 1}..{high - 1}"
                self.add(
                    "category gap", f"categories {low} and {high}", f"no category has id {gap}"
                )

    def _left_and_right(self, names: Sequence[str]) -> None:
        folded = {name.lower(): name for name in names}
        for name in names:
            mirrored = _mirrored_name(name)
            if mirrored is None:
                continue
            other = folded.get(mirrored.lower())
            if other is None:
                advice = "there is no class for its mirror image; train with data.flip: off"
            else:
                advice = (
                    f"a flip must swap it with {other!r}: data.flip: {{{name}: {other}}}, or off"
                )
            if other is None or "left" in name.lower():
                self.add("left/right with flip on", f"class {name!r}", advice)

    def images(self, progress: Callable[[int, int], None] | None) -> list[_Entry]:
        """Check the images and their files; return the repaired ones."""
        kept: list[_Entry] = []
        files: dict[str, int] = {}
        entries = self.content["images"]
        self.report.images = len(entries)
        for position, (entry, found) in enumerate(zip(entries, self._decoded(), strict=True)):
            if progress is not None:
                progress(position + 1, len(entries))
            identifier, name = entry.get("id"), entry.get("file_name")
            where = f"image {identifier} ({name})"
            if not _is_id(identifier):
                what = f"id must be an integer, got {identifier!r:.40}"
                self.add("image id", f"images[{position}]", what, "images dropped")
                continue
            if identifier in self.sizes:
                what = "the id is used by an image above"
                self.add("duplicate image id", where, what, "images dropped")
                continue
            self.sizes[identifier] = None
            if isinstance(found, tuple) and name in files:
                what = f"the file is also that of image {files[name]}"
                self.add("duplicate file", where, what, "images dropped")
                continue
            if isinstance(found, str):
                kind, what = found.split(": ", 1)
                self.add(kind, where, what, "images dropped")
                continue
            files[name] = identifier
            entry = dict(entry)
            if self._check_size(entry, found, where):
                self._check_depth(entry, where)
                self.sizes[identifier] = found
                kept.append(entry)
        return kept

    def _decoded(self) -> Iterator[tuple[int, int] | str]:
        """Height and width of each image, or "kind: what" of its defect; in order."""

        def decode(entry: _Entry) -> tuple[int, int] | str:
            name = entry.get("file_name")
            if not isinstance(name, str) or not name:
                return f"missing image: file_name must be a text, got {name!r:.40}"
            if leaves_folder(name):
                return f"image outside: file_name {name!r} leaves the folder {self.root}"
            file = self.root / name
            if not is_file(file):
                return f"missing image: no such file {file}"
            try:
                height, width = read_image(file).shape[:2]
            except DataError as error:
                return f"corrupt image: {error}"
            return height, width

        entries = self.content["images"]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            # In portions, so that a large file does not queue a task for each of its images.
            for start in range(0, len(entries), 256):
                yield from pool.map(decode, entries[start : start + 256])

    def _check_size(self, entry: _Entry, size: tuple[int, int], where: str) -> bool:
        """Check height and width of an image entry; return whether its boxes can be trusted."""
        stated = (entry.get("height"), entry.get("width"))
        if None in stated:
            what = f"height and width are not stated; the file has {size[0]} x {size[1]}"
            self.add("size not stated", where, what, "sizes written")
            entry["height"], entry["width"] = size
            return True
        if stated == size:
            return True
        turned = " (turned by EXIF)" if stated == size[::-1] else ""
        what = (
            f"the json says height {stated[0]!r:.20} and width {stated[1]!r:.20}, "
            f"the file has {size[0]} and {size[1]}{turned}"
        )
        self.add("size mismatch", where, what, "images dropped")
        return False

    def _check_depth(self, entry: _Entry, where: str) -> None:
        name = entry.get("depth_file_name")
        if name is None:
            return
        try:
            if not isinstance(name, str):
                raise DataError(f"depth_file_name must be a text, got {name!r:.40}")
            if leaves_folder(name):
                raise DataError(f"depth_file_name {name!r} leaves the folder {self.root}")
            read_depth(self.root / name)
        except DataError as error:
            self.add("depth map", where, str(error), "depth entries removed")
            del entry["depth_file_name"]

    def annotations(self, categories: Sequence[_Entry]) -> list[_Entry]:
        """Check the annotations; return the repaired ones."""
        known = {entry["id"] for entry in categories}
        entries = self.content["annotations"]
        self.report.annotations = len(entries)
        used = {entry.get("id") for entry in entries if _is_id(entry.get("id"))}
        self._next_id = max(used, default=0) + 1
        self._seen_ids: set[int] = set()
        self._seen_boxes: dict[tuple[Any, ...], object] = {}
        self._as_corners = Counter[bool]()
        self._lost = 0
        kept = []
        for position, entry in enumerate(entries):
            repaired = self._annotation(position, dict(entry), known)
            if repaired is not None:
                kept.append(repaired)
        if self._lost:
            self.report.remarks.append(
                f"{counted(self._lost, 'annotation')} of images that are named above"
            )
        self._remark_corners()
        return kept

    def _annotation(self, position: int, entry: _Entry, known: set[int]) -> _Entry | None:
        """Check one annotation; return it repaired, None if it has to go."""
        image, identifier = entry.get("image_id"), entry.get("id")
        where = f"image {image}, annotation {identifier}"
        if not _is_id(identifier):
            where = f"image {image}, annotations[{position}]"
            self.add(
                "annotation id", where, f"must be an integer, got {identifier!r:.40}", _RENUMBER
            )
            entry["id"] = self._take_id()
        elif identifier in self._seen_ids:
            what = "the id is used by an annotation above"
            self.add("duplicate annotation id", where, what, _RENUMBER)
            entry["id"] = self._take_id()
        self._seen_ids.add(entry["id"])
        usable = True
        if not _is_id(image) or image not in self.sizes:
            self.add("unknown image", where, f"no image has id {image!r:.40}", _DROP)
            usable = False
        category = entry.get("category_id")
        if not _is_id(category) or category not in known:
            self.add("unknown category", where, f"no category has id {category!r:.40}", _DROP)
            usable = False
        if not is_box(entry.get("bbox")):
            what = f"must be numbers x, y, width, height, got {entry.get('bbox')!r:.60}"
            self.add("malformed box", where, what, _DROP)
            return None
        size = self.sizes.get(image) if isinstance(image, int) else None
        if usable and size is None:
            self._lost += 1
        entry["bbox"] = list(entry["bbox"])
        if not self._check_box(entry, size, where) or not usable or size is None:
            return None
        self._check_mask(entry, size, where)
        key = (image, category, *entry["bbox"])
        if not entry.get("iscrowd") and key in self._seen_boxes:
            what = f"same class and box as annotation {self._seen_boxes[key]}"
            self.add("duplicate annotation", where, what, _DROP)
            return None
        self._seen_boxes.setdefault(key, entry["id"])
        return entry

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _check_box(self, entry: _Entry, size: tuple[int, int] | None, where: str) -> bool:
        """Check a box by itself and, where the size is known, against its image."""
        x, y, width, height = given = entry["bbox"]
        if width < 0 or height < 0:
            what = f"bbox {given} has a negative side"
            self.add("inverted box", where, what, "boxes turned round")
            x, width = min(x, x + width), abs(width)
            y, height = min(y, y + height), abs(height)
            entry["bbox"] = [x, y, width, height]
        if width == 0 or height == 0:
            self.add("empty box", where, f"bbox {given} has no area", _DROP)
            return False
        if size is None:
            return True
        image_height, image_width = size
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, image_width), min(y + height, image_height)
        outside = max(left - x, top - y, x + width - right, y + height - bottom)
        self._as_corners[
            outside > EDGE_TOLERANCE
            and x < width <= image_width + EDGE_TOLERANCE
            and y < height <= image_height + EDGE_TOLERANCE
        ] += 1
        if outside > EDGE_TOLERANCE:
            what = f"bbox {given} leaves the image of {image_width} x {image_height} pixels"
            if right <= left or bottom <= top:
                self.add("box outside", where, what, _DROP)
                return False
            self.add("box partly outside", where, what, "boxes clipped")
            entry["bbox"] = [left, top, right - left, bottom - top]
        if min(right - left, bottom - top) < SMALLEST_SIDE:
            what = f"bbox {given} has a side under {SMALLEST_SIDE:.0f} px in the image"
            self.add("small box", where, what, _DROP)
            return False
        return True

    def _check_mask(self, entry: _Entry, size: tuple[int, int], where: str) -> None:
        """Compare a box with its mask, where there is one."""
        if entry.get("segmentation") in (None, []):
            return
        try:
            encoded = encode_mask(entry["segmentation"], *size, "the annotation", coco_mask)
        except DataError as error:
            self.add("damaged mask", where, str(error), "masks removed")
            del entry["segmentation"]
            return
        if encoded is None or entry.get("iscrowd"):
            return
        tight = [float(value) for value in coco_mask.toBbox(encoded)]
        if min(tight[2:]) == 0:
            self.add("empty mask", where, "the mask has no pixel", "masks removed")
            del entry["segmentation"]
            return
        box = entry["bbox"]
        if _is_loose(box, tight) and min(tight[2:]) >= SMALLEST_SIDE:
            self.add(
                "loose box", where, f"bbox {box}, its mask spans {tight}", "boxes fitted to masks"
            )
            entry["bbox"] = tight

    def _remark_corners(self) -> None:
        """Say so if the boxes look like corners instead of sizes."""
        if self._as_corners[True] > 0.2 * self._as_corners.total():
            self.report.remarks.append(
                "many boxes leave their image but would fit as x1, y1, x2, y2; "
                "COCO boxes are x, y, width, height"
            )


def check_annotations(
    annotation_file: str | Path,
    image_root: str | Path | None = None,
    *,
    flip: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Find every defect of a COCO file; every image is decoded.

    Args:
        annotation_file: The COCO json.
        image_root: Folder that file names are relative to; the json's own folder if None.
        flip: Whether training will flip images, which class names with left and right forbid.
        progress: Called after each image with the number done and the number of all.

    Returns:
        The defects, in the order categories, images, annotations, and the repaired object.

    Raises:
        DataError: The file cannot be read as COCO at all, or the image folder does not exist.
    """
    path = Path(annotation_file)
    root = path.parent if image_root is None else Path(image_root)
    content = parse_annotation_file(path, with_masks=True)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of images")
    walk = _Walk(path, root, content, flip=flip)
    categories = walk.categories()
    images = walk.images(progress)
    annotations = walk.annotations(categories)
    report = walk.report
    if not content["images"]:
        walk.add("no images", str(path), "'images' is empty")
    if not content["categories"]:
        walk.add("no categories", str(path), "'categories' is empty")
    if not content["annotations"]:
        walk.add("no annotations", str(path), "'annotations' is empty")
    report.remarks += _remarks(categories, images, annotations)
    report.repaired = {
        **content,
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    return report


def _remarks(
    categories: Sequence[_Entry], images: Sequence[_Entry], annotations: Sequence[_Entry]
) -> list[str]:
    """What is worth knowing of the sound part of a file."""
    remarks = []
    filled = {entry["image_id"] for entry in annotations}
    background = sum(entry["id"] not in filled for entry in images)
    if background:
        remarks.append(f"{counted(background, 'image')} without a box, trained as background")
    crowds = sum(bool(entry.get("iscrowd") or entry.get("difficult")) for entry in annotations)
    if crowds:
        remarks.append(f"{counted(crowds, 'crowd or difficult object')}: not trained on")
    used = {entry["category_id"] for entry in annotations}
    empty = [entry["name"] for entry in categories if entry["id"] not in used]
    if empty and annotations:
        remarks.append(f"classes without an annotation: {', '.join(empty)}")
    return remarks


def finds_images(report: Report, folder: Path) -> bool:
    """Whether every image of the repaired copy is found from a folder that the copy lies in."""
    return all(is_file(folder / entry["file_name"]) for entry in report.repaired["images"])


def write_repaired(report: Report, out: str | Path) -> None:
    """Write the repaired copy of a checked file, at once or not at all.

    Args:
        report: What `check_annotations` returned.
        out: The file to write; not the checked one.

    Raises:
        ValueError: `out` is the checked file.
        DataError: `out` cannot be written.
    """
    out = Path(out)
    if out.exists() and out.samefile(report.path):
        raise ValueError(f"--fix must name another file than the checked one, got {out}")
    write_annotation_file(report.repaired, out)
