"""Kill a run again and again, resume it each time, and hold it against one that was left alone.

    python tests/kill_runs.py FOLDER [--kills 100] [--seed 0] [--json FILE]

Each kill is a SIGKILL of the whole process group at a moment drawn from a seed. Every third waits
for a checkpoint that is being written. Both runs must end with the same bits.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from test_engine import RECIPE, write_data

PATIENCE = 600
"""Seconds after which a run that does not get on is an error."""


def command(folder: Path, out: str, *words: str) -> list[str]:
    """Return boxseg train as a user types it, with loader processes."""
    return [
        *(sys.executable, "-m", "boxseg", "train", "--device", "cpu", "--workers", "1"),
        *("--config", str(folder / "tiny.yaml"), "--data", str(folder / "data")),
        *("--out", str(folder / out), *words),
    ]


def being_written(run: Path) -> bool:
    """Whether a checkpoint is half written."""
    return any(run.glob(".trainer.pt.*")) or any(run.glob(".last.pt.*"))


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process together with its loaders."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill_once(folder: Path, generator: np.random.Generator, *, while_writing: bool) -> bool:
    """Start or resume the run and kill it.

    Returns:
        Whether it was killed; False if it was complete before.
    """
    run = folder / "killed"
    words = ["--resume"] if (run / "trainer.pt").is_file() else []
    if not words and run.is_dir():
        # killed before the first save: there is nothing to lose and nothing to resume
        subprocess.run(["rm", "-rf", str(run)], check=True)
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command(folder, "killed", *words), stdout=log, stderr=log, start_new_session=True
        )
        begin = time.monotonic()
        before = (run / "trainer.pt").stat().st_mtime_ns if words else 0
        delay = float(generator.random())
        try:
            while process.poll() is None:
                if time.monotonic() > begin + PATIENCE:
                    raise RuntimeError(f"no save in {PATIENCE} s; see {folder / 'log.txt'}")
                if while_writing and being_written(run):
                    return True
                saved = (run / "trainer.pt").is_file() and (
                    run / "trainer.pt"
                ).stat().st_mtime_ns != before
                if saved and not while_writing:
                    time.sleep(delay)
                    return process.poll() is None
                time.sleep(0.0005)
            if process.returncode:
                raise RuntimeError(f"the run failed by itself; see {folder / 'log.txt'}")
            return False
        finally:
            end(process)


def differences(folder: Path) -> list[str]:
    """List the tensors and other values in which the two trainer.pt differ."""
    one, other = (
        torch.load(folder / name / "trainer.pt", weights_only=True) for name in ("whole", "killed")
    )

    def compare(path: str, left: Any, right: Any) -> list[str]:
        if isinstance(left, torch.Tensor):
            return [] if torch.equal(left, right) else [path]
        if isinstance(left, dict):
            if left.keys() != right.keys():
                return [path]
            return [
                line for key in left for line in compare(f"{path}.{key}", left[key], right[key])
            ]
        if isinstance(left, list | tuple):
            if len(left) != len(right):
                return [path]
            pairs = enumerate(zip(left, right, strict=True))
            return [line for row, pair in pairs for line in compare(f"{path}[{row}]", *pair)]
        return [] if left == right else [path]

    return compare("trainer.pt", one, other)


def kill_and_compare(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Do all of it; return what happened.

    Args:
        folder: An empty folder.
        kills: How often the run is killed.
        seed: Decides the moments.
    """
    write_data(folder / "data")
    # a save at the end of every epoch of five images: two saves in five steps
    steps = 5 * (kills + 2)
    recipe = {**RECIPE, "schedule": {**RECIPE["schedule"], "max_iters": steps}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    subprocess.run(command(folder, "whole"), check=True, stdout=subprocess.DEVNULL)
    generator = np.random.default_rng(seed)
    done, torn = 0, 0
    for number in range(kills):
        while_writing = number % 3 == 2
        if not kill_once(folder, generator, while_writing=while_writing):
            break
        done += 1
        torn += being_written(folder / "killed")
        print(f"\rkilled {done} of {kills}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    subprocess.run(command(folder, "killed", "--resume"), check=True, stdout=subprocess.DEVNULL)
    left = sorted(entry.name for entry in (folder / "killed").iterdir() if entry.name[0] == ".")
    return {
        "kills": done,
        "kills_with_a_torn_checkpoint": torn,
        "steps": steps,
        "differences": differences(folder),
        "files_left": left,
    }


def main() -> None:
    """Kill, compare, and end with code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write what happened")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    found = kill_and_compare(arguments.folder, arguments.kills, arguments.seed)
    print(json.dumps(found, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(found["differences"] or found["files_left"]))


if __name__ == "__main__":
    main()
