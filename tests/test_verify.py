"""The parity gate: what it lets through, what it stops, and what it says."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from deployed import describe
from numpy.typing import NDArray
from PIL import Image

from boxseg.errors import DataError, ParityError
from boxseg.export.verify import (
    GATES,
    ParityReport,
    Seen,
    candidate_places,
    compare_tensors,
    drawn_samples,
    real_samples,
    release,
)
from boxseg.runtime.agreement import DetectionDifference, box_iou, match_detections
from boxseg.runtime.metadata import Metadata

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


# ------------------------------------------------------------------------- what a user can see

# 32 x 32 pixels: locations at x, y = 8, 8; 24, 8; 8, 24; 24, 24 and 16, 16; 4 x 4 cells
STATED = Metadata.from_dict(
    describe(scores__candidate_score=0.25, strides=[16, 32], head__coordinate_scales=[64, 128])
)
WHOLE = Seen(STATED, {"one": np.array([[32, 32]])}, True)
LEFT = Seen(STATED, {"one": np.array([[32, 16]])}, True)


def test_a_place_counts_where_its_best_class_passes_with_the_quality() -> None:
    nan = float("nan")
    # a logit of 0 is 1/2, of -log 3 = -1.0986 is 1/4
    logits = [[0.0, -9.0], [-9.0, 0.0], [-1.0986, -9.0], [0.0, 0.0], [nan, -9.0], [800.0, 0.0]]
    quality = [0.0, -1.0986, -1.0986, -9.0, 0.0, -800.0]
    outputs = {
        "class_logits": np.array([logits], np.float32),
        "quality_logits": np.array([quality], np.float32),
    }
    # sqrt(1/4) = .5, sqrt(1/8) = .354, sqrt(1/16) = .25 (not above it), sqrt(.5 * .0001) = .008,
    # no number, sqrt(1 * 0) = 0
    found = candidate_places(outputs, Metadata.from_dict(describe(scores__candidate_score=0.251)))
    assert found.tolist() == [[True, True, False, False, True, False]]
    without_quality = describe(scores__candidate_score=0.251, scores__score0="cls")
    found = candidate_places(outputs, Metadata.from_dict(without_quality))
    # 1/2, 1/2, 1/4, 1/2, no number, 1
    assert found.tolist() == [[True, True, False, True, True, True]]
    none = {"class_logits": np.zeros((1, 0, 2)), "quality_logits": np.zeros((1, 0))}
    assert candidate_places(none, STATED).shape == (1, 0)
    scores = {"scores": np.array([[0.9, 0.25, 0.251]], np.float32)}
    assert candidate_places(scores, STATED).tolist() == [[True, False, True]]


def scored(*places: int) -> Fixed:
    """A backend that finds a class at some of the five locations and nothing elsewhere."""
    backend = Fixed(
        class_logits=np.full((1, 5, 2), -9, np.float32), quality_logits=np.zeros((1, 5), np.float32)
    )
    backend.outputs["class_logits"][0, list(places), 1] = 0.0  # sqrt(1/2 * 1/2) = 1/2
    return backend


def wrong(backend: Fixed, name: str, index: tuple[int, ...], by: float) -> Fixed:
    backend.outputs[name][index] += np.float32(by)
    return backend


INT8 = GATES["int8"].tensors


def failing_int8(first: Fixed, second: Fixed, seen: Seen = WHOLE) -> list[str]:
    parts = compare_tensors(first, second, BLANK, INT8, seen)
    return [part.name for part in parts if not part.passed]


def test_a_box_that_nobody_can_see_may_be_anywhere_in_int8_and_no_other() -> None:
    assert failing_int8(scored(1), wrong(scored(1), "boxes", (0, 3, 2), 60.0)) == []
    assert failing_int8(scored(1), wrong(scored(1), "boxes", (0, 1, 2), 60.0)) == ["boxes"]
    # a place that only one of the two takes for a candidate; a logit may be 40 % of 9 off
    weak, strong = scored(1), scored(1)
    weak.outputs["class_logits"][0, 3, 1] = -3.0  # sqrt(.047 * .5) = .15
    strong.outputs["class_logits"][0, 3, 1] = -1.0  # sqrt(.269 * .5) = .37
    far = (0, 3, 2)
    assert failing_int8(weak, wrong(strong, "boxes", far, 60.0)) == ["boxes"]
    strong.outputs["boxes"][far] -= 60
    assert failing_int8(strong, wrong(weak, "boxes", far, 60.0)) == ["boxes"]


@pytest.mark.parametrize(
    ("name", "seen", "unseen"),
    [("quality_logits", (0, 1), (0, 3)), ("parameters", (0, 2, 1), (0, 2, 3))],
)
def test_quality_and_parameters_count_where_a_candidate_can_be(
    name: str, seen: tuple[int, ...], unseen: tuple[int, ...]
) -> None:
    # 4 is more than 40 % of the largest; a quality of -4 makes no candidate
    assert failing_int8(scored(1), wrong(scored(1), name, seen, -4.0)) == [name]
    assert failing_int8(scored(1), wrong(scored(1), name, unseen, -4.0)) == []


def test_padding_counts_for_classes_alone() -> None:
    # the left half shows the frame: x = 24 and 16 are padding, so is the fourth column of cells,
    # while the third is read by the pixels of the second
    def failing_left(name: str, index: tuple[int, ...], by: float) -> list[str]:
        return failing_int8(scored(0, 1), wrong(scored(0, 1), name, index, by), LEFT)

    assert failing_left("boxes", (0, 0, 2), 60.0) == ["boxes"]
    assert failing_left("boxes", (0, 1, 2), 60.0) == []
    assert failing_left("mask_features", (0, 1, 3, 2), 4.0) == ["mask_features"]
    assert failing_left("mask_features", (0, 1, 3, 3), 4.0) == []
    assert failing_left("class_logits", (0, 3, 0), -5.0) == ["class_logits"]
    whole = wrong(scored(0, 1), "mask_features", (0, 1, 3, 3), 4.0)
    assert failing_int8(scored(0, 1), whole) == ["mask_features"]


def test_masks_of_pairs_count_in_the_frame() -> None:
    def masks(*changed: tuple[int, int]) -> Fixed:
        """Two pairs at x = 4 and 12 with masks of 4 x 4 cells, some of them wrong."""
        backend = pairs((0.9, 0, 4, 5), (0.2, 0, 12, 6))
        del backend.outputs["parameters"]
        backend.outputs["mask_logits"] = np.ones((1, 2, 4, 4), np.float32)
        for pair, column in changed:
            backend.outputs["mask_logits"][0, pair, 0, column] = 3
        return backend

    assert failing_int8(masks(), masks((0, 3)), LEFT) == []
    assert failing_int8(masks(), masks((1, 0)), LEFT) == []
    assert failing_int8(masks(), masks((0, 2)), LEFT) == ["mask_logits"]


def test_without_any_candidate_everything_is_compared_everywhere() -> None:
    assert failing_int8(scored(), wrong(scored(), "boxes", (0, 3, 2), 60.0)) == ["boxes"]
    assert failing_int8(scored(), scored()) == []
    parts = compare_tensors(scored(), scored(), BLANK, INT8, WHOLE)
    assert [part.name for part in parts if part.places] == ["mask_features"]


def test_a_number_that_is_none_counts_everywhere() -> None:
    for value in (float("nan"), float("inf")):
        bad = wrong(scored(1), "boxes", (0, 3, 2), value)
        assert failing_int8(scored(1), bad) == ["boxes"]
    # another shape on one image is not outweighed by the next image
    both = {"one": BLANK["one"], "two": BLANK["one"]}
    bad = scored(1)
    bad.outputs["boxes"] = bad.outputs["boxes"][:, :4]
    seen = Seen(STATED, dict.fromkeys(both, WHOLE.contents["one"]), True)
    parts = compare_tensors(scored(1), bad, both, INT8, seen)
    assert [part.name for part in parts if not part.passed] == ["boxes"]


def test_pairs_below_the_candidate_score_do_not_count() -> None:
    truth = pairs((0.9, 0, 4, 5), (0.2, 0, 12, 6))
    assert failing_int8(truth, pairs((0.9, 0, 4, 5), (0.2, 0, 12, 1))) == []
    assert failing_int8(truth, pairs((0.9, 0, 4, 1), (0.2, 0, 12, 6))) == ["parameters"]
    assert failing_int8(truth, pairs((0.9, 0, 4, 5), (0.26, 0, 12, 1))) == ["parameters"]


def test_the_report_says_where_it_looked() -> None:
    parts = compare_tensors(scored(0, 4), scored(0, 4), BLANK, INT8, LEFT)
    said = {part.name: part.line() for part in parts}
    words = "1 of 5 locations: inside the frame, a class reaches 0.25"
    assert said["boxes"].endswith(f"  ok ({words})")
    assert said["mask_features"].endswith("  ok (12 of 16 cells: inside the frame)")
    assert said["class_logits"].endswith("  ok")
    found = pairs((0.9, 0, 4, 5), (0.2, 0, 12, 6))
    line = compare_tensors(found, found, BLANK, INT8, WHOLE)[-1].line()
    assert line.endswith("  ok (1 of 2 pairs: inside the frame, a class reaches 0.25)")


def test_outside_of_the_frame_only_cells_of_masks_are_free_in_other_precisions() -> None:
    assert [name for name, gate in GATES.items() if gate.only_candidates] == ["int8"]
    seen = replace(LEFT, only_candidates=False)

    def failing(name: str, index: tuple[int, ...]) -> list[str]:
        bad = wrong(scored(0, 1), name, index, 4.0)
        parts = compare_tensors(scored(0, 1), bad, BLANK, GATES["fp32"].tensors, seen)
        return [part.name for part in parts if not part.passed]

    assert failing("mask_features", (0, 1, 3, 2)) == ["mask_features"]
    assert failing("mask_features", (0, 1, 3, 3)) == []
    assert failing("boxes", (0, 1, 2)) == ["boxes"]
    assert failing("boxes", (0, 4, 2)) == ["boxes"]
    assert failing("quality_logits", (0, 4)) == ["quality_logits"]


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


def test_images_of_one_name_in_two_folders_are_two_and_one_listed_twice_is_one(
    tmp_path: Path,
) -> None:
    names = ["left/0.png", "right/0.png", "left/0.png", "left/1.png"]
    for name, value in zip(names, (10, 20, 10, 30), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(tmp_path / name)
    content = {"images": [{"file_name": name} for name in names]}
    (tmp_path / "val.json").write_text(json.dumps(content))
    samples = real_samples(tmp_path, 4)
    assert samples.source == f"3 of 3 images of {tmp_path}"
    assert [int(frame[0, 0, 0]) for frame in samples.frames.values()] == [10, 20, 30]
    assert [Path(name).name for name in samples.frames] == ["0.png", "0.png", "1.png"]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"images": [{}]}',
        '{"images": []}',
        '{"images": [{"file_name": null}]}',
        '{"images": [{"file_name": "../photo.png"}]}',
        '{"images": [{"file_name": "/etc/photo.png"}]}',
        pytest.param("[" * 99_999, id="deep"),
    ],
)
def test_data_without_usable_images_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "val.json").write_text(content)
    with pytest.raises(DataError, match=str(tmp_path)):
        real_samples(tmp_path)
