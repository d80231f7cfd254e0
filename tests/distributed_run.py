"""A run of the engine by itself, so that its launcher can start it once more for each process.

    python distributed_run.py DATA OUT DEVICES

Every batch norm keeps its statistics: what several processes learn is then what one would.
"""

import sys
from pathlib import Path

from test_engine import recipe_with
from torch import nn

from boxseg.checkpoint import write_atomically
from boxseg.train import engine
from boxseg.train.engine import Engine, RunSettings

RECIPE = recipe_with(
    "data.batch_size=4",
    "data.short_sides=[64]",
    "schedule.max_iters=5",
    "schedule.clip_norm=1",
    "model.frozen_bn=true",
)


def freeze_all_statistics(step: nn.Module, *_: object, **__: object) -> None:
    """Train with the statistics that the batch norms started with."""
    step.train()
    for part in step.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()


def main() -> None:
    """Train, and write what each process has in the end."""
    data, out, devices = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    engine.train_mode = freeze_all_statistics
    run = Engine(RECIPE, RunSettings(data=data, out=out, device="cpu", devices=devices))
    run.start_folder()
    losses = []
    with engine._batches(run._loader()) as batches:
        run._train_mode()
        for batch in batches:
            rate = RECIPE.schedule.learning_rate(run.step)
            found, _ = run.train_on(batch, rate)
            losses.append({"losses": found, "boxes": sum(map(len, batch.boxes))})
            run.step += 1
    run.save()
    state = {"steps": losses, "state_dict": run.student.state_dict()}
    write_atomically(out / f"rank{run.fabric.global_rank}.pt", state)


if __name__ == "__main__":
    main()
