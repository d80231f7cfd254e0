"""The parts of docs/gpu_check.py that need no GPU."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FILE = Path(__file__).parent.parent / "docs" / "gpu_check.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends_with_1(
    check: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(tmp_path / "out")])
    assert check.main() == 1
    assert capsys.readouterr().err == "gpu-check: torch finds no CUDA GPU here\n"
    assert not (tmp_path / "out").exists()


def test_losses_are_compared_by_their_size_and_no_number_is_infinitely_far(
    check: ModuleType,
) -> None:
    # 0.02 of 2 is 1 %; 0.001 of 0.0001 counts against 0.01, which is 10 %
    theirs = [{"a": 2.0, "b": 0.0001}]
    assert check.largest_difference([{"a": 2.02, "b": 0.0001}], theirs)[0] == pytest.approx(0.01)
    apart, where = check.largest_difference([{"a": 2.02, "b": 0.0011}], theirs)
    assert (apart, where) == (pytest.approx(0.1), "b of step 0")
    assert check.largest_difference([{"a": math.nan, "b": 0.0}], theirs)[0] == math.inf
    assert check.largest_difference(theirs, theirs) == (0.0, "")


def report(passed: bool, code: int) -> dict[str, Any]:
    correctness = {"check": "fp32", "largest_relative_difference": 0.5, "at": "a of step 1"}
    throughput = {"recipe": "boxinst", "images": 16, "padded_size": [800, 1088]}
    export = {"format": "trt", "options": ["--half"], "command": "boxseg export"}
    return {
        "gpu": {"gpu": "Card", "memory_gib": 80.0, "cuda": "12.8", "cudnn": 90000},
        "machine": {"cpu": "Chip", "cores": 4, "python": "3.11.9", "packages": {"torch": "2.11"}},
        "correctness": [{**correctness, "tolerance": 1e-3, "passed": passed}],
        "throughput": [
            {**throughput, "images_per_second": 40.25, "peak_memory_gib": 9.5, "profile": ["x 1"]}
        ],
        "export": [{**export, "code": code, "seconds": 3.0, "output": ["said"]}],
        "ablation": None,
    }


def test_the_report_names_the_card_the_numbers_and_what_failed(check: ModuleType) -> None:
    lines = check.markdown(report(passed=False, code=1))
    assert lines[0] == "# Card"
    assert "| fp32 | 0.5 (a of step 1) | 0.001 | **failed** |" in lines
    assert "| boxinst | 16 of 800 x 1088 | 40.2 | 9.5 |" in lines
    assert "    x 1" in lines
    assert "`boxseg export`, trt --half: ended with 1 in 3 s" in lines
    assert check.failed(report(passed=False, code=1)) == ["fp32", "boxseg export trt"]
    assert check.failed(report(passed=True, code=0)) == []


def test_a_command_that_takes_too_long_is_ended(check: ModuleType) -> None:
    done = check.run(["--version"], 0.0)
    assert done["code"] == -9
    assert done["output"] == []
