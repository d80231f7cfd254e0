"""The files beside an exported one: manifest, golden sample and model card.

Their names and the manifest's reading are in `boxseg.runtime.golden_sample`, because a robot reads
them. No path of this machine is written into any of them.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxseg.errors import BoxSegError
from boxseg.export.model_card import model_card
from boxseg.export.portable import portable
from boxseg.export.verify import GATES, drawn_samples
from boxseg.runtime import accuracy
from boxseg.runtime.benchmark import package_version
from boxseg.runtime.golden_sample import (
    MANIFEST_VERSION,
    UNVERIFIED,
    answer,
    describe_files,
    expected_answer,
    parts_of,
    sha256_of,
    sidecars,
)
from boxseg.runtime.images import read_image
from boxseg.runtime.segmenter import Segmenter

if TYPE_CHECKING:
    from boxseg.runtime.backends import Backend

PACKAGES = (
    "boxseg",
    "numpy",
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt",
)
"""Whose versions a manifest states."""

DRAWN_SEEDS = 4
"""Drawn scenes that are tried for one on which the network finds something."""


@dataclass(frozen=True)
class Golden:
    """The image of the golden sample."""

    frame: NDArray[np.uint8]
    """RGB, (H, W, 3)."""
    source: str
    """Whose image it is, one phrase."""


def golden_image(word: str | None, reference: Backend) -> Golden | None:
    """Take the image that travels with a file.

    Args:
        word: Path of an image; "none" for no golden sample; None for a drawn scene.
        reference: The network in torch: of the drawn scenes, the first is taken on which it finds
            something, else the first of all.

    Raises:
        DataError: if the image cannot be read.
    """
    if word == "none":
        return None
    if word is not None:
        path = Path(word)
        return Golden(read_image(path), f"{path.name}, an image of whoever exported the file")
    scenes = []
    for seed in range(DRAWN_SEEDS):
        (frame,) = drawn_samples(seed, 1, noise=0.0).frames.values()
        scenes.append(Golden(frame, f"shapes drawn by boxseg (seed {seed}), nobody's photograph"))
        if len(answer(reference, frame).detections):
            return scenes[-1]
    return scenes[0]


def annotations_of(data: Path) -> Path | None:
    """Return the COCO file that a data folder or a file offers to judge on; None if it has none."""
    file = data / "val.json" if data.is_dir() else data
    return file if file.suffix == ".json" and file.is_file() else None


def score_file(
    path: Path, data: Path | None, images: int, device: str | None = None
) -> dict[str, Any]:
    """Measure the accuracy of an exported file.

    Args:
        path: The file or folder.
        data: Folder with val.json, or a COCO file; anything else has no truth.
        images: Judge the first so many images; 0 does not judge.
        device: Where the engine runs; None is its default.

    Returns:
        What `boxseg eval` reports, or `not_measured` with the reason, JSON types.
    """
    if data is None:
        return {"not_measured": "no --data was given"}
    if images == 0:
        return {"not_measured": "--accuracy-images 0"}
    file = annotations_of(data)
    if file is None:
        return {"not_measured": f"{data.name} has no annotations"}
    segmenter = Segmenter(path, conf=0.0, device=device)
    try:
        found = accuracy.evaluate(segmenter, file, file.parent, max_images=images)
    except BoxSegError as error:
        return {"not_measured": str(error)}
    return {
        "data": file.name,
        "data_sha256": sha256_of(file),
        "what": f"the file on {segmenter.backend.name}, on the first {found.images} images",
        **found.as_dict(),
    }


def rules(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Say in words how to feed a file and how to read it, with its values.

    Args:
        metadata: From `boxseg.inference.describe`.
    """
    size, head, nms, scores = (metadata[key] for key in ("imgsz", "head", "nms", "scores"))
    batch, red_green_blue = metadata["batch"], tuple(metadata["letterbox"]["padding"])
    score0 = {
        "sqrt_cls_quality": "sqrt(sigmoid(class) * sigmoid(quality))",
        "cls": "sigmoid(class)",
    }[scores["score0"]]
    final = {
        "score0": "score0",
        "sqrt_score0_mask": "sqrt(score0 * mask score)",
    }[scores["final"]]
    stride = head["mask_stride"]
    return {
        "input": f"uint8 {metadata['input']['name']} [B, {size['height']}, {size['width']}, 3], "
        f"RGB, B {batch['min']} to {batch['max']}; normalisation is in the graph",
        "letterbox": f"frame scaled to fit {size['height']} x {size['width']} (height x width), "
        "bilinear with half-pixel centres, new side = round(side * ratio), content at the top "
        f"left, right and bottom padded with RGB {red_green_blue}; coordinates go back by new side "
        "/ side of each axis",
        "candidates": f"pairs of location and class with score0 above "
        f"{scores['candidate_score']:.4f}, score0 = {score0}; the best {nms['candidates']}, ties "
        "by the lower location * classes + class",
        "suppression": f"by score0 within each class, IoU above {nms['iou']:g} (computed in "
        "float32, compared as double), ties by the lower index; at most "
        f"{nms['max_det']} detections",
        "final_score": f"{final}; detections are filtered and ordered by it, ties by the "
        "candidate's index",
        "mask_score": f"mean of sigmoid(z) over the stride-{stride} cells whose centre lies in the "
        "box and with z > 0; 0 if there is none; where the box holds no centre, z is sampled at "
        "its own",
        "mask": f"dynamic head of {len(head['layer_widths'])} layers "
        f"{'-'.join(map(str, head['layer_widths']))} on {head['mask_channels']} mask channels and "
        "2 relative coordinates, parameters weights first, then biases; coordinates in input "
        f"pixels divided by {', '.join(map(str, head['coordinate_scales']))} for P3 to P7",
        "mask_sampling": f"bilinear surface over the stride-{stride} grid, cell (i, j) at "
        f"({stride}j + {stride // 2}, {stride}i + {stride // 2}), sampled once at the centres of "
        "the frame's own pixels; the borders of the grid clamp; mask where z > 0, cut at the "
        "predicted box",
        "boxes": "x1, y1, x2, y2 in pixels, float32; a pixel belongs to a box if its centre does, "
        "and a box that holds no centre has the pixel nearest to its own",
    }


@dataclass(frozen=True)
class Story:
    """What all files of one export share."""

    metadata: Mapping[str, Any]
    training: Mapping[str, Any]
    """What the model file says about its run."""
    opset: int
    exporter: str
    """dynamo or torchscript."""
    strip: Mapping[str, Any]
    """`shipped`, the strip proof, and `left_behind`, JSON types."""
    precision: Mapping[str, Any]
    """What was asked, and what was kept in fp32 and why, JSON types."""
    private: tuple[Path, ...]
    """Paths that reports may name; they are shortened to their names."""


def write_sidecars(
    path: Path,
    kind: str,
    story: Story,
    proofs: Mapping[str, Any],
    scores: Mapping[str, Any],
    golden: tuple[Golden, Mapping[str, Any]] | None,
) -> dict[str, Any]:
    """Write manifest, golden image and model card of an exported file.

    Args:
        path: The file or folder; what lay beside it before is replaced.
        kind: Its format.
        story: What all files of the export share.
        proofs: `parity`, `audit` and `imitation` as far as there are any, JSON types.
        scores: From `score_file`.
        golden: The image and its expected answer.

    Returns:
        The manifest.
    """
    places = sidecars(path)
    sample = None
    if golden is None:
        places.golden.unlink(missing_ok=True)
    else:
        Image.fromarray(golden[0].frame).save(places.golden)
        sample = {
            "image": places.golden.name,
            "image_sha256": sha256_of(places.golden),
            "source": golden[0].source,
            **golden[1],
        }
    versions = {name: version for name in PACKAGES if (version := package_version(name))}
    metadata = dict(story.metadata)
    content = {
        "format_version": MANIFEST_VERSION,
        "name": path.name,
        "format": kind,
        "verified": proofs.get("parity") is not None,
        "files": describe_files(path),
        "metadata": metadata,
        "rules": rules(metadata),
        "licence": metadata["licence"],
        "opset": story.opset,
        "exporter": story.exporter,
        "precision": story.precision,
        "strip": story.strip,
        "training": story.training,
        "proofs": proofs,
        "accuracy": scores,
        "versions": {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            **versions,
        },
    }
    manifest: dict[str, Any] = portable(content, story.private) | {"golden": sample}
    _write_manifest(path, manifest)
    return manifest


def finite(value: Any) -> Any:
    """Write numbers that JSON has not as text."""
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def expected(reference: Backend, golden: Golden, precision: str) -> dict[str, Any]:
    """Return an answer to the golden image, with what a file of a precision may differ in.

    Args:
        reference: Whose answer: the network in torch, as a rule.
        golden: The image.
        precision: Of the file.
    """
    gate = GATES[precision]
    answered = expected_answer(reference, golden.frame, gate.tensors, gate)
    return {"reference": "the network in torch", **answered}


def accept(path: Path, proof: str, result: Mapping[str, Any], private: tuple[Path, ...]) -> Path:
    """Give an unverified file and what lies beside it their names, now that an engine has run it.

    Args:
        path: The file or folder.
        proof: What the manifest calls the result: parity or replay.
        result: JSON types.
        private: As in `Story`.

    Returns:
        The final path.
    """
    final = path.with_name(path.name.removesuffix(UNVERIFIED))
    for part in parts_of(path):
        part.rename(part.with_name(final.name + part.name[len(path.name) :]))
    places = sidecars(final)
    if places.manifest.is_file():
        manifest = json.loads(places.manifest.read_text(encoding="utf-8"))
        proofs = {**manifest["proofs"], proof: portable(result, private)}
        manifest |= {"name": final.name, "verified": True, "proofs": proofs}
        manifest["files"] = describe_files(final)
        if manifest["golden"] is not None:
            manifest["golden"]["image"] = places.golden.name
        _write_manifest(final, manifest)
    return final


def _write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a file, and its card."""
    places = sidecars(path)
    text = json.dumps(finite(manifest), indent=1, allow_nan=False)
    places.manifest.write_text(text + "\n", encoding="utf-8")
    places.card.write_text(model_card(manifest), encoding="utf-8")


def remove_sidecars(path: Path) -> None:
    """Remove what lies beside a file."""
    places = sidecars(path)
    for place in (places.manifest, places.golden, places.card):
        place.unlink(missing_ok=True)
