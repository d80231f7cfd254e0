"""A run that is killed at random moments ends as one that was left alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from kill_runs import kill_and_compare


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and process groups")
def test_a_run_killed_six_times_ends_with_the_same_bits(tmp_path: Path) -> None:
    found = kill_and_compare(tmp_path, kills=6, seed=0)
    assert found["kills_by_kind"] == {"after a save": 2, "at any time": 2, "while writing": 2}
    assert found["remembered"] == ["bank", "pseudo_masks", "teacher"]
    assert found["differences"] == []
    assert found["files_left"] == []
