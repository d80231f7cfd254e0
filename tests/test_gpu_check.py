"""The parts of docs/gpu_check.py that need no GPU."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
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
    sys.modules[spec.name] = module  # where dataclasses look up their module
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
    throughput: dict[str, Any] = {
        "recipe": "boxinst_resnet50",
        "compiled": True,
        "images": 16,
        "padded_size": [800, 1088],
        "images_per_second": 40.25,
        "peak_memory_gib": 9.5,
        "utilisation_percent": 91.6,
        "waiting_share": 0.021,
        "seconds_with_profile": 12.0,
        "profile": ["x 1"],
    }
    export = {"format": "trt", "options": ["--half"], "command": "boxseg export"}
    return {
        "gpu": {"gpu": "Card", "memory_gib": 80.0, "cuda": "12.8", "cudnn": 90000},
        "machine": {"cpu": "Chip", "cores": 4, "python": "3.11.9", "packages": {"torch": "2.11"}},
        "correctness": [{**correctness, "tolerance": 1e-3, "passed": passed}],
        "throughput": [throughput, {**throughput, "compiled": False, "utilisation_percent": None}],
        "export": [{**export, "code": code, "seconds": 3.0, "output": ["said"]}],
        "ablation": None,
        "failures": [] if passed else ["boxseg: MemoryError: none left"],
    }


def test_the_report_names_the_card_the_numbers_and_what_failed(check: ModuleType) -> None:
    lines = check.markdown(report(passed=False, code=1))
    assert lines[0] == "# Card"
    assert "| fp32 | 0.5 (a of step 1) | 0.001 | **failed** |" in lines
    size = "16 of 800 x 1088 | 40.2 | 40 | 9.5"
    assert f"| boxinst_resnet50, compiled | {size} | 92 % | 2.1% |" in lines
    assert f"| boxinst_resnet50 | {size} | - | 2.1% |" in lines
    assert "    x 1" in lines
    assert "`boxseg export`, trt --half: ended with 1 in 3 s" in lines
    assert "- boxseg: MemoryError: none left" in lines
    assert check.failed(report(passed=False, code=1)) == [
        "fp32",
        "boxseg export trt",
        "boxseg: MemoryError: none left",
    ]
    assert check.failed(report(passed=True, code=0)) == []
    # an ablation that was ended for its time is none; one that fails is
    late, wrong = ({"command": "boxseg ablate", "code": code} for code in (-9, 1))
    assert check.failed({**report(passed=True, code=0), "ablation": late}) == []
    assert check.failed({**report(passed=True, code=0), "ablation": wrong}) == ["boxseg ablate"]


def test_a_command_that_takes_too_long_is_ended(check: ModuleType) -> None:
    done = check.run(["--version"], 0.0)
    assert done["code"] == -9
    assert done["output"] == []


def test_a_part_that_fails_leaves_the_others_their_turn(
    check: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks() -> None:
        raise RuntimeError("no kernel\nof this kind")

    parts = check.Parts()
    assert parts("one", breaks, []) == []
    assert parts("two", lambda: 2, None) == 2
    assert parts.failures == ["one: RuntimeError: no kernel"]
    assert "gpu-check: two" in capsys.readouterr().err


def test_utilisation_is_the_mean_of_what_is_seen(check: ModuleType) -> None:
    # 40 and 60; what is no number is not counted
    lines = ["sh", "-c", "echo 40; echo 60; echo '[N/A]'; exec sleep 60"]
    watch = check.Utilisation(lines)
    time.sleep(0.5)
    assert watch.end() in (50.0, None)  # None on a machine too busy to start a shell
    assert check.Utilisation(["no-such-program"]).end() is None


@pytest.mark.slow
def test_a_rehearsal_does_every_part_on_the_cpu(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(tmp_path), "--rehearse"])
    assert check.main() == 0
    report = json.loads((tmp_path / "rehearsal.json").read_text())
    assert report["failures"] == []
    assert [row["check"] for row in report["correctness"]] == [
        "fp32, GPU against CPU, 3 steps",
        "bf16-mixed against fp32, GPU, 1 step",
    ]
    # the CPU against itself
    assert report["correctness"][0]["largest_relative_difference"] == 0
    assert [row["recipe"] for row in report["throughput"]] == list(check.THROUGHPUT)
    assert [row["command"] for row in report["export"]] == ["boxseg export", "boxseg bench"]
    assert not any("no detection" in line for line in report["export"][0]["output"])
    assert len(report["ablation"]["rows"]) == 3
    assert "ablation rows" in (tmp_path / "rehearsal.md").read_text().lower()
