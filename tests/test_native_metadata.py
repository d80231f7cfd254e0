"""The C reader of metadata against the Python one."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deployed import describe
from tools import NATIVE, RUNTIME, SOURCES, require, run

from boxseg.errors import FileMismatchError
from boxseg.runtime.metadata import FINAL_RULES, PRECISIONS, SCORE0_RULES, Metadata
from boxseg.runtime.preprocess import Fit

Reader = Callable[[str], tuple[int, str]]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Return a function from JSON text to exit code and output of the C reader."""
    require("gcc")
    program = tmp_path_factory.mktemp("metadata") / "print_metadata"
    flags = ["-std=c11", "-O1", "-ffp-contract=off", f"-I{RUNTIME}/include"]
    run("gcc", *flags, NATIVE / "print_metadata.c", *SOURCES, "-lm", "-o", program)

    def call(text: str) -> tuple[int, str]:
        done = subprocess.run([program], input=text.encode(), capture_output=True)
        return done.returncode, done.stdout.decode()

    return call


def _expected(values: dict[str, Any]) -> str:
    """What print_metadata says about a description, by the Python reader."""
    meta = Metadata.from_dict(values)
    head = meta.head
    size = (
        f"0 {meta.imgsz.height} {meta.imgsz.width} 0 0"
        if isinstance(meta.imgsz, Fit)
        else f"1 0 0 {meta.imgsz.short} {meta.imgsz.long}"
    )
    lines = [
        "form 0",
        f"precision {PRECISIONS.index(meta.precision)}",
        f"size {size} 32",
        f"padding {' '.join(map(str, meta.padding))}",
        f"strides {' '.join(map(str, meta.strides))}",
        f"coordinate_scales {' '.join(f'{scale:.9g}' for scale in head.coordinate_scales)}",
        f"layer_widths {' '.join(map(str, head.layer_widths))}",
        f"mask_channels {head.mask_channels}",
        f"mask_stride {head.mask_stride}",
        f"relative_coordinates {int(head.relative_coordinates)}",
        f"score0 {SCORE0_RULES.index(meta.score0)}",
        f"final_score {FINAL_RULES.index(meta.final_score)}",
        f"candidate_score {meta.candidate_score:.17g}",
        f"nms_iou {meta.nms_iou:.17g}",
        f"candidates {meta.candidates}",
        f"max_det {meta.max_det}",
        *(f"class {i} {name}" for i, name in zip(meta.category_ids, meta.classes, strict=True)),
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"imgsz": {"rule": "short_long", "short": 320, "long": 640}},
        {"scores__score0": "cls", "scores__final": "sqrt_score0_mask", "precision": "int8"},
        {"head__relative_coordinates": False, "head__layer_widths": [1]},
        {"head__layer_widths": [8, 8, 8, 8, 8, 8, 8, 1], "nms__max_det": 1000},
        {"nms__iou": 1, "scores__candidate_score": 0},
        {"classes": ["ä", "日本", '😀 "quoted" \\ /\t'], "category_ids": [0, 2**53, 5]},
        {"later": {"of": [None, True, -1.5e300, {"x": []}]}, "letterbox__later": 1},
    ],
)
def test_c_reads_what_python_reads(changes: dict[str, Any], read: Reader) -> None:
    values = describe(**changes)
    for text in (
        json.dumps(values),
        json.dumps(values, indent=3),
        json.dumps(values, ensure_ascii=False, separators=(",", ":")),
    ):
        assert read(text) == (0, _expected(values))


def test_numbers_are_the_nearest_doubles(read: Reader) -> None:
    rng = random.Random(4)
    texts = ["0.1", "1e-5", "5E-1", "0.999999999999999944", "123456789e-9", "0.30000000000000004"]
    texts += [repr(rng.random()) for _ in range(60)]
    texts += [f"{rng.random():.18f}" for _ in range(30)]
    # next to the middle between 1/2 and the double above it, 0.50000000000000005551...
    texts += ["0.5000000000000000555", "0.5000000000000000556"]
    for text in texts:
        values = json.dumps(describe()).replace('"iou": 0.6', f'"iou": {text}')
        assert f"\nnms_iou {float(text):.17g}\n" in read(values)[1]


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("format_version", {"format_version": 2}),
    ("task", {"task": "detection"}),
    ("form", {"form": "sparse"}),
    ("precision", {"precision": "fp8"}),
    ("input.layout", {"input__layout": "NCHW"}),
    ("letterbox.side", {"letterbox__side": "centre"}),
    ("letterbox.divisor", {"letterbox__divisor": 16}),
    ("letterbox.padding", {"letterbox__padding": [1, 2]}),
    ("letterbox.padding", {"letterbox__padding": [1, 2, 256]}),
    ("letterbox.padding", {"letterbox__padding": [1, 2, 3, 4]}),
    ("classes", {"classes": [], "category_ids": []}),
    ("classes", {"classes": ["a", 2, "c"]}),
    ("category_ids", {"category_ids": [1, 2]}),
    ("category_ids", {"category_ids": [1, 2, 2**53 + 1]}),
    ("category_ids", {"category_ids": [1, 2, -3]}),
    ("imgsz.rule", {"imgsz": {"rule": "stretch"}}),
    ("imgsz.height", {"imgsz": {"rule": "fit", "height": 100, "width": 160}}),
    ("imgsz.width", {"imgsz": {"rule": "fit", "height": 96, "width": 2**40}}),
    ("imgsz.short", {"imgsz": {"rule": "short_long", "short": 640, "long": 320}}),
    ("strides", {"strides": [8, 16, 0, 64, 128]}),
    ("strides", {"strides": list(range(1, 10))}),
    ("head.coordinate_scales", {"head__coordinate_scales": [64]}),
    ("head.coordinate_scales", {"head__coordinate_scales": [64, 128, 0, 512, 1024]}),
    ("head.layer_widths", {"head__layer_widths": [8, 2]}),
    ("head.layer_widths", {"head__layer_widths": [1] * 9}),
    ("head.layer_widths", {"head__layer_widths": 8}),
    ("head.mask_channels", {"head__mask_channels": 4.0}),
    ("head.relative_coordinates", {"head__relative_coordinates": 1}),
    ("scores.candidate_score", {"scores__candidate_score": 1.0}),
    ("scores.candidate_score", {"scores__candidate_score": -0.1}),
    ("nms.iou", {"nms__iou": 1.5}),
    ("nms.iou", {"nms__iou": "0.5"}),
    ("nms.max_det", {"nms__max_det": 1001}),
]


@pytest.mark.parametrize(("key", "changes"), WRONG)
def test_both_readers_refuse_and_name_the_key(
    key: str, changes: dict[str, Any], read: Reader
) -> None:
    values = describe(**changes)
    assert read(json.dumps(values)) == (1, f"BXS_ERROR_METADATA {key}\n")
    with pytest.raises(FileMismatchError):
        Metadata.from_dict(values)


def test_a_missing_key_is_named(read: Reader) -> None:
    values = describe()
    del values["nms"]["iou"]
    assert read(json.dumps(values))[1] == "BXS_ERROR_METADATA nms.iou\n"


def test_a_part_that_is_no_object_misses_its_keys(read: Reader) -> None:
    assert read(json.dumps(describe(nms=[1])))[1] == "BXS_ERROR_METADATA nms.iou\n"


def test_of_two_equal_keys_the_last_counts(read: Reader) -> None:
    text = json.dumps(describe())
    assert (
        "\nnms_iou 0.25\n"
        in read(text[:-1] + ', "n\\u006ds": {"iou": 0.25, "candidates": 9, "max_det": 9}}')[1]
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        '{"a"}',
        '{"a": }',
        "{'a': 1}",
        '{"a": 1,}',
        "[1, 2",
        "[1 2]",
        '"\\x"',
        '"\\u12"',
        '"a\nb"',
        "01",
        "1.",
        ".5",
        "1e",
        "+1",
        "nul",
        "NaN",
        "1 2",
        "{}}",
        "[" * 100_000,
        "[" * 65 + "]" * 65,
    ],
)
def test_what_is_not_json_is_refused(text: str, read: Reader) -> None:
    assert read(text) == (1, "BXS_ERROR_METADATA json\n")


def test_any_end_of_the_text_is_refused(read: Reader) -> None:
    text = json.dumps(describe())
    for end in range(0, len(text), 37):
        assert read(text[:end])[0] == 1


def test_half_a_surrogate_pair_becomes_the_replacement_character(read: Reader) -> None:
    text = json.dumps(describe()).replace('"star"', '"\\ud83d-\\ude00\\ud83d\\ud83d\\ude00"')
    assert "class 3 �-��😀\n" in read(text)[1]


def test_a_locale_with_a_comma_changes_nothing() -> None:
    # strtod and its kin would stop at the point in a program with a German locale
    text = Path(RUNTIME / "csrc/metadata.c").read_text()
    assert not any(word in text for word in ("strtod(", "atof(", "sscanf("))
