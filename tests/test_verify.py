"""The parity gate: what it lets through, what it stops, and what it says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from boxseg.errors import DataError, ParityError
from boxseg.export.verify import (
    ParityReport,
    compare_tensors,
    drawn_samples,
    real_samples,
    release,
)
from boxseg.runtime.agreement import DetectionDifference, box_iou, match_detections

SHAPES = {
    "class_logits": (1, 5, 2),
    "quality_logits": (1, 5),
    "boxes": (1, 5, 4),
    "parameters": (1, 3, 5),
    "mask_features": (1, 2, 4, 4),
}
BLANK = {"one": np.zeros((1, 32, 32, 3), np.uint8)}


class Fixed:
    """A backend that always answers the same."""

    name = "fixed"

    def __init__(self, **changed: NDArray[np.float32]) -> None:
        generator = np.random.default_rng(0)
        self.outputs = {
            name: generator.uniform(-1, 1, shape).astype(np.float32)
            for name, shape in SHAPES.items()
        }
        self.outputs.update(changed)

    def run(self, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return {name: value.copy() for name, value in self.outputs.items()}


def changed(name: str, index: tuple[int, ...], by: float) -> Fixed:
    """Return a backend of which one number differs."""
    backend = Fixed()
    backend.outputs[name][index] += np.float32(by)
    return backend


def test_equal_outputs_differ_by_nothing() -> None:
    differences = compare_tensors(Fixed(), Fixed(), BLANK)
    assert [part.name for part in differences] == list(SHAPES)
    assert all(part.difference == 0.0 and part.passed for part in differences)


def test_the_worst_number_is_named_with_both_values() -> None:
    found = compare_tensors(Fixed(), changed("parameters", (0, 2, 1), 0.5), BLANK)
    bad = [part for part in found if not part.passed]
    assert [part.name for part in bad] == ["parameters"]
    assert bad[0].difference == pytest.approx(0.5, abs=1e-6)
    assert "one: parameters[0, 2, 1] is " in bad[0].where
    assert ", torch has " in bad[0].where


def test_a_difference_within_the_tolerance_passes() -> None:
    # Boxes may differ by 0.02 pixels, logits by 0.0001 where all are at most 1.
    for name, small, large in (("boxes", 0.015, 0.03), ("class_logits", 5e-5, 2e-4)):
        index = (0,) * len(SHAPES[name])
        ok = compare_tensors(Fixed(), changed(name, index, small), BLANK)
        bad = compare_tensors(Fixed(), changed(name, index, large), BLANK)
        assert all(part.passed for part in ok)
        assert [part.name for part in bad if not part.passed] == [name]


def test_not_a_number_never_passes() -> None:
    found = compare_tensors(Fixed(), changed("quality_logits", (0, 0), float("nan")), BLANK)
    bad = [part for part in found if not part.passed]
    assert [part.name for part in bad] == ["quality_logits"]
    assert bad[0].difference == float("inf")


def test_another_shape_never_passes() -> None:
    found = compare_tensors(Fixed(), Fixed(boxes=np.zeros((1, 4, 4), np.float32)), BLANK)
    bad = [part for part in found if not part.passed]
    assert "shape (1, 4, 4), torch has (1, 5, 4)" in bad[0].where


def test_a_missing_output_is_named() -> None:
    backend = Fixed()
    del backend.outputs["parameters"]
    with pytest.raises(ParityError, match="fixed gives no output parameters"):
        compare_tensors(Fixed(), backend, BLANK)


def pairs(*rows: tuple[float, int, int, int]) -> Fixed:
    """A backend of the form topk; each row is score, label, x and the one parameter."""
    scores, labels, x, values = (np.array(column) for column in zip(*rows, strict=True))
    backend = Fixed()
    backend.outputs = {
        "scores": scores[None].astype(np.float32),
        "labels": labels[None].astype(np.int32),
        "locations": np.stack([x, 0 * x], axis=1)[None].astype(np.float32),
        "levels": np.zeros((1, len(rows)), np.int32),
        "parameters": values[None, :, None].astype(np.float32),
    }
    return backend


def failing(first: Fixed, second: Fixed) -> list[str]:
    return [part.name for part in compare_tensors(first, second, BLANK) if not part.passed]


def test_rows_of_the_same_pair_are_compared_in_any_order() -> None:
    truth = pairs((0.9, 0, 4, 5), (0.8, 0, 12, 6), (0.8, 1, 4, 7))
    assert failing(truth, pairs((0.9, 0, 4, 5), (0.8, 1, 4, 7), (0.8, 0, 12, 6))) == []
    assert failing(truth, pairs((0.9, 0, 4, 5), (0.8, 1, 4, 6), (0.8, 0, 12, 7))) == ["parameters"]


def test_rounding_may_choose_the_last_pair_but_no_other() -> None:
    truth = pairs((0.9, 0, 4, 5), (0.5, 0, 12, 6))
    assert failing(truth, pairs((0.9, 0, 4, 5), (0.5, 1, 20, 9))) == []
    # the pair at x = 12 is missing, although it scores .2 more than the last row
    assert failing(truth, pairs((0.9, 0, 4, 5), (0.3, 1, 20, 9))) == ["scores"]
    # the best pair got another label
    assert failing(truth, pairs((0.9, 1, 4, 5), (0.5, 0, 12, 6))) == ["scores"]


def test_box_iou_of_known_pairs() -> None:
    first = np.array([[0, 0, 4, 4], [0, 0, 0, 0]], np.float32)
    second = np.array([[2, 0, 6, 4], [0, 0, 4, 4], [9, 9, 10, 10]], np.float32)
    # 4x4 and 4x4 shifted by 2: intersection 8, union 24; an empty box overlaps nothing
    expected = np.array([[1 / 3, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(box_iou(first, second), expected)
    assert box_iou(first[:0], second).shape == (0, 3)


@dataclass
class Found:
    """Stands in for Detections: square masks that fill their boxes."""

    xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    spoil: int = 0
    """Pixels removed from every mask."""

    def dense(self) -> NDArray[np.bool_]:
        masks = np.zeros((len(self.scores), 64, 64), bool)
        for mask, (x1, y1, x2, y2) in zip(masks, self.xyxy.astype(int), strict=True):
            mask[y1:y2, x1:x2] = True
            mask[y1, x1 : x1 + self.spoil] = False
        return masks


def two(**changes: object) -> Found:
    """Return a star of 20 x 20 and a ring of 10 x 10 pixels."""
    fields: dict[str, object] = {
        "xyxy": np.array([[0, 0, 20, 20], [30, 30, 40, 40]], np.float32),
        "scores": np.array([0.9, 0.5], np.float32),
        "labels": np.array([0, 1]),
    }
    fields.update(changes)
    return Found(**fields)  # type: ignore[arg-type]  # the changes fit by their names


def match(expected: Found, found: Found, full: bool = False) -> DetectionDifference:
    return match_detections("one", expected, found, cut=0.2, full=full)


def test_the_same_detections_match_in_any_order() -> None:
    answer = two()
    answer.xyxy, answer.scores = answer.xyxy[::-1], answer.scores[::-1]
    answer.labels = answer.labels[::-1]
    result = match(two(), answer)
    assert (result.expected, result.matched, result.passed) == (2, 2, True)
    assert (result.score, result.box_iou, result.mask_iou) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("answer", "matched"),
    [
        (two(labels=np.array([0, 0])), 1),
        # 0.002 off
        (two(scores=np.array([0.9, 0.502], np.float32)), 1),
        # shifted by 0.1 of 10 pixels: intersection 99, union 101, IoU 0.980
        (two(xyxy=np.array([[0, 0, 20, 20], [30.1, 30, 40.1, 40]], np.float32)), 1),
        # 395 of 400 and 95 of 100 mask pixels remain: IoU 0.9875 and 0.95
        (two(spoil=5), 0),
    ],
    ids=["class", "score", "box", "mask"],
)
def test_a_different_ring_has_no_partner(answer: Found, matched: int) -> None:
    result = match(two(), answer)
    assert (result.expected, result.matched, result.passed) == (2, matched, False)
    assert any("class 1 0.500 at [30.0, 30.0, 40.0, 40.0]" in line for line in result.missing)


def test_a_few_edge_pixels_of_a_small_mask_are_forgiven() -> None:
    assert match(two(), two(spoil=4)).passed


def test_a_detection_at_the_cut_may_be_absent() -> None:
    weak = two(scores=np.array([0.9, 0.2005], np.float32))
    strong_only = Found(two().xyxy[:1], two().scores[:1], two().labels[:1])
    result = match(weak, strong_only)
    assert (result.expected, result.passed) == (1, True)


def test_the_last_of_a_full_list_may_be_absent() -> None:
    strong_only = Found(two().xyxy[:1], two().scores[:1], two().labels[:1])
    assert not match(two(), strong_only).passed
    assert match(two(), strong_only, full=True).passed


def test_nothing_matches_nothing() -> None:
    none = Found(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    result = match(none, none)
    assert (result.expected, result.matched, result.passed) == (0, 0, True)


def report(backend: Fixed) -> ParityReport:
    return ParityReport(
        file="best.onnx",
        against="best.pt",
        backend="fixed",
        samples="1 image",
        images=["one"],
        tensors=compare_tensors(Fixed(), backend, BLANK),
        detections=DetectionDifference(expected=0, matched=0),
    )


def test_a_file_that_passes_gets_its_name(tmp_path: Path) -> None:
    temporary, final = tmp_path / "best.tmp.onnx", tmp_path / "best.onnx"
    temporary.write_text("new")
    final.write_text("old")
    release(temporary, final, report(Fixed()))
    assert final.read_text() == "new"
    assert not temporary.exists()


def test_a_folder_that_passes_replaces_the_old_one(tmp_path: Path) -> None:
    temporary, final = tmp_path / "t_openvino_model", tmp_path / "best_openvino_model"
    for folder, text in ((temporary, "new"), (final, "old")):
        folder.mkdir()
        (folder / "best.xml").write_text(text)
    release(temporary, final, report(Fixed()))
    assert (final / "best.xml").read_text() == "new"
    assert not temporary.exists()


def test_a_file_that_fails_is_quarantined_and_the_old_one_stays(tmp_path: Path) -> None:
    temporary, final = tmp_path / "best.tmp.onnx", tmp_path / "best.onnx"
    temporary.write_text("new")
    final.write_text("old")
    bad = report(changed("boxes", (0, 4, 3), 2.0))
    with pytest.raises(ParityError, match=r"first divergent tensor boxes: one: boxes\[0, 4, 3\]"):
        release(temporary, final, bad)
    assert final.read_text() == "old"
    assert (tmp_path / "best.onnx.failed").read_text() == "new"
    assert not temporary.exists()


def test_a_report_says_what_was_compared() -> None:
    text = "\n".join(report(Fixed()).lines())
    assert "parity of best.onnx (fixed) with best.pt, on 1 image" in text
    assert "1x5x4" in text
    assert json.loads(json.dumps(report(Fixed()).as_dict()))["passed"] is True


def test_drawn_images_are_the_same_for_the_same_seed() -> None:
    first, second = drawn_samples(3, height=64, width=96), drawn_samples(3, height=64, width=96)
    assert list(first.frames) == ["drawn 0", "drawn 1"]
    for name, frame in first.frames.items():
        assert frame.shape == (64, 96, 3)
        np.testing.assert_array_equal(frame, second.frames[name])
    other = drawn_samples(4, height=64, width=96)
    assert (other.frames["drawn 0"] != first.frames["drawn 0"]).any()


def test_real_images_are_spread_over_the_validation_file(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    entries = []
    for number in range(9):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / f"images/{number}.png")
        entries.append({"id": number, "file_name": f"images/{number}.png"})
    (tmp_path / "val.json").write_text(json.dumps({"images": entries}))
    samples = real_samples(tmp_path, 3)
    assert list(samples.frames) == ["0.png", "3.png", "6.png"]
    assert samples.source == f"3 of 9 images of {tmp_path}"
    assert list(real_samples(tmp_path / "images", 2).frames) == ["0.png", "4.png"]
    assert list(real_samples(tmp_path / "images" / "5.png").frames) == ["5.png"]


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"images": [{}]}', '{"images": []}', pytest.param("[" * 99_999, id="deep")],
)
def test_data_without_usable_images_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "val.json").write_text(content)
    with pytest.raises(DataError, match=str(tmp_path)):
        real_samples(tmp_path)
