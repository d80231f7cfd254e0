"""What the student is taught in one step: pseudo masks, pasted peers, and the view that it sees.

The order is fixed (docs of each part say why): the teacher answers to the clean batch, its answer
becomes pseudo masks, objects are pasted into the clean image, and only then the student's view is
changed photometrically. Affinity and all targets belong to the pasted clean image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from boxseg.student import Student
from boxseg.train.memory_bank import MemoryBank
from boxseg.train.pseudo_masks import PseudoMaskMaker, PseudoMasks, RemembersSteps
from boxseg.train.recipe import ViewRecipe
from boxseg.train.teacher import Teacher, TeacherPredictions
from boxseg.train.transforms import Batch


@dataclass(frozen=True)
class Lesson:
    """All that one step learns from."""

    batch: Batch
    """Clean images with what was pasted, and all targets."""
    images: Tensor
    """What the student sees: `batch.images`, photometrically changed, uint8, (B, 3, H, W)."""
    pseudo: PseudoMasks | None = None
    """The teacher's masks; None before the teacher starts and in recipes without one."""
    teacher_step: int = 0
    """Steps since the teacher started, 0 in its first."""
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars that tell how the teaching goes."""
    answer: TeacherPredictions | None = None
    """What the teacher said, for pictures."""
    unpasted: PseudoMasks | None = None
    """The teacher's masks before anything was pasted, for pictures."""


class StudentView:
    """Colour jitter, loss of colour and blur, drawn for each image.

    Source: the strong augmentation of BoxTeacher (arXiv:2210.05174). Draws come from torch's
    global generator, which trainer.pt holds. The padding keeps its colour.
    """

    def __init__(self, recipe: ViewRecipe) -> None:
        """Build the changes."""
        self._change = v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=recipe.jitter),
                v2.RandomGrayscale(p=recipe.grayscale),
                v2.RandomApply([v2.GaussianBlur(3, sigma=(0.1, 2.0))], p=recipe.blur),
            ]
        )

    def __call__(self, batch: Batch) -> Tensor:
        """Return the view of every image, uint8, (B, 3, H, W)."""
        view = batch.images.clone()
        for row, (height, width) in enumerate(batch.sizes.tolist()):
            view[row, :, :height, :width] = self._change(batch.images[row, :, :height, :width])
        return view


class Supervision:
    """Teacher, pseudo masks, memory bank and view of one process."""

    def __init__(
        self,
        *,
        max_iters: int,
        start_step: int = 0,
        teacher: Teacher | None = None,
        maker: PseudoMaskMaker | None = None,
        bank: MemoryBank | None = None,
        view: StudentView | None = None,
    ) -> None:
        """Keep the parts.

        Args:
            max_iters: Optimizer steps of the schedule.
            start_step: Step before which the teacher becomes a copy of the student.
            teacher: None in recipes without one.
            maker: Makes its predictions pseudo masks; there if and only if the teacher is.
            bank: What can be pasted, or None.
            view: Changes what the student sees, or None.
        """
        if (teacher is None) != (maker is None):
            raise ValueError("a teacher and a way to make pseudo masks go together")
        self.teacher = teacher
        self._max_iters = max_iters
        self._start_step = start_step
        self._maker = maker
        self._bank = bank
        self._view = view

    def teaches(self, step: int) -> bool:
        """Whether there is a teacher in this step, counted from 0."""
        return self.teacher is not None and step >= self._start_step

    @torch.no_grad()
    def prepare(self, batch: Batch, student: Student, step: int) -> Lesson:
        """Return what the step learns from.

        The teacher runs in the precision around, its answer becomes masks in float32.

        Args:
            batch: Clean images and boxes.
            student: The network; its weights are the teacher's at the first step that it teaches.
            step: Optimizer steps that are done.
        """
        if self.teacher is None or not self.teaches(step):
            return Lesson(batch, batch.images if self._view is None else self._view(batch))
        assert self._maker is not None
        if not self.teacher.updates:
            self.teacher.update(student)
        teacher_step = step - self._start_step
        answer = self.teacher.ask(batch, step / self._max_iters)
        with torch.autocast(batch.images.device.type, enabled=False):
            pseudo = unpasted = self._maker(answer)
        diagnostics = _quality(pseudo, batch.images.device)
        if self._bank is not None:
            pasted, pasted_pseudo = self._bank.paste(
                batch, pseudo, step=step, teacher_step=teacher_step
            )
            self._bank.store(batch, pseudo, step=step)
            batch, pseudo = pasted, pasted_pseudo
            diagnostics |= {
                name: torch.tensor(float(value), device=batch.images.device)
                for name, value in self._bank.diagnostics(step).items()
            }
        images = batch.images if self._view is None else self._view(batch)
        return Lesson(batch, images, pseudo, teacher_step, diagnostics, answer, unpasted)

    def after_step(self, student: Student, step: int) -> None:
        """Take the student of a finished step into the average.

        Args:
            student: The network.
            step: Number of the step that was made, from 0.
        """
        if self.teacher is not None and self.teaches(step):
            self.teacher.update(student)

    def shared_state(self) -> dict[str, Any]:
        """Return what is equal in all processes: the teacher."""
        return {} if self.teacher is None else {"teacher": self.teacher.state_dict()}

    def own_state(self) -> dict[str, Any]:
        """Return what each process has for itself: prototypes and bank."""
        state: dict[str, Any] = {}
        if isinstance(self._maker, RemembersSteps):
            state["pseudo_masks"] = self._maker.state_dict()
        if self._bank is not None:
            state["bank"] = self._bank.state_dict()
        return state

    def load_state(self, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Go back to what shared_state and own_state returned.

        Raises:
            KeyError: if a part is missing.
        """
        if self.teacher is not None:
            self.teacher.load_state_dict(shared["teacher"])
        if isinstance(self._maker, RemembersSteps):
            self._maker.load_state_dict(own["pseudo_masks"])
        if self._bank is not None:
            self._bank.load_state_dict(own["bank"])


def _quality(pseudo: PseudoMasks, device: torch.device) -> dict[str, Tensor]:
    """Return the share of boxes with a pseudo mask and the mean quality of those masks."""
    quality = torch.cat([row.float() for row in pseudo.quality]) if pseudo.quality else None
    if quality is None or not len(quality):
        return {
            "pseudo_share": torch.zeros((), device=device),
            "pseudo_quality": torch.zeros((), device=device),
        }
    accepted = quality > 0
    return {
        "pseudo_share": accepted.float().mean(),
        "pseudo_quality": quality.sum() / accepted.sum().clamp(min=1),
    }
