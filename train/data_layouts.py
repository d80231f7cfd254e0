"""Pascal VOC 2012 and Cityscapes as they are published, written as a data folder.

Letters: H x W pixels of an image. Boxes are x, y, width, height as in COCO files, in pixels, from
the upper left corner of the first pixel.

Images are not copied. File names in train.json and val.json are relative to the folder that holds
them; where that is not the data set's own, it gets a link to the folder of images.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from boxseg.errors import DataError, counted
from boxseg.runtime.images import is_file
from boxseg.train.annotation_table import refuse_foreign_folder, write_annotation_file
from boxseg.train.coco import WIDE_GREY, image_size, read_stored

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""In the order of the data set; category ids count from 1."""

CITYSCAPES_LABELS = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""The labels that have instances, by the data set's number; category ids count them from 1."""

_VOC_VOID = 255
"""Pixels of borders and of what the data set does not judge."""
_GROUPS_BELOW = 1000
"""Smaller numbers of Cityscapes are labels: groups that nobody took apart. Others are instances,
label * 1000 + n."""

Progress = Callable[[int, int], None]
"""Called after each image with the number done and the number of all."""
_Entry = dict[str, Any]


@dataclass
class Written:
    """What one of the two files holds."""

    path: Path
    images: int
    objects: int
    """Without the unjudged."""
    unjudged: int
    """Crowds, difficult objects, and objects without a pixel in a file of masks."""
    notes: list[str] = field(default_factory=list)
    """One line for each thing worth telling a person."""


class _CocoFile:
    """A COCO file that grows image by image."""

    def __init__(self, path: Path, description: str, classes: Sequence[str]) -> None:
        self.path = path
        self.split = path.stem
        self.content: _Entry = {
            "info": {"description": description, "split": self.split},
            "licenses": [],
            "images": [],
            "annotations": [],
            "categories": [{"id": row + 1, "name": name} for row, name in enumerate(classes)],
        }
        self.unmasked: list[str] = []
        """Objects that have no pixel in their file of masks."""
        self.astray: list[str] = []
        """Objects whose mask lies mostly outside their box."""

    def add_image(self, name: str, size: tuple[int, int]) -> None:
        """Enter an image of H, W pixels; objects that follow are its own."""
        images = self.content["images"]
        images.append(
            {"id": len(images) + 1, "file_name": name, "height": size[0], "width": size[1]}
        )

    def add_object(self, category: int, values: _Entry) -> None:
        """Enter an object of the last image."""
        entries = self.content["annotations"]
        entries.append(
            {
                "id": len(entries) + 1,
                "image_id": len(self.content["images"]),
                "category_id": category,
                "iscrowd": 0,
                **values,
            }
        )

    def write(self) -> Written:
        """Write the file and say what it holds."""
        write_annotation_file(self.content, self.path)
        entries = self.content["annotations"]
        unjudged = sum(
            bool(entry["iscrowd"] or entry.get("difficult") or entry.get("ignore"))
            for entry in entries
        )
        written = Written(self.path, len(self.content["images"]), len(entries) - unjudged, unjudged)
        if self.unmasked:
            written.notes.append(
                f"{counted(len(self.unmasked), 'object')} without a pixel in the file of masks: "
                f"targets, but not judged; first {self.unmasked[0]}"
            )
        if self.astray:
            written.notes.append(
                f"warning: {counted(len(self.astray), 'mask')} mostly outside the box of the same "
                f"number; are masks and boxes of one release? First {self.astray[0]}"
            )
        return written


def _prepare_folder(root: Path, out: Path, images: str, description: str) -> None:
    """Make the data folder, with a link to the images if they lie elsewhere.

    Raises:
        DataError: The folder holds other data, or cannot be written.
    """
    refuse_foreign_folder(out, description, "train.json and val.json")
    source, link = (root / images).resolve(), out / images
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not link.exists() and not link.is_symlink():
            link.symlink_to(source, target_is_directory=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror}") from None
    if not link.exists() or not link.samefile(source):
        raise DataError(f"{link}: is not {source}; name a new folder as OUT")


def _read_numbers(path: Path, size: tuple[int, int]) -> NDArray[np.int64]:
    """Read a picture of numbers: palette indices, or grey of 8 or 16 bits.

    Args:
        path: The file.
        size: H, W that it must have.

    Returns:
        The stored numbers, (H, W), columns first in memory as pycocotools wants masks.

    Raises:
        DataError: The file is damaged, too large, holds colours, or has another size.
    """
    numbers, mode = read_stored(path, "picture of numbers")
    if mode not in ("P", "L", *WIDE_GREY):
        raise DataError(
            f"{path}: must hold one number per pixel, palette or grey, got mode {mode}; "
            "take the file as the data set has it"
        )
    if numbers.shape != size:
        raise DataError(
            f"{path}: height x width is {numbers.shape[0]} x {numbers.shape[1]}, "
            f"its image has {size[0]} x {size[1]}"
        )
    return np.asfortranarray(numbers.astype(np.int64))


def _encode(mask: NDArray[np.bool_]) -> _Entry:
    """Return the tight box, the area and the run-length code of a mask with pixels, (H, W)."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "bbox": [float(value) for value in coco_mask.toBbox(encoded)],
        "area": int(coco_mask.area(encoded)),
        "segmentation": {
            "size": list(mask.shape),
            "counts": encoded["counts"].decode("ascii"),
        },
    }


def _require_folders(root: Path, folders: Sequence[str]) -> None:
    """Refuse a folder that is not laid out as the data set is."""
    for name in folders:
        if not (root / name).is_dir():
            raise DataError(f"{root}: has no folder {name}; ROOT holds {', '.join(folders)}")


def _write_splits(
    out: Path,
    description: str,
    classes: Sequence[str],
    names: Mapping[str, Sequence[str]],
    add_image: Callable[[_CocoFile, str], None],
    progress: Progress | None,
) -> list[Written]:
    """Make one file for each split, and write them when all are made.

    Args:
        out: The data folder.
        description: Of the data set.
        classes: Category names.
        names: Images of each split, train and val.
        add_image: Enters an image with its objects.
        progress: Called after each image.
    """
    total, done = sum(map(len, names.values())), 0
    files = []
    for split, listed in names.items():
        file = _CocoFile(out / f"{split}.json", description, classes)
        for name in listed:
            add_image(file, name)
            done += 1
            if progress is not None:
                progress(done, total)
        files.append(file)
    return [file.write() for file in files]


# --- Pascal VOC -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _VocObject:
    """One object of an annotation file."""

    category: int
    """From 1."""
    box: tuple[float, float, float, float]
    """x, y, width, height."""
    difficult: bool


def _read_list(path: Path) -> list[str]:
    """Read names of images, one a line; of paths and suffixes, as lists of SBD have, none stays."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such list of images") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 (byte {error.start})") from None
    names = [Path(words[0]).name.removesuffix(".jpg") for words in map(str.split, lines) if words]
    if not names:
        raise DataError(f"{path}: names no image")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{path}: names {name} twice; take one of the lines out")
        seen.add(name)
    return names


def _corner(box: ET.Element, key: str, where: str) -> float:
    """Read one coordinate of a box; some files have fractions."""
    text = box.findtext(key)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {key} must be a number, got {text!r:.40}")
    return value


def _read_objects(path: Path) -> list[_VocObject]:
    """Read the objects of an annotation file, in its order.

    Corners are whole pixels counted from 1, both inside the box: 1..1 is the first pixel alone.

    Raises:
        DataError: The file is missing, is no XML, or an object in it is incomplete.
    """
    try:
        tree = ET.fromstring(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ET.ParseError, ValueError, LookupError) as error:  # the last two: odd encodings
        raise DataError(f"{path}: broken XML ({error})") from None
    found = []
    for number, entry in enumerate(tree.findall("object"), start=1):
        where = f"{path}: object {number}"
        name = (entry.findtext("name") or "").strip()
        if name not in VOC_CLASSES:
            raise DataError(f"{where}: {name!r:.40} is none of the 20 classes of VOC")
        box = entry.find("bndbox")
        if box is None:
            raise DataError(f"{where}: has no bndbox")
        x1, y1, x2, y2 = (_corner(box, key, where) for key in ("xmin", "ymin", "xmax", "ymax"))
        if x2 < x1 or y2 < y1:
            raise DataError(
                f"{where}: xmin, ymin, xmax, ymax are {x1:g}, {y1:g}, {x2:g}, {y2:g}; "
                "xmin and ymin must be the smaller"
            )
        found.append(
            _VocObject(
                category=VOC_CLASSES.index(name) + 1,
                box=(x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1),
                difficult=(entry.findtext("difficult") or "0").strip() not in ("", "0"),
            )
        )
    return found


def _is_astray(mask: NDArray[np.bool_], box: tuple[float, float, float, float]) -> bool:
    """Whether less than half of a mask lies in a box."""
    x, y, width, height = box
    rows = slice(max(round(y), 0), max(round(y + height), 0))
    columns = slice(max(round(x), 0), max(round(x + width), 0))
    return 2 * int(mask[rows, columns].sum()) < int(mask.sum())


def _add_voc_image(file: _CocoFile, root: Path, name: str, *, listed: Path, masks: bool) -> None:
    """Enter an image of VOC with its objects.

    Args:
        file: Where to.
        root: Folder of the data set.
        name: Of the image, without suffix.
        listed: The list that names it, for messages.
        masks: Whether masks are wanted too.
    """
    image = root / "JPEGImages" / f"{name}.jpg"
    if not is_file(image):
        raise DataError(f"{image}: no such image file, but {listed} names it; add it or its line")
    size = image_size(image)
    file.add_image(f"JPEGImages/{name}.jpg", size)
    annotations = root / "Annotations" / f"{name}.xml"
    objects = _read_objects(annotations)
    numbers = None
    if masks:
        path = root / "SegmentationObject" / f"{name}.png"
        if not is_file(path):
            cure = "; --boxes-only leaves masks out of train.json" if file.split != "val" else ""
            raise DataError(f"{path}: no such file of masks, but {listed} names {name}{cure}")
        numbers = _read_numbers(path, size)
        highest = int(numbers.max(where=numbers != _VOC_VOID, initial=0))
        if highest > len(objects):
            raise DataError(
                f"{path}: has a mask of object {highest}, but {annotations} has {len(objects)} "
                "objects; take both from one release"
            )
    for number, item in enumerate(objects, start=1):
        values: _Entry = {"bbox": list(item.box), "area": item.box[2] * item.box[3]}
        if item.difficult:
            values["difficult"] = 1
        mask = None if numbers is None else numbers == number
        if mask is not None and mask.any():
            values = {**values, **_encode(mask), "bbox": list(item.box)}
            if _is_astray(mask, item.box):
                file.astray.append(f"{name}, object {number}")
        elif mask is not None and not item.difficult:
            values["ignore"] = 1
            file.unmasked.append(f"{name}, object {number}")
        file.add_object(item.category, values)


def write_voc(
    root: str | Path,
    out: str | Path | None = None,
    *,
    train_list: str | Path | None = None,
    boxes_only: bool = False,
    progress: Progress | None = None,
) -> list[Written]:
    """Write Pascal VOC's segmentation sets as train.json and val.json.

    Boxes are those of Annotations/*.xml. Masks are those of SegmentationObject/*.png, where pixels
    of number n belong to the n-th object of the XML file. Difficult objects stay, marked as such:
    they are neither targets nor judged. Masks end at a border that nobody judges, so that boxes are
    some pixels wider than their masks.

    Args:
        root: The folder VOC2012.
        out: The data folder; `root` if None.
        train_list: Names of the images to train on, such as the list of SBD that is known as
            train_aug; ImageSets/Segmentation/train.txt if None.
        boxes_only: Leave masks out of train.json; val.json has them always.
        progress: Called after each image.

    Returns:
        What train.json and val.json hold.

    Raises:
        DataError: Something is missing or does not fit together; neither file is written then.
    """
    root = Path(root)
    out = root if out is None else Path(out)
    _require_folders(
        root, ("JPEGImages", "Annotations", "SegmentationObject", "ImageSets/Segmentation")
    )
    sets = root / "ImageSets" / "Segmentation"
    lists = {"train": sets / "train.txt", "val": sets / "val.txt"}
    if train_list is not None:
        lists["train"] = Path(train_list)
    names = {split: _read_list(path) for split, path in lists.items()}
    judged = set(names["val"])
    shared = [name for name in names["train"] if name in judged]
    if shared:
        raise DataError(
            f"{lists['train']}: shares {counted(len(shared), 'image')} with {lists['val']}, first "
            f"{shared[0]}; take the lines out"
        )
    description = "Pascal VOC 2012, written by boxseg data voc"
    _prepare_folder(root, out, "JPEGImages", description)

    def add_image(file: _CocoFile, name: str) -> None:
        masks = file.split == "val" or not boxes_only
        _add_voc_image(file, root, name, listed=lists[file.split], masks=masks)

    return _write_splits(out, description, VOC_CLASSES, names, add_image, progress)


# --- Cityscapes -----------------------------------------------------------------------------------

_IMAGE_END = "_leftImg8bit.png"
_INSTANCES_END = "_gtFine_instanceIds.png"


def _cityscapes_frames(root: Path, split: str) -> list[str]:
    """Return CITY/FRAME of every image of a split, sorted.

    Raises:
        DataError: There is none, or an image or a file of instances has no partner.
    """
    images, instances = root / "leftImg8bit" / split, root / "gtFine" / split
    frames, labelled = (
        {str(path.relative_to(folder)).removesuffix(end) for path in folder.glob(f"*/*{end}")}
        for folder, end in ((images, _IMAGE_END), (instances, _INSTANCES_END))
    )
    for frame in sorted(frames ^ labelled):
        image, label = images / (frame + _IMAGE_END), instances / (frame + _INSTANCES_END)
        if frame in frames:
            raise DataError(f"{label}: no such file, but {image} is there; unpack all of gtFine")
        raise DataError(f"{image}: no such file, but {label} is there; unpack all of leftImg8bit")
    if not frames:
        raise DataError(f"{images}: holds no CITY/*{_IMAGE_END}")
    return sorted(frames)


def _add_cityscapes_image(file: _CocoFile, root: Path, frame: str, *, masks: bool) -> None:
    """Enter an image of Cityscapes with its instances and groups, in the order of their numbers."""
    split = file.split
    name = f"leftImg8bit/{split}/{frame}{_IMAGE_END}"
    size = image_size(root / name)
    file.add_image(name, size)
    numbers = _read_numbers(root / "gtFine" / split / (frame + _INSTANCES_END), size)
    labels = list(CITYSCAPES_LABELS)
    for number in np.unique(numbers).tolist():
        group = number < _GROUPS_BELOW
        label = number if group else number // _GROUPS_BELOW
        if label not in CITYSCAPES_LABELS:
            continue
        values = _encode(numbers == number)
        if not masks:
            del values["segmentation"]
        file.add_object(labels.index(label) + 1, values | {"iscrowd": int(group)})


def write_cityscapes(
    root: str | Path,
    out: str | Path | None = None,
    *,
    boxes_only: bool = False,
    progress: Progress | None = None,
) -> list[Written]:
    """Write the finely labelled images of Cityscapes as train.json and val.json.

    Boxes are those of the pixels of each number in gtFine/SPLIT/CITY/*_gtFine_instanceIds.png.
    Groups that nobody took apart are crowds. AP is then COCO's; the data set's own differs in what
    it does with very small instances.

    Args:
        root: The folder that holds gtFine and leftImg8bit.
        out: The data folder; `root` if None.
        boxes_only: Leave masks out of train.json; val.json has them always.
        progress: Called after each image.

    Returns:
        What train.json and val.json hold.

    Raises:
        DataError: Something is missing or does not fit together; neither file is written then.
    """
    root = Path(root)
    out = root if out is None else Path(out)
    splits = ("train", "val")
    _require_folders(
        root, [f"{kind}/{split}" for kind in ("leftImg8bit", "gtFine") for split in splits]
    )
    frames = {split: _cityscapes_frames(root, split) for split in splits}
    description = "Cityscapes, written by boxseg data cityscapes"
    _prepare_folder(root, out, "leftImg8bit", description)

    def add_image(file: _CocoFile, frame: str) -> None:
        masks = file.split == "val" or not boxes_only
        _add_cityscapes_image(file, root, frame, masks=masks)

    classes = tuple(CITYSCAPES_LABELS.values())
    return _write_splits(out, description, classes, frames, add_image, progress)
