"""Every defect of an annotation file in one pass, and its repair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from test_images import PNG_OF_10_GIGAPIXELS

from boxseg.errors import DataError
from boxseg.train.data_check import Report, check_annotations, write_repaired
from boxseg.train.data_commands import data

WIDTH, HEIGHT = 48, 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images."""
    for name in ("a.jpg", "b.png", "c.jpg"):
        pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def box(identifier: int, image: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    """An annotation of class 1."""
    return {"id": identifier, "image_id": image, "category_id": 1, "bbox": bbox, **more}


def rectangle(x: float, y: float, width: float, height: float) -> list[list[float]]:
    """A mask as one polygon."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def content() -> dict[str, Any]:
    """A sound file."""
    return {
        "info": {"year": 1999},
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": 2, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
            {"id": 3, "file_name": "c.jpg", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [box(1, 1, [2, 2, 10, 10]), box(2, 2, [5, 5, 20, 20])],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "dog"}],
    }


def check(folder: Path, values: object, **options: Any) -> Report:
    """Write a file and check it."""
    file = folder / "train.json"
    file.write_text(json.dumps(values))
    return check_annotations(file, **options)


def found(report: Report) -> list[tuple[str, str]]:
    """Kind and place of each defect."""
    return [(defect.kind, defect.where) for defect in report.defects]


def with_box(bbox: Any, **more: Any) -> dict[str, Any]:
    """The sound file with one more annotation, of id 9 in image 3."""
    values = content()
    values["annotations"].append(box(9, 3, bbox, **more))
    return values


def test_a_sound_file_has_no_defect_and_is_its_own_repair(folder: Path) -> None:
    report = check(folder, content())
    assert report.defects == []
    assert (report.images, report.annotations) == (3, 2)
    assert report.repaired == content()
    assert "1 image without a box, trained as background" in report.remarks
    assert "classes without an annotation: dog" in report.remarks


PLACE = "image 3, annotation 9"


@pytest.mark.parametrize(
    ("bbox", "kind", "repaired"),
    [
        ([5, 5, 0, 9], "empty box", None),
        ([5, 5, 9, 0], "empty box", None),
        ([25, 20, -10, -5], "inverted box", [15, 15, 10, 5]),
        ([40, 20, 20, 10], "box partly outside", [40, 20, 8, 10]),
        ([-4, -2, 20, 10], "box partly outside", [0, 0, 16, 8]),
        ([100, 20, 20, 10], "box outside", None),
        ([5, 5, 1.5, 9], "small box", None),
        ([5, 5, 9], "malformed box", None),
        (None, "malformed box", None),
        (["a", 5, 9, 9], "malformed box", None),
        ([5, 5, float("inf"), 9], "malformed box", None),
    ],
)
def test_each_wrong_box_is_named_and_repaired(
    folder: Path, bbox: Any, kind: str, repaired: list[float] | None
) -> None:
    report = check(folder, with_box(bbox))
    assert found(report) == [(kind, PLACE)]
    left = [entry["bbox"] for entry in report.repaired["annotations"] if entry["id"] == 9]
    assert left == ([] if repaired is None else [repaired])


def test_half_a_pixel_beyond_the_edge_is_rounding(folder: Path) -> None:
    assert check(folder, with_box([-0.5, 0, 48.9, 32.5])).defects == []
    assert found(check(folder, with_box([-0.6, 0, 20, 20]))) == [("box partly outside", PLACE)]


def test_a_box_is_loose_if_a_side_lies_off_its_mask(folder: Path) -> None:
    # The mask spans 10..30 x 10..20. Three pixels off is more than 2 px and than 5 % of 23.
    mask = rectangle(10, 10, 20, 10)
    report = check(folder, with_box([10, 10, 23, 10], segmentation=mask))
    assert found(report) == [("loose box", PLACE)]
    assert report.repaired["annotations"][-1]["bbox"] == [10, 10, 20, 10]
    assert check(folder, with_box([9, 9, 22, 12], segmentation=mask)).defects == []


def test_a_crowd_may_be_loose(folder: Path) -> None:
    mask = rectangle(10, 10, 20, 10)
    report = check(folder, with_box([0, 0, 40, 30], segmentation=mask, iscrowd=1))
    assert report.defects == []
    assert "1 crowd or difficult object: not trained on" in report.remarks


@pytest.mark.parametrize(
    "segmentation",
    [[[1, 2, 3]], [["a"]], {"size": [2, 2], "counts": [4]}, {"size": [32, 48], "counts": "@@@"}, 5],
)
def test_a_damaged_mask_is_named_and_removed(folder: Path, segmentation: Any) -> None:
    report = check(folder, with_box([5, 5, 10, 10], segmentation=segmentation))
    assert found(report) == [("damaged mask", PLACE)]
    assert "segmentation" not in report.repaired["annotations"][-1]


def test_missing_and_truncated_images_take_their_boxes_along(folder: Path) -> None:
    (folder / "a.jpg").unlink()
    data_of_b = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(data_of_b[: len(data_of_b) // 2])
    report = check(folder, content())
    assert found(report) == [
        ("missing image", "image 1 (a.jpg)"),
        ("corrupt image", "image 2 (b.png)"),
    ]
    assert [entry["id"] for entry in report.repaired["images"]] == [3]
    assert report.repaired["annotations"] == []
    assert "2 annotations of images that are named above" in report.remarks


def test_a_file_name_that_no_system_takes_is_a_missing_image(folder: Path) -> None:
    values = content()
    values["images"][0]["file_name"] = "long" * 100 + ".jpg"
    ((kind, _),) = found(check(folder, values))
    assert kind == "missing image"


def test_names_that_leave_the_folder_are_found(folder: Path) -> None:
    values = content()
    values["images"][0]["file_name"] = "../a.jpg"
    values["images"][1]["file_name"] = str(folder / "b.png")
    values["images"][2]["depth_file_name"] = "../c.png"
    report = check(folder, values)
    assert [kind for kind, _ in found(report)] == ["image outside", "image outside", "depth map"]
    assert [entry["id"] for entry in report.repaired["images"]] == [3]
    assert "depth_file_name" not in report.repaired["images"][0]


def test_a_truncated_jpeg_is_found(folder: Path) -> None:
    whole = (folder / "c.jpg").read_bytes()
    (folder / "c.jpg").write_bytes(whole[:-200])
    assert found(check(folder, content())) == [("corrupt image", "image 3 (c.jpg)")]


def test_a_header_that_claims_gigabytes_is_found(folder: Path) -> None:
    (folder / "b.png").write_bytes(PNG_OF_10_GIGAPIXELS)
    report = check(folder, content())
    assert found(report) == [("corrupt image", "image 2 (b.png)")]
    assert "89478485 pixels" in report.defects[0].what


def test_sizes_are_compared_with_the_file(folder: Path) -> None:
    values = content()
    values["images"][0]["width"] = 47
    del values["images"][1]["height"]
    values["images"][2].update(width=HEIGHT, height=WIDTH)
    report = check(folder, values)
    assert found(report) == [
        ("size mismatch", "image 1 (a.jpg)"),
        ("size not stated", "image 2 (b.png)"),
        ("size mismatch", "image 3 (c.jpg)"),
    ]
    assert "turned by EXIF" in report.defects[2].what
    assert report.repaired["images"] == [content()["images"][1]]


def test_duplicate_ids_are_named(folder: Path) -> None:
    values = content()
    values["images"].append({"id": 1, "file_name": "c.jpg", "height": HEIGHT, "width": WIDTH})
    values["annotations"].append(box(2, 3, [1, 1, 9, 9]))
    values["categories"].append({"id": 2, "name": "cat"})
    report = check(folder, values)
    assert found(report) == [
        ("duplicate category id", "category 2"),
        ("duplicate image id", "image 1 (c.jpg)"),
        ("duplicate annotation id", "image 3, annotation 2"),
    ]
    assert [entry["id"] for entry in report.repaired["annotations"]] == [1, 2, 3]


def test_the_same_box_twice_is_a_duplicate(folder: Path) -> None:
    values = content()
    values["annotations"].append(box(3, 1, [2, 2, 10, 10]))
    values["annotations"].append(box(4, 1, [2, 2, 10, 10]) | {"category_id": 2})
    report = check(folder, values)
    assert found(report) == [("duplicate annotation", "image 1, annotation 3")]
    assert "annotation 1" in report.defects[0].what


def test_the_same_file_twice_is_a_duplicate(folder: Path) -> None:
    values = content()
    values["images"].append({"id": 4, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH})
    assert found(check(folder, values)) == [("duplicate file", "image 4 (a.jpg)")]


def test_unknown_images_and_categories_are_named(folder: Path) -> None:
    values = content()
    values["annotations"] += [
        box(3, 77, [2, 2, 10, 10]),
        box(4, 1, [2, 2, 9, 9]) | {"category_id": 5},
    ]
    values["annotations"].append(box(5, 1, [2, 2, 8, 8]) | {"category_id": None})
    assert found(check(folder, values)) == [
        ("unknown image", "image 77, annotation 3"),
        ("unknown category", "image 1, annotation 4"),
        ("unknown category", "image 1, annotation 5"),
    ]


def test_category_gaps_are_named_and_left(folder: Path) -> None:
    values = content()
    values["categories"] = [
        {"id": 1, "name": "car"},
        {"id": 3, "name": "dog"},
        {"id": 9, "name": "x"},
    ]
    report = check(folder, values)
    assert [defect.what for defect in report.defects] == [
        "no category has id 2",
        "no category has id 4..8",
    ]
    assert report.repaired["categories"] == values["categories"]
    assert report.repairs == {"": 2}


def test_names_with_left_and_right_are_defects_while_flip_is_on(folder: Path) -> None:
    values = content()
    values["categories"] = [
        {"id": 1, "name": "front_left_door"},
        {"id": 2, "name": "front_right_door"},
        {"id": 3, "name": "RightHand"},
        {"id": 4, "name": "leftover"},
        {"id": 5, "name": "bright"},
    ]
    report = check(folder, values)
    assert [defect.where for defect in report.defects] == [
        "class 'front_left_door'",
        "class 'RightHand'",
    ]
    assert "{front_left_door: front_right_door}" in report.defects[0].what
    assert check(folder, values, flip=False).defects == []


def test_depth_maps_are_opened(folder: Path) -> None:
    values = content()
    values["images"][0]["depth_file_name"] = "b.png"  # colours
    values["images"][1]["depth_file_name"] = "depth.png"  # not there
    report = check(folder, values)
    assert found(report) == [("depth map", "image 1 (a.jpg)"), ("depth map", "image 2 (b.png)")]
    assert report.repaired["images"] == content()["images"]


def test_corners_instead_of_sizes_are_suspected(folder: Path) -> None:
    values = content()
    values["annotations"] = [box(1, 1, [20, 10, 40, 30]), box(2, 2, [15, 12, 45, 31])]
    assert any("x1, y1, x2, y2" in remark for remark in check(folder, values).remarks)
    assert not any("x1" in remark for remark in check(folder, content()).remarks)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_an_empty_list_is_a_defect(folder: Path, key: str) -> None:
    values = content()
    values[key] = []
    assert f"no {key}" in check(folder, values).counts


def everything_wrong() -> dict[str, Any]:
    """A file with a defect of nearly every kind that can be repaired."""
    values = content()
    values["images"] += [
        {"id": 1, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        {"id": "x", "file_name": "b.png"},
        {"id": 5, "file_name": "gone.jpg"},
        {"id": 6},
        {"id": 7, "file_name": "c.jpg"},
    ]
    del values["images"][2]["width"]
    values["annotations"] += [
        box(2, 3, [-5, -5, 20, 20]),
        box(4, 3, [30, 30, -20, -20]),
        box(5, 3, [1, 1, 1, 1]),
        box(6, 5, [1, 1, 5, 5]),
        box(7, 1, [2, 2, 10, 10]),
        box(8, 2, [5, 5, 25, 20], segmentation=rectangle(5, 5, 10, 10)),
        {"image_id": 3, "category_id": 1, "bbox": [9, 9, 9, 9]},
        {"id": None},
    ]
    values["categories"] += [{"id": 2, "name": "cat"}, {"id": 3, "name": "car"}, {"id": 4}, {}]
    return values


def test_a_repaired_copy_is_sound_and_repairs_to_itself(folder: Path) -> None:
    report = check(folder, everything_wrong())
    assert len(report.defects) > 15
    assert report.repairs[""] == 0
    again = check(folder, report.repaired)
    assert again.defects == []
    assert again.repaired == report.repaired
    assert again.repaired["info"] == {"year": 1999}


def test_the_command_lists_repairs_and_fails(folder: Path) -> None:
    file, out = folder / "train.json", folder / "fixed.json"
    file.write_text(json.dumps(everything_wrong()))
    result = CliRunner().invoke(data, ["check", str(file), "--fix", str(out)])
    assert isinstance(result.exception, DataError)
    assert "image 3, annotation 2: box partly outside: bbox [-5, -5, 20, 20]" in result.output
    assert "annotations dropped" in result.output
    assert "defects in 8 images, 10 annotations" in str(result.exception)
    assert CliRunner().invoke(data, ["check", str(out)]).exit_code == 0
    assert not list(folder.glob("*.part"))


def test_the_command_says_where_a_copy_without_its_images_belongs(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    away, beside = elsewhere / "fixed.json", folder / "fixed.json"
    file = folder / "train.json"
    file.write_text(json.dumps(everything_wrong()))
    line = f"{away}: its file names are relative to {folder}: move it there, or"
    result = CliRunner().invoke(data, ["check", str(file), "--fix", str(away)])
    assert line in result.output
    assert f"--images {folder}" in result.output
    assert CliRunner().invoke(data, ["check", str(away)]).exit_code != 0
    assert CliRunner().invoke(data, ["check", str(away), "--images", str(folder)]).exit_code == 0
    away.rename(beside)
    assert CliRunner().invoke(data, ["check", str(beside)]).exit_code == 0
    # a folder in which they are found will do, whatever its name; so does one for no image
    for entry in folder.iterdir():
        (elsewhere / entry.name).symlink_to(entry)
    result = CliRunner().invoke(data, ["check", str(file), "--fix", str(elsewhere / "other.json")])
    assert "its file names are relative" not in result.output
    file.write_text(json.dumps(content() | {"images": []}))
    nowhere = tmp_path_factory.mktemp("nowhere") / "none.json"
    result = CliRunner().invoke(data, ["check", str(file), "--fix", str(nowhere)])
    assert f"{nowhere}: written" in result.output
    assert "its file names are relative" not in result.output


def test_what_nothing_repairs_is_not_called_repaired(folder: Path) -> None:
    file, out = folder / "train.json", folder / "fixed.json"
    sided = content()
    sided["categories"][0]["name"] = "left_shoe"
    file.write_text(json.dumps(sided))
    result = CliRunner().invoke(data, ["check", str(file), "--fix", str(out)])
    assert f"{out}: written\n       1 left as they are" in result.output
    assert "with data.flip: off" in result.output


def test_the_command_passes_a_sound_file(folder: Path) -> None:
    file = folder / "train.json"
    file.write_text(json.dumps(content()))
    result = CliRunner().invoke(
        data, ["check", str(file), "--images", str(folder), "--flip", "off"]
    )
    assert result.exit_code == 0
    assert "3 images, 2 annotations, no defects" in result.output
    assert result.stderr == ""


def test_the_checked_file_is_not_overwritten(folder: Path) -> None:
    report = check(folder, content())
    with pytest.raises(ValueError, match="must name another file"):
        write_repaired(report, folder / "train.json")
    result = CliRunner().invoke(
        data, ["check", str(folder / "train.json"), "--fix", str(folder / "train.json")]
    )
    assert result.exit_code == 2


def test_a_repair_that_cannot_be_written_gets_one_line(folder: Path) -> None:
    report = check(folder, content())
    with pytest.raises(DataError, match=r"out\.json: cannot be written: No such file"):
        write_repaired(report, folder / "nowhere" / "out.json")


def test_unreadable_files_and_folders_get_one_line(folder: Path) -> None:
    with pytest.raises(DataError, match="no such annotation file"):
        check_annotations(folder / "gone.json")
    with pytest.raises(DataError, match="no such folder of images"):
        check(folder, content(), image_root=folder / "gone")


@pytest.mark.parametrize("name", ["pennfudan", "coco_person1"])
def test_real_sets_are_sound(data_root: Path, name: str) -> None:
    assert check_annotations(data_root / name / "val.json").defects == []


def test_real_car_parts_have_a_left_and_a_right(data_root: Path) -> None:
    report = check_annotations(data_root / "carparts" / "val.json")
    assert set(report.counts) == {"left/right with flip on"}
    assert report.counts["left/right with flip on"] == 5
