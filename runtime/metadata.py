"""What a deployed file says about itself.

The dict (format version 1) lies as JSON under the key `boxseg` in an ONNX file's metadata and in an
OpenVINO model's rt_info. Nothing else is needed to run the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from boxseg.errors import FileMismatchError
from boxseg.runtime.preprocess import DIVISOR, Fit, ImageSize, ShortLong

FORMAT_VERSION = 1
METADATA_KEY = "boxseg"

FORMS = ("dense", "topk", "graph")
SCORE0_RULES = ("sqrt_cls_quality", "cls")
FINAL_RULES = ("score0", "sqrt_score0_mask")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True)
class MaskHead:
    """Plan of the dynamic mask head.

    Attributes:
        mask_channels: Channels of the mask features.
        layer_widths: Outputs of each layer; the last is 1.
        relative_coordinates: Whether two coordinates precede the features.
        coordinate_scales: Input pixels per unit of relative coordinate, one per level.
        mask_stride: Input pixels per cell of the mask features.
    """

    mask_channels: int
    layer_widths: tuple[int, ...]
    relative_coordinates: bool
    coordinate_scales: tuple[float, ...]
    mask_stride: int


@dataclass(frozen=True)
class Batch:
    """How many images a run of the engine takes.

    Attributes:
        least: At least this many.
        best: What an engine is tuned for.
        most: At most this many.
    """

    least: int = 1
    best: int = 1
    most: int = 1


@dataclass(frozen=True)
class Metadata:
    """A deployed file's description.

    Attributes:
        classes: Names, by class index.
        category_ids: The data set's ids, by class index.
        imgsz: Rule that gives the input's size.
        strides: Input pixels per location, one per level.
        head: The dynamic mask head.
        score0: "sqrt_cls_quality" or "cls": how a candidate is scored.
        final_score: "score0" or "sqrt_score0_mask": what the instance's score is.
        candidate_score: A candidate needs score0 above this.
        nms_iou: Suppress above this IoU.
        candidates: K, pairs that go to suppression.
        max_det: Instances per frame.
        padding: RGB around the frame.
        form: Which outputs the file has: "dense" those of every location, "topk" those of the best
            K pairs, "graph" the same with mask logits in place of parameters.
        batch: Images per run.
        input_name: Name of the input.
        precision: What the weights and activations are.
        weights: "student" or "ema".
        licence: Licences of code, weights and data, where known.
        producer: Program and version that wrote the file.
        task: Always instance segmentation.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    imgsz: ImageSize
    strides: tuple[int, ...]
    head: MaskHead
    score0: str
    final_score: str
    candidate_score: float
    nms_iou: float
    candidates: int
    max_det: int
    padding: tuple[int, int, int]
    form: str = "dense"
    batch: Batch = Batch()
    input_name: str = "image"
    precision: str = "fp32"
    weights: str = "student"
    licence: Mapping[str, str] = field(default_factory=dict)
    producer: str = ""
    task: str = "instance-segmentation"

    @classmethod
    def from_json(cls, text: str) -> Metadata:
        """Read the JSON that a file holds.

        Raises:
            FileMismatchError: if it is not such a description.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FileMismatchError(f"the metadata is no JSON: {error}") from None
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Metadata:
        """Check and take over a description; keys of later additions are ignored.

        Raises:
            FileMismatchError: with the key, the value and what is allowed.
        """
        root = _Section(values, "metadata")
        version = root.integer("format_version", 1)
        if version != FORMAT_VERSION:
            raise FileMismatchError(
                f"metadata.format_version is {version}, this version of boxseg reads "
                f"{FORMAT_VERSION}; export the model again"
            )
        root.section("input").exactly(layout="NHWC", dtype="uint8", colour="RGB")
        letterbox = root.section("letterbox")
        letterbox.exactly(side="right_bottom", divisor=DIVISOR)
        red, green, blue = letterbox.integers("padding", 0, 255, length=3)
        scores, nms = root.section("scores"), root.section("nms")
        strides = root.integers("strides", 1, 4096)
        classes = root.strings("classes")
        candidates = nms.integer("candidates", 1, 1_000_000)
        return cls(
            classes=classes,
            category_ids=root.integers("category_ids", 0, 2**53, length=len(classes)),
            imgsz=_read_size(root.section("imgsz")),
            strides=strides,
            head=_read_head(root.section("head"), len(strides)),
            score0=scores.choice("score0", SCORE0_RULES),
            final_score=scores.choice("final", FINAL_RULES),
            candidate_score=scores.number("candidate_score", 0.0, 1.0, below=True),
            nms_iou=nms.number("iou", 0.0, 1.0),
            candidates=candidates,
            max_det=nms.integer("max_det", 1, candidates),
            padding=(red, green, blue),
            form=root.choice("form", FORMS),
            batch=_read_batch(root.section("batch")) if "batch" in root.values else Batch(),
            input_name=root.section("input").string("name"),
            precision=root.choice("precision", PRECISIONS),
            weights=root.choice("weights", ("student", "ema")),
            licence={str(k): str(v) for k, v in root.section("licence").values.items()},
            producer=root.string("producer"),
            task=root.choice("task", ("instance-segmentation",)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Give the dict that `from_dict` reads, in JSON types."""
        size: dict[str, Any]
        if isinstance(self.imgsz, Fit):
            size = {"rule": "fit", "height": self.imgsz.height, "width": self.imgsz.width}
        else:
            size = {"rule": "short_long", "short": self.imgsz.short, "long": self.imgsz.long}
        return {
            "format_version": FORMAT_VERSION,
            "producer": self.producer,
            "task": self.task,
            "form": self.form,
            "classes": list(self.classes),
            "category_ids": list(self.category_ids),
            "imgsz": size,
            "batch": {"min": self.batch.least, "opt": self.batch.best, "max": self.batch.most},
            "input": {
                "name": self.input_name,
                "layout": "NHWC",
                "dtype": "uint8",
                "colour": "RGB",
            },
            "letterbox": {
                "padding": list(self.padding),
                "side": "right_bottom",
                "divisor": DIVISOR,
            },
            "strides": list(self.strides),
            "head": {
                "mask_channels": self.head.mask_channels,
                "layer_widths": list(self.head.layer_widths),
                "relative_coordinates": self.head.relative_coordinates,
                "coordinate_scales": list(self.head.coordinate_scales),
                "mask_stride": self.head.mask_stride,
            },
            "scores": {
                "score0": self.score0,
                "final": self.final_score,
                "candidate_score": self.candidate_score,
            },
            "nms": {"iou": self.nms_iou, "candidates": self.candidates, "max_det": self.max_det},
            "precision": self.precision,
            "weights": self.weights,
            "licence": dict(self.licence),
        }


class _Section:
    """A part of the dict that names its keys in errors."""

    def __init__(self, values: object, path: str) -> None:
        if not isinstance(values, Mapping):
            raise FileMismatchError(f"{path} must be a mapping, got {_short(values)}")
        self.values = values
        self.path = path

    def _get(self, key: str) -> Any:
        if key not in self.values:
            raise FileMismatchError(f"{self.path}.{key} is missing")
        return self.values[key]

    def _refuse(self, key: str, allowed: str) -> FileMismatchError:
        return FileMismatchError(
            f"{self.path}.{key} must be {allowed}, got {_short(self.values[key])}"
        )

    def section(self, key: str) -> _Section:
        return _Section(self._get(key), f"{self.path}.{key}")

    def string(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str):
            raise self._refuse(key, "a string")
        return value

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.string(key)
        if value not in allowed:
            raise self._refuse(key, " or ".join(allowed))
        return value

    def exactly(self, **expected: object) -> None:
        for key, value in expected.items():
            if self._get(key) != value:
                raise self._refuse(key, str(value))

    def boolean(self, key: str) -> bool:
        value = self._get(key)
        if not isinstance(value, bool):
            raise self._refuse(key, "true or false")
        return value

    def integer(self, key: str, low: int, high: int = 2**31 - 1) -> int:
        value = self._get(key)
        if not _is_integer(value) or not low <= value <= high:
            raise self._refuse(key, f"an integer in {low}..{high}")
        return int(value)

    def number(self, key: str, low: float, high: float, *, below: bool = False) -> float:
        value = self._get(key)
        good = _is_number(value) and low <= value <= high and not (below and value == high)
        if not good:
            raise self._refuse(key, f"a number in [{low:g}, {high:g}{')' if below else ']'}")
        return float(value)

    def _list(self, key: str, length: int | None) -> list[Any]:
        value = self._get(key)
        if not isinstance(value, (list, tuple)) or not value:
            raise self._refuse(key, "a list that is not empty")
        if length is not None and len(value) != length:
            raise self._refuse(key, f"a list of {length}")
        return list(value)

    def strings(self, key: str) -> tuple[str, ...]:
        values = self._list(key, None)
        if not all(isinstance(value, str) for value in values):
            raise self._refuse(key, "a list of strings")
        return tuple(values)

    def integers(
        self, key: str, low: int, high: int, *, length: int | None = None
    ) -> tuple[int, ...]:
        values = self._list(key, length)
        if not all(_is_integer(value) and low <= value <= high for value in values):
            raise self._refuse(key, f"a list of integers in {low}..{high}")
        return tuple(int(value) for value in values)

    def positive_numbers(self, key: str, *, length: int) -> tuple[float, ...]:
        values = self._list(key, length)
        if not all(_is_number(value) and 1e-9 <= value <= 1e9 for value in values):
            raise self._refuse(key, "a list of positive numbers in [1e-9, 1e9]")
        return tuple(values)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_size(size: _Section) -> ImageSize:
    rule = size.choice("rule", ("fit", "short_long"))
    try:
        if rule == "fit":
            return Fit(size.integer("height", 1, 32768), size.integer("width", 1, 32768))
        return ShortLong(size.integer("short", 1, 32768), size.integer("long", 1, 32768))
    except ValueError as error:
        raise FileMismatchError(f"metadata.{error}") from None


def _read_batch(batch: _Section) -> Batch:
    most = batch.integer("max", 1, 65536)
    best = batch.integer("opt", 1, most)
    return Batch(batch.integer("min", 1, best), best, most)


def _read_head(head: _Section, levels: int) -> MaskHead:
    plan = MaskHead(
        mask_channels=head.integer("mask_channels", 1, 510),
        layer_widths=head.integers("layer_widths", 1, 512),
        relative_coordinates=head.boolean("relative_coordinates"),
        coordinate_scales=head.positive_numbers("coordinate_scales", length=levels),
        mask_stride=head.integer("mask_stride", 1, 4096),
    )
    if plan.layer_widths[-1] != 1 or len(plan.layer_widths) > 8:
        raise FileMismatchError(
            "metadata.head.layer_widths must be at most 8 widths, the last of them 1, "
            f"got {list(plan.layer_widths)}"
        )
    return plan
