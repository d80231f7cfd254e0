"""Stage times of models on the same frames, and what they were measured on.

A round runs every model once on one frame; the order turns from round to round, so that a machine
that warms up or is shared hits all models alike. Times are milliseconds of wall clock. Reading an
image file is outside; everything from the frame in memory to its detections is inside `total`.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from boxseg import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGES = ("numpy", "onnxruntime", "openvino", "tensorrt", "torch")
"""Distributions whose versions a record names."""

TOTAL = "total"
COMPARED = ("engine", TOTAL)
"""Stages that are compared between models."""
BLOCK = 10
"""Rounds of a block where nothing else is said; blocks are compared by their medians."""


class Timed(Protocol):
    """An answer that knows what its stages cost; `Detections` is one."""

    @property
    def times_ms(self) -> Mapping[str, float]:
        """Milliseconds per stage."""
        ...

    def __len__(self) -> int:
        """Detections on the frame."""
        ...


@dataclass(frozen=True)
class StageTime:
    """Milliseconds of one stage over all rounds."""

    p50: float
    p90: float
    p99: float
    mean: float
    minimum: float


@dataclass(frozen=True)
class Compared:
    """One stage of a model beside the same stage of another one, round by round."""

    ratio: float
    """Median over the rounds of this model's time as a share of the other's."""
    faster: int
    """Rounds in which this model took less time."""
    block: int
    """Rounds of a block."""
    blocks: int
    """Whole blocks."""
    blocks_faster: int
    """Blocks in which the median of the rounds' ratios was below 1."""


@dataclass(frozen=True)
class Timing:
    """One model's times."""

    model: str
    stages: dict[str, StageTime]
    """Stages in the order of the work, then `total`, measured around the whole call."""
    rounds: int
    first_ms: float
    """The first frame, before warm-up."""
    warmup: StageTime | None
    """Totals of the warm-up's rounds; None if there was none."""
    frames_per_second: float
    """Back to back: rounds over the sum of their total times."""
    detections_mean: float
    detections_most: int
    against: str | None
    """The model that it is compared with; None for that one itself."""
    compared: dict[str, Compared]
    """The engine and the total, where both models have them in every round."""

    def as_dict(self) -> dict[str, object]:
        """Return everything as JSON types."""
        return asdict(self)


def summarise(samples: Sequence[float]) -> StageTime:
    """Return percentiles (linear between samples) of at least one time."""
    values = np.asarray(samples, np.float64)
    p50, p90, p99 = (float(v) for v in np.percentile(values, (50, 90, 99)))
    return StageTime(p50, p90, p99, float(values.mean()), float(values.min()))


def _compare(
    ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]], block: int
) -> dict[str, Compared]:
    """Pair the rounds of two models; a stage that takes no time by the clock has no ratio."""
    found = {}
    for stage in COMPARED:
        pairs = list(zip(ours.get(stage, ()), theirs.get(stage, ()), strict=False))
        if len(pairs) == len(theirs[TOTAL]) and all(their > 0 for _, their in pairs):
            ratios = np.array([our / their for our, their in pairs])
            blocks = ratios[: len(ratios) // block * block].reshape(-1, block)
            found[stage] = Compared(
                float(np.median(ratios)),
                int((ratios < 1).sum()),
                block,
                len(blocks),
                int((np.median(blocks, axis=1) < 1).sum()),
            )
    return found


def measure(
    models: Mapping[str, Callable[[NDArray[np.uint8]], Timed]],
    frames: Sequence[NDArray[np.uint8]],
    *,
    warmup: int = 5,
    iters: int = 50,
    duration: float = 0.0,
    block: int = BLOCK,
    against: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time models on the same frames, interleaved.

    Args:
        models: Name -> Segmenter.
        frames: uint8 RGB (H, W, 3); used in turn.
        warmup: Untimed rounds.
        iters: Timed rounds at least.
        duration: Seconds of timed rounds at least.
        block: Rounds of a block.
        against: Model -> the model that it is compared with; None compares all with the first.
        clock: Seconds that only grow.

    Raises:
        ValueError: if there is nothing to time, or a number is out of range.
    """
    if not models or not frames:
        raise ValueError("a benchmark needs at least one model and one frame")
    if warmup < 0:
        raise ValueError(f"warmup must be at least 0, got {warmup}")
    if iters < 1:
        raise ValueError(f"iters must be at least 1, got {iters}")
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    if not 0 <= duration < float("inf"):
        raise ValueError(f"duration must be at least 0 seconds, got {duration}")
    first: dict[str, float] = {}
    for name, model in models.items():
        begin = clock()
        model(frames[0])
        first[name] = (clock() - begin) * 1000
    names = list(models)
    warming: dict[str, list[float]] = {name: [] for name in names}
    for index in range(warmup):
        for name, model in models.items():
            begin = clock()
            model(frames[index % len(frames)])
            warming[name].append((clock() - begin) * 1000)

    stages: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    totals: dict[str, list[float]] = {name: [] for name in names}
    counts: dict[str, list[int]] = {name: [] for name in names}
    started, index = clock(), 0
    while index < iters or clock() - started < duration:
        frame = frames[index % len(frames)]
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            begin = clock()
            answer = models[name](frame)
            totals[name].append((clock() - begin) * 1000)
            counts[name].append(len(answer))
            for stage, value in answer.times_ms.items():
                if stage != TOTAL:
                    stages[name].setdefault(stage, []).append(value)
        index += 1
    for name in names:
        stages[name][TOTAL] = totals[name]
    others = dict.fromkeys(names, names[0]) if against is None else against
    return [
        Timing(
            model=name,
            stages={stage: summarise(values) for stage, values in stages[name].items()},
            rounds=index,
            first_ms=first[name],
            warmup=summarise(warming[name]) if warmup else None,
            frames_per_second=1000 * index / sum(totals[name]),
            detections_mean=float(np.mean(counts[name])),
            detections_most=max(counts[name]),
            against=None if others[name] == name else others[name],
            compared={}
            if others[name] == name
            else _compare(stages[name], stages[others[name]], block),
        )
        for name in names
    ]


def synthetic_frame(height: int = 720, width: int = 1280, seed: int = 0) -> NDArray[np.uint8]:
    """Return a repeatable RGB frame (height, width, 3): soft noise with discs in front.

    It stands in for a camera when the time of the network is asked. It holds no object of any
    data set, so stages that grow with the number of detections cost little on it.
    """
    random = np.random.default_rng(seed)
    coarse = random.integers(40, 200, (height // 40 + 2, width // 40 + 2, 3))
    frame = np.repeat(np.repeat(coarse, 40, axis=0), 40, axis=1)[:height, :width].astype(np.int16)
    frame += random.integers(-12, 13, (height, width, 1), dtype=np.int16)
    y, x = np.ogrid[:height, :width]
    for _ in range(8):
        cy, cx = random.integers(0, height), random.integers(0, width)
        radius = random.integers(min(height, width) // 16, min(height, width) // 5 + 1)
        frame[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = random.integers(0, 256, 3)
    return np.clip(frame, 0, 255).astype(np.uint8)


# --- the machine ---------------------------------------------------------------------------------


def _read_text(path: str) -> str:
    """Return a file of /proc; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    for line in _read_text("/proc/cpuinfo").splitlines():
        if line.lower().startswith(("model name", "hardware")):
            return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets that the system reports; empty where it does not say."""
    for line in _read_text("/proc/cpuinfo").splitlines():
        if line.lower().startswith(("flags", "features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def usable_cores() -> int:
    """Return the logical cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Return the machine's memory; None where the system does not say."""
    for line in _read_text("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def package_version(name: str) -> str | None:
    """Return an installed distribution's version without importing it; None if missing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_machine() -> dict[str, object]:
    """Return what a time depends on, as JSON types."""
    memory = memory_bytes()
    return {
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "cores_present": os.cpu_count(),
        "memory_gib": None if memory is None else round(memory / 2**30, 1),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "boxseg": __version__,
        "packages": {
            name: version for name in PACKAGES if (version := package_version(name)) is not None
        },
    }


def read_status(key: str) -> int | None:
    """Return a size that the system keeps about this process; None where it does not say.

    Args:
        key: VmRSS, what it holds in memory, or VmHWM, the most that it has held.
    """
    for line in _read_text("/proc/self/status").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None
