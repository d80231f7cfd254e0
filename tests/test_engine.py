"""The loop: order of data, transfer, freezing, saving, resuming bit for bit, failing well."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from rich.console import Console

from boxseg.checkpoint import load_model, read_model_payload, save_model
from boxseg.config import ModelConfig
from boxseg.errors import BackendMissingError, DataError, FileMismatchError
from boxseg.student import DensePredictions, Student
from boxseg.train import engine as engine_module
from boxseg.train.criterion import StepContext
from boxseg.train.data_order import Unreadable
from boxseg.train.engine import (
    CompilerError,
    Engine,
    LoaderError,
    NonFiniteLossError,
    RunInterruptedError,
    RunSettings,
    StepInput,
    TrainingStep,
    build_optimizer,
    lagging_average,
    open_fabric,
    open_in_turn,
    refuse_single_cells,
)
from boxseg.train.recipe import Recipe, ScheduleRecipe, parse_recipe
from boxseg.train.reports import Reports, StepReport
from boxseg.train.step_benchmark import largest_batch
from boxseg.train.trainer_state import load_trainer_state
from boxseg.train.transfer import transfer_weights

RECIPE: dict[str, Any] = {
    "model": {
        "backbone": "mobilenet_v2",
        "fpn_channels": 16,
        "tower_channels": 16,
        "tower_depth": 1,
        "mask_channels": 4,
        "mask_branch_channels": 8,
        "mask_branch_depth": 1,
        "imgsz": [64, 96],
    },
    "data": {
        "short_sides": [56, 64],
        "long_side": 96,
        "batch_size": 2,
        "workers": 0,
    },
    "schedule": {"max_iters": 6, "lr": 0.01, "warmup_steps": 2},
    "terms": {
        "varifocal": {},
        "giou": {},
        "centerness": {},
        "projection": {},
        "pairwise": {"warmup_steps": 4, "bottom_pixels": 0},
    },
}


def write_data(folder: Path, *, images: int = 5, masks: bool = False) -> Path:
    """Write a folder of pictures with two rectangles each, boxes exact."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        content: dict[str, list[dict[str, Any]]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 3, "name": "red"}, {"id": 8, "name": "blue"}],
        }
        for index in range(images):
            picture = Image.fromarray(generator.integers(90, 130, (64, 96, 3), dtype=np.uint8))
            pen = ImageDraw.Draw(picture)
            name = f"{split}{index}.png"
            for number, (category, colour) in enumerate(((3, (220, 30, 30)), (8, (20, 40, 230)))):
                x = int(generator.integers(2, 20)) + 46 * number
                y = int(generator.integers(2, 24))
                w, h = 24, 36
                pen.rectangle((x, y, x + w - 1, y + h - 1), fill=colour)
                entry: dict[str, Any] = {
                    "id": 2 * index + number + 1,
                    "image_id": index + 1,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
                if masks:
                    entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                content["annotations"].append(entry)
            picture.save(folder / name)
            content["images"].append(
                {"id": index + 1, "file_name": name, "height": 64, "width": 96}
            )
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def write_depth(data: Path) -> Path:
    """Give every training picture of a folder a depth map."""
    content = json.loads((data / "train.json").read_text())
    for index, entry in enumerate(content["images"]):
        depth = np.random.default_rng(index).integers(0, 65536, (32, 48), dtype=np.uint16)
        entry["depth_file_name"] = f"depth{index}.png"
        Image.fromarray(depth).save(data / entry["depth_file_name"])
    (data / "train.json").write_text(json.dumps(content))
    return data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("engine") / "rectangles")


def recipe_with(*overrides: str) -> Recipe:
    return parse_recipe(RECIPE, overrides)


def settings_for(data: Path, out: Path, **changes: Any) -> RunSettings:
    return replace(RunSettings(data=data, out=out, device="cpu"), **changes)


def test_the_recipe_names_the_optimizer() -> None:
    layer = torch.nn.Linear(2, 1)
    layer.bias.requires_grad_(False)
    sgd = build_optimizer(layer, ScheduleRecipe(lr=0.5, momentum=0.8, weight_decay=0.1))
    adamw = build_optimizer(layer, ScheduleRecipe(optimizer="adamw", lr=0.5, momentum=0.8))
    assert type(sgd) is torch.optim.SGD
    assert type(adamw) is torch.optim.AdamW
    assert (sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.8, 0.1)
    assert adamw.defaults["betas"] == (0.8, 0.999)
    for optimizer in (sgd, adamw):
        assert [group["params"] for group in optimizer.param_groups] == [[layer.weight]]


def quiet_reports(engine: Engine, text: io.StringIO | None = None) -> Reports:
    return Reports(
        engine.settings.out,
        first_step=engine.step,
        last_step=engine.recipe.schedule.max_iters,
        console=Console(file=text or io.StringIO(), width=300),
    )


def run(recipe: Recipe, settings: RunSettings, *, stop_after: int | None = None) -> Engine:
    """Run a recipe, with Ctrl-C in the given step if asked."""
    engine = Engine(recipe, settings)
    engine.start_folder()
    reports = quiet_reports(engine)
    if stop_after is not None:
        told = reports.step

        def step(report: StepReport) -> None:
            told(report)
            if report.step == stop_after:
                os.kill(os.getpid(), signal.SIGINT)

        reports.step = step  # type: ignore[method-assign]  # presses Ctrl-C
    engine.fit(reports)
    return engine


def test_a_kept_traceback_does_not_keep_loader_processes(data: Path, tmp_path: Path) -> None:
    # a process that ends with a loader process that does not hear SIGTERM waits for it for ever
    kept: list[FrameType] = []
    engine = Engine(recipe_with("data.workers=1"), settings_for(data, tmp_path / "run"))
    engine.start_folder()
    reports = quiet_reports(engine)
    told = reports.step

    def step(report: StepReport) -> None:
        told(report)
        kept.append(sys._getframe())

    reports.step = step  # type: ignore[method-assign]  # keeps what a traceback keeps
    engine.fit(reports)
    assert kept
    for process in multiprocessing.active_children():
        process.join(timeout=20)
    assert multiprocessing.active_children() == []


# --- starting from another model ------------------------------------------------------------------


def tiny_student(*classes: str, **changes: Any) -> Student:
    network = dict(RECIPE["model"]) | {"imgsz": (64, 96)} | changes
    return Student(
        ModelConfig(classes=classes, category_ids=tuple(range(1, len(classes) + 1)), **network)
    )


def test_classes_are_matched_by_name() -> None:
    source, target = tiny_student("cat", "dog", "cow"), tiny_student("dog", "owl")
    before = target.head.class_logits.weight.detach().clone()
    transfer = transfer_weights(source, target)
    assert transfer.classes_matched == ("dog",)
    assert transfer.classes_new == ("owl",)
    assert transfer.classes_dropped == ("cat", "cow")
    assert transfer.mismatched == ()
    weight = target.head.class_logits.weight
    assert torch.equal(weight[0], source.head.class_logits.weight[1])
    assert torch.equal(weight[1], before[1])
    assert torch.equal(target.head.controller.weight, source.head.controller.weight)
    assert "classes newly initialised: owl" in transfer.lines()


def test_tensors_of_another_shape_are_listed_and_kept() -> None:
    source, target = tiny_student("cat", mask_channels=8), tiny_student("cat")
    before = target.head.controller.weight.detach().clone()
    transfer = transfer_weights(source, target)
    names = [line.split(":")[0] for line in transfer.mismatched]
    assert "head.controller.weight" in names
    assert "mask_branch.project.weight" in names
    assert torch.equal(target.head.controller.weight, before)
    assert any("head.controller.weight: [" in line for line in transfer.lines())


def test_a_run_starts_from_the_weights_it_is_given(data: Path, tmp_path: Path) -> None:
    source = tiny_student("blue", "green")
    save_model(tmp_path / "start.pt", source)
    engine = Engine(
        recipe_with(), settings_for(data, tmp_path / "run", weights=tmp_path / "start.pt")
    )
    assert engine.student.config.classes == ("red", "blue")
    assert torch.equal(
        engine.student.head.class_logits.weight[1], source.head.class_logits.weight[0]
    )
    text = "\n".join(engine.opening_lines())
    assert "classes taken over: blue" in text
    assert "classes newly initialised: red" in text


# --- building -------------------------------------------------------------------------------------


def test_frozen_stages_and_batch_norms_stay_as_they_start(data: Path, tmp_path: Path) -> None:
    engine = Engine(
        recipe_with(
            "model.frozen_stages=2",
            "model.frozen_bn=true",
            "schedule.max_iters=1",
            "schedule.warmup_steps=0",
        ),
        settings_for(data, tmp_path / "run"),
    )
    before = {name: value.clone() for name, value in engine.student.state_dict().items()}
    engine.start_folder()
    engine.fit(quiet_reports(engine))
    after = engine.student.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(
        name.startswith(("backbone.stages.0.", "backbone.stages.1.")) for name in changed
    )
    assert not any(name.startswith("backbone.") and "running" in name for name in changed)
    assert any(name.startswith("backbone.stages.4.") for name in changed)
    assert any(name.startswith("mask_branch.") and "running" in name for name in changed)


def test_wrong_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--device must be auto, cpu, cuda or cuda:N, got tpu"):
        open_fabric("tpu", 1, "32-true")
    with pytest.raises(ValueError, match=r"--devices must be at least 1, got 0"):
        open_fabric("cpu", 0, "32-true")
    with pytest.raises(ValueError, match=r"--precision 16-mixed needs a GPU"):
        open_fabric("cpu", 1, "16-mixed")
    if not torch.cuda.is_available():
        with pytest.raises(BackendMissingError, match=r"finds no CUDA GPU; use --device cpu"):
            open_fabric("cuda:0", 1, "32-true")


@pytest.mark.parametrize(
    ("processes", "rank", "expected"),
    [(1, 0, ["open"]), (2, 0, ["open", "wait"]), (2, 1, ["wait", "open"])],
)
def test_one_process_of_a_machine_opens_the_data_before_the_others(
    processes: int, rank: int, expected: list[str]
) -> None:
    events: list[str] = []
    fabric: Any = SimpleNamespace(
        world_size=processes, local_rank=rank, barrier=lambda: events.append("wait")
    )

    def opens() -> Any:
        events.append("open")
        return events

    def fails() -> Any:
        raise DataError("broken")

    assert open_in_turn(fabric, opens) is cast(Any, events)
    assert events == expected
    # whoever fails has not kept the others waiting
    events.clear()
    with pytest.raises(DataError, match="broken"):
        open_in_turn(fabric, fails)
    assert events == [event for event in expected if event == "wait"]


def test_backbone_weights_that_are_not_there_are_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(data, tmp_path / "run")
    monkeypatch.delenv("BOXSEG_DATA", raising=False)
    with pytest.raises(ValueError, match=r"model\.weights is \$BOXSEG_DATA.*is not set"):
        Engine(recipe_with("model.weights=$BOXSEG_DATA/weights/x.pth"), settings)
    with pytest.raises(FileNotFoundError, match=r"model\.weights: there is no file /no/x\.pth"):
        Engine(recipe_with("model.weights=/no/x.pth"), settings)
    with pytest.raises(ValueError, match=r"model\.weights must be a file or one of IMAGENET1K_V1"):
        Engine(recipe_with("model.weights=IMAGENET"), settings)


def test_unknown_terms_and_classes_are_refused(data: Path, tmp_path: Path) -> None:
    settings = settings_for(data, tmp_path / "run")
    with pytest.raises(ValueError, match=r"terms\.prejection is unknown; known terms: focal"):
        Engine(recipe_with("terms.prejection={}"), settings)
    with pytest.raises(DataError, match="unknown class 'green'"):
        Engine(recipe_with("data.classes=[green]"), settings)
    with pytest.raises(ValueError, match="unknown class 'left'"):
        Engine(recipe_with("data.flip={left: right}"), settings)


@pytest.mark.parametrize(
    ("norm", "limit", "sides", "long", "scaled"),
    [
        ("batch", 128, [128], 128, "85 x 128"),
        ("batch", 128, [160, 64], 160, "64 x 96"),  # the smallest counts
        ("group", 32, [32], 32, "21 x 32"),
    ],
)
def test_an_image_that_is_one_cell_to_a_batch_norm_is_refused_before_the_run(
    data: Path, tmp_path: Path, norm: str, limit: int, sides: list[int], long: int, scaled: str
) -> None:
    settings = settings_for(data, tmp_path / "run")
    network = (f"model.tower_norm={norm}", "data.batch_size=1", "schedule.max_iters=1")
    small = (*network, f"data.short_sides={sides}", f"data.long_side={long}")
    message = (
        rf"data.batch_size 1 leaves .* image 1 \(train0.png\), scaled to {scaled} pixels .* "
        rf"stride {limit}, .* -o data.batch_size=2 "
    )
    with pytest.raises(ValueError, match=message) as refusal:
        Engine(recipe_with(*small), settings)
    assert ("tower_norm=group" in str(refusal.value)) == (norm == "batch")
    # what is refused is what the network cannot do, and no more
    student = Student(recipe_with(*network).model.build(("any",), (1,))).train()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        student(torch.zeros(1, 3, limit, limit, dtype=torch.uint8))
    student(torch.zeros(1, 3, limit, limit + 32, dtype=torch.uint8))
    student(torch.zeros(2, 3, limit, limit, dtype=torch.uint8))
    Engine(recipe_with(*small, "data.batch_size=2"), settings)
    larger = (f"data.long_side={limit + 1}", f"data.short_sides=[{limit}]")
    Engine(recipe_with(*small, *larger), settings)
    assert not settings.out.exists()


def test_a_batch_that_processes_cannot_share_is_refused_before_the_run(
    data: Path, tmp_path: Path
) -> None:
    images = Engine(recipe_with(), settings_for(data, tmp_path / "run")).images
    refuse_single_cells(images, recipe_with("data.batch_size=4"), 2)
    with pytest.raises(ValueError, match=r"data\.batch_size must be a multiple of the 3 devices"):
        refuse_single_cells(images, recipe_with("data.batch_size=4"), 3)


# --- the run --------------------------------------------------------------------------------------


def test_a_compiled_run_resumes_bit_for_bit_and_its_files_are_those_of_a_plain_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    whole = torch.compile

    def traced(
        function: Callable[[torch.Tensor], DensePredictions], *, dynamic: bool
    ) -> Callable[[torch.Tensor], DensePredictions]:
        """Trace and guard as ever, in one graph, but run its operators and generate no code."""
        graph: Callable[[torch.Tensor], DensePredictions] = whole(
            function, dynamic=dynamic, backend="eager", fullgraph=True
        )

        def call(images: torch.Tensor) -> DensePredictions:
            calls.append(len(images))
            return graph(images)

        return call

    recipe = recipe_with(*TEACHER, "schedule.max_iters=5")
    plain = run(recipe, settings_for(data, tmp_path / "plain"))
    monkeypatch.setattr(torch, "compile", traced)
    compiled = settings_for(data, tmp_path / "parts", compiled=True)
    with pytest.raises(RunInterruptedError):
        run(recipe, compiled, stop_after=3)
    rest = run(recipe, replace(compiled, resume=True))
    assert calls == [2] * 5  # the student's steps, and neither the teacher's nor the validations
    assert any(line.endswith("32-true, compiled") for line in rest.opening_lines())
    expected = plain.student.state_dict()
    for name, value in rest.student.state_dict().items():
        assert torch.equal(value, expected[name]), name
    for file in ("last.pt", "trainer.pt"):
        found = load_model(tmp_path / "parts" / file).state_dict()
        assert found.keys() == expected.keys()


def test_a_compiler_that_fails_is_one_line_that_names_its_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.compile

    def fail(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        raise OSError("kernel.so: file too short")

    monkeypatch.setattr(
        torch, "compile", lambda function, dynamic: whole(function, dynamic=dynamic, backend=fail)
    )
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "code/of/torch")
    with pytest.raises(CompilerError) as error:
        run(recipe_with(), settings_for(data, tmp_path / "run", compiled=True))
    said = str(error.value)
    assert said.startswith("--compile: ")
    assert "kernel.so: file too short" in said
    assert "code/of/torch" in said
    assert "\n" not in said


@pytest.mark.slow
def test_a_compiled_step_has_the_losses_of_a_plain_one(data: Path, tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        settings = settings_for(data, tmp_path / "run", compiled=compiled)
        engine = Engine(recipe_with("data.short_sides=[64]"), settings)
        engine.module.train()
        losses.append(engine.train_on(largest_batch(engine), 0.01)[0])
    plain, generated = losses
    assert generated == pytest.approx(plain, rel=1e-3)


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(data: Path, tmp_path: Path) -> None:
    whole = run(recipe_with(), settings_for(data, tmp_path / "whole"))
    with pytest.raises(RunInterruptedError) as stop:
        run(recipe_with(), settings_for(data, tmp_path / "parts"), stop_after=3)
    assert stop.value.step == 3
    rest = run(recipe_with(), settings_for(data, tmp_path / "parts", resume=True))
    assert whole.step == rest.step == 6
    ours, theirs = rest.student.state_dict(), whole.student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    first, second = (
        load_trainer_state(tmp_path / name / "trainer.pt") for name in ("whole", "parts")
    )
    for index, state in first.optimizer["state"].items():
        assert torch.equal(
            state["momentum_buffer"], second.optimizer["state"][index]["momentum_buffer"]
        )
    assert torch.equal(first.random[0]["torch"], second.random[0]["torch"])
    assert first.best == second.best


TEACHER = (
    "teacher={start: 0.34, momentum: 0.5}",
    "pseudo_masks={quality_aware: {score_threshold: 0.0}}",
    "copy_paste={peer: {min_quality: 0, min_confidence: 0, skip: 0}}",
    "copy_paste.peer.min_area=0",
    "copy_paste.peer.min_pasted_area=0",
    "view={}",
    "model.final_score=sqrt_score0_mask",
    "terms.pseudo_mask={warmup_steps: 0}",
    "terms.pseudo_affinity={warmup_steps: 0}",
    "schedule.max_iters=9",
)
"""A teacher from step 3 of 9 on, that believes in everything it sees."""


def metrics_rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))


def test_a_run_with_a_teacher_resumes_bit_for_bit(data: Path, tmp_path: Path) -> None:
    recipe = recipe_with(*TEACHER)
    whole = run(recipe, settings_for(data, tmp_path / "whole"))
    with pytest.raises(RunInterruptedError):
        run(recipe, settings_for(data, tmp_path / "parts"), stop_after=6)
    rest = run(recipe, settings_for(data, tmp_path / "parts", resume=True))
    first, second = (
        load_trainer_state(tmp_path / name / "trainer.pt") for name in ("whole", "parts")
    )
    assert first.supervision["teacher"]["updates"] == second.supervision["teacher"]["updates"] == 7
    for ours, theirs in (
        (first.model["state_dict"], second.model["state_dict"]),
        (first.supervision["teacher"]["network"], second.supervision["teacher"]["network"]),
    ):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert whole.supervision.own_state().keys() == {"bank"}
    told = [metrics_rows(tmp_path / name)[-1] for name in ("whole", "parts")]
    assert told[0] == told[1]
    assert rest.step == 9


def test_a_run_cut_off_inside_an_epoch_goes_on_from_the_save_inside_it(
    data: Path, tmp_path: Path
) -> None:
    class PowerCutError(Exception):
        pass

    recipe = recipe_with(*TEACHER)
    run(recipe, settings_for(data, tmp_path / "whole"))
    cut = settings_for(data, tmp_path / "parts")
    engine = Engine(recipe_with(*TEACHER, "schedule.save_every=4"), cut)
    engine.start_folder()
    reports = quiet_reports(engine)

    def step(report: StepReport) -> None:
        if report.step == 5:
            raise PowerCutError

    reports.step = step  # type: ignore[method-assign]  # cuts the run off
    with pytest.raises(PowerCutError):
        engine.fit(reports)
    # epochs of five images end in steps 3 and 5, two images each
    assert load_trainer_state(tmp_path / "parts" / "trainer.pt").step == 4
    assert read_model_payload(tmp_path / "parts" / "last.pt")["metadata"]["step"] == 4
    # a setting that changes no number may be another one
    run(recipe, replace(cut, resume=True))
    first, second = (
        load_trainer_state(tmp_path / name / "trainer.pt") for name in ("whole", "parts")
    )
    for ours, theirs in (
        (first.model["state_dict"], second.model["state_dict"]),
        (first.supervision["teacher"]["network"], second.supervision["teacher"]["network"]),
    ):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_average_ships_and_the_student_stays_at_hand(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    engine = run(recipe_with(*TEACHER), settings_for(data, out))
    assert engine.supervision.teacher is not None
    average = engine.supervision.teacher.network.state_dict()
    raw = engine.student.state_dict()
    assert not all(torch.equal(average[name], raw[name]) for name in raw)
    for source, weights, expected in (
        (out / "last.pt", None, average),
        (out / "trainer.pt", None, average),
        (out / "trainer.pt", "student", raw),
        (out, "student", raw),
        (out, "ema", average),
    ):
        found = load_model(source, weights).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected), source
    assert read_model_payload(out / "last.pt")["weights"] == "ema"
    with pytest.raises(FileMismatchError, match=r"last\.pt holds the weights 'ema', not 'student'"):
        load_model(out / "last.pt", "student")
    rows = metrics_rows(out)
    assert rows[-1]["student_box_AP"] != ""
    assert rows[-1]["pseudo_share"] == ""
    assert float(rows[0]["pseudo_share"]) > 0
    assert (out / "pseudo_masks.png").is_file()


def test_before_its_start_there_is_no_average(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RunInterruptedError):
        run(recipe_with(*TEACHER), settings_for(data, tmp_path / "run"), stop_after=2)
    assert read_model_payload(tmp_path / "run" / "last.pt")["weights"] == "student"
    with pytest.raises(FileMismatchError, match="has no weights 'ema'"):
        load_model(tmp_path / "run", "ema")


def test_loader_processes_do_not_change_the_numbers(data: Path, tmp_path: Path) -> None:
    here = run(recipe_with("schedule.max_iters=3"), settings_for(data, tmp_path / "a"))
    there = run(
        recipe_with("schedule.max_iters=3", "data.workers=2"), settings_for(data, tmp_path / "b")
    )
    theirs = there.student.state_dict()
    assert all(
        torch.equal(value, theirs[name]) for name, value in here.student.state_dict().items()
    )


def test_the_run_folder_holds_what_is_promised(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    engine = run(recipe_with("validation.every_steps=3"), settings_for(data, out))
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.yaml", "last.pt", "trainer.pt", "metrics.csv", "tensorboard"}
    assert names >= {"best.pt", "curves.png", "predictions.png"}
    assert not [name for name in names if name.startswith(".") or "tmp" in name]
    last = load_model(out / "last.pt")
    assert last.config.classes == ("red", "blue")
    assert last.config.category_ids == (3, 8)
    assert engine.is_complete()
    rows = (out / "metrics.csv").read_text().splitlines()
    assert sum(",validation," in row for row in rows) == 2


def test_a_changed_recipe_or_other_data_cannot_be_resumed(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RunInterruptedError):
        run(recipe_with(), settings_for(data, out), stop_after=1)
    with pytest.raises(ValueError, match=r"differs.*schedule\.lr: 0\.01 -> 0\.02; undo that"):
        Engine(recipe_with("schedule.lr=0.02"), settings_for(data, out, resume=True))
    other = write_data(tmp_path / "other", images=4)
    with pytest.raises(ValueError, match=r"is not the data that .* was started with"):
        Engine(recipe_with(), settings_for(other, out, resume=True))
    assert Engine(recipe_with("data.workers=1"), settings_for(data, out, resume=True)).step == 1


def test_a_loss_that_is_no_number_stops_before_the_weights_change(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(recipe_with(), settings_for(data, tmp_path / "run"))
    engine.start_folder()
    with torch.no_grad():
        engine.student.mask_branch.project.weight.fill_(float("nan"))
    before = engine.student.head.class_logits.weight.detach().clone()
    with pytest.raises(NonFiniteLossError, match=r"projection.*step 0.*lower schedule\.lr"):
        engine.fit(quiet_reports(engine))
    assert torch.equal(engine.student.head.class_logits.weight, before)
    saved = torch.load(tmp_path / "run" / "nonfinite_batch.pt", weights_only=True)
    assert saved["images"].dtype == torch.uint8
    assert len(saved["boxes"]) == 2
    assert saved["step"] == 0
    assert not np.isfinite(saved["losses"]["projection"])


def test_an_image_that_goes_bad_during_the_run_is_one_line(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    for workers in (0, 1):
        engine = Engine(
            recipe_with(f"data.workers={workers}"), settings_for(data, tmp_path / f"run{workers}")
        )
        engine.start_folder()
        file = data / "train2.png"
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=r"train2\.png") as caught:
            engine.fit(quiet_reports(engine))
        assert "\n" not in str(caught.value)
        file.write_bytes(whole)


# when a loader vanishes, torch opens temporary files to see whether descriptors ran out, and never
# closes them
@pytest.mark.filterwarnings("ignore:unclosed file <_io.BufferedRandom:ResourceWarning")
def test_a_loader_process_that_dies_is_one_line(data: Path, tmp_path: Path) -> None:
    engine = Engine(
        recipe_with("data.workers=1", "schedule.max_iters=1000"),
        settings_for(data, tmp_path / "run"),
    )
    engine.start_folder()
    reports = quiet_reports(engine)

    def step(_: StepReport) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    reports.step = step  # type: ignore[method-assign, assignment]  # ends the loader
    with pytest.raises(LoaderError, match=r"a loader process died after step .*--workers 0"):
        engine.fit(reports)


def test_images_without_any_box_train_as_background(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", images=4)
    content = json.loads((data / "train.json").read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] == 1]
    (data / "train.json").write_text(json.dumps(content))
    engine = run(
        recipe_with("schedule.max_iters=4", "data.batch_size=1"),
        settings_for(data, tmp_path / "run"),
    )
    assert engine.step == 4


def test_gradients_are_clipped_when_asked(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(recipe_with("schedule.clip_norm=1e-6"), settings_for(data, tmp_path / "run"))
    batch = next(iter(engine._loader()))
    assert not isinstance(batch, Unreadable)
    engine.train_on(batch, 0.0)
    squares = [
        parameter.grad.square().sum()
        for parameter in engine.student.parameters()
        if parameter.grad is not None
    ]
    assert float(torch.stack(squares).sum().sqrt()) == pytest.approx(1e-6, rel=1e-2)


def test_without_a_validation_file_the_run_still_finishes(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    (data / "val.json").unlink()
    text = io.StringIO()
    engine = Engine(recipe_with("schedule.max_iters=1"), settings_for(data, tmp_path / "run"))
    engine.start_folder()
    engine.fit(quiet_reports(engine, text))
    assert "not validated: there is no" in text.getvalue()
    assert (tmp_path / "run" / "last.pt").is_file()
    assert not (tmp_path / "run" / "best.pt").exists()


def test_masks_are_loaded_only_for_the_recipe_that_is_supervised_by_them(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", masks=True)
    boxes = Engine(recipe_with(), settings_for(data, tmp_path / "a"))
    assert boxes.images.sample(0, epoch=0).masks is None
    masks = recipe_with("terms.projection=null", "terms.pairwise=null", "terms.mask_dice={}")
    engine = run(masks, settings_for(data, tmp_path / "b"))
    assert engine.images.sample(0, epoch=0).masks is not None


DEPTH = (
    "terms.depth={}",
    "terms.depth_consistency={start_steps: 1, warmup_steps: 2}",
    "schedule.max_iters=4",
)


def test_a_depth_recipe_needs_depth_maps_and_its_head_is_saved_beside_the_model(
    tmp_path: Path,
) -> None:
    data = write_data(tmp_path / "data")
    with pytest.raises(DataError, match=r"boxseg data depth .* or train without depth: -o terms"):
        Engine(recipe_with(*DEPTH), settings_for(data, tmp_path / "none"))
    write_depth(data)
    start = Engine(recipe_with(*DEPTH), settings_for(data, tmp_path / "start"))
    whole = run(recipe_with(*DEPTH), settings_for(data, tmp_path / "whole"))
    with pytest.raises(RunInterruptedError):
        run(recipe_with(*DEPTH), settings_for(data, tmp_path / "parts"), stop_after=2)
    rest = run(recipe_with(*DEPTH), settings_for(data, tmp_path / "parts", resume=True))
    head = whole.criterion.state_dict()
    assert list(head) == ["depth_head.controller.weight", "depth_head.controller.bias"]
    for name, value in rest.criterion.state_dict().items():
        assert torch.equal(value, head[name])
        assert not torch.equal(value, start.criterion.state_dict()[name])
    shipped = load_model(tmp_path / "whole" / "last.pt").state_dict()
    assert list(shipped) == list(start.student.state_dict())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_in_mixed_precision_the_network_is_halved_and_the_terms_are_not(
    data: Path, tmp_path: Path, half: torch.dtype
) -> None:
    engine = Engine(recipe_with("data.short_sides=[64]"), settings_for(data, tmp_path / "run"))
    step = TrainingStep(engine.student, engine.criterion, lambda value: value)
    step.train()
    given = StepInput(engine.supervision.prepare(largest_batch(engine), engine.student, 0), 3)
    exact, _ = step(given)
    contexts: list[StepContext] = []
    in_autocast: list[bool] = []

    def watch(_: torch.nn.Module, given: tuple[StepContext]) -> None:
        contexts.append(given[0])
        in_autocast.append(torch.is_autocast_enabled("cpu"))

    engine.criterion.register_forward_pre_hook(watch)
    with torch.autocast("cpu", dtype=half):
        rounded, _ = step(given)
    predictions = contexts[0].predictions
    assert predictions.box_features[0].dtype == half
    for name in ("class_logits", "quality_logits", "boxes", "parameters", "mask_features"):
        assert getattr(predictions, name).dtype == torch.float32, name
    assert in_autocast == [False]
    assert {value.dtype for value in rounded.values()} == {torch.float32}
    for name, value in exact.items():
        assert rounded[name].item() == pytest.approx(value.item(), rel=0.05, abs=1e-3), name


@pytest.mark.parametrize(
    "method",
    [
        "quality_aware: {score_threshold: 0.0, depth_ranking: 0.5}",
        "semantic: {per_class: 2}",
        "box_teacher: {}",
        "depth_matched: {}",
    ],
)
def test_every_pseudo_mask_is_made_in_bfloat16_training(tmp_path: Path, method: str) -> None:
    data = write_depth(write_data(tmp_path / "data", images=2))
    (data / "val.json").unlink()
    recipe = recipe_with(
        *(*TEACHER, *DEPTH, f"pseudo_masks={{{method}}}", "precision=bf16-mixed"),
        *("teacher.start=0", "schedule.max_iters=2"),
    )
    engine = run(recipe, settings_for(data, tmp_path / "run"))
    made = engine._lesson
    assert made is not None
    assert made.pseudo is not None
    assert {mask.dtype for mask in made.pseudo.masks} == {torch.float32}


def test_bfloat16_trains_on_a_cpu(data: Path, tmp_path: Path) -> None:
    engine = run(
        recipe_with("precision=bf16-mixed", "schedule.max_iters=2"),
        settings_for(data, tmp_path / "run"),
    )
    weights = engine.student.state_dict().values()
    assert all(value.dtype != torch.bfloat16 for value in weights)


def test_an_interrupt_during_validation_keeps_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*_: Any, progress: Callable[[int, int], None], **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        progress(1, 5)

    recipe = recipe_with("validation.every_steps=2")
    monkeypatch.setattr(engine_module, "answer_examination", answer)
    with pytest.raises(RunInterruptedError) as stop:
        run(recipe, settings_for(data, tmp_path / "run"))
    assert stop.value.step == 2
    monkeypatch.undo()
    # the validation that was cut short is made up for first
    engine = run(recipe, settings_for(data, tmp_path / "run", resume=True))
    assert engine.is_complete()
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows if ",validation," in row] == ["2", "4", "6"]


def test_a_small_network_learns_the_boxes(data: Path, tmp_path: Path) -> None:
    engine = Engine(recipe_with(), settings_for(data, tmp_path / "run"))
    batch = next(iter(engine._loader()))
    losses = []
    for _ in range(40):
        losses.append(engine.train_on(batch, 0.02)[0]["giou"])
        engine.step += 1
    assert losses[-1] < 0.5 * losses[0]


def test_an_average_lags_only_where_it_is_a_point_behind() -> None:
    assert lagging_average(0.474, 0.4751, by_masks=False) == ""
    assert lagging_average(0.48, 0.40, by_masks=False) == ""
    found = lagging_average(0.30, 0.415, by_masks=False)
    assert found.startswith("the average scores 30.0, its student 41.5 (box AP x tightness)")
    assert "(mask AP)" in lagging_average(0.30, 0.415, by_masks=True)
