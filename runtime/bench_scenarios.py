"""What a benchmark can ask beside stage times: objects, batches, a pace, streams, memory.

B images, H x W pixels of the input, L locations, K candidate pairs, N objects.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boxseg.runtime.benchmark import StageTime, Timed, read_status, summarise
from boxseg.runtime.metadata import Metadata

if TYPE_CHECKING:
    from boxseg.runtime.backends import Backend
    from boxseg.runtime.cuda_driver import CudaDevice

OBJECT_SHARE = 8
"""A synthetic object's box has this share of the input's sides: 1 / 8 of each."""
BLOCK = 10
"""Paced frames of a model before the next model has its turn."""

Frame = NDArray[np.uint8]


# --- objects -------------------------------------------------------------------------------------


def _diamond(metadata: Metadata, side: float) -> NDArray[np.float32] | None:
    """Return parameters of a mask head whose mask is a diamond around its location.

    z = 8 * (side / 2 - |dx| - |dy|) / scale: layers of at least 4 channels carry the positive and
    the negative part of both coordinates; None where the head has no room for them.
    """
    head = metadata.head
    hidden = head.layer_widths[:-1]
    if not head.relative_coordinates or not hidden or min(hidden) < 4:
        return None
    weights, biases, inputs = [], [], head.mask_channels + 2
    for layer, width in enumerate(head.layer_widths):
        weight, bias = np.zeros((width, inputs), np.float32), np.zeros(width, np.float32)
        if layer == 0:
            weight[0, 0], weight[1, 0], weight[2, 1], weight[3, 1] = 1, -1, 1, -1
        elif layer < len(hidden):
            weight[np.arange(4), np.arange(4)] = 1
        else:
            weight[0, :4], bias[0] = -8, 8 * side / 2 / head.coordinate_scales[0]
        weights.append(weight.ravel())
        biases.append(bias)
        inputs = width
    return np.concatenate([*weights, *biases])


def _filled(metadata: Metadata) -> NDArray[np.float32]:
    """Return parameters of a mask head whose mask fills its box."""
    inputs, count = metadata.head.mask_channels + 2 * metadata.head.relative_coordinates, 0
    for width in metadata.head.layer_widths:
        count += width * inputs + width
        inputs = width
    parameters = np.zeros(count, np.float32)
    parameters[-1] = 8
    return parameters


def synthetic_outputs(
    metadata: Metadata, size: tuple[int, int], content: tuple[int, int], count: int
) -> dict[str, NDArray[Any]]:
    """Return a graph's outputs that hold so many objects, of one image.

    Objects lie on a square grid over the content, each with a box of 1 / 8 of the input's sides and
    a mask that is a diamond in it (or the whole box, where the head has less than 4 channels). All
    are of class 0 with a score of nearly 1; nothing else comes near the score cut.

    Args:
        metadata: Of the file, whose form the outputs have.
        size: Height and width of the input, pixels.
        content: Height and width of the frame inside it, pixels.
        count: N.

    Raises:
        ValueError: if there are not so many candidates or locations.
    """
    most = min(metadata.max_det, metadata.candidates)
    if count > most:
        raise ValueError(f"--objects must be at most {most} (the file's max_det), got {count}")
    height, width = size
    stride = metadata.strides[0]
    rows, columns = -(-height // stride), -(-width // stride)
    places = sum(-(-height // step) * -(-width // step) for step in metadata.strides)  # L
    grid = max(1, int(np.ceil(np.sqrt(count))))
    y, x = np.divmod(np.arange(count), grid)
    row = ((y + 0.5) / grid * content[0] // stride).astype(int).clip(0, rows - 1)
    column = ((x + 0.5) / grid * content[1] // stride).astype(int).clip(0, columns - 1)
    index = row * columns + column  # of level P3, which comes first
    if len(np.unique(index)) < count:
        raise ValueError(f"--objects {count} do not fit an input of {height} x {width}")
    centre = np.stack([column * stride + stride // 2, row * stride + stride // 2], 1)  # (N, 2)
    half = np.array([width, height]) / (2 * OBJECT_SHARE)
    boxes = np.concatenate([centre - half, centre + half], 1).astype(np.float32)
    side = float(2 * half.min())
    own = _diamond(metadata, side)
    parameters = _filled(metadata) if own is None else own
    head = metadata.head
    cells = (height // head.mask_stride, width // head.mask_stride)
    features = np.zeros((1, head.mask_channels, *cells), np.float32)
    if metadata.form == "dense":
        logits = np.full((1, places, len(metadata.classes)), -12, np.float32)
        logits[0, index, 0] = 12
        found = np.zeros((1, places, 4), np.float32)
        found[0, index] = boxes
        vectors = np.zeros((1, len(parameters), places), np.float32)
        vectors[0, :, index] = parameters
        return {
            "class_logits": logits,
            "quality_logits": np.full((1, places), 12, np.float32),
            "boxes": found,
            "parameters": vectors,
            "mask_features": features,
        }
    rows_given = min(metadata.candidates, places * len(metadata.classes))  # K
    chosen: dict[str, NDArray[Any]] = {
        "scores": np.zeros((1, rows_given), np.float32),
        "labels": np.zeros((1, rows_given), np.int32),
        "boxes": np.zeros((1, rows_given, 4), np.float32),
        "locations": np.zeros((1, rows_given, 2), np.float32),
        "levels": np.zeros((1, rows_given), np.int32),
    }
    chosen["scores"][0, :count] = 0.99
    chosen["boxes"][0, :count] = boxes
    chosen["locations"][0, :count] = centre
    if metadata.form == "graph":
        cell = [(np.arange(n) + 0.5) * head.mask_stride for n in cells]
        far = np.abs(centre[:, 0, None, None] - cell[1]) + np.abs(
            centre[:, 1, None, None] - cell[0][:, None]
        )  # (N, h, w)
        masks = np.full((1, rows_given, *cells), -8, np.float32)
        masks[0, :count] = 8 * (side / 2 - far) / head.coordinate_scales[0]
        return {**chosen, "mask_logits": masks}
    vectors = np.zeros((1, rows_given, len(parameters)), np.float32)
    vectors[0, :count] = parameters
    return {**chosen, "parameters": vectors, "mask_features": features}


class WithObjects:
    """Runs an engine and answers with synthetic objects in place of what it found."""

    def __init__(
        self, backend: Backend, metadata: Metadata, content: tuple[int, int], count: int
    ) -> None:
        """Wrap a backend.

        Args:
            backend: It runs as ever, so its time is in the measurement.
            metadata: Of its file.
            content: Height and width of the frame inside the input, pixels.
            count: Objects.
        """
        self.name, self.device, self.metadata = backend.name, backend.device, metadata
        self._backend, self._content, self._count = backend, content, count
        self._made: dict[tuple[int, ...], dict[str, NDArray[Any]]] = {}

    def run(self, image: Frame) -> dict[str, NDArray[Any]]:
        """Run the engine on RGB bytes (B, H, W, 3) and return the synthetic outputs."""
        self._backend.run(image)
        if image.shape not in self._made:
            made = synthetic_outputs(self.metadata, image.shape[1:3], self._content, self._count)
            self._made[image.shape] = {
                name: np.repeat(values, len(image), axis=0) for name, values in made.items()
            }
        return self._made[image.shape]


# --- batches -------------------------------------------------------------------------------------


def measure_batches(
    runs: Mapping[str, Callable[[Frame], object]],
    images: Mapping[str, Frame],
    batches: Mapping[str, Sequence[int]],
    *,
    warmup: int = 5,
    iters: int = 50,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[int, StageTime]]:
    """Time engines alone on batches of one repeated input; for each size they take turns.

    Args:
        runs: A backend's `run` by name.
        images: One letterboxed input, uint8 RGB (H, W, 3), by name.
        batches: Images per call, by name.
        warmup: Untimed calls.
        iters: Timed calls.
        clock: Seconds that only grow.
    """
    if iters < 1:
        raise ValueError(f"iters must be at least 1, got {iters}")
    found: dict[str, dict[int, StageTime]] = {name: {} for name in runs}
    for batch in sorted({size for sizes in batches.values() for size in sizes}):
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        names = [name for name in runs if batch in batches[name]]
        stacks = {name: np.repeat(images[name][None], batch, axis=0) for name in names}
        samples: dict[str, list[float]] = {name: [] for name in names}
        for index in range(warmup + iters):
            turn = index % len(names)
            for name in names[turn:] + names[:turn]:
                begin = clock()
                runs[name](stacks[name])
                if index >= warmup:
                    samples[name].append((clock() - begin) * 1000)
        for name in names:
            found[name][batch] = summarise(samples[name])
    return found


# --- a pace --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paced:
    """A model behind a camera that gives a frame at every tick."""

    latency: StageTime
    """From the tick of a frame to its detections."""
    frames: int
    late: int
    """Answers that came after the next tick."""
    dropped: int
    """Frames that were never looked at, because a newer one was there."""


def measure_paced(
    models: Mapping[str, Callable[[Frame], Timed]],
    frames: Sequence[Frame],
    *,
    hz: float,
    count: int = 50,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Paced]:
    """Let models answer a frame at every tick; between ticks the machine idles, as on a robot.

    Models take turns in blocks of 10 frames; the first frame of a block is not timed. A model that
    is too slow takes the newest frame next.

    Args:
        models: Segmenters by name.
        frames: uint8 RGB (H, W, 3); used in turn.
        hz: Ticks per second.
        count: Timed frames per model.
        clock: Seconds that only grow.
        sleep: Waits so many seconds.
    """
    if not 0 < hz < float("inf"):
        raise ValueError(f"hz must be above 0 and finite, got {hz}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    period = 1 / hz
    latencies: dict[str, list[float]] = {name: [] for name in models}
    late, dropped = dict.fromkeys(models, 0), dict.fromkeys(models, 0)
    for begin in range(0, count, BLOCK):
        for name, model in models.items():
            due = clock() + period
            for index in range(min(BLOCK, count - begin) + 1):
                wait = due - clock()
                if wait > 0:
                    sleep(wait)
                model(frames[(begin + index) % len(frames)])
                now = clock()
                missed = max(0, int((now - due) / period) - 1)
                if index:
                    latencies[name].append((now - due) * 1000)
                    late[name] += now > due + period
                    dropped[name] += missed
                due += (1 + missed) * period
    return {
        name: Paced(summarise(values), len(values), late[name], dropped[name])
        for name, values in latencies.items()
    }


# --- streams -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Streams:
    """Several engines of one file at once."""

    streams: int
    frames_per_second: float
    """Of all together."""
    total: StageTime
    """Of one frame in one of them."""


def measure_streams(
    models: Mapping[str, Sequence[Callable[[Frame], Timed]]],
    frames: Sequence[Frame],
    *,
    warmup: int = 5,
    iters: int = 50,
    blocks: int = 4,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Streams]:
    """Run several Segmenters of a file at once, each in a thread of its own.

    Args:
        models: The Segmenters of each file.
        frames: uint8 RGB (H, W, 3); used in turn.
        warmup: Untimed frames of each Segmenter.
        iters: Timed frames of each Segmenter, at least.
        blocks: Turns that each file has.
        clock: Seconds that only grow.
    """
    samples: dict[str, list[float]] = {name: [] for name in models}
    seconds = dict.fromkeys(models, 0.0)
    each = -(-iters // blocks)
    for block in range(blocks):
        for name, group in models.items():
            ready = threading.Barrier(len(group) + 1)

            def work(
                model: Callable[[Frame], Timed],
                ready: threading.Barrier = ready,
                untimed: int = warmup if block == 0 else 1,
            ) -> list[float]:
                try:
                    for index in range(untimed):
                        model(frames[index % len(frames)])
                except BaseException:
                    ready.abort()  # the others wait for no one
                    raise
                ready.wait()
                taken = []
                for index in range(each):
                    begin = clock()
                    model(frames[index % len(frames)])
                    taken.append((clock() - begin) * 1000)
                return taken

            with ThreadPoolExecutor(len(group)) as pool:
                jobs = [pool.submit(work, model) for model in group]
                try:
                    ready.wait()
                except threading.BrokenBarrierError:
                    failed = [job.exception() for job in jobs]
                    raise next(
                        error
                        for error in failed
                        if error is not None and not isinstance(error, threading.BrokenBarrierError)
                    ) from None
                begin = clock()
                for job in jobs:
                    samples[name] += job.result()
                seconds[name] += clock() - begin
    return {
        name: Streams(len(group), len(samples[name]) / seconds[name], summarise(samples[name]))
        for name, group in models.items()
    }


# --- memory --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """What loading a file added to the process; None is not known."""

    resident_bytes: int | None
    """What stays."""
    peak_bytes: int | None
    """The most at any moment of it."""
    gpu_bytes: int | None = None
    """What stays on the GPU."""


def forget_peak() -> bool:
    """Let the system count the peak of this process from now on; False where it does not."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


class MemoryWatch:
    """Measures what happens between `start` and `stop`; keeps the peak of all time."""

    def __init__(self) -> None:
        self.peak_bytes = read_status("VmHWM")
        self._counts = False
        self._before: int | None = None
        self._gpu: CudaDevice | None = None
        self._gpu_before = 0

    def _note(self) -> int | None:
        peak = read_status("VmHWM")
        if peak is not None and self.peak_bytes is not None:
            self.peak_bytes = max(peak, self.peak_bytes)
        return peak

    def start(self, gpu: CudaDevice | None = None) -> None:
        """Begin; with a GPU, watch its memory too."""
        self._note()
        self._gpu = gpu
        self._gpu_before = 0 if gpu is None else gpu.taken_bytes()
        self._counts = forget_peak()
        self._before = read_status("VmRSS")

    def stop(self) -> Memory:
        """End."""
        peak, now, before = self._note(), read_status("VmRSS"), self._before
        on_gpu = None if self._gpu is None else max(0, self._gpu.taken_bytes() - self._gpu_before)
        if before is None or now is None:
            return Memory(None, None, on_gpu)
        most = max(0, peak - before) if peak is not None and self._counts else None
        return Memory(max(0, now - before), most, on_gpu)
