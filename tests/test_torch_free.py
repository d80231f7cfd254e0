"""A robot has no torch: the runtime and the command line must not notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from deployed import dense_outputs, describe, write_onnx, write_sample

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "lightning_fabric"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Block())
"""


def run_without_torch(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process where importing torch fails."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code], capture_output=True, text=True, cwd=folder
    )


def test_the_block_works(tmp_path: Path) -> None:
    done = run_without_torch("import torch", tmp_path)
    assert done.returncode == 1
    assert "torch is blocked" in done.stderr


def test_every_runtime_module_imports_without_torch(tmp_path: Path) -> None:
    code = """
import importlib, pkgutil
import boxseg.runtime
names = [module.name for module in pkgutil.iter_modules(boxseg.runtime.__path__)]
for name in names:
    importlib.import_module(f"boxseg.runtime.{name}")
assert "torch" not in sys.modules
print(" ".join(names))
"""
    done = run_without_torch(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "segmenter" in done.stdout


def test_help_runs_without_torch(tmp_path: Path) -> None:
    done = run_without_torch("from boxseg import cli; sys.exit(cli.run(['--help']))", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bench" in done.stdout


def test_runtime_commands_answer_help_without_torch(tmp_path: Path) -> None:
    code = """
from boxseg import cli
for name in ("predict", "eval", "bench", "bench-native", "doctor"):
    assert cli.run([name, "--help"]) == 0, name
"""
    done = run_without_torch(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_golden_sample_replays_without_torch(tmp_path: Path) -> None:
    write_onnx(tmp_path / "best.onnx", dense_outputs(3), describe())
    write_sample(tmp_path / "best.onnx", np.zeros((40, 60, 3), np.uint8))
    code = """
from boxseg import cli
assert cli.run(["verify", "best.onnx"]) == 0
assert "torch" not in sys.modules
"""
    done = run_without_torch(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "golden sample of best.onnx" in done.stdout


def test_commands_that_need_torch_say_what_to_install(tmp_path: Path) -> None:
    code = """
from boxseg import cli
sys.exit(cli.run(["export", "best.pt"]))
"""
    done = run_without_torch(code, tmp_path)
    assert done.returncode == 4, done.stderr
    assert "torch is not installed; pip install 'boxseg[export]'" in done.stderr
    assert "Traceback" not in done.stderr
