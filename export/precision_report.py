"""What reduced precision costs: AP per class side by side, the worst images, layers to give back.

All precisions are judged on the same images, through the same post-processing, by COCO's AP. The
numbers of a precision that no engine here executes are those of its imitation, and say so.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boxseg.errors import counted
from boxseg.runtime.accuracy import Accuracy, Result, evaluate
from boxseg.runtime.backends import Backend, open_backend
from boxseg.runtime.segmenter import Segmenter

if TYPE_CHECKING:
    import onnx

    from boxseg.export.precision import Reduced
    from boxseg.export.to_onnx import TracedGraph

WORST = 5
"""Images that are named."""
ENGINES = {"openvino": "OpenVINO", "trt": "TensorRT"}
"""Formats whose files are judged themselves: what ONNX Runtime gives is judged on the graph."""
CLEAR_SCORE = 0.3
"""Detections above it are looked for again."""


@dataclass(frozen=True)
class Judged:
    """One precision on the validation images."""

    name: str
    engine: str
    """What ran, in words."""
    accuracy: Accuracy


@dataclass(frozen=True)
class ReturnedLayer:
    """A layer back in fp32, the rest in int8."""

    layer: str
    mask_gain: float | None
    """Mask AP that it brings, in points of 100; None where masks are not judged."""
    box_gain: float | None
    cost: float
    """Share of the cost of all layers."""


def points(value: float | None, reference: float | None) -> float | None:
    """Return a difference of two APs in points of 100; None where one is undefined."""
    if value is None or reference is None:
        return None
    return 100 * (value - reference)


def mask_ap(found: Accuracy) -> float | None:
    """Return mask AP in [0, 1], if the file has masks."""
    return found.mask.ap if found.mask is not None else None


def in_memory(model: onnx.ModelProto) -> Backend:
    """Open a graph that has no file of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        path.write_bytes(model.SerializeToString())
        return open_backend(path)


def judge(
    name: str,
    engine: str,
    backend: Any,
    annotation_file: Path,
    max_images: int | None = None,
) -> Judged:
    """Judge one backend on a COCO file beside its images."""
    segmenter = Segmenter(backend, conf=0.0)
    found = evaluate(segmenter, annotation_file, annotation_file.parent, max_images=max_images)
    return Judged(name, engine, found)


def worst_images(
    reference: Sequence[Result], found: Sequence[Result], count: int = WORST
) -> list[dict[str, Any]]:
    """Return the images on which a precision departs most from another.

    Every clear detection of the reference is looked for among the other's of its class; the best
    mask IoU counts, 0 if there is none. Masks of files without any are their boxes.

    Args:
        reference: Detections in fp32, all images.
        found: Detections in the judged precision.
        count: How many images.

    Returns:
        Worst first: image_id, agreement in [0, 1] and the number of detections looked for.
    """
    from pycocotools import mask as codec

    def area(results: Sequence[Result]) -> list[Any]:
        has_masks = all("segmentation" in result for result in results)
        return [r.get("segmentation") if has_masks else r["bbox"] for r in results]

    others: dict[tuple[int, int], list[Result]] = defaultdict(list)
    for result in found:
        others[result["image_id"], result["category_id"]].append(result)
    wanted: dict[tuple[int, int], list[Result]] = defaultdict(list)
    for result in reference:
        if result["score"] > CLEAR_SCORE:
            wanted[result["image_id"], result["category_id"]].append(result)
    shares: dict[int, list[float]] = defaultdict(list)
    for key, results in wanted.items():
        candidates = others.get(key, [])
        if not candidates:
            shares[key[0]] += [0.0] * len(results)
            continue
        iou = np.asarray(codec.iou(area(candidates), area(results), [0] * len(results)))
        shares[key[0]] += [float(value) for value in iou.max(axis=0)]
    ranked = sorted(shares.items(), key=lambda item: (float(np.mean(item[1])), item[0]))
    return [
        {"image_id": image, "agreement": float(np.mean(part)), "detections": len(part)}
        for image, part in ranked[:count]
    ]


def returned_layers(
    reduced: Reduced,
    whole: Judged,
    annotation_file: Path,
    count: int,
    max_images: int | None = None,
) -> list[ReturnedLayer]:
    """Give back the layers that cost most, one at a time, and measure what each brings.

    Args:
        reduced: The network in int8.
        whole: What the network in int8 does, on ONNX Runtime.
        annotation_file: COCO file beside its images.
        count: How many layers to try, each on all images.
        max_images: As for `judge`.
    """
    from boxseg.export.quantization import layers_of, quantize

    model = reduced.equalized
    assert model is not None
    kept = {entry.node for entry in reduced.kept}
    layers = [layer for layer in layers_of(model) if not kept.intersection(layer.nodes)]
    open_costs = [cost for cost in reduced.costs if not kept.intersection(cost.layer.nodes)]
    found = []
    for cost in sorted(open_costs, key=lambda entry: -entry.gain)[:count]:
        rest = [layer for layer in layers if layer.weights != cost.layer.weights]
        backend = in_memory(quantize(model, rest, reduced.ranges, shifts=reduced.shifts))
        answer = judge("int8", cost.layer.weights, backend, annotation_file, max_images).accuracy
        found.append(
            ReturnedLayer(
                cost.layer.weights,
                points(mask_ap(answer), mask_ap(whole.accuracy)),
                points(answer.box.ap, whole.accuracy.box.ap),
                cost.cost,
            )
        )
    return found


# ------------------------------------------------------------------------------------ the table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def report_lines(judged: Sequence[Judged], layers: Sequence[ReturnedLayer]) -> list[str]:
    """Return a table in percent: one row per class, box and mask AP of every precision."""
    first = judged[0].accuracy
    width = max(12, *(len(name) for name in first.box.per_class)) + 1
    lines = [" " * width + "".join(f"{entry.name:>16}" for entry in judged)]
    lines.append(" " * width + f"{'box':>8}{'mask':>8}" * len(judged))
    rows: dict[str, list[tuple[float | None, float | None]]] = {
        "all": [(entry.accuracy.box.ap, mask_ap(entry.accuracy)) for entry in judged]
    }
    for name in first.box.per_class:
        rows[name] = [
            (
                entry.accuracy.box.per_class[name],
                entry.accuracy.mask.per_class.get(name) if entry.accuracy.mask else None,
            )
            for entry in judged
        ]
    for name, cells in rows.items():
        words = "".join(f"{_percent(box):>8}{_percent(mask):>8}" for box, mask in cells)
        lines.append(f"{name:<{width}}{words}")
    for entry in judged[1:]:
        box = points(entry.accuracy.box.ap, first.box.ap)
        mask = points(mask_ap(entry.accuracy), mask_ap(first))
        lines.append(
            f"{entry.name} against {judged[0].name}: box AP {_signed(box)}, mask AP "
            f"{_signed(mask)} ({entry.engine})"
        )
    lines += [
        f"{layer.layer} back in fp32: box AP {_signed(layer.box_gain)}, mask AP "
        f"{_signed(layer.mask_gain)}, {100 * layer.cost:.1f} % of the cost"
        for layer in layers
    ]
    lines.append(f"{counted(first.images, 'image')}, {counted(first.objects, 'object')}")
    return [*lines, *first.notes]


def markdown(
    judged: Sequence[Judged],
    layers: Sequence[ReturnedLayer],
    annotation_file: Path,
    doubts: Sequence[str] = (),
) -> str:
    """Return the same as tables, with the worst images.

    Args:
        judged: The reference first.
        layers: From `returned_layers`.
        annotation_file: What they were judged on.
        doubts: About the calibration images, a sentence each.
    """
    content = as_dict(judged, layers, annotation_file)
    first = judged[0].accuracy
    names = [entry.name for entry in judged]

    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    lines = [
        f"AP in percent on {annotation_file.name}, {counted(first.images, 'image')}, "
        f"{counted(first.objects, 'object')}; box and mask.",
        "",
        row(["", *(f"{name}, {what}" for name in names for what in ("box", "mask"))]),
        row(["---"] * (1 + 2 * len(names))),
    ]
    for name in ("all", *first.box.per_class):
        cells = []
        for entry in judged:
            box, mask = entry.accuracy.box, entry.accuracy.mask
            if name == "all":
                cells += [box.ap, mask_ap(entry.accuracy)]
            else:
                cells += [box.per_class[name], mask.per_class.get(name) if mask else None]
        lines.append(row([name, *map(_percent, cells)]))
    lines += ["", row(["", "what ran", "box AP lost", "mask AP lost", "worst image"])]
    lines.append(row(["---"] * 5))
    for entry in judged[1:]:
        loss = content["loss"][entry.name]
        worst = content["worst_images"][entry.name][:1]
        shown = [f"{w['file']}, agreement {w['agreement']:.2f}" for w in worst]
        lost = (_signed(loss["box"]), _signed(loss["mask"]))
        lines.append(row([entry.name, entry.engine, *lost, *(shown or ["-"])]))
    if layers:
        lines += ["", row(["back in fp32", "box AP", "mask AP", "share of the cost"])]
        lines.append(row(["---"] * 4))
        lines += [
            row(
                [
                    f"`{layer.layer}`",
                    _signed(layer.box_gain),
                    _signed(layer.mask_gain),
                    f"{100 * layer.cost:.1f} %",
                ]
            )
            for layer in layers
        ]
    notes = [*first.notes, *(f"Warning: {doubt}." for doubt in doubts)]
    return "\n".join([*lines, *(f"\n{note}" for note in notes)]) + "\n"


def _names(annotation_file: Path) -> dict[int, str]:
    """Return the file name of every image id."""
    images = json.loads(annotation_file.read_bytes())["images"]
    return {int(entry["id"]): str(entry["file_name"]) for entry in images}


def as_dict(
    judged: Sequence[Judged],
    layers: Sequence[ReturnedLayer],
    annotation_file: Path,
    doubts: Sequence[str] = (),
) -> dict[str, Any]:
    """Return JSON types.

    Args:
        judged: The reference first.
        layers: From `returned_layers`.
        annotation_file: What they were judged on.
        doubts: About the calibration images, a sentence each.
    """
    names = _names(annotation_file)
    first = judged[0]
    content: dict[str, Any] = {
        "precisions": {
            entry.name: {"engine": entry.engine} | entry.accuracy.as_dict() for entry in judged
        },
        "against": first.name,
        "data": str(annotation_file),
        "doubts": list(doubts),
        "loss": {},
        "worst_images": {},
        "layers_to_give_back": [
            {
                "layer": layer.layer,
                "mask_gain": layer.mask_gain,
                "box_gain": layer.box_gain,
                "cost": layer.cost,
            }
            for layer in layers
        ],
    }
    for entry in judged[1:]:
        content["loss"][entry.name] = {
            "box": points(first.accuracy.box.ap, entry.accuracy.box.ap),
            "mask": points(mask_ap(first.accuracy), mask_ap(entry.accuracy)),
        }
        worst = worst_images(first.accuracy.results, entry.accuracy.results)
        content["worst_images"][entry.name] = [
            image | {"file": names.get(image["image_id"], "")} for image in worst
        ]
    return content


def compare_precisions(
    reduced: Reduced,
    fp32: TracedGraph,
    written: Mapping[str, Path],
    annotation_file: Path,
    *,
    max_images: int | None = None,
    layers: int = 3,
    gpu: str | None = None,
) -> tuple[list[Judged], list[ReturnedLayer]]:
    """Judge a network in fp32, fp16 and the asked precision on the same images.

    Args:
        reduced: The network in the asked precision.
        fp32: The graph that it was made of.
        written: Format -> proven file in the asked precision.
        annotation_file: COCO file beside its images.
        max_images: Judge the first so many alone; None judges all.
        layers: In int8, how many layers to give back on trial.
        gpu: Where TensorRT runs; None is the first.

    Returns:
        fp32 first, then fp16, then the asked precision by engine; and the layers tried.
    """
    from boxseg.export.precision import lower_network

    def look(name: str, engine: str, backend: Any) -> Judged:
        return judge(name, engine, backend, annotation_file, max_images)

    def imitate(found: Reduced) -> Judged:
        assert found.imitation is not None
        engine = "ONNX Runtime in fp32, rounded after every node"
        return look(found.precision, engine, in_memory(found.imitation))

    judged = [look("fp32", "ONNX Runtime", in_memory(fp32.model))]
    half = reduced if reduced.precision == "fp16" else None
    judged.append(imitate(half or lower_network(fp32, "fp16", reduced.calibration)))
    tried: list[ReturnedLayer] = []
    if reduced.precision == "bf16":
        judged.append(imitate(reduced))
    if reduced.precision == "int8":
        whole = look("int8", "ONNX Runtime, signed", in_memory(reduced.traced.model))
        judged.append(whole)
        tried = returned_layers(reduced, whole, annotation_file, layers, max_images)
    for kind, path in written.items():
        if kind in ENGINES:
            name, engine = f"{reduced.precision} {kind}", f"{ENGINES[kind]}, {path.name}"
            judged.append(look(name, engine, open_backend(path, gpu if kind == "trt" else None)))
    return judged, tried
