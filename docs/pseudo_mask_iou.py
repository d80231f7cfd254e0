"""How well the pseudo masks of each method fit true masks, by a trained model as teacher.

    python docs/pseudo_mask_iou.py RUN_OR_FILE DATA OUT.json [--images 24] [--imgsz 448 896]

IoU on the stride-4 grid of train.json's first images at the model's own short side. `accepted` is
the share of objects with a mask, `correlation` that of quality and IoU over those, 0 where quality
is constant. `background` is the share of the cells of a box outside the true mask that the method
teaches as background; what it neither teaches so nor as the object is not counted by the loss.
Methods that remember earlier images see all of them once before.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boxseg.boxes import rasterise
from boxseg.checkpoint import load_model
from boxseg.train.affinity import MASK_LOSS_STRIDE
from boxseg.train.coco import CocoBoxes
from boxseg.train.pseudo_masks import RemembersSteps, build_pseudo_masks
from boxseg.train.teacher import Teacher
from boxseg.train.transforms import Geometry, collate

METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "best box": {"quality_aware": {"fusion": "best", "quality": "one"}},
    "BQR": {"quality_aware": {"fusion": "mean", "quality": "one"}},
    "BQR + QMF + MQS": {"quality_aware": {}},
    "the same, ranked by depth": {"quality_aware": {"depth_ranking": 0.3}},
    "the same, 10 candidates": {"quality_aware": {"candidates": 10}},
    "as released": {
        "quality_aware": {
            "candidates": 20,
            "fusion": "vote",
            "quality": "consensus",
            "class_check": True,
        }
    },
    "BoxTeacher": {"box_teacher": {}},
    "Pseudo-Depth": {"depth_matched": {}},
    "SIM as printed": {"semantic": {"temperature": 0.1}},
    "SIM, temperature 1": {"semantic": {"temperature": 1.0}},
}


def main() -> None:
    """Measure one model on one data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--imgsz", type=int, nargs=2, metavar=("SHORT", "LONG"))
    given = parser.parse_args()
    student = load_model(given.model)
    short, long = student.config.short_long or student.config.imgsz
    images = CocoBoxes(
        given.data / "train.json",
        given.data,
        transform=Geometry((short,), long, flip="off"),
        with_masks=True,
        with_depth=True,
    )
    imgsz = None if given.imgsz is None else (given.imgsz[0], given.imgsz[1])
    teacher = Teacher(student, momentum=0.0, ramp=False, imgsz=imgsz)
    teacher.update(student)
    makers = {name: build_pseudo_masks(method) for name, method in METHODS.items()}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in makers}
    count = min(given.images, len(images))
    for index in range(count):
        answer = teacher.ask(collate([images[index]]), 0.5)
        for maker in makers.values():
            if isinstance(maker, RemembersSteps):
                maker(answer)
    for index in range(count):
        batch = collate([images[index]])
        assert batch.masks is not None
        answer = teacher.ask(batch, 0.5)
        truth = batch.masks[0] > 0
        for name, maker in makers.items():
            pseudo = maker(answer)
            masks = pseudo.masks[0] > 0.5
            shared = (masks & truth).flatten(1).sum(dim=1)
            union = (masks | truth).flatten(1).sum(dim=1).clamp(min=1)
            height, width = truth.shape[1:]
            in_box = rasterise(batch.boxes[0], height, width, MASK_LOSS_STRIDE).bool()
            others = in_box & ~truth
            taught = others & ~masks
            if pseudo.counted is not None:
                taught &= pseudo.counted[0]
            background = taught.flatten(1).sum(dim=1) / others.flatten(1).sum(dim=1).clamp(min=1)
            found[name] += zip(
                (shared / union).tolist(),
                pseudo.quality[0].tolist(),
                background.tolist(),
                strict=True,
            )
    rows = []
    for name, pairs in found.items():
        overlap, quality, background = np.array(pairs).T
        accepted = quality > 0
        varies = len(np.unique(quality[accepted])) > 1
        row: dict[str, Any] = {
            "method": name,
            "objects": len(pairs),
            "accepted": float(accepted.mean()),
            "iou": float(overlap[accepted].mean()),
            "background": float(background[accepted].mean()),
            "correlation": float(np.corrcoef(overlap[accepted], quality[accepted])[0, 1])
            if varies
            else 0.0,
        }
        rows.append(row)
        print(
            f"{name:<28} accepted {row['accepted']:6.1%}  IoU {row['iou']:.3f}  "
            f"background {row['background']:6.1%}  "
            f"correlation {row['correlation']:+.2f}"
        )
    report = {"data": given.data.name, "images": count, "imgsz": imgsz, "rows": rows}
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
