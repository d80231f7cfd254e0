"""The recipe of a run: network, data, schedule and terms, read from YAML.

A recipe is frozen after reading. `-o a.b=c` on the command line replaces one value; the value is
YAML, so `-o model.imgsz=[320,640]`, `-o terms.pairwise.threshold=0.2` and `-o terms.pairwise=null`
(which removes the term) all mean what they look like.

A file may build on another with `base: NAME_OR_FILE`: the name of a recipe that ships, or the path
of a YAML file relative to the one that names it. Mappings are merged, everything else replaces, and
null takes a term, a method or a whole part out. A base holds settings and nothing else, so a
relative path may lead anywhere; an absolute one is refused because such a recipe works on one
machine only. What a run writes down is always the whole recipe, without `base`.

A run saves itself (trainer.pt and last.pt) at the end of every epoch and every
`schedule.save_every` steps, 500 unless the recipe says otherwise; `--resume` continues from the
last save.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from boxseg.config import BackboneName, FinalRule, ModelConfig, Norm, Score0Rule
from boxseg.configs import names_a_file, shipped_recipes, suggest_recipes

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
TermOptions = dict[str, bool | int | float | str]
ScreenSize = tuple[int, int]


class _Section(BaseModel):
    """A frozen part of a recipe that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelRecipe(_Section):
    """The network (fields of ModelConfig, see there) and where its weights start."""

    backbone: BackboneName = "resnet50"
    fpn_channels: int = 256
    tower_channels: int = 256
    tower_depth: int = 4
    tower_norm: Norm = "group"
    mask_channels: int = 16
    mask_branch_channels: int = 128
    mask_branch_depth: int = 4
    mask_head_channels: int = 8
    mask_head_layers: int = 3
    score0: Score0Rule = "sqrt_cls_quality"
    final_score: FinalRule = "score0"
    imgsz: ScreenSize = (800, 1344)
    short_long: ScreenSize | None = None
    candidate_score: float = 0.05**0.5
    nms_iou: float = 0.6
    candidates: int = 1000
    max_det: int = 100

    weights: str | None = None
    """Where the backbone starts: a torchvision weight name (IMAGENET1K_V2), the path of a
    torchvision state_dict (environment variables are expanded), or null for random weights."""
    frozen_stages: int = Field(default=0, ge=0, le=5)
    """Stages of the backbone, counted from the image, that stay as they start."""
    frozen_bn: bool = False
    """Keep the backbone's batch norms as they start: statistics, scale and shift."""

    @model_validator(mode="after")
    def _network_is_possible(self) -> Self:
        """Let ModelConfig refuse contradictions before any data is read."""
        self.build(classes=("any",), category_ids=(1,))
        return self

    def build(self, classes: Sequence[str], category_ids: Sequence[int]) -> ModelConfig:
        """Return the network's config for the classes of a data set."""
        own = {"weights", "frozen_stages", "frozen_bn"}
        return ModelConfig(
            classes=tuple(classes),
            category_ids=tuple(category_ids),
            **self.model_dump(exclude=own),
        )


def _flip_setting(value: object) -> object:
    """Check a flip rule; YAML 1.1 reads a bare on and off as booleans."""
    if isinstance(value, bool):
        return "on" if value else "off"
    pairs = isinstance(value, Mapping) and value
    if value in ("on", "off") or (
        pairs and all(isinstance(name, str) for pair in pairs.items() for name in pair)
    ):
        return value
    raise ValueError(f"data.flip must be off, on or {{left class: right class}}, got {value!r}")


def _term_options(value: object) -> object:
    """Check that terms are {name: {option: plain value}}."""
    if not isinstance(value, Mapping):
        raise ValueError(f"terms must be {{name: {{option: value}}}}, got {value!r:.60}")
    if not value:
        raise ValueError("terms is empty; a recipe needs at least one term")
    for name, options in value.items():
        if not isinstance(options, Mapping):
            raise ValueError(
                f"terms.{name} must be a mapping of options, or null to leave the term out, "
                f"got {options!r:.60}"
            )
        for option, setting in options.items():
            if not isinstance(setting, bool | int | float | str):
                raise ValueError(
                    f"terms.{name}.{option} must be a number or a word, got {setting!r:.60}"
                )
    return value


def _one_method(value: object, info: ValidationInfo) -> object:
    """Check that a section names exactly one method: {method: {option: plain value}}."""
    if value is None:
        return None
    where = info.field_name
    if isinstance(value, Mapping):  # a method that is set to null is left out, as terms are
        value = {name: options for name, options in value.items() if options is not None}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ValueError(
            f"{where} must name one method, {{method: {{option: value}}}}, or be null, "
            f"got {value!r:.60}"
        )
    for name, options in value.items():
        if not isinstance(options, Mapping):
            raise ValueError(f"{where}.{name} must be a mapping of options, got {options!r:.60}")
        for option, setting in options.items():
            if not isinstance(setting, bool | int | float | str):
                raise ValueError(
                    f"{where}.{name}.{option} must be a number or a word, got {setting!r:.60}"
                )
    return value


class DataRecipe(_Section):
    """How images are drawn and resized."""

    short_sides: Annotated[tuple[int, ...], Field(min_length=1)] = (640, 672, 704, 736, 768, 800)
    """Short sides in pixels, from which one is drawn."""
    size_per: Literal["image", "batch"] = "image"
    """Draw a short side for each image, or one for all images of a step, which are padded to the
    largest of them: one size for all spares that padding."""
    aspect_groups: int = Field(default=1, ge=1, le=64)
    """Batches hold images of one group of like height / width, which spares padding: 1 mixes all, 2
    parts landscape from portrait, 8 also narrow from wide (torchvision's usual groups)."""
    long_side: int = Field(default=1333, ge=32)
    """The long side is never longer than this, in pixels."""
    flip: Annotated[Literal["off", "on"] | dict[str, str], BeforeValidator(_flip_setting)] = "on"
    """Mirror half of the images: off, on, or {left class: right class} to swap names as well."""
    box_jitter: float = Field(default=0.0, ge=0, le=0.4)
    """Misplace each side of each box by up to this fraction of the box, once and for all: shows
    what careless annotation costs."""
    batch_size: int = Field(default=16, ge=1)
    """Images per optimizer step, over all devices."""
    workers: int = Field(default=2, ge=0)
    """Loader processes per device, at most one per core; 0 loads in the training process. Never
    changes the numbers."""
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Train on these classes only, in this order; null takes all classes of the file."""

    @model_validator(mode="after")
    def _sides_are_possible(self) -> Self:
        for side in self.short_sides:
            if not 32 <= side <= self.long_side:
                raise ValueError(
                    f"data.short_sides must lie between 32 and data.long_side "
                    f"({self.long_side}), got {side}"
                )
        return self


class ScheduleRecipe(_Section):
    """Length, learning rate and optimizer."""

    max_iters: int = Field(default=90_000, ge=1)
    """Optimizer steps."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW with betas (momentum, 0.999)."""
    lr: float = Field(default=0.01, gt=0)
    """Learning rate after the warm-up, for the recipe's batch size."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    """On every parameter, norms and biases included."""
    warmup_steps: int = Field(default=1000, ge=0)
    """Optimizer steps over which the rate rises linearly from lr / 1000."""
    milestones: tuple[float, ...] = (0.7, 0.9)
    """Fractions of max_iters at which the rate is divided by ten."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient of all parameters; null does not clip."""
    save_every: int | None = Field(default=500, ge=1)
    """Optimizer steps between saves, beside those at the end of an epoch, after a validation and
    when interrupted: what a power cut can cost. null saves at those only."""

    @model_validator(mode="after")
    def _milestones_rise(self) -> Self:
        inside = all(0.0 < milestone < 1.0 for milestone in self.milestones)
        if not inside or list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(
                f"schedule.milestones must be rising fractions in (0, 1), got {self.milestones}"
            )
        return self

    def learning_rate(self, step: int) -> float:
        """Return the rate of optimizer step `step`, counted from 0."""
        passed = sum(step >= round(milestone * self.max_iters) for milestone in self.milestones)
        rate = self.lr * 0.1**passed
        if step < self.warmup_steps:
            start = 1e-3
            rate *= start + (1.0 - start) * step / self.warmup_steps
        return rate


SHORT_SCHEDULE = 10_000
"""Optimizer steps below which the papers' horizon of 1000 steps is too long for a teacher."""


class TeacherRecipe(_Section):
    """The teacher: an average of the student's weights that gives objects their pseudo masks."""

    start: float | None = Field(default=None, ge=0, lt=1)
    """Fraction of the schedule at which the teacher becomes a copy of the student; before that
    there is none. null: 0, or 0.3 where the schedule has fewer than 10,000 steps."""
    momentum: float | None = Field(default=None, ge=0, lt=1)
    """Share of the old average in each step. null: 0.999, or 1 - 1 / (0.03 max_iters) where the
    schedule has fewer than 10,000 steps."""
    imgsz: tuple[int, int] | None = None
    """Short and long side in pixels of what the teacher sees; null is the student's geometry."""

    @model_validator(mode="after")
    def _sides_are_possible(self) -> Self:
        if self.imgsz is not None and not 32 <= self.imgsz[0] <= self.imgsz[1]:
            raise ValueError(
                "teacher.imgsz must be short and long side in pixels, at least 32, "
                f"got {list(self.imgsz)}"
            )
        return self

    def start_step(self, max_iters: int) -> int:
        """Return the optimizer step before which the teacher starts."""
        short = 0.3 if max_iters < SHORT_SCHEDULE else 0.0
        return round((short if self.start is None else self.start) * max_iters)

    def momentum_of(self, max_iters: int) -> float:
        """Return the momentum for a schedule of `max_iters` optimizer steps."""
        if self.momentum is not None:
            return self.momentum
        return 0.999 if max_iters >= SHORT_SCHEDULE else max(0.0, 1 - 1 / (0.03 * max_iters))


class ViewRecipe(_Section):
    """Photometric changes of what the student sees (BoxTeacher's strong augmentation).

    They come last: affinity and teacher see the clean image.
    """

    jitter: float = Field(default=0.8, ge=0, le=1)
    """Probability of colour jitter: brightness, contrast and saturation by up to .4, hue .1."""
    grayscale: float = Field(default=0.2, ge=0, le=1)
    """Probability of losing all colour."""
    blur: float = Field(default=0.5, ge=0, le=1)
    """Probability of a Gaussian blur, kernel 3, sigma .1 to 2."""


class ValidationRecipe(_Section):
    """When and on how much the student is scored while it trains."""

    every_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between validations; null validates at the end only, which always happens."""
    max_images: int | None = Field(default=None, ge=1)
    """Score the first images of val.json only; null scores all."""


class Recipe(_Section):
    """All that decides the numbers of a run, except the data and the devices."""

    model: ModelRecipe = ModelRecipe()
    data: DataRecipe = DataRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    terms: Annotated[dict[str, TermOptions], BeforeValidator(_term_options)]
    """The parts of the loss by name, each with its options; see boxseg.train.criterion."""
    teacher: TeacherRecipe | None = None
    """Average of the student that gives pseudo masks; null trains without one."""
    pseudo_masks: Annotated[dict[str, TermOptions] | None, BeforeValidator(_one_method)] = None
    """How the teacher's predictions become masks, {method: {option: value}}; see
    boxseg.train.pseudo_masks."""
    copy_paste: Annotated[dict[str, TermOptions] | None, BeforeValidator(_one_method)] = None
    """How objects are pasted into other images, {method: {option: value}}; see
    boxseg.train.memory_bank."""
    view: ViewRecipe | None = None
    """Photometric changes of what the student sees; null shows it the clean image."""
    validation: ValidationRecipe = ValidationRecipe()
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides initial weights, data order and geometry."""
    precision: Precision = "32-true"

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if (self.teacher is None) != (self.pseudo_masks is None):
            given, missing = (
                ("teacher", "pseudo_masks")
                if self.teacher
                else (
                    "pseudo_masks",
                    "teacher",
                )
            )
            raise ValueError(f"{given} needs {missing} beside it; the recipe names one of the two")
        if self.copy_paste is not None and self.teacher is None:
            raise ValueError("copy_paste needs a teacher, whose masks cut out what is pasted")
        return self

    @property
    def uses_masks(self) -> bool:
        """Whether the recipe is supervised by true masks."""
        return "mask_dice" in self.terms


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that also reads 1e-4 as a number, as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, source: str) -> object:
    """Return the value of a YAML text; no tag can build a Python object.

    Raises:
        ValueError: one line with source, line and problem.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"{source}{line}: not valid YAML: {problem}") from None
    except RecursionError:
        raise ValueError(f"{source}: not valid YAML: nested too deeply") from None


def _section_at(path: tuple[str, ...]) -> type[BaseModel] | None:
    """Return the recipe section that a path names, or None inside free mappings."""
    section: type[BaseModel] = Recipe
    for name in path:
        field = section.model_fields.get(name)
        kind = field.annotation if field is not None else None
        for choice in get_args(kind) or (kind,):
            if isinstance(choice, type) and issubclass(choice, BaseModel):
                section = choice
                break
        else:
            return None
    return section


def _set_override(values: dict[str, Any], override: str) -> None:
    """Write one `a.b=c` into the raw recipe."""
    path, equals, text = override.partition("=")
    names = tuple(name.strip() for name in path.split("."))
    if not equals or not all(names):
        raise ValueError(f"-o needs key=value such as schedule.lr=0.005, got {override!r}")
    value = parse_yaml(text, f"-o {path}")
    optional = names[0] in Recipe.model_fields and Recipe.model_fields[names[0]].default is None
    if len(names) == 1 and _section_at(names) is not None and not optional:
        raise ValueError(
            f"-o {path} names a section; give one of its settings, {path}.<name>=value"
        )
    for depth, name in enumerate(names):
        section = _section_at(names[:depth])
        if section is not None and name not in section.model_fields:
            raise ValueError(_unknown_key(names[: depth + 1], section))
    here = values
    for depth, name in enumerate(names[:-1]):
        below = here.setdefault(name, {})
        if below is None:
            below = here[name] = {}
        if not isinstance(below, dict):
            raise ValueError(
                f"-o {path}: {'.'.join(names[: depth + 1])} is {below!r} and has no settings"
            )
        here = below
    here[names[-1]] = value


def _unknown_key(path: Sequence[str], section: type[BaseModel]) -> str:
    where = ".".join(path[:-1]) or "a recipe"
    return (
        f"{'.'.join(path)} is not a setting; {where} has: {', '.join(sorted(section.model_fields))}"
    )


def _lines(error: ValidationError) -> str:
    """Put pydantic's findings on one line, each with the whole path of the setting."""
    found: list[str] = []
    for item in error.errors(include_url=False):
        names = tuple(str(part) for part in item["loc"])
        path = ".".join(name for name in names if "[" not in name and name not in ("str", "int"))
        message = item["msg"].removeprefix("Value error, ")
        section = _section_at(names[:-1]) if names else None
        if item["type"] == "extra_forbidden" and section is not None:
            found.append(_unknown_key(names, section))
        elif item["type"] == "missing":
            found.append(f"{path} is missing")
        elif item["type"] == "value_error":
            found.append(message)
        else:
            message = message[0].lower() + message[1:]
            found.append(f"{path}: {message}, got {item['input']!r}")
    return "; ".join(dict.fromkeys(found))


def parse_recipe(values: object, overrides: Iterable[str] = (), source: str = "recipe") -> Recipe:
    """Build a recipe from plain values.

    Args:
        values: What the YAML file holds.
        overrides: `a.b=c` strings, applied in order.
        source: Name of the file for messages.

    Raises:
        ValueError: one line that names every wrong setting by its whole path.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source}: a recipe is a mapping of settings, got {values!r:.60}")
    raw = cast(dict[str, Any], _copy(values))
    for override in overrides:
        _set_override(raw, override)
    terms = raw.get("terms")
    if isinstance(terms, dict):
        raw["terms"] = {name: options for name, options in terms.items() if options is not None}
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise ValueError(f"{source}: {_lines(error)}") from None


def _copy(value: object) -> object:
    """Copy nested dicts, so that an override never reaches the caller's values."""
    if isinstance(value, dict):
        return {str(key): _copy(item) for key, item in value.items()}
    return value


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one recipe's values over another's; mappings merge, everything else replaces."""
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = _merged(old, value)
        merged[name] = value
    return merged


def _base_file(base: object, path: Path) -> Path:
    """Return the file that `base` in `path` names."""
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"{path}: base must be the name of a recipe or the path of a YAML file, "
            f"got {base!r:.60}"
        )
    if not names_a_file(base):
        file = shipped_recipes().get(base)
        if file is None:
            raise ValueError(
                f"{path}: base: there is no recipe {base!r}; {suggest_recipes(base)}; "
                "or give the path of a YAML file"
            )
        return file
    if Path(base).is_absolute():
        raise ValueError(f"{path}: base must be a path relative to this file, got {base}")
    file = path.parent / base
    if not file.is_file():
        raise ValueError(f"{path}: base: there is no file {file}")
    return file


def _file_values(path: Path, above: tuple[Path, ...] = ()) -> object:
    """Return what a recipe file says, laid over its base.

    Args:
        path: The file.
        above: Files that build on it, the first of the chain first.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not valid YAML: not a text file in UTF-8") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict) or "base" not in values:
        return values
    base = _base_file(values["base"], path)
    chain = (*above, path)
    if base.resolve() in [file.resolve() for file in chain]:
        names = " -> ".join(file.name for file in (*chain, base))
        raise ValueError(f"{chain[0]}: base leads in a circle: {names}")
    below = _file_values(base, chain)
    if not isinstance(below, dict):
        raise ValueError(f"{base}: a recipe is a mapping of settings, got {below!r:.60}")
    return _merged(below, {name: value for name, value in values.items() if name != "base"})


def read_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file together with the files that it builds on; see parse_recipe.

    Raises:
        ValueError: if the file is not a recipe.
        OSError: if a file cannot be read.
    """
    return parse_recipe(_file_values(path), overrides, source=str(path))


def recipe_yaml(recipe: Recipe) -> str:
    """Return a recipe as YAML text that read_recipe turns into an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=100)


def _flat(value: object, path: str = "") -> dict[str, object]:
    """Return {whole path: value} of nested mappings; an empty one is a value."""
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    flat: dict[str, object] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{path}.{key}" if path else str(key))
    return flat


NEVER_CHANGES_NUMBERS = {"data.workers", "schedule.save_every"}
"""Settings that a resumed run may have otherwise."""


def differences(old: Recipe, new: Recipe) -> list[str]:
    """List the settings in which two recipes differ, as `path: old -> new`.

    Left out: data.workers and schedule.save_every, which cannot change the numbers.
    """
    before = _flat(old.model_dump(mode="json"))
    after = _flat(new.model_dump(mode="json"))
    paths = sorted((before.keys() | after.keys()) - NEVER_CHANGES_NUMBERS)
    none = "not set"
    return [
        f"{path}: {before.get(path, none)} -> {after.get(path, none)}"
        for path in paths
        if before.get(path, none) != after.get(path, none)
    ]


def expand_path(text: str, setting: str) -> Path:
    """Return a path with its environment variables replaced.

    Args:
        text: Path such as `$BOXSEG_DATA/weights/net.pth`.
        setting: The setting's whole path, for messages.

    Raises:
        ValueError: if a variable is not set.
    """
    expanded = os.path.expanduser(os.path.expandvars(text))
    unset = re.search(r"\$\{?(\w+)\}?", expanded)
    if unset:
        raise ValueError(
            f"{setting} is {text}, but the environment variable {unset.group(1)} is not set; "
            f"set it, or give the path with -o {setting}=FILE, or -o {setting}=null to start "
            "from random weights"
        )
    return Path(expanded)
