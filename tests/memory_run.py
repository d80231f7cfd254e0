"""Train many steps, and see whether memory grows.

    python tests/memory_run.py FOLDER [--steps 2000] [--json FILE]

A tiny network with all that a run can hold on to: a teacher, prototypes, a memory bank, depth, a
random view, loader processes, validations and reports. The resident memory of the run and of its
loaders is read after every tenth of the steps. Exit code 1 if it grows by more than GROWTH between
the middle of the run and its end: by then caches and the bank are full.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from test_engine import DEPTH, TEACHER, recipe_with, write_data, write_depth

from boxseg.train.engine import Engine, RunSettings
from boxseg.train.reports import Reports, StepReport

GROWTH = 16.0
"""MiB: 0.016 a step over 1,000 steps. The images of one batch, 2 x 3 x 64 x 64, are 0.023."""


def resident_mib(process: int | str) -> float:
    """Return what a process holds in memory."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def measure(folder: Path, steps: int) -> dict[str, Any]:
    """Train, and return the memory by step.

    Args:
        folder: Does not exist yet.
        steps: At least 20.
    """
    data = write_depth(write_data(folder))
    recipe = recipe_with(
        *(*TEACHER, *DEPTH, "pseudo_masks={semantic: {per_class: 2}}"),
        *(f"schedule.max_iters={steps}", "schedule.save_every=50", "teacher.start=0.05"),
        *("data.workers=1", "data.short_sides=[32,48]", "data.long_side=64"),
        *(f"validation.every_steps={steps // 10}", "validation.max_images=2"),
    )
    engine = Engine(recipe, RunSettings(data=data, out=folder / "run", device="cpu"))
    engine.start_folder()
    console = Console(file=io.StringIO())
    reports = Reports(engine.settings.out, first_step=0, last_step=steps, console=console)
    told = reports.step
    run: dict[str, float] = {}
    loaders: dict[str, float] = {}
    at = {round(part * steps / 10) for part in range(1, 11)}

    def step(report: StepReport) -> None:
        told(report)
        if report.step in at:
            run[str(report.step)] = round(resident_mib("self"), 1)
            children = multiprocessing.active_children()
            loaders[str(report.step)] = round(sum(resident_mib(c.pid or "self") for c in children))
            print(f"step {report.step}: {run[str(report.step)]} MiB", file=sys.stderr, flush=True)

    reports.step = step  # type: ignore[method-assign]  # reads the memory
    engine.fit(reports)
    middle, end = run[str(steps // 2)], run[str(steps)]
    return {
        "steps": steps,
        "run_mib": run,
        "loaders_mib": loaders,
        "growth_mib": round(end - middle, 1),
        "allowed_mib": GROWTH,
    }


def main() -> int:
    """Measure; end with code 1 if memory grows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="write what was measured")
    arguments = parser.parse_args()
    found = measure(arguments.folder, arguments.steps)
    print(json.dumps(found, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(found["growth_mib"] > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
