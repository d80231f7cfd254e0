"""A run folder belongs to one process at a time.

What is locked is a file in the folder, with a POSIX record lock. The system takes it from a process
that ends, however it ends, so that none is ever stale. The loader processes are forks that outlive
a killed run by some seconds: they inherit a lock of flock (which filelock uses) and would keep the
folder from the run that is to go on, but no record lock. The price: a process loses a record lock
as soon as it closes the file in any place, so nothing else here opens it, and two locks in one
process do not keep each other out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

LOCK_FILE = "run.lock"
"""Is there while a process has the folder, or after one was killed; says which."""


class FolderInUseError(ValueError):
    """Another process trains in a run folder."""


class RunLock:
    """The right to write to a run folder, from `take` until the process or a `with` block ends."""

    def __init__(self, folder: Path) -> None:
        """Lock nothing yet."""
        self.folder = folder
        self.note: str | None = None
        """Why the folder could not be locked, for a person; None if it could."""
        self._path = folder / LOCK_FILE
        self._handle: int | None = None

    def take(self) -> None:
        """Take a folder that exists; once more is no harm.

        Where the file system has no locks or the file cannot be written, there is a note instead.

        Raises:
            FolderInUseError: if another process has it.
        """
        while self._handle is None:
            try:
                handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                self.note = self._unlocked(error)
                return
            try:
                locked = self._lock(handle)
            except BaseException:
                os.close(handle)
                raise
            if not locked:
                os.close(handle)
                return
            if self._is_file(handle):
                self._handle = handle
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
            else:  # it was removed by a holder that ended since we opened it
                os.close(handle)

    def _lock(self, handle: int) -> bool:
        """Lock the file without waiting, or say in a note why there are no locks."""
        try:
            import fcntl

            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError as error:
            self.note = self._unlocked(error)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise FolderInUseError(self._taken_by(handle)) from None
            self.note = self._unlocked(error)
        else:
            return True
        return False

    def _unlocked(self, error: OSError | ImportError) -> str:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return f"{self.folder} cannot be locked ({reason}): let no other process train there"

    def _taken_by(self, handle: int) -> str:
        pid, _, host = os.pread(handle, 300, 0).decode(errors="replace").strip().partition(" ")
        holder = f"process {pid}" if pid else "another process"
        if host not in ("", socket.gethostname()):
            holder += f" on {host}"
        return (
            f"{self.folder} is in use: {holder} trains there; wait for its end, end it, or name "
            "another folder with --out"
        )

    def _is_file(self, handle: int) -> bool:
        """Whether the opened file is the one in the folder."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(handle), self._path.stat())
        return False

    def release(self) -> None:
        """Give the folder back and leave no file."""
        if self._handle is None:
            return
        with contextlib.suppress(OSError):
            if self._is_file(self._handle):
                self._path.unlink()
        os.close(self._handle)
        self._handle = None

    def __enter__(self) -> Self:
        """Lock nothing yet, see `take`."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the folder back."""
        self.release()


def refuse_if_in_use(folder: Path) -> None:
    """Find out whether a process trains in a folder, of which nothing else is known.

    Raises:
        FolderInUseError: if one does.
    """
    if (folder / LOCK_FILE).is_file():
        with RunLock(folder) as lock:
            lock.take()
