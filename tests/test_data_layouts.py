"""Pascal VOC 2012 and Cityscapes as they are published become train.json and val.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco_mask

from boxseg.errors import DataError
from boxseg.runtime.accuracy import load_truth
from boxseg.train.annotation_table import read_table
from boxseg.train.data_check import check_annotations
from boxseg.train.data_commands import data
from boxseg.train.data_layouts import VOC_CLASSES, write_cityscapes, write_voc

Corners = tuple[object, object, object, object]


def voc_object(name: str, corners: Corners, more: str = "") -> str:
    """An object as Annotations/*.xml has it; with a part, whose box and name are not its own."""
    keys = ("xmin", "ymin", "xmax", "ymax")
    sides = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners, strict=True))
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object>{part}<name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"


def write_xml(root: Path, name: str, objects: Sequence[str]) -> Path:
    """Write an annotation file."""
    path = root / "Annotations" / f"{name}.xml"
    path.write_text(f"<annotation><size/>{''.join(objects)}</annotation>")
    return path


def write_palette(path: Path, numbers: object) -> None:
    """Write a palette PNG whose indices are the numbers."""
    image = Image.fromarray(np.array(numbers, dtype=np.uint8), "P")
    image.putpalette([(7 * index) % 256 for index in range(768)])
    image.save(path)


def write_jpeg(root: Path, name: str, size: tuple[int, int]) -> None:
    """Write an image of H, W pixels."""
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """VOC of three images: one to train on, one to judge, one that no list names.

    The image to judge has H, W = 6, 8, a dog in a border, a difficult person with and a cat without
    a pixel of its own.
    """
    root = tmp_path / "VOC2012"
    for folder in ("Annotations", "JPEGImages", "SegmentationObject", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name, size in (("2007_000001", (5, 4)), ("2007_000002", (6, 8)), ("2008_000003", (5, 4))):
        write_jpeg(root, name, size)
    sets = root / "ImageSets" / "Segmentation"
    (sets / "train.txt").write_text("2007_000001\n")
    (sets / "val.txt").write_text("2007_000002\n")
    write_xml(root, "2007_000001", [voc_object("tvmonitor", (1, 1, 4, 5))])
    write_xml(root, "2008_000003", [voc_object("sheep", ("1.5", 2, "3.25", 3))])
    write_xml(
        root,
        "2007_000002",
        [
            voc_object("dog", (2, 1, 5, 4), "<difficult>0</difficult>"),
            voc_object("person", (7, 5, 8, 6), "<difficult>1</difficult>"),
            voc_object("cat", (8, 1, 8, 2)),
        ],
    )
    write_palette(root / "SegmentationObject" / "2007_000001.png", np.ones((5, 4)))
    write_palette(
        root / "SegmentationObject" / "2007_000002.png",
        [
            [0, 255, 255, 255, 255, 0, 0, 255],
            [0, 255, 1, 1, 255, 0, 0, 255],
            [0, 255, 1, 255, 255, 0, 0, 0],
            [0, 255, 255, 255, 255, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 2, 2],
            [0, 0, 0, 0, 0, 0, 255, 2],
        ],
    )
    return root


def content_of(folder: Path, split: str) -> dict[str, Any]:
    """What a written file holds."""
    values: dict[str, Any] = json.loads((folder / f"{split}.json").read_text())
    return values


def pixels(entry: dict[str, Any]) -> list[list[int]]:
    """Row and column of every pixel of an annotation's mask, by rows."""
    found: list[list[int]] = np.argwhere(coco_mask.decode(entry["segmentation"])).tolist()
    return found


def test_corners_of_voc_count_from_1_and_are_inside_the_box(voc_root: Path) -> None:
    write_voc(voc_root)
    (monitor,) = content_of(voc_root, "train")["annotations"]
    assert monitor["bbox"] == [0, 0, 4, 5]  # the whole image of 4 x 5 pixels
    dog, person, cat = content_of(voc_root, "val")["annotations"]
    assert dog["bbox"] == [1, 0, 4, 4]
    assert person["bbox"] == [6, 4, 2, 2]
    assert cat["bbox"] == [7, 0, 1, 2]


def test_categories_of_voc_are_1_to_20_in_its_order(voc_root: Path) -> None:
    write_voc(voc_root)
    content = content_of(voc_root, "val")
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    assert len(VOC_CLASSES) == len(names) == 20
    assert (names[1], names[8], names[12], names[15], names[20]) == (
        *("aeroplane", "cat", "dog", "person", "tvmonitor"),
    )
    assert [entry["category_id"] for entry in content["annotations"]] == [12, 15, 8]


def test_the_mask_of_an_object_of_voc_is_its_number_without_the_border(voc_root: Path) -> None:
    write_voc(voc_root)
    dog, person, cat = content_of(voc_root, "val")["annotations"]
    assert pixels(dog) == [[1, 2], [1, 3], [2, 2]]
    assert pixels(person) == [[4, 6], [4, 7], [5, 7]]
    assert (dog["area"], person["area"], cat["area"]) == (3, 3, 2)
    assert "segmentation" not in cat


def test_difficult_and_unmasked_objects_of_voc_are_not_judged(voc_root: Path) -> None:
    train, val = write_voc(voc_root)
    assert [entry["unjudged"] for entry in load_truth(voc_root / "val.json").annotations] == [
        *(False, True, True),
    ]
    path = voc_root / "val.json"
    targets = ~read_table(path, path.read_bytes(), with_masks=False).unjudged
    assert targets.tolist() == [True, False, True]  # a cat without a mask still has its box
    assert (train.images, train.objects, train.unjudged, train.notes) == (1, 1, 0, [])
    assert (val.images, val.objects, val.unjudged) == (1, 1, 2)
    assert val.notes == [
        "1 object without a pixel in the file of masks: targets, but not judged; "
        "first 2007_000002, object 3"
    ]


def test_a_mask_outside_its_box_is_told(voc_root: Path) -> None:
    write_xml(
        voc_root,
        "2007_000002",
        [voc_object("person", (7, 5, 8, 6)), voc_object("dog", (2, 1, 5, 4))],  # exchanged
    )
    _, val = write_voc(voc_root)
    (note,) = val.notes
    assert note.startswith("warning: 2 masks mostly outside the box of the same number")
    assert note.endswith("First 2007_000002, object 1")


def test_voc_without_masks_in_train_json_needs_no_files_of_masks_there(voc_root: Path) -> None:
    mask = voc_root / "SegmentationObject" / "2007_000001.png"
    mask.unlink()
    with pytest.raises(DataError) as caught:
        write_voc(voc_root)
    listed = voc_root / "ImageSets" / "Segmentation" / "train.txt"
    assert str(caught.value) == (
        f"{mask}: no such file of masks, but {listed} names 2007_000001; "
        "--boxes-only leaves masks out of train.json"
    )
    assert not (voc_root / "train.json").exists()
    write_voc(voc_root, boxes_only=True)
    (monitor,) = content_of(voc_root, "train")["annotations"]
    assert "segmentation" not in monitor
    assert (monitor["bbox"], monitor["area"]) == ([0, 0, 4, 5], 20)
    assert "ignore" not in monitor
    assert "segmentation" in content_of(voc_root, "val")["annotations"][0]


def test_a_train_list_may_hold_paths_and_boxes_may_have_fractions(voc_root: Path) -> None:
    listed = voc_root.parent / "train_aug.txt"
    listed.write_text("/JPEGImages/2008_000003.jpg /SegmentationClassAug/2008_000003.png\n\n")
    write_voc(voc_root, train_list=listed, boxes_only=True)
    content = content_of(voc_root, "train")
    assert [entry["file_name"] for entry in content["images"]] == ["JPEGImages/2008_000003.jpg"]
    assert content["annotations"][0]["bbox"] == [0.5, 1, 2.75, 2]


def test_a_train_list_with_images_to_judge_is_refused(voc_root: Path) -> None:
    listed = voc_root.parent / "all.txt"
    listed.write_text("2007_000001\n2007_000002\n")
    with pytest.raises(DataError, match=r"shares 1 image with .*val\.txt, first 2007_00000"):
        write_voc(voc_root, train_list=listed)


@pytest.mark.parametrize("boxes_only", [False, True])
def test_another_folder_gets_a_link_and_is_sound(
    voc_root: Path, tmp_path: Path, boxes_only: bool
) -> None:
    out = tmp_path / "deep" / "data"
    write_voc(voc_root, out, boxes_only=boxes_only)
    assert not (voc_root / "train.json").exists()
    assert (out / "JPEGImages").samefile(voc_root / "JPEGImages")
    report = check_annotations(out / "train.json")
    assert (report.images, report.annotations, report.defects) == (1, 1, [])
    write_voc(voc_root, out)  # again: the link is there and right


def test_a_folder_with_other_data_is_left_alone(voc_root: Path, tmp_path: Path) -> None:
    for name, text in (("train.json", "{}"), ("val.json", "no json")):
        out = tmp_path / name.removesuffix(".json")
        out.mkdir()
        (out / name).write_text(text)
        with pytest.raises(DataError, match="holds other data; name a new folder for train"):
            write_voc(voc_root, out)
        assert (out / name).read_text() == text
    (tmp_path / "taken" / "JPEGImages").mkdir(parents=True)
    with pytest.raises(DataError, match=r"JPEGImages: is not .*; name a new folder as OUT"):
        write_voc(voc_root, tmp_path / "taken")
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"a\.txt: is a file; name a folder"):
        write_voc(voc_root, tmp_path / "a.txt")


def test_what_is_missing_in_voc_is_named(voc_root: Path) -> None:
    sets = voc_root / "ImageSets" / "Segmentation"
    with pytest.raises(DataError, match=r"has no folder JPEGImages; ROOT holds JPEGImages, Annot"):
        write_voc(voc_root.parent)
    with pytest.raises(DataError, match=r"gone\.txt: no such list of images"):
        write_voc(voc_root, train_list=sets / "gone.txt")
    for text, what in (
        ("\n \n", r"train\.txt: names no image"),
        ("2007_000001\n2007_000001\n", r"train\.txt: names 2007_000001 twice"),
        ("2009_000009\n", r"2009_000009\.jpg: no such image file, but .*train\.txt names it"),
    ):
        (sets / "train.txt").write_text(text)
        with pytest.raises(DataError, match=what):
            write_voc(voc_root)
    (sets / "train.txt").write_text("2007_000001\n")
    (voc_root / "Annotations" / "2007_000001.xml").unlink()
    with pytest.raises(DataError, match=r"2007_000001\.xml: no such annotation file"):
        write_voc(voc_root)


@pytest.mark.parametrize(
    ("objects", "what"),
    [
        (["<object>"], r"broken XML \("),
        (["<object><name>dog</name></object>"], "object 1: has no bndbox"),
        ([voc_object("gnu", (1, 1, 2, 2))], "object 1: 'gnu' is none of the 20 classes of VOC"),
        ([voc_object("dog", (1, "", 2, 2))], "object 1: ymin must be a number, got ''"),
        ([voc_object("dog", (1, 1, "nan", 2))], "object 1: xmax must be a number, got 'nan'"),
        (
            [voc_object("dog", (1, 1, 2, 2)), voc_object("dog", (3, 1, 2, 2))],
            "object 2: xmin, ymin, xmax, ymax are 3, 1, 2, 2; xmin and ymin must be the smaller",
        ),
        ([], r"000001\.png: has a mask of object 1, but .*000001\.xml has 0 objects; take both"),
    ],
)
def test_broken_annotations_of_voc_are_named(voc_root: Path, objects: list[str], what: str) -> None:
    write_xml(voc_root, "2007_000001", objects)
    with pytest.raises(DataError, match=what):
        write_voc(voc_root)


def test_entities_of_an_xml_file_cannot_fill_the_memory(voc_root: Path) -> None:
    names = "abcdefghij"
    entities = "<!ENTITY a 'aaaaaaaaaa'>" + "".join(
        f"<!ENTITY {name} '{f'&{before};' * 100}'>" for before, name in pairwise(names)
    )
    path = voc_root / "Annotations" / "2007_000001.xml"
    path.write_text(f"<!DOCTYPE x [{entities}]><annotation>&j;</annotation>")
    with pytest.raises(DataError, match=r"000001\.xml: broken XML"):
        write_voc(voc_root)


def test_masks_of_voc_must_be_numbers_in_the_size_of_the_image(voc_root: Path) -> None:
    path = voc_root / "SegmentationObject" / "2007_000001.png"
    write_palette(path, np.ones((4, 5)))
    with pytest.raises(DataError, match=r"is 4 x 5, its image has 5 x 4"):
        write_voc(voc_root)
    Image.new("RGB", (4, 5)).save(path)
    with pytest.raises(DataError, match=r"one number per pixel, palette or grey, got mode RGB"):
        write_voc(voc_root)
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"000001\.png: damaged picture of numbers"):
        write_voc(voc_root)


# --- Cityscapes -----------------------------------------------------------------------------------

CITY_NUMBERS = [
    [0, 0, 7, 26001, 26001, 26001],
    [24, 24, 7, 26001, 26002, 26001],
    [24, 29003, 7, 33000, 26, 65535],
    [24, 24, 7, 33000, 30, 65535],
]
"""A car around another one, persons and cars as groups, a bicycle; a caravan and a trailer."""


def write_frame(root: Path, split: str, frame: str, numbers: object) -> None:
    """Write an image of Cityscapes and its instances, 16-bit grey."""
    stored = np.array(numbers, dtype=np.uint16)
    image = root / "leftImg8bit" / split / f"{frame}_leftImg8bit.png"
    instances = root / "gtFine" / split / f"{frame}_gtFine_instanceIds.png"
    for path in (image, instances):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", stored.shape[::-1]).save(image)
    Image.fromarray(stored).save(instances)


@pytest.fixture
def city_root(tmp_path: Path) -> Path:
    """Cityscapes of two images to train on, the first without objects, and one to judge."""
    root = tmp_path / "cityscapes"
    write_frame(root, "train", "ulm/ulm_000001_000019", CITY_NUMBERS)
    write_frame(root, "train", "aachen/aachen_000000_000019", np.full((2, 3), 7))
    write_frame(root, "val", "munster/munster_000000_000019", [[25001, 31002], [32003, 27999]])
    return root


def test_instances_of_cityscapes_have_the_boxes_of_their_pixels(city_root: Path) -> None:
    write_cityscapes(city_root)
    content = content_of(city_root, "train")
    assert [(entry["id"], entry["file_name"]) for entry in content["images"]] == [
        (1, "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"),
        (2, "leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png"),
    ]
    assert (content["images"][1]["height"], content["images"][1]["width"]) == (4, 6)
    rows = [
        (entry["image_id"], entry["category_id"], entry["bbox"], entry["area"], entry["iscrowd"])
        for entry in content["annotations"]
    ]
    assert rows == [  # by number: 24, 26, 26001, 26002, 33000
        (2, 1, [0, 1, 2, 3], 5, 1),
        (2, 3, [4, 2, 1, 1], 1, 1),
        (2, 3, [3, 0, 3, 2], 5, 0),
        (2, 3, [4, 1, 1, 1], 1, 0),
        (2, 8, [3, 2, 1, 2], 2, 0),
    ]
    assert pixels(content["annotations"][0]) == [[1, 0], [1, 1], [2, 0], [3, 0], [3, 1]]
    assert pixels(content["annotations"][4]) == [[2, 3], [3, 3]]


def test_categories_of_cityscapes_are_its_labels_with_instances(city_root: Path) -> None:
    write_cityscapes(city_root)
    content = content_of(city_root, "val")
    assert [(entry["id"], entry["name"]) for entry in content["categories"]] == [
        *((1, "person"), (2, "rider"), (3, "car"), (4, "truck")),
        *((5, "bus"), (6, "train"), (7, "motorcycle"), (8, "bicycle")),
    ]
    # rider 25, truck 27, train 31, motorcycle 32
    assert [entry["category_id"] for entry in content["annotations"]] == [2, 4, 6, 7]


def test_cityscapes_keeps_masks_to_judge_when_train_json_has_boxes_only(city_root: Path) -> None:
    train, val = write_cityscapes(city_root, boxes_only=True)
    assert (train.images, train.objects, train.unjudged) == (2, 3, 2)
    assert (val.images, val.objects, val.unjudged) == (1, 4, 0)
    entries = content_of(city_root, "train")["annotations"]
    assert all("segmentation" not in entry for entry in entries)
    assert [entry["bbox"] for entry in entries[2:4]] == [[3, 0, 3, 2], [4, 1, 1, 1]]
    assert all("segmentation" in entry for entry in content_of(city_root, "val")["annotations"])


def test_what_is_missing_in_cityscapes_is_named(city_root: Path) -> None:
    image = city_root / "leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png"
    instances = city_root / "gtFine/train/ulm/ulm_000001_000019_gtFine_instanceIds.png"
    with pytest.raises(DataError, match=r"has no folder leftImg8bit/train; ROOT holds leftImg8bit"):
        write_cityscapes(city_root.parent)
    kept = instances.read_bytes()
    instances.unlink()
    with pytest.raises(
        DataError, match=r"instanceIds\.png: no such file, but .* unpack all of gtF"
    ):
        write_cityscapes(city_root)
    instances.write_bytes(kept)
    image.unlink()
    with pytest.raises(DataError, match=r"Img8bit\.png: no such file, but .*unpack all of leftImg"):
        write_cityscapes(city_root)
    for path in (*city_root.glob("*/val/*/*"), instances):
        path.unlink()
    with pytest.raises(DataError, match=r"leftImg8bit/val: holds no CITY/\*_leftImg8bit\.png"):
        write_cityscapes(city_root)
    assert not (city_root / "train.json").exists()


# --- the commands ---------------------------------------------------------------------------------


def test_the_commands_say_what_they_wrote(voc_root: Path, city_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(data, ["voc", str(voc_root), str(out)])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[:2] == [
        f"{out}/train.json: 1 image, 1 object; difficult or without a mask: 0",
        f"{out}/val.json: 1 image, 1 object; difficult or without a mask: 2",
    ]
    result = CliRunner().invoke(data, ["cityscapes", str(city_root), "--boxes-only"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"{city_root}/train.json: 2 images, 3 objects; groups: 2",
        f"{city_root}/val.json: 1 image, 4 objects; groups: 0",
    ]


@pytest.mark.parametrize("command", ["voc", "cityscapes"])
def test_a_folder_of_another_layout_is_a_data_error(command: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(data, [command, str(tmp_path)])
    assert isinstance(result.exception, DataError)
    assert result.exception.exit_code == 3
