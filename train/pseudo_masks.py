"""Masks that the teacher gives to the objects of a batch.

B images, n objects of one image, N of the batch, L locations, P ranked predictions of an object, c
predictions whose masks are held at one time, D detections of one image or mask channels, G pairs of
an image and a class that occurs in it, h x w cells of the stride-4 grid. Nothing here has a
gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, generalized_box_iou

from boxseg.boxes import area, rasterise
from boxseg.train.affinity import MASK_LOSS_STRIDE, valid_cells
from boxseg.train.assigner import (
    assign_by_score,
    assign_fcos,
    best_per_object,
    consistent_depth,
    depth_match_scores,
    match_one_to_one,
)
from boxseg.train.options import Count, Share, build_part
from boxseg.train.prototypes import Prototypes
from boxseg.train.teacher import TeacherPredictions
from boxseg.train.transforms import Batch

MASKS_AT_ONCE = 128
"""Predictions whose masks are held at one time, so that memory does not grow with their number."""

ADAPTIVE_COUNTS = (2, 10)
"""Candidates of a small and of a large object (BoxSeg, equation 4)."""

ADAPTIVE_AREAS = (32.0**2, 96.0**2)
"""Largest small and smallest large box, in pixels of the original image."""


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


@runtime_checkable
class RemembersSteps(PseudoMaskMaker, Protocol):
    """A method whose masks depend on earlier batches: SIM's prototypes."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what it has learned."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `state_dict` returned."""
        ...


class PseudoMaskMethod(PseudoMaskMaker, Protocol):
    """A method by its name in a recipe."""

    @property
    def needs_depth(self) -> bool:
        """Whether the batch must carry depth maps."""
        ...


def adaptive_count(areas: Tensor) -> Tensor:
    """Return how many candidates boxes of these areas get: 2 for small, 10 for large ones.

    Source: BoxSeg (arXiv:2504.05137), equation 4; half a candidate counts as one.

    Args:
        areas: Pixels of the original image, (N,).

    Returns:
        Whole numbers, (N,).
    """
    low, high = ADAPTIVE_AREAS
    fewest, most = ADAPTIVE_COUNTS
    share = ((areas - low) / (high - low)).clamp(0, 1)
    return (fewest + (most - fewest) * share + 0.5).floor().long()


def foreground_mean(masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Return the mean of each mask over its cells above a threshold, 0 if there is none.

    Args:
        masks: In [0, 1], (N, h, w).
        threshold: In [0, 1].

    Returns:
        In [0, 1], (N,).
    """
    foreground = masks > threshold
    cells = foreground.flatten(1).sum(dim=1)
    return (masks * foreground).flatten(1).sum(dim=1) / cells.clamp(min=1)


def _grid(batch: Batch) -> tuple[int, int]:
    """Return rows and columns of the stride-4 grid."""
    height, width = (side // MASK_LOSS_STRIDE for side in batch.images.shape[-2:])
    return height, width


def _box_masks(batch: Batch) -> Tensor:
    """Return the cells of every object's box, 0 or 1, (N, h, w)."""
    return rasterise(torch.cat(batch.boxes), *_grid(batch), MASK_LOSS_STRIDE)


def _per_image(batch: Batch, masks: Tensor, quality: Tensor, confidence: Tensor) -> PseudoMasks:
    """Cut what belongs to all objects of a batch into images.

    Args:
        batch: The images.
        masks: (N, h, w).
        quality: (N,); an object of quality 0 loses its mask and its confidence.
        confidence: (N,).
    """
    counts = [len(boxes) for boxes in batch.boxes]
    present = quality > 0
    return PseudoMasks(
        masks=list((masks * present[:, None, None]).split(counts)),
        quality=list(quality.split(counts)),
        confidence=list((confidence * present).split(counts)),
    )


def _depth_maps(batch: Batch, setting: str, images: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Return where depth is consistent and where that is known, float, (B, h, w) each.

    Args:
        batch: The images.
        setting: Path of the option that asks for it.
        images: Which of them.

    Raises:
        ValueError: if the batch carries no depth.
    """
    if batch.depth is None:
        raise ValueError(
            f"{setting} needs depth maps and the data have none: "
            f"write them with `boxseg data depth`, or set {setting}=0"
        )
    sizes = batch.sizes[images]
    none = torch.zeros(len(sizes), device=sizes.device)
    return consistent_depth(batch.depth[images], valid_cells(sizes, *_grid(batch), none))


@dataclass(frozen=True)
class Ranking:
    """The best predictions of every object of a batch by box IoU, best first."""

    image_index: Tensor
    """Image of each object, ascending, (N,)."""
    location_index: Tensor
    """(N, P)."""
    iou: Tensor
    """Box IoU u with the object, (N, P)."""
    scores: Tensor
    """score0 s of the object's own class, (N, P)."""
    same_class: Tensor
    """Whether no other class scores higher there, bool, (N, P)."""

    def rows(self, first: int, last: int) -> Ranking:
        """Return objects first to last - 1."""
        return Ranking(
            self.image_index[first:last],
            self.location_index[first:last],
            self.iou[first:last],
            self.scores[first:last],
            self.same_class[first:last],
        )


def rank_by_iou(teacher: TeacherPredictions, most: int) -> Ranking:
    """Rank the predictions of all locations and levels by box IoU, before any suppression.

    Source: BoxSeg (arXiv:2504.05137), box-quality ranking.

    Args:
        teacher: Its predictions.
        most: Predictions P to keep per object; fewer where there are fewer locations.
    """
    batch = teacher.batch
    locations, ious, scores, agree = [], [], [], []
    for image, (boxes, labels) in enumerate(zip(batch.boxes, batch.labels, strict=True)):
        overlap = box_iou(boxes, teacher.boxes[image])  # (n, L)
        iou, location = overlap.topk(min(most, overlap.shape[1]), dim=1)  # (n, P)
        of_classes = teacher.scores[image][location]  # (n, P, C)
        own = of_classes.gather(2, labels[:, None, None].expand(-1, iou.shape[1], 1))[..., 0]
        locations.append(location)
        ious.append(iou)
        scores.append(own)
        agree.append(own >= of_classes.amax(dim=2))
    counts = torch.tensor([len(boxes) for boxes in batch.boxes], device=teacher.boxes.device)
    images = torch.arange(len(counts), device=counts.device)
    return Ranking(
        image_index=images.repeat_interleave(counts, output_size=sum(map(len, batch.boxes))),
        location_index=torch.cat(locations),
        iou=torch.cat(ious),
        scores=torch.cat(scores),
        same_class=torch.cat(agree),
    )


def _mean_where(values: Tensor, kept: Tensor) -> Tensor:
    """Return the mean of the kept values of each row, 0 where none is kept: (N, P) -> (N,)."""
    return (values * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class QualityAware:
    """The quality-aware module of BoxSeg (arXiv:2504.05137); the defaults are the paper's.

    Box-quality ranking takes the predictions whose boxes fit an object best, fusion makes one mask
    of theirs, scoring says how good it is. The rows of the paper's ablation:

        ranking alone (BQR)   fusion: mean, quality: one
        + fusion (QMF)        fusion: weighted, quality: one
        + scoring (MQS)       fusion: weighted, quality: paper

    and the released code: candidates: 20, fusion: vote, quality: consensus, class_check: true.
    """

    candidates: Literal["adaptive"] | Count = "adaptive"
    """Predictions K per object; adaptive takes 2 to 10 by the size of its box."""
    fusion: Literal["best", "mean", "weighted", "vote"] = "weighted"
    """best: the mask of the box that fits best; mean: the plain mean; weighted: by
    sqrt(score * IoU), equation 2; vote: 1 where most of the masks, cut at one half, are 1."""
    quality: Literal["one", "paper", "consensus"] = "paper"
    """one: 1 for every mask; paper: equation 5; consensus: mean over the candidates of
    sqrt((score + 1) / 2 * IoU with the fused mask * the candidate's mass / the fused area)."""
    score_threshold: Share = 0.1
    """Smallest score of a candidate that counts."""
    mask_threshold: Share = 0.5
    """Probability above which a cell is foreground."""
    class_check: bool = False
    """Count only candidates whose best class is the object's and whose IoU is above one half."""
    depth_ranking: Share = 0.0
    """Weight at the start of how well a mask follows the depth map when the top K are chosen; it
    falls to 0 at the end of the schedule. A mask's weight in the fusion stays sqrt(score * IoU)."""

    @property
    def needs_depth(self) -> bool:
        """Whether the batch must carry depth maps."""
        return self.depth_ranking > 0

    @torch.no_grad()
    def __call__(self, teacher: TeacherPredictions) -> PseudoMasks:
        """Return a mask and its quality for every object of the teacher's batch.

        Raises:
            ValueError: if the ranking needs depth and the batch carries none.
        """
        batch = teacher.batch
        depth_weight = self.depth_ranking * (1 - teacher.progress)
        agrees = known = None
        if self.needs_depth:
            agrees, known = _depth_maps(batch, "pseudo_masks.quality_aware.depth_ranking")
        wanted = self._wanted(batch)  # (N,)
        most = ADAPTIVE_COUNTS[1] if self.candidates == "adaptive" else self.candidates
        pool = 2 if depth_weight else 1  # how many times K take part in the ranking
        ranking = rank_by_iou(teacher, pool * most)
        box_masks = _box_masks(batch)
        at_once = max(1, MASKS_AT_ONCE // (pool * most))
        parts = [(box_masks[:0], wanted[:0].float(), wanted[:0].float())]
        for first in range(0, len(wanted), at_once):
            last = first + at_once
            rows = ranking.rows(first, last)
            place = torch.arange(rows.iou.shape[1], device=rows.iou.device)
            held = (place < pool * wanted[first:last, None]) & (rows.iou > 0)
            if not depth_weight:
                held &= self._counts(rows)
            row, column = held.nonzero(as_tuple=True)  # (c,)
            masks = teacher.masks_at(rows.image_index[row], rows.location_index[row, column])
            inside = box_masks[first:last]
            if depth_weight and agrees is not None and known is not None:
                images = rows.image_index[row]
                match = depth_match_scores(
                    masks[:, None],
                    (agrees[images] * inside[row])[:, None],
                    (known[images] * inside[row])[:, None],
                )[:, 0, 0]
                rank_by = torch.full_like(rows.iou, -1.0)
                rank_by[row, column] = (1 - depth_weight) * rows.iou[row, column] + (
                    depth_weight * match
                )
                order = rank_by.argsort(dim=1, descending=True, stable=True)
                place = order.argsort(dim=1)
                held &= (place < wanted[first:last, None]) & self._counts(rows)
            parts.append(self._fuse(rows, held, row, column, masks, inside))
        fused, quality, confidence = (torch.cat(part) for part in zip(*parts, strict=True))
        return _per_image(batch, fused, quality, confidence)

    def _wanted(self, batch: Batch) -> Tensor:
        """Return the number of candidates K of every object, (N,)."""
        boxes = torch.cat(batch.boxes)
        if self.candidates != "adaptive":
            return torch.full((len(boxes),), self.candidates, device=boxes.device)
        ratio = (batch.original_sizes.float() / batch.sizes).prod(dim=1)
        areas = [area(each) * ratio[image] for image, each in enumerate(batch.boxes)]
        return adaptive_count(torch.cat(areas))

    def _counts(self, rows: Ranking) -> Tensor:
        """Return which predictions may be candidates at all, bool, (N, P)."""
        counts = rows.scores >= self.score_threshold
        return counts & rows.same_class & (rows.iou > 0.5) if self.class_check else counts

    def _fuse(
        self,
        rows: Ranking,
        kept: Tensor,
        row: Tensor,
        column: Tensor,
        masks: Tensor,
        inside: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make one mask per object.

        Args:
            rows: The objects.
            kept: Which of their predictions are candidates, (N, P).
            row: Object of each held mask, (c,).
            column: Its place in the ranking, (c,).
            masks: Probabilities, (c, h, w).
            inside: Cells of the objects' boxes, (N, h, w).

        Returns:
            Masks (N, h, w), quality (N,) and confidence (N,).
        """
        weights = self._weights(rows, kept)[row, column]  # (c,)
        votes = (masks > self.mask_threshold).to(masks.dtype) if self.fusion == "vote" else masks
        fused = torch.zeros_like(inside).index_add_(0, row, votes * weights[:, None, None])
        if self.fusion == "vote":
            fused = (fused > 0.5).to(fused.dtype)
        cut = fused * inside
        confidence = _mean_where(rows.scores, kept)
        quality = (cut > self.mask_threshold).flatten(1).any(dim=1).to(cut.dtype)
        if self.quality == "paper":
            quality = (confidence * foreground_mean(cut, self.mask_threshold)).sqrt()
        elif self.quality == "consensus":
            single = torch.zeros_like(rows.scores)
            single[row, column] = self._agreement(masks, fused, row)
            quality = quality * _mean_where(((rows.scores + 1) / 2 * single).sqrt(), kept)
        return cut, quality, confidence

    def _weights(self, rows: Ranking, kept: Tensor) -> Tensor:
        """Return what share each prediction has in the fused mask, (N, P)."""
        if self.fusion == "best":
            best = torch.where(kept, rows.iou, -1.0).argmax(dim=1, keepdim=True)
            shares = torch.zeros_like(rows.iou).scatter(1, best, 1.0) * kept
        elif self.fusion == "weighted":
            shares = (rows.scores * rows.iou).sqrt() * kept
        else:
            shares = kept.to(rows.iou.dtype)
        return shares / shares.sum(dim=1, keepdim=True).clamp(min=1e-12)

    def _agreement(self, masks: Tensor, fused: Tensor, row: Tensor) -> Tensor:
        """Return IoU of each mask with its fused one * its mass / the fused area, (c,)."""
        single = (masks > self.mask_threshold).flatten(1)
        agreed = (fused > self.mask_threshold).flatten(1)  # (N, hw)
        areas = agreed.sum(dim=1)[row]
        common = (single & agreed[row]).sum(dim=1)
        union = single.sum(dim=1) + areas - common
        mass = (masks.flatten(1) * single).sum(dim=1)
        return common / union.clamp(min=1) * mass / areas.clamp(min=1)


@dataclass(frozen=True)
class Detections:
    """What the teacher detects in one image, best first."""

    location_index: Tensor
    """(D,)."""
    boxes: Tensor
    """Student pixels, (D, 4)."""
    scores: Tensor
    """score0, (D,)."""


def detect(teacher: TeacherPredictions, image: int, *, score: float, nms_iou: float) -> Detections:
    """Return the 100 best of an image after suppression within each class.

    Args:
        teacher: Its predictions.
        image: Row of the batch.
        score: A detection scores more than this.
        nms_iou: A detection that overlaps a better one of its class by more is suppressed.
    """
    scores = teacher.scores[image]  # (L, C)
    best, pair = scores.flatten().topk(min(1000, scores.numel()))
    best, pair = best[best > score], pair[best > score]
    location, label = pair // scores.shape[1], pair % scores.shape[1]
    boxes = teacher.boxes[image, location]
    kept = batched_nms(boxes, best, label, nms_iou)[:100]
    return Detections(location[kept], boxes[kept], best[kept])


def _masks_of(teacher: TeacherPredictions, image: int, location_index: Tensor) -> Tensor:
    """Return the masks of predictions of one image, (D, h, w)."""
    return teacher.masks_at(torch.full_like(location_index, image), location_index)


@dataclass(frozen=True)
class _OfDetections:
    """What the methods on detections have in common: one detection at most per object."""

    candidate_score: Share = 0.05**0.5
    """A detection's score0 is above this."""
    nms_iou: Share = 0.6
    """A detection that overlaps a better one of its class by more is suppressed."""

    @torch.no_grad()
    def __call__(self, teacher: TeacherPredictions) -> PseudoMasks:
        """Return a mask and its quality for every object of the teacher's batch.

        Raises:
            ValueError: if the method needs depth and the batch carries none.
        """
        batch = teacher.batch
        inside = _box_masks(batch)
        quality = inside.new_zeros(len(inside))
        confidence = torch.zeros_like(quality)
        masks = torch.zeros_like(inside)
        first = 0
        for image, boxes in enumerate(batch.boxes):
            last = first + len(boxes)
            if len(boxes):
                found = detect(teacher, image, score=self.candidate_score, nms_iou=self.nms_iou)
                chosen, masks[first:last], quality[first:last] = self._match(
                    teacher, image, found, inside[first:last]
                )
                if len(found.scores):
                    confidence[first:last] = found.scores[chosen.clamp(min=0)]
            first = last
        return _per_image(batch, masks, quality, confidence)

    def _match(
        self, teacher: TeacherPredictions, image: int, found: Detections, inside: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give the detections of one image to its objects.

        Args:
            teacher: Its predictions.
            image: Row of the batch.
            found: Its detections.
            inside: Cells of its objects' boxes, (n, h, w).

        Returns:
            Detection of each object or -1 (n,), masks (n, h, w), quality (n,).
        """
        raise NotImplementedError


@dataclass(frozen=True)
class BoxTeacher(_OfDetections):
    """Box-based assignment and mask-aware confidence (BoxTeacher, arXiv:2210.05174).

    By descending sqrt(score0 * mean foreground probability inside its box) each detection takes the
    still-free object that it overlaps most, of whatever class. In the released code an object that
    the first detection holds counts as free; here it does not.
    """

    match_iou: Share = 0.5
    """Smallest IoU of a detection's box with the object that it takes."""
    quality: Literal["one", "paper", "released"] = "paper"
    """one: 1 for every mask, the assignment alone; paper: sqrt(score0 * mean foreground probability
    inside the box); released: sqrt(sqrt(score0) * mean foreground probability anywhere)."""

    @property
    def needs_depth(self) -> bool:
        """Whether the batch must carry depth maps."""
        return False

    def _match(
        self, teacher: TeacherPredictions, image: int, found: Detections, inside: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        boxes = teacher.batch.boxes[image]
        overlap = box_iou(found.boxes, boxes)  # (D, n)
        near = (overlap >= self.match_iou).any(dim=1).nonzero()[:, 0]  # others take nothing
        masks = _masks_of(teacher, image, found.location_index[near])
        anywhere = foreground_mean(masks)
        own_box = rasterise(found.boxes[near], *_grid(teacher.batch), MASK_LOSS_STRIDE)
        rescored = (found.scores[near] * foreground_mean(masks * own_box)).sqrt()
        taken = assign_by_score(overlap[near], rescored, self.match_iou)  # (n,)
        matched = taken >= 0
        if not len(near):
            return taken, torch.zeros_like(inside), inside.new_zeros(len(inside))
        of_object = taken.clamp(min=0)
        cut = (masks[of_object] > 0.5) * inside
        scores = found.scores[near][of_object]
        if self.quality == "one":
            quality = torch.ones_like(scores)
        elif self.quality == "paper":
            quality = (scores * foreground_mean(masks[of_object] * inside)).sqrt()
        else:
            quality = (scores.sqrt() * anywhere[of_object]).sqrt()
        has_mask = matched & cut.flatten(1).any(dim=1)
        return torch.where(matched, near[of_object], -1), cut, quality * has_mask


@dataclass(frozen=True)
class DepthMatched(_OfDetections):
    """Depth-aware one-to-one matching of Pseudo-Depth (arXiv:2403.01214).

    Objects and detections are matched so that the sum of S = a * IoU + b * depth match +
    (1 - a - b) * score0 is largest, where b falls to 0 over the schedule; a match counts if its S
    is above the threshold. The pseudo mask is soft. The paper does not give a and b; they are those
    of the author's development tree.
    """

    overlap: Literal["iou", "giou"] = "iou"
    """iou: of the boxes, as in the paper; giou: generalised IoU, as in the author's development
    tree."""
    box_weight: Share = 0.1
    """Weight a of the boxes' overlap."""
    depth_weight: Share = 0.3
    """Weight b of the depth match at the start."""
    match_threshold: Share = 0.5
    """A match counts if its S is above this."""
    quality: Literal["one", "match"] = "one"
    """one: 1 for every match that counts; match: its S."""

    def __post_init__(self) -> None:
        """Refuse weights that leave the score less than nothing."""
        if self.box_weight + self.depth_weight > 1:
            raise ValueError(
                "pseudo_masks.depth_matched.box_weight + depth_weight must be at most 1, "
                f"got {self.box_weight} + {self.depth_weight}"
            )

    @property
    def needs_depth(self) -> bool:
        """Whether the batch must carry depth maps."""
        return self.depth_weight > 0

    def _match(
        self, teacher: TeacherPredictions, image: int, found: Detections, inside: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        masks = _masks_of(teacher, image, found.location_index)  # (D, h, w)
        depth_weight = self.depth_weight * (1 - teacher.progress)
        scores = (1 - self.box_weight - depth_weight) * found.scores[None]
        overlap_of = box_iou if self.overlap == "iou" else generalized_box_iou
        overlap = overlap_of(teacher.batch.boxes[image], found.boxes)  # (n, D)
        scores = scores + self.box_weight * overlap
        if self.needs_depth:
            agrees, known = _depth_maps(
                teacher.batch,
                "pseudo_masks.depth_matched.depth_weight",
                slice(image, image + 1),
            )
            match = depth_match_scores(masks, agrees * inside, known * inside)
            scores = scores + depth_weight * match
        chosen = match_one_to_one(scores)  # (n,)
        if not len(masks):
            return chosen, torch.zeros_like(inside), inside.new_zeros(len(inside))
        of_match = scores.gather(1, chosen[:, None])[:, 0]
        cut = masks[chosen] * inside
        counts = (of_match > self.match_threshold) & (cut > 0.5).flatten(1).any(dim=1)
        quality = of_match.clamp(max=1) if self.quality == "match" else torch.ones_like(of_match)
        return chosen, cut, quality * counts


def _matched_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU of each box with its partner: (N, 4), (N, 4) -> (N,)."""
    overlap = area(
        torch.cat(
            [
                torch.maximum(first[:, :2], second[:, :2]),
                torch.minimum(first[:, 2:], second[:, 2:]),
            ],
            dim=1,
        )
    )
    return overlap / (area(first) + area(second) - overlap).clamp(min=1e-6)


@dataclass
class Semantic:
    """Masks where prototypes and the object's own predictions agree (SIM, arXiv:2303.08578).

    Everything lies on the stride-4 grid of the student's frame; the teacher's mask features are
    sampled there as its mask logits are, then normalised. Cells outside of the box are left to the
    projection term. The paper prints no values for `high` and `low`; these are the ends of the
    released range. The prototypes are made in the first call, which knows their number and size.
    """

    per_class: Count = 10
    """Prototypes of each class, L."""
    momentum: Share = 0.999
    """What a prototype keeps of itself when an image's centroid joins."""
    temperature: float = 1.0
    """Divides cosines before the sigmoid; 1 as released. The paper prints .1; the best of ten
    cosines is above 0 nearly everywhere, so that the map is then nearly 1 there and half of a box's
    background is not taught as such (docs/results, the method's parts)."""
    mu: float = 5.0
    """Weight of a positive is exp(mu IoU of its box) / sum; 0, the plain mean, as released."""
    alpha: Share = 0.5
    """Share of the instance map in the fused probability; the rest is the semantic map's."""
    foreground: Literal["fixed", "ranked"] = "fixed"
    """Least probability of foreground: `high`, or, as released, for every object the value at the
    rank that the number of cells with an instance probability above `sure` has, between `high` and
    `highest`."""
    high: Share = 0.7
    highest: Share = 0.8
    low: Share = 0.4
    """Below it a cell is background; between it and foreground it is not counted."""
    sure: Share = 0.7
    """Quality is the mean probability of the cells above it."""
    masks_per_image: Count = 64
    """Positives per image whose masks are computed, the best of every object."""

    def __post_init__(self) -> None:
        """Refuse contradictions and start without prototypes."""
        if not self.low <= self.high <= self.highest:
            raise ValueError(
                "pseudo_masks.semantic needs low <= high <= highest, "
                f"got {self.low} {self.high} {self.highest}"
            )
        if not self.temperature > 0:
            raise ValueError(
                f"pseudo_masks.semantic.temperature must be above 0, got {self.temperature}"
            )
        self.prototypes: Prototypes | None = None

    @property
    def needs_depth(self) -> bool:
        """Whether the batch must carry depth maps."""
        return False

    @torch.no_grad()
    def __call__(self, teacher: TeacherPredictions) -> PseudoMasks:
        """Return masks, and move the prototypes towards what they hold."""
        with torch.autocast(teacher.batch.images.device.type, enabled=False):
            return self._masks(teacher)

    def _masks(self, teacher: TeacherPredictions) -> PseudoMasks:
        batch = teacher.batch
        counts = [len(boxes) for boxes in batch.boxes]
        features = F.normalize(teacher.mask_features, dim=1)  # (B, D, h, w)
        classes = teacher.predictions.class_logits.shape[2]
        prototypes = self._prototypes(classes, features)
        instance, confidence = self.instance_maps(teacher)  # (N, h, w), (N,)
        labels = torch.cat(batch.labels)
        images = torch.arange(len(counts), device=labels.device).repeat_interleave(
            torch.tensor(counts, device=labels.device), output_size=sum(counts)
        )
        pairs, of_pair = (images * classes + labels).unique(return_inverse=True)
        image, label = pairs // classes, pairs % classes  # (G,)
        per_image = torch.bincount(image, minlength=len(counts)).tolist()
        cosines = torch.cat(
            [
                prototypes.cosines(of_image, chosen)
                for of_image, chosen in zip(features, label.split(per_image), strict=True)
            ]
        )  # (G, L, h, w)

        semantic = prototypes.semantic_map(cosines, label, self.temperature)[of_pair]
        known = (prototypes.seen[labels] > 0).any(dim=1)
        alpha = torch.where(known, self.alpha, 1.0)[:, None, None]
        inside = _box_masks(batch) * (confidence > 0)[:, None, None]
        fused = ((1 - alpha) * semantic + alpha * instance) * inside

        thresholds = self.thresholds(fused, instance * inside)[:, None, None]
        foreground = (fused >= thresholds) & (inside > 0)
        counted = (foreground | (fused < self.low)) & (inside > 0)
        quality = foreground_mean(fused, self.sure) * foreground.flatten(1).any(dim=1)

        occupied = fused.new_zeros((len(pairs), *fused.shape[1:]))
        occupied.index_add_(0, of_pair, foreground.float())
        prototypes.update(features, cosines, occupied > 0, image, label)
        found = _per_image(batch, foreground.float(), quality, confidence)
        return replace(found, counted=list(counted.split(counts)))

    def _prototypes(self, classes: int, features: Tensor) -> Prototypes:
        """Return the prototypes on the device of the features (B, D, h, w)."""
        if self.prototypes is None:
            self.prototypes = Prototypes(classes, features.shape[1], self.per_class, self.momentum)
        self.prototypes.to(features.device)
        return self.prototypes

    def instance_maps(self, teacher: TeacherPredictions) -> tuple[Tensor, Tensor]:
        """Average the masks of every object's positives, those with better boxes more.

        Source: SIM (arXiv:2303.08578), positive mask weighting. Positives are those of the
        teacher's own pixels.

        Returns:
            Maps in [0, 1], 0 for an object without positives, (N, h, w), and the mean score0 of
            the object's own class over its positives, 0 without, (N,).
        """
        batch, predictions = teacher.batch, teacher.predictions
        zoom = teacher.zoom.repeat(1, 2)  # (B, 4)
        found = assign_fcos(
            predictions.locations,
            predictions.levels,
            [boxes * scale for boxes, scale in zip(batch.boxes, zoom, strict=True)],
            batch.labels,
        )
        scores = teacher.scores[found.image_index, found.location_index]  # (N, C)
        kept = best_per_object(
            found.image_index,
            found.object_index,
            scores.amax(dim=1),
            images=len(batch.boxes),
            per_image=self.masks_per_image,
        )
        image, location = found.image_index[kept], found.location_index[kept]
        counts = torch.tensor([len(boxes) for boxes in batch.boxes], device=image.device)
        owner = (counts.cumsum(0) - counts)[image] + found.object_index[kept]
        all_boxes = torch.cat(batch.boxes)
        iou = _matched_iou(teacher.boxes[image, location], all_boxes[owner])
        weight = torch.exp(self.mu * (iou - 1))
        weight = weight / weight.new_zeros(len(all_boxes)).index_add_(0, owner, weight)[owner]

        masks = teacher.masks_at(image, location)
        maps = masks.new_zeros((len(all_boxes), *masks.shape[1:]))
        maps.index_add_(0, owner, masks * weight[:, None, None])
        own = scores[kept, found.labels[kept]]
        total = own.new_zeros(len(all_boxes)).index_add_(0, owner, own)
        positives = torch.bincount(owner, minlength=len(all_boxes))
        return maps, total / positives.clamp(min=1)

    def thresholds(self, fused: Tensor, instance: Tensor) -> Tensor:
        """Return the least probability of foreground of every object.

        Args:
            fused: 0 outside of the box, (N, h, w).
            instance: Instance maps, 0 outside of the box, (N, h, w).

        Returns:
            (N,).
        """
        if self.foreground == "fixed" or not len(fused):
            return fused.new_full((len(fused),), self.high)
        rank = (instance > self.sure).flatten(1).sum(dim=1)  # (N,)
        falling = fused.flatten(1).sort(dim=1, descending=True).values
        at_rank = falling.gather(1, (rank - 1).clamp(min=0)[:, None])[:, 0]
        return at_rank.clamp(self.high, self.highest)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the prototypes; nothing before the first call."""
        return {} if self.prototypes is None else self.prototypes.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what state_dict returned.

        Raises:
            ValueError: if it belongs to another number of prototypes.
        """
        self.prototypes = None
        if state:
            classes, _, channels = state["vectors"].shape
            self.prototypes = Prototypes(classes, channels, self.per_class, self.momentum)
            self.prototypes.load_state_dict(state)


PSEUDO_MASKS: Mapping[str, type[PseudoMaskMethod]] = {
    "quality_aware": QualityAware,
    "box_teacher": BoxTeacher,
    "depth_matched": DepthMatched,
    "semantic": Semantic,
}
"""Every method that a recipe may name."""

DEPTH_OPTIONS = {"quality_aware": "depth_ranking", "depth_matched": "depth_weight"}
"""Option of each method that needs depth maps where it is above 0."""


def build_pseudo_masks(methods: Mapping[str, Mapping[str, Any]]) -> PseudoMaskMethod:
    """Build the method that a recipe names.

    Args:
        methods: {name: {option: value}}, exactly one name; see PSEUDO_MASKS.

    Raises:
        ValueError: for an unknown name, option or value, with its whole path.
    """
    known = ", ".join(PSEUDO_MASKS)
    for name in methods:
        if name not in PSEUDO_MASKS:
            raise ValueError(f"pseudo_masks.{name} is unknown; known methods: {known}")
    if len(methods) != 1:
        got = ", ".join(methods) or "none"
        raise ValueError(f"pseudo_masks must name exactly one of {known}; got {got}")
    (name, options), *_ = methods.items()
    return build_part(PSEUDO_MASKS[name], options or {}, f"pseudo_masks.{name}")
