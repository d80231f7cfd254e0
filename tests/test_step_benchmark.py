"""The step benchmark times real steps and reports what it timed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from boxseg import cli
from boxseg.configs import find_recipe
from boxseg.train.engine import Engine, RunSettings
from boxseg.train.recipe import read_recipe
from boxseg.train.scenes import write_scenes
from boxseg.train.step_benchmark import (
    PEERS,
    StepTimes,
    build_peer,
    compare_steps,
    largest_batch,
    peer_targets,
)

SMALL = (
    "model.fpn_channels=32",
    "model.tower_channels=16",
    "data.batch_size=2",
    "data.short_sides=[64]",
    "data.long_side=96",
    "data.workers=0",
)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    folder = tmp_path / "scenes"
    list(write_scenes(folder, images=3, seed=0, val_images=1, size=(96, 128)))
    return folder


def test_the_networks_take_real_steps_in_turns(scenes: Path, tmp_path: Path) -> None:
    recipe = read_recipe(find_recipe("scenes_demo"), SMALL)
    engine = Engine(recipe, RunSettings(data=scenes, out=tmp_path / "run", device="cpu"))
    before = engine.student.head.controller.weight.detach().clone()
    times, batch = compare_steps(engine, warmup=1, rounds=2)
    names = ["boxseg", "torchvision FCOS", "torchvision Mask R-CNN"]
    assert [entry.name for entry in times] == names
    assert all(len(entry.seconds) == 2 and min(entry.seconds) > 0 for entry in times)
    assert batch.images.shape == (2, 3, 64, 96)  # 96 x 128 scaled to 64 x 85, padded to 32
    assert not torch.equal(before, engine.student.head.controller.weight)
    assert not (tmp_path / "run").exists()


def test_the_ratio_is_that_of_the_medians(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench-step", "--config", "scenes_demo", "--data", str(scenes), "--device", "cpu"]
    words += [
        "--iters",
        "3",
        "--warmup",
        "0",
        "--peer",
        "fcos",
        "--json",
        str(tmp_path / "steps.json"),
    ]
    for override in SMALL:
        words += ["-o", override]
    assert cli.run(words) == 0
    found = json.loads((tmp_path / "steps.json").read_text())
    middle = {name: sorted(values)[1] for name, values in found["seconds"].items()}
    assert found["median_seconds"] == middle
    fcos = PEERS["fcos"]
    assert found["ratio_to_peer"] == {fcos: pytest.approx(middle["boxseg"] / middle[fcos])}
    assert "scenes_demo / torchvision FCOS" in capsys.readouterr().out


def test_a_compiled_step_is_timed_beside_the_plain_one(
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compiled: list[bool] = []

    def untouched(function: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
        compiled.append(dynamic)
        return function

    monkeypatch.setattr(torch, "compile", untouched)
    words = ["bench-step", "--config", "scenes_demo", "--data", str(scenes), "--device", "cpu"]
    words += ["--iters", "1", "--compile", "--json", str(tmp_path / "steps.json")]
    words += ["--peer", "fcos"]
    for override in SMALL:
        words += ["-o", override]
    assert cli.run([*words, "--warmup", "0"]) == 2
    assert "--compile: the first round compiles" in capsys.readouterr().err
    assert cli.run(words) == 0
    assert compiled == [True]  # one graph for all sizes
    found = json.loads((tmp_path / "steps.json").read_text())
    ours, other = found["median_seconds"]["boxseg"], found["median_seconds"]["boxseg --compile"]
    assert found["ratio_to_boxseg"] == {"boxseg --compile": pytest.approx(other / ours)}


def test_the_median_ignores_one_slow_round() -> None:
    assert StepTimes("any", [1.0, 9.0, 2.0]).median == 2.0


def test_the_peers_have_the_backbone_of_the_recipe(scenes: Path, tmp_path: Path) -> None:
    recipe = read_recipe(find_recipe("scenes_demo"), SMALL)
    engine = Engine(recipe, RunSettings(data=scenes, out=tmp_path / "run", device="cpu"))
    shapes = {
        name: value.shape for name, value in engine.student.backbone.stages.state_dict().items()
    }
    for peer, strides in (("fcos", [8, 16, 32, 64, 128]), ("mask-rcnn", [4, 8, 16, 32, 64])):
        network = build_peer(peer, engine, (128, 128))
        theirs = network.get_submodule("backbone.stages").state_dict()
        assert {name: value.shape for name, value in theirs.items()} == shapes
        assert all(parameter.requires_grad for parameter in network.parameters())
        levels = network.get_submodule("backbone")(torch.zeros(1, 3, 128, 128))
        assert [128 // level.shape[-1] for level in levels.values()] == strides
        assert {level.shape[1] for level in levels.values()} == {32}


def test_the_masks_of_mask_rcnn_are_the_filled_boxes(scenes: Path, tmp_path: Path) -> None:
    recipe = read_recipe(find_recipe("scenes_demo"), SMALL)
    engine = Engine(recipe, RunSettings(data=scenes, out=tmp_path / "run", device="cpu"))
    batch = largest_batch(engine)
    for target, boxes, labels in zip(
        peer_targets(batch, "mask-rcnn"), batch.boxes, batch.labels, strict=True
    ):
        sides = boxes.round()
        areas = (sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1])
        assert target["masks"].shape == (len(boxes), 64, 96)
        assert torch.equal(target["masks"].sum(dim=(1, 2)).float(), areas)
        assert torch.equal(target["labels"], labels + 1)
    assert set(peer_targets(batch, "fcos")[0]) == {"boxes", "labels"}


def test_a_pyramid_that_fcos_cannot_have_is_refused(scenes: Path, tmp_path: Path) -> None:
    recipe = read_recipe(find_recipe("scenes_demo"), [*SMALL, "model.fpn_channels=24"])
    engine = Engine(recipe, RunSettings(data=scenes, out=tmp_path / "run", device="cpu"))
    with pytest.raises(ValueError, match=r"a multiple of 32, got 24"):
        build_peer("fcos", engine, (64, 64))
