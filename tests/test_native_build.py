"""The C sources keep to their dialect: no warning, no allocation, usable from C++."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parent.parent / "runtime"
KERNELS = sorted(path for path in (RUNTIME / "csrc").glob("*.c") if path.name != "native.c")
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]


def _compile(compiler: str, *arguments: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler} (Debian package build-essential)")
    command = [compiler, "-fsyntax-only", *arguments, f"-I{RUNTIME / 'include'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_library_is_c11_without_a_warning() -> None:
    _compile("gcc", "-std=c11", *STRICT, *map(str, KERNELS))


def test_the_library_is_cxx_too() -> None:
    _compile("g++", "-std=c++17", "-x", "c++", "-Wall", "-Wextra", "-Werror", *map(str, KERNELS))


def test_the_header_stands_alone_in_c_and_cxx(tmp_path: Path) -> None:
    source = tmp_path / "user.c"
    source.write_text(
        '#include "boxseg.h"\nint main(void) { return bxs_status_name(BXS_OK)[0] != 66; }\n'
    )
    _compile("gcc", "-std=c11", *STRICT, str(source))
    _compile("g++", "-std=c++17", "-x", "c++", *STRICT, str(source))


def test_the_library_neither_allocates_nor_keeps_state() -> None:
    assert len(KERNELS) >= 8
    for path in KERNELS:
        text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        assert not re.search(r"\b(malloc|calloc|realloc|free|pthread_\w+)\s*\(", text), path.name
        mutable = re.findall(r"^\s*static (?!const\b|inline\b)[^()]*(?:=|;)", text, re.MULTILINE)
        assert mutable == [], path.name


def test_every_status_has_a_name_and_a_meaning() -> None:
    header = (RUNTIME / "include" / "boxseg.h").read_text()
    listed = re.findall(r'X\((BXS_\w+),\s*"([^"]+)"\)', header)
    assert len(listed) == len(dict(listed)) >= 10
    assert listed[0] == ("BXS_OK", "ok")
