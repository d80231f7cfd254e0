"""Masks that the teacher gives to the objects of a batch.

B images, n objects of one image, h x w cells of the stride-4 grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from boxseg.train.teacher import TeacherPredictions


@dataclass(frozen=True)
class PseudoMasks:
    """One mask per object of a batch with its quality; no gradient."""

    masks: list[Tensor]
    """In [0, 1], 0 outside of the object's box, float32, one (n, h, w) per image."""
    quality: list[Tensor]
    """In [0, 1], 0 where there is no mask, one (n,) per image."""
    confidence: list[Tensor]
    """Mean score0 of the predictions that made the mask, 0 where there is none, one (n,) per
    image."""
    counted: list[Tensor] | None = None
    """Cells that the loss counts, bool, one (n, h, w) per image; None counts all."""
    pasted: list[Tensor] | None = None
    """Objects that copy-paste put there, bool, one (n,) per image; None before copy-paste."""


class PseudoMaskMaker(Protocol):
    """One of the methods that a recipe names under `pseudo_masks`."""

    def __call__(self, teacher: TeacherPredictions) -> PseudoMasks:
        """Return a mask and its quality for every object of the teacher's batch."""
        ...
