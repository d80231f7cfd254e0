"""`boxseg train --profile N`: where the time of a step goes.

The parts of a step report to a clock when they are done. A run has none: it calls `untimed`, which
does nothing. A profile's clock waits for the GPU at every part, so that each is charged for its
own work; the sum is therefore more than a step takes when CPU and GPU work side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from boxseg.errors import counted

Clock = Callable[[str], None]
"""Told the name of a part of a step when it is done."""

WAITING = "waiting for data"
SKIPPED = 3
"""Steps before the first that counts: engines choose kernels, loaders fill their queues."""


def untimed(_: str) -> None:
    """Take no time."""


class StepClock:
    """Adds up the seconds of each part of a step."""

    def __init__(self, device: torch.device) -> None:
        """Start.

        Args:
            device: Where the parts run; it is waited for.
        """
        self._device = device
        self.seconds: dict[str, float] = {}
        self.restart()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def restart(self) -> None:
        """Forget all parts; the next one begins now."""
        self.seconds.clear()
        self._begin = self._now()

    def __call__(self, part: str) -> None:
        """Charge the time since the last part to this one."""
        now = self._now()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._begin
        self._begin = now


@dataclass(frozen=True)
class StepProfile:
    """Seconds of the parts of some steps, in the order of a step."""

    seconds: Mapping[str, float]
    """Part -> seconds of all steps together."""
    steps: int
    images: int
    """Images per step, all processes."""
    first_step: int
    """Number of the first step that counts, from 0."""

    def lines(self) -> list[str]:
        """Return a table for people: milliseconds of one step and the share of each part."""
        total = sum(self.seconds.values())
        rows = [*self.seconds.items(), ("step", total)]
        width = max(len(name) for name, _ in rows)
        return [
            f"{counted(self.steps, 'step')} of {counted(self.images, 'image')} from step "
            f"{self.first_step} on",
            f"{'':<{width}}{'ms':>10}{'share':>8}",
            *(
                f"{name:<{width}}{1000 * value / self.steps:>10.1f}{value / total:>8.1%}"
                for name, value in rows
            ),
            f"{self.images * self.steps / total:.1f} images/s with a wait after every part; what "
            "terms share is charged to the first that asks",
        ]
