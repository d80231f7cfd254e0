"""What lies beside a deployed file, and the replay of its golden sample.

    best.onnx              best.onnx.manifest.json  best.onnx.golden.png  best.onnx.md
    best_openvino_model/   manifest.json            golden.png            README.md (inside)

The manifest says what the file is and holds its hash; the golden sample is one image with the
answer that the network gave in torch. Replaying it tells in about a second whether preprocessing,
engine and decoding on this machine still give that answer.

N detections, H x W pixels of a frame.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boxseg.errors import BoxSegError, FileMismatchError
from boxseg.runtime.agreement import (
    DetectionDifference,
    FixedLimits,
    Limits,
    Tolerance,
    match_detections,
    score_cut,
)
from boxseg.runtime.backends import (
    OnnxRuntimeBackend,
    OpenVinoBackend,
    TensorRTBackend,
    open_backend,
)
from boxseg.runtime.detections import Detections
from boxseg.runtime.images import read_image
from boxseg.runtime.metadata import Metadata
from boxseg.runtime.postprocess import Postprocessor
from boxseg.runtime.preprocess import letterbox

if TYPE_CHECKING:
    from boxseg.runtime.backends import Backend

MANIFEST_VERSION = 1
NOTHING_EXPECTED = (
    "no detection is expected on it, so it proves the tensors alone; boxseg export --golden FILE "
    "takes an image with objects"
)
"""What a golden sample is worth on which the network finds nothing."""
UNVERIFIED = ".unverified"
"""Ends the name of a file that no engine could run where it was written."""
DIGEST_SAMPLES = 64
"""Numbers of each output that the manifest holds."""
ROWS_SWAP = frozenset({"labels", "levels", "locations", "boxes", "parameters", "mask_logits"})
"""Outputs of the forms topk and graph whose rows swap where scores are nearly equal."""


# --- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sidecars:
    """Where the files beside a deployed file lie."""

    manifest: Path
    golden: Path
    card: Path


def sidecars(path: Path) -> Sidecars:
    """Return the places for a deployed file: beside it, or inside an OpenVINO folder.

    Args:
        path: A file, an OpenVINO folder or its .xml file.
    """
    folder = path.parent if path.suffix.lower() == ".xml" else path
    if folder.is_dir():
        return Sidecars(folder / "manifest.json", folder / "golden.png", folder / "README.md")
    return Sidecars(
        path.with_name(f"{path.name}.manifest.json"),
        path.with_name(f"{path.name}.golden.png"),
        path.with_name(f"{path.name}.md"),
    )


def parts_of(path: Path) -> list[Path]:
    """Return a file or folder and all that lies beside it under its name."""
    beside = path.parent.iterdir()
    return [path, *sorted(part for part in beside if part.name.startswith(f"{path.name}."))]


def open_shelved(
    path: Path, device: str | None = None, threads: int | None = None
) -> OnnxRuntimeBackend | OpenVinoBackend | TensorRTBackend:
    """Open a file as `open_backend` does, and one that is unverified by the name that it hides.

    The name tells the engine, so the file is opened through links of that name.
    """
    if not path.name.endswith(UNVERIFIED) or not path.is_file():
        return open_backend(path, device, threads)
    with tempfile.TemporaryDirectory() as folder:
        name = path.name.removesuffix(UNVERIFIED)
        for part in parts_of(path):
            link = Path(folder) / f"{name}{part.name[len(path.name) :]}"
            link.symlink_to(part.resolve())
        try:
            return open_backend(Path(folder) / name, device, threads)
        except BoxSegError as error:
            raise type(error)(str(error).replace(str(Path(folder) / name), str(path))) from error


def model_files(path: Path) -> list[Path]:
    """Return the files that an engine reads: the file itself, or an .xml with its .bin."""
    if path.is_dir():
        found = sorted(path.glob("*.xml"))
        if len(found) != 1:
            raise FileMismatchError(f"{path} must hold one .xml file, it holds {len(found)}")
        path = found[0]
    return [path, path.with_suffix(".bin")] if path.suffix.lower() == ".xml" else [path]


def sha256_of(path: Path) -> str:
    """Return the hash of a file as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_files(path: Path) -> list[dict[str, Any]]:
    """Return name, bytes and sha256 of each file that an engine reads."""
    return [
        {"name": file.name, "bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in model_files(path)
    ]


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a deployed file and hold the file's hash against it.

    Args:
        path: The deployed file.

    Raises:
        FileNotFoundError: if there is no such file.
        FileMismatchError: if the manifest is missing, damaged or of another file.
    """
    if not path.exists():
        raise FileNotFoundError(2, "No such file or folder", str(path))
    place = sidecars(path).manifest
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileMismatchError(
            f"{path} needs {place.name} {'inside' if path.is_dir() else 'beside it'}, which boxseg "
            "export writes; without it, name the network with --against"
        ) from None
    except ValueError as error:
        raise FileMismatchError(f"{place} is no JSON: {error}") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != MANIFEST_VERSION:
        raise FileMismatchError(
            f"{place}: format_version is {version!r}, this version of boxseg reads "
            f"{MANIFEST_VERSION}"
        )
    try:
        stated = [str(entry["sha256"]) for entry in content["files"]]
    except (KeyError, TypeError) as error:
        raise FileMismatchError(f"{place} is incomplete: {error!r}") from None
    files = model_files(path)
    if len(files) != len(stated):
        raise FileMismatchError(f"{place} is of {len(stated)} files, {path} has {len(files)}")
    for file, expected in zip(files, stated, strict=True):
        if not file.is_file():
            raise FileMismatchError(f"{file} is missing")
        if sha256_of(file) != expected:
            raise FileMismatchError(
                f"{file} is not the file that {place.name} describes (sha256 differs): it is "
                "damaged, or another export"
            )
    manifest: dict[str, Any] = content
    return manifest


# --- the answer to an image ----------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    """What a backend and the post-processing say about one frame."""

    input_sha256: str
    """Of the letterboxed bytes."""
    outputs: dict[str, NDArray[Any]]
    """Of the one image, batch axis included."""
    detections: Detections
    """All that the file would report at conf 0."""


def answer(backend: Backend, frame: NDArray[np.uint8]) -> Answered:
    """Run one frame through letterbox, engine and post-processing, once.

    Args:
        backend: Any engine.
        frame: RGB, (H, W, 3).
    """
    said = backend.metadata
    metadata = said if isinstance(said, Metadata) else Metadata.from_dict(said)
    image, plan = letterbox(frame, metadata.imgsz, padding=metadata.padding)
    outputs = backend.run(np.repeat(image[None], metadata.batch.least, axis=0))
    own = {name: np.array(values[:1]) for name, values in outputs.items()}
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    return Answered(digest, own, Postprocessor(metadata, conf=0.0)(own, plan))


def _digest(name: str, values: NDArray[Any], tolerance: Tolerance, rows: bool) -> dict[str, Any]:
    """Describe an output by its size and some of its numbers.

    If every number is within `allowed`, so is the largest magnitude; and if the RMS of the
    difference is within `allowed_rms`, so is the difference of the RMS (triangle inequality).
    """
    found: dict[str, Any] = {"name": name, "shape": list(values.shape)}
    if not rows:
        return found
    flat = values.astype(np.float64).ravel()
    size, largest = float(np.sqrt((flat**2).mean())), float(np.abs(flat).max(initial=0.0))
    allowed = max(tolerance.absolute, tolerance.relative * largest)
    index = np.linspace(0, flat.size - 1, min(DIGEST_SAMPLES, flat.size)).round().astype(int)
    return {
        **found,
        "largest": largest,
        "rms": size,
        "allowed": allowed,
        "allowed_rms": min(allowed, tolerance.rms * size),
        "index": index.tolist(),
        "values": flat[index].tolist(),
    }


def expected_answer(
    backend: Backend,
    frame: NDArray[np.uint8],
    tolerances: Mapping[str, Tolerance],
    limits: Limits,
) -> dict[str, Any]:
    """Return what a manifest holds of the network's answer to the golden image, JSON types.

    Args:
        backend: The network in torch.
        frame: RGB, (H, W, 3).
        tolerances: What the file's outputs may differ in, by name.
        limits: What its detections may differ in.
    """
    found = answer(backend, frame)
    chosen = "scores" in found.outputs
    boxes = found.detections.xyxy.astype(float).tolist()
    return {
        "frame": [int(side) for side in frame.shape[:2]],
        "input_sha256": found.input_sha256,
        "tensors": [
            _digest(name, values, tolerances[name], not (chosen and name in ROWS_SWAP))
            for name, values in found.outputs.items()
        ],
        "limits": {"score": limits.score, "iou": limits.iou, "unmatched": limits.unmatched},
        "detections": [
            {"label": label, "score": score, "xyxy": box, "counts": counts.decode("ascii")}
            for label, score, box, counts in zip(
                found.detections.labels.tolist(),
                found.detections.scores.astype(float).tolist(),
                boxes,
                found.detections.counts,
                strict=True,
            )
        ],
    }


# --- replay --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorReplay:
    """One output beside its description."""

    name: str
    share: float
    """How much of what is allowed the worst number takes; above 1 it differs."""
    where: str
    """The worst number and what was expected."""

    @property
    def passed(self) -> bool:
        """Whether nothing differs by more than is allowed."""
        return self.share <= 1.0

    def line(self) -> str:
        """Return one line of a report."""
        verdict = "ok" if self.passed else f"FAILED: {self.where}"
        return f"{self.name:<15} {100 * self.share:.3g} % of the allowed difference  {verdict}"


@dataclass(frozen=True)
class Replay:
    """Result of a replay."""

    file: str
    backend: str
    source: str
    """Whose image it is."""
    reference: str
    """Whose answer is expected."""
    input_is_equal: bool
    """Whether the letterboxed bytes are those of the export."""
    tensors: list[TensorReplay]
    missing: DetectionDifference
    """Partners of the expected detections."""
    added: DetectionDifference
    """Partners of those found: whether there are others than expected."""
    load_ms: float
    """From the file to an engine that is ready."""
    answer_ms: float
    """From the frame to its detections, first run."""

    @property
    def passed(self) -> bool:
        """Whether the file still gives the expected answer."""
        return self.failure() is None

    def failure(self) -> str | None:
        """Say the first thing that differs; None if nothing does."""
        if not self.input_is_equal:
            return "the letterboxed input has other bytes than at export: preprocessing differs"
        for tensor in self.tensors:
            if not tensor.passed:
                return f"first divergent tensor {tensor.name}: {tensor.where}"
        for difference, what in ((self.missing, "expected"), (self.added, "found")):
            if not difference.passed:
                return (
                    f"{len(difference.missing)} of {difference.expected} detections that were "
                    f"{what} have no partner, the first is {difference.missing[0]}"
                )
        return None

    def lines(self) -> list[str]:
        """Return the report for people."""
        verdict = "ok" if self.input_is_equal else "FAILED"
        lines = [
            f"golden sample of {self.file} on {self.backend}: {self.source}",
            f"  expected is the answer of {self.reference}",
            f"  {'input':<15} same bytes as at export  {verdict}",
            *(f"  {tensor.line()}" for tensor in self.tensors),
            f"  {self.missing.line()}",
        ]
        if not self.added.passed:
            lines.append(f"  {len(self.added.missing)} more than expected  FAILED")
        if self.missing.expected == 0:
            lines.append(f"  {NOTHING_EXPECTED}")
        lines.append(f"  loaded in {self.load_ms:.0f} ms, answered in {self.answer_ms:.0f} ms")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        tensors = [asdict(tensor) | {"passed": tensor.passed} for tensor in self.tensors]
        return asdict(self) | {"tensors": tensors, "passed": self.passed, "failure": self.failure()}


def _compare(stated: Mapping[str, Any], values: NDArray[Any] | None) -> TensorReplay:
    """Hold one output against its description."""
    name, shape = str(stated["name"]), [int(side) for side in stated["shape"]]
    if values is None:
        return TensorReplay(name, float("inf"), "the file has no such output")
    if list(values.shape) != shape:
        return TensorReplay(name, float("inf"), f"its shape is {list(values.shape)}, not {shape}")
    if "values" not in stated:
        return TensorReplay(name, 0.0, "")
    flat = values.astype(np.float64).ravel()
    index = np.asarray(stated["index"], np.intp)
    wanted = np.asarray(stated["values"], np.float64)
    allowed, allowed_rms = float(stated["allowed"]), float(stated["allowed_rms"])
    checks = [
        (f"{name}[{at}]", float(flat[at]), float(want), allowed)
        for at, want in zip(index.tolist(), wanted.tolist(), strict=True)
    ]
    largest, rms = float(np.abs(flat).max(initial=0.0)), float(np.sqrt((flat**2).mean()))
    checks.append(("its largest magnitude", largest, float(stated["largest"]), allowed))
    checks.append(("its RMS", rms, float(stated["rms"]), allowed_rms))
    worst = TensorReplay(name, 0.0, "")
    for what, found, want, limit in checks:
        gap = abs(found - want)
        share = (0.0 if gap == 0 else float("inf")) if limit == 0 else gap / limit
        if not np.isfinite(found):
            share = float("inf")
        if share > worst.share:
            where = f"{what} is {found:.6g}, expected {want:.6g}, allowed difference {limit:.3g}"
            worst = TensorReplay(name, share, where)
    return worst


def _expected_detections(golden: Mapping[str, Any], metadata: Metadata) -> Detections:
    """Build the expected detections; of their scores, only the final one is known."""
    entries = golden["detections"]
    scores = np.array([entry["score"] for entry in entries], np.float32)
    height, width = golden["frame"]
    return Detections(
        xyxy=np.array([entry["xyxy"] for entry in entries], np.float32).reshape(-1, 4),
        scores=scores,
        labels=np.array([entry["label"] for entry in entries], np.int64),
        height=int(height),
        width=int(width),
        counts=tuple(str(entry["counts"]).encode("ascii") for entry in entries),
        class_names=metadata.classes,
        category_ids=metadata.category_ids,
        score0=scores,
        mask_scores=np.ones_like(scores),
        areas=np.zeros(len(entries), np.int64),
    )


@contextmanager
def _damage(place: Path) -> Iterator[None]:
    """Say that a manifest is damaged where reading it fails."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FileMismatchError(f"{place}: the golden sample is damaged: {error!r}") from error


def _golden_frame(path: Path, golden: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Read the golden image, whose hash the manifest holds."""
    place = sidecars(path).golden
    if not place.is_file():
        raise FileMismatchError(f"{place} is missing; the manifest of {path} describes it")
    if sha256_of(place) != golden["image_sha256"]:
        raise FileMismatchError(f"{place} is not the image that the manifest describes (sha256)")
    return read_image(place)


def replay(path: Path, device: str | None = None, threads: int | None = None) -> Replay:
    """Replay the golden sample of a deployed file.

    Args:
        path: The file, with its manifest and golden image.
        device: Where the engine runs; None is its default.
        threads: Of the engine; None leaves it to the engine.

    Raises:
        FileMismatchError: if the file, its manifest or its image is damaged or missing, or the
            file carries no golden sample.
        BackendMissingError: if the engine or the device is not there.
    """
    manifest = read_manifest(path)
    golden = manifest.get("golden")
    if golden is None:
        raise FileMismatchError(
            f"{path} carries no golden sample (--golden none); name its network with --against"
        )
    place = sidecars(path).manifest
    with _damage(place):
        frame = _golden_frame(path, golden)
    begin = time.perf_counter()
    backend = open_shelved(path, device, threads)
    loaded = time.perf_counter()
    found = answer(backend, frame)
    end = time.perf_counter()
    said = backend.metadata
    with _damage(place):
        expected, limits = _expected_detections(golden, said), FixedLimits(**golden["limits"])
        missing, added = (
            match_detections(
                "golden sample",
                first,
                second,
                cut=score_cut(said),
                full=len(first) >= said.max_det,
                limits=limits,
            )
            for first, second in ((expected, found.detections), (found.detections, expected))
        )
        return Replay(
            file=str(path),
            backend=f"{backend.name}, {backend.device}",
            source=str(golden["source"]),
            reference=str(golden["reference"]),
            input_is_equal=found.input_sha256 == golden["input_sha256"],
            tensors=[
                _compare(stated, found.outputs.get(stated["name"])) for stated in golden["tensors"]
            ],
            missing=missing,
            added=added,
            load_ms=(loaded - begin) * 1e3,
            answer_ms=(end - loaded) * 1e3,
        )
