"""Stage times, their order and the record of the machine."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from boxseg.runtime.benchmark import (
    describe_machine,
    measure,
    summarise,
    synthetic_frame,
)

FRAMES = [np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)]


class Clock:
    """Stands still until a model works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Answer:
    def __init__(self, times_ms: dict[str, float], count: int) -> None:
        self.times_ms = times_ms
        self._count = count

    def __len__(self) -> int:
        return self._count


class Model:
    """Takes the given milliseconds in turn, half of them in its engine."""

    def __init__(self, name: str, clock: Clock, costs: list[float], calls: list[str]) -> None:
        self.name, self.clock, self.calls = name, clock, calls
        self.costs = itertools.cycle(costs)
        self.frames: list[int] = []

    def __call__(self, frame: np.ndarray) -> Answer:
        cost = next(self.costs)
        self.clock.now += cost / 1000
        self.calls.append(self.name)
        self.frames.append(int(frame[0, 0, 0]))
        return Answer({"letterbox": 1.0, "engine": cost / 2, "total": 999.0}, len(self.frames))


def test_percentiles_are_worked_by_hand() -> None:
    # 0 .. 100: the p-th percentile is p
    summary = summarise([float(v) for v in range(101)])
    assert (summary.p50, summary.p90, summary.p99) == (50, 90, 99)
    assert (summary.mean, summary.minimum) == (50, 0)


def test_one_sample_is_every_percentile() -> None:
    summary = summarise([7.0])
    assert (summary.p50, summary.p90, summary.p99) == (7, 7, 7)


def test_total_is_measured_around_the_call_and_stages_are_the_models() -> None:
    clock = Clock()
    (timing,) = measure(
        {"a": Model("a", clock, [20.0], [])}, FRAMES, warmup=2, iters=5, clock=clock
    )
    assert list(timing.stages) == ["letterbox", "engine", "total"]
    assert timing.stages["total"].p50 == pytest.approx(20)
    assert timing.stages["engine"].p50 == 10
    assert timing.frames_per_second == pytest.approx(50)
    assert timing.rounds == 5


def test_first_call_and_warm_up_are_not_in_the_times() -> None:
    # calls: first 900, two warm-ups 500 and 500, then 10, 10
    clock = Clock()
    model = Model("a", clock, [900.0, 500.0, 500.0, 10.0, 10.0], [])
    (timing,) = measure({"a": model}, FRAMES, warmup=2, iters=2, clock=clock)
    assert timing.first_ms == pytest.approx(900)
    assert timing.stages["total"].p99 == pytest.approx(10)
    assert timing.warmup is not None
    assert timing.warmup.p50 == pytest.approx(500)
    # detections grow by one per call: 4 and 5 on the timed frames
    assert timing.detections_mean == 4.5
    assert timing.detections_most == 5


def test_models_take_turns_and_see_the_same_frames() -> None:
    clock = Clock()
    calls: list[str] = []
    models = {name: Model(name, clock, [1.0], calls) for name in "ab"}
    measure(models, FRAMES, warmup=0, iters=4, clock=clock)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab" + "ba"
    assert models["a"].frames == models["b"].frames == [0, 0, 1, 0, 1]


def test_models_are_compared_round_by_round() -> None:
    # first calls, then rounds 10 against 5, 10 against 20, 10 against 4: shares 0.5, 2 and 0.4
    clock = Clock()
    costs = {"a": [10.0], "b": [1.0, 5.0, 20.0, 4.0]}
    models = {name: Model(name, clock, values, []) for name, values in costs.items()}
    one, other = measure(models, FRAMES, warmup=0, iters=3, clock=clock)
    assert one.against is None
    assert one.compared == {}
    assert other.against == "a"
    assert list(other.compared) == ["engine", "total"]
    for found in other.compared.values():
        assert found.ratio == pytest.approx(0.5)
        assert (found.faster, found.blocks) == (2, 0)


def test_blocks_of_ten_rounds_are_compared_by_their_medians() -> None:
    # one round in ten is lost in the first block, six in the second; five more rounds are no block
    costs = [1.0, *[0.9] * 9, 9.0, *[0.9] * 4, *[1.1] * 6, *[0.9] * 5]
    clock = Clock()
    models = {
        "a": Model("a", clock, [1.0], []),
        "b": Model("b", clock, costs, []),
    }
    _, other = measure(models, FRAMES, warmup=0, iters=25, clock=clock)
    found = other.compared["total"]
    assert (found.faster, found.block, found.blocks, found.blocks_faster) == (18, 10, 2, 1)


def test_blocks_have_the_length_that_is_asked_for() -> None:
    # blocks of 3: one slow round of three, two of three, three of three; two more are no block
    costs = [1.1, 0.9, 0.9, 1.1, 0.9, 1.1, 1.1, 1.1, 1.1, 0.9, 0.9]
    clock = Clock()
    models = {"a": Model("a", clock, [1.0], []), "b": Model("b", clock, costs, [])}
    _, other = measure(models, FRAMES, warmup=0, iters=11, block=3, clock=clock)
    found = other.compared["total"]
    assert (found.faster, found.block, found.blocks, found.blocks_faster) == (5, 3, 3, 1)


def test_each_model_may_be_compared_with_another() -> None:
    clock = Clock()
    models = {name: Model(name, clock, [cost], []) for name, cost in (("a", 1.0), ("b", 4.0))}
    others = {"a": "b", "b": "b"}
    one, other = measure(models, FRAMES, warmup=0, iters=2, against=others, clock=clock)
    assert one.compared["total"].ratio == pytest.approx(0.25)
    assert one.compared["total"].faster == 2
    assert other.against is None


def test_a_stage_without_a_time_is_not_compared() -> None:
    def idle(frame: np.ndarray) -> Answer:
        clock.now += 0.002
        return Answer({"engine": 0.0}, 0)

    clock = Clock()
    _, other = measure({"a": idle, "b": idle}, FRAMES, warmup=0, iters=2, clock=clock)
    assert list(other.compared) == ["total"]


def test_duration_adds_rounds() -> None:
    # 0.1 s per round, 1 s asked: 10 rounds or one more by rounding of the sum
    clock = Clock()
    (timing,) = measure(
        {"a": Model("a", clock, [100.0], [])}, FRAMES, warmup=0, iters=2, duration=1.0, clock=clock
    )
    assert timing.rounds in (10, 11)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"iters": 0}, "iters must be at least 1, got 0"),
        ({"block": 0}, "block must be at least 1, got 0"),
        ({"duration": float("nan")}, "duration must be at least 0 seconds, got nan"),
    ],
)
def test_numbers_out_of_range_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure({"a": lambda frame: Answer({}, 0)}, FRAMES, **more)
    with pytest.raises(ValueError, match="at least one model and one frame"):
        measure({}, FRAMES)


def test_synthetic_frame_is_the_same_for_a_seed() -> None:
    frame = synthetic_frame()
    assert frame.shape == (720, 1280, 3)
    assert frame.dtype == np.uint8
    assert frame.std() > 20
    np.testing.assert_array_equal(frame, synthetic_frame())
    assert (frame != synthetic_frame(seed=1)).any()
    assert synthetic_frame(33, 65).shape == (33, 65, 3)


def test_machine_is_described_in_json() -> None:
    machine = json.loads(json.dumps(describe_machine()))
    assert machine["cores"] >= 1
    assert machine["packages"]["numpy"] == np.__version__
