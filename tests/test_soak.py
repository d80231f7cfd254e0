"""Thousands of frames of changing content and size: nothing grows, and nothing is mixed up."""

from __future__ import annotations

import gc
import shutil
import subprocess
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from deployed import Outputs, dense_outputs, describe
from numpy.typing import NDArray

from boxseg.runtime import Segmenter, _native

ROOT = Path(__file__).resolve().parent.parent
STATUS = Path("/proc/self/statm")
PAGE = 4096
CONTENTS = 24


class Scenes:
    """An engine that is none: one of some seeded outputs per frame, chosen by its first pixel."""

    name = device = "memory"

    def __init__(self) -> None:
        self.metadata = describe()
        self._outputs = [dense_outputs(seed) for seed in range(CONTENTS)]

    def run(self, image: NDArray[np.uint8]) -> Outputs:
        return self._outputs[int(image[0, 0, 0, 0]) % CONTENTS]


def _resident() -> int:
    return int(STATUS.read_text().split()[1]) * PAGE


def _soak(frames: int) -> None:
    """Run frames; the memory at the end is that after the first quarter."""
    rng = np.random.default_rng(30)
    segmenter = Segmenter(Scenes(), conf=0.4)
    pixels = rng.integers(0, 256, 1080 * 1920 * 3, np.uint8)
    segmenter(pixels.reshape(1080, 1920, 3))  # the largest frame, for buffers that grow
    first: dict[tuple[int, int, int], int] = {}
    sizes = [tuple(np.exp(rng.uniform(0, np.log((1080, 1920)))).astype(int)) for _ in range(40)]
    warm = 0
    for number in range(frames):
        height, width = (int(side) for side in sizes[rng.integers(len(sizes))])
        content = int(rng.integers(CONTENTS))
        frame = pixels[: height * width * 3].reshape(height, width, 3)
        frame[:16, :16] = content  # what reaches the input's first pixel
        found = segmenter(frame)
        key = (height, width, content)
        texts = hash(found.counts)
        assert first.setdefault(key, texts) == texts
        if number % 10 == 0:
            found.crops()
            found.label_image()
            found.polygons()
        if number == frames // 4:
            gc.collect()
            warm = _resident()
    gc.collect()
    grown = _resident() - warm
    # the system's allocator breathes by a megabyte; a mask's text per frame would be 15 MB and more
    assert grown < 4_000_000, f"{grown / 1e6:.1f} MB more after {frames} frames"


@pytest.mark.skipif(not STATUS.exists(), reason="the system does not say how much memory is used")
def test_2000_frames_leave_memory_flat() -> None:
    _soak(2000)


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="the system does not say how much memory is used")
def test_20000_frames_leave_memory_flat() -> None:
    _soak(20_000)


def test_python_keeps_nothing_of_a_frame() -> None:
    segmenter = Segmenter(Scenes(), conf=0.4)
    frame = np.full((300, 400, 3), 3, np.uint8)
    for _ in range(20):
        segmenter(frame)
    tracemalloc.start()
    try:
        for _ in range(50):
            segmenter(frame)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(200):
            segmenter(frame)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2000  # ten bytes a frame: counters, not answers


def test_threads_with_segmenters_of_their_own_do_not_disturb_one_another() -> None:
    scenes = Scenes()
    rng = np.random.default_rng(31)
    frames = [
        np.full((*rng.integers(1, 400, 2), 3), content, np.uint8) for content in range(CONTENTS)
    ]
    alone = Segmenter(scenes, conf=0.4)
    expected = [alone(frame).counts for frame in frames]

    def work(turn: int) -> bool:
        own = Segmenter(scenes, conf=0.4)
        order = np.random.default_rng(turn).integers(0, CONTENTS, 100).tolist()
        return all(own(frames[i]).counts == expected[i] for i in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_a_frame_allocates_nothing_in_c(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: apt install gcc")
    sources = [str(path) for path in (ROOT / "runtime/csrc").glob("*.c") if path.stem != "native"]
    program = tmp_path / "allocations"
    options = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    folders = ["-I", str(ROOT / "runtime/include"), "-I", str(ROOT / "runtime/csrc")]
    main = str(ROOT / "tests/allocations.c")
    command = [compiler, *options, *folders, main, *sources, "-o", str(program), "-lm"]
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # "instances N allocations 0": found something, allocated nothing
    words = done.stdout.split()
    assert int(words[1]) > 1000
    assert words[2:] == ["allocations", "0"]


def test_the_library_has_no_way_to_allocate() -> None:
    library = Path(_native.__file__).read_bytes()
    for name in (b"malloc", b"calloc", b"realloc", b"aligned_alloc", b"posix_memalign", b"mmap"):
        assert b"\0" + name + b"\0" not in library
