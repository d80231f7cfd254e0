"""The teacher: an average of the student alone, and what it says of a batch.

B images, L locations, C classes, N chosen predictions, h x w cells of the stride-4 grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from boxseg.mask_head import MASK_STRIDE
from boxseg.student import DensePredictions, Student
from boxseg.train.affinity import MASK_LOSS_STRIDE
from boxseg.train.transforms import Batch


@dataclass(frozen=True)
class TeacherPredictions:
    """What the teacher predicts for a batch, told in the student's frame; no gradient anywhere."""

    teacher: Student
    """The network, in eval mode."""
    predictions: DensePredictions
    """Its answer, in the pixels of its own input."""
    batch: Batch
    """The clean batch that it saw: the student's geometry, nothing pasted."""
    zoom: Tensor
    """Teacher pixels / student pixels along x and y, (B, 2); 1 where both see one geometry."""
    progress: float
    """Steps that are done / steps of the schedule, in [0, 1)."""

    @cached_property
    def boxes(self) -> Tensor:
        """Predicted boxes in student pixels, clipped to the image content, (B, L, 4)."""
        boxes = self.predictions.boxes.float() / self.zoom.repeat(1, 2)[:, None]
        limit = self.batch.sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)
        return torch.minimum(boxes.clamp(min=0), limit)

    @cached_property
    def scores(self) -> Tensor:
        """score0 of every class: sqrt(sigmoid(class) * sigmoid(quality)), (B, L, C)."""
        quality = self.predictions.quality_logits.float().sigmoid()
        return (self.predictions.class_logits.float().sigmoid() * quality[..., None]).sqrt()

    def masks_at(self, image_index: Tensor, location_index: Tensor) -> Tensor:
        """Return mask probabilities of chosen predictions on the student's stride-4 grid.

        The logits are sampled once, bilinearly, at the stride-4 centres of the student's frame.

        Args:
            image_index: Image of each, ascending, (N,).
            location_index: Location of each, (N,).

        Returns:
            In (0, 1), float32, (N, h, w).
        """
        logits = self.teacher.masks_at(self.predictions, image_index, location_index)
        height, width = (side // MASK_LOSS_STRIDE for side in self.batch.images.shape[-2:])
        if not len(logits):
            return logits.new_zeros((0, height, width))
        rows, columns = logits.shape[-2:]
        steps_y = torch.arange(height, device=logits.device)
        steps_x = torch.arange(width, device=logits.device)
        y = (steps_y + 0.5) * MASK_LOSS_STRIDE / (rows * MASK_STRIDE) * 2
        x = (steps_x + 0.5) * MASK_LOSS_STRIDE / (columns * MASK_STRIDE) * 2
        zoom = self.zoom[image_index].to(logits.dtype)  # (N, 2)
        grid = torch.stack(
            [
                (x[None] * zoom[:, :1] - 1)[:, None, :].expand(-1, height, -1),
                (y[None] * zoom[:, 1:] - 1)[:, :, None].expand(-1, -1, width),
            ],
            dim=-1,
        )  # (N, h, w, 2)
        sampled = F.grid_sample(
            logits[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        return sampled[:, 0].sigmoid()
