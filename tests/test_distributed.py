"""Several processes learn what one would, and end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_engine import RECIPE, write_data, write_depth

from boxseg.train.engine import _launched
from boxseg.train.trainer_state import load_trainer_state

SCRIPT = Path(__file__).with_name("distributed_run.py")


def environment() -> dict[str, str]:
    """Return an environment in which a process finds the tests and talks to itself alone."""
    paths = [str(SCRIPT.parent), str(SCRIPT.parent.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def train(data: Path, out: Path, devices: int, kind: str = "plain") -> list[dict[str, Any]]:
    """Run the script; return what each process wrote."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(data), str(out), str(devices), kind],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(devices)]


def write_mostly_empty_data(folder: Path) -> Path:
    """Write six pictures of which two have boxes: some process sees none in some step."""
    data = write_data(folder, images=6)
    file = data / "train.json"
    content = json.loads(file.read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] < 3]
    file.write_text(json.dumps(content))
    return data


def test_two_processes_learn_what_one_does_even_where_one_sees_no_box(tmp_path: Path) -> None:
    data = write_mostly_empty_data(tmp_path / "data")
    (one,) = train(data, tmp_path / "one", 1)
    first, second = train(data, tmp_path / "two", 2)
    # 2 of 6 images have boxes, so in some step one process has none and the other some
    counts = [
        (a["boxes"], b["boxes"]) for a, b in zip(first["steps"], second["steps"], strict=True)
    ]
    assert any((left == 0) != (right == 0) for left, right in counts)
    for alone, shared in zip(one["steps"], first["steps"], strict=True):
        assert alone["losses"].keys() == shared["losses"].keys()
        for name, value in alone["losses"].items():
            assert shared["losses"][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(first["state_dict"][name], value, rtol=1e-3, atol=1e-5)
        assert torch.equal(first["state_dict"][name], second["state_dict"][name]), name
    state = load_trainer_state(tmp_path / "two" / "trainer.pt")
    assert (state.step, len(state.random)) == (5, 2)
    # each predicts three of the six images, the first process scores all
    found = first["validation"]
    assert found["shared"]["numbers"]["images"] == 6
    assert found["shared"]["numbers"]["detections"] > 0
    assert found["shared"] == found["alone"]
    assert second["validation"] is None


def test_two_processes_of_the_full_recipe_stay_equal_where_one_sees_no_box(tmp_path: Path) -> None:
    data = write_depth(write_mostly_empty_data(tmp_path / "data"))
    first, second = train(data, tmp_path / "two", 2, "full")
    assert any(
        (a["boxes"] == 0) != (b["boxes"] == 0)
        for a, b in zip(first["steps"], second["steps"], strict=True)
    )
    last = first["steps"][-1]
    assert {"pseudo_mask", "pseudo_affinity", "depth", "depth_consistency"} <= last["losses"].keys()
    assert last["diagnostics"]["pseudo_share"] > 0
    for part in ("state_dict", "criterion"):
        for name, value in first[part].items():
            assert torch.equal(second[part][name], value), name
    ours, theirs = (state["supervision"]["teacher"] for state in (first, second))
    assert ours["updates"] == theirs["updates"] == 1 + 7
    for name, value in ours["network"].items():
        assert torch.equal(theirs["network"][name], value), name


@pytest.mark.parametrize(
    ("variables", "asked", "expected"),
    [
        ({}, 1, (1, 1)),
        ({}, 4, (4, 1)),
        # torchrun on one machine, and on three of eight processes each
        ({"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}, 1, (2, 1)),
        ({"LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "24"}, 8, (8, 3)),
        # srun with two machines of four tasks each; a shell inside an allocation is no srun
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "3"}, 1, (4, 2)),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2"}, 1, (1, 1)),
    ],
)
def test_the_launcher_says_how_many_processes_and_machines_there_are(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    asked: int,
    expected: tuple[int, int],
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_NNODES", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _launched(asked) == expected


def test_another_number_than_the_launchers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--devices 4: torchrun started 2 process"):
        _launched(4)


@pytest.mark.slow
def test_torchrun_starts_the_command_that_one_process_runs(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    words = command(tmp_path)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    without_devices = [word for word in words[2:] if word not in ("--devices", "2")]
    done = subprocess.run(
        [*start, "-m", *without_devices],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    # the first process alone speaks and writes
    assert done.stdout.count("step 6/6 ") == 1
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "6", "6"]  # of training, of validation
    assert load_trainer_state(tmp_path / "run" / "trainer.pt").step == 6


def command(place: Path, *words: str) -> list[str]:
    """Return boxseg train as a user types it, in two processes."""
    (place / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    return [
        *(sys.executable, "-m", "boxseg", "train", "--config", "tiny.yaml", "--data", "data"),
        *("--device", "cpu", "--devices", "2", "--out", "run", *words),
    ]


def children(process: int) -> list[int]:
    """Return the processes that a process started."""
    file = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in file.read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_ends_the_run_with_one_line_and_it_can_be_resumed(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    process = subprocess.Popen(
        command(tmp_path, "-o", "schedule.max_iters=100000"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    saved = tmp_path / "run" / "trainer.pt"
    deadline = time.monotonic() + 240
    while not saved.is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (child,) = children(process.pid)
    os.kill(child, signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert "another process of the run ended" in line
    assert "--resume continues from the last save" in line
    step = load_trainer_state(saved).step
    assert step > 0
    end = step + 2
    # the length is a setting like any other: the run goes on as it began
    resumed = subprocess.Popen(
        command(tmp_path, "-o", "schedule.max_iters=100000", "--resume"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while load_trainer_state(saved).step < end:
        assert resumed.poll() is None, resumed.communicate()
        assert time.monotonic() < deadline + 240
        time.sleep(0.2)
    resumed.send_signal(signal.SIGINT)
    _, error = resumed.communicate(timeout=120)
    assert resumed.returncode == 130, error
