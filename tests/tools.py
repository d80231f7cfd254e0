"""Programs that tests of the C library need, and how to get them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGES = {
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "clang": "clang",
    "cmake": "cmake",
    "g++": "g++",
    "gcc": "gcc",
    "pkg-config": "pkg-config",
    "qemu-aarch64": "qemu-user",
    "strip": "binutils",
}
"""Debian package of each program."""

ROOT = Path(__file__).parent.parent
RUNTIME = ROOT / "runtime"
NATIVE = Path(__file__).parent / "native"
SOURCES = sorted(path for path in (RUNTIME / "csrc").glob("*.c") if path.name != "native.c")


def miss(what: str, package: str) -> None:
    """Skip the test for want of a Debian package; fail it where BOXSEG_REQUIRE_TOOLS is set."""
    message = f"needs {what} (Debian package {package})"
    if os.environ.get("BOXSEG_REQUIRE_TOOLS"):
        pytest.fail(message)
    pytest.skip(message)


def require(*programs: str) -> None:
    """Miss the first of the programs that is not here."""
    for program in programs:
        if shutil.which(program) is None:
            miss(program, PACKAGES[program])


def run(*command: str | Path, **options: object) -> str:
    """Run a command and return its output; a failure shows all that it said."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, **options
    )  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return str(done.stdout)
