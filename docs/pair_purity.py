"""How often neighbouring cells that a similarity calls alike lie on two sides of a true contour.

    python docs/pair_purity.py $BOXSEG_DATA/pennfudan purity.json --short 160
    python docs/pair_purity.py $BOXSEG_DATA/pennfudan purity.json --model RUN/last.pt --apart 1

The pairs are those that the pairwise term would count: they start inside a box, on the stride-4
grid, two cells apart (`--apart`). `wrong` is the share of passing pairs that cross the contour of
the box's object, `covered` the share of all pairs on one side that pass. With a model, `learned` is
the share that crosses the contour of the mask which it gives the object (its pseudo mask, by
BoxSeg's rule; objects without one are left out everywhere): where that is above `wrong`, the
pairwise term prefers the true masks to the learned ones. Images are the first of train.json, not
flipped.
"""

import argparse
import json
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from boxseg.boxes import rasterise
from boxseg.checkpoint import load_model
from boxseg.train.affinity import (
    DILATION,
    MASK_LOSS_STRIDE,
    NEIGHBOURS,
    mean_colour,
    rgb_to_lab,
    shifted_pair,
    valid_cells,
)
from boxseg.train.coco import CocoBoxes
from boxseg.train.pseudo_masks import build_pseudo_masks
from boxseg.train.teacher import Teacher
from boxseg.train.transforms import Batch, Geometry, collate

COLOUR = (0.3, 0.1, 0.05, 0.0)
DEPTH = (0.0, 0.01, 0.1, 0.5)


def similarity(values: Tensor, offset: tuple[int, int]) -> Tensor:
    """Return exp(-0.5 distance) of all pairs `offset` apart: (C, h, w) to (h - |dy|, w - |dx|)."""
    here, there = shifted_pair(values, offset)
    return torch.exp(-0.5 * (here - there).square().sum(dim=0).sqrt())


def count(batch: Batch, masks: Tensor, kept: Tensor, apart: int) -> dict[tuple[float, float], list]:
    """Count pairs that start in a box and pass, for every pair of smallest similarities.

    Args:
        batch: One image with true masks and depth.
        masks: Learned masks of its objects, bool, (n, h, w).
        kept: Objects that count, (n,).
        apart: Cells between the two ends.

    Returns:
        For colour and depth: pairs on one side of the true contour, across it, and across the
        learned one.
    """
    assert batch.masks is not None
    assert batch.depth is not None
    height, width = batch.depth.shape[-2:]
    inside = rasterise(batch.boxes[0], height, width, MASK_LOSS_STRIDE)[kept] > 0
    valid = valid_cells(batch.sizes, height, width, torch.zeros(1))[0]
    lab = rgb_to_lab(mean_colour(batch.images))[0]
    found = {rule: [0, 0, 0] for rule in product(COLOUR, DEPTH)}
    for dy, dx in NEIGHBOURS:
        offset = (dy // DILATION * apart, dx // DILATION * apart)
        colour = similarity(lab, offset)
        depth = similarity(batch.depth, offset)
        starts = shifted_pair(inside, offset)[0] & shifted_pair(valid, offset)[1]
        truth, learned = (
            torch.ne(*shifted_pair(each[kept] > 0, offset)) for each in (batch.masks[0], masks)
        )
        for rule, pairs in found.items():
            passing = starts & (colour >= rule[0]) & (depth >= rule[1])
            pairs[0] += int((passing & ~truth).sum())
            pairs[1] += int((passing & truth).sum())
            pairs[2] += int((passing & learned).sum())
    return found


def main() -> None:
    """Measure one data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--short", type=int, default=160, help="short side, without a model")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--apart", type=int, default=DILATION, metavar="CELLS")
    parser.add_argument("--model", type=Path, help="run folder or file")
    given = parser.parse_args()
    short, long = given.short, 3 * given.short
    teacher = None
    if given.model:
        student = load_model(given.model)
        short, long = student.config.short_long or student.config.imgsz
        teacher = Teacher(student, momentum=0.0, ramp=False)
        teacher.update(student)
    make = build_pseudo_masks({"quality_aware": {}})
    images = CocoBoxes(
        given.data / "train.json",
        given.data,
        transform=Geometry((short,), long, flip="off"),
        with_masks=True,
        with_depth=True,
    )
    totals = {rule: [0, 0, 0] for rule in product(COLOUR, DEPTH)}
    overlap, objects = 0.0, 0
    for index in range(min(given.images, len(images))):
        batch = collate([images[index]])
        assert batch.masks is not None
        truth = batch.masks[0] > 0
        masks, kept = truth, torch.ones(len(truth), dtype=torch.bool)
        if teacher is not None:
            pseudo = make(teacher.ask(batch, 0.5))
            masks, kept = pseudo.masks[0] > 0.5, pseudo.quality[0] > 0
            shared, union = (part.flatten(1).sum(dim=1) for part in (masks & truth, masks | truth))
            overlap += float((shared / union.clamp(min=1))[kept].sum())
            objects += int(kept.sum())
        for rule, pairs in count(batch, masks, kept, given.apart).items():
            totals[rule] = [sum(both) for both in zip(totals[rule], pairs, strict=True)]
    whole = totals[(0.0, 0.0)]
    report = {
        "data": given.data.name,
        "short": short,
        "images": given.images,
        "apart": given.apart,
        "rows": [
            {
                "colour": colour,
                "depth": depth,
                "wrong": across / max(same + across, 1),
                "covered": same / max(whole[0], 1),
            }
            | ({"learned": learned / max(same + across, 1)} if teacher is not None else {})
            for (colour, depth), (same, across, learned) in totals.items()
        ],
    }
    if teacher is not None:
        report |= {"objects": objects, "iou": overlap / max(objects, 1)}
        print(f"{objects} objects, mean IoU of learned and true masks {report['iou']:.3f}")
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for row in report["rows"]:
        print(
            f"colour >= {row['colour']:<4} depth >= {row['depth']:<4}  "
            f"wrong {row['wrong']:6.1%}  covered {row['covered']:6.1%}"
            + (f"  learned {row['learned']:6.1%}" if "learned" in row else "")
        )


if __name__ == "__main__":
    main()
