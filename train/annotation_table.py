"""A COCO file as arrays: every entry checked, masks left behind unless they are asked for.

Letters: I images, N objects, C categories, each in the order of the file.

A file as the standard describes it is decoded straight into typed records, which skips polygons
without making a number of each coordinate. Whatever does not fit these records is read again by
Python's own parser, which either finds the words for what is wrong or bears it.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Generic, NoReturn, Self, TypeGuard, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from boxseg.errors import DataError

_LARGEST = 1e9
"""Pixels that no coordinate of a box reaches."""
_NO_NUMBER = -1.0


def _without_masks(entry: dict[str, Any]) -> dict[str, Any]:
    """Delete the mask of an annotation while the file is being parsed."""
    entry.pop("segmentation", None)
    return entry


def read_bytes(path: Path) -> bytes:
    """Read an annotation file, not parsed.

    Raises:
        DataError: The file is missing or cannot be read.
    """
    if not path.is_file():
        what = "is a folder, not a COCO json" if path.is_dir() else "no such annotation file"
        raise DataError(f"{path}: {what}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(path: Path, text: bytes, *, with_masks: bool) -> dict[str, Any]:
    """Parse a file and make sure that its three lists are there."""
    try:
        content = json.loads(text, object_hook=None if with_masks else _without_masks)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: broken json at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 (byte {error.start})") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: broken json: {error}") from None
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
    return _parse(Path(path), read_bytes(Path(path)), with_masks=with_masks)


def refuse_foreign_folder(folder: Path, description: str, purpose: str) -> None:
    """Do not write over annotations of another origin.

    Args:
        folder: Where train.json and val.json are to be written.
        description: The origin, as info.description of the files says it.
        purpose: What the folder is for, for messages.

    Raises:
        DataError: It is a file, or holds a train.json or val.json that does not say so.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; name a folder for {purpose}")
    for name in ("train.json", "val.json"):
        file = folder / name
        if not file.exists():
            continue
        try:
            ours = json.loads(file.read_bytes())["info"]["description"] == description
        except (OSError, ValueError, KeyError, TypeError):
            ours = False
        if not ours:
            raise DataError(f"{file}: holds other data; name a new folder for {purpose}")


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


def is_box(value: object) -> TypeGuard[Sequence[float]]:
    """Whether a value of a json is four finite numbers of a size that pixels can have."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(
            isinstance(number, int | float)
            and not isinstance(number, bool)
            and -_LARGEST < number < _LARGEST
            for number in value
        )
    )


class Texts:
    """Many texts in one array of bytes, which forked processes share without copying it."""

    def __init__(self, letters: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        """Keep the UTF-8 of all texts and where each of them ends."""
        self.letters = letters
        self.ends = ends

    @classmethod
    def of(cls, values: Iterable[str]) -> Self:
        """Store texts."""
        coded = [value.encode("utf-8", "surrogatepass") for value in values]
        ends = np.cumsum([len(text) for text in coded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(coded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        """One text."""
        start = int(self.ends[index - 1]) if index else 0
        return self.letters[start : self.ends[index]].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        """All texts in order."""
        return (self[index] for index in range(len(self)))

    def take(self, rows: NDArray[np.int64]) -> "Texts":
        """Return the texts of some rows."""
        return Texts.of(self[int(row)] for row in rows)


@dataclass(frozen=True)
class AnnotationTable:
    """What a COCO file says, in arrays; ids are unique and all that they refer to is there."""

    path: Path
    image_ids: NDArray[np.int64]
    """(I,)."""
    file_names: Texts
    depth_names: Texts
    """Empty where no depth map is named."""
    sizes: NDArray[np.float64]
    """Height and width as the file states them, NaN where it does not, (I, 2)."""
    object_ids: NDArray[np.int64]
    """For messages, (N,); the smallest integer where it is missing or no integer."""
    owners: NDArray[np.int64]
    """Id of each object's image, (N,)."""
    labels: NDArray[np.int64]
    """Id of each object's category, (N,)."""
    boxes: NDArray[np.float64]
    """x, y, width, height in pixels of the image, (N, 4)."""
    unjudged: NDArray[np.bool_]
    """Crowds and difficult objects, (N,)."""
    category_ids: NDArray[np.int64]
    """(C,)."""
    category_names: Texts
    segmentations: Sequence[object] | None = None
    """Masks in the order of the objects, where they were asked for."""

    def place(self, row: int) -> str:
        """Name an annotation in a message."""
        identifier: int | None = int(self.object_ids[row])
        if identifier == np.iinfo(np.int64).min:
            identifier = None
        return f"{self.path}: annotations[{row}] (id {identifier}, image {self.owners[row]})"

    def image_place(self, row: int) -> str:
        """Name an image's entry in a message."""
        return f"{self.path}: images[{row}] (id {self.image_ids[row]})"

    def segmentation(self, row: int) -> object:
        """Return the mask of an annotation as the file writes it.

        Raises:
            DataError: The annotation has none.
        """
        assert self.segmentations is not None
        value = self.segmentations[row]
        if isinstance(value, msgspec.Raw):
            value = msgspec.json.decode(value) if len(bytes(value)) else _MISSING
        if value is _MISSING:
            raise DataError(
                f"{self.place(row)}: the recipe asks for masks, 'segmentation' is missing"
            )
        return value


_MISSING = object()

# --- the quick way --------------------------------------------------------------------------------

_Number = int | float | None
_Flag = bool | int | float | None


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    height: _Number = None
    width: _Number = None
    depth_file_name: str | None = None


class _Object(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    id: _Flag | str = None
    iscrowd: _Flag = None
    difficult: _Flag = None


class _ObjectWithMask(_Object, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw(b"")


_Record = TypeVar("_Record")


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str


class _File(msgspec.Struct, Generic[_Record], gc=False):
    images: list[_Image]
    annotations: list[_Record]
    categories: list[_Category]


def _decode(path: Path, text: bytes, *, with_masks: bool) -> AnnotationTable | None:
    """Read a file that is as it should be; None if anything about it needs a closer look."""
    try:
        kind: type[_File[Any]] = _File[_ObjectWithMask] if with_masks else _File[_Object]
        file = msgspec.json.decode(text, type=kind)
        images, objects, categories = file.images, file.annotations, file.categories
        boxes = np.fromiter(chain.from_iterable(entry.bbox for entry in objects), np.float64)
        named = all(entry.file_name for entry in images) and all(item.name for item in categories)
        if not named or not (np.abs(boxes) < _LARGEST).all():
            return None
        return AnnotationTable(
            path=path,
            image_ids=np.fromiter((entry.id for entry in images), np.int64),
            file_names=Texts.of(entry.file_name for entry in images),
            depth_names=Texts.of(entry.depth_file_name or "" for entry in images),
            sizes=np.array(
                [(entry.height, entry.width) for entry in images], dtype=np.float64
            ).reshape(-1, 2),
            object_ids=_object_ids([entry.id for entry in objects]),
            owners=np.fromiter((entry.image_id for entry in objects), np.int64),
            labels=np.fromiter((entry.category_id for entry in objects), np.int64),
            boxes=boxes.reshape(-1, 4),
            unjudged=np.fromiter(
                (bool(entry.iscrowd or entry.difficult) for entry in objects), np.bool_
            ),
            category_ids=np.fromiter((entry.id for entry in categories), np.int64),
            category_names=Texts.of(entry.name for entry in categories),
            segmentations=[entry.segmentation for entry in objects] if with_masks else None,
        )
    except (msgspec.MsgspecError, UnicodeError, OverflowError, RecursionError):
        return None


def _object_ids(values: Iterable[object]) -> NDArray[np.int64]:
    """Return ids for messages; the smallest integer stands for anything else."""
    nothing = int(np.iinfo(np.int64).min)
    return np.fromiter(
        (
            value
            if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
            else nothing
            for value in values
        ),
        np.int64,
    )


# --- the patient way ------------------------------------------------------------------------------


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


def _side(value: object) -> float:
    """Read a stated height or width; what is no number fits no image."""
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST:
        return _NO_NUMBER
    return float(value)


def _examine(path: Path, text: bytes, *, with_masks: bool) -> AnnotationTable:
    """Read a file entry by entry, and say what is wrong with the first that is."""
    content = _parse(path, text, with_masks=with_masks)
    category_ids, category_names = [], []
    for position, entry in enumerate(content["categories"]):
        where = f"{path}: categories[{position}]"
        category_ids.append(_identifier(entry, "id", where))
        category_names.append(_text(entry, "name", where))
    image_ids, file_names = [], []
    for position, entry in enumerate(content["images"]):
        where = f"{path}: images[{position}] (id {entry.get('id')!r:.40})"
        image_ids.append(_identifier(entry, "id", where))
        file_names.append(_text(entry, "file_name", where))
    owners, labels, boxes, unjudged = [], [], [], []
    for position, entry in enumerate(content["annotations"]):
        where = (
            f"{path}: annotations[{position}] "
            f"(id {entry.get('id')!r:.40}, image {entry.get('image_id')!r:.40})"
        )
        labels.append(_identifier(entry, "category_id", where))
        owners.append(_identifier(entry, "image_id", where))
        box = entry.get("bbox")
        if not is_box(box):
            raise DataError(f"{where}: 'bbox' must be numbers x, y, width, height, got {box!r:.60}")
        boxes.append(box)
        unjudged.append(bool(entry.get("iscrowd") or entry.get("difficult")))
    return AnnotationTable(
        path=path,
        image_ids=np.array(image_ids, dtype=np.int64),
        file_names=Texts.of(file_names),
        depth_names=Texts.of(
            str(entry.get("depth_file_name") or "") for entry in content["images"]
        ),
        sizes=np.array(
            [(_side(entry.get("height")), _side(entry.get("width"))) for entry in content["images"]]
        ).reshape(-1, 2),
        object_ids=_object_ids(entry.get("id") for entry in content["annotations"]),
        owners=np.array(owners, dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        unjudged=np.array(unjudged, dtype=np.bool_),
        category_ids=np.array(category_ids, dtype=np.int64),
        category_names=Texts.of(category_names),
        segmentations=(
            [entry.get("segmentation", _MISSING) for entry in content["annotations"]]
            if with_masks
            else None
        ),
    )


# --- both -----------------------------------------------------------------------------------------


def _first_repeated(values: Sequence[Any]) -> int | None:
    """Return the position of the first value that an earlier one equals."""
    seen = set()
    for position, value in enumerate(values):
        if value in seen:
            return position
        seen.add(value)
    return None


def _check(table: AnnotationTable) -> None:
    """Refuse repeated ids and names, and references to what is not there."""
    ids, names = table.category_ids.tolist(), list(table.category_names)
    if not ids:
        raise DataError(f"{table.path}: 'categories' is empty")
    if (row := _first_repeated(ids)) is not None:
        _refuse(f"{table.path}: categories[{row}]", f"category id {ids[row]} is used twice")
    if (row := _first_repeated(names)) is not None:
        _refuse(f"{table.path}: categories[{row}]", f"category name {names[row]!r} is used twice")
    lost = np.flatnonzero(~np.isin(table.labels, table.category_ids))
    if len(lost):
        known = ", ".join(str(key) for key in sorted(ids))
        _refuse(
            table.place(lost[0]),
            f"unknown category id {table.labels[lost[0]]}; known are {known}",
        )
    if not len(table.image_ids):
        raise DataError(f"{table.path}: 'images' is empty")
    if len(np.unique(table.image_ids)) < len(table.image_ids):
        row = _first_repeated(table.image_ids.tolist())
        assert row is not None
        _refuse(table.image_place(row), f"image id {table.image_ids[row]} is used twice")
    lost = np.flatnonzero(~np.isin(table.owners, table.image_ids))
    if len(lost):
        _refuse(table.place(lost[0]), f"unknown image id {table.owners[lost[0]]}")


def _refuse(where: str, what: str) -> NoReturn:
    raise DataError(f"{where}: {what}")


def read_table(path: Path, text: bytes, *, with_masks: bool) -> AnnotationTable:
    """Read the text of a COCO file.

    Args:
        path: The json file, for messages.
        text: What `read_bytes` returned.
        with_masks: Keep the masks, not decoded.

    Raises:
        DataError: The file is no json or no COCO file, repeats an id, or refers to an image or
            category that it does not list.
    """
    table = _decode(path, text, with_masks=with_masks)
    if table is None:
        table = _examine(path, text, with_masks=with_masks)
    _check(table)
    return table


def to_arrays(table: AnnotationTable) -> dict[str, NDArray[Any]]:
    """Return a table without its masks as arrays by name."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, kind in _COLUMNS.items():
        value = getattr(table, name)
        if kind is None:
            arrays[f"{name}.letters"], arrays[f"{name}.ends"] = value.letters, value.ends
        else:
            arrays[name] = value
    return arrays


def from_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> AnnotationTable:
    """Return the table that `to_arrays` took apart.

    Raises:
        ValueError: The arrays are not those of a table.
    """
    columns: dict[str, Any] = {}
    for name, kind in _COLUMNS.items():
        if kind is None:
            letters = _typed(arrays, f"{name}.letters", np.uint8)
            ends = _typed(arrays, f"{name}.ends", np.int64)
            if (np.diff(ends, prepend=0) < 0).any() or (ends[-1] if len(ends) else 0) != len(
                letters
            ):
                raise ValueError(f"{name} does not fit its letters")
            columns[name] = Texts(letters, ends)
        else:
            columns[name] = _typed(arrays, name, kind)
    table = AnnotationTable(path=path, **columns)
    images, objects = len(table.image_ids), len(table.owners)
    lengths = (
        (images, (table.file_names, table.depth_names, table.sizes)),
        (objects, (table.object_ids, table.labels, table.boxes, table.unjudged)),
        (len(table.category_ids), (table.category_names,)),
    )
    if any(len(column) != length for length, group in lengths for column in group):
        raise ValueError("columns differ in length")
    if table.boxes.shape != (objects, 4) or table.sizes.shape != (images, 2):
        raise ValueError("boxes or sizes have another shape")
    return table


_COLUMNS: Mapping[str, type[np.generic] | None] = {
    "image_ids": np.int64,
    "file_names": None,
    "depth_names": None,
    "sizes": np.float64,
    "object_ids": np.int64,
    "owners": np.int64,
    "labels": np.int64,
    "boxes": np.float64,
    "unjudged": np.bool_,
    "category_ids": np.int64,
    "category_names": None,
}
"""Columns of a table that are kept, with their type; None are texts."""


def _typed(arrays: Mapping[str, NDArray[Any]], name: str, kind: type[np.generic]) -> NDArray[Any]:
    """Return an array of a kept table if it has the right type."""
    value = arrays.get(name)
    if value is None or value.dtype != np.dtype(kind):
        raise ValueError(f"{name} is missing or of another type")
    return value
