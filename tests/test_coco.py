"""COCO files in: what is kept, what is dropped, what is refused."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_images import PNG_OF_10_GIGAPIXELS

from boxseg.errors import DataError
from boxseg.train import coco
from boxseg.train.annotation_table import parse_annotation_file
from boxseg.train.coco import CocoBoxes, image_size, read_depth
from boxseg.train.transforms import Geometry, collate

GEOMETRY = Geometry((32,), 640, flip="off")


def picture(path: Path, height: int = 32, width: int = 48, **options: Any) -> None:
    """Write a noisy image."""
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def annotation(identifier: int, image: int, bbox: list[float], category: int = 2) -> dict[str, Any]:
    """One annotation whose mask is its box."""
    x, y, w, h = bbox
    return {
        "id": identifier,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "iscrowd": 0,
        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images; the second has no box."""
    for name in ("a.jpg", "b.png"):
        picture(tmp_path / "images" / name)
    return tmp_path


def content() -> dict[str, Any]:
    """A sound file for the folder above; category 1 has no annotation."""
    return {
        "images": [
            {"id": 20, "file_name": "images/b.png", "height": 32, "width": 48},
            {"id": 10, "file_name": "images/a.jpg", "height": 32, "width": 48},
        ],
        "annotations": [
            annotation(1, 10, [4, 8, 16, 12], category=7),
            annotation(2, 10, [20, 2, 10, 30], category=2),
        ],
        "categories": [
            {"id": 7, "name": "wheel"},
            {"id": 1, "name": "background"},
            {"id": 2, "name": "door"},
        ],
    }


def open_set(folder: Path, values: object, **options: Any) -> CocoBoxes:
    """Write a file and open it."""
    file = folder / "train.json"
    file.write_text(values if isinstance(values, str) else json.dumps(values))
    return CocoBoxes(file, folder, transform=GEOMETRY, **options)


def test_a_sound_file_is_read_in_the_order_of_image_ids(folder: Path) -> None:
    images = open_set(folder, content())
    assert len(images) == 2
    assert images.image_ids.tolist() == [10, 20]
    assert images.num_boxes == 2
    sample = images[0]
    assert sample.boxes.tolist() == [[4, 8, 20, 20], [20, 2, 30, 32]]
    assert sample.labels.tolist() == [1, 0]  # wheel (7) comes after door (2)
    assert sample.masks is None
    assert images[1].boxes.shape == (0, 4)  # background
    assert not images.dropped


def test_classes_are_the_categories_with_an_annotation_by_id(folder: Path) -> None:
    images = open_set(folder, content())
    assert images.classes == ("door", "wheel")
    assert images.category_ids == (2, 7)
    assert any("left out: background" in note for note in images.notes)


def test_named_classes_come_in_the_named_order(folder: Path) -> None:
    images = open_set(folder, content(), classes=["wheel", "background"])
    assert images.category_ids == (7, 1)
    assert images[0].labels.tolist() == [0]
    assert images.dropped["objects of classes left out"] == 1
    assert any("without an annotation: background" in note for note in images.notes)


def test_masks_are_dropped_at_the_door(folder: Path) -> None:
    file = folder / "train.json"
    file.write_text(json.dumps(content()))
    assert "segmentation" not in parse_annotation_file(file, with_masks=False)["annotations"][0]
    assert "segmentation" in parse_annotation_file(file, with_masks=True)["annotations"][0]


def test_a_mask_supervised_recipe_gets_true_masks(folder: Path) -> None:
    sample = open_set(folder, content(), with_masks=True)[0]
    assert sample.masks is not None
    expected = np.zeros((32, 48), dtype=np.uint8)
    expected[8:20, 4:20] = 1
    np.testing.assert_array_equal(sample.masks[0].numpy(), expected)


def test_uncompressed_run_lengths_are_masks_too(folder: Path) -> None:
    values = content()
    # Column-major: 32 zeros are column 0; then 64 ones are columns 1 and 2; the rest is zero.
    values["annotations"] = [annotation(1, 10, [1, 0, 2, 32])]
    values["annotations"][0]["segmentation"] = {"size": [32, 48], "counts": [32, 64, 1440]}
    sample = open_set(folder, values, with_masks=True)[0]
    assert sample.masks is not None
    assert sample.masks[0, :, 1:3].all()
    assert int(sample.masks.sum()) == 64


@pytest.mark.parametrize(
    "segmentation", [None, [], {"size": [3, 3], "counts": [9]}, {"size": [32, 48], "counts": "@@"}]
)
def test_a_recipe_with_masks_refuses_an_annotation_without(
    folder: Path, segmentation: object
) -> None:
    values = content()
    values["annotations"][0]["segmentation"] = segmentation
    with pytest.raises(DataError, match=r"annotations\[0\] \(id 1, image 10\).* mask"):
        open_set(folder, values, with_masks=True)


def test_boxes_are_clipped_to_the_image(folder: Path) -> None:
    values = content()
    values["annotations"] = [annotation(1, 10, [-5, -3, 20, 100])]
    assert open_set(folder, values)[0].boxes.tolist() == [[0, 0, 15, 32]]


@pytest.mark.parametrize(
    "bbox",
    [
        [4, 4, 1.9, 9],
        [4, 4, 9, 0],
        [4, 4, -9, 9],
        [47, 4, 9, 9],  # one pixel inside
        [100, 4, 9, 9],
    ],
)
def test_boxes_under_two_pixels_in_the_image_are_dropped_and_counted(
    folder: Path, bbox: list[float]
) -> None:
    values = content()
    values["annotations"].append(annotation(3, 10, bbox))
    images = open_set(folder, values)
    assert images.num_boxes == 2
    assert images.dropped == {"boxes under 2 px": 1}
    assert any(
        "dropped boxes under 2 px (1), first" in note and "id 3" in note for note in images.notes
    )
    with pytest.raises(DataError, match=r"id 3, image 10.*strict"):
        open_set(folder, values, strict=True)


def test_a_box_of_two_pixels_stays(folder: Path) -> None:
    values = content()
    values["annotations"] = [annotation(1, 10, [46, 4, 9, 9])]
    assert open_set(folder, values)[0].boxes.tolist() == [[46, 4, 48, 13]]


@pytest.mark.parametrize("key", ["iscrowd", "difficult"])
def test_crowds_and_difficult_objects_are_no_targets(folder: Path, key: str) -> None:
    values = content()
    values["annotations"][0][key] = 1
    images = open_set(folder, values, strict=True)
    assert images.num_boxes == 1
    assert images.dropped == {"crowd or difficult objects": 1}


def test_a_missing_image_is_dropped_with_its_boxes(folder: Path) -> None:
    (folder / "images" / "a.jpg").unlink()
    images = open_set(folder, content())
    assert images.image_ids.tolist() == [20]
    assert images.num_boxes == 0
    assert images.dropped == {"missing images": 1}
    with pytest.raises(DataError, match=r"a\.jpg: no such image file \(image 10\) \(strict\)"):
        open_set(folder, content(), strict=True)


@pytest.mark.parametrize("name", ["a.jpg", "b.png"])
@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.97])
def test_a_truncated_image_is_dropped_when_the_set_is_opened(
    folder: Path, name: str, kept: float
) -> None:
    file = folder / "images" / name
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    images = open_set(folder, content())
    assert images.dropped == {"corrupt images": 1}
    assert len(images) == 1
    images[0]
    with pytest.raises(DataError, match=name):
        open_set(folder, content(), strict=True)


def test_a_size_that_is_not_the_files_drops_the_image(folder: Path) -> None:
    values = content()
    values["images"][0]["width"] = 47
    images = open_set(folder, values)
    assert images.image_ids.tolist() == [10]
    with pytest.raises(DataError, match=r"is 32 x 48, the json says 32 x 47 \(image 20\)"):
        open_set(folder, values, strict=True)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boxseg.runtime.images.PIXEL_LIMIT", 32 * 48 - 1)
    with pytest.raises(DataError, match="32 x 48 pixels; the limit is 1535 pixels"):
        image_size(folder / "images" / "a.jpg")


def test_a_size_that_is_not_stated_is_read_from_the_file(folder: Path) -> None:
    values = content()
    for entry in values["images"]:
        del entry["height"], entry["width"]
    assert open_set(folder, values, strict=True)[0].original_size == (32, 48)


def test_sizes_are_those_after_the_exif_turn(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    picture(folder / "images" / "a.jpg", exif=exif)
    assert image_size(folder / "images" / "a.jpg") == (48, 32)
    values = content()
    values["images"][1].update(height=48, width=32)
    assert open_set(folder, values, strict=True)[0].original_size == (48, 32)


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "P", "CMYK"])
def test_every_kind_of_pixel_becomes_rgb(folder: Path, mode: str) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (32, 48), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    name = "c.tif" if mode == "CMYK" else "c.png"
    image.save(folder / "images" / name)
    values = content()
    values["images"][1]["file_name"] = f"images/{name}"
    sample = open_set(folder, values, strict=True)[0]
    assert sample.image.shape == (3, 32, 48)
    if mode in ("L", "I;16"):
        np.testing.assert_array_equal(sample.image.numpy(), np.stack([grey] * 3))


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "{root}/secret.png"])
def test_a_name_that_leaves_the_folder_is_dropped_and_never_opened(folder: Path, name: str) -> None:
    root = folder / "data"
    root.mkdir()
    (folder / "images").rename(root / "images")
    picture(folder / "secret.png")
    values = content()
    values["images"][0]["file_name"] = name.format(root=folder)
    images = open_set(root, values)
    assert images.dropped == {"images outside the data folder": 1}
    assert images.image_ids.tolist() == [10]
    with pytest.raises(DataError, match=r"secret\.png' lies outside .*\(image 20\) \(strict\)"):
        open_set(root, values, strict=True)


def test_a_depth_map_outside_the_folder_is_none(folder: Path) -> None:
    values = content()
    for entry in values["images"]:
        entry["depth_file_name"] = "../depth.png"
    with pytest.raises(
        DataError, match=r"images without a depth map \(2\).*'../depth.png' lies outs"
    ):
        open_set(folder, values, with_depth=True)


def test_a_detour_that_stays_inside_is_fine(folder: Path) -> None:
    values = content()
    values["images"][0]["file_name"] = "images/../images/..//images/b.png"
    values["images"][1]["file_name"] = "./images/a.jpg"
    assert len(open_set(folder, values, strict=True)) == 2


def test_a_large_set_is_known_at_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco, "CACHED_FROM", 1)
    monkeypatch.setenv("BOXSEG_CACHE", str(folder / "cache"))
    first = open_set(folder, content())
    (kept,) = (folder / "cache").iterdir()
    assert f"kept for a quick next start in {kept}" in first.notes[-1]

    def read(path: Path) -> tuple[int, int]:
        raise AssertionError(f"{path} is known already")

    monkeypatch.setattr(coco, "image_size", read)
    second = open_set(folder, content())
    assert f"known from an earlier start, {kept}" in second.notes[-1]
    assert (second.classes, second.sha256) == (first.classes, first.sha256)
    for index in range(2):
        assert second[index].boxes.equal(first[index].boxes)
        assert second[index].file_name == first[index].file_name
    monkeypatch.undo()


def test_a_known_set_notices_what_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "CACHED_FROM", 1)
    monkeypatch.setenv("BOXSEG_CACHE", str(folder / "cache"))
    open_set(folder, content())
    (kept,) = (folder / "cache").iterdir()
    # another size in place of an image that is known
    picture(folder / "images" / "a.jpg", 40, 40)
    assert open_set(folder, content()).dropped == {
        "images whose size is not the one in the json": 1
    }
    (folder / "images" / "a.jpg").unlink()
    assert open_set(folder, content()).dropped == {"missing images": 1}
    picture(folder / "images" / "a.jpg")
    # another annotation file
    values = content()
    del values["annotations"][0]
    assert open_set(folder, values).num_boxes == 1
    assert len(list((folder / "cache").iterdir())) == 2
    # masks are read from the file itself
    assert open_set(folder, content(), with_masks=True)[0].masks is not None
    # a cache with arrays that fit nothing
    np.savez(kept, version=np.array(1), boxes=np.zeros(3))
    assert open_set(folder, content()).num_boxes == 2
    # and a cache folder that cannot be one
    monkeypatch.setenv("BOXSEG_CACHE", str(folder / "train.json"))
    images = open_set(folder, content())
    assert "cannot be written" in images.notes[-1]
    assert images.num_boxes == 2


def test_depth_maps_come_with_the_image(folder: Path) -> None:
    (folder / "depth").mkdir()
    Image.fromarray(np.full((16, 24), 130, dtype=np.uint8)).save(folder / "depth" / "a.png")
    Image.fromarray(np.full((16, 24), 257 * 40, dtype=np.uint16)).save(folder / "depth" / "b.png")
    values = content()
    for entry in values["images"]:
        entry["depth_file_name"] = f"depth/{Path(entry['file_name']).stem}.png"
    images = open_set(folder, values, with_depth=True)
    for index, expected in ((0, 130), (1, 40)):
        depth = images[index].depth
        assert depth is not None
        assert depth.shape == (8, 12)
        assert (depth == expected).all()
    assert open_set(folder, values)[0].depth is None


def test_an_image_without_its_depth_map_is_dropped(folder: Path) -> None:
    values = content()
    values["images"][0]["depth_file_name"] = "depth/b.png"
    with pytest.raises(DataError, match=r"none of 2 images is usable: images without a depth"):
        open_set(folder, values, with_depth=True)


def test_data_without_depth_maps_names_both_cures(folder: Path) -> None:
    make = f"make depth maps with boxseg data depth {folder} --predictor FILE.onnx"
    cures = f"{make}, or train without depth: -o terms.depth=null -o a.b=0"
    values = content()
    settings = ("terms.depth=null", "a.b=0")
    with pytest.raises(DataError, match=re.escape(cures)) as refused:
        open_set(folder, values, with_depth=True, without_depth=settings)
    assert "\n" not in str(refused.value)
    # one of two images without a map: the other is used, and the note says what to do
    Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(folder / "map.png")
    values["images"][0]["depth_file_name"] = "map.png"
    images = open_set(folder, values, with_depth=True, without_depth=settings)
    assert len(images) == 1
    assert any(note.endswith(cures) for note in images.notes)
    # who trains by no recipe is told the one cure that is left
    assert any(note.endswith(make) for note in open_set(folder, values, with_depth=True).notes)


def test_a_colour_depth_map_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"b\.png: a depth map is an 8- or 16-bit grey PNG, got"):
        read_depth(folder / "images" / "b.png")


def test_a_huge_depth_map_is_refused_before_it_is_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "huge.png").write_bytes(PNG_OF_10_GIGAPIXELS)
    with pytest.raises(DataError, match=r"huge\.png: too many pixels"):
        read_depth(folder / "huge.png")
    Image.fromarray(np.zeros((4, 5), dtype=np.uint8)).save(folder / "map.png")
    monkeypatch.setattr("boxseg.runtime.images.PIXEL_LIMIT", 19)
    with pytest.raises(DataError, match=r"map\.png: 4 x 5 pixels; the limit is 19"):
        read_depth(folder / "map.png")


def change(values: dict[str, Any], key: str, position: int, **changes: Any) -> dict[str, Any]:
    """A copy of a file with one entry changed; None deletes a key."""
    values = copy.deepcopy(values)
    for name, value in changes.items():
        if value is None:
            del values[key][position][name]
        else:
            values[key][position][name] = value
    return values


SOUND = content()
BROKEN: list[tuple[object, str]] = [
    ("", "broken json at line 1, column 1"),
    ('{"images": [', "broken json at line 1"),
    ("[" * 100000, "broken json"),
    ([], "a COCO file is an object with images, annotations and categories, got a list"),
    ({"images": [], "annotations": []}, "the key 'categories' is missing"),
    ({**SOUND, "annotations": {}}, "'annotations' must be a list, got a dict"),
    ({**SOUND, "annotations": [3]}, r"annotations\[0\] must be an object, got 3"),
    ({**SOUND, "images": []}, "'images' is empty"),
    ({**SOUND, "categories": []}, "'categories' is empty"),
    ({**SOUND, "annotations": []}, "no annotations, so there is nothing to learn from"),
    (change(SOUND, "images", 0, id=None), r"images\[0\].*'id' must be an integer, got None"),
    (change(SOUND, "images", 0, id="x"), "'id' must be an integer, got 'x'"),
    (change(SOUND, "images", 0, id=2**70), "'id' must be an integer"),
    (change(SOUND, "images", 0, id=10), "image id 10 is used twice"),
    (change(SOUND, "images", 0, file_name=None), "'file_name' must be a text, got None"),
    (change(SOUND, "annotations", 0, image_id=99), "unknown image id 99"),
    (change(SOUND, "annotations", 0, category_id=99), "unknown category id 99; known are 1, 2, 7"),
    (change(SOUND, "annotations", 0, category_id=None), "'category_id' must be an integer"),
    (change(SOUND, "annotations", 0, bbox=None), "'bbox' must be numbers .*, got None"),
    (change(SOUND, "annotations", 0, bbox=[1, 2, 3]), r"'bbox' must be .*, got \[1, 2, 3\]"),
    (change(SOUND, "annotations", 0, bbox=[1, 2, "3", 4]), "'bbox' must be numbers"),
    (change(SOUND, "annotations", 0, bbox=[1, 2, float("nan"), 4]), "'bbox' must be numbers"),
    (change(SOUND, "annotations", 0, bbox=[1, 2, 10**400, 4]), "'bbox' must be numbers"),
    (change(SOUND, "categories", 0, id=2), "category id 2 is used twice"),
    (change(SOUND, "categories", 0, name="door"), "category name 'door' is used twice"),
    (change(SOUND, "categories", 0, name=""), "'name' must be a text, got ''"),
]


@pytest.mark.parametrize(("values", "message"), BROKEN)
def test_a_broken_file_gets_one_line(folder: Path, values: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_set(folder, values)
    assert "\n" not in str(caught.value)
    assert "train.json" in str(caught.value)


def test_bytes_that_are_no_text_get_one_line(folder: Path) -> None:
    (folder / "train.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"train\.json: (not a text|broken json)"):
        CocoBoxes(folder / "train.json", transform=GEOMETRY)


def test_a_missing_file_and_a_folder_get_one_line(folder: Path) -> None:
    with pytest.raises(DataError, match="no such annotation file"):
        CocoBoxes(folder / "nothing.json", transform=GEOMETRY)
    with pytest.raises(DataError, match="is a folder, not a COCO json"):
        CocoBoxes(folder, transform=GEOMETRY)


def test_an_unknown_class_is_refused_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(DataError, match="unknown class 'car'; categories are background, door, wh"):
        open_set(folder, content(), classes=["car"])


def test_no_usable_image_says_why(folder: Path) -> None:
    for file in (folder / "images").iterdir():
        file.unlink()
    with pytest.raises(
        DataError, match=r"none of 2 images is usable: missing images \(2\); first: .*"
    ):
        open_set(folder, content())


def test_an_image_that_breaks_after_opening_says_so(folder: Path) -> None:
    images = open_set(folder, content())
    picture(folder / "images" / "a.jpg", 40, 40)
    with pytest.raises(DataError, match="was 32 x 48 when the set was opened, now 40 x 40"):
        images[0]


def test_a_worker_gets_a_copy_that_reads_the_same(folder: Path) -> None:
    images = open_set(folder, content(), with_masks=True)
    copied = pickle.loads(pickle.dumps(images))
    first, second = images.sample(0, epoch=5), copied.sample(0, epoch=5)
    assert first.image.equal(second.image)
    assert first.boxes.equal(second.boxes)


def test_the_epoch_changes_the_draw_and_nothing_else_does(folder: Path) -> None:
    (folder / "train.json").write_text(json.dumps(content()))
    geometry = Geometry((32, 40, 48, 56), 640, seed=1)
    images = CocoBoxes(folder / "train.json", transform=geometry)
    shapes = [images.sample(0, epoch=epoch).image.shape for epoch in range(12)]
    assert len(set(shapes)) > 1
    images.sample(1, epoch=3)
    assert [images.sample(0, epoch=epoch).image.shape for epoch in range(12)] == shapes


def test_true_masks_fill_their_boxes_on_real_data(data_root: Path) -> None:
    images = CocoBoxes(
        data_root / "pennfudan" / "val.json",
        transform=Geometry((288,), 640, flip="on"),
        with_masks=True,
        with_depth=True,
        strict=True,
    )
    assert images.classes == ("person",)
    assert len(images) == 34
    assert images.num_boxes == 86
    batch = collate([images[index] for index in range(4)])
    assert batch.masks is not None
    assert batch.depth is not None
    assert batch.depth.shape[1:] == (batch.images.shape[2] // 4, batch.images.shape[3] // 4)
    for boxes, masks in zip(batch.boxes, batch.masks, strict=True):
        for box, mask in zip(boxes, masks, strict=True):
            rows = mask.any(dim=1).nonzero()[:, 0]
            columns = mask.any(dim=0).nonzero()[:, 0]
            spans = [columns[0] * 4, rows[0] * 4, columns[-1] * 4 + 4, rows[-1] * 4 + 4]
            assert all(abs(float(a) - float(b)) < 5 for a, b in zip(box, spans, strict=True))
