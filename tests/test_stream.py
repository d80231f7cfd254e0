"""Frames in, answers out: order, queues, errors and the end."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from deployed import Outputs, dense_outputs, describe
from numpy.typing import NDArray

from boxseg.runtime import Detections, Segmenter
from boxseg.runtime.stream import Stream, StreamClosedError

SECONDS = 20.0  # far more than any wait here takes


def _frame(value: int = 0) -> NDArray[np.uint8]:
    return np.full((4, 6, 3), value, np.uint8)


def _found(value: int) -> Detections:
    """An empty answer whose height tells the frame that it belongs to."""
    none = np.zeros(0, np.float32)
    whole = np.zeros(0, np.int64)
    return Detections(
        np.zeros((0, 4), np.float32), none, whole, value, 1, (), ("a",), (1,), none, none, whole
    )


class Worker:
    """A segmenter that answers when it is let; frames whose pixels are 255 fail."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.started = threading.Semaphore(0)
        self.colours: list[str] = []

    def __call__(self, frame: NDArray[np.uint8], *, colour: str = "RGB") -> Detections:
        self.started.release()
        assert self.gate.acquire(timeout=SECONDS)
        self.colours.append(colour)
        value = int(frame.flat[0])
        if value == 255:
            raise ValueError("a bad frame")
        return _found(value)

    def let(self, count: int) -> None:
        self.gate.release(count)


def _wait_until(condition: Any) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_answers_come_in_order_with_what_was_given() -> None:
    worker = Worker()
    worker.let(100)
    stamps = [object() for _ in range(4)]
    with Stream(worker, depth=4, when_full="block") as stream:
        for i, stamp in enumerate(stamps):
            stream.submit(_frame(i), stamp=stamp, frame_id=f"camera {i}", colour="BGR")
        for i, stamp in enumerate(stamps):
            found, given, frame_id = stream.result(SECONDS)
            assert found.height == i
            assert given is stamp
            assert frame_id == f"camera {i}"
    assert worker.colours == ["BGR"] * 4
    assert stream.dropped == 0


def test_the_oldest_waiting_frame_gives_way() -> None:
    worker = Worker()
    with Stream(worker, depth=2) as stream:
        stream.submit(_frame(0))
        assert worker.started.acquire(timeout=SECONDS)  # 0 is in work
        for i in range(1, 6):
            stream.submit(_frame(i))  # 1, 2, 3 give way; 4, 5 wait
        assert stream.dropped == 3
        for value in (0, 4, 5):
            worker.let(1)
            assert stream.result(SECONDS).detections.height == value


def test_the_oldest_answer_gives_way_to_a_slow_reader() -> None:
    worker = Worker()
    worker.let(10)
    with Stream(worker, depth=1) as stream:
        for i in range(3):
            stream.submit(_frame(i))
            _wait_until(lambda i=i: len(worker.colours) == i + 1)
        _wait_until(lambda: stream.dropped == 2)
        assert stream.result(SECONDS).detections.height == 2


def test_a_full_queue_blocks_until_an_answer_is_read() -> None:
    worker = Worker()
    worker.let(100)
    with Stream(worker, depth=1, when_full="block") as stream:
        entered: list[int] = []

        def camera() -> None:
            for i in range(10):
                stream.submit(_frame(i))
                entered.append(i)

        thread = threading.Thread(target=camera)
        thread.start()
        # one answer ready, one finished and waiting for room, one frame in the queue
        _wait_until(lambda: len(entered) >= 3)
        time.sleep(0.05)
        assert len(entered) == 3
        assert [stream.result(SECONDS).detections.height for _ in range(10)] == list(range(10))
        thread.join(SECONDS)
    assert stream.dropped == 0


def test_an_error_surfaces_at_its_own_answer() -> None:
    worker = Worker()
    worker.let(3)
    with Stream(worker, depth=3, when_full="block") as stream:
        for value in (1, 255, 2):
            stream.submit(_frame(value), stamp=value, frame_id="front")
        assert stream.result(SECONDS).detections.height == 1
        with pytest.raises(ValueError, match="a bad frame") as caught:
            stream.result(SECONDS)
        assert caught.value.__notes__ == ["frame 'front', stamp 255"]
        assert stream.result(SECONDS).detections.height == 2


def test_waiting_ends_in_time() -> None:
    with Stream(Worker()) as stream:
        with pytest.raises(TimeoutError, match="no answer within 0 seconds"):
            stream.result(0)
        with pytest.raises(TimeoutError, match=r"no answer within 0\.01 seconds"):
            stream.result(0.01)


def test_a_closed_stream_gives_what_it_has_and_takes_nothing() -> None:
    worker = Worker()
    worker.let(2)
    stream = Stream(worker, depth=2, when_full="block")
    stream.submit(_frame(1))
    stream.submit(_frame(2))
    _wait_until(lambda: len(worker.colours) == 2)
    stream.close()
    stream.close()
    with pytest.raises(StreamClosedError, match="the stream is closed"):
        stream.submit(_frame())
    assert [answer.detections.height for answer in stream] == [1, 2]
    with pytest.raises(StreamClosedError, match="no more answers"):
        stream.result()


def test_closing_gives_up_or_finishes_what_waits() -> None:
    for drain, answered, dropped in ((False, [1], 2), (True, [1, 2, 3], 0)):
        worker = Worker()
        stream = Stream(worker, depth=2, when_full="block")
        stream.submit(_frame(1))
        assert worker.started.acquire(timeout=SECONDS)
        stream.submit(_frame(2))
        stream.submit(_frame(3))
        closer = threading.Thread(target=stream.close, kwargs={"drain": drain})
        closer.start()
        _wait_until(lambda s=stream: s._closed)
        worker.let(3)
        closer.join(SECONDS)
        assert [answer.detections.height for answer in stream] == answered
        assert stream.dropped == dropped


def test_closing_wakes_those_who_wait() -> None:
    worker = Worker()
    stream = Stream(worker, depth=1, when_full="block")
    stream.submit(_frame(1))
    assert worker.started.acquire(timeout=SECONDS)
    stream.submit(_frame(2))
    refused: list[type[Exception]] = []

    def submit() -> None:
        try:
            stream.submit(_frame(3))
        except StreamClosedError as error:
            refused.append(type(error))

    waiting = threading.Thread(target=submit)
    waiting.start()
    closer = threading.Thread(target=stream.close)
    closer.start()
    waiting.join(SECONDS)
    assert refused == [StreamClosedError]
    worker.let(1)
    closer.join(SECONDS)
    assert not stream._thread.is_alive()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"when_full": "wait"}, "when_full must be drop_oldest or block, got 'wait'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stream(Worker(), **options)


class Backend:
    name = device = "here"
    metadata = describe()

    def run(self, image: NDArray[np.uint8]) -> Outputs:
        return dense_outputs(int(image[0, 0, 0, 0]))


def test_a_segmenters_stream_answers_as_the_segmenter_does() -> None:
    frames = [np.full((50 + 7 * i, 80, 3), i, np.uint8) for i in range(4)]
    segmenter = Segmenter(Backend(), conf=0.3)
    expected = [segmenter(frame) for frame in frames]
    with segmenter.stream(depth=4, when_full="block") as stream:
        for i, frame in enumerate(frames):
            stream.submit(frame, stamp=i)
        for i, one in enumerate(expected):
            found, stamp, _ = stream.result(SECONDS)
            assert stamp == i
            assert found.counts == one.counts
            assert found.size == one.size
