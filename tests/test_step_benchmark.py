"""The step benchmark times real steps and reports what it timed."""

import json
from pathlib import Path

import pytest
import torch

from boxseg import cli
from boxseg.configs import find_recipe
from boxseg.train.engine import Engine, RunSettings
from boxseg.train.recipe import read_recipe
from boxseg.train.scenes import write_scenes
from boxseg.train.step_benchmark import PEER, StepTimes, compare_steps

SMALL = (
    "model.fpn_channels=16",
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


def test_both_networks_take_real_steps_in_turns(scenes: Path, tmp_path: Path) -> None:
    recipe = read_recipe(find_recipe("scenes_demo"), SMALL)
    engine = Engine(recipe, RunSettings(data=scenes, out=tmp_path / "run", device="cpu"))
    before = engine.student.head.controller.weight.detach().clone()
    times, batch = compare_steps(engine, warmup=1, rounds=2)
    assert [entry.name for entry in times] == ["boxseg", PEER]
    assert all(len(entry.seconds) == 2 and min(entry.seconds) > 0 for entry in times)
    assert batch.images.shape == (2, 3, 64, 96)  # 96 x 128 scaled to 64 x 85, padded to 32
    assert not torch.equal(before, engine.student.head.controller.weight)
    assert not (tmp_path / "run").exists()


def test_the_ratio_is_that_of_the_medians(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench-step", "--config", "scenes_demo", "--data", str(scenes), "--device", "cpu"]
    words += ["--iters", "3", "--warmup", "0", "--json", str(tmp_path / "steps.json")]
    for override in SMALL:
        words += ["-o", override]
    assert cli.run(words) == 0
    found = json.loads((tmp_path / "steps.json").read_text())
    middle = {name: sorted(values)[1] for name, values in found["seconds"].items()}
    assert found["median_seconds"] == middle
    assert found["ratio"] == pytest.approx(middle["boxseg"] / middle[PEER])
    assert "ratio of the medians" in capsys.readouterr().out


def test_the_median_ignores_one_slow_round() -> None:
    assert StepTimes("any", [1.0, 9.0, 2.0]).median == 2.0
