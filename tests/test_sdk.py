"""The C library as others build, install and link it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tools import NATIVE, RUNTIME, require, run

LIMIT_BYTES = 150_000


@pytest.fixture(scope="module")
def users(installed_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a user's C and C++ programs with find_package."""
    require("g++")
    build = tmp_path_factory.mktemp("users")
    flags = "-Wall -Wextra -pedantic -Werror"
    run(
        "cmake",
        *("-S", NATIVE, "-B", build, f"-DCMAKE_PREFIX_PATH={installed_library}"),
        *(f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"),
    )
    run("cmake", "--build", build)
    return build


def test_c_and_cxx_programs_find_the_package_and_agree(users: Path) -> None:
    from_c, from_cxx = run(users / "user_c", "7"), run(users / "user_cxx", "7")
    assert from_c == from_cxx
    assert len(from_c.splitlines()) > 5
    assert from_c != run(users / "user_c", "8")


@pytest.mark.parametrize("kind", ["shared", "static"])
def test_pkg_config_gives_the_flags(
    kind: str, installed_library: Path, users: Path, tmp_path: Path
) -> None:
    require("pkg-config")
    environment = {
        "PKG_CONFIG_PATH": str(installed_library / "lib/pkgconfig"),
        "PATH": "/usr/bin:/bin",
    }
    words = ["--cflags", "--libs", *(["--static"] if kind == "static" else [])]
    flags = run("pkg-config", *words, "boxseg", env=environment)
    if kind == "static":
        flags = flags.replace("-lboxseg", "-Wl,-Bstatic -lboxseg -Wl,-Bdynamic")
    program = tmp_path / "program"
    run("gcc", "-std=c11", NATIVE / "print_scene.c", "-o", program, *flags.split())
    answer = run(program, "7", env={"LD_LIBRARY_PATH": str(installed_library / "lib")})
    assert answer == run(users / "user_c", "7")


def test_pkg_config_and_the_header_state_one_version(installed_library: Path) -> None:
    require("pkg-config")
    header = (installed_library / "include/boxseg.h").read_text()
    major, minor, patch = (
        header.split(f"#define BXS_VERSION_{part} ")[1].split()[0]
        for part in ("MAJOR", "MINOR", "PATCH")
    )
    environment = {
        "PKG_CONFIG_PATH": str(installed_library / "lib/pkgconfig"),
        "PATH": "/usr/bin:/bin",
    }
    version = run("pkg-config", "--modversion", "boxseg", env=environment).strip()
    assert version == f"{major}.{minor}.{patch}"
    assert (installed_library / f"lib/libboxseg.so.{version}").is_file()


def test_an_older_minor_version_is_refused(installed_library: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(user C)\n"
        "find_package(boxseg 0.0 QUIET)\n"
        'if(boxseg_FOUND)\nmessage(FATAL_ERROR "taken")\nendif()\n'
    )
    run("cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={installed_library}")


def test_an_installed_tree_may_be_moved(
    installed_library: Path, users: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(installed_library, moved, symlinks=True)
    run("cmake", "-S", NATIVE, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={moved}")
    run("cmake", "--build", tmp_path / "b", "--target", "user_c")
    assert run(tmp_path / "b/user_c", "7") == run(users / "user_c", "7")


def test_the_library_shows_its_own_names_only_and_allocates_nothing(
    installed_library: Path,
) -> None:
    require("strip")
    library = installed_library / "lib/libboxseg.so"
    shown = {line.split()[-1] for line in run("nm", "-D", "--defined-only", library).splitlines()}
    header = (installed_library / "include/boxseg.h").read_text()
    assert {name for name in shown if not name.startswith("bxs_")} == set()
    assert all(f"{name}(" in header for name in shown)
    needed = run("nm", "-D", "--undefined-only", library)
    assert not {"malloc", "calloc", "realloc", "free"} & {
        line.split()[-1].partition("@")[0] for line in needed.splitlines()
    }


def test_the_stripped_library_is_small(installed_library: Path, tmp_path: Path) -> None:
    require("strip")
    stripped = tmp_path / "stripped.so"
    run("strip", "-o", stripped, installed_library / "lib/libboxseg.so")
    assert stripped.stat().st_size <= LIMIT_BYTES


@pytest.mark.parametrize("language", ["c11", "c++17"])
def test_the_header_compiles_pedantically(language: str, tmp_path: Path) -> None:
    compiler, kind = ("gcc", "c") if language == "c11" else ("g++", "c++")
    require(compiler)
    source = tmp_path / "user"
    source.write_text('#include "boxseg.h"\n')
    flags = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only"]
    run(compiler, f"-std={language}", *flags, f"-I{RUNTIME}/include", "-x", kind, source)
