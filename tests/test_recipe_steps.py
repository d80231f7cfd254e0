"""Two steps of one recipe of every method, on rendered scenes and a tiny network."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from boxseg.configs import find_recipe
from boxseg.train.engine import Engine, RunSettings, StepInput
from boxseg.train.recipe import read_recipe
from boxseg.train.reports import Reports
from boxseg.train.scenes import write_scenes
from boxseg.train.trainer_state import load_trainer_state
from boxseg.train.transforms import collate

TINY = (
    "model.backbone=resnet18",
    "model.weights=null",
    "model.fpn_channels=16",
    "model.tower_channels=16",
    "model.tower_depth=1",
    "model.mask_branch_channels=8",
    "model.mask_branch_depth=1",
    "model.imgsz=[64, 96]",
    "data.short_sides=[56, 64]",
    "data.long_side=96",
    "data.batch_size=2",
    "data.workers=0",
    "schedule.max_iters=2",
)
TAUGHT = ("teacher.start=0", "teacher.imgsz=[72, 96]")

METHODS = {
    "condinst_resnet50": (),
    "boxinst_resnet50": (),
    "boxteacher_resnet50": TAUGHT,
    "sim_resnet50": TAUGHT,
    "pseudo_depth_resnet101_3x": TAUGHT,
    "boxseg_resnet50": TAUGHT,
    "boxseg_depth_resnet50": TAUGHT,
    "boxseg_depth_mobilenetv2": ("teacher.start=0",),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps") / "scenes"
    list(write_scenes(folder, images=4, val_images=1, seed=0, size=(96, 128)))
    (folder / "val.json").unlink()  # nothing to score
    return folder


@pytest.mark.parametrize("name", list(METHODS))
def test_two_steps_of_every_method(name: str, scenes: Path, tmp_path: Path) -> None:
    recipe = read_recipe(find_recipe(name), [*TINY, *METHODS[name]])
    out = tmp_path / "run"
    engine = Engine(recipe, RunSettings(data=scenes, out=out, device="cpu"))
    engine.start_folder()
    console = Console(file=io.StringIO(), width=200)
    engine.fit(Reports(out, first_step=0, last_step=2, console=console))
    rows = list(csv.DictReader((out / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    trained = [row for row in rows if row["phase"] == "train"]
    assert trained
    for row in trained:
        assert all(math.isfinite(float(row[f"loss_{term}"])) for term in recipe.terms)
    # what was written down is the whole recipe, and a run that is complete comes back as it was
    assert read_recipe(out / "config.yaml") == recipe
    state = load_trainer_state(out / "trainer.pt")
    assert state.step == 2
    assert bool(state.supervision) == (recipe.teacher is not None)
    Engine(recipe, RunSettings(data=scenes, out=out, device="cpu", resume=True))


def test_gradients_of_the_whole_recipe_reach_what_they_should(scenes: Path, tmp_path: Path) -> None:
    settings = (
        *TINY,
        "teacher.start=0",
        "schedule.max_iters=500",
        "pseudo_masks.quality_aware.score_threshold=0",
        "terms.depth={}",
        "terms.depth_consistency={start_steps: 200, warmup_steps: 200}",
        "view={}",
    )
    recipe = read_recipe(find_recipe("boxseg_depth_mobilenetv2"), settings)
    engine = Engine(recipe, RunSettings(data=scenes, out=tmp_path / "run", device="cpu"))
    engine.step = 400  # every warm-up has begun
    batch = collate([engine.images[index] for index in range(2)])
    lesson = engine.supervision.prepare(batch, engine.student, engine.step)
    losses, _ = engine.module(StepInput(lesson, engine.step))
    depth_head = engine.criterion.depth_head
    assert depth_head is not None
    parts = {
        "classes": engine.student.head.class_logits.weight,
        "boxes": engine.student.head.box_distances.weight,
        "controller": engine.student.head.controller.weight,
        "features": engine.student.mask_branch.project.weight,
        "depth": depth_head.controller.weight,
        "backbone": next(iter(engine.student.backbone.parameters())),
    }
    reached = {
        name: {
            part
            for part, gradient in zip(
                parts,
                torch.autograd.grad(
                    loss, list(parts.values()), retain_graph=True, allow_unused=True
                ),
                strict=True,
            )
            if gradient is not None and gradient.abs().max() > 0
        }
        for name, loss in losses.items()
    }
    masks = {"controller", "features", "depth", "backbone"}
    assert reached == {
        "varifocal": {"classes", "backbone"},
        "giou": {"boxes", "backbone"},
        "centerness": {"backbone"},
        "projection": masks,
        "pairwise": masks,
        "depth": masks,
        "depth_consistency": masks,
        "pseudo_mask": masks,
        "pseudo_affinity": masks,
    }
    engine.train_on(batch, 1e-3)
    learning = [*engine.student.parameters(), *depth_head.parameters()]
    assert all(value.grad is not None and value.grad.isfinite().all() for value in learning)
    teacher = engine.supervision.teacher
    assert teacher is not None
    assert all(value.grad is None for value in teacher.network.parameters())
