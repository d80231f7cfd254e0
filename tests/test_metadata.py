"""The description inside a deployed file."""

import copy
import json
from typing import Any

import pytest
from deployed import describe

from boxseg.errors import FileMismatchError
from boxseg.runtime.metadata import Batch, Metadata
from boxseg.runtime.preprocess import Fit, ShortLong


def _changed(path: str, value: Any) -> dict[str, Any]:
    """Replace one key of the dict; a value of ... removes it."""
    values = copy.deepcopy(describe())
    section = values
    *parents, key = path.split(".")
    for parent in parents:
        section = section[parent]
    if value is ...:
        del section[key]
    else:
        section[key] = value
    return values


def test_a_description_returns_unchanged() -> None:
    assert Metadata.from_dict(describe()).to_dict() == describe()
    text = json.dumps(describe())
    assert json.loads(json.dumps(Metadata.from_json(text).to_dict())) == describe()


def test_the_fields_are_typed() -> None:
    metadata = Metadata.from_dict(describe())
    assert metadata.classes == ("star", "ring", "blob")
    assert metadata.category_ids == (3, 1, 7)
    assert metadata.imgsz == Fit(96, 160)
    assert metadata.head.layer_widths == (6, 1)
    assert metadata.padding == (124, 116, 104)


def test_a_size_may_follow_the_frame() -> None:
    size = {"rule": "short_long", "short": 320, "long": 640}
    metadata = Metadata.from_dict(describe(imgsz=size))
    assert metadata.imgsz == ShortLong(320, 640)
    assert metadata.to_dict()["imgsz"] == size


def test_a_file_of_before_batches_takes_one_image() -> None:
    assert Metadata.from_dict(_changed("batch", ...)).batch == Batch(1, 1, 1)
    several = Metadata.from_dict(_changed("batch", {"min": 2, "opt": 4, "max": 8}))
    assert several.batch == Batch(least=2, best=4, most=8)
    assert several.to_dict()["batch"] == {"min": 2, "opt": 4, "max": 8}


def test_keys_of_later_additions_are_ignored() -> None:
    assert Metadata.from_dict(_changed("later", 1)) == Metadata.from_dict(describe())


def test_what_the_network_writes_is_read() -> None:
    pytest.importorskip("torch")
    from boxseg.config import ModelConfig
    from boxseg.inference import describe as describe_config

    written = describe_config(ModelConfig(classes=("a", "b"), category_ids=(1, 9)))
    assert Metadata.from_dict(written).to_dict() == written


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format_version", 2, "format_version is 2, this version of boxseg reads 1"),
        ("format_version", "1", "format_version must be an integer"),
        ("format_version", ..., "metadata.format_version is missing"),
        ("form", "sparse", "metadata.form must be dense or topk or graph, got 'sparse'"),
        ("batch.max", 0, r"metadata.batch.max must be an integer in 1\.\.65536, got 0"),
        ("batch.opt", 2, r"metadata.batch.opt must be an integer in 1\.\.1, got 2"),
        ("batch.min", 2, r"metadata.batch.min must be an integer in 1\.\.1, got 2"),
        ("task", "detection", "metadata.task"),
        ("classes", [], "metadata.classes must be a list that is not empty"),
        ("classes", [1, 2, 3], "metadata.classes must be a list of strings"),
        ("category_ids", [1, 2], r"metadata.category_ids must be a list of 3, got \[1, 2\]"),
        ("category_ids", [1, 2, True], "metadata.category_ids must be a list of integers"),
        ("imgsz.rule", "stretch", "metadata.imgsz.rule must be fit or short_long"),
        ("imgsz.height", 100, "metadata.imgsz.height must be a multiple of 32, got 100"),
        ("imgsz", "96x160", "metadata.imgsz must be a mapping, got '96x160'"),
        ("input.layout", "NCHW", "metadata.input.layout must be NHWC, got 'NCHW'"),
        ("input.colour", "BGR", "metadata.input.colour must be RGB"),
        ("letterbox.side", "centre", "metadata.letterbox.side must be right_bottom"),
        ("letterbox.padding", [1, 2, 256], r"integers in 0\.\.255"),
        ("strides", [8, 0, 32, 64, 128], r"metadata.strides must be .* 1\.\.4096"),
        (
            "head.coordinate_scales",
            [64, 128],
            "metadata.head.coordinate_scales must be a list of 5",
        ),
        ("head.coordinate_scales", [0, 1, 1, 1, 1], "positive numbers"),
        ("head.coordinate_scales", [1e-300, 1, 1, 1, 1], "positive numbers"),
        ("head.layer_widths", [6, 2], "the last of them 1"),
        ("head.relative_coordinates", 1, "true or false"),
        ("scores.score0", "max", "sqrt_cls_quality or cls, got 'max'"),
        ("scores.candidate_score", 1.0, r"a number in \[0, 1\), got 1.0"),
        ("scores.candidate_score", float("nan"), "got nan"),
        ("nms.iou", "0.6", r"metadata.nms.iou must be a number in \[0, 1\], got '0.6'"),
        ("nms.max_det", 1001, r"metadata.nms.max_det must be an integer in 1\.\.1000"),
        ("precision", "fp8", "metadata.precision must be fp32 or fp16"),
        ("weights", None, "metadata.weights must be a string, got None"),
        ("licence", [], "metadata.licence must be a mapping"),
    ],
)
def test_every_wrong_value_is_named_in_one_line(path: str, value: Any, message: str) -> None:
    with pytest.raises(FileMismatchError, match=message) as caught:
        Metadata.from_dict(_changed(path, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '"boxseg"', "[" * 100_000])
def test_text_that_is_no_description_is_refused(text: str) -> None:
    with pytest.raises(FileMismatchError, match="metadata"):
        Metadata.from_json(text)


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(FileMismatchError) as caught:
        Metadata.from_dict(_changed("form", "x" * 1000))
    assert len(str(caught.value)) < 120
