"""The accuracy report of reduced precision: worst images, the table, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from boxseg import cli
from boxseg.checkpoint import save_model
from boxseg.export import precision_report
from boxseg.export.precision_report import (
    Judged,
    ReturnedLayer,
    as_dict,
    compare_precisions,
    markdown,
    points,
    report_lines,
    worst_images,
)
from boxseg.export.verify import drawn_samples
from boxseg.runtime.accuracy import Accuracy, AveragePrecision, Result
from boxseg.student import Student


def found(image: int, box: list[float], score: float = 0.9, category: int = 1) -> Result:
    return Result(image_id=image, category_id=category, bbox=box, score=score)


def test_the_worst_images_come_first() -> None:
    reference = [
        found(1, [0, 0, 10, 10]),
        found(2, [0, 0, 10, 10]),
        found(2, [20, 20, 10, 10]),
        found(3, [0, 0, 10, 10]),
        found(4, [0, 0, 10, 10], score=0.2),  # not clear: not looked for
    ]
    other = [
        found(1, [0, 0, 10, 10]),
        found(2, [5, 0, 10, 10]),  # intersection 50, union 150
        found(3, [0, 0, 10, 10], category=2),  # another class is no partner
    ]
    worst = worst_images(reference, other)
    assert [image["image_id"] for image in worst] == [3, 2, 1]
    # image 2: 1/3 and 0
    assert [image["agreement"] for image in worst] == pytest.approx([0, 1 / 6, 1])
    assert [image["detections"] for image in worst] == [1, 2, 1]
    assert [image["image_id"] for image in worst_images(reference, other, 1)] == [3]
    assert worst_images([], other) == []
    assert [image["agreement"] for image in worst_images(reference[:1], [])] == [0.0]


def test_differences_are_in_points_and_undefined_where_one_is() -> None:
    assert points(0.41, 0.40) == pytest.approx(1.0)
    assert points(None, 0.4) is None
    assert points(0.4, None) is None


def precision(name: str, box: float, mask: float | None) -> Judged:
    def ap(value: float) -> AveragePrecision:
        classes: dict[str, float | None] = {"star": value, "ring": None}
        return AveragePrecision(value, value, value, value, value, value, value, classes)

    accuracy = Accuracy(
        box=ap(box),
        mask=None if mask is None else ap(mask),
        filled_boxes=None,
        tightness=None,
        images=2,
        objects=3,
        detections=4,
        notes=(),
        results=[found(1, [0, 0, 10, 10])],
    )
    return Judged(name, f"an engine for {name}", accuracy)


def test_the_table_has_a_row_per_class_and_a_line_per_precision(tmp_path: Path) -> None:
    judged = [precision("fp32", 0.5, 0.4), precision("int8", 0.49, 0.395)]
    layers = [ReturnedLayer("head.weight", 0.25, -0.1, 0.012)]
    lines = report_lines(judged, layers)
    assert [line.split() for line in lines[2:5]] == [
        ["all", "50.0", "40.0", "49.0", "39.5"],
        ["star", "50.0", "40.0", "49.0", "39.5"],
        ["ring", "-", "-", "-", "-"],
    ]
    assert "int8 against fp32: box AP -1.00, mask AP -0.50 (an engine for int8)" in lines
    assert "head.weight back in fp32: box AP -0.10, mask AP +0.25, 1.2 % of the cost" in lines
    assert lines[-1] == "2 images, 3 objects"
    truth = tmp_path / "val.json"
    truth.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.png"}]}))
    content = as_dict(judged, layers, truth)
    assert content["loss"]["int8"] == pytest.approx({"box": 1.0, "mask": 0.5})
    assert content["worst_images"]["int8"][0]["file"] == "a.png"
    table = markdown(judged, layers, truth).splitlines()
    assert "|  | fp32, box | fp32, mask | int8, box | int8, mask |" in table
    assert "| star | 50.0 | 40.0 | 49.0 | 39.5 |" in table
    assert "| ring | - | - | - | - |" in table
    assert "| int8 | an engine for int8 | +1.00 | +0.50 | a.png, agreement 1.00 |" in table
    assert "| `head.weight` | -0.10 | +0.25 | 1.2 % |" in table
    without = [precision("fp32", 0.5, None), precision("int8", 0.49, None)]
    assert as_dict(without, [], truth)["loss"]["int8"]["mask"] is None
    assert as_dict(without, [], truth)["doubts"] == []
    assert "| all | 50.0 | - | 49.0 | - |" in markdown(without, [], truth)


def test_the_file_of_every_engine_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def judge(name: str, engine: str, backend: Any, *_: Any) -> Judged:
        opened.append(backend)
        return replace(precision(name, 0.5, 0.4), engine=engine)

    monkeypatch.setattr(precision_report, "judge", judge)
    monkeypatch.setattr(precision_report, "in_memory", lambda model: model)
    monkeypatch.setattr(precision_report, "open_backend", lambda *words: words)
    reduced: Any = SimpleNamespace(precision="fp16", imitation="rounded")
    fp32: Any = SimpleNamespace(model="fp32")
    names = {"onnx": "a.onnx", "openvino": "a_openvino_model", "trt": "a.engine"}
    written = {kind: Path(name) for kind, name in names.items()}
    found, _ = compare_precisions(reduced, fp32, written, Path("val.json"), gpu="cuda:1")
    assert [entry.name for entry in found] == ["fp32", "fp16", "fp16 openvino", "fp16 trt"]
    assert found[3].engine == "TensorRT, a.engine"
    assert opened[2:] == [(written["openvino"], None), (written["trt"], "cuda:1")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data folder: 16 drawn images to calibrate on, two with one object to judge."""
    folder = tmp_path / "data"
    folder.mkdir()
    for part, count, seed in (("train", 16, 1), ("val", 2, 2)):
        frames = drawn_samples(seed=seed, count=count, height=96, width=128).frames
        images, annotations = [], []
        for index, pixels in enumerate(frames.values(), start=1):
            name = f"{part}_{index}.png"
            Image.fromarray(np.asarray(pixels)).save(folder / name)
            images.append({"id": index, "file_name": name, "height": 96, "width": 128})
            annotations.append(
                {
                    "id": index,
                    "image_id": index,
                    "category_id": 3,
                    "bbox": [10, 10, 40, 30],
                    "area": 1200,
                    "iscrowd": 0,
                    "segmentation": [[10, 10, 50, 10, 50, 40, 10, 40]],
                }
            )
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 3, "name": "star"}, {"id": 7, "name": "ring"}],
        }
        (folder / f"{part}.json").write_text(json.dumps(content))
    return folder


def test_the_command_reports_every_precision_on_the_same_images(
    tiny_student: Student, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "best.pt"
    save_model(model, tiny_student)
    report = tmp_path / "report.json"
    (data / "train_7.png").write_bytes((data / "val_2.png").read_bytes())
    words = ["export", str(model), "--half", "--data", str(data), "--report", str(report)]
    assert cli.run([*words, "--accuracy-images", "1"]) == 0
    printed = capsys.readouterr().out
    doubt = (
        "1 of the 16 calibration images is also among the images of val.json that AP is measured"
    )
    assert f"warning      {doubt}" in printed
    assert doubt in json.loads(report.read_text())["doubts"][0]
    assert f"\nWarning: {doubt}" in report.with_suffix(".md").read_text()
    said = json.loads((tmp_path / "best_fp16.onnx.manifest.json").read_text())["precision"]
    assert doubt in said["calibration"]["doubts"][0]
    assert f"\n**Warning:** {doubt}" in (tmp_path / "best_fp16.onnx.md").read_text()
    assert f"measured on 16 of 16 images of {data / 'train.json'}" in printed
    assert "fp16 against fp32: box AP" in printed
    assert "(ONNX Runtime in fp32, rounded after every node)" in printed
    content = json.loads(report.read_text())
    assert list(content["precisions"]) == ["fp32", "fp16"]
    assert content["precisions"]["fp16"]["images"] == 2
    assert "| star |" in report.with_suffix(".md").read_text()
    assert set(content["precisions"]["fp32"]["per_class"]) == {"star", "ring"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--report", "r.json"], "--report compares precisions; give --precision too"),
        (["--half", "--report", "r.md"], "--report writes JSON, and tables beside it; got r.md"),
        (["--half", "--report", "r.json"], "--report needs masks and boxes to judge on"),
        (["--half", "--report", "r.json", "--data", "photo.png"], "(got photo.png)"),
    ],
)
def test_a_report_without_truth_is_refused(
    tiny_student: Student,
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_model(tmp_path / "best.pt", tiny_student)
    assert cli.run(["export", str(tmp_path / "best.pt"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]
