"""A camera frame in, its instances out.

H x W pixels of the frame, H' x W' of the network's input.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boxseg.runtime.backends import Backend, open_backend
from boxseg.runtime.detections import Detections
from boxseg.runtime.metadata import Metadata
from boxseg.runtime.postprocess import Postprocessor
from boxseg.runtime.preprocess import Colour, Fit, Letterboxer, YuvRule, frame_size
from boxseg.runtime.stream import Stream, WhenFull


class Segmenter:
    """Finds instances in frames.

        segmenter = Segmenter("best.onnx")
        for instance in segmenter(frame): ...

    `batch` takes several frames at once, `stream` a camera's frames without waiting for each.
    Buffers are made once and follow the largest frame seen, so one Segmenter serves one thread.
    Answers never share memory with them.

    Attributes:
        metadata: What the file says about itself.
        backend: The engine.
        postprocessor: What turns its outputs into instances.
    """

    def __init__(
        self,
        model: str | Path | Backend,
        *,
        conf: float = 0.5,
        iou: float | None = None,
        max_det: int | None = None,
        budget_ms: float | None = None,
        device: str | None = None,
        threads: int | None = None,
        yuv: YuvRule = "BT.601 limited",
    ) -> None:
        """Load a model and run it once.

        Args:
            model: A deployed file (see `open_backend`), or a backend.
            conf: Instances need a final score above this, [0, 1]; scores are square roots of
                products (see the metadata), so 0.5 asks for a product of 0.25.
            iou: Suppress above this IoU, [0, 1]; None is the file's.
            max_det: Instances per frame, at least 1; None is the file's.
            budget_ms: Milliseconds for all that follows the engine, per frame; the answer then is
                what was ready, and its `complete` says whether that is everything. None is no
                limit.
            device: Where to run a file; None is the CPU. One that is not obtained is an error.
            threads: Of the engine, for a file; None leaves it to the engine.
            yuv: How frames of NV12 and YUYV become RGB.

        Raises:
            FileNotFoundError: if there is nothing at the path.
            BackendMissingError: if the engine or the device is not there.
            FileMismatchError: if the file is foreign, damaged or of another version.
            ValueError: if an option is outside its range.
        """
        if isinstance(model, (str, Path)):
            self.backend: Backend = open_backend(model, device, threads)
        elif device is not None or threads is not None:
            raise ValueError("device and threads are for files; a backend has its own")
        else:
            self.backend = model
        described = self.backend.metadata
        self.metadata = (
            described if isinstance(described, Metadata) else Metadata.from_dict(described)
        )
        self.postprocessor = Postprocessor(self.metadata, conf=conf, iou=iou, max_det=max_det)
        if budget_ms is not None and not budget_ms > 0:
            raise ValueError(f"budget_ms must be above 0, got {budget_ms}")
        self._budget_ms = math.inf if budget_ms is None else budget_ms
        self._letterboxer = Letterboxer(self.metadata.imgsz, padding=self.metadata.padding, yuv=yuv)
        self._input = np.empty((1, 0, 0, 3), np.uint8)
        if isinstance(self.metadata.imgsz, Fit):
            # the first run of an engine allocates and tunes; a size that follows the frame is
            # not known yet
            self(np.zeros((self.metadata.imgsz.height, self.metadata.imgsz.width, 3), np.uint8))

    def __call__(self, frame: NDArray[np.uint8], *, colour: Colour = "RGB") -> Detections:
        """Find the instances of one frame.

        Args:
            frame: Bytes 0..255, (H, W, 3) in the order RGB or BGR, or gray (H, W) or (H, W, 1); of
                a camera also NV12 or YUYV, see `Colour`.
            colour: What the frame's bytes are.

        Returns:
            Instances in frame pixels, best first, with `times_ms` of the stages letterbox, engine,
            select, masks and their total.

        Raises:
            ValueError: if the frame is of another type or shape.
        """
        return self._segment([frame], colour)[0]

    def batch(
        self, frames: Iterable[NDArray[np.uint8]], *, colour: Colour = "RGB"
    ) -> list[Detections]:
        """Find the instances of several frames.

        They share runs of the engine, as many at a time as the file takes, where their inputs have
        one size.

        Args:
            frames: As for one frame; sizes may differ.
            colour: What the bytes of all frames are.

        Returns:
            One answer per frame, in their order. The engine's time is shared out evenly among the
            frames of a run, so that all totals add up to the time of the work.

        Raises:
            ValueError: if a frame is of another type or shape.
        """
        found: list[Detections] = []
        for _, group in itertools.groupby(frames, lambda frame: self._input_size(frame, colour)):
            members = list(group)
            step = self.metadata.batch.most
            for first in range(0, len(members), step):
                found += self._segment(members[first : first + step], colour)
        return found

    def stream(self, *, depth: int = 2, when_full: WhenFull = "drop_oldest") -> Stream:
        """Run frames in a thread of their own; see `Stream`."""
        return Stream(self, depth=depth, when_full=when_full)

    def _segment(self, frames: list[NDArray[np.uint8]], colour: Colour) -> list[Detections]:
        """Answer frames of one input size with one run of the engine."""
        start = time.perf_counter()
        images = self._room(
            len(frames), self._input_size(frames[0], colour)
        )  # at least `batch.least`
        plans, boxed = [], [start]
        for frame, image in zip(frames, images, strict=False):
            plans.append(self._letterboxer(frame, image, colour=colour)[1])
            boxed.append(time.perf_counter())
        outputs = self.backend.run(images)
        end = time.perf_counter()
        engine = (end - boxed[-1]) / len(frames)
        answers = []
        for i, plan in enumerate(plans):
            ran = end
            own = {name: values[i : i + 1] for name, values in outputs.items()}
            kept = self.postprocessor.select(own, plan, budget_ms=self._budget_ms)
            selected = time.perf_counter()
            left_ms = self._budget_ms - (selected - ran) * 1e3
            found = self.postprocessor.masks(own, plan, kept, budget_ms=left_ms)
            end = time.perf_counter()
            times = {
                "letterbox": (boxed[i + 1] - boxed[i]) * 1e3,
                "engine": engine * 1e3,
                "select": (selected - ran) * 1e3,
                "masks": (end - selected) * 1e3,
            }
            answers.append(replace(found, times_ms={**times, "total": sum(times.values())}))
        return answers

    def _input_size(self, frame: NDArray[np.uint8], colour: Colour) -> tuple[int, int]:
        plan = self._letterboxer.plan(*frame_size(frame, colour))
        return plan.height, plan.width

    def _room(self, count: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the input buffer of some images, made anew where it has another size.

        A run that is short of images takes what the buffer holds for the rest.
        """
        count = max(count, self.metadata.batch.least)
        if self._input.shape[1:3] != size or len(self._input) < count:
            self._input = np.zeros((count, *size, 3), np.uint8)
        return self._input[:count]
