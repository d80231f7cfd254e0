"""A boxseg command that does not outlive the process that started it.

    python -m boxseg.train.bound_process PID train --config ...

When process PID ends, however it ends, this one is sent SIGTERM, which a training heeds by saving.
Linux alone has that; elsewhere it is a plain `boxseg`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def end_with(parent: int) -> None:
    """Ask the system for SIGTERM when the parent ends.

    Linux means the thread that started this process; it has to live as long as this process is
    wanted. A process asks for it itself: between fork and exec, in a parent of several threads,
    Python could not.

    Args:
        parent: Its process id. If it has ended before, this process ends as well.
    """
    if sys.platform != "linux":
        return
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    from boxseg.cli import run

    sys.exit(run(sys.argv[2:]))
