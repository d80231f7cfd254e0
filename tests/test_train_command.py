"""`boxseg train` as a user meets it: folders, messages, exit codes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from test_images import PNG_OF_10_GIGAPIXELS

from boxseg import checkpoint
from boxseg.cli import run
from boxseg.train import trainer_state
from boxseg.train.commands import choose_folder
from boxseg.train.engine import Engine
from boxseg.train.run_lock import RunLock

RECIPE = """
model:
  backbone: mobilenet_v2
  fpn_channels: 16
  tower_channels: 16
  tower_depth: 1
  mask_channels: 4
  mask_branch_channels: 8
  mask_branch_depth: 1
  imgsz: [64, 64]
data: {short_sides: [64], long_side: 64, batch_size: 2, workers: 0}
schedule: {max_iters: 2, lr: 0.01, warmup_steps: 2}
terms: {focal: {}, giou: {}, centerness: {}, projection: {}}
"""


def write_data(folder: Path) -> Path:
    """Write three pictures with one rectangle each."""
    folder.mkdir()
    generator = np.random.default_rng(1)
    images, annotations = [], []
    for index in range(3):
        picture = Image.fromarray(generator.integers(90, 130, (64, 64, 3), dtype=np.uint8))
        ImageDraw.Draw(picture).rectangle((10, 12, 39, 51), fill=(230, 20, 20))
        picture.save(folder / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "height": 64, "width": 64})
        annotations.append(
            {"id": index + 1, "image_id": index, "category_id": 1, "bbox": [10, 12, 30, 40]}
            | {"area": 1200, "iscrowd": 0}
        )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "red"}],
    }
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a recipe and data."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "reds")
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path


def boxseg_train(*words: str) -> int:
    return run(["train", "--config", "tiny.yaml", "--data", "reds", "--device", "cpu", *words])


def test_a_run_lands_in_a_folder_named_after_recipe_data_and_seed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert boxseg_train("--seed", "4", "-o", "schedule.lr=0.02") == 0
    folder = place / "runs" / "tiny-reds-s4"
    assert (folder / "last.pt").is_file()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["seed"], config["schedule"]["lr"]) == (4, 0.02)
    text = capsys.readouterr().out
    assert "data: 3 images, 3 boxes, 1 class\n" in text
    assert "box" in text
    # the next one does not touch it
    assert boxseg_train("--seed", "4") == 0
    assert (place / "runs" / "tiny-reds-s4-2" / "last.pt").is_file()


def test_a_profile_says_where_the_time_goes_and_writes_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.iterdir())
    assert boxseg_train("--profile", "2", "-o", "schedule.max_iters=9") == 0
    assert sorted(place.iterdir()) == before
    opening, table = capsys.readouterr().out.split("2 steps of 2 images from step 7 on\n")
    assert "resumed" not in opening
    rows = [line.rsplit(maxsplit=2) for line in table.splitlines()[1:-1]]
    assert [name for name, *_ in rows] == [
        *("waiting for data", "transfer", "teacher, pseudo masks, paste, view", "forward"),
        *("term focal", "term giou", "term centerness", "term projection"),
        *("reading the losses", "backward", "optimizer", "average", "step"),
    ]
    assert all(float(time) >= 0 for _, time, _ in rows)
    assert rows[-1][2] == "100.0%"
    # three steps do not count
    assert boxseg_train("--profile", "2", "-o", "schedule.max_iters=4") == 2
    assert "5 steps with the 3 that do not count" in capsys.readouterr().err


def test_a_complete_run_has_nothing_to_resume(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert boxseg_train("--out", "first") == 0
    assert boxseg_train("--out", "first", "--resume") == 0
    assert "nothing to do: first is complete after step 2" in capsys.readouterr().out
    # a run brings its own recipe
    assert run(["train", "--data", "reds", "--out", "first", "--resume", "--device", "cpu"]) == 0


def test_an_existing_folder_is_refused_and_left_alone(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "letter.txt").write_text("dear")
    assert boxseg_train("--out", "mine") == 2
    assert "--out mine exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in (place / "mine").iterdir()] == ["letter.txt"]


def test_a_changed_recipe_is_refused_with_the_differences(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert boxseg_train("--name", "one") == 0
    assert boxseg_train("--name", "one", "--resume", "-o", "schedule.lr=0.5") == 2
    assert "schedule.lr: 0.01 -> 0.5" in capsys.readouterr().err


def test_the_newest_numbered_run_is_resumed(place: Path) -> None:
    for name in ("a", "a-2", "a-3"):
        (place / name).mkdir()
    (place / "a" / "trainer.pt").touch()
    (place / "a-2" / "trainer.pt").touch()
    assert choose_folder(None, place / "a", resume=True) == place / "a-2"
    assert choose_folder(None, place / "a", resume=False) == place / "a-4"
    assert choose_folder(None, place / "b", resume=False) == place / "b"


def test_weights_start_a_run_and_are_listed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert boxseg_train("--name", "one") == 0
    weights = str(place / "runs" / "one" / "last.pt")
    assert boxseg_train("--name", "two", "--weights", weights, "-o", "model.mask_channels=8") == 0
    text = capsys.readouterr().out
    assert "classes taken over: red" in text
    assert "tensor of another shape, newly initialised: head.controller.weight" in text


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--data", "nowhere"], 3, "--data: there is no folder nowhere"),
        (["--data", "."], 3, "it holds no train.json"),
        (["--config", "boxinst"], 2, "known recipes: boxinst_edge, boxinst_mobilenetv2"),
        (["--config", "missing.yaml"], 2, "there is no file 'missing.yaml'"),
        (["-o", "schedule.lrr=1"], 2, "schedule.lrr is not a setting"),
        (["-o", "terms.pairwise.treshold=1"], 2, "terms.pairwise.treshold is unknown"),
        (["--weights", "no.pt"], 2, "--weights: there is no file no.pt"),
        (["--weights", "tiny.yaml"], 8, "tiny.yaml"),
        (["--resume"], 2, "--resume: there is no trainer.pt in runs/tiny-reds-s0"),
        (["--resume", "--weights", "tiny.yaml"], 2, "cannot go with --resume"),
        (["--name", "a", "--out", "b"], 2, "give one"),
        (["--name", "../a"], 2, "--name is a folder under runs/, got '../a'; see --out"),
        (["--config", "boxteacher_resnet5"], 2, "known recipes: boxteacher_resnet50"),
        (["--device", "quantum"], 2, "--device must be auto, cpu, cuda or cuda:N, got quantum"),
        (["--devices", "0"], 2, "--devices must be at least 1"),
        (["--precision", "4-bit"], 2, "4-bit"),
        (["-o", "model.weights=tiny.yaml"], 8, "tiny.yaml is not a state_dict"),
        (["-o", "model.weights=absent.pth"], 2, "there is no file absent.pth"),
        (["-o", "data.classes=[green]"], 3, "unknown class 'green'"),
        (
            ["-o", "data.batch_size=1", "-o", "model.tower_norm=batch"],
            2,
            "image 0 (0.png), scaled to 64 x 64 pixels (height x width), is a single cell to the",
        ),
    ],
)
def test_a_wrong_word_is_one_line_and_leaves_nothing_behind(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    message: str,
) -> None:
    assert boxseg_train(*words) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (place / "runs").exists()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"images": [], "annotations": []}'])
def test_broken_annotations_are_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (place / "reds" / "train.json").write_text(content)
    assert boxseg_train() == 3
    error = capsys.readouterr().err
    assert "train.json" in error
    assert error.count("\n") == 1


def test_boxes_too_small_to_learn_from_are_not_taken_for_background(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = place / "reds" / "train.json"
    file.write_text(file.read_text().replace("[10, 12, 30, 40]", "[10, 12, 1, 1]"))
    assert boxseg_train() == 3
    assert "no box is left to learn from; dropped: boxes under 2 px (3)" in capsys.readouterr().err


def test_a_validation_file_that_cannot_be_scored_is_refused_before_training(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = place / "reds" / "val.json"
    whole = file.read_text()
    for content, message in (
        ("{", "not JSON"),
        (whole.replace("2.png", "9.png"), "image 2: reds/9.png: no such image file"),
        (whole.replace('"height": ', '"height": 1'), "image 0 (0.png) is 64 x 64 pixels"),
        (whole.replace('"red"', '"blue"'), "shares no class with train.json: blue; red"),
    ):
        file.write_text(content)
        assert boxseg_train() == 3
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (place / "runs").exists()


def test_a_hostile_trainer_state_is_not_executed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "evil").mkdir()
    torch.save({"format": "boxseg-trainer", "x": Path("x")}, place / "evil" / "trainer.pt")
    assert boxseg_train("--out", "evil", "--resume") == 8
    assert "was not loaded" in capsys.readouterr().err


def test_a_corrupt_image_is_a_warning_or_with_strict_an_error(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "reds" / "0.png").write_bytes(b"no picture")
    # scoring does not forgive what training may skip
    (place / "reds" / "val.json").unlink()
    assert boxseg_train() == 0
    assert "dropped corrupt images (1), first" in capsys.readouterr().out
    assert boxseg_train("--strict") == 3
    assert "0.png" in capsys.readouterr().err


def test_huge_and_truncated_images_are_named_before_the_first_step(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = place / "reds" / "0.png"
    for content, reason in (
        (PNG_OF_10_GIGAPIXELS, "0.png: too many pixels; the limit is 89478485"),
        (image.read_bytes()[:-30], "0.png: not an image, or damaged"),
    ):
        image.write_bytes(content)
        assert boxseg_train("--strict") == 3  # in train.json
        assert reason in capsys.readouterr().err
        assert boxseg_train() == 3  # in val.json
        error = capsys.readouterr().err
        assert "val.json: image 0: " in error
        assert reason in error
    assert not (place / "runs").exists()


def test_a_loss_that_is_no_number_ends_with_one(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        boxseg_train("--name", "hot", "-o", "schedule.lr=1e30", "-o", "schedule.max_iters=9") == 1
    )
    error = capsys.readouterr().err
    assert "is not finite at step" in error
    assert "lower schedule.lr (now 1e+30)" in error
    assert (place / "runs" / "hot" / "nonfinite_batch.pt").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_saves_and_says_how_to_go_on(place: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "boxseg.cli", "train", "--config", "tiny.yaml"]
    command += ["--data", "reds", "--device", "cpu", "--out", "stopped"]
    command += ["-o", "schedule.max_iters=100000", "-o", "data.workers=1"]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would stay ignored
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGHUP, before)
    deadline = time.monotonic() + 240
    while not (place / "stopped" / "trainer.pt").is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # as a terminal or a job scheduler does it: to the loader processes as well
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    (line,) = [line for line in error.splitlines() if line.startswith("interrupted")]
    assert "continue with: boxseg train --config tiny.yaml --data reds --out stopped" in line
    assert line.endswith("--device cpu --resume")
    assert "Traceback" not in error


def test_a_full_disk_ends_with_one_line_and_the_run_goes_on_when_there_is_room(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource", reason="limits the size of files")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    longer = ("--out", "full", "-o", "schedule.max_iters=6")
    assert boxseg_train("--out", "whole", "-o", "schedule.max_iters=6") == 0
    size = (place / "whole" / "trainer.pt").stat().st_size
    written = checkpoint.write_atomically
    saves = []

    def write(path: Path, payload: dict[str, object]) -> None:
        """Let the disk be full from the second trainer.pt on."""
        saves.append(path.name)
        if saves.count("trainer.pt") == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limit[1]))
        written(path, payload)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_state, "write_atomically", write)
        try:
            assert boxseg_train(*longer) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    error = capsys.readouterr().err
    assert "full/trainer.pt: File too large" in error
    # two images per step: the first epoch of three images ends in step 2, the second in step 3
    assert "after step 3: " in error
    assert "the run as it was after step 2 is whole" in error
    assert error.count("\n") == 1
    assert boxseg_train(*longer, "--resume") == 0
    one = torch.load(place / "whole" / "last.pt", weights_only=True)["state_dict"]
    other = torch.load(place / "full" / "last.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_trains_is_left_alone_until_it_is_gone(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--out", "busy", "-o", "schedule.max_iters=100000", "-o", "data.workers=1"]
    command = [sys.executable, "-m", "boxseg", "train", "--config", "tiny.yaml"]
    process = subprocess.Popen([*command, "--data", "reds", "--device", "cpu", *words])
    try:
        deadline = time.monotonic() + 240
        while not (place / "busy" / "trainer.pt").is_file():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for more in ((), ("--resume",)):
            assert boxseg_train(*words, *more) == 2
            error = capsys.readouterr().err
            assert f"busy is in use: process {process.pid} trains there" in error
            assert error.count("\n") == 1
        (place / "busy" / "trainer.pt").rename(place / "saved.pt")
        assert boxseg_train(*words, "--resume") == 2
        assert f"process {process.pid} trains there" in capsys.readouterr().err
    finally:
        process.kill()
        process.wait()
    # its loader may live for some seconds more; the folder is free at once
    with RunLock(place / "busy") as lock:
        lock.take()


def test_of_two_runs_that_start_together_one_has_the_folder(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    building = Engine.start_folder

    def begin_later(engine: Engine) -> None:
        """Let another run begin and end while this one is being built."""
        monkeypatch.undo()
        monkeypatch.chdir(place)
        assert boxseg_train("--out", "both") == 0
        building(engine)

    monkeypatch.setattr(Engine, "start_folder", begin_later)
    assert boxseg_train("--out", "both", "--seed", "1") == 2
    assert "another run began in both" in capsys.readouterr().err
    assert yaml.safe_load((place / "both" / "config.yaml").read_text())["seed"] == 0
    assert not (place / "both" / "run.lock").exists()


def test_a_file_system_without_locks_is_said_once(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", lack)
    assert boxseg_train("--out", "there") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "locked" in line]
    assert line == "there cannot be locked (No locks available): let no other process train there"
