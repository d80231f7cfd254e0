"""The clock of a step: parts are charged for their own time."""

from __future__ import annotations

import time

import pytest
import torch

from boxseg.train.step_profile import StepClock, StepProfile


def test_each_part_is_charged_with_the_time_since_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 10.0, 11.0, 14.0, 16.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    clock = StepClock(torch.device("cpu"))
    clock.restart()  # at 10: what was before does not count
    clock("a")
    clock("b")
    clock("a")
    assert clock.seconds == {"a": 1.0 + 2.0, "b": 3.0}


def test_the_table_is_of_one_step() -> None:
    # 0.1 s and 0.3 s of two steps: 50 and 150 ms of 200, eight images in 0.4 s
    lines = StepProfile({"a": 0.1, "b": 0.3}, steps=2, images=4, first_step=5).lines()
    assert lines[0] == "2 steps of 4 images from step 5 on"
    assert [line.split() for line in lines[2:5]] == [
        ["a", "50.0", "25.0%"],
        ["b", "150.0", "75.0%"],
        ["step", "200.0", "100.0%"],
    ]
    assert lines[5].startswith("20.0 images/s")
