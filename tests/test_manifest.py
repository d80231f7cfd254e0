"""Manifest and model card: what is said about a file, and what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed import dense_outputs, describe, write_onnx
from PIL import Image

from boxseg import cli
from boxseg.errors import DataError
from boxseg.export import manifest
from boxseg.export.manifest import Golden, Story, golden_image, score_file, write_sidecars
from boxseg.export.model_card import model_card
from boxseg.runtime.agreement import EXACT, Tolerance
from boxseg.runtime.backends import open_backend
from boxseg.runtime.golden_sample import expected_answer, parts_of, replay, sidecars

ENDS = (".manifest.json", ".golden.png", ".md")
FRAME = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
TOLERANCES = dict.fromkeys(dense_outputs(0), Tolerance(1e-4, 1e-4))
STRIP = {
    "shipped": {"weights": 3, "parameters": 1234, "size_bytes": 4936, "constants": {}},
    "left_behind": [
        {"part": "raw student", "tensors": 3, "parameters": 1234, "size_bytes": 4936},
        {"part": "bank", "tensors": 1, "parameters": 7, "size_bytes": 7},
    ],
}
PARITY = {
    "backend": "onnxruntime",
    "samples": "2 drawn images",
    "tensors": [{"name": "boxes", "difference": 0.001, "allowed": 0.02}],
    "detections": {
        "matched": 3,
        "expected": 3,
        "score": 1e-6,
        "box_iou": 0.9999,
        "mask_iou": 1.0,
    },
}
SCORES = {
    "what": "the file on onnxruntime, on the first 4 images",
    "data": "val.json",
    "objects": 9,
    "tightness": 0.81,
    "box": {"AP": 0.5, "AP50": 0.75, "AP75": None},
    "mask": None,
}
TRAINING = {
    "recipe": {
        "model": {"backbone": "resnet18", "weights": "/home/ann/secret/weights.pth"},
        "schedule": {"max_iters": 90},
        "terms": {"projection": {}, "focal": None, "giou": {}},
    },
    "data": {"images": 12, "annotations_sha256": "ab12"},
    "step": 80,
    "best": {"score": 0.421, "step": 60},
}


def story(**changes: Any) -> Story:
    values: dict[str, Any] = {
        "metadata": describe(),
        "training": TRAINING,
        "opset": 18,
        "exporter": "dynamo",
        "strip": STRIP,
        "precision": {"asked": "fp32"},
        "private": (),
    }
    return Story(**{**values, **changes})


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "best.onnx", dense_outputs(3), describe())


def written(path: Path, *, golden: bool = True, **proofs: Any) -> dict[str, Any]:
    """Write the sidecars of a small file."""
    sample = None
    if golden:
        answered = expected_answer(open_backend(path, threads=1), FRAME, TOLERANCES, EXACT)
        answered["reference"] = "the file itself"
        sample = (Golden(FRAME, "noise of the tests"), answered)
    return write_sidecars(path, "onnx", story(), proofs, SCORES, sample)


def test_what_is_written_replays(exported: Path) -> None:
    said = written(exported, parity=PARITY)
    assert json.loads(sidecars(exported).manifest.read_text()) == said
    np.testing.assert_array_equal(np.asarray(Image.open(sidecars(exported).golden)), FRAME)
    assert replay(exported, threads=1).passed


def test_an_unverified_file_gets_its_name_where_it_can_run(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = written(exported)
    assert not said["verified"]
    for part in parts_of(exported):  # as if it had been written where no engine runs it
        part.rename(part.with_name(part.name.replace("best.onnx", "best.onnx.unverified")))
    shelf = exported.with_name("best.onnx.unverified")
    names = {path.name for path in exported.parent.iterdir()}
    assert names == {f"best.onnx.unverified{end}" for end in ("", *ENDS)}

    exported.write_text("mine")
    assert cli.run(["verify", str(shelf)]) == 2
    assert "best.onnx, which is there; move it away first" in capsys.readouterr().err
    exported.unlink()

    place = sidecars(shelf).manifest
    text = place.read_text()
    said["golden"]["tensors"][0]["values"][0] += 9.0
    place.write_text(json.dumps(said))
    assert cli.run(["verify", str(shelf)]) == 6
    assert {path.name for path in exported.parent.iterdir()} == names
    place.write_text(text)
    capsys.readouterr()

    assert cli.run(["verify", str(shelf)]) == 0
    assert f"verified     {exported}, as it is called from now on" in capsys.readouterr().out
    assert {path.name for path in exported.parent.iterdir()} == {
        f"best.onnx{end}" for end in ("", *ENDS)
    }
    text = sidecars(exported).manifest.read_text()
    said = json.loads(text)
    assert said["verified"]
    assert (said["name"], said["files"][0]["name"]) == ("best.onnx", "best.onnx")
    assert said["golden"]["image"] == "best.onnx.golden.png"
    assert said["proofs"]["replay"]["passed"]
    assert str(exported.parent) not in text
    card = sidecars(exported).card.read_text()
    assert "Since then onnxruntime, cpu, has: its golden sample was answered as expected." in card
    assert "Not verified" not in card
    assert cli.run(["verify", str(exported)]) == 0


def test_the_manifest_says_everything_and_no_path_of_this_machine(exported: Path) -> None:
    parity = {**PARITY, "file": str(exported), "allowed": float("inf")}
    said = written(exported, parity=parity)
    assert said["verified"]
    assert said["metadata"]["category_ids"] == [3, 1, 7]
    assert said["files"][0]["bytes"] == exported.stat().st_size
    assert "IoU above 0.6" in said["rules"]["suppression"]
    assert "(8j + 4, 8i + 4)" in said["rules"]["mask_sampling"]
    assert "6-1 on 4 mask channels" in said["rules"]["mask"]
    assert "where the box holds no centre, z is sampled at its own" in said["rules"]["mask_score"]
    assert (said["opset"], said["exporter"]) == (18, "dynamo")
    assert said["versions"]["numpy"] == np.__version__
    text = "".join(
        place.read_text() for place in (sidecars(exported).manifest, sidecars(exported).card)
    )
    assert str(exported.parent) not in text
    assert "secret" not in text
    assert "weights.pth" in text


def test_the_card_says_what_people_ask(exported: Path) -> None:
    written(exported, parity=PARITY)
    card = sidecars(exported).card.read_text()
    for text in (
        "# best.onnx",
        "| 1 | 1 | ring |",
        "| **shipped** | 3 | 1,234 | 4,936 |",
        "| bank | 1 | 7 | 7 |",
        "| box | 50.0 | 75.0 | - |",
        "Mask AP: no masks in val.json.",
        "3 of 3 detections have a partner",
        "![the golden sample](best.onnx.golden.png)",
        "The image is noise of the tests.",
        "| Loss terms | projection, giou |",
        "42.1 at step 60",
        "| weights | not stated |",
        "boxseg verify best.onnx",
    ):
        assert text in card, text


def test_a_card_without_proof_accuracy_or_recipe_says_so(exported: Path) -> None:
    said = written(exported, golden=False)
    assert said["golden"] is None
    assert not sidecars(exported).golden.exists()
    said = {**said, "training": {}, "accuracy": {"not_measured": "no --data was given"}}
    card = model_card(said)
    assert "**Not verified:**" in card
    assert "Not measured at export: no --data was given." in card
    assert "does not say how it was trained" in card
    assert "golden" not in card
    assert "Ranges were measured" not in card
    said["precision"] = {
        "asked": "fp16",
        "kept": [{"node": "a"}, {"node": "b"}],
        "calibration": {"source": "16 of 20 images of train.json"},
    }
    card = model_card(said)
    assert "Asked: fp16; 2 nodes stay in fp32, the manifest says why." in card
    assert "Ranges were measured on 16 of 20 images of train.json." in card


def test_a_card_says_what_a_sample_without_detections_proves(exported: Path) -> None:
    said = written(exported)
    told = "no detection is expected on it, so it proves the tensors alone"
    assert told not in model_card(said)
    said["golden"]["detections"] = []
    assert "Expected on it: 0 instances" in model_card(said)
    assert f"\n**Warning:** {told}; boxseg export --golden FILE takes an image" in model_card(said)


def test_a_second_export_without_a_sample_removes_the_first_one(exported: Path) -> None:
    written(exported)
    written(exported, golden=False)
    assert not sidecars(exported).golden.exists()
    manifest.remove_sidecars(exported)
    assert [path.name for path in exported.parent.iterdir()] == ["best.onnx"]


def test_the_golden_image_is_drawn_named_or_none(exported: Path, tmp_path: Path) -> None:
    backend = open_backend(exported, threads=1)
    drawn = golden_image(None, backend)
    assert drawn is not None
    assert "drawn by boxseg (seed 0)" in drawn.source
    assert drawn.frame.shape == (480, 640, 3)
    np.testing.assert_array_equal(drawn.frame, golden_image(None, backend).frame)  # type: ignore[union-attr]  # checked above
    Image.fromarray(FRAME).save(tmp_path / "mine.png")
    own = golden_image(str(tmp_path / "mine.png"), backend)
    assert own is not None
    assert own.source == "mine.png, an image of whoever exported the file"
    assert golden_image("none", backend) is None
    with pytest.raises(DataError, match=r"gone\.png"):
        golden_image(str(tmp_path / "gone.png"), backend)


def test_accuracy_is_measured_where_there_is_truth(exported: Path, tmp_path: Path) -> None:
    assert score_file(exported, None, 4) == {"not_measured": "no --data was given"}
    assert score_file(exported, tmp_path, 0) == {"not_measured": "--accuracy-images 0"}
    assert "has no annotations" in score_file(exported, tmp_path, 4)["not_measured"]
    Image.fromarray(FRAME).save(tmp_path / "a.png")
    values: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "categories": [{"id": 3, "name": "star"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 20, 20], "area": 400}
        ],
    }
    (tmp_path / "val.json").write_text(json.dumps(values))
    found = score_file(exported, tmp_path, 4)
    assert found["images"] == 1
    assert found["what"] == "the file on onnxruntime, on the first 1 images"
    assert found["mask"] is None
    (tmp_path / "val.json").write_text("{}")
    assert "val.json" in score_file(exported, tmp_path, 4)["not_measured"]
