"""The C library under sanitizers and fuzzers, from eight threads, and on another processor."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools import NATIVE, ROOT, RUNTIME, SOURCES, require, run

FLAGS = ("-std=c11", "-O1", "-ffp-contract=off", f"-I{RUNTIME}/include")


@pytest.mark.parametrize(
    "seconds", [pytest.param(5, id="5s"), pytest.param(600, id="10min", marks=pytest.mark.slow)]
)
def test_fuzzing_finds_nothing(seconds: int, tmp_path: Path) -> None:
    require("clang")
    said = run(ROOT / "tests/fuzz/run", str(seconds), cwd=tmp_path)
    assert said.split() == ["selection", "masks", "letterbox", "metadata", "run_text"]


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_eight_threads_share_a_model(sanitizer: str, tmp_path: Path) -> None:
    require("clang")
    program = tmp_path / "threads"
    flags = (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-g", "-pthread")
    run("clang", *FLAGS, *flags, NATIVE / "threads.c", *SOURCES, "-lm", "-o", program)
    run(program)


@pytest.fixture(scope="module")
def arm_objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Compile the library for aarch64."""
    require("aarch64-linux-gnu-gcc", "qemu-aarch64")
    folder = tmp_path_factory.mktemp("aarch64")
    run("aarch64-linux-gnu-gcc", *FLAGS, "-Wall", "-Wextra", "-Werror", "-c", *SOURCES, cwd=folder)
    return sorted(folder.glob("*.o"))


def _link_for_arm(source: Path, objects: list[Path], program: Path) -> Path:
    run("aarch64-linux-gnu-gcc", *FLAGS, "-static", source, *objects, "-lm", "-o", program)
    return program


def test_an_arm_processor_gives_the_same_bits(arm_objects: list[Path], tmp_path: Path) -> None:
    require("gcc")
    here = tmp_path / "here"
    run("gcc", *FLAGS, NATIVE / "print_scene.c", *SOURCES, "-lm", "-o", here)
    there = _link_for_arm(NATIVE / "print_scene.c", arm_objects, tmp_path / "there")
    for seed in ("1", "7", "9"):
        answer = run(here, seed)
        assert len(answer.splitlines()) > 10
        assert run("qemu-aarch64", there, seed) == answer


def test_an_arm_processor_keeps_the_rules_for_frames(
    arm_objects: list[Path], tmp_path: Path
) -> None:
    source = NATIVE / "check_frames.c"
    run("qemu-aarch64", _link_for_arm(source, arm_objects, tmp_path / "check_frames"))
