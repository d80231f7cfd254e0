"""Calibration: which images, and what every tensor of a graph does on them.

The images go through the letterbox of the runtime, with the same code as every deployed frame. The
ranges are measured on the graph in fp32, inside the engine, so that no tensor is copied out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boxseg.errors import BackendMissingError, DataError, counted
from boxseg.export.portable import portable_text
from boxseg.runtime.images import read_image
from boxseg.runtime.preprocess import Fit, letterbox

if TYPE_CHECKING:
    import onnx
    import onnxruntime

FEWEST_IMAGES = 16
"""Ranges of fewer images are those of a few scenes, not of a camera."""
LOOKED_AT = 32
"""Images of a set that are opened to see how it looks."""
LOOKS = ("mean grey level", "contrast", "colour")
"""What is compared: mean and standard deviation of the grey levels, and the mean gap between the
largest and the least channel of a pixel; all in 0..255."""
LOOK_MARGIN = 8.0
"""How far a set may lie beyond another and still look alike, in the same levels."""


@dataclass(frozen=True)
class CalibrationSet:
    """Images that ranges are measured on."""

    files: tuple[Path, ...]
    source: str
    """One phrase for reports: whose images these are."""
    frames: tuple[NDArray[np.uint8], ...] = ()
    """RGB (H, W, 3) in place of files: drawn ones."""
    doubts: tuple[str, ...] = ()
    """Why these images may be the wrong ones, a sentence each."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files) + len(self.frames)

    def inputs(self, size: Fit) -> Iterator[NDArray[np.uint8]]:
        """Yield each image as the deployed network gets it, (1, H, W, 3)."""
        for file in self.files:
            yield letterbox(read_image(file), size)[0][None]
        for frame in self.frames:
            yield letterbox(frame, size)[0][None]

    def evenly(self, count: int) -> CalibrationSet:
        """Return at most so many of the images, evenly spread."""
        places = sorted({i * len(self) // count for i in range(count)})
        everything: list[Path | NDArray[np.uint8]] = [*self.files, *self.frames]
        chosen = [everything[place] for place in places]
        return replace(
            self,
            files=tuple(each for each in chosen if isinstance(each, Path)),
            frames=tuple(each for each in chosen if not isinstance(each, Path)),
        )

    def hashes(self) -> list[str]:
        """Return the sha256 of every file, or of the pixels of a drawn frame."""
        return [
            *(hashlib.sha256(file.read_bytes()).hexdigest() for file in self.files),
            *(hashlib.sha256(frame.tobytes()).hexdigest() for frame in self.frames),
        ]

    def record(self) -> dict[str, Any]:
        """Return what a file keeps about the images that it was made with, in JSON types."""
        hashes = self.hashes()
        return {
            "images": len(self),
            "source": portable_text(self.source, [file.parent for file in self.files]),
            "sha256": hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest(),
            "files": hashes,
            "doubts": list(self.doubts),
        }


def calibration_set(files: list[Path], source: Path, count: int) -> CalibrationSet:
    """Choose images evenly.

    Args:
        files: Those that there are.
        source: What the user named.
        count: How many to take, at least 16.

    Raises:
        DataError: if there are fewer than 16, or fewer that differ, or one cannot be read.
    """
    if len(files) < FEWEST_IMAGES:
        raise DataError(
            f"{source} holds {counted(len(files), 'image')}; "
            f"calibration needs at least {FEWEST_IMAGES}"
        )
    count = min(count, len(files))
    chosen = [files[index * len(files) // count] for index in range(count)]
    found = CalibrationSet(tuple(chosen), f"{count} of {len(files)} images of {source}")
    try:
        different = len(set(found.hashes()))
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None
    if different < FEWEST_IMAGES:
        raise DataError(
            f"{source}: {count} files hold {counted(different, 'different image')}; "
            f"calibration needs at least {FEWEST_IMAGES}"
        )
    return found


# ----------------------------------------------------------------------- are these the right ones


def _common_count(images: CalibrationSet, others: Iterable[Path]) -> int:
    """Count the calibration files that are among others, byte by byte."""
    sizes = {file.stat().st_size for file in images.files}
    hashes = {
        hashlib.sha256(file.read_bytes()).hexdigest()
        for file in others
        if file.is_file() and file.stat().st_size in sizes
    }
    return sum(digest in hashes for digest in images.hashes())


def _look(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return what LOOKS says about an image, RGB (H, W, 3); of a large one, on a grid."""
    step = max(1, min(pixels.shape[:2]) // 64)
    sample = pixels[::step, ::step].astype(np.float64)
    grey = sample.mean(axis=2)
    return np.array([grey.mean(), grey.std(), np.ptp(sample, axis=2).mean()])


def _looks(files: Sequence[Path]) -> NDArray[np.float64]:
    """Return what LOOKS says about images, evenly spread over those that can be read, (N, 3)."""
    count = min(len(files), LOOKED_AT)
    found = []
    for file in [files[index * len(files) // count] for index in range(count)]:
        with suppress(DataError):  # who judges on an image says what is wrong with it
            found.append(_look(read_image(file)))
    return np.array(found).reshape(-1, len(LOOKS))


def doubts_about(
    images: CalibrationSet, data: str, files: Sequence[Path], judged: Sequence[Path]
) -> tuple[str, ...]:
    """Say why a file that is calibrated on some images may do worse than its numbers.

    Two things are looked for. A file that was made with the very images that its AP is measured on
    shows a better one than it has. And where most images that it is tried on lie beyond nearly all
    of the calibration set in LOOKS, its ranges may be those of another camera or light; sets of
    fewer than 16 images are not compared.

    Args:
        images: The calibration set; drawn images are not doubted.
        data: Name of what the network is tried on.
        files: Its images.
        judged: Those of them that AP is measured on.

    Returns:
        A sentence each.
    """
    found = []
    common = _common_count(images, judged)
    if common:
        found.append(
            f"{common} of the {len(images)} calibration images {'is' if common == 1 else 'are'} "
            f"also among the images of {data} that AP is measured on: on others it may be lower"
        )
    ours, theirs = _looks(images.files), _looks(files)
    if min(len(ours), len(theirs)) < FEWEST_IMAGES:
        return tuple(found)
    middle = np.median(theirs, axis=0)  # (3,)
    low, high = np.percentile(ours, [10, 90], axis=0)
    other = [
        f"{name} {there:.0f} in the middle, of most calibration images {least:.0f} to {most:.0f}"
        for name, there, least, most in zip(LOOKS, middle, low, high, strict=True)
        if not least - LOOK_MARGIN <= there <= most + LOOK_MARGIN
    ]
    if other:
        found.append(
            f"the images of {data} look otherwise than those for calibration ({'; '.join(other)}): "
            "ranges may not fit them"
        )
    return tuple(found)


# ------------------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class TensorRange:
    """What a float tensor does on the calibration images."""

    peak: float
    """Largest magnitude; infinite where a value is not finite."""
    rms: float
    rounding: float
    """RMS of what rounding to the asked type changes, as a share of the tensor's own RMS."""


def open_session(
    model: onnx.ModelProto, *, optimised: bool = False
) -> onnxruntime.InferenceSession:
    """Open a graph in memory, on the CPU.

    Args:
        model: The graph.
        optimised: Fuse nodes for speed, but for pairs of QuantizeLinear and DequantizeLinear, which
            compute in fp32 with their rounding on every processor. Else node by node.

    Raises:
        BackendMissingError: if ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise BackendMissingError(
            "reduced precision is measured in ONNX Runtime, which is not installed; "
            "pip install 'boxseg[onnxruntime]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _watch(model: onnx.ModelProto, tensors: Iterable[str], low_type: int) -> onnx.ModelProto:
    """Return a copy of a graph whose outputs are the statistics of its tensors.

    Each gives three numbers: largest magnitude, sum of squares, and sum of squares of what rounding
    changes.
    """
    from onnx import ModelProto, TensorProto, helper

    watched = ModelProto()
    watched.CopyFrom(model)
    graph = watched.graph
    del graph.output[:]
    del graph.value_info[:]
    for name in tensors:
        low, back, gap, size = (f"{name}/{part}" for part in ("low", "back", "gap", "size"))
        peak, energy, noise, all_three = (
            f"{name}/{part}" for part in ("peak", "energy", "noise", "statistics")
        )
        graph.node.extend(
            [
                helper.make_node("Abs", [name], [size]),
                helper.make_node("ReduceMax", [size], [peak], keepdims=0),
                helper.make_node("ReduceSumSquare", [name], [energy], keepdims=0),
                helper.make_node("Cast", [name], [low], to=low_type),
                helper.make_node("Cast", [low], [back], to=TensorProto.FLOAT),
                helper.make_node("Sub", [name, back], [gap]),
                helper.make_node("ReduceSumSquare", [gap], [noise], keepdims=0),
                helper.make_node("Reshape", [peak, "statistics/one"], [f"{peak}/1"]),
                helper.make_node("Reshape", [energy, "statistics/one"], [f"{energy}/1"]),
                helper.make_node("Reshape", [noise, "statistics/one"], [f"{noise}/1"]),
                helper.make_node(
                    "Concat", [f"{peak}/1", f"{energy}/1", f"{noise}/1"], [all_three], axis=0
                ),
            ]
        )
        graph.output.append(helper.make_tensor_value_info(all_three, TensorProto.FLOAT, [3]))
    graph.initializer.append(helper.make_tensor("statistics/one", TensorProto.INT64, [1], [1]))
    return watched


def measure_ranges(
    model: onnx.ModelProto,
    tensors: Mapping[str, int],
    inputs: Iterable[NDArray[np.uint8]],
    low_type: int,
) -> dict[str, TensorRange]:
    """Run a graph in fp32 and return what its tensors do.

    Args:
        model: In fp32, with one image as its only input.
        tensors: Name and number of elements of the float tensors to watch.
        inputs: RGB bytes (1, H, W, 3), at least one.
        low_type: ONNX's number of the type whose rounding is judged.
    """
    if not tensors:
        return {}
    session = open_session(_watch(model, tensors, low_type))
    graph_input = session.get_inputs()[0]
    images = graph_input.shape[0] if isinstance(graph_input.shape[0], int) else 1
    name = graph_input.name
    total = np.zeros((len(tensors), 3))
    count = 0
    for image in inputs:
        outputs = session.run(None, {name: image.repeat(images, axis=0)})
        found = np.array([np.asarray(output) for output in outputs], np.float64)  # (tensors, 3)
        found[~np.isfinite(found[:, :2]).all(axis=1)] = np.inf
        total[:, 0] = np.maximum(total[:, 0], found[:, 0])
        total[:, 1:] += found[:, 1:]
        count += 1
    ranges = {}
    for (tensor, size), (peak, energy, noise) in zip(tensors.items(), total, strict=True):
        share = np.sqrt(noise / energy) if 0 < energy < np.inf else float(noise > 0)
        ranges[tensor] = TensorRange(
            float(peak), float(np.sqrt(energy / max(1, size * count))), float(share)
        )
    return ranges
