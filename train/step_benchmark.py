"""`boxseg bench-step`: the cost of a training step beside torchvision's FCOS, in one run.

Other recipes of ours can be timed in the same run: what a teacher costs is a ratio of two steps.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from boxseg.configs import find_recipe
from boxseg.train.engine import Engine, RunSettings
from boxseg.train.recipe import Recipe, read_recipe
from boxseg.train.transforms import Batch, Geometry, collate

PEER = "torchvision fcos_resnet50_fpn"
OURS = "boxseg"


@dataclass(frozen=True)
class StepTimes:
    """Seconds of the same step, once per round."""

    name: str
    seconds: list[float]

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.seconds)


def largest_batch(engine: Engine) -> Batch:
    """Return the first images of the data at the recipe's largest short side, not flipped."""
    data = engine.recipe.data
    geometry = Geometry((max(data.short_sides),), data.long_side, flip="off")
    mirrored = geometry.mirrored_labels(engine.images.classes)
    count = min(data.batch_size, len(engine.images))
    samples = [
        geometry(engine.images.load(index), mirrored, epoch=0, index=index)
        for index in range(count)
    ]
    return collate(samples)


def peer_step(engine: Engine, batch: Batch) -> Callable[[], None]:
    """Return one step of torchvision's FCOS: ResNet-50, random weights, every layer trained.

    It sees the same padded images and boxes, and runs in the same precision and memory format as
    ours, with SGD; a detector only, without masks.
    """
    from torchvision.models.detection import fcos_resnet50_fpn

    device = engine.fabric.device
    height, width = batch.images.shape[-2:]
    network = fcos_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=len(engine.images.classes),
        min_size=min(height, width),
        max_size=max(height, width),
    ).to(device)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    images = [image.float() / 255 for image in batch.images.to(device)]
    targets = [
        {"boxes": boxes.to(device), "labels": labels.to(device)}
        for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
    ]
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(engine.recipe.precision)

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            losses: dict[str, Tensor] = network(images, targets)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return step


def _own_step(engine: Engine, batch: Batch) -> Callable[[], None]:
    """Return one step of a recipe in the middle of its schedule: teacher and warm-ups are on."""
    engine.step = engine.recipe.schedule.max_iters // 2
    engine.module.train()
    rate = engine.recipe.schedule.learning_rate(0)

    def step() -> None:
        engine.train_on(batch, rate)
        engine.step += 1

    return step


def compare_steps(
    engine: Engine, *, warmup: int, rounds: int, beside: Mapping[str, Engine] | None = None
) -> tuple[list[StepTimes], Batch]:
    """Time our step and the others, taking turns.

    Args:
        engine: A run that was built, not started.
        warmup: Rounds that are not counted.
        rounds: Rounds that are counted.
        beside: Other runs by name, over the same data.

    Returns:
        Ours, the peer's and the others' times, and the batch that all saw.
    """
    batch = largest_batch(engine)
    steps = {OURS: _own_step(engine, batch), PEER: peer_step(engine, batch)}
    for name, other in (beside or {}).items():
        steps[name] = _own_step(other, largest_batch(other))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(warmup + rounds):
        for name, step in steps.items():
            _wait(engine.fabric.device)
            begin = time.perf_counter()
            step()
            _wait(engine.fabric.device)
            if number >= warmup:
                seconds[name].append(time.perf_counter() - begin)
    return [StepTimes(name, values) for name, values in seconds.items()], batch


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(times: list[StepTimes], batch: Batch, engine: Engine) -> dict[str, Any]:
    """Return what was measured, JSON types."""
    ours, peer, *others = times
    count, _, height, width = batch.images.shape
    return {
        "images": count,
        "padded_size": [height, width],
        "objects": sum(len(boxes) for boxes in batch.boxes),
        "backbone": engine.recipe.model.backbone,
        "precision": engine.recipe.precision,
        "device": str(engine.fabric.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "median_seconds": {entry.name: entry.median for entry in times},
        "seconds": {entry.name: entry.seconds for entry in times},
        "ratio": ours.median / peer.median,
        "ratio_to_boxseg": {entry.name: entry.median / ours.median for entry in others},
    }


def _recipe(config: str, overrides: tuple[str, ...], precision: str | None) -> Recipe:
    words = list(overrides)
    if precision is not None:
        words.append(f"precision={precision}")
    return read_recipe(find_recipe(config), words)


@click.command("bench-step")
@click.option("--config", required=True, metavar="NAME|FILE", help="Recipe.")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder with train.json and val.json.",
)
@click.option(
    "--beside",
    multiple=True,
    metavar="NAME|FILE",
    help="Time this recipe too, with the same settings and data; may be given several times.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Start all recipes from this model: a teacher that finds nothing costs less.",
)
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
@click.option(
    "--precision",
    type=click.Choice(["32-true", "bf16-mixed", "16-mixed"]),
    help="Overrides the recipe's precision.",
)
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True, help="Rounds.")
@click.option("--iters", type=click.IntRange(1), default=5, show_default=True, help="Rounds.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the report.",
)
def bench_step(
    config: str,
    data: Path,
    beside: tuple[str, ...],
    weights: Path | None,
    overrides: tuple[str, ...],
    device: str,
    precision: str | None,
    warmup: int,
    iters: int,
    json_file: Path | None,
) -> None:
    """Time one training step beside torchvision's FCOS, taking turns.

    Teacher, forward, losses, backward and optimizer of one batch in memory, in the middle of the
    schedule; loading is not inside.
    """
    settings = RunSettings(data=data, out=Path("bench-step"), device=device, weights=weights)
    engine = Engine(_recipe(config, overrides, precision), settings)
    others = {name: Engine(_recipe(name, overrides, precision), settings) for name in beside}
    times, batch = compare_steps(engine, warmup=warmup, rounds=iters, beside=others)
    found = report(times, batch, engine)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    height, width = found["padded_size"]
    click.echo(
        f"{found['images']} images padded to {height} x {width}, {found['precision']}, "
        f"{found['device']}, {found['threads']} threads, {iters} rounds"
    )
    for entry in times:
        click.echo(f"{entry.name:<30} {entry.median:8.3f} s median, {min(entry.seconds):.3f} best")
    click.echo(f"{'ratio of the medians':<30} {found['ratio']:8.2f}")
    for name, ratio in found["ratio_to_boxseg"].items():
        click.echo(f"{name + ' / ' + config:<30} {ratio:8.2f}")
