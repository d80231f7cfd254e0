"""COCO average precision of anything that answers frames."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from boxseg.errors import BackendMissingError, BoxSegError, DataError
from boxseg.runtime.accuracy import (
    Accuracy,
    AveragePrecision,
    Predict,
    answer_examination,
    evaluate,
    fill_box,
    judge,
    open_examination,
    report_lines,
    write_results,
)
from boxseg.runtime.average_precision import Decided

codec = pytest.importorskip("pycocotools.mask", reason="accuracy needs pycocotools")

HEIGHT, WIDTH = 120, 200
ONE = pytest.approx(1.0)  # pycocotools divides by hits + 1e-16


def _rle(mask: np.ndarray) -> dict[str, Any]:
    rle = codec.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def _box_mask(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def _annotation(identity: int, box: list[int], **more: Any) -> dict[str, Any]:
    """An object whose mask is its filled box unless told otherwise."""
    entry = {
        "id": identity,
        "image_id": 7,
        "category_id": 3,
        "bbox": box,
        "iscrowd": 0,
        "area": box[2] * box[3],
        "segmentation": _rle(_box_mask(*box)),
    }
    return entry | more


def _found(
    box: Sequence[float], score: float = 0.9, mask: np.ndarray | None = None, **more: Any
) -> dict[str, Any]:
    mask = _box_mask(*map(int, box)) if mask is None else mask
    return {"category_id": 3, "bbox": list(box), "score": score, "segmentation": _rle(mask)} | more


def _write(folder: Path, annotations: list[dict[str, Any]], **more: Any) -> Path:
    """Write one black image, numbered 7, with its annotation file."""
    if not (folder / "a.png").exists():
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.png")
    values = {
        "images": [{"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "star"}],
    }
    (folder / "val.json").write_text(json.dumps(values | more))
    return folder / "val.json"


def _answer(*results: dict[str, Any]) -> Predict:
    """A model that answers every image with the same detections."""

    def predict(image: np.ndarray) -> SimpleNamespace:
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        return SimpleNamespace(
            to_coco=lambda image_id: [{**r, "image_id": image_id} for r in results]
        )

    return predict


def _judge(
    folder: Path, annotations: list[dict[str, Any]], *results: dict[str, Any], **more: Any
) -> Accuracy:
    return evaluate(_answer(*results), _write(folder, annotations), folder, **more)


def test_a_perfect_detection_has_ap_one(tmp_path: Path) -> None:
    accuracy = _judge(tmp_path, [_annotation(1, [10, 20, 50, 40])], _found([10, 20, 50, 40]))
    assert accuracy.box.ap == ONE
    assert accuracy.mask is not None
    assert accuracy.mask.ap == ONE
    assert accuracy.tightness == ONE
    assert accuracy.box_quality == ONE
    assert accuracy.box.per_class == {"star": ONE}
    assert (accuracy.images, accuracy.objects, accuracy.detections) == (1, 1, 1)


def test_shares_of_the_images_are_judged_together_as_one(tmp_path: Path) -> None:
    images = [
        {"id": number, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
        for number in (7, 2, 9, 4, 5)
    ]
    truth = [_annotation(1, [10, 20, 50, 40]), _annotation(2, [10, 20, 40, 40], image_id=4)]
    file = _write(tmp_path, truth, images=images)
    model = _answer(_found([10, 20, 50, 40]), _found([60, 20, 50, 40], 0.4))
    examination = open_examination(model, file)
    shares = [
        answer_examination(model, examination, tmp_path, share=(number, 3)) for number in range(3)
    ]
    assert [list(share) for share in shares] == [[7, 4], [2, 5], [9]]
    together = judge(examination, shares[2] | shares[0] | shares[1])
    alone = evaluate(model, file, tmp_path)
    assert together == alone
    assert together.results == alone.results
    assert [result["image_id"] for result in together.results] == [7, 7, 2, 2, 9, 9, 4, 4, 5, 5]


def test_a_shifted_box_counts_up_to_its_iou(tmp_path: Path) -> None:
    # width 100, shift 23: intersection 77, union 123, IoU 0.626: found at 0.50, 0.55 and 0.60,
    # which is 3 of the 10 thresholds
    accuracy = _judge(tmp_path, [_annotation(1, [10, 20, 100, 40])], _found([33, 20, 100, 40]))
    assert accuracy.box.ap == pytest.approx(0.3)
    assert accuracy.box.ap50 == ONE
    assert accuracy.box.ap75 == 0.0


def test_a_false_positive_above_a_hit_halves_the_precision(tmp_path: Path) -> None:
    # By score: miss, hit. Recall ends at 1 of 2 with precision 1 of 2, so 51 of the 101 recall
    # points 0, 0.01 .. 0.5 hold 0.5 and the others 0.
    truth = [_annotation(1, [0, 0, 20, 20]), _annotation(2, [60, 60, 20, 20])]
    accuracy = _judge(tmp_path, truth, _found([120, 60, 20, 20], 0.9), _found([0, 0, 20, 20], 0.8))
    assert accuracy.box.ap == pytest.approx(51 * 0.5 / 101)
    assert accuracy.box.recall == pytest.approx(0.5)


def test_a_filled_box_is_judged_against_the_mask(tmp_path: Path) -> None:
    # The object covers 72 of the 100 columns of its box: the filled box has IoU 0.72, which
    # counts at 0.50, 0.55, 0.60, 0.65 and 0.70: 5 of 10 thresholds.
    box, mask = [10, 20, 100, 40], _box_mask(10, 20, 71, 40)
    mask[20:60, 109] = True  # reaches the right edge, so that the box is tight
    truth = [_annotation(1, box, segmentation=_rle(mask), area=int(mask.sum()))]
    accuracy = _judge(tmp_path, truth, _found(box, mask=mask), filled_boxes=True)
    assert accuracy.mask is not None
    assert accuracy.mask.ap == ONE
    assert accuracy.filled_boxes is not None
    assert accuracy.filled_boxes.ap == pytest.approx(0.5)
    assert accuracy.filled_boxes.ap75 == 0.0


def test_tightness_is_the_iou_of_the_masks_own_box(tmp_path: Path) -> None:
    # mask box 30 x 40 in a predicted box 50 x 40: 1200 / 2000 = 0.6; the second detection is
    # exact; the third has too low a score to count
    truth = [_annotation(1, [10, 20, 50, 40])]
    accuracy = _judge(
        tmp_path,
        truth,
        _found([10, 20, 50, 40], 0.9, _box_mask(10, 20, 30, 40)),
        _found([100, 20, 50, 40], 0.8),
        _found([100, 20, 50, 40], 0.3, _box_mask(0, 0, 1, 1)),
    )
    assert accuracy.tightness == pytest.approx(0.8)


def test_an_empty_mask_is_not_tight_at_all(tmp_path: Path) -> None:
    empty = _found([10, 20, 50, 40], mask=np.zeros((HEIGHT, WIDTH), bool))
    accuracy = _judge(tmp_path, [_annotation(1, [10, 20, 50, 40])], empty)
    assert accuracy.tightness == 0.0
    assert accuracy.box_quality == 0.0


def test_a_box_beyond_the_image_is_clipped_before_its_tightness(tmp_path: Path) -> None:
    found = _found([-10, 0, 30, 30], mask=_box_mask(0, 0, 20, 30))
    accuracy = _judge(tmp_path, [_annotation(1, [0, 0, 20, 30])], found)
    assert accuracy.tightness == ONE


def test_without_detections_ap_is_zero_and_tightness_undefined(tmp_path: Path) -> None:
    accuracy = _judge(tmp_path, [_annotation(1, [10, 20, 50, 40])])
    assert accuracy.box.ap == 0.0
    assert accuracy.mask is not None
    assert accuracy.mask.ap == 0.0
    assert accuracy.tightness is None
    assert accuracy.box_quality == 0.0


def test_without_objects_ap_is_undefined(tmp_path: Path) -> None:
    accuracy = _judge(tmp_path, [], _found([10, 20, 50, 40]))
    assert accuracy.box.ap is None
    assert any("AP is undefined" in note for note in accuracy.notes)


def test_objects_are_sorted_by_the_annotations_area(tmp_path: Path) -> None:
    # small < 1024 <= medium < 9216 <= large; the box of the second is large, its area medium
    truth = [
        _annotation(1, [0, 0, 20, 20]),
        _annotation(2, [30, 0, 100, 100], area=5000),
    ]
    accuracy = _judge(tmp_path, truth, _found([0, 0, 20, 20]))
    assert accuracy.box.small == ONE
    assert accuracy.box.medium == 0.0
    assert accuracy.box.large is None


def test_a_missing_area_is_that_of_the_mask(tmp_path: Path) -> None:
    mask = _box_mask(0, 0, 100, 5)
    mask[0:100, 0:5] = True  # an L of 975 pixels in a box of 10000
    truth = _annotation(1, [0, 0, 100, 100], segmentation=_rle(mask))
    del truth["area"]
    accuracy = _judge(tmp_path, [truth], _found([0, 0, 100, 100], mask=mask))
    assert accuracy.box.small == ONE
    assert accuracy.box.large is None


def test_annotation_number_zero_can_be_found(tmp_path: Path) -> None:
    # pycocotools itself takes a match with id 0 for no match
    accuracy = _judge(tmp_path, [_annotation(0, [10, 20, 50, 40])], _found([10, 20, 50, 40]))
    assert accuracy.box.ap == ONE


@pytest.mark.parametrize("mark", ["iscrowd", "difficult", "ignore"])
def test_unjudged_objects_are_neither_hits_nor_misses(tmp_path: Path, mark: str) -> None:
    truth = [
        _annotation(1, [0, 0, 20, 20]),
        _annotation(2, [60, 60, 20, 20], **{mark: 1}),
        _annotation(3, [100, 60, 20, 20], **{mark: 1}),
    ]
    accuracy = _judge(tmp_path, truth, _found([60, 60, 20, 20], 0.9), _found([0, 0, 20, 20], 0.8))
    assert accuracy.box.ap == ONE
    assert accuracy.mask is not None
    assert accuracy.mask.ap == ONE
    assert accuracy.objects == 1


def test_polygons_are_masks(tmp_path: Path) -> None:
    polygon = [[10, 20, 60, 20, 60, 60, 10, 60]]
    truth = [_annotation(1, [10, 20, 50, 40], segmentation=polygon)]
    accuracy = _judge(tmp_path, truth, _found([10, 20, 50, 40]))
    assert accuracy.mask is not None
    assert accuracy.mask.ap == ONE
    assert any("its own filled box" in note for note in accuracy.notes)


def test_uncompressed_runs_are_masks(tmp_path: Path) -> None:
    # columns 10..59 whole: 10 * 120 off, 50 * 120 on, 140 * 120 off
    runs = {"size": [HEIGHT, WIDTH], "counts": [1200, 6000, 16800]}
    truth = [_annotation(1, [10, 0, 50, 120], segmentation=runs)]
    accuracy = _judge(tmp_path, truth, _found([10, 0, 50, 120]))
    assert accuracy.mask is not None
    assert accuracy.mask.ap == ONE


@pytest.mark.parametrize("segmentation", [None, [], [[]], [[1, 2, 3, 4]]])
def test_boxes_alone_give_box_ap_and_say_so(tmp_path: Path, segmentation: object) -> None:
    truth = [_annotation(1, [10, 20, 50, 40], segmentation=segmentation)]
    accuracy = _judge(tmp_path, truth, _found([10, 20, 50, 40]), filled_boxes=True)
    assert accuracy.box.ap == ONE
    assert accuracy.mask is None
    assert accuracy.filled_boxes is None
    assert "mask AP: no masks in val.json" in accuracy.notes
    assert accuracy.as_dict()["mask"] is None


def test_masks_for_some_objects_give_no_mask_ap(tmp_path: Path) -> None:
    truth = [_annotation(1, [0, 0, 20, 20]), _annotation(2, [60, 60, 20, 20], segmentation=[])]
    accuracy = _judge(tmp_path, truth, _found([0, 0, 20, 20]))
    assert accuracy.mask is None
    assert any("1 of 2 objects" in note for note in accuracy.notes)


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    # the model calls 1 what the file calls 3
    accuracy = _judge(
        tmp_path,
        [_annotation(1, [10, 20, 50, 40])],
        _found([10, 20, 50, 40], category_id=1),
        classes={1: "Star", 2: "ring"},
    )
    assert accuracy.box.ap == ONE
    assert accuracy.results[0]["category_id"] == 3
    assert any("does not have: ring" in note for note in accuracy.notes)


def test_the_metadata_of_a_segmenter_names_its_classes(tmp_path: Path) -> None:
    class Model:
        metadata = SimpleNamespace(classes=("star",), category_ids=(1,))

        def __call__(self, image: np.ndarray) -> SimpleNamespace:
            return SimpleNamespace(
                to_coco=lambda image_id: [_found([10, 20, 50, 40], category_id=1)]
            )

    file = _write(tmp_path, [_annotation(1, [10, 20, 50, 40])])
    assert evaluate(Model(), file, tmp_path).box.ap == ONE


def test_detections_of_classes_that_the_file_lacks_are_not_judged(tmp_path: Path) -> None:
    accuracy = _judge(
        tmp_path,
        [_annotation(1, [10, 20, 50, 40])],
        _found([10, 20, 50, 40], 0.9, category_id=2),
        _found([10, 20, 50, 40], 0.8, category_id=3),
        classes={3: "star", 2: "ring"},
    )
    assert accuracy.detections == 1
    assert accuracy.box.ap == ONE


def test_a_model_that_shares_no_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shares no class.*model: ring; file: star"):
        _judge(tmp_path, [_annotation(1, [10, 20, 50, 40])], classes={3: "ring"})


def test_an_unknown_category_in_an_answer_is_refused(tmp_path: Path) -> None:
    found = _found([10, 20, 50, 40], category_id=9)
    with pytest.raises(DataError, match="category 9; known: 3"):
        _judge(tmp_path, [_annotation(1, [10, 20, 50, 40])], found)


def test_a_class_unknown_to_the_model_counts_as_missed(tmp_path: Path) -> None:
    file = _write(
        tmp_path,
        [_annotation(1, [0, 0, 20, 20]), _annotation(2, [60, 60, 20, 20], category_id=4)],
        categories=[{"id": 3, "name": "star"}, {"id": 4, "name": "ring"}],
    )
    accuracy = evaluate(_answer(_found([0, 0, 20, 20])), file, tmp_path, classes={3: "star"})
    assert accuracy.box.ap == pytest.approx(0.5)
    assert accuracy.box.per_class == {"star": ONE, "ring": 0.0}
    assert any("model does not know: ring" in note for note in accuracy.notes)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"image_id": 8}, "image 8, which is not listed"),
        ({"category_id": 5}, "category 5; known: 3"),
        ({"category_id": [3]}, r"category \[3\]; known: 3"),
        ({"image_id": {}}, "image {}, which is not listed"),
        ({"bbox": [1, 2, 3]}, "expected four numbers"),
        ({"bbox": [1, 2, float("nan"), 4]}, "expected four numbers"),
        ({"segmentation": {"size": [3, 3], "counts": [9]}}, r"mask of size \[3, 3\]"),
        ({"segmentation": {"size": [120, 200], "counts": [9]}}, "mask of 9 pixels"),
        ({"segmentation": {"size": [120, 200], "counts": "~~~"}}, "damaged mask"),
        ({"segmentation": {"size": [120, 200], "counts": "oo"}}, "damaged mask"),
        ({"segmentation": {"size": [120, 200]}}, "without counts"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "damaged polygon"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e9]]}, "damaged polygon"),
        ({"segmentation": [[1, 2, 3, 4, 5, 10**400]]}, "damaged polygon"),
        ({"bbox": [0, 0, 10**400, 5]}, "expected four numbers"),
        ({"segmentation": "no"}, "segmentation of type str"),
    ],
)
def test_annotations_that_cannot_be_judged_are_errors(
    tmp_path: Path, bad: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _judge(tmp_path, [_annotation(1, [10, 20, 50, 40], **bad)])
    assert "annotation 1" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected an object"),
        ("{", "not JSON"),
        ("{}", "no list 'images'"),
        ('{"images": [], "annotations": [], "categories": []}', "holds no images"),
        ('{"images": [3], "annotations": [], "categories": []}', "objects only"),
        (
            '{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1}]}',
            "no file_name",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a/../../b"}], "annotations": [], '
            '"categories": [{"id": 1}]}',
            "image 1: file_name 'a/../../b' leaves the folder of images",
        ),
        (
            '{"images": [{"id": 1}, {"id": 1}], "annotations": [], "categories": [{"id": 1}]}',
            "image id 1 is given twice",
        ),
        (
            '{"images": [{"id": "x"}], "annotations": [], "categories": [{"id": 1}]}',
            "image id 'x' is not an integer",
        ),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "no categories"),
    ],
)
def test_files_that_are_no_coco_are_errors(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "val.json").write_text(content)
    with pytest.raises(DataError, match=message):
        evaluate(_answer(), tmp_path / "val.json", tmp_path)
    with pytest.raises(DataError, match="no such annotation file"):
        evaluate(_answer(), tmp_path / "other.json", tmp_path)


def test_an_unreadable_image_is_an_error(tmp_path: Path) -> None:
    file = _write(tmp_path, [])
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(DataError, match="not an image"):
        evaluate(_answer(), file, tmp_path)


def test_an_image_of_another_size_than_stated_is_an_error(tmp_path: Path) -> None:
    file = _write(tmp_path, [])
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "a.png")  # turned
    with pytest.raises(DataError, match=r"is 200 x 120 pixels .* the file says 120 x 200"):
        evaluate(_answer(), file, tmp_path)


def test_empty_boxes_are_counted_in_a_note(tmp_path: Path) -> None:
    truth = [_annotation(1, [0, 0, 20, 20]), _annotation(2, [60, 60, 20, 20], bbox=[1, 1, 0, 5])]
    accuracy = _judge(tmp_path, truth, _found([0, 0, 20, 20]))
    assert accuracy.box.ap == ONE
    assert "not judged: 1 annotation with an empty box" in accuracy.notes


def test_non_finite_answers_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(BoxSegError, match="non-finite"):
        _judge(tmp_path, [], _found([0, 0, 20, 20], float("nan")))


def test_a_mask_of_another_size_is_an_error(tmp_path: Path) -> None:
    found = _found([0, 0, 20, 20], mask=np.ones((4, 4)))
    with pytest.raises(BoxSegError, match=r"mask of size \[4, 4\]"):
        _judge(tmp_path, [], found)


def test_the_first_images_can_be_judged_alone(tmp_path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "b.png")
    file = _write(
        tmp_path,
        [_annotation(1, [0, 0, 20, 20]), _annotation(2, [60, 60, 20, 20], image_id=8)],
        images=[{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}],
    )
    seen: list[tuple[int, int]] = []
    predict = _answer(_found([0, 0, 20, 20]))
    accuracy = evaluate(
        predict, file, tmp_path, max_images=1, progress=lambda *step: seen.append(step)
    )
    assert accuracy.box.ap == ONE
    assert seen == [(1, 1)]
    assert "only the first 1 of 2 images were judged" in accuracy.notes
    assert evaluate(predict, file, tmp_path).box.ap != ONE
    with pytest.raises(ValueError, match="max_images must be at least 1, got 0"):
        evaluate(predict, file, tmp_path, max_images=0)


def test_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _judge(tmp_path, [_annotation(1, [10, 20, 50, 40])], _found([10, 20, 50, 40]))
    assert capsys.readouterr() == ("", "")


def test_missing_pycocotools_names_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(BackendMissingError, match=r"pip install boxseg\[eval\]"):
        _judge(tmp_path, [])


@pytest.mark.parametrize(
    ("box", "columns", "rows"),
    [
        ([2, 3, 4, 2], (2, 6), (3, 5)),  # whole pixels
        ([2.5, 3.4, 4.0, 2.0], (2, 6), (3, 5)),  # centres 2.5 .. 5.5, not 6.5, and 3.5, 4.5
        ([2.6, 3.6, 4.0, 2.0], (3, 7), (4, 6)),  # centre 2.5 is left out, 6.5 in
        ([4.6, 4.6, 0.2, 0.2], (4, 5), (4, 5)),  # no centre: the nearest pixel
        ([-5, 0, 100, 8], (0, 10), (0, 8)),  # the whole image
        ([50, 50, 5, 5], (9, 10), (7, 8)),  # outside: the nearest corner
    ],
)
def test_a_box_holds_the_pixels_whose_centres_it_holds(
    box: list[float], columns: tuple[int, int], rows: tuple[int, int]
) -> None:
    expected = np.zeros((8, 10), np.uint8)
    expected[rows[0] : rows[1], columns[0] : columns[1]] = 1
    assert fill_box(box, 8, 10, codec) == codec.encode(np.asfortranarray(expected))


def test_numbers_are_those_of_pycocotools_itself(tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(3)
    boxes = [[int(v) for v in (*rng.integers(0, 80, 2), *rng.integers(8, 40, 2))] for _ in range(9)]
    truth = [_annotation(index, box) for index, box in enumerate(boxes, start=1)]
    found = [
        _found([b[0] + int(rng.integers(0, 6)), *b[1:]], float(rng.random())) for b in boxes[:7]
    ]
    accuracy = _judge(tmp_path, truth, *found)
    write_results(tmp_path / "results.json", accuracy.results)
    gt = COCO(str(tmp_path / "val.json"))
    judge = COCOeval(gt, gt.loadRes(str(tmp_path / "results.json")), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    ours = accuracy.box
    assert [ours.ap, ours.ap50, ours.ap75, ours.small, ours.medium, ours.recall] == pytest.approx(
        [judge.stats[index] for index in (0, 1, 2, 3, 4, 8)]
    )
    assert ours.large is None
    assert 0.1 < judge.stats[0] < 0.9


def test_truth_scored_against_itself_is_perfect_on_real_annotations() -> None:
    import os

    root = os.environ.get("BOXSEG_DATA")
    if root is None:
        pytest.skip("BOXSEG_DATA is not set")
    folder = Path(root) / "coco_mini"
    values = json.loads((folder / "val.json").read_text())
    images = iter(values["images"][:12])

    def predict(image: np.ndarray) -> SimpleNamespace:
        entry = next(images)
        results = []
        for one in values["annotations"]:
            if one["image_id"] == entry["id"] and not one["iscrowd"]:
                mask = one["segmentation"]
                if isinstance(mask, list):
                    mask = codec.merge(codec.frPyObjects(mask, *image.shape[:2]))
                results.append({**one, "score": 1.0, "segmentation": mask})
        return SimpleNamespace(to_coco=lambda image_id: results)

    accuracy = evaluate(predict, folder / "val.json", folder, max_images=12)
    assert accuracy.box.ap == ONE
    assert accuracy.mask is not None
    assert accuracy.mask.ap == ONE


def test_the_table_is_in_percent_and_ends_with_the_notes(tmp_path: Path) -> None:
    truth = [_annotation(1, [10, 20, 100, 40], segmentation=[])]
    accuracy = _judge(tmp_path, truth, _found([33, 20, 100, 40]))
    lines = report_lines(accuracy, per_class=True)
    assert lines[1].split() == ["box", "30.0", "100.0", "0.0", "-", "30.0", "-", "30.0"]
    assert any(line.split() == ["star", "30.0", "-"] for line in lines)
    assert lines[-1] == "mask AP: no masks in val.json"


def test_the_dictionary_is_json(tmp_path: Path) -> None:
    accuracy = _judge(tmp_path, [_annotation(1, [10, 20, 50, 40])], _found([10, 20, 50, 40]))
    values = json.loads(json.dumps(accuracy.as_dict()))
    assert values["box"]["AP"] == ONE
    assert values["per_class"] == {"star": {"box": ONE, "mask": ONE}}


def test_the_default_confidence_is_not_judged_by_what_was_not_asked_for() -> None:
    numbers = AveragePrecision(0.5, 0.5, 0.5, None, None, 0.5, 0.5, {"thing": 0.5})

    def said(scores: list[float]) -> tuple[list[float], list[str]]:
        decided = Decided(np.array(scores), np.ones(len(scores), np.bool_), objects=3)
        found = Accuracy(
            box=replace(numbers, decided=decided),
            mask=None,
            filled_boxes=None,
            tightness=None,
            images=1,
            objects=3,
            detections=len(scores),
            notes=(),
            results=[],
        )
        lines = [line for line in report_lines(found) if "--conf" in line]
        return [kept.conf for kept in found.confidences()], lines

    # the last confidence below the lowest score keeps all that there is
    assert said([0.9, 0.4]) == (
        [0.39, 0.5],
        [
            "best --conf 0.39: 2 of 3 objects found, 0 wrong (boxes, IoU 0.5; F1 0.80)",
            "at --conf 0.50: 1 of 3 objects found, 0 wrong (boxes, IoU 0.5; F1 0.50)",
        ],
    )
    # as after eval --conf 0.6: nobody knows what lies between
    assert said([0.9, 0.7])[0] == [0.69]
    assert said([]) == ([], [])
