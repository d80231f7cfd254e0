"""Configuration of the network that ships."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal, Self, get_args

from boxseg.errors import counted

BackboneName = Literal[
    "resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2", "mobilenet_v3_large"
]
Norm = Literal["group", "batch", "none"]
Score0Rule = Literal["sqrt_cls_quality", "cls"]
FinalRule = Literal["score0", "sqrt_score0_mask"]

STRIDES = (8, 16, 32, 64, 128)
"""Pixels per cell of the levels P3..P7."""

SIZE_DIVISOR = 32
"""Both sides of a network input are multiples of this."""

LONGEST_SIDE = 32768
"""Pixels of a network input; the metadata of a deployed file have the same limit."""

_RANGES = {
    "fpn_channels": (1, 4096),
    "tower_channels": (1, 4096),
    "tower_depth": (0, 64),
    "mask_channels": (1, 510),
    "mask_branch_channels": (1, 4096),
    "mask_branch_depth": (0, 64),
    "mask_head_channels": (1, 512),
    "mask_head_layers": (1, 8),
    "candidates": (1, 1_000_000),
    "max_det": (1, 1_000_000),
}
"""Least and most of each whole number; those of the mask head are the native runtime's."""


@dataclass(frozen=True)
class ModelConfig:
    """What the student is made of and how its output is read.

    Raises:
        ValueError: if a value is outside its range; the message starts with `model.<field>`.
    """

    classes: tuple[str, ...]
    """Class names in the order of the classifier's channels."""
    category_ids: tuple[int, ...]
    """The data set's own id of each class, same order."""
    backbone: BackboneName = "resnet50"
    fpn_channels: int = 256
    """Channels of P3..P7."""
    tower_channels: int = 256
    """Channels of the classification and box towers."""
    tower_depth: int = 4
    """3x3 convolutions per tower."""
    tower_norm: Norm = "group"
    """Normalisation in the towers: group uses 32 groups, or one per 8 channels if fewer; batch has
    a norm for each level of the pyramid, which export folds away."""
    mask_channels: int = 16
    """Channels of the mask features that dynamic heads read."""
    mask_branch_channels: int = 128
    mask_branch_depth: int = 4
    """3x3 convolutions of the mask branch after the levels are summed."""
    mask_head_channels: int = 8
    """Hidden width of the dynamic mask head."""
    mask_head_layers: int = 3
    """1x1 layers of the dynamic mask head; the last one gives one logit."""
    score0: Score0Rule = "sqrt_cls_quality"
    final_score: FinalRule = "score0"
    imgsz: tuple[int, int] = (800, 1344)
    """(height, width) of the deployed input; frames are fitted inside."""
    short_long: tuple[int, int] | None = None
    """(short, long) sides for evaluation in torch; null evaluates at imgsz."""
    candidate_score: float = 0.05**0.5
    """A candidate needs a score0 above this."""
    nms_iou: float = 0.6
    candidates: int = 1000
    """Candidates that reach NMS."""
    max_det: int = 100
    """Detections kept per frame."""

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        if not self.classes:
            raise ValueError("model.classes is empty; a network needs at least one class")
        if len(self.category_ids) != len(self.classes):
            raise ValueError(
                f"model.category_ids has {len(self.category_ids)} entries for "
                f"{counted(len(self.classes), 'class')}; one id per class is needed"
            )
        for name in self.classes:
            if not isinstance(name, str):
                raise ValueError(f"model.classes must be names, got {name!r}")
        for number in self.category_ids:
            if not isinstance(number, int) or number < 0:
                raise ValueError(
                    f"model.category_ids must be integers of at least 0, got {number!r}"
                )
        for name, allowed in (
            ("backbone", get_args(BackboneName)),
            ("tower_norm", get_args(Norm)),
            ("score0", get_args(Score0Rule)),
            ("final_score", get_args(FinalRule)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"model.{name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ValueError(
                    f"model.{name} must be an integer in {least}..{most}, got {value!r}"
                )
        if self.tower_norm == "group" and self.tower_channels % 8:
            raise ValueError(
                f"model.tower_channels must be a multiple of 8 with tower_norm group, "
                f"got {self.tower_channels}"
            )
        for side in self.imgsz:
            if (
                not isinstance(side, int)
                or side % SIZE_DIVISOR
                or not SIZE_DIVISOR <= side <= LONGEST_SIDE
            ):
                raise ValueError(
                    f"model.imgsz must be multiples of {SIZE_DIVISOR} (height width), "
                    f"{SIZE_DIVISOR}..{LONGEST_SIDE}, got {self.imgsz[0]} {self.imgsz[1]}"
                )
        if self.short_long is not None and not 0 < self.short_long[0] <= self.short_long[1]:
            raise ValueError(f"model.short_long must be 0 < short <= long, got {self.short_long}")
        for name in ("candidate_score", "nms_iou"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
                raise ValueError(f"model.{name} must be in [0, 1], got {value!r}")

    @property
    def mask_head_widths(self) -> tuple[int, ...]:
        """Output channels of each dynamic layer."""
        return (self.mask_head_channels,) * (self.mask_head_layers - 1) + (1,)

    @property
    def mask_head_parameters(self) -> int:
        """Numbers that the controller writes per location: weights, then biases."""
        total, width_in = 0, self.mask_channels + 2
        for width in self.mask_head_widths:
            total += width_in * width + width
            width_in = width
        return total

    def to_dict(self) -> dict[str, object]:
        """Return the config as JSON types."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Build a config from JSON types, refusing unknown keys."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"model has unknown keys {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        return cls(
            **{
                key: tuple(value) if isinstance(value, list) else value
                for key, value in values.items()
            }  # type: ignore[arg-type]  # __post_init__ checks the values
        )
