"""The terms of the loss, built from the recipe's list.

B images, L locations, N positives, K of them with masks, h x w cells of the stride-4 grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxseg.boxes import rasterise
from boxseg.config import ModelConfig
from boxseg.mask_head import upsample_to_stride_4
from boxseg.student import DensePredictions, Student
from boxseg.train.affinity import (
    MASK_LOSS_STRIDE,
    colour_similarity,
    depth_similarity,
    directed_edges,
    mean_colour,
    rgb_to_lab,
    valid_cells,
)
from boxseg.train.assigner import Assignment, assign_fcos, best_per_object
from boxseg.train.depth_head import DepthHead, Form, GuidedMasks
from boxseg.train.losses import (
    centerness,
    counted_focal_loss,
    counted_mask_loss,
    depth_loss,
    dice_loss,
    distance_iou,
    focal_loss,
    mask_affinity_loss,
    pairwise_loss,
    projection_loss,
    varifocal_loss,
)
from boxseg.train.options import Share, build_part
from boxseg.train.pseudo_masks import PseudoMasks
from boxseg.train.step_profile import Clock, untimed
from boxseg.train.transforms import Batch

MASKS_PER_IMAGE = 64
"""Positives per image whose masks are trained (BoxInst, as released)."""


@dataclass
class StepContext:
    """What the terms of one step may ask for; each answer is computed once, on first use."""

    student: Student
    predictions: DensePredictions
    batch: Batch
    """Clean images and their boxes."""
    step: int
    """Optimizer steps taken before this one."""
    mean_over_ranks: Callable[[Tensor], Tensor] = lambda value: value
    """Averages a scalar over all processes, so that a loss does not depend on their number. Each
    process calls it equally often, also one without positives: it waits for the others."""
    pseudo: PseudoMasks | None = None
    """What the teacher gives to the objects of the batch; None while there is no teacher."""
    teacher_step: int = 0
    """Optimizer steps taken since the teacher started."""
    depth_head: DepthHead | None = None
    """Guides the masks that are trained; None trains the masks as they ship."""
    guidance: float = 1.0
    """Share of that guidance in this step, in [0, 1]."""
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    """What the terms say of this step beside their losses: scalars without gradient. Which ones
    there are depends on the recipe alone, never on the batch."""

    @cached_property
    def assignment(self) -> Assignment:
        """The positives."""
        return assign_fcos(
            self.predictions.locations,
            self.predictions.levels,
            self.batch.boxes,
            self.batch.labels,
        )

    @cached_property
    def positives_per_rank(self) -> Tensor:
        """Number of positives, averaged over ranks, at least 1."""
        count = self.predictions.boxes.new_tensor(float(len(self.assignment.labels)))
        return self.mean_over_ranks(count).clamp(min=1)

    @cached_property
    def target_centerness(self) -> Tensor:
        """(N,)."""
        return centerness(self.assignment.distances)

    @cached_property
    def positive_iou(self) -> tuple[Tensor, Tensor]:
        """IoU and generalised IoU of every positive with its object, each (N,)."""
        found = self.assignment
        with self._learning():
            predicted = self.predictions.distances[found.image_index, found.location_index]
            return distance_iou(predicted, found.distances)

    @cached_property
    def chosen(self) -> Tensor:
        """Indices of the positives whose masks are trained, (K,)."""
        found = self.assignment
        with torch.no_grad():
            classes = self.predictions.class_logits[found.image_index, found.location_index]
            quality = self.predictions.quality_logits[found.image_index, found.location_index]
            scores = classes.float().amax(dim=1).sigmoid() * quality.float().sigmoid()
        return best_per_object(
            found.image_index,
            found.object_index,
            scores,
            images=len(self.batch.boxes),
            per_image=MASKS_PER_IMAGE,
        )

    @cached_property
    def mask_image_index(self) -> Tensor:
        """Image of each trained mask, ascending, (K,)."""
        return self.assignment.image_index[self.chosen]

    @cached_property
    def mask_logits(self) -> Tensor:
        """Logits at stride 4, under the guidance of depth where there is a head, (K, h, w)."""
        if self.depth_head is not None:
            return self.guided_masks.logits
        with self._learning():
            return upsample_to_stride_4(
                self.student.masks_at(
                    self.predictions,
                    self.mask_image_index,
                    self.assignment.location_index[self.chosen],
                )
            )

    def _learning(self) -> torch.autograd.grad_mode.set_grad_enabled:
        """Keep the gradient of what is computed once and shared, whoever asks for it first."""
        return torch.set_grad_enabled(self.predictions.mask_features.requires_grad)

    @cached_property
    def guided_masks(self) -> GuidedMasks:
        """What the depth head makes of the trained masks."""
        assert self.depth_head is not None, "a recipe with terms.depth has a depth head"
        places = self.mask_image_index, self.assignment.location_index[self.chosen]
        with self._learning():
            logits, hidden = self.student.mask_layers_at(self.predictions, *places)
            guided = self.depth_head(self.predictions, *places, logits, hidden, self.guidance)
            return cast(GuidedMasks, guided)

    @cached_property
    def masks_per_rank(self) -> Tensor:
        """Number of trained masks, averaged over ranks, at least 1."""
        count = self.predictions.boxes.new_tensor(float(len(self.chosen)))
        return self.mean_over_ranks(count).clamp(min=1)

    @cached_property
    def object_boxes(self) -> Tensor:
        """Box of the object of each trained mask, input pixels, (K, 4)."""
        return self.of_objects(self.batch.boxes)

    def of_objects(self, per_image: list[Tensor]) -> Tensor:
        """Gather what belongs to the object of each trained mask.

        Args:
            per_image: One tensor (n, ...) per image.

        Returns:
            (K, ...).
        """
        return torch.cat(per_image)[self.object_rows]

    @cached_property
    def object_rows(self) -> Tensor:
        """Object of each trained mask, counted over all images of the batch, (K,)."""
        counts = torch.tensor([len(boxes) for boxes in self.batch.boxes])
        starts = (counts.cumsum(0) - counts).to(self.mask_image_index.device)
        return starts[self.mask_image_index] + self.assignment.object_index[self.chosen]

    @cached_property
    def box_masks(self) -> Tensor:
        """Box of each trained mask as stride-4 cells, (K, h, w)."""
        height, width = self.mask_logits.shape[-2:]
        return rasterise(self.object_boxes, height, width, MASK_LOSS_STRIDE)

    def valid_cells(self, bottom_pixels: float) -> Tensor:
        """Mark the cells that pairs may reach, bool, (B, h, w).

        Args:
            bottom_pixels: Rows of the original image at the bottom that do not count.
        """
        height, width = (side // MASK_LOSS_STRIDE for side in self.batch.images.shape[-2:])
        scale = self.batch.sizes[:, 0].float() / self.batch.original_sizes[:, 0].float()
        return valid_cells(self.batch.sizes, height, width, (bottom_pixels * scale).floor())

    @property
    def untouched(self) -> Tensor:
        """Zero that depends on the mask features and parameters, so that no gradient is missing.

        On the depth head's parameters too, where there is one.
        """
        total = (
            self.predictions.mask_features.float().sum() + self.predictions.parameters.float().sum()
        )
        if self.depth_head is not None:
            for parameter in self.depth_head.parameters():
                total = total + parameter.sum()
        return 0.0 * total

    def depth_of_batch(self, term: str) -> Tensor:
        """Return the depth of the batch, 0..255, (B, h, w).

        Args:
            term: Who asks.

        Raises:
            ValueError: if the batch carries none.
        """
        if self.batch.depth is None:
            raise ValueError(f"terms.{term} needs data with depth maps; the batch carries none")
        return self.batch.depth


class Term(Protocol):
    """One summand of the loss."""

    def __call__(self, context: StepContext) -> Tensor:
        """Return the weighted scalar."""
        ...


@dataclass(frozen=True)
class _Options:
    weight: float = 1.0
    """Factor of this term in the sum."""


@dataclass(frozen=True)
class FocalTerm(_Options):
    """Classification by focal loss (FCOS)."""

    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(self, context: StepContext) -> Tensor:
        """Return sum / positives."""
        logits = context.predictions.class_logits.float()
        targets = torch.zeros_like(logits)
        found = context.assignment
        targets[found.image_index, found.location_index, found.labels] = 1
        total = focal_loss(logits, targets, self.alpha, self.gamma)
        return self.weight * total / context.positives_per_rank


@dataclass(frozen=True)
class VarifocalTerm(_Options):
    """Classification by varifocal loss, the target being the predicted box's IoU."""

    alpha: float = 0.25
    gamma: float = 2.0
    constant_weight: bool = True
    """Take the weight of negatives for a constant, which all our measured runs do. false: as
    published, where their gradient is up to three times as large."""

    def __call__(self, context: StepContext) -> Tensor:
        """Return sum / positives."""
        logits = context.predictions.class_logits.float()
        targets = torch.zeros_like(logits)
        found = context.assignment
        iou = context.positive_iou[0].detach()
        targets[found.image_index, found.location_index, found.labels] = iou
        total = varifocal_loss(
            logits, targets, self.alpha, self.gamma, constant_weight=self.constant_weight
        )
        return self.weight * total / context.positives_per_rank


@dataclass(frozen=True)
class GIoUTerm(_Options):
    """Box regression by GIoU, weighted by centerness (FCOS)."""

    def __call__(self, context: StepContext) -> Tensor:
        """Return the centerness-weighted mean of 1 - GIoU."""
        weights = context.target_centerness
        total = ((1 - context.positive_iou[1]) * weights).sum()
        return self.weight * total / context.mean_over_ranks(weights.sum()).clamp(min=1e-6)


@dataclass(frozen=True)
class CenternessTerm(_Options):
    """Quality by binary cross entropy with centerness (FCOS)."""

    def __call__(self, context: StepContext) -> Tensor:
        """Return sum / positives."""
        found = context.assignment
        logits = context.predictions.quality_logits[found.image_index, found.location_index]
        total = F.binary_cross_entropy_with_logits(
            logits.float(), context.target_centerness, reduction="sum"
        )
        return self.weight * total / context.positives_per_rank


@dataclass(frozen=True)
class ProjectionTerm(_Options):
    """BoxInst's projection term: the mask's shadow on both axes is the box's."""

    def __call__(self, context: StepContext) -> Tensor:
        """Return the mean over trained masks."""
        count = context.masks_per_rank
        if not len(context.chosen):
            return context.untouched
        total = projection_loss(context.mask_logits, context.box_masks).sum()
        return self.weight * total / count


@dataclass(frozen=True)
class PairwiseTerm(_Options):
    """BoxInst's pairwise term: neighbours of similar colour get one label.

    With depth maps a pair may have to be of like depth as well. That is ours: on real photographs
    pairs of like colour and not too different depth lie on one side of a contour far more often,
    so that a smaller colour similarity will do and more pairs teach (docs/results).
    """

    threshold: float = 0.3
    """Smallest colour similarity of a pair that counts."""
    depth_threshold: Share = 0.0
    """Smallest depth similarity that it needs as well; 0.01 is a step of 9.2 grey levels, 0 asks
    for no depth maps."""
    warmup_steps: int = 10000
    """Optimizer steps over which the weight grows from 0."""
    bottom_pixels: float = 10.0
    """Rows of the original image at the bottom that do not count (COCO's dark strip)."""

    def __call__(self, context: StepContext) -> Tensor:
        """Return the sum over similar pairs in the boxes / their number, warmed up."""
        total, pairs = context.untouched, context.predictions.boxes.new_zeros(())
        if len(context.chosen):
            with torch.no_grad(), torch.autocast(context.batch.images.device.type, enabled=False):
                edges = self.edges(context)
            total, pairs = pairwise_loss(
                context.mask_logits, context.box_masks, edges, context.mask_image_index
            )
        warm = min(context.step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return self.weight * warm * total / context.mean_over_ranks(pairs).clamp(min=1)

    def edges(self, context: StepContext) -> Tensor:
        """Return which neighbouring pairs of the batch's clean images count."""
        lab = rgb_to_lab(mean_colour(context.batch.images))
        valid = context.valid_cells(self.bottom_pixels)
        edges = directed_edges(colour_similarity(lab, valid), self.threshold)
        if self.depth_threshold:
            depth = context.depth_of_batch("pairwise")
            edges &= directed_edges(depth_similarity(depth, valid), self.depth_threshold)
        return edges


@dataclass(frozen=True)
class MaskDiceTerm(_Options):
    """Dice against true masks: the supervised ceiling (CondInst)."""

    def __call__(self, context: StepContext) -> Tensor:
        """Return the mean over trained masks.

        Raises:
            ValueError: if the batch carries no masks.
        """
        if context.batch.masks is None:
            raise ValueError("terms.mask_dice needs data with masks; the batch carries none")
        count = context.masks_per_rank
        if not len(context.chosen):
            return context.untouched
        targets = context.of_objects(context.batch.masks)
        total = dice_loss(context.mask_logits.sigmoid().flatten(1), targets.flatten(1)).sum()
        return self.weight * total / count


@dataclass(frozen=True)
class _PseudoOptions(_Options):
    warmup_steps: int = 10000
    """Optimizer steps since the teacher's start over which the weight grows from 0."""

    def total(self, context: StepContext, pseudo: PseudoMasks, quality: Tensor) -> Tensor:
        """Return the sum over trained masks, those of quality 0 left out; quality is (K,)."""
        raise NotImplementedError

    def quality(self, context: StepContext, pseudo: PseudoMasks) -> Tensor:
        """Return the quality of the object of each trained mask, (K,)."""
        return context.of_objects(pseudo.quality)

    def __call__(self, context: StepContext) -> Tensor:
        """Return the total / trained masks of a quality above 0, warmed up."""
        if context.pseudo is None:
            return context.untouched
        quality = self.quality(context, context.pseudo)
        present = (quality > 0).sum()
        count = context.mean_over_ranks(present.to(quality.dtype)).clamp(min=1)
        if not present:
            return context.untouched
        warm = min(context.teacher_step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return self.weight * warm * self.total(context, context.pseudo, quality) / count


@dataclass(frozen=True)
class PseudoMaskTerm(_PseudoOptions):
    """Dice against the teacher's masks (BoxSeg, arXiv:2504.05137, equation 1).

    BoxTeacher's noise-aware pixel loss (arXiv:2210.05174) is the same with its own quality.
    """

    weight: float = 0.5
    target: Literal["hard", "soft"] = "hard"
    """hard: 1 where the pseudo mask is above one half; soft: the pseudo mask itself."""

    def total(self, context: StepContext, pseudo: PseudoMasks, quality: Tensor) -> Tensor:
        """Return the sum of quality * dice."""
        masks = [(each > 0.5).to(each.dtype) for each in pseudo.masks]
        targets = context.of_objects(masks if self.target == "hard" else pseudo.masks)
        probability = context.mask_logits.sigmoid()
        if pseudo.counted is not None:
            counted = context.of_objects(pseudo.counted)
            probability, targets = probability * counted, targets * counted
        return (quality * dice_loss(probability.flatten(1), targets.flatten(1))).sum()


@dataclass(frozen=True)
class PseudoAffinityTerm(_PseudoOptions):
    """Neighbours to which the teacher's mask gives one label get one (BoxTeacher)."""

    weight: float = 0.1
    threshold: Share = 0.5
    """Smallest affinity of a pair that counts."""
    bottom_pixels: float = 10.0
    """Rows of the original image at the bottom that do not count (COCO's dark strip)."""

    def total(self, context: StepContext, pseudo: PseudoMasks, quality: Tensor) -> Tensor:
        """Return the sum of quality * mean over the object's pairs."""
        boxes = context.batch.boxes
        height, width = context.mask_logits.shape[-2:]
        counts = torch.tensor([len(each) for each in boxes], device=quality.device)
        valid = context.valid_cells(self.bottom_pixels)
        valid = valid.repeat_interleave(counts, dim=0, output_size=sum(map(len, boxes)))
        inside = rasterise(torch.cat(boxes), height, width, MASK_LOSS_STRIDE) > 0
        inside &= (torch.cat(pseudo.quality) > 0)[:, None, None]
        if pseudo.counted is not None:
            counted = torch.cat(pseudo.counted)
            valid, inside = valid & counted, inside & counted
        return mask_affinity_loss(
            context.mask_logits,
            quality,
            context.object_rows,
            masks=torch.cat(pseudo.masks) > 0.5,
            inside=inside,
            valid=valid,
            threshold=self.threshold,
        )


@dataclass(frozen=True)
class DepthTerm(_Options):
    """Each instance's depth is that of its image, inside its box (Pseudo-Depth, arXiv:2403.01214).

    A recipe with this term has a depth head, which guides the masks of all terms.
    """

    form: Form = "contract"
    """How depth and masks are multiplied; see `DepthHead`."""
    warmup_steps: int = 0
    """Optimizer steps over which the guidance of the masks grows from none. The depth itself is
    learned at full weight from the first step: a head that knows nothing halves every logit."""

    def guidance(self, step: int) -> float:
        """Return the share of the guidance, in [0, 1], after `step` optimizer steps."""
        return min(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0

    def __call__(self, context: StepContext) -> Tensor:
        """Return the mean over trained masks.

        Raises:
            ValueError: if the batch carries no depth.
        """
        depth = context.depth_of_batch("depth")
        count = context.masks_per_rank
        context.diagnostics["depth_logit_max"] = depth.new_zeros(())
        if not len(context.chosen):
            return context.untouched
        inside = context.box_masks > 0
        counted = inside & context.valid_cells(0.0)[context.mask_image_index]
        guided = context.guided_masks
        with torch.no_grad():
            largest = (guided.plain.abs() * inside).amax()
        context.diagnostics["depth_logit_max"] = largest
        total = depth_loss(guided.depth, depth, counted, context.mask_image_index).sum()
        return self.weight * total / count


@dataclass(frozen=True)
class DepthConsistencyTerm(_Options):
    """Neighbours of similar depth get one label (Pseudo-Depth, arXiv:2403.01214).

    It starts when the colour term's warm-up is over, and has a warm-up of its own.
    """

    threshold: Share = 0.5
    """Smallest depth similarity of a pair that counts; 0.5 is a step of 1.39 grey levels."""
    start_steps: int = 10000
    """Optimizer steps during which the weight stays 0."""
    warmup_steps: int = 10000
    """Optimizer steps after these over which the weight grows from 0."""

    def __call__(self, context: StepContext) -> Tensor:
        """Return the sum over similar pairs in the boxes / their number, warmed up.

        Raises:
            ValueError: if the batch carries no depth.
        """
        with torch.no_grad(), torch.autocast(context.batch.images.device.type, enabled=False):
            similarity = self.similarity(context)
        total, pairs = context.untouched, similarity.new_zeros(())
        warm = self.warm_up(context.step)
        if warm and len(context.chosen):
            edges = directed_edges(similarity, self.threshold)
            total, pairs = pairwise_loss(
                context.mask_logits, context.box_masks, edges, context.mask_image_index
            )
        return self.weight * warm * total / context.mean_over_ranks(pairs).clamp(min=1)

    def warm_up(self, step: int) -> float:
        """Return the factor of the weight, in [0, 1], after `step` optimizer steps."""
        if not self.warmup_steps:
            return float(step >= self.start_steps)
        return min(max((step - self.start_steps) / self.warmup_steps, 0.0), 1.0)

    def similarity(self, context: StepContext) -> Tensor:
        """Return the depth similarity of neighbours, (B, 8, h, w), and report who passes.

        The share is that of the pairs that start in any box of the batch; in a batch without boxes,
        of all pairs.
        """
        depth = context.depth_of_batch("depth_consistency")
        height, width = depth.shape[-2:]
        valid = context.valid_cells(0.0)
        similarity = depth_similarity(depth, valid)
        starts = torch.stack(
            [
                (rasterise(boxes, height, width, MASK_LOSS_STRIDE) > 0).any(dim=0)
                for boxes in context.batch.boxes
            ]
        )[:, None]  # (B, 1, h, w)
        starts = starts | ~starts.any()
        passing = ((similarity >= self.threshold) & starts).sum()
        pairs = ((depth_similarity(torch.zeros_like(depth), valid) > 0) & starts).sum()
        context.diagnostics["depth_edge_share"] = passing / pairs.clamp(min=1)
        return similarity


def _sure_cells(context: StepContext, pseudo: PseudoMasks) -> tuple[Tensor, Tensor]:
    """Return the binary pseudo mask of each trained mask and where it counts, (K, h, w) each."""
    masks = context.of_objects([(each > 0.5).float() for each in pseudo.masks])
    if pseudo.counted is None:
        return masks, torch.ones_like(masks, dtype=torch.bool)
    return masks, context.of_objects(pseudo.counted)


@dataclass(frozen=True)
class SemanticMaskTerm(_PseudoOptions):
    """Cross entropy and dice against the teacher's masks where they are sure (SIM).

    Source: SIM (arXiv:2303.08578), the loss on pseudo masks: every mask counts alike, whatever its
    quality above 0. The paper starts its teacher late and has no further warm-up.
    """

    weight: float = 0.5
    warmup_steps: int = 0

    def total(self, context: StepContext, pseudo: PseudoMasks, quality: Tensor) -> Tensor:
        """Return the sum of the losses."""
        loss = counted_mask_loss(context.mask_logits, *_sure_cells(context, pseudo))
        return (loss * (quality > 0)).sum()


@dataclass(frozen=True)
class PastedMaskTerm(SemanticMaskTerm):
    """The loss of `semantic_mask` on pasted objects alone (SIM)."""

    weight: float = 1.0

    def quality(self, context: StepContext, pseudo: PseudoMasks) -> Tensor:
        """Return the quality of the object of each trained mask, 0 unless it was pasted, (K,)."""
        quality = context.of_objects(pseudo.quality)
        if pseudo.pasted is None:
            return torch.zeros_like(quality)
        return quality * context.of_objects(pseudo.pasted)


@dataclass(frozen=True)
class SemanticFocalTerm(_PseudoOptions):
    """Focal loss against the teacher's masks where they are sure (SIM as released)."""

    weight: float = 0.3
    warmup_steps: int = 270000
    alpha: Share = 0.25
    gamma: float = 2.0

    def total(self, context: StepContext, pseudo: PseudoMasks, quality: Tensor) -> Tensor:
        """Return the sum of the losses."""
        masks, counted = _sure_cells(context, pseudo)
        loss = counted_focal_loss(context.mask_logits, masks, counted, self.alpha, self.gamma)
        return (loss * (quality > 0)).sum()


TERMS: Mapping[str, type[_Options]] = {
    "focal": FocalTerm,
    "varifocal": VarifocalTerm,
    "giou": GIoUTerm,
    "centerness": CenternessTerm,
    "projection": ProjectionTerm,
    "pairwise": PairwiseTerm,
    "mask_dice": MaskDiceTerm,
    "pseudo_mask": PseudoMaskTerm,
    "pseudo_affinity": PseudoAffinityTerm,
    "depth": DepthTerm,
    "depth_consistency": DepthConsistencyTerm,
    "semantic_mask": SemanticMaskTerm,
    "semantic_focal": SemanticFocalTerm,
    "pasted_mask": PastedMaskTerm,
}
"""Every term that a recipe may list."""

MASK_SUPERVISED_TERMS = frozenset({"mask_dice"})
"""Terms that need true masks in the data."""

TEACHER_TERMS = frozenset(
    {"pseudo_mask", "pseudo_affinity", "semantic_mask", "semantic_focal", "pasted_mask"}
)
"""Terms that need a teacher, and without one are 0."""

DEPTH_TERMS = frozenset({"depth", "depth_consistency"})
"""Terms that need depth maps in the data."""


class Criterion(nn.Module):
    """Sum of listed terms, returned one by one."""

    def __init__(self, terms: Mapping[str, Term], depth_head: DepthHead | None = None) -> None:
        """Keep the terms in the recipe's order, and the heads that learn with them."""
        super().__init__()
        self.terms = dict(terms)
        self.depth_head = depth_head
        self.clock: Clock = untimed

    @property
    def needs_masks(self) -> bool:
        """Whether a term reads true masks."""
        return bool(MASK_SUPERVISED_TERMS & set(self.terms))

    @property
    def needs_teacher(self) -> bool:
        """Whether a term reads pseudo masks."""
        return bool(TEACHER_TERMS & set(self.terms))

    @property
    def needs_depth(self) -> bool:
        """Whether a term reads depth maps."""
        vetoes = [
            term.depth_threshold for term in self.terms.values() if isinstance(term, PairwiseTerm)
        ]
        return bool(DEPTH_TERMS & set(self.terms)) or any(vetoes)

    def guidance(self, step: int) -> float:
        """Return how much the depth head guides the masks, in [0, 1]; see `DepthTerm`."""
        term = self.terms.get("depth")
        return term.guidance(step) if isinstance(term, DepthTerm) else 1.0

    def forward(self, context: StepContext) -> dict[str, Tensor]:
        """Return {name: weighted scalar}; their sum is the loss."""
        losses = {}
        for name, term in self.terms.items():
            losses[name] = term(context)
            self.clock(f"term {name}")
        return losses


def build_criterion(terms: Mapping[str, Mapping[str, Any]], config: ModelConfig) -> Criterion:
    """Build the terms that a recipe lists.

    Args:
        terms: {name: {option: value}}; see TERMS.
        config: The student's, for the heads that learn beside it.

    Raises:
        ValueError: for an unknown name, option or value, with its whole path.
    """
    if not terms:
        raise ValueError(f"terms is empty; known terms: {', '.join(TERMS)}")
    classification = [name for name in ("focal", "varifocal") if name in terms]
    if len(classification) != 1:
        raise ValueError(f"terms must list focal or varifocal, exactly one; got {classification}")
    built: dict[str, Any] = {}
    for name, options in terms.items():
        if name not in TERMS:
            raise ValueError(f"terms.{name} is unknown; known terms: {', '.join(TERMS)}")
        built[name] = build_part(TERMS[name], options or {}, f"terms.{name}")
    head = DepthHead(config, built["depth"].form) if "depth" in built else None
    return Criterion(built, head)
