"""`boxseg bench-loader`: how fast images are loaded, where the time goes, how much is padding.

The parts of loading are timed in one process on one core, as a loader process would go through
them; then the loader itself runs with its processes, and nothing but the taking of batches waits
for it. How many processes a GPU needs is computed from that, not measured: the GPU is not there.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from boxseg.configs import find_recipe
from boxseg.errors import DataError, counted
from boxseg.runtime.benchmark import usable_cores
from boxseg.train.coco import CocoBoxes
from boxseg.train.data_order import SampleKey, Unreadable
from boxseg.train.loader import (
    batches_of,
    build_geometry,
    build_loader,
    build_sampler,
    open_images,
)
from boxseg.train.recipe import Recipe, read_recipe
from boxseg.train.step_profile import StepClock
from boxseg.train.transforms import DIVISOR, Batch, collate, scaled_size

DECODE = "decode"
GEOMETRY = "geometry"
COLLATE = "collate"
HAND_OVER = "hand over"
"""Into memory that the training process maps."""
TRANSFER = "transfer"
"""From the training process to the device."""
IN_WORKERS = (DECODE, GEOMETRY, COLLATE, HAND_OVER)
"""Parts that a loader process goes through; the training process has the transfer alone."""

STEP_RATES = (25.0, 40.0, 80.0)
"""Images per second of a GPU for which the number of loader processes is computed."""


@dataclass(frozen=True)
class Padding:
    """Pixels of some batches."""

    content: int
    """Of the images."""
    padded: int
    """Of the batches, padding included."""
    batches: int

    @property
    def share(self) -> float:
        """Part of the batches' pixels that is padding."""
        return 1 - self.content / self.padded

    @property
    def pixels_per_batch(self) -> float:
        """Pixels of a batch, padding included."""
        return self.padded / self.batches


def count_padding(
    images: CocoBoxes, recipe: Recipe, batches: Iterable[Sequence[SampleKey]]
) -> Padding:
    """Count the pixels of batches without loading anything.

    Args:
        images: The data set.
        recipe: Says the sizes.
        batches: Images of each batch.
    """
    geometry = build_geometry(recipe.data, recipe.seed)
    content = padded = count = 0
    for keys in batches:
        sides = []
        for key in keys:
            height, width = (int(side) for side in images.sizes[key.index])
            short, _ = geometry.draw(key.epoch, key.index, key.step)
            sides.append(scaled_size(height, width, short, recipe.data.long_side))
        sizes = np.array(sides, dtype=np.int64)  # (B, 2)
        content += int(sizes.prod(axis=1).sum())
        padded += len(keys) * int((-(-sizes.max(axis=0) // DIVISOR) * DIVISOR).prod())
        count += 1
    return Padding(content, padded, count)


class PartTimer:
    """Loads batches as a loader process does and the training process takes them, with a clock."""

    def __init__(self, images: CocoBoxes, recipe: Recipe, device: torch.device) -> None:
        """Prepare.

        Args:
            images: The data set.
            recipe: Says the sizes.
            device: Where batches end.
        """
        self._images = images
        self._geometry = build_geometry(recipe.data, recipe.seed)
        self._mirrored = self._geometry.mirrored_labels(images.classes)
        self._device = device
        self._clock = StepClock(device)
        self.images = 0

    def restart(self) -> None:
        """Forget what was timed."""
        self._clock.restart()
        self.images = 0

    def __call__(self, keys: Sequence[SampleKey]) -> Batch:
        """Load one batch and return it as the device has it."""
        clock = self._clock
        clock("")  # what passed since the last batch is nobody's
        frames = [self._images.load(key.index) for key in keys]
        clock(DECODE)
        samples = [
            self._geometry(frame, self._mirrored, epoch=key.epoch, index=key.index, step=key.step)
            for frame, key in zip(frames, keys, strict=True)
        ]
        clock(GEOMETRY)
        batch = collate(samples)
        clock(COLLATE)
        batch = batch.share_memory()
        clock(HAND_OVER)
        if self._device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(self._device, non_blocking=True)
        clock(TRANSFER)
        self.images += len(keys)
        return batch

    def seconds_per_image(self) -> dict[str, float]:
        """Return the mean seconds of each part."""
        parts = (*IN_WORKERS, TRANSFER)
        return {part: self._clock.seconds[part] / self.images for part in parts}


@dataclass(frozen=True)
class LoaderTimes:
    """What was measured with one number of groups."""

    aspect_groups: int
    padding: Padding
    """Of one epoch."""
    part_seconds: Mapping[str, float]
    """Part -> seconds of an image on one core."""
    images_per_second: float
    """Of the loader with all its processes."""

    @property
    def worker_rate(self) -> float:
        """Images per second of one loader process on a core of its own, from the parts."""
        return 1 / sum(self.part_seconds[part] for part in IN_WORKERS)

    def workers_for(self, images_per_second: float) -> int:
        """Return how many loader processes are as fast as a step; computed, not measured."""
        return math.ceil(images_per_second / self.worker_rate)


def loader_rate(
    images: CocoBoxes, recipe: Recipe, *, workers: int, batches: int, first_step: int
) -> float:
    """Return the images per second of the loader that a run would have.

    The first batch of each process does not count.

    Args:
        images: The data set.
        recipe: Says batch size and sizes.
        workers: Loader processes.
        batches: Batches that count.
        first_step: Step of the first batch.

    Raises:
        DataError: if an image cannot be read.
    """
    skipped = max(1, workers)
    sampler = build_sampler(
        images, recipe, first_step=first_step, last_step=first_step + skipped + batches
    )
    loader = build_loader(images, sampler, workers=workers, pin_memory=False)
    count, begin = 0, 0.0
    with batches_of(loader) as arriving:
        for number, batch in enumerate(arriving):
            if isinstance(batch, Unreadable):
                raise DataError(batch.message)
            if number < skipped:
                begin = time.perf_counter()
            else:
                count += len(batch.images)
    return count / (time.perf_counter() - begin)


def _grouped(recipe: Recipe, groups: int) -> Recipe:
    return recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"aspect_groups": groups})}
    )


def measure_loading(
    recipe: Recipe,
    folder: Path,
    *,
    groups: Sequence[int],
    workers: int,
    batches: int,
    device: torch.device,
) -> tuple[list[LoaderTimes], CocoBoxes]:
    """Measure loading with several numbers of groups, which take turns.

    Args:
        recipe: Says batch size and sizes.
        folder: Holds train.json.
        groups: Values of data.aspect_groups.
        workers: Loader processes.
        batches: Batches that count, of each value.
        device: Where batches end.

    Returns:
        One entry for each value, and the data set.
    """
    images = open_images(recipe, folder)
    recipes = [_grouped(recipe, value) for value in groups]
    streams = [
        list(build_sampler(images, entry, first_step=0, last_step=1 + batches)) for entry in recipes
    ]
    timers = [PartTimer(images, entry, device) for entry in recipes]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader process
    for number in range(1 + batches):
        for timer, stream in zip(timers, streams, strict=True):
            if number == 1:
                timer.restart()
            timer(stream[number])
    torch.set_num_threads(threads)
    rates = [
        loader_rate(images, entry, workers=workers, batches=batches, first_step=0)
        for entry in recipes
    ]
    epoch = math.ceil(len(images) / recipe.data.batch_size)
    found = [
        LoaderTimes(
            value,
            count_padding(
                images, entry, build_sampler(images, entry, first_step=0, last_step=epoch)
            ),
            timer.seconds_per_image(),
            rate,
        )
        for value, entry, timer, rate in zip(groups, recipes, timers, rates, strict=True)
    ]
    return found, images


def report(
    found: Sequence[LoaderTimes],
    images: CocoBoxes,
    recipe: Recipe,
    *,
    workers: int,
    batches: int,
    step_rates: Sequence[float],
    device: torch.device,
) -> dict[str, Any]:
    """Return what was measured and what follows from it, JSON types."""
    data = recipe.data
    return {
        "images": len(images),
        "median_size": np.median(images.sizes, axis=0).tolist(),
        "short_sides": list(data.short_sides),
        "long_side": data.long_side,
        "size_per": data.size_per,
        "batch_size": data.batch_size,
        "batches": batches,
        "workers": workers,
        "cores": usable_cores(),
        "device": str(device),
        "torch": torch.__version__,
        "measured": [
            {
                "aspect_groups": entry.aspect_groups,
                "pixels_per_batch": entry.padding.pixels_per_batch,
                "padding_share": entry.padding.share,
                "part_ms_per_image": {
                    part: 1000 * value for part, value in entry.part_seconds.items()
                },
                "worker_images_per_second": entry.worker_rate,
                "loader_images_per_second": entry.images_per_second,
            }
            for entry in found
        ],
        "computed_workers": {
            f"{rate:g} images/s": {
                str(entry.aspect_groups): entry.workers_for(rate) for entry in found
            }
            for rate in step_rates
        },
    }


def _lines(found: Mapping[str, Any]) -> list[str]:
    """Return a table for people."""
    measured = found["measured"]
    rows: list[tuple[str, list[str]]] = [
        ("data.aspect_groups", [str(entry["aspect_groups"]) for entry in measured]),
        (
            "million pixels of a batch",
            [f"{entry['pixels_per_batch'] / 1e6:.2f}" for entry in measured],
        ),
        ("of them padding", [f"{entry['padding_share']:.1%}" for entry in measured]),
    ]
    rows += [
        (f"{part}, ms per image", [f"{entry['part_ms_per_image'][part]:.2f}" for entry in measured])
        for part in measured[0]["part_ms_per_image"]
    ]
    rows += [
        (
            "one loader process, images/s",
            [f"{entry['worker_images_per_second']:.1f}" for entry in measured],
        ),
        (
            f"{found['workers']} of them at work, images/s",
            [f"{entry['loader_images_per_second']:.1f}" for entry in measured],
        ),
    ]
    rows += [
        (f"needed at {rate} (computed)", [str(count) for count in needed.values()])
        for rate, needed in found["computed_workers"].items()
    ]
    height, width = found["median_size"]
    shorts = found["short_sides"]
    return [
        f"{counted(found['images'], 'image')}, median {height:.0f} x {width:.0f}, scaled to a "
        f"short side of {min(shorts)} to {max(shorts)}; {counted(found['batches'], 'batch')} of "
        f"{found['batch_size']}; {counted(found['cores'], 'core')}, to {found['device']}",
        *(f"{name:<34}" + "".join(f"{value:>10}" for value in values) for name, values in rows),
    ]


@click.command("bench-loader")
@click.option("--config", required=True, metavar="NAME|FILE", help="Recipe.")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder with train.json.",
)
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting.")
@click.option(
    "--workers", type=click.IntRange(0), help="Loader processes  [default: the recipe's]."
)
@click.option(
    "--groups",
    multiple=True,
    type=click.IntRange(1, 64),
    help="Value of data.aspect_groups; may be given several times  [default: 1 and 8].",
)
@click.option(
    "--step-rate",
    "step_rates",
    multiple=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Images/s of a GPU's step: how many loader processes it needs  [default: 25, 40, 80].",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N.")
@click.option("--batches", type=click.IntRange(1), default=20, show_default=True)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the report.",
)
def bench_loader(
    config: str,
    data: Path,
    overrides: tuple[str, ...],
    workers: int | None,
    groups: tuple[int, ...],
    step_rates: tuple[float, ...],
    device: str,
    batches: int,
    json_file: Path | None,
) -> None:
    """Time loading part by part, with and without batches of like shape.

    Decoding, geometry, collating and handing over are what a loader process does, timed on one
    core with files that the system has in memory; then the recipe's loader runs with its processes.
    """
    from boxseg.train.engine import open_fabric

    recipe = read_recipe(find_recipe(config), overrides)
    place = open_fabric(device, 1, "32-true").device
    count = min(recipe.data.workers if workers is None else workers, usable_cores())
    found, images = measure_loading(
        recipe, data, groups=groups or (1, 8), workers=count, batches=batches, device=place
    )
    told = report(
        found,
        images,
        recipe,
        workers=count,
        batches=batches,
        step_rates=step_rates or STEP_RATES,
        device=place,
    )
    if json_file is not None:
        json_file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    for line in _lines(told):
        click.echo(line)
