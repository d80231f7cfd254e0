"""Pictures of instances: masks, boxes, labels, and panels of them side by side.

    N instances, H x W pixels of the image, h x w of one mask's crop
    images are uint8 RGB (H, W, 3), boxes x1, y1, x2, y2 in pixels of their image

Everything is drawn at a chosen magnification, so that small images give readable pictures.
"""

from __future__ import annotations

import colorsys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from boxseg.errors import BackendMissingError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from boxseg.runtime.detections import Detections

Colour = tuple[int, int, int]

_PALETTE: tuple[Colour, ...] = (
    (255, 87, 51),
    (46, 196, 255),
    (126, 217, 32),
    (214, 76, 255),
    (255, 200, 20),
    (20, 214, 164),
    (255, 102, 168),
    (92, 124, 255),
    (255, 148, 40),
    (0, 176, 200),
    (190, 120, 70),
    (160, 230, 140),
)
_GOLDEN_RATIO = 0.618034
_FILL = 0.45  # opacity of a mask
_TRUTH_MATCH = 0.5  # box IoU from which a prediction takes the colour of its object
_PAPER: Colour = (250, 250, 250)
_INK: Colour = (40, 40, 40)


def instance_colour(index: int) -> Colour:
    """Return a strong colour, RGB; neighbouring indices differ clearly."""
    if index < len(_PALETTE):
        return _PALETTE[index]
    saturation = 0.9 if index % 2 else 0.65
    red, green, blue = colorsys.hsv_to_rgb((index * _GOLDEN_RATIO) % 1.0, saturation, 0.98)
    return round(red * 255), round(green * 255), round(blue * 255)


@dataclass(frozen=True)
class Piece:
    """One mask as a crop of its image."""

    top: int
    left: int
    mask: NDArray[np.bool_]  # (h, w)


def _crop(mask: NDArray[np.bool_]) -> Piece:
    """Cut a full mask (H, W) down to its own box; an empty mask gives an empty crop."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return Piece(0, 0, np.zeros((0, 0), np.bool_))
    top, left = int(rows[0]), int(columns[0])
    return Piece(top, left, mask[top : rows[-1] + 1, left : columns[-1] + 1])


@dataclass(frozen=True)
class Instances:
    """What to draw on one image; predictions and truth alike."""

    boxes: NDArray[np.float32]
    """(N, 4) x1, y1, x2, y2 in pixels of the image."""
    names: tuple[str, ...]
    """Class name of each instance."""
    scores: tuple[float, ...] | None = None
    """Final scores in [0, 1]; None for truth."""
    masks: tuple[Piece | None, ...] | None = None
    """A crop per instance; None where an instance has no mask."""

    def __post_init__(self) -> None:
        """Refuse lists of different lengths."""
        count = len(self.names)
        if self.boxes.shape != (count, 4):
            raise ValueError(
                f"boxes must be ({count}, 4) for {count} names, got {self.boxes.shape}"
            )
        for name, values in (("scores", self.scores), ("masks", self.masks)):
            if values is not None and len(values) != count:
                raise ValueError(f"{name} must have {count} entries, got {len(values)}")

    @classmethod
    def from_dense(
        cls,
        boxes: ArrayLike,
        names: Sequence[str],
        scores: Sequence[float] | None = None,
        masks: NDArray[Any] | None = None,
    ) -> Self:
        """Build from full masks (N, H, W), true inside."""
        pieces = None if masks is None else tuple(_crop(np.asarray(m, np.bool_)) for m in masks)
        return cls(
            np.asarray(boxes, np.float32).reshape(-1, 4),
            tuple(names),
            None if scores is None else tuple(map(float, scores)),
            pieces,
        )

    @classmethod
    def from_annotations(
        cls,
        annotations: Sequence[Mapping[str, Any]],
        categories: Mapping[int, str],
        height: int,
        width: int,
    ) -> Self:
        """Build from the COCO annotations of one image.

        Args:
            annotations: Entries with bbox, category_id and, if known, segmentation.
            categories: Category id -> name.
            height: Of the image.
            width: Of the image.

        Raises:
            BackendMissingError: if pycocotools is not installed.
        """
        try:
            from pycocotools import mask as codec
        except ImportError:
            raise BackendMissingError(
                "drawing COCO masks needs pycocotools; pip install boxseg[eval]"
            ) from None
        pieces: list[Piece | None] = []
        for entry in annotations:
            code = entry.get("segmentation")
            if isinstance(code, list):
                polygons = [polygon for polygon in code if len(polygon) >= 6]
                code = codec.merge(codec.frPyObjects(polygons, height, width)) if polygons else None
            elif isinstance(code, dict) and isinstance(code["counts"], list):
                code = codec.frPyObjects(code, height, width)
            if not code:
                pieces.append(None)
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools with numpy 2
                pieces.append(_crop(np.asarray(codec.decode(code), np.bool_)))
        boxes = np.array([entry["bbox"] for entry in annotations], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        names = tuple(categories[entry["category_id"]] for entry in annotations)
        return cls(boxes, names, None, tuple(pieces))

    @classmethod
    def from_detections(cls, detections: Detections, minimum_score: float = 0.0) -> Self:
        """Build from a Segmenter's answer, leaving out scores not above `minimum_score`."""
        kept = detections[detections.scores > minimum_score]
        return cls(
            kept.xyxy,
            tuple(kept.class_names[label] for label in kept.labels.tolist()),
            tuple(kept.scores.tolist()),
            tuple(Piece(crop.y, crop.x, crop.mask) for crop in kept.crops()),
        )


# --- one picture ---------------------------------------------------------------------------------


def _magnify(mask: NDArray[np.bool_], scale: float) -> NDArray[np.bool_]:
    """Resize a crop; interpolated, so that a magnified outline is no staircase."""
    if scale == 1.0 or not mask.size:
        return mask
    size = max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale))
    return (
        np.asarray(Image.fromarray(mask).convert("L").resize(size, Image.Resampling.BILINEAR)) > 127
    )


def _outline(mask: NDArray[np.bool_], thickness: int) -> NDArray[np.bool_]:
    """Return the pixels of a mask (h, w) within `thickness` steps of its outside."""
    inner = np.pad(mask, 1)
    for _ in range(thickness):
        shrunk = inner.copy()
        shrunk[1:] &= inner[:-1]
        shrunk[:-1] &= inner[1:]
        shrunk[:, 1:] &= inner[:, :-1]
        shrunk[:, :-1] &= inner[:, 1:]
        inner = shrunk
    return mask & ~inner[1:-1, 1:-1]


def _paint(
    canvas: NDArray[np.uint8], piece: Piece, colour: Colour, scale: float, line: int
) -> None:
    """Tint a mask and draw its outline, in place."""
    mask = _magnify(piece.mask, scale)
    top, left = round(piece.top * scale), round(piece.left * scale)
    part = canvas[top : top + mask.shape[0], left : left + mask.shape[1]]
    mask = mask[: part.shape[0], : part.shape[1]]
    if not mask.any():
        return
    tint = np.asarray(colour, np.float32)
    part[mask] = np.rint(part[mask] * (1.0 - _FILL) + tint * _FILL).astype(np.uint8)
    part[_outline(mask, line)] = colour


def _text_colour(ground: Colour) -> Colour:
    """Black on bright, white on dark."""
    return (0, 0, 0) if np.dot(ground, (0.299, 0.587, 0.114)) > 140 else (255, 255, 255)


Rectangle = tuple[float, float, float, float]


def _overlap(a: Rectangle, b: Rectangle) -> float:
    """Area shared by two rectangles x1, y1, x2, y2."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def _place(
    box: Rectangle, size: tuple[float, float], limit: tuple[int, int], taken: list[Rectangle]
) -> Rectangle:
    """Choose where a label (width, height) hides least: above, inside, below, right end."""
    width, height = size
    left = min(max(box[0], 0.0), limit[0] - width)
    right = min(max(box[2] - width, 0.0), limit[0] - width)
    places = [
        (x, y, x + width, y + height)
        for y in (box[1] - height, box[1], box[3], box[3] - height)
        for x in (left, right)
        if 0 <= y <= limit[1] - height
    ]
    if not places:
        places = [(left, 0.0, left + width, height)]
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def draw_instances(
    image: NDArray[np.uint8],
    instances: Instances,
    *,
    colours: Sequence[Colour] | None = None,
    scale: float = 1.0,
    labels: bool = True,
    boxes: bool = True,
) -> NDArray[np.uint8]:
    """Draw masks, boxes and labels over an image.

    Args:
        image: uint8 RGB (H, W, 3); not changed.
        instances: What to draw; the best score lies on top.
        colours: One per instance; None gives every instance its own.
        scale: Magnification of the picture.
        labels: Write class and score at each box.
        boxes: Draw the boxes.

    Returns:
        A new picture, uint8 RGB (round(H * scale), round(W * scale), 3).
    """
    count = len(instances.names)
    chosen = [instance_colour(i) for i in range(count)] if colours is None else list(colours)
    if len(chosen) != count:
        raise ValueError(f"colours must have {count} entries, got {len(chosen)}")
    height, width = round(image.shape[0] * scale), round(image.shape[1] * scale)
    picture = Image.fromarray(image)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    canvas = np.array(picture)
    line = max(2, round(max(height, width) / 450))
    order = sorted(range(count), key=lambda i: instances.scores[i] if instances.scores else -i)
    for i in order:
        piece = instances.masks[i] if instances.masks is not None else None
        if piece is not None:
            _paint(canvas, piece, chosen[i], scale, line)
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    corners: list[Rectangle] = [
        (float(x1) * scale, float(y1) * scale, float(x2) * scale, float(y2) * scale)
        for x1, y1, x2, y2 in instances.boxes
    ]
    if boxes:
        for i in order:
            x1, y1, x2, y2 = corners[i]
            x1, y1 = min(max(x1, 0.0), width - 1.0), min(max(y1, 0.0), height - 1.0)
            x2, y2 = min(max(x2 - 1, x1), width - 1.0), min(max(y2 - 1, y1), height - 1.0)
            pen.rectangle((x1, y1, x2, y2), outline=chosen[i], width=line)
    if labels:
        font = ImageFont.load_default(size=max(11, min(height, width) // 32))
        taken: list[Rectangle] = []
        for i in reversed(order):
            text = instances.names[i]
            if instances.scores is not None:
                text += f" {instances.scores[i]:.2f}"
            x1, y1, x2, y2 = pen.textbbox((0, 0), text, font=font)
            size = x2 - x1 + 6.0, y2 - y1 + 5.0
            spot = _place(corners[i], size, (width, height), taken)
            taken.append(spot)
            pen.rounded_rectangle(spot, radius=3, fill=chosen[i])
            pen.text(
                (spot[0] + 3 - x1, spot[1] + 2 - y1), text, font=font, fill=_text_colour(chosen[i])
            )
    return np.asarray(picture)


def _pairwise_iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of boxes (N, 4) and (M, 4), (N, M)."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.clip(sides, 0.0, None).prod(axis=2)  # (N, M)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0.0, None).prod(axis=1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return np.asarray(
        np.divide(shared, union, out=np.zeros_like(shared), where=union > 0), np.float32
    )


def compare(
    image: NDArray[np.uint8],
    truth: Instances,
    prediction: Instances,
    *,
    scale: float = 1.0,
    labels: bool = True,
) -> list[NDArray[np.uint8]]:
    """Draw truth and prediction as two pictures of one row for `panel`.

    A prediction takes the colour of the object that its box meets with an IoU of at least 0.5;
    others take colours that no object has.
    """
    colours = [instance_colour(i) for i in range(len(truth.names))]
    matched = []
    spare = len(colours)
    ious = _pairwise_iou(prediction.boxes, truth.boxes)
    for row in ious:
        best = int(row.argmax()) if row.size else -1
        if best >= 0 and row[best] >= _TRUTH_MATCH:
            matched.append(colours[best])
        else:
            matched.append(instance_colour(spare))
            spare += 1
    return [
        draw_instances(image, truth, colours=colours, scale=scale, labels=labels),
        draw_instances(image, prediction, colours=matched, scale=scale, labels=labels),
    ]


def panel(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    *,
    titles: Sequence[str] = (),
    captions: Sequence[str] = (),
    cell_width: int = 480,
    margin: int = 10,
) -> NDArray[np.uint8]:
    """Set pictures side by side in a grid.

    Args:
        rows: Pictures, uint8 RGB; rows may differ in length and pictures in size.
        titles: Over the columns.
        captions: Under the rows.
        cell_width: Pixels to which every picture is resized, keeping its proportions.
        margin: Pixels between pictures.

    Returns:
        One picture, uint8 RGB.

    Raises:
        ValueError: if there is no picture.
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise ValueError("a panel needs at least one picture, got none")
    cells = []
    for row in rows:
        pictures = [Image.fromarray(np.ascontiguousarray(pixels)) for pixels in row]
        cells.append(
            [
                picture
                if picture.width == cell_width
                else picture.resize(
                    (cell_width, max(1, round(picture.height * cell_width / picture.width))),
                    Image.Resampling.LANCZOS,
                )
                for picture in pictures
            ]
        )
    letter = max(12, cell_width // 26)
    font, text_height = ImageFont.load_default(size=letter), round(letter * 1.5)
    heights = [max((cell.height for cell in row), default=0) for row in cells]
    above = text_height if titles else 0
    below = text_height if captions else 0
    size = (
        margin + columns * (cell_width + margin),
        margin + above + sum(height + below + margin for height in heights),
    )
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, title in enumerate(titles[:columns]):
        x = margin + index * (cell_width + margin) + cell_width / 2
        pen.text((x, margin + above / 2 - 3), title, font=font, fill=_INK, anchor="mm")
    y = margin + above
    for index, line in enumerate(cells):
        for column, cell in enumerate(line):
            sheet.paste(cell, (margin + column * (cell_width + margin), y))
        y += heights[index]
        if captions:
            if index < len(captions):
                pen.text(
                    (margin, y + below / 2), captions[index], font=font, fill=_INK, anchor="lm"
                )
            y += below
        y += margin
    return np.asarray(sheet)


def write_picture(path: str | Path, pixels: NDArray[np.uint8]) -> None:
    """Write a picture; the suffix names the format, JPEG with quality 92."""
    path = Path(path)
    options: dict[str, Any] = (
        {"quality": 92, "subsampling": 0} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    )
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, **options)
