"""The example programs, built against an installed library and run."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from deployed import dense_outputs, describe, write_onnx, write_openvino
from PIL import Image
from tools import RUNTIME, miss, require, run

from boxseg.runtime import Detections, Segmenter

if TYPE_CHECKING:
    from boxseg.export.to_onnx import TracedGraph
    from boxseg.student import Student

EXAMPLES = RUNTIME / "examples"


def require_onnxruntime() -> None:
    """Skip the test where onnxruntime_c is not built."""
    if not os.environ.get("ONNXRUNTIME_ROOT"):
        pytest.skip("needs ONNX Runtime's C API: set ONNXRUNTIME_ROOT to an unpacked release")
    pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def programs(installed_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the examples and return their folder."""
    require("g++")
    openvino = pytest.importorskip("openvino")
    build = tmp_path_factory.mktemp("examples")
    flags = "-Wall -Wextra -pedantic"
    run(
        "cmake",
        *("-S", EXAMPLES, "-B", build, f"-DCMAKE_PREFIX_PATH={installed_library}"),
        f"-DOpenVINO_DIR={Path(openvino.__file__).parent / 'cmake'}",
        *(f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"),
    )
    run("cmake", "--build", build)
    return build


@pytest.fixture(scope="module")
def xml(tiny_graph: TracedGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from boxseg.export.to_openvino import write_openvino as write_exported

    return write_exported(tiny_graph, tmp_path_factory.mktemp("model") / "best_openvino_model")


@pytest.fixture(scope="module")
def traced(tiny_student: Student) -> dict[str, TracedGraph]:
    """Return the forms whose graph picks the pairs."""
    from boxseg.export.to_onnx import trace
    from boxseg.inference import describe as describe_student

    config = tiny_student.config
    return {
        form: trace(tiny_student, describe_student(config, form=form)) for form in ("topk", "graph")
    }


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a smooth picture of 150 x 211 pixels."""
    y, x = np.mgrid[:150, :211]
    shades = [np.sin(x / 9 + y / 31), np.cos(y / 13), np.sin((x + y) / 17)]
    path = tmp_path_factory.mktemp("picture") / 'a "picture".ppm'
    Image.fromarray((np.stack(shades, -1) * 127 + 128).astype(np.uint8)).save(path)
    return path


def _check(found: Detections, written: Path, picture: Path) -> None:
    """The JSON holds exactly what Python found."""
    answer = json.loads(written.read_text())
    assert answer["images"] == [{"id": 1, "file_name": str(picture), "height": 150, "width": 211}]
    assert [category["name"] for category in answer["categories"]] == list(found.class_names)
    assert [category["id"] for category in answer["categories"]] == list(found.category_ids)
    expected = found.to_coco(1)
    assert len(expected) > 5
    assert len(answer["annotations"]) == len(expected)
    for one, wanted in zip(answer["annotations"], expected, strict=True):
        assert one["segmentation"] == wanted["segmentation"]
        assert one["category_id"] == wanted["category_id"]
        assert np.float32(one["score"]) == np.float32(wanted["score"])
        assert one["bbox"] == pytest.approx(wanted["bbox"], abs=1e-6)


def _check_overlay(found: Detections, overlay: Path, picture: Path) -> None:
    """The overlay differs from the picture on masks and box outlines only."""
    drawn, plain = np.asarray(Image.open(overlay)), np.asarray(Image.open(picture))
    assert drawn.shape == plain.shape
    changed = (drawn != plain).any(-1)
    assert changed[found.dense().any(0)].mean() > 0.9
    boxed = np.zeros_like(changed)
    for x0, y0, x1, y1 in found.xyxy.astype(int).tolist():
        boxed[y0 : y1 + 1, x0 : x1 + 1] = True
    assert not changed[~boxed].any()


def test_openvino_in_cxx_answers_like_python(
    programs: Path, xml: Path, picture: Path, tmp_path: Path
) -> None:
    overlay, written = tmp_path / "overlay.png", tmp_path / "found.json"
    said = run(programs / "openvino_cpp", xml, picture, overlay, written, "0.3")
    found = Segmenter(xml, conf=0.3)(np.asarray(Image.open(picture)))
    assert said == f"{len(found)} instances\n"
    _check(found, written, picture)
    _check_overlay(found, overlay, picture)


def test_what_a_file_of_16_bits_keeps_in_fp32_is_not_rounded(
    programs: Path, tiny_graph: TracedGraph, picture: Path, tmp_path: Path
) -> None:
    # shows something on CPUs with bf16 units, where rounding moves nearly every score
    from boxseg.export.to_openvino import write_openvino as write_exported

    model = type(tiny_graph.model)()
    model.CopyFrom(tiny_graph.model)
    entry = next(entry for entry in model.metadata_props if entry.key == "boxseg")
    entry.value = json.dumps({**json.loads(entry.value), "precision": "fp16"})
    xml = write_exported(replace(tiny_graph, model=model), tmp_path / "best_fp16_openvino_model")
    written = tmp_path / "found.json"
    run(programs / "openvino_cpp", xml, picture, tmp_path / "overlay.png", written, "0.3")
    _check(Segmenter(xml, conf=0.3)(np.asarray(Image.open(picture))), written, picture)


def test_the_form_topk_is_read_and_graph_is_refused(
    programs: Path, traced: dict[str, TracedGraph], picture: Path, tmp_path: Path
) -> None:
    from boxseg.export.to_openvino import write_openvino as write_exported

    xml = write_exported(traced["topk"], tmp_path / "topk_openvino_model")
    overlay, written = tmp_path / "overlay.png", tmp_path / "found.json"
    said = run(programs / "openvino_cpp", xml, picture, overlay, written, "0.3")
    found = Segmenter(xml, conf=0.3)(np.asarray(Image.open(picture)))
    assert said == f"{len(found)} instances\n"
    _check(found, written, picture)
    other = write_exported(traced["graph"], tmp_path / "graph_openvino_model")
    command = [programs / "openvino_cpp", other, picture, overlay, written]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("forms dense and topk, not graph")


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_other_image_files_are_read_where_their_library_was_found(
    kind: str, programs: Path, xml: Path, picture: Path, tmp_path: Path
) -> None:
    library = {"png": "PNG", "jpg": "JPEG"}[kind]
    if f"HAVE_{library}" not in (programs / "CMakeFiles/common.dir/flags.make").read_text():
        miss(f"lib{library.lower()}", f"lib{library.lower()}-dev")
    image = tmp_path / f"picture.{kind}"
    Image.open(picture).save(image)
    run(programs / "openvino_cpp", xml, image, tmp_path / "o.png", tmp_path / "o.json", "0.3")
    found = Segmenter(xml, conf=0.3)(np.asarray(Image.open(image)))
    answer = json.loads((tmp_path / "o.json").read_text())["annotations"]
    if kind == "png":
        assert [one["segmentation"] for one in answer] == found.rle()
    else:
        # decoders may differ by a grey level
        assert len(answer) == pytest.approx(len(found), abs=5)


def test_the_frame_loop_keeps_its_budget_by_dropping(
    programs: Path, xml: Path, picture: Path
) -> None:
    # 2000 frames a second are more than can be answered on a machine that is busy otherwise; what
    # is not answered is dropped
    said = run(programs / "frame_loop", xml, picture, "200", "2000", "50")
    counts = re.match(r"(\d+) answered, (\d+) overwritten, (\d+) too old, (\d+) answers over", said)
    assert counts is not None, said
    answered, overwritten, too_old, _ = map(int, counts.groups())
    assert answered + overwritten + too_old == 200
    assert answered > 0
    times = re.search(r"p50 ([\d.]+) ms, p99 ([\d.]+) ms", said)
    assert times is not None
    assert 0 < float(times[1]) <= float(times[2])


@pytest.fixture(scope="module", params=["openvino_cpp", "onnxruntime_c"])
def wrong(
    request: pytest.FixtureRequest,
    programs: Path,
    picture: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, str]]:
    """Return a program and the files that it is given wrong, by the words that name them."""
    folder = tmp_path_factory.mktemp("wrong")
    later = describe() | {"format_version": 99}
    if request.param == "openvino_cpp":
        models = {
            name: write_openvino(folder / name, 4, said) / "small.xml"
            for name, said in (("MODEL", describe()), ("FOREIGN", None), ("LATER", later))
        }
        models["DAMAGED"] = folder / "damaged.xml"
        models["NONE"] = Path("none.xml")
    else:
        require_onnxruntime()
        models = {
            name: write_onnx(folder / f"{name}.onnx", dense_outputs(4), said)
            for name, said in (("MODEL", describe()), ("FOREIGN", None), ("LATER", later))
        }
        models["DAMAGED"] = folder / "damaged.onnx"
        models["NONE"] = Path("none.onnx")
    models["DAMAGED"].write_bytes(models["MODEL"].read_bytes()[:500])
    return programs / request.param, {"PICTURE": str(picture)} | {
        name: str(path) for name, path in models.items()
    }


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("", 2, "usage"),
        ("NONE PICTURE o.png o.json", 1, "{NONE}: "),
        ("DAMAGED PICTURE o.png o.json", 1, "{DAMAGED}: "),
        ("FOREIGN PICTURE o.png o.json", 1, "{FOREIGN}: was not exported by boxseg: it has no "),
        ("LATER PICTURE o.png o.json", 1, "{LATER}: format_version in the metadata is not "),
        ("MODEL none.ppm o.png o.json", 1, "none.ppm: cannot be opened; give a PPM, PNG or JPEG"),
        ("MODEL MODEL o.png o.json", 1, "{MODEL}: neither PPM (P6), PNG nor JPEG; give one of"),
        ("MODEL PICTURE none/o.png o.json", 1, "none/o.png: cannot be written; give a file in a"),
        ("MODEL PICTURE o.png none/o.json", 1, "none/o.json: cannot be written; give a file in"),
        ("MODEL PICTURE o.png o.json high", 2, "high: the confidence must be a number from 0 to 1"),
        ("MODEL PICTURE o.png o.json 50", 2, "50: the confidence must be a number from 0 to 1"),
        ("MODEL PICTURE o.png o.json nan", 2, "nan: the confidence must be a number from 0 to 1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    words: str, code: int, message: str, wrong: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    program, files = wrong
    command = [str(program), *(files.get(word, word) for word in words.split())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message.format(**files) in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_the_frame_loop_says_what_it_cannot_use(
    programs: Path, xml: Path, picture: Path, tmp_path: Path
) -> None:
    for words, message in (
        (f"{xml} PICTURE 300 -5", "frames, fps and budget must be above 0, got 300, -5 and 33"),
        (f"{xml} none.ppm", "none.ppm: cannot be opened"),
        ("none.xml PICTURE", "none.xml: "),
    ):
        command = [str(programs / "frame_loop")]
        command += [str(picture) if word == "PICTURE" else word for word in words.split()]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode in (1, 2)
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("form", ["dense", "topk"])
def test_onnxruntime_in_c_answers_like_python(
    form: str,
    programs: Path,
    traced: dict[str, TracedGraph],
    picture: Path,
    tmp_path: Path,
) -> None:
    require_onnxruntime()
    model = tmp_path / "small.onnx"
    if form == "dense":
        write_onnx(model, dense_outputs(4), describe())
    else:
        from boxseg.export.to_onnx import write_onnx as write_exported

        write_exported(traced["topk"], model)
    overlay, written = tmp_path / "overlay.png", tmp_path / "found.json"
    run(programs / "onnxruntime_c", model, picture, overlay, written, "0.3")
    found = Segmenter(model, conf=0.3)(np.asarray(Image.open(picture)))
    _check(found, written, picture)
    _check_overlay(found, overlay, picture)
