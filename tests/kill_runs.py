"""Kill a run again and again, resume it each time, and hold it against one that was left alone.

    python tests/kill_runs.py FOLDER [--kills 100] [--seed 0] [--json FILE]

The run has all that a run can have to remember: a teacher, prototypes, a memory bank, a random view
and validations. Each kill is a SIGKILL of the whole process group, at a moment drawn from a seed:
some time after a save, any time after the start, or while a checkpoint is being written, in turns.
Both runs must end with the same bits.

Every tenth process is a new interpreter, as a user starts it. The others are forks of this one,
which has the modules already, and draw fresh entropy: starting Python would take most of the time.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml
from test_engine import TEACHER, recipe_with, write_data

from boxseg import cli

PATIENCE = 600
"""Seconds after which a run that does not get on is an error."""
STEPS_PER_KILL = 4
KINDS = ("after a save", "at any time", "while writing")
FRESH = 10
"""Of so many processes, one is a new interpreter."""


def words_for(folder: Path, out: str, *words: str) -> list[str]:
    """Return the words of boxseg train as a user types them, with loader processes."""
    return [
        *("train", "--device", "cpu", "--workers", "1"),
        *("--config", str(folder / "tiny.yaml"), "--data", str(folder / "data")),
        *("--out", str(folder / out), *words),
    ]


def write_recipe(folder: Path, steps: int) -> None:
    """Write a recipe with everything that has a memory."""
    recipe = recipe_with(
        *TEACHER,
        "pseudo_masks={semantic: {per_class: 2}}",
        "teacher.start=0.01",
        "validation.every_steps=13",
        "validation.max_images=2",
        f"schedule.max_iters={steps}",
    )
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))


def load_modules() -> None:
    """Import what the command imports on use, so that forks have it."""
    for name in ("boxseg.train.commands", "boxseg.train.reports", "pycocotools.cocoeval"):
        importlib.import_module(name)
    importlib.import_module("torch.utils.tensorboard.writer")


def _become_the_run(words: list[str]) -> NoReturn:
    """Be, in a forked process, what a user would have started."""
    code = 70
    try:
        random.seed()
        np.random.seed()  # noqa: NPY002  what new interpreters have: the global one, unlike each time
        torch.seed()
        code = cli.run(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Process:
    """A run of the command in a process group of its own."""

    def __init__(self, words: list[str], log: Path, *, fresh: bool) -> None:
        """Start it; what it says is added to the log."""
        self.began = time.monotonic()
        self.code: int | None = None
        self._fresh = fresh
        self.number = os.fork()
        # by both sides, so that the group is there whoever comes first
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(self.number, self.number)
        if self.number:
            return
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if fresh:
            os.execv(sys.executable, [sys.executable, "-m", "boxseg", *words])
        _become_the_run(words)

    def ended(self) -> bool:
        """Whether it ended by itself; its code is then known."""
        if self.code is None:
            number, status = os.waitpid(self.number, os.WNOHANG)
            if number:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def kill(self) -> None:
        """Kill it together with its loaders."""
        if not self.ended():
            os.killpg(self.number, signal.SIGKILL)
            _, status = os.waitpid(self.number, 0)
            self.code = os.waitstatus_to_exitcode(status)

    def finish(self) -> float:
        """Wait until it is done, and return how many seconds it took.

        Raises:
            RuntimeError: if it fails.
        """
        while not self.ended():
            time.sleep(0.01)
        if self.code:
            raise RuntimeError(f"a run that nobody killed ended with {self.code}")
        return time.monotonic() - self.began


def being_written(run: Path) -> bool:
    """Whether a checkpoint is half written."""
    return any(run.glob(".trainer.pt.*")) or any(run.glob(".last.pt.*"))


class Killer:
    """Starts, resumes and kills one run."""

    def __init__(self, folder: Path, seed: int, pace: float) -> None:
        """Prepare.

        Args:
            folder: Where the recipe and the data are.
            seed: Decides the moments.
            pace: Seconds of one step, about.
        """
        self._folder = folder
        self._run = folder / "killed"
        self._saved = self._run / "trainer.pt"
        self._random = np.random.default_rng(seed)
        self._pace = pace
        self._until_save = 100 * pace
        self.started = 0

    def start(self) -> Process:
        """Start or resume the run."""
        resumed = self._saved.is_file()
        if not resumed and self._run.is_dir():
            # killed before the first save: there is nothing to lose and nothing to resume
            for file in sorted(self._run.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            self._run.rmdir()
        words = words_for(self._folder, "killed", *(["--resume"] if resumed else []))
        self.started += 1
        return Process(words, self._folder / "log.txt", fresh=self.started % FRESH == 0)

    def kill_once(self, kind: str) -> bool:
        """Start or resume the run and kill it.

        Returns:
            Whether it was killed; False if it was complete before.

        Raises:
            RuntimeError: if it fails by itself or does not get on.
        """
        before = self._saved.stat().st_mtime_ns if self._saved.is_file() else 0
        draw = float(self._random.random())
        process = self.start()
        try:
            while not process.ended():
                now = time.monotonic() - process.began
                if now > PATIENCE:
                    raise RuntimeError(f"no save in {PATIENCE} s")
                saved = self._saved.is_file() and self._saved.stat().st_mtime_ns != before
                if kind == "after a save" and saved:
                    self._until_save = now
                    time.sleep(draw * STEPS_PER_KILL * self._pace)
                    return not process.ended()
                if kind == "at any time" and now > draw * 2 * self._until_save:
                    return True
                if kind == "while writing" and being_written(self._run):
                    return True
                time.sleep(0.0005)
            if process.code:
                raise RuntimeError(f"the run failed by itself with {process.code}")
            return False
        finally:
            process.kill()


def differences(folder: Path, name: str) -> list[str]:
    """List the tensors and other values in which a file of the two runs differs."""
    one, other = (torch.load(folder / run / name, weights_only=True) for run in ("whole", "killed"))

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

    return compare(name, one, other)


def kill_and_compare(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Do all of it; return what happened.

    Args:
        folder: An empty folder.
        kills: How often the run is killed.
        seed: Decides the moments.
    """
    write_data(folder / "data")
    steps = STEPS_PER_KILL * (kills + 2)
    write_recipe(folder, steps)
    load_modules()
    log = folder / "log.txt"
    seconds = Process(words_for(folder, "whole"), log, fresh=True).finish()
    killer = Killer(folder, seed, seconds / steps)
    done: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    torn = 0
    for number in range(kills):
        kind = KINDS[number % len(KINDS)]
        if not killer.kill_once(kind):
            break
        done[kind] += 1
        torn += being_written(folder / "killed")
        print(f"\rkilled {number + 1} of {kills}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    Process(words_for(folder, "killed", "--resume"), log, fresh=True).finish()
    left = sorted(entry.name for entry in (folder / "killed").iterdir() if entry.name[0] == ".")
    state = torch.load(folder / "killed" / "trainer.pt", weights_only=True)
    return {
        "kills": done.total(),
        "kills_by_kind": dict(done),
        "kills_with_a_torn_checkpoint": torn,
        "new_interpreters": killer.started // FRESH + 1,
        "steps": state["step"],
        "remembered": sorted({*state["supervision"], *state["own_supervision"][0]}),
        "differences": [
            line
            for name in ("trainer.pt", "last.pt", "best.pt")
            for line in differences(folder, name)
        ],
        "files_left": left,
    }


def main() -> None:
    """Kill, compare, and end with code 1 if anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
