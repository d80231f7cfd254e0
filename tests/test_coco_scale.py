"""A file of COCO's size opens within bounds; a small one of the same kind opens at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from coco_scale import time_opening, write_annotations, write_images

from boxseg.train.coco import CocoBoxes
from boxseg.train.transforms import Geometry


def test_the_generated_file_is_sound(tmp_path: Path) -> None:
    write_annotations(tmp_path / "train.json", images=12, objects=200)
    write_images(tmp_path, 12)
    content = json.loads((tmp_path / "train.json").read_text())
    lengths = [len(entry["segmentation"][0]) for entry in content["annotations"][:85]]
    assert 30 < sum(lengths) / len(lengths) < 70  # COCO's polygons have about 24 points
    opened = CocoBoxes(
        tmp_path / "train.json",
        transform=Geometry((32,), 640, flip="off"),
        strict=True,
        with_masks=True,
    )
    assert len(opened) == 12
    # objects 85 and 171 are crowds
    assert opened.num_boxes == 198
    assert opened.dropped == {"crowd or difficult objects": 2}
    for entry in content["annotations"][:85]:
        (polygon,) = entry["segmentation"]
        x, y, width, height = entry["bbox"]
        xs, ys = polygon[::2], polygon[1::2]
        around = [min(xs), min(ys), max(xs), max(ys)]
        assert around == pytest.approx([x, y, x + width, y + height], abs=0.02)


@pytest.mark.slow
def test_a_file_of_cocos_size_opens_within_2_gigabytes(tmp_path: Path) -> None:
    write_annotations(tmp_path / "train.json", images=118_000, objects=860_000)
    write_images(tmp_path, 118_000)
    assert (tmp_path / "train.json").stat().st_size > 440_000_000
    first = time_opening(tmp_path / "train.json", tmp_path / "cache")
    again = time_opening(tmp_path / "train.json", tmp_path / "cache")
    for found in (first, again):
        assert (found["images"], found["boxes"]) == (118_000, 850_000)
        assert found["peak_rss_mb"] < 2048
    # the limits, 15 s and 3 s, are for a quiet machine; the ratio holds on any
    assert again["seconds"] < first["seconds"] / 2
