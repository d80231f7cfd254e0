"""A run folder belongs to one process at a time, and to nobody once that process is gone."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from boxseg.train.run_lock import LOCK_FILE, FolderInUseError, RunLock, refuse_if_in_use

fcntl = pytest.importorskip("fcntl", reason="locks files")

HOLDER = """
import multiprocessing, sys, time
from pathlib import Path
from boxseg.train.run_lock import RunLock

lock = RunLock(Path(sys.argv[1]))
lock.take()
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
worker.start()  # as the loader's processes are
print(worker.pid, flush=True)
sys.stdin.readline()
lock.release()
worker.kill()
"""


@contextlib.contextmanager
def holder(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Have another process with a forked worker take a folder; its worker's pid comes with it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        yield process, worker
    finally:
        process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)  # it has our end of the pipe too
        process.communicate()


def test_a_second_process_is_refused_with_the_folder_and_the_holder(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _):
        with pytest.raises(
            FolderInUseError, match=rf"{tmp_path} is in use: process {process.pid} "
        ):
            RunLock(tmp_path).take()
        with pytest.raises(FolderInUseError):
            refuse_if_in_use(tmp_path)
        process.communicate("\n")
        assert process.returncode == 0
        # it gave the folder back as it was
        assert list(tmp_path.iterdir()) == []
        refuse_if_in_use(tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_has_no_lock_though_its_worker_lives(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, worker):
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(worker, 0)  # is there
        assert (tmp_path / LOCK_FILE).is_file()
        with RunLock(tmp_path) as lock:
            lock.take()
            lock.take()  # once more is no harm
            assert lock.note is None
            assert (tmp_path / LOCK_FILE).read_text().split()[0] == str(os.getpid())
        os.kill(worker, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_holder_on_another_machine_is_named_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / LOCK_FILE).write_text("17 far.example\n")

    def refuse(*_: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, "busy")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(FolderInUseError, match=r"process 17 on far\.example trains there"):
        RunLock(tmp_path).take()
    (tmp_path / LOCK_FILE).write_text("")
    with pytest.raises(FolderInUseError, match="another process trains there"):
        RunLock(tmp_path).take()


def test_a_file_that_its_holder_removed_meanwhile_is_not_taken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = fcntl.lockf
    handles = []

    def lock(handle: int, flags: int) -> None:
        """Let the holder end between our opening the file and our locking it."""
        handles.append(handle)
        if len(handles) == 1:
            (tmp_path / LOCK_FILE).unlink()
        locked(handle, flags)

    monkeypatch.setattr(fcntl, "lockf", lock)
    with RunLock(tmp_path) as ours:
        ours.take()
        assert len(handles) == 2
        monkeypatch.undo()
        with pytest.raises(subprocess.CalledProcessError) as refused:
            subprocess.run(
                [sys.executable, "-c", HOLDER, str(tmp_path)], check=True, capture_output=True
            )
        assert f"process {os.getpid()} trains there".encode() in refused.value.stderr


def test_what_replaced_a_removed_folder_is_left_alone(tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:
        lock.take()
        (tmp_path / LOCK_FILE).unlink()
        (tmp_path / LOCK_FILE).write_text("of another process")
    assert (tmp_path / LOCK_FILE).read_text() == "of another process"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def lack(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lack)
    with RunLock(tmp_path) as lock:
        lock.take()
        assert lock.note == (
            f"{tmp_path} cannot be locked ({os.strerror(number)}): let no other process train there"
        )


def test_a_folder_that_cannot_be_written_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).mkdir()  # root may write anywhere, but not to a folder
    with RunLock(tmp_path) as lock:
        lock.take()
        assert lock.note is not None
        assert "cannot be locked (Is a directory)" in lock.note
