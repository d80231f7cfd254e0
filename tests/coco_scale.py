"""A COCO file of COCO's size: written from a seed, so that loading and scoring it can be timed.

    python tests/coco_scale.py FOLDER [--images 118000] [--objects 860000] [--json FILE]

writes FOLDER once (about 450 MB of json; the images are links to a few hundred files) and prints
seconds and memory of opening it the first time and from the cache, each in a process of its own,
and the seconds of box and mask AP of 5,000 images with 100 detections each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from boxseg.runtime.accuracy import evaluate

CLASSES = 80
SIZES = ((480, 640), (640, 480), (427, 640), (375, 500))
"""Heights and widths that the images have by turns."""
LINKS = 1000
"""Images that share one file; file systems bound the number of names of a file."""


def outline(
    generator: np.random.Generator, box: NDArray[np.float64], points: int
) -> NDArray[np.float64]:
    """Return a star-shaped polygon that touches the four sides of a box, (points, 2)."""
    angles = np.sort(generator.random(points)) * 2 * np.pi
    radii = 0.6 + 0.4 * generator.random(points)
    shape = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    low, high = shape.min(0), shape.max(0)
    fitted: NDArray[np.float64] = (shape - low) / np.maximum(high - low, 1e-9) * box[2:] + box[:2]
    return fitted


def draw_objects(seed: int, images: int, objects: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield the image of each object, from 0, and its box x, y, width, height."""
    generator = np.random.default_rng(seed)
    owners = np.sort(generator.integers(0, images, objects))
    sides = np.exp(generator.normal(4.0, 0.9, (objects, 2)))  # half of the sides under 55 px
    corners = generator.random((objects, 2))
    for owner, side, corner in zip(owners.tolist(), sides, corners, strict=True):
        room = np.array(SIZES[owner % len(SIZES)][::-1], dtype=np.float64)
        extent = np.clip(side, 4.0, 0.95 * room)
        yield owner, np.concatenate([corner * (room - extent), extent])


def write_annotations(path: Path, *, images: int, objects: int, seed: int = 0) -> None:
    """Write a COCO file with polygons of COCO's mean length, entry by entry."""
    generator = np.random.default_rng((seed, 1))
    with path.open("w", encoding="ascii") as file:
        file.write('{"info": {"description": "rendered"}, "licenses": [], "images": [')
        for index in range(images):
            height, width = SIZES[index % len(SIZES)]
            entry = {
                "license": 1 + index % 8,
                "file_name": f"images/{index // LINKS:03d}/{index:012d}.jpg",
                "coco_url": f"http://example.org/train/{index:012d}.jpg",
                "height": height,
                "width": width,
                "date_captured": "2013-11-14 11:18:45",
                "id": 3 * index + 9,
            }
            file.write((", " if index else "") + json.dumps(entry))
        file.write('], "annotations": [')
        for number, (owner, box) in enumerate(draw_objects(seed, images, objects)):
            crowd = number % 86 == 85
            points = 4 + int(generator.exponential(20.0))
            polygon = np.round(outline(generator, box, points), 2).ravel().tolist()
            height, width = SIZES[owner % len(SIZES)]
            runs = {"counts": [height * width // 2, height * width - height * width // 2]}
            entry = {
                "segmentation": runs | {"size": [height, width]} if crowd else [polygon],
                "area": round(float(box[2] * box[3] * 0.6), 4),
                "iscrowd": int(crowd),
                "image_id": 3 * owner + 9,
                "bbox": np.round(box, 2).tolist(),
                "category_id": 1 + int(generator.integers(CLASSES)),
                "id": 900000000000 + number,
            }
            file.write((", " if number else "") + json.dumps(entry))
        categories = [{"id": key, "name": f"class {key}"} for key in range(1, CLASSES + 1)]
        file.write('], "categories": ' + json.dumps(categories) + "}")


def write_images(folder: Path, images: int) -> None:
    """Write one file for every LINKS images of a size, and link the others to it."""
    for index in range(images):
        height, width = SIZES[index % len(SIZES)]
        place = folder / "images" / f"{index // LINKS:03d}"
        first = place / f"{index // LINKS * LINKS + index % len(SIZES):012d}.jpg"
        if index % LINKS < len(SIZES):
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (width, height), (index % 256, 90, 60)).save(first)
        else:
            os.link(first, place / f"{index:012d}.jpg")


# --- the benchmark --------------------------------------------------------------------------------

_OPEN = """
import json, resource, sys, time
from boxseg.train.coco import CocoBoxes
from boxseg.train.transforms import Geometry
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begin = time.perf_counter()
opened = CocoBoxes(sys.argv[1], transform=Geometry((32,), 640, flip="off"))
seconds = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"images": len(opened), "boxes": opened.num_boxes, "seconds": seconds,
                  "peak_rss_mb": peak / 1024, "imports_rss_mb": before / 1024}))
"""


def time_opening(annotation_file: Path, cache: Path) -> dict[str, Any]:
    """Open a data set in a process of its own; return seconds and the most memory it held."""
    environment = os.environ | {"BOXSEG_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, str(annotation_file)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class _Answers:
    """A model that answers each image, in order, with detections drawn beforehand."""

    def __init__(self, annotation_file: Path) -> None:
        content = json.loads(annotation_file.read_bytes())
        wanted: dict[int, list[dict[str, Any]]] = {}
        for entry in content["annotations"]:
            wanted.setdefault(entry["image_id"], []).append(entry)
        generator = np.random.default_rng(2)
        self._answers = [
            self._draw(generator, wanted.get(image["id"], []), (image["height"], image["width"]))
            for image in content["images"]
        ]
        self._next = 0

    def _draw(
        self, generator: np.random.Generator, near: list[dict[str, Any]], size: tuple[int, int]
    ) -> list[dict[str, Any]]:
        """Draw detections near the objects of an image, and others anywhere."""
        found = []
        for number in range(100):
            room = np.array(size[::-1], dtype=np.float64)
            box = np.concatenate([generator.random(2) * room * 0.7, 4 + generator.random(2) * 150])
            category = 1 + int(generator.integers(CLASSES))
            if number < 3 * len(near):
                entry = near[number % len(near)]
                box = np.array(entry["bbox"]) * (1 + 0.05 * generator.normal(size=4))
                category = entry["category_id"]
            box = np.maximum(box, 1.0)
            polygon = outline(generator, box, 12).ravel().tolist()
            (mask,) = coco_mask.frPyObjects([polygon], *size)
            found.append(
                {
                    "category_id": category,
                    "bbox": box.tolist(),
                    "score": float(generator.random()),
                    "segmentation": mask,
                }
            )
        return found

    def __call__(self, image: NDArray[np.uint8]) -> SimpleNamespace:
        """Return the answer of the next image."""
        answer = self._answers[self._next]
        self._next += 1
        return SimpleNamespace(to_coco=lambda _: answer)


def time_scoring(folder: Path, images: int) -> dict[str, Any]:
    """Score drawn detections; return seconds, of which reading the images is a part."""
    file = folder / "val.json"
    if not file.is_file():
        write_annotations(file, images=images, objects=round(7.3 * images), seed=1)
    model = _Answers(file)
    begin, told = time.perf_counter(), 0.0

    def judging(done: int, total: int) -> None:
        nonlocal told
        told = told or time.perf_counter()
        print(f"\rclass {done}/{total}", end="", file=sys.stderr, flush=True)

    result = evaluate(model, file, folder, judging=judging)
    end = time.perf_counter()
    print(file=sys.stderr)
    return {
        "images": result.images,
        "detections": result.detections,
        "seconds": end - begin,
        "seconds_of_judging": end - told,
        "box_ap": result.box.ap,
        "mask_ap": result.mask.ap if result.mask else None,
    }


def main() -> None:
    """Write the data if it is not there, and print what opening it costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--objects", type=int, default=860_000)
    parser.add_argument("--json", type=Path, help="write what was measured")
    arguments = parser.parse_args()
    file = arguments.folder / "train.json"
    if not file.is_file():
        arguments.folder.mkdir(parents=True, exist_ok=True)
        write_images(arguments.folder, arguments.images)
        part = file.with_suffix(".part")
        write_annotations(part, images=arguments.images, objects=arguments.objects)
        part.replace(file)
    measured: dict[str, Any] = {"json_mb": file.stat().st_size / 1e6, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as cache:
        measured["first"] = time_opening(file, Path(cache))
        measured["from_cache"] = time_opening(file, Path(cache))
    measured["scoring"] = time_scoring(arguments.folder, min(5000, arguments.images))
    print(json.dumps(measured, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
