"""A run holds no more memory after many steps than after some."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from memory_run import GROWTH, measure


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow(tmp_path: Path) -> None:
    found = measure(tmp_path / "data", steps=400)
    assert list(found["run_mib"]) == [str(step) for step in range(40, 401, 40)]
    assert found["growth_mib"] < GROWTH
