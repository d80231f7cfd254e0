"""Rendered scenes: exact truth, the same bytes for the same seed, and no easy answers."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco_mask

from boxseg.errors import DataError
from boxseg.train.coco import CocoBoxes
from boxseg.train.data_check import check_annotations
from boxseg.train.data_commands import data
from boxseg.train.scenes import (
    CLASSES,
    GREATEST_BOX_IOU,
    GREATEST_SPLIT_IOU,
    Difficulty,
    Scene,
    _lab_to_rgb,
    _rgb_to_lab,
    colour_split_iou,
    measure_difficulty,
    render_scene,
    scene_random,
    write_scenes,
)
from boxseg.train.transforms import Geometry

SIZE = (128, 160)


def write(out: Path, images: int, *, val: int = 1, seed: int = 0) -> Difficulty:
    """Write a small set; return its difficulty."""
    steps = write_scenes(out, images=images, seed=seed, val_images=val, size=SIZE)
    return list(steps)[-1]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Scenes of the default size."""
    return [render_scene(scene_random(1, 0, index), (256, 320)) for index in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set on disk."""
    out = tmp_path_factory.mktemp("scenes") / "set"
    write(out, 6, val=3, seed=5)
    return out


def files(folder: Path) -> dict[str, bytes]:
    """Bytes of every file by its name."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_boxes_are_tight_around_the_visible_pixels(scenes: list[Scene]) -> None:
    for scene in scenes:
        for item in scene.objects:
            ys, xs = np.nonzero(item.mask)
            assert item.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_visible_masks_do_not_overlap(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert np.sum([item.mask for item in scene.objects], axis=0).max() == 1


def test_every_object_is_nearer_than_the_ground_and_in_the_order_of_the_list(
    scenes: list[Scene],
) -> None:
    for scene in scenes:
        nearness = [float(scene.depth[item.mask].mean()) for item in scene.objects]
        ground = scene.depth[~np.any([item.mask for item in scene.objects], axis=0)]
        assert min(nearness) > ground.max()
        # Objects tilt by at most 8 levels, so neighbours in the list may differ by that much.
        assert all(far < near + 8 for far, near in pairwise(nearness))


def test_every_class_and_some_occlusion_appear(scenes: list[Scene]) -> None:
    assert {item.label for scene in scenes for item in scene.objects} == set(range(len(CLASSES)))
    counts = [len(scene.objects) for scene in scenes]
    assert 3 <= np.mean(counts) <= 5
    assert max(counts) <= 6
    overlapping = 0
    for scene in scenes:
        boxes = [item.box for item in scene.objects]
        overlapping += any(
            min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
            for row, a in enumerate(boxes)
            for b in boxes[:row]
        )
    assert overlapping > len(scenes) / 4


def test_objects_are_of_a_size_that_a_small_network_sees(scenes: list[Scene]) -> None:
    sides = [
        max(item.box[2] - item.box[0], item.box[3] - item.box[1])
        for scene in scenes
        for item in scene.objects
    ]
    assert np.quantile(sides, 0.1) >= 40
    assert max(sides) <= 160


def test_neither_the_filled_box_nor_a_colour_split_finds_the_object(scenes: list[Scene]) -> None:
    boxes, splits = np.mean(measure_difficulty(scenes), axis=0)
    assert boxes <= GREATEST_BOX_IOU == 0.50
    assert splits <= GREATEST_SPLIT_IOU == 0.60


def test_the_outline_is_an_edge_and_the_inside_has_smooth_parts(scenes: list[Scene]) -> None:
    # Pairs of stride-4 cells 8 pixels apart that look alike (Lab distance under 2.4, a similarity
    # of 0.3) must hardly ever cross an outline, and exist inside.
    crossing = crossing_alike = inside = inside_alike = 0
    for scene in scenes[:20]:
        height, width = scene.depth.shape
        cells = scene.image.reshape(height // 4, 4, width // 4, 4, 3).mean(axis=(1, 3))
        lab = _rgb_to_lab(cells)
        alike = np.linalg.norm(lab[:, 2:] - lab[:, :-2], axis=-1) < 2.4
        for item in scene.objects:
            share = item.mask.reshape(height // 4, 4, width // 4, 4).mean(axis=(1, 3)) >= 0.5
            left, right = share[:, :-2], share[:, 2:]
            crossing += int((left ^ right).sum())
            crossing_alike += int(((left ^ right) & alike).sum())
            inside += int((left & right).sum())
            inside_alike += int((left & right & alike).sum())
    assert crossing_alike < 0.01 * crossing
    assert inside_alike > 0.25 * inside


def test_a_two_coloured_picture_is_split_exactly() -> None:
    image = np.zeros((20, 20, 3), dtype=np.uint8)
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    image[mask] = (250, 200, 10)
    assert colour_split_iou(image, mask) == 1.0


def test_an_object_of_two_tones_is_split_through_its_middle() -> None:
    # Ground grey, the object black and white in equal halves of 50 pixels each. Black and grey are
    # nearer in Lab than white, so the clusters are white (50) and the rest: IoU 50 / 100.
    image = np.full((20, 20, 3), 60, dtype=np.uint8)
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    image[5:10, 5:15], image[10:15, 5:15] = 0, 255
    assert colour_split_iou(image, mask) == 0.5


def test_one_colour_is_one_cluster() -> None:
    image = np.full((10, 10, 3), 90, dtype=np.uint8)
    mask = np.zeros((10, 10), dtype=bool)
    mask[:, :4] = True
    assert colour_split_iou(image, mask) == 0.4


def test_lab_of_known_colours() -> None:
    # CIE Lab of the corners of sRGB under D65; back to the nearest byte.
    known = {
        (255, 255, 255): (100, 0, 0),
        (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 0, 255): (32.30, 79.19, -107.86),
    }
    for rgb, lab in known.items():
        np.testing.assert_allclose(_rgb_to_lab(np.array(rgb)), lab, atol=0.05)
        np.testing.assert_allclose(_lab_to_rgb(lab), rgb, atol=0.5)


def test_the_same_arguments_write_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "again", 6, val=3, seed=5)
    assert files(tmp_path / "again") == files(folder)


def test_another_seed_writes_other_scenes(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", 6, val=3, seed=6)
    ours, others = files(folder), files(tmp_path / "other")
    assert all(ours[name] != others[name] for name in ours)


def test_a_scene_does_not_depend_on_how_many_are_rendered(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "few", 2, seed=5)
    name = "images/train_00001.jpg"
    assert (tmp_path / "few" / name).read_bytes() == (folder / name).read_bytes()
    assert files(folder)["images/train_00000.jpg"] != files(folder)["images/val_00000.jpg"]


def test_the_files_hold_what_was_rendered(folder: Path) -> None:
    content = json.loads((folder / "train.json").read_text())
    scene = render_scene(scene_random(5, 0, 0), SIZE)
    entries = [entry for entry in content["annotations"] if entry["image_id"] == 1]
    assert len(entries) == len(scene.objects)
    for entry, item in zip(entries, scene.objects, strict=True):
        rle = {**entry["segmentation"], "counts": entry["segmentation"]["counts"].encode()}
        assert coco_mask.area(rle) == item.mask.sum() == entry["area"]
        assert coco_mask.toBbox(rle).tolist() == entry["bbox"]
        assert content["categories"][item.label]["name"] == CLASSES[item.label]
        assert entry["category_id"] == item.label + 1
    depth = np.asarray(Image.open(folder / content["images"][0]["depth_file_name"]))
    np.testing.assert_array_equal(depth, scene.depth)


def test_the_files_pass_the_check_and_load(folder: Path) -> None:
    for name in ("train.json", "val.json"):
        assert check_annotations(folder / name).defects == []
    images = CocoBoxes(
        folder / "train.json",
        transform=Geometry((128,), 320),
        with_depth=True,
        with_masks=True,
        strict=True,
    )
    assert len(images) == 6
    assert images[0].image.shape == (3, *SIZE)


def test_annotation_ids_do_not_repeat(folder: Path) -> None:
    for key in ("images", "annotations"):
        identifiers = [
            entry["id"]
            for name in ("train.json", "val.json")
            for entry in json.loads((folder / name).read_text())[key]
        ]
        assert len(set(identifiers)) == len(identifiers)


def test_other_annotations_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "val.json").write_text('{"images": []}')
    with pytest.raises(DataError, match=r"val\.json: holds other data"):
        write(tmp_path, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file; name a folder"):
        write(tmp_path / "file", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "at least one image, got 0 and 1"),
        ({"size": (64, 320)}, "size must be at least 96 96"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, options: dict[str, int], message: str) -> None:
    given = {"images": 1, "seed": 0, "val_images": 1, **options}
    with pytest.raises(ValueError, match=message):
        list(write_scenes(tmp_path, **given))  # type: ignore[arg-type]  # one of them is wrong


def test_the_command_prints_its_difficulty(tmp_path: Path) -> None:
    given = ["scenes", str(tmp_path / "out"), "--images", "5", "--size", "96", "128"]
    result = CliRunner().invoke(data, given)
    assert result.exit_code == 0, result.output
    assert "5 training and 1 validation scene of 96 x 128 pixels" in result.output
    assert "mean IoU of the filled true box with the mask: 0." in result.output
    assert "mean IoU of the best two-cluster colour split: 0." in result.output
    assert len(list((tmp_path / "out" / "images").iterdir())) == 6


@pytest.mark.parametrize("option", [["--images", "0"], ["--size", "5", "5"], ["--val", "x"]])
def test_the_command_refuses_wrong_options(tmp_path: Path, option: list[str]) -> None:
    result = CliRunner().invoke(data, ["scenes", str(tmp_path), *option])
    assert result.exit_code == 2
    assert "Traceback" not in result.output
