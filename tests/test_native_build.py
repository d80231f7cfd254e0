"""The C sources keep to their dialect: no warning, no allocation, usable from C++."""

import re
from pathlib import Path

from tools import RUNTIME, SOURCES, require, run

STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]


def _compile(compiler: str, *arguments: str) -> None:
    require(compiler)
    run(compiler, "-fsyntax-only", *arguments, f"-I{RUNTIME / 'include'}")


def test_the_library_is_c11_without_a_warning() -> None:
    _compile("gcc", "-std=c11", *STRICT, *map(str, SOURCES))


def test_the_library_is_cxx_too() -> None:
    _compile("g++", "-std=c++17", "-x", "c++", "-Wall", "-Wextra", "-Werror", *map(str, SOURCES))


def test_the_header_stands_alone_in_c_and_cxx(tmp_path: Path) -> None:
    source = tmp_path / "user.c"
    source.write_text(
        '#include "boxseg.h"\nint main(void) { return bxs_status_name(BXS_OK)[0] != 66; }\n'
    )
    _compile("gcc", "-std=c11", *STRICT, str(source))
    _compile("g++", "-std=c++17", "-x", "c++", *STRICT, str(source))


def test_the_library_neither_allocates_nor_keeps_state() -> None:
    assert len(SOURCES) >= 8
    for path in SOURCES:
        text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        assert not re.search(r"\b(malloc|calloc|realloc|free|pthread_\w+)\s*\(", text), path.name
        mutable = re.findall(r"^\s*static (?!const\b|inline\b)[^()]*(?:=|;)", text, re.MULTILINE)
        assert mutable == [], path.name


def test_every_status_has_a_name_and_a_meaning() -> None:
    header = (RUNTIME / "include" / "boxseg.h").read_text()
    listed = re.findall(r'X\((BXS_\w+),\s*"([^"]+)"\)', header)
    assert len(listed) == len(dict(listed)) >= 10
    assert listed[0] == ("BXS_OK", "ok")
