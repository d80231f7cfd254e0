"""Signals as requests: which are counted, which are not, and that they are given back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from boxseg.train.interrupts import ORDERLY, Interrupts


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Do not ignore SIGHUP, as a test under nohup does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_second_ctrl_c_is_not_waited_for() -> None:
    with Interrupts() as interrupts:
        send(signal.SIGINT)
        assert interrupts.asked
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_request_that_is_passed_on_is_no_impatience() -> None:
    told: list[int] = []
    with Interrupts(lambda: told.append(1)) as interrupts:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGHUP, signal.SIGINT):
            send(number)
        assert interrupts.asked
    assert told == [1]


def test_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in ORDERLY]
    with Interrupts():
        assert all(signal.getsignal(number) not in before for number in ORDERLY)
    assert [signal.getsignal(number) for number in ORDERLY] == before


def test_nohup_stays_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interrupts() as interrupts:
        send(signal.SIGHUP)
        assert not interrupts.asked


def test_outside_the_main_thread_nothing_is_taken_over() -> None:
    taken: list[bool] = []

    def look() -> None:
        with Interrupts():
            taken.append(signal.getsignal(signal.SIGTERM) != signal.SIG_DFL)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert taken == [False]
