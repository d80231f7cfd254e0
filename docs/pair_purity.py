"""How often neighbouring cells that a similarity calls alike lie on two sides of a true contour.

    python docs/pair_purity.py $BOXSEG_DATA/pennfudan purity.json --short 160

The pairs are those that the pairwise term would count: they start inside a box, on the stride-4
grid, two cells apart. `wrong` is the share of passing pairs that cross the contour of the box's
object, `covered` the share of all pairs on one side that pass. Images are the first of train.json,
not flipped.
"""

import argparse
import json
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from boxseg.boxes import rasterise
from boxseg.train.affinity import (
    MASK_LOSS_STRIDE,
    NEIGHBOURS,
    colour_similarity,
    depth_similarity,
    mean_colour,
    rgb_to_lab,
    shifted_pair,
    valid_cells,
)
from boxseg.train.coco import CocoBoxes
from boxseg.train.transforms import Batch, Geometry, collate

COLOUR = (0.3, 0.1, 0.05, 0.0)
DEPTH = (0.0, 0.01, 0.1, 0.5)


def count(batch: Batch, colour: Tensor, depth: Tensor, passes: Tensor) -> tuple[int, int]:
    """Return how many pairs start in a box and pass, on one side of its contour and across it.

    Args:
        batch: One image with masks.
        colour: Similarity of neighbours, (8, h, w).
        depth: The same by depth.
        passes: Smallest similarities, colour and depth.

    Returns:
        Both counts.
    """
    assert batch.masks is not None
    height, width = colour.shape[-2:]
    inside = rasterise(batch.boxes[0], height, width, MASK_LOSS_STRIDE) > 0  # (n, h, w)
    alike = (colour >= passes[0]) & (depth >= passes[1]) & (colour > 0)
    same = across = 0
    for number, offset in enumerate(NEIGHBOURS):
        here, there = shifted_pair(batch.masks[0], offset)
        counted = shifted_pair(inside, offset)[0] & shifted_pair(alike[number], offset)[0]
        across += int(((here != there) & counted).sum())
        same += int(((here == there) & counted).sum())
    return same, across


def main() -> None:
    """Measure one data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--short", type=int, default=160)
    parser.add_argument("--images", type=int, default=40)
    given = parser.parse_args()
    images = CocoBoxes(
        given.data / "train.json",
        given.data,
        transform=Geometry((given.short,), 3 * given.short, flip="off"),
        with_masks=True,
        with_depth=True,
    )
    totals = {rule: [0, 0] for rule in product(COLOUR, DEPTH)}
    for index in range(min(given.images, len(images))):
        batch = collate([images[index]])
        assert batch.depth is not None
        height, width = batch.depth.shape[-2:]
        valid = valid_cells(batch.sizes, height, width, torch.zeros(1))
        colour = colour_similarity(rgb_to_lab(mean_colour(batch.images)), valid)[0]
        depth = depth_similarity(batch.depth, valid)[0]
        for rule, found in totals.items():
            same, across = count(batch, colour, depth, torch.tensor(rule))
            found[0] += same
            found[1] += across
    whole = totals[(0.0, 0.0)]
    rows = [
        {
            "colour": rule[0],
            "depth": rule[1],
            "wrong": across / max(same + across, 1),
            "covered": same / max(whole[0], 1),
        }
        for rule, (same, across) in totals.items()
    ]
    report = {"data": given.data.name, "short": given.short, "images": given.images, "rows": rows}
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(
            f"colour >= {row['colour']:<4} depth >= {row['depth']:<4}  "
            f"wrong {row['wrong']:6.1%}  covered {row['covered']:6.1%}"
        )


if __name__ == "__main__":
    main()
