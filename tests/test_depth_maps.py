"""Depth maps from foreign networks: what they see, what is written, and how it goes on."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from deployed import dense_outputs, describe, write_onnx
from numpy.typing import NDArray
from PIL import Image

from boxseg.errors import BackendMissingError, DataError, FileMismatchError
from boxseg.train.coco import CocoBoxes, read_depth
from boxseg.train.data_commands import data
from boxseg.train.depth_maps import (
    DepthPredictor,
    OnnxDepth,
    TransformersDepth,
    depth_name,
    encode_map,
    inverted,
    make_depth_maps,
)
from boxseg.train.transforms import Geometry

WIDTH, HEIGHT = 64, 32


def brightness(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A predictor to which bright is near."""
    found: NDArray[np.float32] = image.mean(axis=2, dtype=np.float32)
    return found


def write_network(
    path: Path,
    shape: tuple[int | str, ...] = ("n", 3, "h", "w"),
    *,
    kind: str = "FLOAT",
    keepdims: bool = True,
    inputs: int = 1,
    more_axes: tuple[int, ...] = (),
) -> Path:
    """Write a network that answers the mean of the colours."""
    import onnx
    from onnx import TensorProto, helper

    entries = [
        helper.make_tensor_value_info(f"picture{index}", getattr(TensorProto, kind), shape)
        for index in range(inputs)
    ]
    axis = 3 if shape[-1] == 3 else 1
    reduced = (axis, *more_axes)
    axes = helper.make_tensor("axes", TensorProto.INT64, [len(reduced)], reduced)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["picture0"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["values", "axes"], ["near"], keepdims=int(keepdims)),
        ],
        "brightness",
        entries,
        [helper.make_tensor_value_info("near", TensorProto.FLOAT, None)],
        [axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two training images and one for validation: a white square at the left of a black ground."""
    (tmp_path / "images").mkdir()
    picture = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    picture[8:24, 8:24] = 255
    for name in ("a", "b", "c"):
        Image.fromarray(picture).save(tmp_path / "images" / f"{name}.png")
    for split, names in (("train", "ab"), ("val", "c")):
        write_split(tmp_path, split, [f"images/{name}.png" for name in names])
    return tmp_path


def write_split(folder: Path, split: str, names: list[str], **more: Any) -> None:
    content = {
        "info": {"year": 1999},
        "images": [
            {"id": index, "file_name": name, "height": HEIGHT, "width": WIDTH, **more}
            for index, name in enumerate(names)
        ],
        "annotations": [
            {
                "id": index,
                "image_id": index,
                "category_id": 1,
                "bbox": [8, 8, 16, 16],
                "segmentation": [[8, 8, 24, 8, 24, 24]],
            }
            for index in range(len(names))
        ],
        "categories": [{"id": 1, "name": "square"}],
    }
    (folder / f"{split}.json").write_text(json.dumps(content))


def images_of(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    content: dict[str, list[dict[str, Any]]] = json.loads((folder / f"{split}.json").read_text())
    return content["images"]


# --------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("input_range", "expected"),
    [
        ("0..255", 255.0),
        ("0..1", 1.0),
        # (1 - 0.485) / 0.229 = 2.24891, (1 - 0.456) / 0.224 = 2.42857, (1 - 0.406) / 0.225 = 2.64
        ("imagenet", 2.43916),
    ],
)
def test_a_network_gets_the_range_it_expects(
    tmp_path: Path, input_range: Any, expected: float
) -> None:
    network = OnnxDepth(write_network(tmp_path / "net.onnx"), input_range=input_range)
    found = network(np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8))
    assert found.shape == (448, 896)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kind", "keepdims"),
    [
        (("n", 32, 64, 3), "UINT8", True),
        (("n", 32, 64, 3), "FLOAT", False),
        ((1, 3, 32, 64), "FLOAT16", True),
        (("n", "channels", "h", "w"), "FLOAT", False),
    ],
)
def test_layout_type_and_size_are_read_from_the_file(
    tmp_path: Path, shape: tuple[int | str, ...], kind: str, keepdims: bool
) -> None:
    path = write_network(tmp_path / "net.onnx", shape, kind=kind, keepdims=keepdims)
    network = OnnxDepth(path, input_range="0..255", short_side=32)
    picture = np.zeros((32, 64, 3), dtype=np.uint8)
    picture[3, 5] = (30, 60, 90)
    found = network(picture)
    assert found.dtype == np.float32
    assert found.shape == (32, 64)
    assert found[3, 5] == 60
    assert found.sum() == 60


def test_a_free_size_has_the_short_side_and_multiples_of_the_divisor(tmp_path: Path) -> None:
    path = write_network(tmp_path / "net.onnx")
    # 48 x 100 by 448 / 48: 448 x 933.3; 933 / 32 = 29.2 and 933 / 14 = 66.6 are rounded up
    assert OnnxDepth(path).input_size(48, 100) == (448, 960)
    assert OnnxDepth(path, divisor=14).input_size(100, 48) == (938, 448)
    assert OnnxDepth(path, short_side=40).input_size(10, 10) == (64, 64)
    fixed = write_network(tmp_path / "fixed.onnx", (1, 3, 96, "w"))
    assert OnnxDepth(fixed).input_size(48, 100) == (96, 960)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": 2}, r"takes one image .* this one takes picture0 .*, picture1"),
        ({"shape": ("n", 3, "w")}, r"a depth network takes one image"),
        ({"shape": (1, 4, 32, 32)}, r"\[1, 4, 32, 32\] has no 3 colour channels"),
        ({"kind": "INT64"}, r"is tensor\(int64\); float, float16 or uint8 can be fed"),
    ],
)
def test_a_network_of_something_else_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = write_network(tmp_path / "net.onnx", **options)
    with pytest.raises(FileMismatchError, match=message):
        OnnxDepth(path)


def test_a_network_that_answers_no_map_is_refused(tmp_path: Path) -> None:
    # three images at once, of which each gets a map
    network = OnnxDepth(write_network(tmp_path / "net.onnx", (3, 3, 32, 32)))
    with pytest.raises(FileMismatchError, match=r"cannot run at 32 x 32 pixels"):
        network(np.zeros((32, 32, 3), dtype=np.uint8))
    row = write_network(tmp_path / "row.onnx", keepdims=False, more_axes=(2,))
    with pytest.raises(FileMismatchError, match=r"\(n, h, w\), this one \(1, 448\)"):
        OnnxDepth(row)(np.zeros((32, 32, 3), dtype=np.uint8))
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.onnx"):
        OnnxDepth(tmp_path / "none.onnx")
    with pytest.raises(FileMismatchError, match="is no file"):
        OnnxDepth(tmp_path)
    segmenter = write_onnx(tmp_path / "best.onnx", dense_outputs(0), describe())
    with pytest.raises(FileMismatchError, match=r"best\.onnx is a segmenter of boxseg"):
        OnnxDepth(segmenter)
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(FileMismatchError, match=r"damaged or no ONNX file"):
        OnnxDepth(tmp_path / "text.onnx")


def test_missing_packages_and_devices_name_their_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_network(tmp_path / "net.onnx")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendMissingError, match=r"--device cuda is not available .* pip install"):
        OnnxDepth(path, device="cuda")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendMissingError, match=r"pip install boxseg\[onnxruntime\]"):
        OnnxDepth(path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BackendMissingError, match="not installed; pip install transformers"):
        TransformersDepth("Intel/dpt-large")


def test_a_network_of_transformers_is_asked_through_its_pipeline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a stand-in with the pipeline's interface: transformers itself is no dependency
    asked: list[tuple[str, str, str]] = []

    def pipeline(task: str, *, model: str, device: str) -> Callable[[Image.Image], dict[str, Any]]:
        asked.append((task, model, device))
        if model == "unknown":
            raise OSError("unknown is not a local folder\nand is not a valid model identifier")
        return lambda image: {"predicted_depth": brightness(np.asarray(image))[None], "depth": None}

    module = ModuleType("transformers")
    module.pipeline = pipeline  # type: ignore[attr-defined]  # a module made by hand
    monkeypatch.setitem(sys.modules, "transformers", module)
    found = TransformersDepth("Intel/dpt-large")(np.full((4, 6, 3), 7, dtype=np.uint8))
    assert asked == [("depth-estimation", "Intel/dpt-large", "cpu")]
    assert found.shape == (4, 6)
    assert (found == 7).all()
    with pytest.raises(
        FileMismatchError, match=r"cannot be loaded: unknown is not a local folder$"
    ):
        TransformersDepth("unknown")


def test_distance_becomes_its_reciprocal() -> None:
    network = inverted(lambda _: np.array([[0.5, 4.0]], dtype=np.float32))
    assert network(np.zeros((1, 2, 3), dtype=np.uint8)).tolist() == [[2.0, 0.25]]
    with pytest.raises(DataError, match="--invert needs distances above 0, the network predicts 0"):
        inverted(brightness)(np.zeros((1, 2, 3), dtype=np.uint8))


# --------------------------------------------------------------------------- maps


@pytest.mark.parametrize(
    # 1 / 4 and 3 / 4 of 255 are 63.75 and 191.25, of 65535 16383.75 and 49151.25
    ("bits", "expected"),
    [(8, [[0, 64], [191, 255]]), (16, [[0, 16384], [49151, 65535]])],
)
def test_a_map_reaches_from_its_least_to_its_greatest_value(
    tmp_path: Path, bits: int, expected: list[list[int]]
) -> None:
    encoded, limits = encode_map(np.array([[-1, 0], [2, 3]], dtype=np.float32), (4, 4), bits)
    (tmp_path / "map.png").write_bytes(encoded)
    with Image.open(tmp_path / "map.png") as image:
        assert np.asarray(image).tolist() == expected
    assert limits == (-1.0, 3.0)
    grey = np.array(expected) / (257 if bits == 16 else 1)
    np.testing.assert_allclose(read_depth(tmp_path / "map.png"), grey, rtol=1e-6)


def test_a_map_is_at_most_half_as_large_as_its_image(tmp_path: Path) -> None:
    # image 3 x 8: at most 2 x 4; columns of 0 and of 1 meet in the middle and stay apart
    values = np.repeat(np.array([[0, 1]], dtype=np.float32), 4, axis=1).repeat(4, axis=0)
    (tmp_path / "map.png").write_bytes(encode_map(values, (3, 8), 8)[0])
    found = read_depth(tmp_path / "map.png")
    assert found.shape == (2, 4)
    assert (np.diff(found, axis=1) >= 0).all()
    assert (found[:, 0] == 0).all()
    assert (found[:, 3] == 255).all()


def test_a_flat_map_is_zero() -> None:
    encoded, limits = encode_map(np.full((2, 2), 5, dtype=np.float32), (4, 4), 8)
    assert limits == (5.0, 5.0)
    assert encode_map(np.zeros((2, 2), dtype=np.float32), (4, 4), 8)[0] == encoded


# --------------------------------------------------------------------------- folders


def test_every_image_gets_a_map_and_training_reads_it(folder: Path) -> None:
    before = json.loads((folder / "train.json").read_text())
    seen: list[tuple[int, int]] = []
    report = make_depth_maps(folder, brightness, progress=lambda *pair: seen.append(pair))
    assert (report.images, report.made, report.kept) == (3, 3, 0)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert report.written == [folder / "train.json", folder / "val.json"]
    assert (report.nearer, report.boxes, report.flat) == (3, 3, 0)
    after = json.loads((folder / "train.json").read_text())
    assert images_of(folder)[0]["depth_file_name"] == "depth/a.png"
    assert images_of(folder)[0]["depth_min_max"] == [0, 255]
    for entry in after["images"]:
        del entry["depth_file_name"], entry["depth_min_max"]
    assert after == before
    geometry = Geometry((32,), 64, flip="off")
    images = CocoBoxes(folder / "train.json", transform=geometry, with_depth=True)
    depth = images[0].depth
    assert depth is not None
    assert depth.shape == (8, 16)
    # the square covers cells 2..5 of both axes
    assert (depth[3:5, 3:5] == 255).all()
    assert (depth[:, 8:] == 0).all()
    assert not list(folder.rglob("*.part"))


def test_maps_that_are_there_stay_unless_asked(folder: Path) -> None:
    Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(folder / "own.png")
    write_split(folder, "val", ["images/c.png"], depth_file_name="own.png")
    val = (folder / "val.json").read_bytes()
    report = make_depth_maps(folder, brightness, bits=8)
    assert (report.made, report.kept) == (2, 1)
    assert (folder / "val.json").read_bytes() == val
    again = make_depth_maps(folder, brightness)
    assert (again.made, again.kept, again.written) == (0, 3, [])
    anew = make_depth_maps(folder, brightness, overwrite=True)
    assert (anew.made, anew.kept) == (3, 0)
    assert images_of(folder, "val")[0]["depth_file_name"] == "depth/c.png"


def test_an_interrupted_run_goes_on_where_it_stopped(folder: Path) -> None:
    before = (folder / "train.json").read_bytes()
    asked = 0

    def predict(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise KeyboardInterrupt
        return brightness(image)

    with pytest.raises(KeyboardInterrupt):
        make_depth_maps(folder, predict)
    assert (folder / "train.json").read_bytes() == before
    report = make_depth_maps(folder, predict)
    assert (report.made, report.kept, asked) == (2, 1, 4)
    names = [entry["depth_file_name"] for entry in images_of(folder)]
    assert names == ["depth/a.png", "depth/b.png"]


def test_an_image_of_both_files_is_made_once_and_names_never_clash(folder: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "a.jpg")
    names = ["images/a.png", "images/a.jpg", "images/b.png"]
    write_split(folder, "train", names)
    write_split(folder, "val", ["images/a.png"])
    # the map that b would get is another image's
    content = json.loads((folder / "val.json").read_text())
    (folder / "depth").mkdir()
    Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(folder / "depth" / "b.png")
    content["images"].append({"id": 9, "file_name": "else.png", "depth_file_name": "depth/b.png"})
    (folder / "val.json").write_text(json.dumps(content))
    report = make_depth_maps(folder, brightness)
    assert (report.images, report.made, report.kept) == (4, 3, 1)
    found = [entry["depth_file_name"] for entry in images_of(folder)]
    assert found == ["depth/a.png", "depth/a.jpg.png", "depth/b.png.png"]
    assert images_of(folder, "val")[0]["depth_file_name"] == "depth/a.png"


def test_maps_keep_the_folders_of_their_images() -> None:
    assert depth_name("images/a.jpg") == "depth/a.png"
    assert depth_name("images/x/a.b.jpg") == "depth/x/a.b.png"
    assert depth_name("x/images/a.jpg") == "depth/x/images/a.png"
    assert depth_name("a.jpg") == "depth/a.png"
    for name in ("../a.jpg", "/etc/a.jpg", "images/../../a.jpg"):
        with pytest.raises(DataError, match="leads out of the data folder"):
            depth_name(name)


def test_an_unreadable_image_is_passed_over_and_told(folder: Path) -> None:
    (folder / "images" / "a.png").write_bytes(b"nothing")
    report = make_depth_maps(folder, brightness)
    assert report.made == 2
    assert len(report.unreadable) == 1
    assert "a.png" in report.unreadable[0]
    assert "depth_file_name" not in images_of(folder)[0]


def test_a_folder_without_images_or_files(folder: Path, tmp_path: Path) -> None:
    write_split(folder, "train", [])
    (folder / "val.json").unlink()
    report = make_depth_maps(folder, brightness)
    assert (report.images, report.made, report.written) == (0, 0, [])
    (folder / "train.json").unlink()
    with pytest.raises(DataError, match=r"holds neither train\.json nor val\.json"):
        make_depth_maps(folder, brightness)


def test_values_that_are_no_numbers_and_flat_maps_are_noticed(folder: Path) -> None:
    def nothing(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.full(image.shape[:2], math.nan, dtype=np.float32)

    with pytest.raises(DataError, match=r"a\.png: the network predicts values that are no numbers"):
        make_depth_maps(folder, nothing)
    flat: DepthPredictor = lambda image: np.ones(image.shape[:2], dtype=np.float32)  # noqa: E731
    assert make_depth_maps(folder, flat).flat == 3


def test_a_link_to_an_annotation_file_stays_a_link(folder: Path) -> None:
    (folder / "val.json").rename(folder / "elsewhere.json")
    (folder / "val.json").symlink_to("elsewhere.json")
    make_depth_maps(folder, brightness)
    assert (folder / "val.json").is_symlink()
    assert images_of(folder, "elsewhere")[0]["depth_file_name"] == "depth/c.png"


# --------------------------------------------------------------------------- command


def invoke(*words: object) -> Result:
    return CliRunner().invoke(data, ["depth", *map(str, words)])


def test_the_command_says_what_it_made_and_whether_it_looks_like_depth(folder: Path) -> None:
    network = write_network(folder / "net.onnx")
    result = invoke(folder, "--predictor", network, "--input-range", "0..255", "--out-bits", "8")
    assert result.exit_code == 0, result.output
    assert "3 images; 3 depth maps made, 0 there before" in result.stdout
    assert "100% of 3 boxes nearer than what surrounds them\n" in result.stdout
    with Image.open(folder / "depth" / "a.png") as image:
        assert (image.mode, image.size) == ("L", (32, 16))


def test_a_map_that_is_the_wrong_way_round_is_told(folder: Path) -> None:
    for name in ("a", "b", "c"):
        picture = np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8)
        picture[8:24, 8:24] = 30
        Image.fromarray(picture).save(folder / "images" / f"{name}.png")
    network = write_network(folder / "net.onnx")
    words = (folder, "--predictor", network, "--input-range", "0..255", "--imgsz", 32)
    assert "0% of 3 boxes nearer" in invoke(*words).stdout
    turned = invoke(*words, "--invert", "--overwrite").stdout
    assert "100% of 3 boxes nearer than what surrounds them\n" in turned


def test_unreadable_images_end_the_command_with_an_error(folder: Path) -> None:
    (folder / "images" / "b.png").unlink()
    result = invoke(folder, "--predictor", write_network(folder / "net.onnx"))
    assert isinstance(result.exception, DataError)
    assert "1 of 3 images without a depth map" in str(result.exception)
    assert images_of(folder)[0]["depth_file_name"] == "depth/a.png"


def test_options_that_do_not_apply_are_refused(folder: Path) -> None:
    result = invoke(folder, "--predictor", "transformers:x", "--input-range", "0..1")
    assert result.exit_code == 2
    assert "--input-range is for ONNX files" in result.output
    missing = invoke(folder / "none", "--predictor", "x.onnx")
    assert isinstance(missing.exception, DataError)


def test_a_real_network_repeats_the_maps_that_came_with_the_data(
    data_root: Path, tmp_path: Path
) -> None:
    # the given maps average the network with its mirror image, so they are close, not equal
    content = json.loads((data_root / "pennfudan" / "val.json").read_text())
    entry = content["images"][0]
    given = read_depth(data_root / "pennfudan" / entry.pop("depth_file_name"))
    (tmp_path / "images").symlink_to(data_root / "pennfudan" / "images")
    (tmp_path / "val.json").write_text(json.dumps({**content, "images": [entry]}))
    weights = data_root / "weights" / "tcsmallnet_depth.onnx"
    result = invoke(tmp_path, "--predictor", weights, "--input-range", "0..255")
    assert result.exit_code == 0, result.output
    found = read_depth(tmp_path / images_of(tmp_path, "val")[0]["depth_file_name"])
    assert found.shape == given.shape
    assert np.corrcoef(found.ravel(), given.ravel())[0, 1] > 0.99
