"""Prove an exported file: which weights went in, and that it answers like the network in torch.

Two proofs. The strip proof reads the graph before any optimisation: every initialiser is an entry
of the model's state dict, by name, shape and bytes, so nothing of training can be inside. The
parity gate runs the finished file, after every later pass, beside torch on images: first the raw
tensors, then the detections of the deployed post-processing.

B images, N detections, H x W pixels of a frame.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from boxseg.errors import DataError, FileMismatchError, ParityError
from boxseg.runtime.agreement import (
    IOU_LIMIT,
    SCORE_TOLERANCE,
    UNMATCHED_SHARE,
    DetectionDifference,
    Tolerance,
    match_detections,
    merge,
    score_cut,
)
from boxseg.runtime.images import IMAGE_SUFFIXES, leaves_folder, list_sources, read_image
from boxseg.runtime.metadata import Batch, Metadata
from boxseg.runtime.preprocess import Fit, letterbox
from boxseg.runtime.segmenter import Segmenter

if TYPE_CHECKING:
    import onnx

GRAPH_PREFIX = "student."
"""The graph's names are those of the state dict behind this."""

LARGEST_CONSTANT = 16
"""Elements; a larger constant node in an unoptimised graph would be weights in disguise."""

# Running counters of batch norm, which no graph reads.
UNUSED_SUFFIX = ".num_batches_tracked"


class Runner(Protocol):
    """What is compared: a torch backend or one of the runtime's."""

    name: str

    def run(self, image: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        """Return the outputs by name for RGB bytes (B, H, W, 3)."""
        ...


# ------------------------------------------------------------------------------- strip proof


@dataclass(frozen=True)
class StripProof:
    """What the unoptimised graph holds."""

    weights: int
    """Initialisers that are entries of the state dict, by name, shape and bytes."""
    parameters: int
    """Numbers in them."""
    size_bytes: int
    constants: dict[str, list[int]]
    """What is no weight, with shapes: initialisers of at most 16 numbers, and computed tensors."""


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays have the same type, shape and bytes."""
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def prove_strip(
    graph: onnx.GraphProto,
    state: Mapping[str, NDArray[Any]],
    computed: Sequence[NDArray[Any]] = (),
) -> StripProof:
    """Match every initialiser of an unoptimised graph with the state dict, one to one.

    Args:
        graph: What the exporter traced, before any pass.
        state: The model file's state dict as arrays.
        computed: Larger constants that a tracer may have computed of the input's size.

    Raises:
        ParityError: if a tensor differs, is missing or does not belong to the network.
    """
    from onnx import numpy_helper

    found: dict[str, NDArray[Any]] = {}
    constants: dict[str, list[int]] = {}
    for tensor in graph.initializer:
        name = tensor.name.removeprefix(GRAPH_PREFIX)
        value = numpy_helper.to_array(tensor)
        if tensor.name.startswith(GRAPH_PREFIX) and name in state:
            found[name] = value
        elif value.size <= LARGEST_CONSTANT:
            constants[tensor.name] = list(value.shape)
        else:
            raise ParityError(
                f"strip proof: the graph holds {tensor.name} {list(value.shape)}, "
                "which is not in the model's state dict"
            )
    for node in graph.node:
        for attribute in node.attribute:
            size = int(np.prod(attribute.t.dims)) if attribute.HasField("t") else 0
            if size <= LARGEST_CONSTANT:
                continue
            value = numpy_helper.to_array(attribute.t)
            if not any(_same(value, known) for known in computed):
                raise ParityError(
                    f"strip proof: node {node.name} holds a constant of {size} numbers, "
                    "which is no initialiser"
                )
            constants[node.output[0]] = list(value.shape)
    for name, value in state.items():
        if name.endswith(UNUSED_SUFFIX):
            continue
        if name not in found:
            raise ParityError(f"strip proof: {name} of the model is missing from the graph")
        held = found[name]
        if held.shape != value.shape or held.dtype != value.dtype:
            raise ParityError(
                f"strip proof: {name} is {held.dtype} {held.shape} in the graph and "
                f"{value.dtype} {value.shape} in the model"
            )
        if held.tobytes() != np.ascontiguousarray(value).tobytes():
            raise ParityError(
                f"strip proof: {name} has other values in the graph than in the model"
            )
    return StripProof(
        weights=len(found),
        parameters=sum(value.size for value in found.values()),
        size_bytes=sum(value.nbytes for value in found.values()),
        constants=constants,
    )


# -------------------------------------------------------------------------------- raw tensors


TOLERANCES = {
    "scores": Tolerance(1e-4, 0.0),
    "labels": Tolerance(0.0, 0.0),
    "locations": Tolerance(0.0, 0.0),
    "levels": Tolerance(0.0, 0.0),
    "mask_logits": Tolerance(1e-3, 1e-4),
    "class_logits": Tolerance(1e-4, 1e-4),
    "quality_logits": Tolerance(1e-4, 1e-4),
    "boxes": Tolerance(0.02, 0.0),  # input pixels
    "parameters": Tolerance(1e-4, 1e-4),
    "mask_features": Tolerance(1e-4, 1e-4),
}
"""For fp32. Engines that add in another order differ by about 1e-6; bf16 by about 1e-2."""


@dataclass(frozen=True)
class TensorDifference:
    """The worst element of one output over all images."""

    name: str
    shape: tuple[int, ...]
    difference: float
    """Largest absolute difference; infinite where a shape or a non-finite value differs."""
    allowed: float
    where: str
    """Image, index and both values of the worst element."""
    rms: float = 0.0
    """RMS of the difference as a share of the tensor's RMS, on the worst image."""
    rms_allowed: float | None = None
    places: str = ""
    """Where it was compared, in words; empty for everywhere."""

    @property
    def passed(self) -> bool:
        """Whether the tensor is within its tolerance."""
        even = self.rms_allowed is None or self.rms <= self.rms_allowed
        return self.difference <= self.allowed and even

    @property
    def share(self) -> float:
        """How much of its tolerance the tensor takes; where nothing is allowed, 0 or infinite."""
        rms = self.rms / self.rms_allowed if self.rms_allowed else 0.0
        if self.allowed > 0:
            return max(self.difference / self.allowed, rms)
        return float("inf") if self.difference > 0 else rms

    def line(self) -> str:
        """Return one line of a report."""
        verdict = "ok" if self.passed else "FAILED"
        return (
            f"{self.name:<15} {'x'.join(map(str, self.shape)):<16} "
            f"max |diff| {self.difference:.2e} of {self.allowed:.2e} allowed"
            f"{self._rms_words()}  {verdict}{f' ({self.places})' if self.places else ''}"
        )

    def _rms_words(self) -> str:
        if self.rms_allowed is None:
            return ""
        return f", RMS {100 * self.rms:.2g} % of {100 * self.rms_allowed:g} % allowed"


def _compare(
    name: str,
    image: str,
    expected: NDArray[Any],
    found: NDArray[Any],
    tolerance: Tolerance,
    judged: NDArray[np.bool_] | None = None,
) -> TensorDifference:
    """Compare one output on one image.

    Args:
        name: Of the output.
        image: Its name, for the report.
        expected: In torch.
        found: Of the file.
        tolerance: Of the output.
        judged: Which numbers count, broadcast to the shape, at least one; None counts all. What is
            not finite counts anywhere.
    """
    if expected.shape != found.shape:
        where = f"{image}: shape {found.shape}, torch has {expected.shape}"
        return TensorDifference(name, found.shape, float("inf"), tolerance.absolute, where)
    gap = np.abs(expected.astype(np.float64) - found)
    gap[np.isnan(gap)] = np.inf
    counted = np.isinf(gap) | (True if judged is None else judged)
    largest = float(np.abs(expected).max(initial=0.0, where=counted))
    allowed = max(tolerance.absolute, tolerance.relative * largest)
    index = np.unravel_index(int(np.where(counted, gap, -1.0).argmax()), gap.shape)
    at = tuple(int(step) for step in index)
    where = f"{image}: {name}{list(at)} is {found[at]:.6g}, torch has {expected[at]:.6g}"
    size = float(np.sqrt((expected.astype(np.float64) ** 2).mean(where=counted)))
    rms = float(np.sqrt((gap**2).mean(where=counted)))
    return TensorDifference(
        name,
        found.shape,
        float(gap[at]),
        allowed,
        where,
        rms / size if size > 0 else (0.0 if rms == 0 else math.inf),
        None if math.isinf(tolerance.rms) else tolerance.rms,
    )


def _pair_keys(outputs: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Number the (location, class) pairs of the forms topk and graph, (B, K)."""
    labels, levels = (outputs[name].astype(np.int64) for name in ("labels", "levels"))
    x, y = np.moveaxis(np.nan_to_num(outputs["locations"]).astype(np.int64), -1, 0)
    keys: NDArray[np.int64] = ((labels << 3 | levels) << 17 | y) << 17 | x
    return keys


def align_pairs(
    expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Put the rows of `found` in the order of the same pairs in `expected`.

    Rounding decides the order of nearly equal scores, and which pair is the last of K. A pair that
    only one side has takes the other's row, with a score that is as far off as the pair's own is
    from the last row's: nothing where rounding decided, and a failure elsewhere.

    Args:
        expected: Outputs of the form topk or graph.
        found: Outputs of the same shapes.
    """
    rows = {name for name in found if name != "mask_features"}
    aligned = {name: value.copy() for name, value in found.items()}
    for image, (ours, theirs) in enumerate(
        zip(_pair_keys(expected), _pair_keys(found), strict=True)
    ):
        _, here, there = np.intersect1d(ours, theirs, return_indices=True)
        alone = np.setdiff1d(np.arange(len(ours)), here)
        others = np.setdiff1d(np.arange(len(theirs)), there)
        for name in rows:
            aligned[name][image, here] = found[name][image, there]
            aligned[name][image, alone] = expected[name][image, alone]
        both = np.stack([expected["scores"][image, alone], found["scores"][image, others]])
        last = min(expected["scores"][image].min(), found["scores"][image].min())
        aligned["scores"][image, alone] -= (both - last).max(axis=0, initial=0.0)
    return aligned


PLACES = {"quality_logits": 1, "boxes": 1, "parameters": 2}
"""Outputs of the form dense that say something of one location, and the axis of locations."""
PAIRS = {"boxes": 1, "parameters": 1, "mask_logits": 1}
"""Outputs of the forms topk and graph that say something of one pair, and the axis of pairs."""
CELLS = ("mask_features", "mask_logits")
"""Outputs whose last two axes are the cells of the masks."""


@dataclass(frozen=True)
class Seen:
    """What of the raw tensors a user can see; the rest decides nothing that is reported."""

    metadata: Metadata
    """Of the network: the rule of the score and the least that a candidate needs."""
    contents: Mapping[str, NDArray[np.int64]]
    """By name of the images: height and width of each frame inside the input, pixels, (B, 2)."""
    only_candidates: bool
    """Whether what is said of a place counts at candidates inside the frame alone."""


def candidate_places(outputs: Mapping[str, NDArray[Any]], metadata: Metadata) -> NDArray[np.bool_]:
    """Return where a class reaches the candidate score: locations (B, L), or pairs (B, K).

    What an output says elsewhere is dropped by selection before anything reads it. A score that is
    not a number counts as reached.

    Args:
        outputs: Of one run.
        metadata: With the rule of the score and the least that a candidate needs.
    """
    if "scores" in outputs:
        score = outputs["scores"].astype(np.float64)
    else:
        with np.errstate(over="ignore"):  # exp of a large number is infinite, its share 0
            score = 1 / (1 + np.exp(-outputs["class_logits"].astype(np.float64).max(axis=-1)))
            if metadata.score0 == "sqrt_cls_quality":
                quality = 1 / (1 + np.exp(-outputs["quality_logits"].astype(np.float64)))
                score = np.sqrt(score * quality)
    reached: NDArray[np.bool_] = ~(score <= metadata.candidate_score)
    return reached


def _centres(
    outputs: Mapping[str, NDArray[Any]], strides: Sequence[int], size: tuple[int, int]
) -> NDArray[np.float64]:
    """Return x, y of the locations or pairs of an input (height, width), (1 or B, L, 2)."""
    if "locations" in outputs:
        return outputs["locations"].astype(np.float64)
    grids = []
    for stride in strides:
        rows, columns = (-(-side // stride) for side in size)
        y, x = np.mgrid[:rows, :columns] * stride + stride // 2
        grids.append(np.stack([x.ravel(), y.ravel()], axis=-1))
    return np.concatenate(grids)[None].astype(np.float64)


def _seen(
    expected: Mapping[str, NDArray[Any]],
    found: Mapping[str, NDArray[Any]],
    seen: Seen,
    contents: NDArray[np.int64],
    size: tuple[int, int],
) -> tuple[dict[str, NDArray[np.bool_]], dict[str, str]]:
    """Return which numbers of the outputs can reach a user, and where that is in words.

    Args:
        expected: In torch.
        found: Of the file, in the same order of pairs.
        seen: As for `compare_tensors`.
        contents: Height and width of each frame inside the input, pixels, (B, 2).
        size: Height and width of the input, pixels.
    """
    said = seen.metadata
    places = candidate_places(expected, said) | candidate_places(found, said)
    centres = _centres(expected, said.strides, size)
    places &= (centres < contents[:, None, ::-1]).all(axis=-1)
    # a pixel of the frame reads the cells around it: up to one beyond the frame
    sides = -(-contents // said.head.mask_stride) + 1
    rows, columns = (-(-side // said.head.mask_stride) for side in size)
    cells = (np.arange(rows) < sides[:, :1])[:, :, None] & (np.arange(columns) < sides[:, 1:])[
        :, None
    ]  # (B, h, w)
    axes, what = (PAIRS, "pairs") if "scores" in expected else (PLACES, "locations")
    of_places = (
        f"{int(places.sum())} of {places.size} {what}: inside the frame, a class reaches "
        f"{said.candidate_score:.3g}"
    )
    counted: dict[str, NDArray[np.bool_]] = {}
    words = {}
    for name, values in expected.items():
        if name in axes and seen.only_candidates:
            shape = [1] * values.ndim
            shape[0], shape[axes[name]] = places.shape
            counted[name], words[name] = places.reshape(shape), of_places
        if name in CELLS:
            counted[name] = counted.get(name, np.True_) & cells[:, None]
            words.setdefault(name, f"{int(cells.sum())} of {cells.size} cells: inside the frame")
    return counted, words


def _stacks(images: Mapping[str, NDArray[Any]], batch: Batch) -> dict[str, NDArray[Any]]:
    """Join rows of one image each to the least and to the largest number that a file takes."""
    names = list(images)
    stacks = {
        " + ".join(dict.fromkeys(group)): np.concatenate([images[name] for name in group])
        for group in (
            [names[(first + i) % len(names)] for i in range(batch.least)]
            for first in range(0, len(names), batch.least)
        )
    }
    if batch.most > batch.least:
        group = [names[i % len(names)] for i in range(batch.most)]
        stacks[f"batch of {batch.most}"] = np.concatenate([images[name] for name in group])
    return stacks


def compare_tensors(
    reference: Runner,
    exported: Runner,
    images: Mapping[str, NDArray[np.uint8]],
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
    seen: Seen | None = None,
) -> list[TensorDifference]:
    """Run both on the same bytes and return the worst difference per output, in graph order.

    Args:
        reference: The network in torch.
        exported: The file under test.
        images: Letterboxed RGB bytes (B, H, W, 3) by name.
        tolerances: By output.
        seen: Compare cells of masks only where a pixel of the frame reads them and, if only
            candidates count, what is said of a place only where its centre lies in the frame and,
            in either answer, a class reaches the candidate score. None compares everything, and so
            does a set of images on which no class reaches the score, what is said of places: else
            nothing would be compared.

    Raises:
        ParityError: if an output is missing.
    """
    worst: dict[str, TensorDifference] = {}
    narrow: dict[str, TensorDifference] = {}

    def note(known: dict[str, TensorDifference], new: TensorDifference) -> None:
        """Keep the worse of two images."""
        old = known.get(new.name)
        if old is None or new.share > old.share:
            known[new.name] = new

    for image, pixels in images.items():
        expected, found = reference.run(pixels), dict(exported.run(pixels))
        for name in expected:
            if name not in found:
                raise ParityError(f"{exported.name} gives no output {name}, only {sorted(found)}")
        is_alike = all(found[name].shape == expected[name].shape for name in expected)
        if "scores" in expected and is_alike:
            found = align_pairs(expected, found)
        for name in expected:
            note(worst, _compare(name, image, expected[name], found[name], tolerances[name]))
        if seen is None:
            continue
        if not is_alike:
            return list(worst.values())
        height, width = pixels.shape[1:3]
        counted, words = _seen(expected, found, seen, seen.contents[image], (height, width))
        for name, where in counted.items():
            if where.any():
                new = _compare(name, image, expected[name], found[name], tolerances[name], where)
                note(narrow, replace(new, places=words[name]))
    return list((worst | narrow).values())


# --------------------------------------------------------------------------------- detections


@dataclass(frozen=True)
class Gate:
    """What a file of one precision may differ from torch in fp32."""

    tensors: Mapping[str, Tolerance] = field(default_factory=lambda: TOLERANCES)
    score: float = SCORE_TOLERANCE
    iou: float = IOU_LIMIT
    """Smallest IoU of a box and of a mask with its partner."""
    unmatched: float = UNMATCHED_SHARE
    """Share of detections that may have no partner."""
    only_candidates: bool = False
    """Whether what is said of a place counts at candidates alone; see `compare_tensors`."""


def _reduced(share: float, rms: float, pixels: float, score: float) -> dict[str, Tolerance]:
    """Return tolerances of the raw tensors: shares of numbers, pixels of boxes, and scores.

    Which pairs were chosen is exact: `align_pairs` has put the same pairs beside each other.
    """
    other = {"boxes": Tolerance(pixels, 0.0), "scores": Tolerance(score, 0.0)}
    other |= dict.fromkeys(("labels", "locations", "levels"), Tolerance(0.0, 0.0))
    return {name: other.get(name, Tolerance(0.0, share, rms)) for name in TOLERANCES}


GATES = {
    "fp32": Gate(),
    "fp16": Gate(_reduced(0.02, 0.01, 2.0, 0.01), score=0.01, iou=0.95, unmatched=0.05),
    "bf16": Gate(_reduced(0.12, 0.06, 8.0, 0.05), score=0.05, iou=0.85, unmatched=0.10),
    "int8": Gate(
        _reduced(0.40, 0.20, 24.0, 0.20),
        score=0.12,
        iou=0.75,
        unmatched=0.25,
        only_candidates=True,
    ),
}
"""By precision. A rounding error of fp16 is at most 0.05 % of a number, of bf16 0.4 %; networks of
fifty layers were seen to differ by 0.3 % and 3 % of the largest number. int8 rounds to steps of
1/127 of the largest: the gate finds what is broken, and the accuracy report what it costs. Cells of
masks that no pixel of the frame reads are left out in all precisions: in the padding, where all
pixels are alike, the rounding errors of all places are alike too and add up (mask features of a
trained network were off by 1.2e-4 there in fp32, and in int8 by 40 %, beside 8 % in the frame). In
int8 so is what is said of a place where nothing is found."""


# --------------------------------------------------------------------------------- the gate


@dataclass(frozen=True)
class Samples:
    """Frames to compare on."""

    frames: dict[str, NDArray[np.uint8]]
    """RGB (H, W, 3) by name."""
    source: str
    """One phrase for reports: whose images these are."""


@dataclass(frozen=True)
class ParityReport:
    """Result of the gate."""

    file: str
    against: str
    backend: str
    samples: str
    images: list[str]
    tensors: list[TensorDifference]
    detections: DetectionDifference
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether everything is within its tolerance."""
        return self.detections.passed and all(part.passed for part in self.tensors)

    def failure(self) -> str:
        """Say the first thing that differs."""
        for part in self.tensors:
            if not part.passed:
                return (
                    f"first divergent tensor {part.name}: {part.where}; "
                    f"difference {part.difference:.3g}, allowed {part.allowed:.3g}"
                )
        return (
            f"{len(self.detections.missing)} of {self.detections.expected} detections have no "
            f"partner, the first is {self.detections.missing[0]}"
            if self.detections.missing
            else "nothing differs"
        )

    def lines(self) -> list[str]:
        """Return the report for people."""
        head = f"parity of {self.file} ({self.backend}) with {self.against}, on {self.samples}"
        body = [f"  {part.line()}" for part in self.tensors]
        return [head, *body, f"  {self.detections.line()}", *(f"  {n}" for n in self.notes)]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "file": self.file,
            "against": self.against,
            "backend": self.backend,
            "passed": self.passed,
            "samples": self.samples,
            "images": self.images,
            "tensors": [asdict(part) | {"passed": part.passed} for part in self.tensors],
            "detections": asdict(self.detections) | {"passed": self.detections.passed},
            "notes": self.notes,
        }


def drawn_samples(
    seed: int = 0, count: int = 2, height: int = 480, width: int = 640, noise: float = 12.0
) -> Samples:
    """Draw shapes over noise, for a gate without photographs: same bytes for the same seed.

    Args:
        seed: Of the shapes.
        count: Images.
        height: Rows.
        width: Columns.
        noise: Standard deviation of the noise, grey levels; without it a PNG is small.
    """
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    frames = {}
    for number in range(count):
        slope = generator.uniform(-1, 1, (3, 2))
        image = np.stack([128 + 90 * (a * x / width + b * y / height) for a, b in slope], axis=-1)
        for _ in range(12):
            centre_x, centre_y = generator.uniform(0, width), generator.uniform(0, height)
            half_x, half_y = generator.uniform(15, width / 5), generator.uniform(15, height / 4)
            offset_x, offset_y = (x - centre_x) / half_x, (y - centre_y) / half_y
            if generator.uniform() < 0.5:
                inside = offset_x**2 + offset_y**2 < 1
            else:
                inside = np.maximum(abs(offset_x), abs(offset_y)) < 1
            image[inside] = generator.uniform(0, 255, 3)
        image += generator.normal(0, noise, image.shape)
        frames[f"drawn {number}"] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return Samples(frames, f"{count} drawn images (seed {seed}); --data takes real ones")


def _annotated_files(annotation_file: Path) -> list[Path]:
    """Return the image paths of a COCO file, relative to its folder."""
    try:
        images = json.loads(annotation_file.read_text(encoding="utf-8"))["images"]
        names = [entry["file_name"] for entry in images]
    except OSError as error:
        raise DataError(f"{annotation_file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f"{annotation_file} is not a COCO file: {error!r}") from error
    for name in names:
        if not isinstance(name, str):
            raise DataError(f"{annotation_file}: file_name must be a text, got {name!r}")
        if leaves_folder(name):
            raise DataError(f"{annotation_file}: file_name {name!r} leaves the folder of images")
    return [annotation_file.parent / name for name in names]


def image_files(data: Path, part: str = "val") -> list[Path]:
    """List the images of a data set, a COCO file, a folder of images or one image, each once.

    Args:
        data: Folder with val.json or train.json, a COCO file, a folder of images, or an image.
        part: Which part of a data set: val or train.

    Raises:
        DataError: if there is no image, or a file name leaves the folder of its COCO file.
    """
    if (data / f"{part}.json").is_file():
        files = _annotated_files(data / f"{part}.json")
    elif data.suffix == ".json":
        files = _annotated_files(data)
    else:
        files = [path for path in list_sources(data) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise DataError(f"{data} holds no image")
    return list(dict.fromkeys(files))


def real_samples(data: Path, count: int = 4) -> Samples:
    """Take frames from a data set, a COCO file, a folder of images or one image.

    Args:
        data: Folder with val.json, a COCO file, a folder of images, or an image.
        count: How many, evenly spread over what is there.

    Raises:
        DataError: if there is no image or one cannot be read.
    """
    files = image_files(data)
    step = max(1, len(files) // count)
    chosen = files[::step][:count]
    names = Counter(path.name for path in chosen)  # folders of one data set may share names
    frames = {
        path.name if names[path.name] == 1 else str(path): read_image(path) for path in chosen
    }
    return Samples(frames, f"{len(frames)} of {len(files)} images of {data}")


def check_metadata(file: Path, found: Metadata, network: Mapping[str, Any]) -> None:
    """Refuse a file whose metadata belong to another network.

    The producer's version, the licence texts, the precision and which weights they are may differ.

    Args:
        file: For the message.
        found: What the file says about itself.
        network: Metadata of the network, from `boxseg.inference.describe`.

    Raises:
        FileMismatchError: with the first key that differs.
    """
    theirs, ours = asdict(found), asdict(Metadata.from_dict(network))
    for key, value in ours.items():
        if key not in ("producer", "licence", "precision", "weights") and theirs[key] != value:
            raise FileMismatchError(
                f"{file} is of another network: {key} is {theirs[key]!r}, the network has {value!r}"
            )


def hold(
    file: str,
    against: str,
    exported: Any,
    reference: Any,
    samples: Samples,
    precision: str = "fp32",
) -> ParityReport:
    """Run the parity gate.

    Args:
        file: Name of the file, for the report.
        against: Name of the network, for the report.
        exported: The file opened by the runtime, a `Backend`.
        reference: The network at the same input size, a `TorchBackend`.
        samples: Frames to compare on.
        precision: Of the file; the reference is in fp32.
    """
    gate = GATES[precision]
    imgsz = reference.metadata["imgsz"]
    size = Fit(int(imgsz["height"]), int(imgsz["width"]))
    boxed = {name: letterbox(frame, size) for name, frame in samples.frames.items()}
    said = Metadata.from_dict(reference.metadata)
    stacks = _stacks({name: image[None] for name, (image, _) in boxed.items()}, said.batch)
    contents = {
        name: np.array([[plan.content_height, plan.content_width]])
        for name, (_, plan) in boxed.items()
    }
    seen = Seen(said, _stacks(contents, said.batch), gate.only_candidates)
    tensors = compare_tensors(reference, exported, stacks, gate.tensors, seen)
    expected, found = Segmenter(reference, conf=0.0), Segmenter(exported, conf=0.0)
    limit = int(reference.metadata["nms"]["max_det"])
    cut = score_cut(expected.metadata)
    parts = []
    for name, frame in samples.frames.items():
        truth, answer = expected(frame), found(frame)
        full = len(truth.scores) >= limit
        parts.append(match_detections(name, truth, answer, cut=cut, full=full, limits=gate))
    merged = merge(parts)
    notes = []
    if merged.expected == 0:
        notes.append("no detection on these images: only the raw tensors were compared")
    return ParityReport(
        file=file,
        against=against,
        backend=str(exported.name),
        samples=samples.source,
        images=list(samples.frames),
        tensors=tensors,
        detections=merged,
        notes=notes,
    )


def remove(path: Path) -> None:
    """Remove a file or folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def quarantine(temporary: Path, final: Path, reason: str) -> NoReturn:
    """Leave a file that failed beside its name.

    Args:
        temporary: Where it lies.
        final: The name that it does not get.
        reason: What differs.

    Raises:
        ParityError: always.
    """
    failed = final.with_name(final.name + ".failed")
    remove(failed)
    temporary.rename(failed)
    raise ParityError(f"{failed}: {reason}")


def release(
    temporary: Path, final: Path, report: ParityReport, imitation: ParityReport | None = None
) -> Path:
    """Give a file its name if it passed, and quarantine it if not.

    Args:
        temporary: The file or folder under test.
        final: Its name once it is proven; what stood there before is replaced.
        report: The gate's result.
        imitation: The gate's result on a graph that rounds like the file's precision, if the
            engine does not execute it.

    Returns:
        The final path.

    Raises:
        ParityError: if the gate failed; the file then lies beside, as `<name>.failed`.
    """
    for part in (report, imitation):
        if part is not None and not part.passed:
            quarantine(temporary, final, part.failure())
    if final.is_dir():
        remove(final)  # a folder cannot be replaced in one step
    temporary.replace(final)
    return final


def shelve(temporary: Path, final: Path, imitation: ParityReport | None) -> Path:
    """Leave a file that cannot be run here beside its name, as `<name>.unverified`.

    Args:
        temporary: The file or folder.
        final: The name that it does not get.
        imitation: As for `release`.

    Returns:
        Where it lies.

    Raises:
        ParityError: if the imitation failed; the file then lies beside, as `<name>.failed`.
    """
    if imitation is not None and not imitation.passed:
        quarantine(temporary, final, imitation.failure())
    shelf = final.with_name(final.name + ".unverified")
    remove(shelf)
    temporary.rename(shelf)
    return shelf
