"""COCO average precision of anything that answers frames with detections.

    N objects or detections, H x W pixels of an image
    truth is what the annotation file says, a result is one detection in COCO's own form

Training, `boxseg eval`, export and benchmark all judge through `evaluate`. Nothing is left out
silently: an image that cannot be read, or whose size is not what the file says, is an error, and
whatever is not judged is named in `Accuracy.notes`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict

import numpy as np

from boxseg.errors import BackendMissingError, BoxSegError, DataError, counted, one_line
from boxseg.runtime.average_precision import Decided, Kept, precision_recall
from boxseg.runtime.images import leaves_folder, read_image

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

TIGHTNESS_SCORE = 0.3
"""Detections with a final score above this count for the box tightness of masks."""

_AREAS = ("all", "small", "medium", "large")  # order of pycocotools' area ranges


class Rle(TypedDict):
    """A mask in COCO's run-length code, columns first."""

    size: list[int]  # height, width
    counts: str | bytes


class Result(TypedDict):
    """One detection as COCO result files hold it."""

    image_id: int
    category_id: int
    bbox: list[float]  # x, y, width, height in pixels of the image
    score: float
    segmentation: NotRequired[Rle]


class Answer(Protocol):
    """What a model says about one frame; `Detections` is one."""

    def to_coco(self, image_id: int) -> Sequence[Mapping[str, Any]]:
        """Return COCO results with the model's own category ids."""
        ...


Predict = Callable[["NDArray[np.uint8]"], Answer]
"""From one image, uint8 RGB (H, W, 3), to its detections."""


DEFAULT_CONF = 0.5
"""What `predict` and a Segmenter keep where nothing else is said."""


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's numbers in [0, 1]; None where the truth has no object of that kind."""

    ap: float | None
    """Mean over IoU thresholds 0.50, 0.55 .. 0.95."""
    ap50: float | None
    ap75: float | None
    small: float | None
    """Objects under 32 x 32 pixels of area."""
    medium: float | None
    """Objects from 32 x 32 to 96 x 96 pixels."""
    large: float | None
    recall: float | None
    """Mean recall over the thresholds with at most 100 detections per image."""
    per_class: dict[str, float | None]
    """Class name -> AP."""
    decided: Decided | None = field(default=None, repr=False, compare=False)
    """The detections behind the numbers."""

    def as_dict(self) -> dict[str, float | None]:
        """Return the numbers under COCO's names, without the classes."""
        return {
            "AP": self.ap,
            "AP50": self.ap50,
            "AP75": self.ap75,
            "APs": self.small,
            "APm": self.medium,
            "APl": self.large,
            "AR100": self.recall,
        }


@dataclass(frozen=True)
class Accuracy:
    """How well detections agree with an annotation file."""

    box: AveragePrecision
    mask: AveragePrecision | None
    """None if the file has no masks; a note says so."""
    filled_boxes: AveragePrecision | None
    """Mask AP of the same detections with their boxes filled; what masks add is the difference."""
    tightness: float | None
    """Mean IoU of the mask's own box with the predicted box; None without scores above 0.3."""
    images: int
    objects: int
    """Judged objects; crowds and difficult objects are not counted."""
    detections: int
    notes: tuple[str, ...]
    """What was not judged, and why."""
    results: list[Result] = field(repr=False, compare=False)
    """Every detection with the ids of the annotation file."""

    @property
    def box_quality(self) -> float:
        """Box AP x tightness: what chooses the best checkpoint when users have no masks."""
        return (self.box.ap or 0.0) * (self.tightness or 0.0)

    def confidences(self) -> list[Kept]:
        """Return what boxes are worth at the confidence of the highest F1, then at the default.

        Nothing where there is no object or no detection, and no default where every detection lies
        above it: those below may not have been asked for.
        """
        decided = self.box.decided
        if decided is None or decided.objects == 0 or decided.scores.size == 0:
            return []
        best = decided.best()
        if decided.scores.min() > DEFAULT_CONF:
            return [best]
        return [best, decided.above(DEFAULT_CONF)]

    def as_dict(self) -> dict[str, object]:
        """Return everything but the results as JSON types."""
        per_class: dict[str, dict[str, float | None]] = {
            name: {"box": value} for name, value in self.box.per_class.items()
        }
        if self.mask is not None:
            for name, value in self.mask.per_class.items():
                per_class[name]["mask"] = value
        return {
            "box": self.box.as_dict(),
            "mask": self.mask.as_dict() if self.mask else None,
            "filled_boxes": self.filled_boxes.as_dict() if self.filled_boxes else None,
            "tightness": self.tightness,
            "per_class": per_class,
            "confidences": [{**asdict(kept), "f1": kept.f1} for kept in self.confidences()],
            "images": self.images,
            "objects": self.objects,
            "detections": self.detections,
            "notes": list(self.notes),
        }


# --- truth ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Truth:
    """A checked annotation file."""

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: dict[int, str]
    notes: list[str]


def _load_json(path: Path) -> dict[str, Any]:
    """Read an annotation file's outermost object."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: not a COCO file; expected an object, got {type(values).__name__}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(values.get(key), list):
            raise DataError(f"{path}: not a COCO file; it has no list {key!r}")
        if not all(isinstance(entry, dict) for entry in values[key]):
            raise DataError(f"{path}: {key} must hold objects only")
    return values


def _unique_ids(path: Path, key: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Refuse missing, non-integer and repeated ids."""
    seen: set[int] = set()
    for entry in entries:
        value = entry.get("id")
        if not isinstance(value, int) or isinstance(value, bool):
            raise DataError(f"{path}: {key} id {value!r} is not an integer")
        if value in seen:
            raise DataError(f"{path}: {key} id {value} is given twice")
        seen.add(value)


def _is_listed(value: object, known: Container[int]) -> bool:
    """Whether a JSON value is one of the known ids."""
    return isinstance(value, int) and value in known


def load_truth(annotation_file: str | Path) -> _Truth:
    """Read and check a COCO annotation file for scoring.

    Raises:
        DataError: if the file cannot be scored against.
    """
    path = Path(annotation_file)
    values = _load_json(path)
    images, categories = values["images"], values["categories"]
    if not images:
        raise DataError(f"{path}: holds no images; there is nothing to evaluate")
    if not categories:
        raise DataError(f"{path}: holds no categories; there is nothing to evaluate")
    _unique_ids(path, "image", images)
    _unique_ids(path, "category", categories)
    names = {int(entry["id"]): str(entry.get("name", entry["id"])) for entry in categories}
    image_ids = {entry["id"] for entry in images}
    for entry in images:
        if not isinstance(entry.get("file_name"), str):
            raise DataError(f"{path}: image {entry['id']} has no file_name")
        if leaves_folder(entry["file_name"]):
            raise DataError(
                f"{path}: image {entry['id']}: file_name {entry['file_name']!r} leaves the folder "
                "of images"
            )

    annotations: list[dict[str, Any]] = []
    empty = 0
    for entry in values["annotations"]:
        where = f"{path}: annotation {entry.get('id')}"
        if not _is_listed(entry.get("image_id"), image_ids):
            raise DataError(f"{where} is of image {entry.get('image_id')!r}, which is not listed")
        if not _is_listed(entry.get("category_id"), names):
            raise DataError(
                f"{where} has category {entry.get('category_id')!r}; "
                f"known: {', '.join(map(str, sorted(names)))}"
            )
        box = entry.get("bbox")
        if (
            not isinstance(box, list)
            or len(box) != 4
            or not all(isinstance(v, (int, float)) and -1e9 < v < 1e9 for v in box)
        ):
            raise DataError(f"{where} has bbox {box!r}; expected four numbers x, y, width, height")
        if box[2] <= 0 or box[3] <= 0:
            empty += 1
            continue
        crowd = bool(entry.get("iscrowd", 0))
        annotations.append(
            {
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "bbox": [float(v) for v in box],
                "area": entry.get("area"),
                "iscrowd": int(crowd),
                "unjudged": crowd or bool(entry.get("difficult")) or bool(entry.get("ignore")),
                "segmentation": entry.get("segmentation"),
                "where": where,
            }
        )
    notes = [f"not judged: {counted(empty, 'annotation')} with an empty box"] if empty else []
    return _Truth(path, images, annotations, names, notes)


# --- masks ---------------------------------------------------------------------------------------


def _run_total(counts: str | bytes, where: str) -> int:
    """Sum the runs of a compressed RLE, so that pycocotools never reads past its end.

    Source: the format of pycocotools: five bits per character from 48 on, bit 6 continues, runs
    from the fourth on are differences to the run two places before.
    """
    data = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    runs: list[int] = []
    position = 0
    while position < len(data):
        value, shift, more = 0, 0, True
        while more:
            if position >= len(data) or not 48 <= data[position] < 112 or shift > 60:
                raise DataError(f"{where} has a damaged mask (run-length code)")
            code = data[position] - 48
            value |= (code & 31) << shift
            more = bool(code & 32)
            position += 1
            shift += 5
            if not more and code & 16:
                value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        if runs[-1] < 0:
            raise DataError(f"{where} has a damaged mask (negative run)")
    return sum(runs)


def encode_mask(
    segmentation: object, height: int, width: int, where: str, codec: ModuleType
) -> Rle | None:
    """Return a true mask of any COCO form as RLE; None if the annotation has no usable mask."""
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if size != [height, width]:
            raise DataError(f"{where} has a mask of size {size}; the image is {[height, width]}")
        if isinstance(counts, list):
            if not all(type(run) is int and run >= 0 for run in counts):
                raise DataError(f"{where} has a damaged mask (run-length code)")
            total = sum(counts)
        elif isinstance(counts, (str, bytes)):
            total = _run_total(counts, where)
        else:
            raise DataError(f"{where} has a mask without counts")
        if total != height * width:
            raise DataError(f"{where} has a mask of {total} pixels; the image has {height * width}")
        if isinstance(counts, list):
            return codec.frPyObjects(segmentation, height, width)  # type: ignore[no-any-return]
        return Rle(size=[height, width], counts=counts)
    if isinstance(segmentation, list):
        polygons = []
        reach = 10 * (height + width)  # pycocotools walks along every edge
        for polygon in segmentation:
            if (
                not isinstance(polygon, list)
                or len(polygon) % 2
                or not all(isinstance(v, (int, float)) and -reach < v < reach for v in polygon)
            ):
                raise DataError(f"{where} has a damaged polygon; expected x, y, x, y, ...")
            if len(polygon) >= 6:
                polygons.append(polygon)
        if not polygons:
            return None
        return codec.merge(codec.frPyObjects(polygons, height, width))  # type: ignore[no-any-return]
    if segmentation is None:
        return None
    raise DataError(f"{where} has a segmentation of type {type(segmentation).__name__}")


def _cells(low: float, high: float, count: int) -> tuple[int, int]:
    """Return the cells [first, last) whose centres lie in [low, high), at least one.

    A span that holds no centre takes the cell nearest to its own centre.
    """
    low, high = min(max(low, 0.0), count), min(max(high, 0.0), count)
    first = math.ceil(low - 0.5)
    last = math.ceil(high - 0.5)
    if first >= last:
        first = min(max(math.floor((low + high) / 2), 0), count - 1)
        last = first + 1
    return first, min(last, count)


def fill_box(box: Sequence[float], height: int, width: int, codec: ModuleType) -> Rle:
    """Return the mask of a filled box as RLE.

    A pixel belongs to the box if its centre does; a box without any centre takes one pixel.

    Args:
        box: x, y, width, height in pixels of the image.
        height: Of the image.
        width: Of the image.
        codec: The module pycocotools.mask.
    """
    x0, x1 = _cells(box[0], box[0] + box[2], width)
    y0, y1 = _cells(box[1], box[1] + box[3], height)
    if y1 - y0 == height:  # columns merge into one run
        runs = [x0 * height, (x1 - x0) * height]
    else:
        runs = [x0 * height + y0, y1 - y0] + [height - (y1 - y0), y1 - y0] * (x1 - x0 - 1)
    rest = height * width - sum(runs)
    runs += [rest] if rest else []
    return codec.frPyObjects({"size": [height, width], "counts": runs}, height, width)  # type: ignore[no-any-return]


def _tightness(results: Sequence[Result], sizes: Mapping[int, tuple[int, int]]) -> float | None:
    """Return the mean IoU of masks' own boxes with the predicted boxes, clipped to the image."""
    from pycocotools import mask as codec

    chosen = [r for r in results if r["score"] > TIGHTNESS_SCORE and "segmentation" in r]
    if not chosen:
        return None
    limits = np.array([sizes[r["image_id"]][::-1] * 2 for r in chosen], np.float64)  # (N, 4)
    boxes = np.array([r["bbox"] for r in chosen], np.float64)
    boxes[:, 2:] += boxes[:, :2]
    boxes = np.clip(boxes, 0.0, limits)
    tight = np.asarray(codec.toBbox([r["segmentation"] for r in chosen]), np.float64)
    tight[:, 2:] += tight[:, :2]
    sides = np.minimum(boxes[:, 2:], tight[:, 2:]) - np.maximum(boxes[:, :2], tight[:, :2])
    shared = np.clip(sides, 0.0, None).prod(axis=1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (tight[:, 2:] - tight[:, :2]).prod(1) - shared
    return float(np.mean(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)))


# --- average precision ---------------------------------------------------------------------------


def _mean(values: NDArray[np.float64]) -> float | None:
    """Mean of the entries that exist; -1 says that there is no truth."""
    values = values[values > -1]
    return float(values.mean()) if values.size else None


def _average_precision(
    truth: _Truth,
    objects: Sequence[Mapping[str, Any]],
    found: Sequence[Mapping[str, Any]],
    kind: str,
    progress: Callable[[int, int], None] | None,
) -> AveragePrecision:
    """Summarise the curves as COCO does; `kind` is bbox or segm."""
    categories = sorted(truth.categories)
    curves = precision_recall(objects, found, categories, kind, progress)
    precision, recall = curves.precision, curves.recall
    area = {name: _mean(precision[..., index]) for index, name in enumerate(_AREAS)}
    return AveragePrecision(
        ap=area["all"],
        ap50=_mean(precision[0, ..., 0]),
        ap75=_mean(precision[5, ..., 0]),
        small=area["small"],
        medium=area["medium"],
        large=area["large"],
        recall=_mean(recall[..., 0]),
        per_class={
            truth.categories[key]: _mean(precision[:, :, index, 0])
            for index, key in enumerate(categories)
        },
        decided=curves.decided,
    )


# --- classes -------------------------------------------------------------------------------------


def _classes_of(predict: object) -> dict[int, str] | None:
    """Return category id -> name of a Segmenter; None of a bare function."""
    metadata = getattr(predict, "metadata", None)
    ids, names = getattr(metadata, "category_ids", None), getattr(metadata, "classes", None)
    if ids is None or names is None:
        return None
    return dict(zip(map(int, ids), map(str, names), strict=True))


def _match_classes(
    classes: Mapping[int, str], truth: _Truth, notes: list[str]
) -> dict[int, int | None]:
    """Map the model's category ids to the file's by name; None: not judged.

    Raises:
        DataError: if model and file share no class.
    """
    by_name: dict[str, list[int]] = {}
    for key, name in truth.categories.items():
        by_name.setdefault(name.strip().casefold(), []).append(key)
    mapping: dict[int, int | None] = {}
    for key, name in classes.items():
        candidates = by_name.get(name.strip().casefold(), [])
        exact = [other for other in candidates if truth.categories[other] == name]
        choice = key if key in (exact or candidates) else next(iter(exact or candidates), None)
        mapping[key] = choice
    shared = {key for key in mapping.values() if key is not None}
    if not shared:
        raise DataError(
            f"{truth.path}: shares no class with the model; "
            f"model: {', '.join(classes.values())}; file: {', '.join(truth.categories.values())}"
        )
    unjudged = [classes[key] for key, choice in mapping.items() if choice is None]
    if unjudged:
        notes.append(f"classes of the model that FILE does not have: {', '.join(unjudged)}")
    annotated = {entry["category_id"] for entry in truth.annotations}
    missing = [truth.categories[key] for key in sorted(annotated - shared)]
    if missing:
        notes.append(f"classes in FILE that the model does not know: {', '.join(missing)} (AP 0)")
    return mapping


def _collect(
    answer: Answer,
    image_id: int,
    size: tuple[int, int],
    mapping: Mapping[int, int | None],
) -> list[Result]:
    """Check one image's detections and give them the file's category ids."""
    results: list[Result] = []
    for raw in answer.to_coco(image_id):
        category = int(raw["category_id"])
        if category not in mapping:
            raise DataError(
                f"image {image_id}: the model answers with category {category}; "
                f"known: {', '.join(map(str, sorted(mapping)))}"
            )
        own = mapping[category]
        if own is None:
            continue
        box, score = [float(v) for v in raw["bbox"]], float(raw["score"])
        if not all(map(math.isfinite, [*box, score])):
            raise BoxSegError(
                f"image {image_id}: the model answers with a non-finite box or score "
                f"(bbox {box}, score {score})"
            )
        result = Result(image_id=image_id, category_id=own, bbox=box, score=score)
        mask = raw.get("segmentation")
        if mask is not None:
            if list(mask["size"]) != list(size):
                raise BoxSegError(
                    f"image {image_id}: the model answers with a mask of size {mask['size']}; "
                    f"the image is {list(size)}"
                )
            counts = mask["counts"]
            text = counts.decode("ascii") if isinstance(counts, bytes) else counts
            result["segmentation"] = Rle(size=list(size), counts=text)
        results.append(result)
    return results


def _encode_masks(
    objects: Sequence[dict[str, Any]],
    sizes: Mapping[int, tuple[int, int]],
    truth: _Truth,
    notes: list[str],
) -> bool:
    """Turn true masks into RLE in place; return whether mask AP can be computed."""
    from pycocotools import mask as codec

    judged = [entry for entry in objects if not entry["unjudged"]]
    for entry in objects:
        height, width = sizes[entry["image_id"]]
        rle = encode_mask(entry["segmentation"], height, width, entry["where"], codec)
        entry["segmentation"] = rle
        area = entry["area"]
        if not isinstance(area, (int, float)) or not math.isfinite(area) or area <= 0:
            entry["area"] = (
                float(codec.area(rle)) if rle is not None else entry["bbox"][2] * entry["bbox"][3]
            )
    masked = sum(entry["segmentation"] is not None for entry in judged)
    if masked < len(judged):
        notes.append(
            f"mask AP: no masks in {truth.path.name}"
            if masked == 0
            else f"mask AP: not computed, {len(judged) - masked} of {len(judged)} objects in "
            f"{truth.path.name} have no mask"
        )
        return False
    for entry in objects:
        if entry["segmentation"] is None:  # an unjudged region known by its box alone
            entry["segmentation"] = fill_box(entry["bbox"], *sizes[entry["image_id"]], codec)
    if judged and all(
        _is_own_box(entry["segmentation"], entry["bbox"], *sizes[entry["image_id"]], codec)
        for entry in judged
    ):
        notes.append(f"every mask in {truth.path.name} is its own filled box; mask AP judges boxes")
    return True


def _is_own_box(rle: Rle, box: Sequence[float], height: int, width: int, codec: ModuleType) -> bool:
    """Whether a mask is nothing but its filled box."""
    return bool(codec.iou([rle], [fill_box(box, height, width, codec)], [0])[0, 0] > 0.999)


@dataclass(frozen=True)
class Examination:
    """The images that a model is asked about, and what its classes are called in their file."""

    truth: _Truth
    images: list[dict[str, Any]]
    """Entries of the annotation file, in its order."""
    mapping: dict[int, int | None]
    """The model's category id -> the file's; None: not judged."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """What a model found in one image."""

    size: tuple[int, int]
    """H, W of the image."""
    results: list[Result]


def open_examination(
    predict: Predict,
    annotation_file: str | Path,
    *,
    classes: Mapping[int, str] | None = None,
    max_images: int | None = None,
) -> Examination:
    """Read an annotation file and match its classes with a model's; see `evaluate`.

    Raises:
        DataError: if the file cannot be judged.
        ValueError: if max_images is less than 1.
    """
    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images must be at least 1, got {max_images}")
    truth = load_truth(annotation_file)
    notes = list(truth.notes)
    classes = _classes_of(predict) if classes is None else classes
    mapping: dict[int, int | None] = (
        {key: key for key in truth.categories}
        if classes is None
        else _match_classes(classes, truth, notes)
    )
    images = truth.images[:max_images]
    if len(images) < len(truth.images):
        notes.append(f"only the first {len(images)} of {len(truth.images)} images were judged")
    return Examination(truth, images, mapping, tuple(notes))


def answer_examination(
    predict: Predict,
    examination: Examination,
    image_root: str | Path,
    *,
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, Found]:
    """Ask a model about the images.

    Args:
        predict: As for `evaluate`.
        examination: The images.
        image_root: The folder that `file_name` is relative to.
        share: (i, n): only images i, i + n, i + 2n, ... of the file; n processes share the work.
        progress: Called after each image with (done, total).

    Returns:
        Image id -> what was found.

    Raises:
        DataError: if an image cannot be judged, or a category id is unknown.
        BoxSegError: if the model answers with non-finite numbers.
    """
    first, step = share
    images = examination.images[first::step]
    found: dict[int, Found] = {}
    for done, entry in enumerate(images, start=1):
        image_id = int(entry["id"])
        pixels = read_image(Path(image_root) / entry["file_name"])
        size = pixels.shape[0], pixels.shape[1]
        stated = entry.get("height", size[0]), entry.get("width", size[1])
        if stated != size:
            raise DataError(
                f"{examination.truth.path}: image {image_id} ({entry['file_name']}) is {size[0]} x "
                f"{size[1]} pixels (height x width), the file says {stated[0]} x {stated[1]}"
            )
        answer = predict(pixels)
        found[image_id] = Found(size, _collect(answer, image_id, size, examination.mapping))
        if progress is not None:
            progress(done, len(images))
    return found


def evaluate(
    predict: Predict,
    annotation_file: str | Path,
    image_root: str | Path,
    *,
    classes: Mapping[int, str] | None = None,
    max_images: int | None = None,
    filled_boxes: bool = False,
    progress: Callable[[int, int], None] | None = None,
    judging: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """Score a model against a COCO annotation file.

    Mask AP sorts objects into small, medium and large by the annotation's `area`, box AP too, as
    COCO does. Crowds, and objects marked `difficult` or `ignore`, count neither as found nor as
    missed.

    Args:
        predict: Called with each image, uint8 RGB (H, W, 3); a Segmenter, or any function.
        annotation_file: COCO json.
        image_root: The folder that `file_name` is relative to.
        classes: The model's category id -> name; by default what `predict.metadata` says. Classes
            are matched with the file's by name. Of a function without metadata, category ids are
            taken as the file's own.
        max_images: Judge only the first so many images of the file; None judges all.
        filled_boxes: Also compute the mask AP of the same detections with their boxes filled.
        progress: Called after each image with (done, total).
        judging: Called after each class with (done, total), once for each kind of AP.

    Raises:
        DataError: if file or images cannot be judged, or a category id is unknown.
        BackendMissingError: if pycocotools is not installed.
        BoxSegError: if the model answers with non-finite numbers.
        ValueError: if max_images is less than 1.
    """
    _pycocotools()
    examination = open_examination(predict, annotation_file, classes=classes, max_images=max_images)
    found = answer_examination(predict, examination, image_root, progress=progress)
    return judge(examination, found, filled_boxes=filled_boxes, judging=judging)


def _pycocotools() -> ModuleType:
    """Return pycocotools.mask, or say how to get it."""
    try:
        from pycocotools import mask as codec
    except ImportError:
        raise BackendMissingError(
            "COCO evaluation needs pycocotools; pip install boxseg[eval]"
        ) from None
    return codec  # type: ignore[no-any-return]


def judge(
    examination: Examination,
    answers: Mapping[int, Found],
    *,
    filled_boxes: bool = False,
    judging: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """Score what a model found; see `evaluate`.

    Args:
        examination: What was asked.
        answers: Image id -> what was found, of every image; their order does not matter.
        filled_boxes: Also compute the mask AP of the same detections with their boxes filled.
        judging: Called after each class with (done, total), once for each kind of AP.

    Raises:
        BackendMissingError: if pycocotools is not installed.
    """
    codec = _pycocotools()
    truth, notes = examination.truth, list(examination.notes)
    ids = [int(entry["id"]) for entry in examination.images]
    sizes = {image_id: answers[image_id].size for image_id in ids}
    results = [result for image_id in ids for result in answers[image_id].results]
    objects = [dict(entry) for entry in truth.annotations if entry["image_id"] in sizes]
    has_masks = _encode_masks(objects, sizes, truth, notes)
    found: list[dict[str, Any]] = [{**result} for result in results]
    for one in found:
        one["area"] = one["bbox"][2] * one["bbox"][3]
    box = _average_precision(truth, objects, found, "bbox", judging)

    mask = filled = None
    if has_masks:
        if any("segmentation" not in one for one in found):
            notes.append("mask AP: not computed, the model answers without masks")
        else:
            for one in found:
                one["area"] = float(codec.area(one["segmentation"]))
            mask = _average_precision(truth, objects, found, "segm", judging)
        if filled_boxes:
            boxes = []
            for one in found:
                rle = fill_box(one["bbox"], *sizes[one["image_id"]], codec)
                boxes.append({**one, "segmentation": rle, "area": float(codec.area(rle))})
            filled = _average_precision(truth, objects, boxes, "segm", judging)
    judged = sum(not entry["unjudged"] for entry in objects)
    if judged == 0:
        notes.append(f"no object to find in {truth.path.name}: AP is undefined")
    return Accuracy(
        box=box,
        mask=mask,
        filled_boxes=filled,
        tightness=_tightness(results, sizes),
        images=len(ids),
        objects=judged,
        detections=len(results),
        notes=tuple(note.replace("FILE", truth.path.name) for note in notes),
        results=results,
    )


# --- reports -------------------------------------------------------------------------------------


def _percent(value: float | None) -> str:
    """Write a fraction as COCO tables do: 41.7; a dash where it is undefined."""
    return "-" if value is None else f"{100 * value:.1f}"


def report_lines(accuracy: Accuracy, *, per_class: bool = False) -> list[str]:
    """Return a table of the numbers in percent, one string per line."""
    columns = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
    lines = [" " * 14 + "".join(f"{column:>7}" for column in columns)]
    rows = {
        "box": accuracy.box,
        "mask": accuracy.mask,
        "filled boxes": accuracy.filled_boxes,
    }
    for name, row in rows.items():
        if row is not None:
            values = row.as_dict()
            lines.append(f"{name:<14}" + "".join(f"{_percent(values[c]):>7}" for c in columns))
    if accuracy.tightness is not None:
        lines.append(f"{'tightness':<14}{_percent(accuracy.tightness):>7}")
    if per_class:
        width = max(13, *(len(one_line(name)) for name in accuracy.box.per_class)) + 1
        lines += ["", f"{'class':<{width}}{'box AP':>8}{'mask AP':>8}"]
        for name, value in accuracy.box.per_class.items():
            mask = accuracy.mask.per_class.get(name) if accuracy.mask else None
            lines.append(f"{one_line(name):<{width}}{_percent(value):>8}{_percent(mask):>8}")
    lines.append("")
    lines.append(
        f"{counted(accuracy.images, 'image')}, {counted(accuracy.objects, 'object')}, "
        f"{counted(accuracy.detections, 'detection')}"
    )
    lines += [
        f"{what} {kept.conf:.2f}: {kept.found} of {counted(kept.objects, 'object')} found, "
        f"{kept.wrong} wrong (boxes, IoU 0.5; F1 {kept.f1:.2f})"
        for what, kept in zip(("best --conf", "at --conf"), accuracy.confidences(), strict=False)
    ]
    lines += map(one_line, accuracy.notes)
    return lines


def write_results(path: str | Path, results: Sequence[Result]) -> None:
    """Write detections as a COCO result file: one JSON list with the file's own ids."""
    Path(path).write_text(json.dumps(list(results)), encoding="utf-8")
