"""The teacher: an average of the student alone, and what it says of a batch.

B images, L locations, C classes, M mask channels, N chosen predictions, h x w cells of the stride-4
grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from boxseg.mask_head import MASK_STRIDE
from boxseg.student import DensePredictions, Student
from boxseg.train.affinity import MASK_LOSS_STRIDE
from boxseg.train.transforms import DIVISOR, PADDING, Batch, scaled_size


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
        """score0 of every class by the network's rule, (B, L, C).

        sqrt(sigmoid(class) * sigmoid(quality)), or sigmoid(class) where `model.score0` is cls.
        """
        classes = self.predictions.class_logits.float().sigmoid()
        if self.teacher.config.score0 == "cls":
            return classes
        return (classes * self.predictions.quality_logits.float().sigmoid()[..., None]).sqrt()

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
        return self._sampled(logits[:, None], image_index)[:, 0].sigmoid()

    @property
    def mask_features(self) -> Tensor:
        """Mask features on the student's stride-4 grid, float32, (B, M, h, w)."""
        features = self.predictions.mask_features.float()
        return self._sampled(features, torch.arange(len(features), device=features.device))

    def _sampled(self, values: Tensor, image_index: Tensor) -> Tensor:
        """Sample stride-8 values of the teacher at the stride-4 centres of the student's frame.

        Args:
            values: (N, K, rows, columns).
            image_index: Image of each, (N,).

        Returns:
            (N, K, h, w).
        """
        height, width = (side // MASK_LOSS_STRIDE for side in self.batch.images.shape[-2:])
        rows, columns = values.shape[-2:]
        if not len(values):
            return values.new_zeros((0, values.shape[1], height, width))
        steps_y = torch.arange(height, device=values.device)
        steps_x = torch.arange(width, device=values.device)
        y = (steps_y + 0.5) * MASK_LOSS_STRIDE / (rows * MASK_STRIDE) * 2
        x = (steps_x + 0.5) * MASK_LOSS_STRIDE / (columns * MASK_STRIDE) * 2
        zoom = self.zoom[image_index].to(values.dtype)  # (N, 2)
        grid = torch.stack(
            [
                (x[None] * zoom[:, :1] - 1)[:, None, :].expand(-1, height, -1),
                (y[None] * zoom[:, 1:] - 1)[:, :, None].expand(-1, -1, width),
            ],
            dim=-1,
        )  # (N, h, w, 2)
        return F.grid_sample(
            values, grid, mode="bilinear", padding_mode="border", align_corners=False
        )


class Teacher:
    """Moving average of the student (mean teacher, arXiv:1703.01780).

    Parameters are averaged, buffers copied at every step: a batch norm whose statistics lag behind
    its weights is a quiet killer. The first update is a hard copy of both. It runs in eval mode,
    where the released BoxTeacher lets its teacher live on the statistics of its own batches.
    """

    def __init__(
        self,
        student: Student,
        *,
        momentum: float,
        ramp: bool,
        imgsz: tuple[int, int] | None = None,
    ) -> None:
        """Copy the student.

        Args:
            student: The network.
            momentum: Share of the old average in each update, in [0, 1).
            ramp: Let update t, from 0, use min(momentum, 1 - 1 / (t + 1)): the plain mean of all
                weights until that reaches the momentum.
            imgsz: Short and long side of what the teacher sees, pixels; None is the student's
                geometry.
        """
        self._momentum = momentum
        self._ramp = ramp
        self._imgsz = imgsz
        self._average = AveragedModel(student, multi_avg_fn=self._mix, use_buffers=False)
        self._average.requires_grad_(False)
        self._average.eval()

    @property
    def network(self) -> Student:
        """The averaged network, in eval mode."""
        return cast(Student, self._average.module)

    @property
    def updates(self) -> int:
        """Updates that were made, the hard copy included."""
        return int(self._average.n_averaged)

    def _mix(
        self,
        averaged: tuple[Tensor, ...] | list[Tensor],
        current: tuple[Tensor, ...] | list[Tensor],
        updates: Tensor | int,
    ) -> None:
        """Move the average; torch calls this from the second update on."""
        momentum = self._momentum
        if self._ramp:
            momentum = min(momentum, 1 - 1 / (self.updates + 1))
        get_ema_multi_avg_fn(momentum)(averaged, current, updates)

    @torch.no_grad()
    def update(self, student: Student) -> None:
        """Take the student of this step into the average; the first time, copy it."""
        self._average.update_parameters(student)

    def distance(self, student: Student) -> float:
        """Return the norm of teacher - student over the norm of the student, all parameters."""
        pairs = zip(self.network.parameters(), student.parameters(), strict=True)
        apart, size = 0.0, 1e-12
        for old, new in pairs:
            apart += float((old.detach() - new.detach()).float().square().sum())
            size += float(new.detach().float().square().sum())
        return float((apart / size) ** 0.5)

    @torch.no_grad()
    def ask(self, batch: Batch, progress: float) -> TeacherPredictions:
        """Predict for a clean batch.

        Args:
            batch: Images and boxes of the student.
            progress: Steps that are done / steps of the schedule.
        """
        images, zoom = batch.images, torch.ones((len(batch.sizes), 2), device=batch.images.device)
        if self._imgsz is not None:
            images, zoom = _resized(batch, *self._imgsz)
        predictions = self.network(images.contiguous(memory_format=torch.channels_last))
        return TeacherPredictions(self.network, predictions, batch, zoom, progress)

    def state_dict(self) -> dict[str, Any]:
        """Return weights and number of updates."""
        return {"updates": self.updates, "network": self.network.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what state_dict returned."""
        self.network.load_state_dict(state["network"])
        self._average.n_averaged.fill_(int(state["updates"]))


def _resized(batch: Batch, short: int, long: int) -> tuple[Tensor, Tensor]:
    """Scale the content of every image and pad anew.

    Args:
        batch: The student's images.
        short: Wanted short side in pixels.
        long: Greatest long side in pixels.

    Returns:
        float32 RGB in 0..255, (B, 3, H', W'), multiples of 32; new / old along x and y, (B, 2).
    """
    sizes = cast(Sequence[tuple[int, int]], batch.sizes.tolist())
    wanted = [scaled_size(height, width, short, long) for height, width in sizes]
    rows, columns = (-(-max(size[axis] for size in wanted) // DIVISOR) * DIVISOR for axis in (0, 1))
    padding = torch.tensor(PADDING, dtype=torch.float32, device=batch.images.device)
    images = padding[None, :, None, None].repeat(len(sizes), 1, rows, columns)
    for row, ((height, width), (new_height, new_width)) in enumerate(
        zip(sizes, wanted, strict=True)
    ):
        content = batch.images[row : row + 1, :, :height, :width].float()
        images[row, :, :new_height, :new_width] = F.interpolate(
            content, size=(new_height, new_width), mode="bilinear", align_corners=False
        )[0]
    zoom = torch.tensor(
        [
            [new_width / width, new_height / height]
            for (height, width), (new_height, new_width) in zip(sizes, wanted, strict=True)
        ],
        device=batch.images.device,
    )
    return images, zoom
