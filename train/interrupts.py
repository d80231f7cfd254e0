"""Requests to end, heeded where nothing is lost."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

ORDERLY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, what schedulers and `kill` send, and the end of the terminal or connection."""


def _nothing() -> None:
    """Leave it at the flag."""


class Interrupts:
    """Turns Ctrl-C, SIGTERM and SIGHUP into a flag that a loop reads where it can end.

    A second Ctrl-C raises KeyboardInterrupt at once. The others come more than once without anybody
    being impatient: schedulers send them to a whole group, whose members pass them on. SIGHUP
    stays ignored where it was, as under nohup.
    """

    def __init__(self, then: Callable[[], None] = _nothing) -> None:
        """Start without a request.

        Args:
            then: Called in the main thread at the first request.
        """
        self.asked = False
        self._by_hand = False
        self._then = then
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take over the signals; outside the main thread, where that is impossible, do nothing."""
        for number in ORDERLY:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                self._previous[number] = signal.signal(number, self._ask)
            except ValueError:
                break
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._by_hand:
            raise KeyboardInterrupt
        self._by_hand |= number == signal.SIGINT
        if not self.asked:
            self.asked = True
            self._then()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
