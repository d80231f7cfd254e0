"""A run of the engine by itself, so that its launcher can start it once more for each process.

    python distributed_run.py DATA OUT DEVICES plain|full

In the plain recipe every batch norm keeps its statistics: what several processes learn is then what
one would. The full one has a teacher, pasted objects, a view, depth and batch norms that learn.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from test_engine import DEPTH, TEACHER, recipe_with
from torch import nn

from boxseg.checkpoint import write_atomically
from boxseg.runtime.accuracy import evaluate
from boxseg.student import Student
from boxseg.train import engine
from boxseg.train.engine import Engine, RunSettings
from boxseg.train.loader import batches_of

BOTH = ("data.batch_size=4", "data.short_sides=[64]", "schedule.clip_norm=1")
RECIPES = {
    "plain": recipe_with(*BOTH, "schedule.max_iters=5", "model.frozen_bn=true"),
    # a teacher from step 5 of 12 on, when there is something to find
    "full": recipe_with(
        *(*BOTH, *TEACHER, *DEPTH),
        *("teacher.start=0.4", "schedule.max_iters=12", "schedule.lr=0.02"),
    ),
}


def freeze_all_statistics(step: nn.Module, *_: object, **__: object) -> None:
    """Train with the statistics that the batch norms started with."""
    step.train()
    for part in step.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()


def find_everywhere(student: Student) -> None:
    """Let a network find something everywhere; fresh classifiers say "nothing"."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        student.head.class_logits.weight.normal_(std=0.5, generator=generator)
        nn.init.zeros_(student.get_parameter("head.class_logits.bias"))


def validate(run: Engine, data: Path) -> dict[str, Any] | None:
    """Score a network that finds something everywhere, shared and by one process alone."""
    find_everywhere(run.student)
    run.student.eval()
    shared = run._accuracy(run.student)
    if shared is None:
        return None
    assert run.validation_file is not None
    alone = evaluate(run._segmenter(run.student), run.validation_file, data)
    return {
        name: {"numbers": accuracy.as_dict(), "results": accuracy.results}
        for name, accuracy in (("shared", shared), ("alone", alone))
    }


def main() -> None:
    """Train, and write what each process has in the end."""
    data, out, devices = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    recipe = RECIPES[sys.argv[4]]
    if sys.argv[4] == "plain":
        engine.train_mode = freeze_all_statistics
    run = Engine(recipe, RunSettings(data=data, out=out, device="cpu", devices=devices))
    run.start_folder()
    losses = []
    with batches_of(run._loader()) as batches:
        run._train_mode()
        for batch in batches:
            rate = recipe.schedule.learning_rate(run.step)
            found, told = run.train_on(batch, rate)
            boxes = sum(map(len, batch.boxes))
            losses.append({"losses": found, "boxes": boxes, "diagnostics": told})
            run.step += 1
    run.save()
    state: dict[str, Any] = {
        "steps": losses,
        "state_dict": {name: value.clone() for name, value in run.student.state_dict().items()},
        "criterion": run.criterion.state_dict(),
        "supervision": run.supervision.shared_state(),
    }
    state["validation"] = validate(run, data)
    write_atomically(out / f"rank{run.fabric.global_rank}.pt", state)


if __name__ == "__main__":
    main()
