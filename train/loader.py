"""From a recipe and a data folder to batches: the data set, and the processes that load it.

Decoding, geometry and collating happen in loader processes, whose results lie in shared memory; a
thread pins them where a GPU is to copy from them. Photometric changes are no part of it: the device
makes them, see `boxseg.train.supervision`. The processes live as long as the run and are a few
batches ahead of it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from boxseg.errors import DataError
from boxseg.runtime.benchmark import usable_cores
from boxseg.train.coco import CocoBoxes
from boxseg.train.criterion import DEPTH_TERMS
from boxseg.train.data_order import (
    KeyedSamples,
    StepSampler,
    Unreadable,
    aspect_groups,
    collate_readable,
    leave_interrupts_to_the_run,
)
from boxseg.train.pseudo_masks import DEPTH_OPTIONS, build_pseudo_masks
from boxseg.train.recipe import DataRecipe, Recipe
from boxseg.train.transforms import Geometry, Sample

TRAIN_JSON = "train.json"
BATCHES_AHEAD = 4
"""Batches that each loader process may have waiting."""


def settings_without_depth(recipe: Recipe) -> list[str]:
    """Return the settings with which a recipe does without depth maps, none if it needs none."""
    settings = [f"terms.{name}=null" for name in recipe.terms if name in DEPTH_TERMS]
    if recipe.terms.get("pairwise", {}).get("depth_threshold", 0):
        settings.append("terms.pairwise.depth_threshold=0")
    made = recipe.pseudo_masks
    if made is not None and build_pseudo_masks(made).needs_depth:
        (name,) = made
        settings.append(f"pseudo_masks.{name}.{DEPTH_OPTIONS[name]}=0")
    return settings


def build_geometry(data: DataRecipe, seed: int) -> Geometry:
    """Return the scaling and mirroring that a recipe asks for."""
    return Geometry(
        short_sides=data.short_sides,
        long_side=data.long_side,
        flip=data.flip,
        size_per=data.size_per,
        box_jitter=data.box_jitter,
        seed=seed,
    )


def open_images(recipe: Recipe, folder: Path, *, strict: bool = False) -> CocoBoxes:
    """Open the training images of a data folder as a recipe wants them.

    Args:
        recipe: Says sizes, classes, and whether masks and depth are loaded.
        folder: Holds train.json.
        strict: Make defects of the data errors.

    Raises:
        DataError: if the data cannot be used or has no box.
        ValueError: if the recipe does not fit the data.
    """
    without_depth = settings_without_depth(recipe)
    images = CocoBoxes(
        folder / TRAIN_JSON,
        folder,
        transform=build_geometry(recipe.data, recipe.seed),
        classes=recipe.data.classes,
        with_masks=recipe.uses_masks,
        with_depth=bool(without_depth),
        without_depth=without_depth,
        strict=strict,
    )
    if not images.num_boxes:
        dropped = ", ".join(f"{reason} ({count})" for reason, count in images.dropped.items())
        raise DataError(
            f"{folder / TRAIN_JSON}: no box is left to learn from"
            + (f"; dropped: {dropped}" if dropped else "")
        )
    return images


def build_sampler(
    images: CocoBoxes,
    recipe: Recipe,
    *,
    first_step: int,
    last_step: int,
    rank: int = 0,
    processes: int = 1,
) -> StepSampler:
    """Return the batches of a recipe from one step to before another; see StepSampler."""
    return StepSampler(
        len(images),
        recipe.data.batch_size,
        seed=recipe.seed,
        first_step=first_step,
        last_step=last_step,
        rank=rank,
        processes=processes,
        groups=aspect_groups(images.sizes, recipe.data.aspect_groups),
    )


def build_loader(
    images: CocoBoxes, sampler: StepSampler, *, workers: int, pin_memory: bool
) -> DataLoader[Sample | Unreadable]:
    """Return the loader of one process of a run.

    Args:
        images: What `open_images` returned.
        sampler: Says which images a step sees.
        workers: Loader processes, of which no more are started than there are cores; 0 loads in
            the process that asks. Never changes the batches.
        pin_memory: Put batches into page-locked memory, for a GPU.
    """
    workers = min(workers, usable_cores())
    return DataLoader(
        KeyedSamples(images),
        batch_sampler=cast(Any, sampler),
        num_workers=workers,
        collate_fn=collate_readable,
        worker_init_fn=leave_interrupts_to_the_run,
        pin_memory=pin_memory,
        prefetch_factor=BATCHES_AHEAD if workers else None,
        # a generator of its own: the workers' seeds must not be drawn from the run's
        generator=torch.Generator(),
    )


@contextlib.contextmanager
def batches_of(loader: DataLoader[Sample | Unreadable]) -> Iterator[Iterator[Any]]:
    """Iterate over a loader, and end its processes whatever happens.

    Left to the garbage collector they may outlive the run: a kept traceback holds the iterator, and
    Python then waits at exit, for ever, for children that do not hear SIGTERM.
    """
    batches = iter(loader)
    try:
        yield batches
    finally:
        if loader.num_workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]  # noqa: SLF001  no public name
            for process in multiprocessing.active_children():
                process.kill()
