"""`boxseg bench-step`: the cost of a training step beside torchvision's detectors, in one run.

Peers are torchvision's FCOS and Mask R-CNN on the recipe's own backbone. Other recipes of ours can
be timed in the same run: what a teacher costs is a ratio of two steps.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from boxseg.backbone import Backbone
from boxseg.configs import find_recipe
from boxseg.errors import counted
from boxseg.train.engine import Engine, RunSettings
from boxseg.train.recipe import Recipe, read_recipe
from boxseg.train.transforms import Batch, Geometry, collate

PEERS = {
    "fcos": "torchvision FCOS",
    "mask-rcnn": "torchvision Mask R-CNN",
    "fcos-resnet50": "torchvision fcos_resnet50_fpn",
}
"""Peers by the name that the command takes; the last has ResNet-50 whatever the recipe has."""
OURS = "boxseg"
COMPILED = "boxseg --compile"


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


class PeerBackbone(nn.Module):
    """A recipe's backbone with torchvision's FPN, as torchvision's detectors take it."""

    def __init__(
        self, backbone: Backbone, channels: int, *, first: int, top: ExtraFPNBlock
    ) -> None:
        """Build the pyramid.

        Args:
            backbone: Its stages are taken, its own pyramid is not.
            channels: Channels of every level.
            first: Stage of the lowest level, from 0: 1 is stride 4, 2 is stride 8.
            top: torchvision's block that adds levels above the last stage.
        """
        super().__init__()
        self.stages = backbone.stages
        self._first = first
        self.out_channels = channels
        self.stages.eval()
        with torch.no_grad():
            features = self._features(torch.zeros(1, 3, 64, 64))
        self.stages.train()
        inputs = [feature.shape[1] for feature in features.values()]
        self.fpn = FeaturePyramidNetwork(inputs, channels, top)

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        features: dict[str, Tensor] = {}
        for index, stage in enumerate(self.stages):
            images = stage(images)
            if index >= self._first:
                features[str(index)] = images
        return features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the levels by name."""
        levels: dict[str, Tensor] = self.fpn(self._features(images))
        return levels


def build_peer(peer: str, engine: Engine, size: tuple[int, int]) -> nn.Module:
    """Return one of torchvision's detectors with random weights, every layer of it trained.

    Args:
        peer: A key of PEERS.
        engine: Its recipe names backbone and channels, its data the classes.
        size: H, W of the padded images, which the detector is not to scale.
    """
    from torchvision.models.detection import FCOS, MaskRCNN, fcos_resnet50_fpn

    classes = len(engine.images.classes)
    model = engine.recipe.model
    sizes: dict[str, Any] = {"min_size": min(size), "max_size": max(size)}
    network: nn.Module
    if peer == "fcos-resnet50":
        network = fcos_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=classes, **sizes
        )
        return network
    channels = model.fpn_channels
    backbone = Backbone(model.backbone, channels)
    if peer == "fcos":
        if channels % 32:
            raise ValueError(
                f"--peer fcos: torchvision's FCOS needs model.fpn_channels to be a multiple of 32, "
                f"got {channels}"
            )
        top: ExtraFPNBlock = LastLevelP6P7(channels, channels)
        pyramid = PeerBackbone(backbone, channels, first=2, top=top)
        network = FCOS(pyramid, num_classes=classes, **sizes)
    else:
        pyramid = PeerBackbone(backbone, channels, first=1, top=LastLevelMaxPool())
        levels = ["1", "2", "3", "4"]  # what they pool from; the level above them is for proposals
        network = MaskRCNN(
            pyramid,
            num_classes=classes + 1,  # with background
            box_roi_pool=MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
            mask_roi_pool=MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2),
            **sizes,
        )
    return network


def peer_targets(batch: Batch, peer: str) -> list[dict[str, Tensor]]:
    """Return the objects of a batch as torchvision takes them.

    Mask R-CNN counts classes from 1. Its masks are the filled boxes: their content costs nothing,
    their size does.
    """
    height, width = batch.images.shape[-2:]
    targets = []
    for boxes, labels in zip(batch.boxes, batch.labels, strict=True):
        target = {"boxes": boxes, "labels": labels}
        if peer == "mask-rcnn":
            masks = torch.zeros((len(boxes), height, width), dtype=torch.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().long().tolist(), strict=True):
                mask[y1:y2, x1:x2] = 1
            target = {"boxes": boxes, "labels": labels + 1, "masks": masks}
        targets.append(target)
    return targets


def peer_step(engine: Engine, batch: Batch, peer: str) -> Callable[[], None]:
    """Return one step of a detector of torchvision's, every layer trained.

    It sees the same padded images and boxes, and runs in the same precision and memory format as
    ours, with SGD.

    Args:
        engine: Ours; gives device, precision and backbone.
        batch: What every step sees.
        peer: A key of PEERS.
    """
    device = engine.fabric.device
    height, width = batch.images.shape[-2:]
    network = build_peer(peer, engine, (height, width)).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    images = [image.float() / 255 for image in batch.images.to(device)]
    targets = [
        {name: value.to(device) for name, value in target.items()}
        for target in peer_targets(batch, peer)
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
    engine: Engine,
    *,
    warmup: int,
    rounds: int,
    peers: Sequence[str] = ("fcos", "mask-rcnn"),
    beside: Mapping[str, Engine] | None = None,
) -> tuple[list[StepTimes], Batch]:
    """Time our step and the others, taking turns.

    Args:
        engine: A run that was built, not started.
        warmup: Rounds that are not counted.
        rounds: Rounds that are counted.
        peers: Keys of PEERS.
        beside: Other runs by name, over the same data.

    Returns:
        Ours, the peers' and the others' times, and the batch that all saw.
    """
    batch = largest_batch(engine)
    steps = {OURS: _own_step(engine, batch)}
    steps |= {PEERS[peer]: peer_step(engine, batch, peer) for peer in peers}
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
    ours, *rest = times
    known = set(PEERS.values())
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
        "ratio_to_peer": {
            entry.name: ours.median / entry.median for entry in rest if entry.name in known
        },
        "ratio_to_boxseg": {
            entry.name: entry.median / ours.median for entry in rest if entry.name not in known
        },
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
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(list(PEERS)),
    help="Time this detector of torchvision's; may be given several times  [default: fcos and "
    "mask-rcnn, on the recipe's backbone].",
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
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Time the step with its student compiled by torch.compile too.",
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
    peers: tuple[str, ...],
    weights: Path | None,
    overrides: tuple[str, ...],
    device: str,
    precision: str | None,
    compiled: bool,
    warmup: int,
    iters: int,
    json_file: Path | None,
) -> None:
    """Time one training step beside torchvision's FCOS and Mask R-CNN, taking turns.

    Teacher, forward, losses, backward and optimizer of one batch in memory, in the middle of the
    schedule; loading is not inside.
    """
    if compiled and not warmup:
        raise click.UsageError("--compile: the first round compiles; give --warmup 1 or more")
    settings = RunSettings(data=data, out=Path("bench-step"), device=device, weights=weights)
    engine = Engine(_recipe(config, overrides, precision), settings)
    others = {name: Engine(_recipe(name, overrides, precision), settings) for name in beside}
    if compiled:
        others[COMPILED] = Engine(engine.recipe, replace(settings, compiled=True))
    times, batch = compare_steps(
        engine, warmup=warmup, rounds=iters, peers=peers or ("fcos", "mask-rcnn"), beside=others
    )
    found = report(times, batch, engine)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    height, width = found["padded_size"]
    click.echo(
        f"{counted(found['images'], 'image')} padded to {height} x {width}, {found['precision']}, "
        f"{found['device']}, {counted(found['threads'], 'thread')}, {counted(iters, 'round')}"
    )
    for entry in times:
        click.echo(f"{entry.name:<30} {entry.median:8.3f} s median, {min(entry.seconds):.3f} best")
    for name, ratio in found["ratio_to_peer"].items():
        click.echo(f"{config + ' / ' + name:<30} {ratio:8.2f}")
    for name, ratio in found["ratio_to_boxseg"].items():
        click.echo(f"{name + ' / ' + config:<30} {ratio:8.2f}")
