"""Two steps of one recipe of every method, on rendered scenes and a tiny network."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from boxseg.configs import find_recipe
from boxseg.student import Student
from boxseg.train.criterion import StepContext
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


BOX_PARTS = {
    "focal": {"classes", "backbone"},
    "varifocal": {"classes", "backbone"},
    "giou": {"boxes", "backbone"},
    "centerness": {"quality", "backbone"},
}
"""What the terms of the detector teach; all others teach masks."""

ANY_SIZE = "min_quality: 0, min_confidence: 0, min_area: 0, min_pasted_area: 0"

WHOLE = {
    "boxteacher_resnet50": ("pseudo_masks.box_teacher.match_iou=0.05",),
    "sim_resnet50": ("copy_paste.semantic={length: 1, probability: 1}",),
    "pseudo_depth_resnet101_3x": (),
    "boxseg_resnet50": (f"copy_paste.peer={{skip: 0, {ANY_SIZE}}}",),
    "boxseg_depth_mobilenetv2": (
        "schedule.max_iters=30000",
        "terms.depth={}",
        "terms.depth_consistency={start_steps: 200, warmup_steps: 200}",
        f"copy_paste.peer={{skip: 0, {ANY_SIZE}}}",
        "view={}",
    ),
}


def confident(student: Student) -> None:
    """Let an untrained network find a box of 4 strides, filled, of every class everywhere."""
    head = student.head
    with torch.no_grad():
        for part in (head.class_logits, head.box_distances, head.quality_logits):
            assert part.bias is not None
            part.bias.fill_(2.0)
        assert head.controller.bias is not None
        head.controller.bias[-1] = 2.0  # the bias of the last mask layer


@pytest.mark.parametrize("name", list(WHOLE))
def test_every_part_of_a_method_acts_and_its_gradients_reach_what_they_should(
    name: str, scenes: Path, tmp_path: Path
) -> None:
    start = ("teacher.start=0", "model.frozen_stages=0", "schedule.max_iters=30000")
    recipe = read_recipe(find_recipe(name), [*TINY, *start, *WHOLE[name]])
    engine = Engine(recipe, RunSettings(data=scenes, out=tmp_path / "run", device="cpu"))
    engine.step = 29000  # every warm-up has begun
    confident(engine.student)
    batch = collate([engine.images[index] for index in range(2)])
    engine.supervision.prepare(batch, engine.student, engine.step)  # fills the bank
    lesson = engine.supervision.prepare(batch, engine.student, engine.step)
    contexts: list[StepContext] = []
    engine.criterion.register_forward_pre_hook(lambda _, given: contexts.append(given[0]))
    losses, _ = engine.module(StepInput(lesson, engine.step))
    assert lesson.pseudo is not None
    assert lesson.diagnostics["pseudo_share"] > 0
    assert all(value > 0 for value in losses.values()), losses
    # affinity and targets belong to the clean image, as it is after pasting
    (context,) = contexts
    assert context.batch is lesson.batch
    assert torch.equal(lesson.batch.images, batch.images) == (recipe.copy_paste is None)
    assert torch.equal(lesson.batch.images, lesson.images) == (recipe.view is None)
    if recipe.copy_paste is not None:
        assert lesson.pseudo.pasted is not None
        assert torch.cat(lesson.pseudo.pasted).any()

    head = engine.student.head
    depth_head = engine.criterion.depth_head
    parts = {
        "classes": head.class_logits.weight,
        "boxes": head.box_distances.weight,
        "quality": head.quality_logits.weight,
        "controller": head.controller.weight,
        "features": engine.student.mask_branch.project.weight,
        "backbone": next(iter(engine.student.backbone.parameters())),
    }
    masks = {"controller", "features", "backbone"}
    if depth_head is not None:
        parts["depth"] = depth_head.controller.weight
        masks = masks | {"depth"}
    for term, loss in losses.items():
        gradients = torch.autograd.grad(
            loss, list(parts.values()), retain_graph=True, allow_unused=True
        )
        reached = {
            part
            for part, gradient in zip(parts, gradients, strict=True)
            if gradient is not None and gradient.abs().max() > 0
        }
        assert reached == BOX_PARTS.get(term, masks), term
    teacher = engine.supervision.teacher
    assert teacher is not None
    before = [value.clone() for value in teacher.network.parameters()]
    engine.train_on(batch, 1e-3)
    learning = [value for value in engine.module.parameters() if value.requires_grad]
    assert all(value.grad is not None and value.grad.isfinite().all() for value in learning)
    assert all(value.grad is None for value in teacher.network.parameters())
    # it follows the student and learns nothing by itself
    assert teacher.updates == 2
    after = zip(teacher.network.parameters(), before, engine.student.parameters(), strict=True)
    keep = recipe.teacher.momentum_of(30000) if recipe.teacher is not None else 0
    for now, old, student in after:
        share = 0.5  # the mean of the copy and the student after this step, which the ramp takes
        assert keep > share
        torch.testing.assert_close(now, share * old + (1 - share) * student.detach())


class Waits(TorchDispatchMode):
    """Counts what makes the host of a GPU wait for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.count = 0
        for name in ("tolist", "cpu", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: torch.Tensor, *args: Any, **keys: Any) -> Any:
            self.count += 1
            return method(tensor, *args, **keys)

        return counted

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            part is not None and part.dtype == torch.bool for part in args[1]
        )
        self.count += by_mask or name in ("nonzero", "_local_scalar_dense", "_unique2")
        return func(*args, **(kwargs or {}))


def test_the_host_does_not_wait_for_each_object(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "boxseg_depth_mobilenetv2"
    start = ("teacher.start=0", "model.frozen_stages=0", "schedule.max_iters=30000")
    recipe = read_recipe(find_recipe(name), [*TINY, *start, *WHOLE[name]])
    engine = Engine(recipe, RunSettings(data=scenes, out=tmp_path / "run", device="cpu"))
    engine.step = 29000
    confident(engine.student)
    batch = collate([engine.images[index] for index in range(2)])
    waits = Waits(monkeypatch)
    counts = []
    for objects in (1, 1, 20):  # the first fills the bank
        boxes = [rows[:1] + torch.arange(objects)[:, None] / 100 for rows in batch.boxes]
        labels = [rows[:1].expand(objects) for rows in batch.labels]
        with waits:
            before = waits.count
            given = replace(batch, boxes=boxes, labels=labels)
            lesson = engine.supervision.prepare(given, engine.student, engine.step)
            engine.module(StepInput(lesson, engine.step))
            counts.append(waits.count - before)
    # One pass for every 6 objects, with 2 waits each: 38 objects more are 6 passes more. What is
    # pasted may cost another wait.
    assert counts[1] > 10
    assert counts[2] - counts[1] < 38 / 2
