"""Texts without the paths of the machine."""

from pathlib import Path

import pytest

from boxseg.export.portable import portable, portable_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4 of 9 images of /home/ann/data/val.json", "4 of 9 images of val.json"),
        ("/root/run/best.pt: fp32", "best.pt: fp32"),
        ("in '/a/b c'", "in 'b c'"),
        ("~/runs/best.pt and ~ann/x", "best.pt and x"),
        ("$BOXSEG_DATA/weights/a.pth", "$BOXSEG_DATA/weights/a.pth"),
        ("runs/one/best.pt", "runs/one/best.pt"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("score0 / 2, either/or", "score0 / 2, either/or"),
        ("", ""),
    ],
)
def test_absolute_paths_lose_their_folders(text: str, expected: str) -> None:
    assert portable_text(text, [Path("/a/b c")]) == expected


def test_known_paths_are_shortened_where_they_are_relative(tmp_path: Path) -> None:
    assert portable_text("wrote runs/one/best.onnx", [Path("runs/one/best.onnx")]) == (
        "wrote best.onnx"
    )


def test_nested_values_keep_their_kinds() -> None:
    value = {"/x/a": ["/y/b", 1, 2.5, None, True, ("/z/c",)]}
    assert portable(value) == {"a": ["b", 1, 2.5, None, True, ["c"]]}
