"""Frames of a camera in, answers out, without waiting for each other.

    with segmenter.stream(depth=2) as stream:
        stream.submit(frame, stamp=now, frame_id="front")
        found, stamp, frame_id = stream.result()

One thread runs the segmenter. Frames wait in a queue of `depth`, finished answers in another one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxseg.runtime.detections import Detections
from boxseg.runtime.preprocess import Colour

WhenFull = Literal["drop_oldest", "block"]


class Answer(NamedTuple):
    """Detections of a submitted frame, and what came with it."""

    detections: Detections
    stamp: Any
    frame_id: Any


class StreamClosedError(RuntimeError):
    """The stream takes no more frames, or has no more answers."""


@dataclass(frozen=True)
class _Job:
    frame: NDArray[np.uint8]
    colour: Colour
    stamp: Any
    frame_id: Any


@dataclass(frozen=True)
class _Done:
    answer: Answer | None
    error: BaseException | None


class Stream:
    """Runs frames through a segmenter in a thread of its own; answers keep the frames' order.

    `submit` and `result` may be called from different threads, or in turn from one. The segmenter
    belongs to the stream until it is closed.

    Attributes:
        dropped: Frames and answers that were given up because a queue was full.
    """

    def __init__(
        self,
        segment: Callable[..., Detections],
        *,
        depth: int = 2,
        when_full: WhenFull = "drop_oldest",
    ) -> None:
        """Start the thread.

        Args:
            segment: A Segmenter.
            depth: Frames that may wait, and answers that may wait, at least 1.
            when_full: "drop_oldest" gives up the oldest waiting frame or answer, so that a slow
                reader sees recent frames; "block" makes `submit` wait until there is room, so that
                every frame is answered.

        Raises:
            ValueError: if an option is outside its range.
        """
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if when_full not in ("drop_oldest", "block"):
            raise ValueError(f"when_full must be drop_oldest or block, got {when_full!r}")
        self.dropped = 0
        self._segment = segment
        self._depth = depth
        self._blocks = when_full == "block"
        self._jobs: deque[_Job] = deque()
        self._done: deque[_Done] = deque()
        self._working = False
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="boxseg stream", daemon=True)
        self._thread.start()

    def submit(
        self,
        frame: NDArray[np.uint8],
        *,
        stamp: Any = None,
        frame_id: Any = None,
        colour: Colour = "RGB",
    ) -> None:
        """Hand a frame over.

        Args:
            frame: As the segmenter takes it. It is read later: do not write into it until its
                answer is there.
            stamp: Anything, usually the time of exposure; it comes back with the answer.
            frame_id: Anything, usually the camera's frame; it comes back with the answer.
            colour: What the frame's bytes are.

        Raises:
            StreamClosedError: if the stream is closed, also while this waits for room.
        """
        with self._changed:
            while self._blocks and len(self._jobs) >= self._depth and not self._closed:
                self._changed.wait()
            if self._closed:
                raise StreamClosedError("the stream is closed")
            if len(self._jobs) >= self._depth:
                self._jobs.popleft()
                self.dropped += 1
            self._jobs.append(_Job(frame, colour, stamp, frame_id))
            self._changed.notify_all()

    def result(self, timeout: float | None = None) -> Answer:
        """Wait for the next answer.

        Args:
            timeout: Seconds; None waits until there is one, 0 looks once.

        Raises:
            TimeoutError: if there was none in time.
            StreamClosedError: if the stream is closed and every answer was taken.
            Exception: what the segmenter raised for this frame, with the frame's stamp and id as
                a note; the frames after it are answered as usual.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._done) or self._finished, timeout):
                raise TimeoutError(f"no answer within {timeout:g} seconds")
            if not self._done:
                raise StreamClosedError("the stream is closed and has no more answers")
            done = self._done.popleft()
            self._changed.notify_all()
        if done.error is not None:
            raise done.error
        assert done.answer is not None
        return done.answer

    def close(self, *, drain: bool = False) -> None:
        """Take no more frames and end the thread; safe to call twice.

        Answers that are ready can still be read.

        Args:
            drain: Finish the frames that wait; else they are given up. The frame in work is
                finished either way.
        """
        with self._changed:
            self._closed = True
            if not drain:
                self.dropped += len(self._jobs)
                self._jobs.clear()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Stream:
        """Return the stream."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close without finishing the frames that wait."""
        self.close()

    def __iter__(self) -> Iterator[Answer]:
        """Give answers as they come, until the stream is closed."""
        while True:
            try:
                yield self.result()
            except StreamClosedError:
                return

    @property
    def _finished(self) -> bool:
        """Whether no answer can come any more; asked with the lock held."""
        return self._closed and not self._jobs and not self._working

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                found = self._segment(job.frame, colour=job.colour)
                done = _Done(Answer(found, job.stamp, job.frame_id), None)
            except BaseException as error:  # it belongs to whoever asks for this frame's answer
                error.add_note(f"frame {job.frame_id!r}, stamp {job.stamp!r}")
                done = _Done(None, error)
            with self._changed:
                while self._blocks and len(self._done) >= self._depth and not self._closed:
                    self._changed.wait()
                if not self._blocks and len(self._done) >= self._depth:
                    self._done.popleft()
                    self.dropped += 1
                self._done.append(done)
                self._working = False
                self._changed.notify_all()

    def _next(self) -> _Job | None:
        """Wait for a frame; None ends the thread."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._jobs) or self._closed)
            if not self._jobs:
                return None
            self._working = True
            job = self._jobs.popleft()
            self._changed.notify_all()
            return job
