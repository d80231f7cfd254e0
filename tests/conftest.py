"""What every test shares: where the data is, and one thread per process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
