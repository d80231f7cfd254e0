"""`boxseg export` and `boxseg verify` from the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from boxseg import cli
from boxseg.checkpoint import (
    TRAINER_FORMAT,
    load_model,
    model_payload,
    save_model,
    write_atomically,
)
from boxseg.errors import BoxSegError
from boxseg.export import manifest, proven_file, verify
from boxseg.export.commands import _free_target, _target, _write_json
from boxseg.export.lowering import tensor_types
from boxseg.export.proven_file import write_verified
from boxseg.runtime import backends
from boxseg.runtime.agreement import Tolerance
from boxseg.runtime.metadata import Batch
from boxseg.runtime.preprocess import Fit
from boxseg.student import Student

if TYPE_CHECKING:
    from boxseg.export.to_onnx import TracedGraph


@pytest.fixture
def run_folder(tiny_student: Student, tmp_path: Path) -> Path:
    """Return a run folder with a model file and what training leaves beside it."""
    folder = tmp_path / "run"
    save_model(folder / "best.pt", tiny_student, metadata={"licence": {"weights": "CC0-1.0"}})
    write_atomically(
        folder / "trainer.pt",
        {
            "format": TRAINER_FORMAT,
            "version": 1,
            "step": 3,
            "model": model_payload(tiny_student),
            "optimizer": {"state": {0: {"momentum": torch.zeros(5, 4)}}},
            "criterion": {"depth": {"weight": torch.zeros(7, dtype=torch.float16)}},
        },
    )
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Return a picture of noise, larger than the network's input."""
    pixels = np.random.default_rng(5).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).resize((200, 150), Image.Resampling.BICUBIC).save(path)
    return path


def test_both_formats_are_written_proven_and_verified_again(
    run_folder: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(run_folder), "--format", "onnx", "--format", "ov"]
    words += ["--data", str(photo), "--json", str(tmp_path / "report.json")]
    assert cli.run(words) == 0
    printed = capsys.readouterr().out
    assert "each is the model's by name, shape and bytes" in printed
    assert "no detection is expected" not in printed
    student = load_model(run_folder)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student(torch.zeros(1, 3, *student.config.imgsz))
    gmac = json.loads((tmp_path / "report.json").read_text())["gmac"]
    # a multiplication with its sum counts as two
    assert gmac == pytest.approx(counter.get_total_flops() / 2e9)
    assert f"{gmac:.2f} GMAC per image" in printed
    # 5 x 4 float32 of momentum; 7 float16 of a depth head
    assert "left behind  optimizer: 1 tensor, 20 numbers" in printed
    assert "left behind  depth head: 1 tensor, 7 numbers" in printed
    assert "1 of 1 images of" in printed
    assert {path.name for path in run_folder.iterdir()} == {
        "best.pt",
        "trainer.pt",
        "best.onnx",
        "best.onnx.manifest.json",
        "best.onnx.golden.png",
        "best.onnx.md",
        "best_openvino_model",
    }
    assert {path.name for path in (run_folder / "best_openvino_model").iterdir()} == {
        "best.xml",
        "best.bin",
        "manifest.json",
        "golden.png",
        "README.md",
    }
    report = json.loads((tmp_path / "report.json").read_text())
    assert [file["format"] for file in report["files"]] == ["onnx", "openvino"]
    for file in report["files"]:
        assert file["parity"]["passed"]
        assert file["parity"]["detections"]["expected"] > 0  # else nothing was compared
        assert file["golden"]["passed"]
        assert file["golden"]["missing"]["expected"] > 0
        assert file["accuracy"] == {"not_measured": "photo.png has no annotations"}
        text = Path(file["manifest"]).read_text()
        said = json.loads(text)
        assert str(tmp_path) not in text
        assert said["strip"]["left_behind"] == report["left_behind"]
        assert said["licence"]["weights"] == "CC0-1.0"
        assert said["proofs"]["parity"]["samples"] == "1 of 1 images of photo.png"
    for name in ("best.onnx", "best_openvino_model", "best_openvino_model/best.xml"):
        assert cli.run(["verify", str(run_folder / name)]) == 0
        assert "golden sample of" in capsys.readouterr().out
    assert cli.run(["verify", str(run_folder / "best.onnx"), "--data", str(photo)]) == 2
    for name in ("best.onnx", "best_openvino_model"):
        assert cli.run(["verify", str(run_folder / name), "--against", str(run_folder)]) == 0
        assert "drawn images" in capsys.readouterr().out
    metadata = backends.open_backend(run_folder / "best.onnx").metadata
    assert tuple(metadata.classes) == ("star", "ring")


def test_half_precision_is_named_audited_and_proven_as_it_would_round(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(run_folder), "--half", "--format", "onnx", "--format", "ov"]
    assert cli.run([*words, "--json", str(tmp_path / "report.json")]) == 0
    printed = capsys.readouterr().out
    assert "10 InstanceNormalization: sums over many elements" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    reduced = report["reduced"]["dense"]
    assert report["precision"] == reduced["precision"] == "fp16"
    assert {entry["rule"] for entry in reduced["kept"]} >= {"norm", "coordinates"}
    assert all(entry["reason"] for entry in reduced["kept"])
    assert reduced["calibration"]["source"].startswith("2 drawn images")
    for place in ("best_fp16.onnx.manifest.json", "best_fp16_openvino_model/manifest.json"):
        said = json.loads((run_folder / place).read_text())["precision"]
        assert said["calibration"] == reduced["calibration"]
        assert (said["calibration"]["images"], len(said["calibration"]["files"])) == (2, 2)
    for place in ("best_fp16.onnx.md", "best_fp16_openvino_model/README.md"):
        assert "Ranges were measured on 2 drawn images" in (run_folder / place).read_text()
    for file, name in zip(report["files"], ("onnx", "openvino"), strict=True):
        assert file["format"] == name
        assert file["parity"]["passed"]
        assert file["audit"]["stored"]["fp16"] == reduced["layers"] > 0
        if not file["audit"]["executed"].get("fp16"):
            assert "rounded to fp16 after every node" in file["imitation"]["file"]
            assert file["imitation"]["passed"]
    for name in ("best_fp16.onnx", "best_fp16_openvino_model"):
        backend = backends.open_backend(run_folder / name)
        assert backend.metadata.precision == "fp16"
        # verify takes the tolerances of the file's own precision
        assert cli.run(["verify", str(run_folder / name), "--against", str(run_folder)]) == 0


def test_bf16_runs_in_openvino_and_is_unverified_where_the_engine_has_none(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(run_folder), "--precision", "bf16", "--format", "onnx", "--format", "ov"]
    assert cli.run(words) == 9
    captured = capsys.readouterr()
    assert "best_bf16.onnx.unverified: ONNX Runtime on the CPU cannot run it here" in captured.err
    assert captured.err.count("\n") == 1
    names = {path.name for path in run_folder.iterdir()}
    assert names >= {"best_bf16.onnx.unverified", "best_bf16_openvino_model"}
    assert "best_bf16.onnx" not in names
    said = json.loads((run_folder / "best_bf16.onnx.unverified.manifest.json").read_text())
    assert not said["verified"]
    assert said["metadata"]["precision"] == "bf16"
    assert said["golden"]["limits"]["score"] == 0.05  # what bf16 may differ in


def test_bf16_needs_a_late_operator_set(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["export", str(run_folder), "--precision", "bf16", "--opset", "18"]) == 7
    captured = capsys.readouterr()
    assert "bf16 needs --opset 22 or later, the graph has 18" in captured.err
    assert captured.err.count("\n") == 1


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of 16 pictures like those that the gate draws."""
    folder = tmp_path / "photos"
    folder.mkdir()
    frames = verify.drawn_samples(seed=1, count=16, height=96, width=128).frames
    for index, pixels in enumerate(frames.values()):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_int8_is_signed_for_all_engines_and_executed_where_there_are_units(
    run_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = load_model(run_folder)
    with torch.no_grad():  # fresh boxes have no area, and no IoU with anything
        student.get_parameter("head.box_distances.bias").fill_(1.0)
    save_model(run_folder / "best.pt", student)
    words = ["export", str(run_folder), "--int8", "--calib", str(photos), "--format", "onnx"]
    words += ["--format", "ov", "--imgsz", "64", "--json", str(tmp_path / "report.json")]
    assert cli.run(words) == 0
    assert f"measured on 16 of 16 images of {photos}" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    reduced = report["reduced"]["dense"]
    assert len(reduced["calibration"]["files"]) == 16
    assert {"minmax", "percentile", "mse"} >= {r["method"] for r in reduced["ranges"].values()}
    assert all(entry["reason"] for entry in reduced["kept"])
    assert all(  # a convolution stays for what it costs, any other node by design
        (entry["rule"] == "given back") == (entry["op_type"] == "Conv") for entry in reduced["kept"]
    )
    plain, openvino = report["files"]
    for file in (plain, openvino):
        assert file["parity"]["passed"]
        assert file["audit"]["stored"]["int8"] == reduced["layers"] > 0
        assert file["audit"]["failure"] is None
        assert "imitation" not in file  # the graph itself rounds
    if "int8" in openvino["audit"]["supported"]:
        assert openvino["audit"]["executed"]["int8"] == reduced["layers"]
    model = onnx.load(run_folder / "best_int8.onnx")
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    zeros = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert {types[name] for name in zeros} == {onnx.TensorProto.INT8}
    # every node that is written in float has its reason: all but whole numbers, pairs and layers
    kinds = {name: kind for name, (kind, _) in tensor_types(model).items()}
    pairs = ("QuantizeLinear", "DequantizeLinear")
    weights = {n.output[0] for n in model.graph.node if n.op_type == pairs[1]}
    in_float = [
        node.name
        for node in model.graph.node
        if node.op_type not in pairs
        and not (node.op_type == "Conv" and node.input[1] in weights)
        and onnx.TensorProto.FLOAT in {kinds[name] for name in (*node.input, *node.output) if name}
    ]
    assert sorted(entry["node"] for entry in reduced["kept"]) == sorted(in_float)
    said = json.loads((run_folder / "best_int8.onnx.manifest.json").read_text())
    assert said["precision"]["kept"] == reduced["kept"]
    assert backends.open_backend(run_folder / "best_int8.onnx").metadata.precision == "int8"
    # a file with one wrong scale, in the layer that makes parameters, is another network
    broken = tmp_path / "broken.onnx"
    words = ["verify", str(broken), "--against", str(run_folder)]
    onnx.save(model, broken)
    assert cli.run(words) == 0
    scale = next(t for t in model.graph.initializer if t.name.endswith("controller.weight_scale"))
    scale.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(scale), scale.name))
    onnx.save(model, broken)
    assert cli.run(words) == 6
    assert "first divergent tensor parameters" in capsys.readouterr().err


def test_int8_needs_training_images_of_a_data_folder(
    run_folder: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["export", str(run_folder), "--int8", "--data", str(photo)]) == 2
    error = capsys.readouterr().err
    assert "a data folder that has a train.json with --data" in error
    assert error.count("\n") == 1


def test_ranges_are_measured_on_the_images_that_are_named(
    run_folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(run_folder), "--half", "--calib", str(photos)]
    assert cli.run(words) == 0
    assert f"measured on 16 of 16 images of {photos}" in capsys.readouterr().out
    (photos / "0.png").unlink()
    assert cli.run(words) == 3
    assert "holds 15 images; calibration needs at least 16" in capsys.readouterr().err


def test_a_precision_that_answers_otherwise_is_quarantined(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = verify.Gate({name: Tolerance(0.0, 1e-9) for name in verify.TOLERANCES})
    monkeypatch.setitem(verify.GATES, "fp16", gate)
    assert cli.run(["export", str(run_folder), "--half"]) == 6
    assert "best_fp16.onnx.failed: first divergent tensor" in capsys.readouterr().err
    assert {path.suffix for path in run_folder.iterdir()} == {".pt", ".failed"}


def test_a_file_that_answers_otherwise_is_quarantined(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = backends.open_backend

    class Liar:
        """Shifts one number of the boxes."""

        def __init__(self, path: Path) -> None:
            self.inner = honest(path)
            self.name, self.device = self.inner.name, self.inner.device
            self.metadata = self.inner.metadata

        def run(self, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
            outputs = dict(self.inner.run(image))
            outputs["boxes"] = outputs["boxes"].copy()
            outputs["boxes"][0, 7, 2] += 3.0
            return outputs

    monkeypatch.setattr(proven_file, "open_backend", Liar)
    assert cli.run(["export", str(run_folder)]) == 6
    captured = capsys.readouterr()
    assert "first divergent tensor boxes: drawn 0: boxes[0, 7, 2] is" in captured.err
    assert captured.err.count("\n") == 1
    names = {path.name for path in run_folder.iterdir()}
    assert names == {"best.pt", "trainer.pt", "best.onnx.failed"}


def test_a_file_whose_golden_sample_does_not_replay_is_quarantined(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = manifest.expected

    def other(*given: Any) -> dict[str, Any]:
        answer = honest(*given)
        answer["tensors"][0]["values"][0] += 9.0
        return answer

    monkeypatch.setattr(manifest, "expected", other)
    assert cli.run(["export", str(run_folder)]) == 6
    assert "best.onnx.failed: first divergent tensor class_logits" in capsys.readouterr().err
    names = {path.name for path in run_folder.iterdir()}
    assert names == {"best.pt", "trainer.pt", "best.onnx.failed"}


def test_size_name_golden_image_exporter_and_licence_are_as_asked(
    run_folder: Path, photo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "robot.onnx"
    words = ["--out", str(out), "--golden", str(photo), "--exporter", "torchscript"]
    words += ["--licence", "data=CC-BY-4.0"]
    assert cli.run(["export", "--imgsz", "64", "96", str(run_folder), *words]) == 0
    card = out.with_name("robot.onnx.md").read_text()
    assert "photo.png, an image of whoever exported the file" in card
    assert "| weights | CC0-1.0 |\n| data | CC-BY-4.0 |" in card
    manifest = json.loads(out.with_name("robot.onnx.manifest.json").read_text())
    assert manifest["exporter"] == "torchscript"
    assert backends.open_backend(out).metadata.imgsz == Fit(height=64, width=96)
    # The size comes from the file, so verify needs no --imgsz.
    assert cli.run(["verify", str(out), "--against", str(run_folder / "best.pt")]) == 0


def test_a_golden_sample_without_detections_is_told(
    tiny_student: Student, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mute = Student(tiny_student.config)
    mute.load_state_dict(tiny_student.state_dict())
    with torch.no_grad():
        mute.get_parameter("head.class_logits.bias").fill_(-50.0)
    save_model(tmp_path / "best.pt", mute)
    assert cli.run(["export", str(tmp_path / "best.pt"), "--imgsz", "64"]) == 0
    printed = capsys.readouterr().out
    assert (
        "golden       shapes drawn by boxseg (seed 0), nobody's photograph: no detection" in printed
    )
    assert "--golden FILE takes an image with objects" in printed


def test_a_trainer_file_alone_can_be_exported(
    run_folder: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "nothing_to_find.json"
    image = {"id": 1, "file_name": photo.name, "height": 150, "width": 200}
    classes = [{"id": 3, "name": "star"}, {"id": 7, "name": "ring"}]
    data.write_text(json.dumps({"images": [image], "annotations": [], "categories": classes}))
    words = ["--imgsz", "64", "--form", "topk", "--batch", "2", "2", "2", "--golden", "none"]
    words += ["--data", str(data)]
    assert cli.run(["export", str(run_folder / "trainer.pt"), *words]) == 0
    assert "box AP no objects, mask AP no" in capsys.readouterr().out
    file = run_folder / "trainer.onnx"
    metadata = backends.open_backend(file).metadata
    assert (metadata.form, metadata.batch) == ("topk", Batch(2, 2, 2))
    assert not (run_folder / "trainer.onnx.golden.png").exists()
    assert cli.run(["verify", str(file), "--against", str(run_folder / "best.pt")]) == 0


def test_verify_tells_other_weights_from_another_network(
    run_folder: Path, tiny_student: Student, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["export", str(run_folder), "--imgsz", "64"]) == 0
    file = str(run_folder / "best.onnx")
    state = {name: value.clone() for name, value in tiny_student.state_dict().items()}
    state["head.controller.bias"] += 0.01
    other = Student(tiny_student.config)
    other.load_state_dict(state)
    save_model(tmp_path / "nudged.pt", other)
    assert cli.run(["verify", file, "--against", str(tmp_path / "nudged.pt")]) == 6
    assert "first divergent tensor parameters" in capsys.readouterr().err

    config = type(tiny_student.config).from_dict(
        tiny_student.config.to_dict() | {"classes": ["star", "moon"]}
    )
    renamed = Student(config)
    renamed.load_state_dict(tiny_student.state_dict())
    save_model(tmp_path / "renamed.pt", renamed)
    assert cli.run(["verify", file, "--against", str(tmp_path / "renamed.pt")]) == 8
    assert "moon" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "coreml"], "must be one of onnx, openvino, ov, trt, tensorrt, engine"),
        (["--workspace", "0"], "0.0 is not in the range x>0"),
        (["--workspace", "inf", "--format", "trt"], "must be a number of GiB, got inf"),
        (["--workspace", "4"], "--workspace is for --format trt"),
        (["--timing-cache", "times", "--format", "ov"], "--timing-cache is for --format trt"),
        (["--version-compatible"], "--version-compatible is for --format trt"),
        (["--out", "x.engine"], "x.engine is no name for the format onnx: it must end in .onnx"),
        (["--out", "x_openvino_model"], "x_openvino_model is no name for the format onnx"),
        (["--out", "x.xml", "--format", "ov"], "x.xml is no name for the format openvino"),
        (["--half", "--report", "."], "'--report': File '.' is a directory"),
        (["--precision", "fp8"], "must be one of fp32, fp16, bf16, int8, got 'fp8'"),
        (["--half", "--precision", "bf16"], "--precision bf16 and --half contradict each other"),
        (["--half", "--int8"], "--half and --int8 contradict each other; give one"),
        (["--calib", "photos"], "--calib is for reduced precision; give --precision too"),
        (["--half", "--calib-images", "15"], "--calib-images"),
        (["--int8"], "--precision int8 needs calibration images: name a folder or a COCO file"),
        (["--imgsz", "100"], "must be multiples of 32 (height first), got 100 100"),
        (["--imgsz", "64", "100"], "must be multiples of 32 (height first), got 64 100"),
        (["--imgsz", "big"], "must be one number or height and width, got 'big'"),
        (["--batch", "1", "4", "2"], "'--batch': must be MIN <= OPT <= MAX, got 1 4 2"),
        (["--batch", "0", "1", "1"], "0 is not in the range x>=1"),
        (["--dynamic", "batch", "--batch", "4", "4", "4"], "--dynamic batch needs MIN < MAX"),
        (["--dynamic", "size"], "'size' is not 'batch'"),
        (["--form", "sparse"], "'sparse' is not one of 'dense', 'topk', 'graph'"),
        (["--opset", "9"], "must be in 17..23 for --exporter dynamo, got 9"),
        (["--exporter", "torchscript", "--opset", "21"], "must be in 17..20 for --exporter tor"),
        (["--exporter", "torchscript", "--precision", "bf16"], "torchscript, got 22"),
        (["--licence", "code=MIT"], "must be weights=NAME or data=NAME, got 'code=MIT'"),
        (["--licence", "data="], "must be weights=NAME or data=NAME, got 'data='"),
        (["--device", "tpu"], "must be cpu, cuda, cuda:N or N, got 'tpu'"),
        (["--images", "0"], "--images"),
    ],
)
def test_wrong_options_exit_2_in_one_line(
    run_folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["export", str(run_folder), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04 broken"])
def test_foreign_files_exit_8_in_one_line(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    assert cli.run(["export", str(path)]) == 8
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count("\n") == 1


def test_a_missing_data_folder_exits_3(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--data", "--golden"):
        assert cli.run(["export", str(run_folder), option, str(tmp_path / "gone")]) == 3
        assert "gone" in capsys.readouterr().err
    assert not (run_folder / "best.onnx").exists()


def test_one_name_for_two_formats_is_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--format", "onnx", "--format", "openvino", "--out", str(tmp_path / "a.onnx")]
    assert cli.run(["export", str(run_folder), *words]) == 2
    assert "names one file for 2 formats; name a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "words", "message"),
    [
        ("out/best.onnx/mine.txt", [], "best.onnx would be replaced, but it is a folder"),
        (
            "out/best_openvino_model/mine.txt",
            ["--format", "openvino"],
            "holds more than an OpenVINO model: mine.txt",
        ),
        ("out/best_openvino_model", ["--format", "ov"], "would be replaced, but it is a file"),
        ("out", [], "is a file, not a folder"),
        ("out", ["--format", "trt", "--out", "{}/deeper/robot.plan"], "is a file, not a folder"),
    ],
)
def test_what_is_no_export_is_never_replaced(
    run_folder: Path,
    tmp_path: Path,
    made: str,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / made).write_text("mine")
    words = [word.format(tmp_path / "out") for word in words]
    assert cli.run(["export", str(run_folder), "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / made).read_text() == "mine"


def test_a_folder_that_cannot_be_written_to_is_said_before_the_work(
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)  # root may write anywhere
    assert cli.run(["export", str(run_folder), "--out", str(tmp_path / "a" / "b.onnx")]) == 2
    captured = capsys.readouterr()
    assert f"{tmp_path} cannot be written to" in captured.err
    assert captured.out == ""


def test_a_report_is_json_whatever_was_found(tmp_path: Path) -> None:
    differences = {"tensors": [{"difference": float("inf"), "rms": float("nan"), "allowed": 0.5}]}
    _write_json(tmp_path / "deep" / "report.json", differences)
    text = (tmp_path / "deep" / "report.json").read_text()
    assert json.loads(text) == {"tensors": [{"difference": "inf", "rms": "nan", "allowed": 0.5}]}


def test_a_folder_may_have_the_name_of_a_file(tmp_path: Path) -> None:
    file, folder = tmp_path / "best.pt", tmp_path / "robot.onnx"
    assert _target(file, folder, "onnx", 1, "fp32") == folder
    folder.mkdir()
    assert _target(file, folder, "onnx", 1, "fp32") == folder / "best.onnx"
    assert _target(file, tmp_path / "a.plan", "trt", 1, "fp16") == tmp_path / "a.plan"
    assert _target(file, tmp_path / "a", "trt", 1, "fp16") == tmp_path / "a" / "best_fp16.engine"


def test_an_export_with_its_sidecars_may_be_replaced(tmp_path: Path) -> None:
    for name in ("best.xml", "best.bin", "manifest.json", "golden.png", "README.md"):
        (tmp_path / name).write_text("{}")
    assert _free_target(tmp_path, "openvino") == tmp_path
    (tmp_path / "manifest.json").unlink()  # then the rest is somebody else's
    with pytest.raises(click.BadParameter, match="holds more than an OpenVINO model"):
        _free_target(tmp_path, "openvino")


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_full_disk_leaves_no_half_of_a_file(
    tiny_graph: TracedGraph, tmp_path: Path, kind: str
) -> None:
    resource = pytest.importorskip("resource", reason="limits the size of files")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    target = tmp_path / ("best" + {"onnx": ".onnx", "openvino": "_openvino_model"}[kind])
    nothing: Any = None  # of network and frames, which are not reached
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises((OSError, BoxSegError), match=r"too large|cannot be written"):
            write_verified(tiny_graph, kind, target, nothing, nothing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_either_set_of_weights_of_a_run_with_a_teacher_ships(
    tiny_student: Student, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    average = Student(tiny_student.config)
    average.load_state_dict(tiny_student.state_dict())
    with torch.no_grad():
        average.get_parameter("head.controller.bias").add_(0.5)
    save_model(folder / "best.pt", average.eval(), weights="ema")
    write_atomically(
        folder / "trainer.pt",
        {
            "format": TRAINER_FORMAT,
            "version": 1,
            "model": model_payload(tiny_student),
            "supervision": {"teacher": {"updates": 2, "network": average.state_dict()}},
        },
    )
    answers = {}
    image = np.zeros((1, 96, 128, 3), np.uint8)
    for weights, name, left, shipped in (
        ("ema", "best.onnx", "raw student", "average"),
        ("student", "trainer_student.onnx", "average", "raw student"),
    ):
        assert cli.run(["export", str(folder), "--weights", weights]) == 0
        printed = capsys.readouterr().out
        assert f"left behind  {left}: " in printed
        assert f"left behind  {shipped}: " not in printed
        backend = backends.open_backend(folder / name)
        assert backend.metadata.weights == weights
        answers[weights] = backend.run(image)["parameters"]
    # the bias of every parameter differs by 0.5
    np.testing.assert_allclose(answers["ema"], answers["student"] + 0.5, atol=1e-4)

    # the metadata say which weights the network must be opened with
    file = str(folder / "trainer_student.onnx")
    assert cli.run(["verify", file, "--against", str(folder)]) == 0
    words = ["export", str(folder / "best.pt"), "--weights", "student"]
    assert cli.run(words) == 8
    assert "holds the weights 'ema', not 'student'" in capsys.readouterr().err
