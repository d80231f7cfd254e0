"""A process that ends with the one that started it, from a thread of a pool as ablate does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has it")

CHILD = """
import signal, sys, time
from pathlib import Path
from boxseg.train.bound_process import end_with

def save(*_):
    Path(sys.argv[2]).write_text("saved")
    sys.exit()

signal.signal(signal.SIGTERM, save)
end_with(int(sys.argv[1]))
print("ready", flush=True)
time.sleep(600)
"""
PARENT = """
import os, subprocess, sys
from concurrent.futures import ThreadPoolExecutor

def start(out):
    subprocess.run([sys.executable, "-c", sys.argv[1], str(os.getpid()), out])

with ThreadPoolExecutor(2) as pool:
    # as much as the pool does beside it: another thread's process that ends, threads that idle
    pool.submit(subprocess.run, [sys.executable, "-c", ""]).result()
    pool.submit(start, sys.argv[2]).result()
"""


def test_a_process_ends_in_order_when_its_parent_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD, str(out)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert not out.exists()
        process.send_signal(signal.SIGKILL)
        # the child has the other end of the pipe
        assert process.stdout.read() == ""
    assert out.read_text() == "saved"


def test_a_process_whose_parent_is_gone_before_it_asks_ends_too() -> None:
    words = [sys.executable, "-c", "from boxseg.train.bound_process import end_with; end_with(-1)"]
    assert subprocess.run(words, check=False).returncode == -signal.SIGTERM


def test_the_command_is_run_and_its_code_returned() -> None:
    words = [sys.executable, "-m", "boxseg.train.bound_process", str(os.getpid()), "fly"]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "no command 'fly'" in found.stderr
