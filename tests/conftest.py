"""What every test shares: where the data is, and one thread per process."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tools import RUNTIME, require, run

if TYPE_CHECKING:
    from boxseg.export.to_onnx import TracedGraph
    from boxseg.student import Student

# Tests are many small networks; threads would only fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Return the folder of real data sets, or skip the test."""
    value = os.environ.get("BOXSEG_DATA")
    if not value:
        pytest.skip("BOXSEG_DATA is not set: no real data here")
    root = Path(value)
    if not root.is_dir():
        pytest.skip(f"BOXSEG_DATA={value} is not a folder")
    return root


class _SignalStack(ctypes.Structure):
    """Linux's stack_t."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    )


@pytest.fixture(autouse=True)
def signal_stack() -> Iterator[None]:
    """Give the main thread its signal stack back after each test.

    OpenVINO 2026.4, when it fails to read a file, leaves the thread a signal stack that is freed
    already; the next signal with a handler would then crash the process.
    """
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    before, after = _SignalStack(), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    yield
    libc.sigaltstack(None, ctypes.byref(after))
    if (before.address, before.flags) != (after.address, after.flags):
        libc.sigaltstack(ctypes.byref(before), None)


@pytest.fixture(scope="session")
def installed_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prefix that holds the C library, built with CMake and installed."""
    require("cmake", "gcc")
    build, prefix = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("prefix")
    run("cmake", "-S", RUNTIME, "-B", build, "-DCMAKE_INSTALL_LIBDIR=lib")
    run("cmake", "--build", build)
    run("cmake", "--install", build, "--prefix", prefix)
    return prefix


@pytest.fixture(scope="session")
def tiny_student() -> Student:
    """Return a small untrained network of two classes, made to find something everywhere."""
    import torch

    from boxseg.config import ModelConfig
    from boxseg.student import Student

    torch.manual_seed(0)
    config = ModelConfig(
        classes=("star", "ring"),
        category_ids=(3, 7),
        backbone="mobilenet_v2",
        fpn_channels=16,
        tower_channels=16,
        tower_depth=1,
        mask_channels=4,
        mask_branch_channels=16,
        mask_branch_depth=1,
        imgsz=(96, 128),
    )
    student = Student(config)
    with torch.no_grad():
        # Fresh classifiers say "nothing" everywhere; spread the scores so that ties are rare.
        student.head.class_logits.weight.normal_(std=0.5)
        torch.nn.init.zeros_(student.get_parameter("head.class_logits.bias"))
    return student.eval()


@pytest.fixture(scope="session")
def tiny_graph(tiny_student: Student) -> TracedGraph:
    """Return the small network as ONNX in memory."""
    from boxseg.export.to_onnx import trace
    from boxseg.inference import describe

    return trace(tiny_student, describe(tiny_student.config))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu on a machine without a CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    try:
        import torch
    except ModuleNotFoundError:
        available = False
    else:
        available = torch.cuda.is_available()
    if not available:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
