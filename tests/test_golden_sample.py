"""The golden sample: what replays, what is refused, and what a robot is told."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed import dense_outputs, describe, write_onnx, write_sample
from PIL import Image

from boxseg import cli
from boxseg.errors import FileMismatchError
from boxseg.runtime import golden_sample
from boxseg.runtime.agreement import Tolerance
from boxseg.runtime.backends import open_backend
from boxseg.runtime.golden_sample import answer, replay, sidecars


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with its golden sample."""
    path = tmp_path_factory.mktemp("robot") / "best.onnx"
    write_onnx(path, dense_outputs(3), describe())
    write_sample(path, np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    return path


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    for file in exported.parent.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / exported.name


@contextmanager
def edited(path: Path) -> Iterator[dict[str, Any]]:
    """Change a file's manifest."""
    place = sidecars(path).manifest
    manifest = json.loads(place.read_text())
    yield manifest
    place.write_text(json.dumps(manifest))


def test_a_sound_file_replays(exported: Path) -> None:
    found = replay(exported, threads=1)
    assert found.passed
    assert found.failure() is None
    assert found.missing.expected > 0
    assert [tensor.share for tensor in found.tensors] == [0.0] * 5
    assert any("noise of the tests" in line for line in found.lines())
    assert not any("no detection is expected" in line for line in found.lines())
    assert json.loads(json.dumps(found.as_dict()))["passed"]


def test_a_sample_without_detections_says_what_it_proves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = dense_outputs(3)
    outputs["class_logits"][:] = -20.0  # far below the score of a candidate
    path = write_onnx(tmp_path / "best.onnx", outputs, describe())
    write_sample(path, np.zeros((40, 60, 3), np.uint8))
    assert cli.run(["verify", str(path)]) == 0
    told = (
        "no detection is expected on it, so it proves the tensors alone; boxseg export --golden FI"
    )
    assert told in capsys.readouterr().out


def test_the_answer_is_that_of_the_runtime(exported: Path) -> None:
    from boxseg.runtime.segmenter import Segmenter

    frame = np.asarray(Image.open(sidecars(exported).golden))
    ours = answer(open_backend(exported, threads=1), frame).detections
    theirs = Segmenter(exported, conf=0.0, threads=1)(frame)
    np.testing.assert_array_equal(ours.xyxy, theirs.xyxy)
    assert ours.counts == theirs.counts


def test_a_digest_states_numbers_and_sizes() -> None:
    # RMS of 3, -4, 0, 0: sqrt(25 / 4) = 2.5; 1 % of the largest is 0.04; 1 % of 2.5 is 0.025
    values = np.array([[3.0, -4.0, 0.0, 0.0]], np.float32)
    found = golden_sample._digest("boxes", values, Tolerance(0.001, 0.01, rms=0.01), True)
    assert found["values"] == [3.0, -4.0, 0.0, 0.0]
    assert (found["largest"], found["rms"]) == (4.0, 2.5)
    assert found["allowed"] == pytest.approx(0.04)
    assert found["allowed_rms"] == pytest.approx(0.025)
    assert golden_sample._compare(found, values).share == 0.0
    # 0.03 of 0.04 allowed; the RMS moves by less
    near = golden_sample._compare(found, values + np.array([0, 0.03, 0, 0], np.float32))
    assert near.share == pytest.approx(0.75, rel=1e-3)
    far = golden_sample._compare(found, values + np.array([0, 0, 0.08, 0], np.float32))
    assert "boxes[2] is 0.08, expected 0, allowed difference 0.04" in far.where
    assert not golden_sample._compare(found, values * np.float32(np.nan)).passed
    assert not golden_sample._compare(found, values[:, :3]).passed
    assert not golden_sample._compare(found, None).passed


def change_tensor(golden: dict[str, Any]) -> None:
    golden["tensors"][2]["values"][5] += 1.0


def change_score(golden: dict[str, Any]) -> None:
    golden["detections"][0]["score"] += 0.01


def forget_one(golden: dict[str, Any]) -> None:
    del golden["detections"][0]


def change_input(golden: dict[str, Any]) -> None:
    golden["input_sha256"] = "0" * 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_tensor, "first divergent tensor boxes: boxes["),
        (change_score, "detections that were expected have no partner, the first is golden"),
        (forget_one, "detections that were found have no partner"),
        (change_input, "preprocessing differs"),
    ],
)
def test_another_answer_exits_6_with_the_first_difference(
    copied: Path,
    change: Callable[[dict[str, Any]], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with edited(copied) as manifest:
        change(manifest["golden"])
        # one missing detection is within the share that ties may take
        manifest["golden"]["limits"]["unmatched"] = 0.0
    assert cli.run(["verify", str(copied)]) == 6
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_damaged_file_exits_8(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(copied.read_bytes())
    content[-1] ^= 1
    copied.write_bytes(content)
    assert cli.run(["verify", str(copied)]) == 8
    assert "sha256 differs" in capsys.readouterr().err


def test_a_changed_byte_exits_8_against_its_network_too(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("torch")
    words = ["verify", str(copied), "--against", str(tmp_path / "gone.pt")]
    assert cli.run(words) == 2  # the file is sound, its network is not there
    assert "gone.pt" in capsys.readouterr().err
    model = onnx.load(copied)
    model.doc_string += "!"  # says nothing to an engine
    onnx.save(model, copied)
    assert cli.run(words) == 8
    error = capsys.readouterr().err
    assert "best.onnx.manifest.json describes (sha256 differs)" in error
    assert error.count("\n") == 1
    sidecars(copied).manifest.unlink()  # what nobody described is held against its network alone
    assert cli.run(words) == 2
    assert "gone.pt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda places: places.manifest.unlink(), "needs best.onnx.manifest.json beside it"),
        (lambda places: places.manifest.write_text("{"), "is no JSON"),
        (lambda places: places.manifest.write_text("[]"), "format_version is None"),
        (lambda places: places.manifest.write_text('{"format_version": 1}'), "is incomplete"),
        (lambda places: places.golden.unlink(), "golden.png is missing"),
        (lambda places: places.golden.write_bytes(b"x"), "is not the image that the manifest"),
    ],
)
def test_missing_and_foreign_sidecars_exit_8(
    copied: Path,
    break_it: Callable[[golden_sample.Sidecars], object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    break_it(sidecars(copied))
    assert cli.run(["verify", str(copied)]) == 8
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_every_damage_of_the_sample_is_said_and_no_traceback(exported: Path, copied: Path) -> None:
    whole = json.loads(sidecars(exported).manifest.read_text())
    for key in whole["golden"]:
        values: tuple[Any, ...] = (None, [], {}, "x", [{}])
        for value in values:
            broken = copy.deepcopy(whole)
            broken["golden"][key] = value
            sidecars(copied).manifest.write_text(json.dumps(broken))
            try:
                replay(copied, threads=1)
            except FileMismatchError:
                continue


def test_a_file_without_a_sample_says_so(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with edited(copied) as manifest:
        manifest["golden"] = None
    assert cli.run(["verify", str(copied)]) == 8
    assert "carries no golden sample (--golden none); name its network with --against" in (
        capsys.readouterr().err
    )
    assert cli.run(["verify", str(copied.with_name("gone.onnx"))]) == 2


def test_a_network_in_place_of_a_file_is_told_what_to_give(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.pt").write_bytes(b"weights")
    for network in (run, run / "best.pt"):
        for words in ([], ["--against", str(run)]):
            assert cli.run(["verify", str(network), *words]) == 8
            error = capsys.readouterr().err
            told = f"{network} is no exported file; boxseg export {network} writes one"
            assert error.startswith(f"error: {told}")
            assert error.count("\n") == 1
    shutil.copy(copied, run / "best.onnx")
    (run / "best_openvino_model").mkdir()
    assert cli.run(["verify", str(run)]) == 8
    assert (
        f"{run} is no exported file; give {run}/best.onnx or {run}/best_openvino_model\n"
        in capsys.readouterr().err
    )


def test_a_report_for_programs_is_written(copied: Path, tmp_path: Path) -> None:
    assert cli.run(["verify", str(copied), "--json", str(tmp_path / "report.json")]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["input_is_equal"]


def test_sidecars_lie_beside_a_file_and_inside_a_folder(tmp_path: Path) -> None:
    assert sidecars(tmp_path / "best.engine").card == tmp_path / "best.engine.md"
    assert sidecars(tmp_path).manifest == tmp_path / "manifest.json"
    assert sidecars(tmp_path / "best.xml") == sidecars(tmp_path)
