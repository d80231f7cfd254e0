"""boxseg predict, eval, bench and doctor as a user runs them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_images import PNG_OF_10_GIGAPIXELS

from boxseg import cli
from boxseg.runtime import commands
from boxseg.runtime.detections import Crop
from boxseg.runtime.images import read_image
from boxseg.runtime.metadata import Batch
from boxseg.runtime.preprocess import Fit

codec = pytest.importorskip("pycocotools.mask", reason="the fake model encodes with pycocotools")

METADATA = SimpleNamespace(
    classes=("star",),
    category_ids=(3,),
    imgsz=Fit(32, 64),
    padding=(124, 116, 104),
    precision="fp32",
    batch=Batch(1, 1, 16),
)


class FakeDetections:
    """One object in the left upper quarter of every frame."""

    class_names = ("star",)

    def __init__(self, frame: np.ndarray) -> None:
        self.height, self.width = frame.shape[:2]
        self.scores = np.array([0.875], np.float32)
        self.labels = np.array([0])
        self.xyxy = np.array([[0, 0, self.width // 2, self.height // 2]], np.float32)
        self.times_ms = {"letterbox": 1.0, "engine": 2.0, "select": 0.5, "masks": 0.5, "total": 4.0}

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: np.ndarray) -> FakeDetections:
        assert index.all()
        return self

    def crops(self) -> list[Crop]:
        return [Crop(0, 0, np.ones((self.height // 2, self.width // 2), bool))]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        mask = np.zeros((self.height, self.width), np.uint8, order="F")
        mask[: self.height // 2, : self.width // 2] = 1
        rle = codec.encode(mask)
        return [
            {
                "image_id": image_id,
                "category_id": 3,
                "bbox": [0.0, 0.0, float(self.width // 2), float(self.height // 2)],
                "score": 0.875,
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
            }
        ]


class FakeSegmenter:
    metadata = METADATA

    def __init__(self) -> None:
        self.backend = SimpleNamespace(name="fake", device="cpu", run=self.run)

    def run(self, images: np.ndarray) -> dict[str, Any]:
        if len(images) > 4:
            raise RuntimeError("Got invalid dimensions\nfor input")
        return {}

    def __call__(self, frame: np.ndarray) -> FakeDetections:
        return FakeDetections(frame)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that every command opens as the fake; what it was opened with is recorded."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"12345678")
    monkeypatch.setattr(commands, "open_model", lambda path, **options: FakeSegmenter())
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images and their annotation file."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 20), (60, 60, 60)).save(folder / name)
    square = [[0, 0, 20, 0, 20, 10, 0, 10]]
    values = {
        "images": [
            {"id": 5, "file_name": "a.png", "height": 20, "width": 40},
            {"id": 6, "file_name": "b.png", "height": 20, "width": 40},
        ],
        "categories": [{"id": 8, "name": "star"}],
        "annotations": [
            {
                "id": index,
                "image_id": image_id,
                "category_id": 8,
                "bbox": [0, 0, 20, 10],
                "area": 200,
                "iscrowd": 0,
                "segmentation": square,
            }
            for index, image_id in enumerate((5, 6))
        ],
    }
    (folder / "val.json").write_text(json.dumps(values))
    return folder


def _run(*words: Any) -> int:
    return cli.run([str(word) for word in words])


# --- predict -------------------------------------------------------------------------------------


def test_predict_writes_pictures_and_says_what_it_found(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("predict", model, folder, "--out", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert f"{folder / 'a.png'}: 1 star, 4.0 ms" in text
    assert "2 pictures in" in text
    drawn = read_image(tmp_path / "out" / "a.jpg")
    assert drawn.shape == (20, 40, 3)
    assert (drawn != 60).any()
    assert _run("predict", model, folder / "a.png", "--save-json", "found.json") == 0
    said = capsys.readouterr().out
    assert "1 detection in found.json" in said
    assert "1 picture in predictions" in said


def test_names_of_a_foreign_file_command_no_terminal(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = SimpleNamespace(**{**vars(METADATA), "classes": ("st\nar\x1b[2J\u202e",)})
    monkeypatch.setattr(FakeSegmenter, "metadata", named)
    (folder / "a.png").rename(folder / "a  \n\x1b]0;x\x07.png")
    assert _run("predict", model, folder, "--no-pictures") == 0
    shown = r"1 st ar\x1b[2J\x202e, 4.0 ms"
    assert capsys.readouterr().out.splitlines() == [
        rf"{folder}/a  \x0a\x1b]0;x\x07.png: {shown}",
        f"{folder}/b.png: {shown}",
    ]


def test_a_foreign_name_that_cannot_be_read_stays_on_its_line(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "c\n\x1b[2J.png").write_bytes(b"no")
    assert _run("predict", model, folder, "--no-pictures") == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 2  # the file and the end
    assert r"c \x1b[2J.png: not an image" in said


def test_predict_writes_one_coco_file(model: Path, folder: Path, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    file = tmp_path / "deep" / "found.json"
    assert _run("predict", model, folder, "--no-pictures", "--save-json", file) == 0
    assert not (tmp_path / "predictions").exists()
    coco = COCO(str(file))
    assert [entry["file_name"] for entry in coco.dataset["images"]] == [
        str(folder / "a.png"),
        str(folder / "b.png"),
    ]
    assert coco.dataset["categories"] == [{"id": 3, "name": "star"}]
    assert [entry["id"] for entry in coco.dataset["annotations"]] == [1, 2]
    assert coco.dataset["annotations"][1]["image_id"] == 2
    assert coco.dataset["annotations"][0]["score"] == 0.875
    assert [p.name for p in file.parent.iterdir()] == ["found.json"]  # no temporary file is left


def test_predict_reads_the_other_files_and_ends_with_three(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.png").write_bytes(b"no")
    assert _run("predict", model, folder) == 3
    said = capsys.readouterr()
    assert "broken.png: not an image" in said.err
    assert "1 of 3 sources could not be read" in said.err
    assert "2 pictures in predictions" in said.out


def truncated(image: Path) -> bytes:
    return image.read_bytes()[:-30]


def test_predict_refuses_huge_and_truncated_images(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "huge.png").write_bytes(PNG_OF_10_GIGAPIXELS)
    (folder / "torn.png").write_bytes(truncated(folder / "a.png"))
    assert _run("predict", model, folder) == 3
    said = capsys.readouterr().err
    assert "huge.png: too many pixels; the limit is 89478485 pixels" in said
    assert "torn.png: truncated or damaged image" in said
    assert "2 of 4 sources could not be read" in said


def test_predict_never_overwrites_its_sources(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("predict", model, folder / "a.png", "--out", folder) == 2
    assert "holds the source" in capsys.readouterr().err


def test_pictures_of_the_same_name_are_numbered(model: Path, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (40, 20)).save(other / "a.jpg")
    assert _run("predict", model, folder / "a.png", other, "--out", tmp_path / "out") == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a-2.jpg", "a.jpg"]


def test_predict_refuses_a_missing_source_and_a_bad_option(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("predict", model, folder / "none.png") == 3
    assert _run("predict", model, folder, "--conf", "2") == 2
    assert _run("predict", model) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)


# --- eval ----------------------------------------------------------------------------------------


def test_eval_prints_a_table_in_percent(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("eval", model, "--data", folder, "--filled-boxes", "--per-class") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["box", "100.0", "100.0", "100.0", "100.0", "-", "-", "100.0"] in lines
    assert ["mask", "100.0", "100.0", "100.0", "100.0", "-", "-", "100.0"] in lines
    assert any(line[:2] == ["filled", "boxes"] for line in lines)
    assert ["star", "100.0", "100.0"] in lines
    assert ["2", "images,", "2", "objects,", "2", "detections"] in lines


def test_eval_prints_foreign_names_of_classes_on_their_line(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {**vars(METADATA), "classes": ("star", "mo\non\x1b[2J"), "category_ids": (3, 4)}
    monkeypatch.setattr(FakeSegmenter, "metadata", SimpleNamespace(**named))
    values = json.loads((folder / "val.json").read_text())
    values["categories"].append({"id": 9, "name": "s\tun\x1b[2J"})
    values["annotations"].append({**values["annotations"][0], "id": 7, "category_id": 9})
    (folder / "val.json").write_text(json.dumps(values))
    assert _run("eval", model, "--data", folder, "--per-class") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines)
    assert r"classes of the model that val.json does not have: mo on\x1b[2J" in lines
    assert r"classes in val.json that the model does not know: s un\x1b[2J (AP 0)" in lines
    assert [r"un\x1b[2J", "0.0", "0.0"] in [line.split()[1:] for line in lines]  # "s un" of a class


def test_eval_writes_numbers_and_results(model: Path, folder: Path, tmp_path: Path) -> None:
    numbers, results = tmp_path / "numbers.json", tmp_path / "results.json"
    words = ("--json", numbers, "--save-json", results, "--max-images", 1)
    assert _run("eval", model, "--data", folder / "val.json", *words) == 0
    values = json.loads(numbers.read_text())
    assert values["mask"]["AP"] == pytest.approx(1.0)
    assert values["settings"]["max_images"] == 1
    assert values["backend"] == "fake"
    (result,) = json.loads(results.read_text())
    assert (result["image_id"], result["category_id"]) == (5, 8)  # the file's ids


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        ("nowhere", 3, "no such file or folder"),
        ("empty", 3, "no val.json in this folder"),
        ("data/a.png", 3, "not JSON"),
    ],
)
def test_eval_answers_wrong_data_in_one_line(
    model: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    data: str,
    code: int,
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    assert _run("eval", model, "--data", tmp_path / data) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(PNG_OF_10_GIGAPIXELS, "b.png: too many pixels"), (None, "b.png: truncated or damaged")],
)
def test_eval_refuses_huge_and_truncated_images(
    model: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    message: str,
) -> None:
    (folder / "b.png").write_bytes(content or truncated(folder / "b.png"))
    assert _run("eval", model, "--data", folder) == 3
    error = capsys.readouterr().err
    assert message in error
    assert [line for line in error.splitlines() if line.startswith("error: ")]


def test_eval_says_that_a_threshold_hides_detections(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("eval", model, "--data", folder, "--conf", 0.5) == 0
    assert "up to 0.5 were not judged" in capsys.readouterr().out


# --- bench ---------------------------------------------------------------------------------------


def test_bench_prints_stages_and_writes_a_record(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, record = tmp_path / "other.onnx", tmp_path / "times.json"
    other.write_bytes(b"123")
    words = ("--source", folder, "--iters", 3, "--warmup", 0, "--threads", 2, "--json", record)
    assert _run("bench", model, other, *words, "--block", 2) == 0
    text = capsys.readouterr().out
    for word in ("letterbox", "engine", "select", "masks", "total", "frames per second"):
        assert text.count(word) >= 2
    assert "2 frames of" in text
    assert "20 x 40" in text
    values = json.loads(record.read_text())
    assert [entry["bytes"] for entry in values["models"]] == [8, 3]
    assert values["models"][0]["stages"]["engine"]["p90"] == 2.0
    assert values["models"][0]["rounds"] == 3
    assert values["models"][0]["against"] is None
    assert values["models"][1]["against"] == str(model)
    # the engine of these models always says 2 ms
    assert values["models"][1]["compared"]["engine"] == {
        "ratio": 1.0,
        "faster": 0,
        "block": 2,
        "blocks": 1,
        "blocks_faster": 0,
    }
    assert (
        "against model.onnx: engine 1.000 x (less in 0 of 3 rounds, in 0 of 1 blocks of 2)" in text
    )
    assert values["settings"]["threads"] == 2
    assert values["settings"]["frame_sizes"] == ["20 x 40"]
    assert values["machine"]["cores"] >= 1


def test_bench_without_a_source_says_so(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("bench", model, "--iters", 1, "--warmup", 0) == 0
    text = capsys.readouterr().out
    assert "synthetic frame (seed 0), no real image" in text
    assert "720 x 1280" in text


def test_bench_times_a_batch_or_says_why_not(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--source", folder, "--iters", 2, "--warmup", 0)
    assert _run("bench", model, *words, "--batch", 4) == 0
    assert "engine x 4" in capsys.readouterr().out
    assert _run("bench", model, *words, "--batch", 8) == 1
    error = capsys.readouterr().err
    assert "--batch 8: fake refuses this batch (Got invalid dimensions)" in error
    # the metadata say that it takes no more than 16
    assert _run("bench", model, *words, "--batch", 1, 2, 32) == 0
    said = capsys.readouterr().out
    assert said.count("images per second in the engine alone") == 2
    assert "engine x 32: not timed, the file takes 1 to 16 images per run" in said
    assert _run("bench", model, "--batch", "0") == 2
    assert "must be numbers of at least 1, got '0'" in capsys.readouterr().err


def test_bench_refuses_the_same_model_twice(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("bench", model, model) == 2
    assert "given twice" in capsys.readouterr().err


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("predict", ["--save-json"]),
        ("eval", ["--data", ".", "--json"]),
        ("eval", ["--data", ".", "--save-json"]),
        ("bench", ["--json"]),
    ],
)
def test_a_report_that_names_a_folder_is_refused_before_the_work(
    model: Path, folder: Path, command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [folder] if command == "predict" else []
    assert _run(command, model, *sources, *words, folder) == 2
    assert f"File '{folder}' is a directory" in capsys.readouterr().err


def test_a_plot_of_an_unknown_kind_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    for name in ("times.xyz", "times"):
        assert _run("bench", tmp_path / "gone.onnx", "--plot", tmp_path / name) == 2
        error = capsys.readouterr().err
        assert "--plot must end in " in error
        assert f"got {tmp_path / name}" in error


def test_a_model_that_does_not_open_leaves_no_folder(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "foreign.onnx").write_bytes(b"no model")
    assert _run("predict", tmp_path / "foreign.onnx", folder, "--out", tmp_path / "out") == 8
    assert not (tmp_path / "out").exists()


def test_a_missing_model_is_a_usage_error(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("predict", tmp_path / "none.onnx", folder, "--no-pictures") == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_a_model_file_without_torch_names_the_install_command(
    tmp_path: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without_torch(path: Path, device: str | None) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli, "open_torch", without_torch)
    (tmp_path / "best.pt").write_bytes(b"")
    (tmp_path / "run").mkdir()
    for path in ("best.pt", "run"):
        assert _run("predict", tmp_path / path, folder, "--no-pictures") == 4
        assert "pip install boxseg[train]" in capsys.readouterr().err


def test_threads_do_not_go_with_a_model_file(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "best.pt").write_bytes(b"")
    assert _run("predict", tmp_path / "best.pt", folder, "--no-pictures", "--threads", 2) == 2
    assert "OMP_NUM_THREADS" in capsys.readouterr().err


# --- doctor --------------------------------------------------------------------------------------


def test_doctor_lists_packages_and_engines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime", reason="doctor fails without any engine")
    assert _run("doctor", "--json", tmp_path / "doctor.json") == 0
    text = capsys.readouterr().out
    assert "native library: ok" in text
    assert "CPUExecutionProvider" in text
    values = json.loads((tmp_path / "doctor.json").read_text())
    assert values["native"] == "ok"
    assert values["simd"] in ("portable", "avx2", "avx512")
    assert values["versions"]["numpy"] == np.__version__
    assert values["runs"][".onnx"] == ""
    assert "runs     .onnx            yes" in text


def test_doctor_says_which_provider_does_not_load(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime was built for CUDA")
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]  # as where a wheel finds no CUDA
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    assert _run("doctor") == 0
    expected = (
        "onnxruntime runs on CUDAExecutionProvider (does not load here), CPUExecutionProvider"
    )
    assert expected in capsys.readouterr().out


def test_doctor_says_what_keeps_a_format_from_being_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from boxseg.runtime import benchmark

    there = {"onnxruntime": "1.17", "torch": "2.6", "torchvision": "0.21", "tensorrt": "10.12"}
    monkeypatch.setattr(benchmark, "package_version", there.get)
    module = SimpleNamespace(__version__="9.1", get_available_providers=lambda: ["CPU"])
    real = importlib.import_module
    monkeypatch.setattr(
        importlib, "import_module", lambda name: real(name) if "boxseg" in name else module
    )
    assert _run("doctor", "--json", tmp_path / "doctor.json") == 0
    values = json.loads((tmp_path / "doctor.json").read_text())
    lacks = (
        "onnx is missing; pip install boxseg[export], "
        "onnxscript is missing; pip install boxseg[export]"
    )
    assert values["exports"]["onnx"] == lacks
    assert values["exports"]["openvino"].endswith(
        "openvino is missing; pip install boxseg[openvino]"
    )
    assert values["exports"]["trt"].startswith(f"{lacks}, tensorrt does not load: ")
    assert "TensorRT 9.1 is not supported" in values["runs"][".engine"]
    assert "runs     *_openvino_model no: openvino is missing" in capsys.readouterr().out


def test_doctor_without_engines_ends_with_four(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from boxseg.runtime import benchmark

    monkeypatch.setattr(benchmark, "package_version", lambda name: None)
    assert _run("doctor") == 4
    said = capsys.readouterr()
    assert "missing; pip install boxseg[onnxruntime]" in said.out
    assert "no engine can run a deployed file" in said.err


def test_doctor_reports_a_broken_native_library(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_check_native", lambda: "ImportError: no such symbol")
    assert _run("doctor") == 4
    said = capsys.readouterr()
    assert "native library: ImportError: no such symbol" in said.out
    assert "force-reinstall" in said.err


def test_an_engine_that_does_not_load_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_module(name: str) -> None:
        raise ImportError(f"{name}.so: undefined\nsymbol")

    monkeypatch.setattr(importlib, "import_module", import_module)
    assert commands._engine_devices("openvino") == (
        [],
        "ImportError: openvino.so: undefined symbol",
    )


# --- the whole way -------------------------------------------------------------------------------


def test_a_run_folder_is_scored_and_timed_in_torch(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch", reason="a model file runs in torch")
    from boxseg.checkpoint import save_model
    from boxseg.config import ModelConfig
    from boxseg.student import Student

    torch.manual_seed(0)
    config = ModelConfig(
        classes=("star",),
        category_ids=(3,),
        backbone="resnet18",
        fpn_channels=16,
        tower_channels=16,
        tower_depth=1,
        mask_channels=4,
        mask_branch_channels=16,
        mask_branch_depth=1,
        imgsz=(32, 64),
        candidate_score=0.0,
    )
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run" / "best.pt", Student(config))
    assert _run("eval", tmp_path / "run", "--data", folder, "--filled-boxes") == 0
    assert "torch on cpu, fp32, input 32 x 64" in capsys.readouterr().out
    words = ("--conf", 0, "--max-det", 3, "--save-json", tmp_path / "found.json")
    assert _run("predict", tmp_path / "run", folder, "--out", tmp_path / "out", *words) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["annotations"]) == 6
    assert (tmp_path / "out" / "b.jpg").is_file()
    capsys.readouterr()
    best = tmp_path / "run" / "best.pt"
    assert _run("bench", best, "--source", folder, "--iters", 2, "--batch", 2) == 0
    assert "engine x 2" in capsys.readouterr().out
