"""Score the masks of a trained network as they ship, cut at their box, and beside it uncut.

    python docs/uncut_masks.py RUN_OR_FILE DATA [OUT.json]

Both columns are the same detections with the same scores; only the pixels outside the predicted box
differ. What ships cuts (the mask head then runs in the box alone); this is what that costs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as codec

from boxseg.inference import open_torch_backend
from boxseg.mask_head import COORDINATE_SCALES, dynamic_mask_head
from boxseg.runtime.accuracy import Accuracy, evaluate
from boxseg.runtime.detections import Detections
from boxseg.runtime.postprocess import Postprocessor
from boxseg.runtime.preprocess import Letterbox, Letterboxer
from boxseg.runtime.segmenter import Segmenter

# As in validation: AP counts every candidate.
CONFIDENCE = 0.0


class Answer:
    """Results of one image."""

    def __init__(self, results: list[dict[str, Any]]) -> None:
        """Keep results without their image id."""
        self.results = results

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return the results for an image."""
        return [{**result, "image_id": image_id} for result in self.results]


def where(plan: Letterbox) -> torch.Tensor:
    """Return the centres of the frame's pixels in the input, -1..1 over it, (1, H, W, 2)."""
    x = (torch.arange(plan.frame_width) + 0.5) * plan.content_width / plan.frame_width
    y = (torch.arange(plan.frame_height) + 0.5) * plan.content_height / plan.frame_height
    rows, columns = torch.meshgrid(2 * y / plan.height - 1, 2 * x / plan.width - 1, indexing="ij")
    return torch.stack([columns, rows], dim=-1)[None]


class Uncut:
    """The deployed path up to the masks, which cover the whole frame."""

    def __init__(self, segmenter: Segmenter) -> None:
        """Share the network and the rules of a Segmenter."""
        self.metadata = segmenter.metadata
        self.backend = segmenter.backend
        self.letterbox = Letterboxer(self.metadata.imgsz, padding=self.metadata.padding)
        self.post = Postprocessor(self.metadata, conf=CONFIDENCE)

    def __call__(self, frame: NDArray[np.uint8]) -> Answer:
        """Find instances; scores are those of the cut masks."""
        image, plan = self.letterbox(frame)
        outputs = self.backend.run(np.ascontiguousarray(image[None]))
        results: list[dict[str, Any]] = []
        for candidate in self.post.select(outputs, plan).copy():
            found: Detections = self.post.masks(outputs, plan, np.array([candidate]))
            if len(found) == 0:
                continue
            logits = dynamic_mask_head(
                torch.from_numpy(outputs["mask_features"][0]),
                torch.from_numpy(outputs["parameters"][0][:, candidate["slot"]].copy())[None],
                torch.tensor([[candidate["x"], candidate["y"]]]),
                torch.tensor([COORDINATE_SCALES[candidate["level"]]]),
                self.metadata.head.layer_widths,
            )
            surface = F.grid_sample(logits[None], where(plan), "bilinear", "border", False)
            mask = surface[0, 0] > 0
            rle = codec.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
            (result,) = found.to_coco(0)
            rle = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
            results.append({**result, "segmentation": rle})
        return Answer(results)


def main(model: str, data: str, out: str | None = None) -> None:
    """Print both scores; write them to a file if one is named."""
    segmenter = Segmenter(open_torch_backend(Path(model)), conf=CONFIDENCE)
    annotations = Path(data) / "val.json"
    scores: dict[str, Accuracy] = {
        "cut": evaluate(segmenter, annotations, data),
        "uncut": evaluate(Uncut(segmenter), annotations, data),
    }
    report = {name: accuracy.mask.as_dict() for name, accuracy in scores.items()}
    for name, mask in report.items():
        print(
            f"{name:6} mask AP {100 * (mask['AP'] or 0):.1f}, AP75 {100 * (mask['AP75'] or 0):.1f}"
        )
    if out is not None:
        Path(out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: python docs/uncut_masks.py RUN_OR_FILE DATA [OUT.json]")
    main(*sys.argv[1:])
