"""Losses as pure functions, each with its source.

N instances or positive locations, C classes, h x w cells of the stride-4 grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from boxseg.train.affinity import PAIR_OFFSETS, label_agreement, shifted_pair, smoothed_masks


def focal_terms(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal term of every entry.

    Source: RetinaNet (arXiv:1708.02002), equation 5.

    Args:
        logits: Any shape.
        targets: 0 or 1, same shape.
        alpha: Weight of positives; negatives get 1 - alpha.
        gamma: Exponent of the modulating factor.

    Returns:
        Same shape.
    """
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    missed = torch.where(targets > 0, 1 - probability, probability)
    balance = torch.where(targets > 0, alpha, 1 - alpha)
    return balance * missed**gamma * cross_entropy


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sum of `focal_terms`, a scalar."""
    return focal_terms(logits, targets, alpha, gamma).sum()


def varifocal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    *,
    constant_weight: bool = True,
) -> Tensor:
    """Sum of varifocal terms: positives are weighted by their own quality.

    Source: VarifocalNet (arXiv:2008.13367), equation 2; alpha .25 as in the released BoxSeg,
    where the paper has .75. Published code differentiates the weight of negatives as well, which
    makes their gradient up to three times as large: `constant_weight` false.

    Args:
        logits: Any shape.
        targets: Quality in [0, 1], 0 for negatives, same shape; no gradient.
        alpha: Weight of negatives.
        gamma: Exponent of their modulating factor.
        constant_weight: Take the weight of negatives for a constant.

    Returns:
        A scalar.
    """
    probability = (logits.detach() if constant_weight else logits).sigmoid()
    weight = torch.where(targets > 0, targets, alpha * (probability - targets).abs() ** gamma)
    return (F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * weight).sum()


def distance_iou(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalised IoU of boxes given by distances from a shared location.

    Source: GIoU (arXiv:1902.09630), algorithm 1; +1 in numerator and denominator of the ratio as
    in the released FCOS, which keeps empty boxes finite.

    Args:
        predicted: l, t, r, b, at least 0, in strides, (N, 4).
        target: Same.

    Returns:
        IoU (N,) and generalised IoU (N,).
    """
    predicted_area = (predicted[:, 0] + predicted[:, 2]) * (predicted[:, 1] + predicted[:, 3])
    target_area = (target[:, 0] + target[:, 2]) * (target[:, 1] + target[:, 3])
    low = torch.minimum(predicted, target)
    high = torch.maximum(predicted, target)
    intersection = (low[:, 0] + low[:, 2]) * (low[:, 1] + low[:, 3])
    hull = (high[:, 0] + high[:, 2]) * (high[:, 1] + high[:, 3])
    union = predicted_area + target_area - intersection
    iou = (intersection + 1) / (union + 1)
    return iou, iou - (hull - union) / hull.clamp(min=1e-7)


def centerness(distances: Tensor) -> Tensor:
    """Return how central each location lies in its box, in [0, 1].

    Source: FCOS (arXiv:1904.01355), equation 3.

    Args:
        distances: l, t, r, b, positive, (N, 4).

    Returns:
        (N,).
    """
    horizontal, vertical = distances[:, [0, 2]], distances[:, [1, 3]]
    ratio = (horizontal.amin(dim=1) / horizontal.amax(dim=1)) * (
        vertical.amin(dim=1) / vertical.amax(dim=1)
    )
    return ratio.sqrt()


def dice_loss(probability: Tensor, target: Tensor, eps: float = 1e-5) -> Tensor:
    """Return 1 - 2 sum(x t) / (sum x^2 + sum t^2 + eps) per row.

    Source: V-Net (arXiv:1606.04797), equation 1, with the squared denominator of CondInst.

    Args:
        probability: In [0, 1], (N, K).
        target: In [0, 1], (N, K).
        eps: Keeps an empty pair finite.

    Returns:
        One loss per row in [0, 1], (N,).
    """
    probability, target = probability.float(), target.float()
    overlap = (probability * target).sum(dim=1)
    total = probability.square().sum(dim=1) + target.square().sum(dim=1) + eps
    return 1 - 2 * overlap / total


def counted_mask_loss(mask_logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Binary cross entropy plus dice on the cells that count.

    Source: SIM (arXiv:2303.08578), the loss on pseudo masks. The released code feeds
    probabilities to a cross entropy that expects logits; here they are logits.

    Args:
        mask_logits: (N, h, w).
        targets: In [0, 1], (N, h, w).
        counted: Bool, (N, h, w).

    Returns:
        One loss per instance, 0 where nothing counts, (N,).
    """
    logits, wanted = mask_logits.float().flatten(1), targets.float().flatten(1)
    cells = counted.flatten(1).float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    number = cells.sum(dim=1)
    mean = (cross_entropy * cells).sum(dim=1) / number.clamp(min=1)
    return mean + dice_loss(logits.sigmoid() * cells, wanted * cells) * (number > 0)


def counted_focal_loss(
    mask_logits: Tensor, targets: Tensor, counted: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Mean focal term over the cells that count.

    Source: SIM as released, with logits where it has probabilities.

    Args:
        mask_logits: (N, h, w).
        targets: 0 or 1, (N, h, w).
        counted: Bool, (N, h, w).
        alpha: Weight of foreground; background gets 1 - alpha.
        gamma: Exponent of the modulating factor.

    Returns:
        One loss per instance, 0 where nothing counts, (N,).
    """
    cells = counted.flatten(1).float()
    terms = focal_terms(
        mask_logits.float().flatten(1), targets.float().flatten(1), alpha=alpha, gamma=gamma
    )
    return (terms * cells).sum(dim=1) / cells.sum(dim=1).clamp(min=1)


def projection_loss(mask_logits: Tensor, box_masks: Tensor) -> Tensor:
    """Dice between the column and row maxima of a mask and of its box.

    Source: BoxInst (arXiv:2012.02310), the projection term. The sigmoid is taken after the
    maximum, which it commutes with.

    Args:
        mask_logits: (N, h, w).
        box_masks: 1 inside the box, 0 outside, (N, h, w).

    Returns:
        One loss per instance in [0, 2], (N,).
    """
    loss = mask_logits.new_zeros(len(mask_logits))
    for axis in (1, 2):
        mask_profile = mask_logits.float().amax(dim=axis).sigmoid()
        loss = loss + dice_loss(mask_profile, box_masks.amax(dim=axis))
    return loss


def _label_difference(first: Tensor, second: Tensor) -> Tensor:
    """Return -log P(same label) of pairs of logits, without leaving log space."""
    return F.softplus(-first) + F.softplus(-second) - F.softplus(-first - second)


def pairwise_loss(
    mask_logits: Tensor, box_masks: Tensor, edges: Tensor, image_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum of -log P(same label) over similar pairs that start inside boxes, and their number.

    Source: BoxInst (arXiv:2012.02310), the pairwise term in its "positive pairs only" form. With
    p = sigmoid(z), -log(p_i p_j + (1 - p_i)(1 - p_j)) =
    softplus(-z_i) + softplus(-z_j) - softplus(-z_i - z_j), which never leaves log space. The value
    is symmetric, so each unordered pair is computed once and counted for each end in the box.

    Args:
        mask_logits: (N, h, w).
        box_masks: 1 inside the box, 0 outside, (N, h, w).
        edges: Whether the pair (i, j) of each unordered offset counts from its first end, and from
            its second, (2, 4, B, h, w) bool; see `affinity.directed_edges`.
        image_index: Image of each instance, (N,).

    Returns:
        Sum and number of pairs, scalars; divide one by the other over all instances jointly.
    """
    inside = box_masks > 0
    logits = mask_logits.float()
    loss = logits.new_zeros(())
    pairs = logits.new_zeros(())
    for number, offset in enumerate(PAIR_OFFSETS):
        first, second = shifted_pair(inside, offset)
        from_first, _ = shifted_pair(edges[0, number], offset)
        from_second, _ = shifted_pair(edges[1, number], offset)
        counted_first = first & from_first[image_index]
        counted_second = second & from_second[image_index]
        n, y, x = (counted_first | counted_second).nonzero(as_tuple=True)
        times = counted_first[n, y, x].float() + counted_second[n, y, x].float()
        logits_first, logits_second = shifted_pair(logits, offset)
        z_first, z_second = logits_first[n, y, x], logits_second[n, y, x]
        loss = loss + (_label_difference(z_first, z_second) * times).sum()
        pairs = pairs + times.sum()
    return loss, pairs


def mask_affinity_loss(
    mask_logits: Tensor,
    weights: Tensor,
    object_index: Tensor,
    *,
    masks: Tensor,
    inside: Tensor,
    valid: Tensor,
    threshold: float,
) -> Tensor:
    """Sum over instances of weight * mean of -log P(same label) over the pairs of their object.

    A pair counts from each end that lies inside the box, if the affinity of the object's smoothed
    mask reaches the threshold and the other end is valid.

    Source: BoxTeacher (arXiv:2210.05174), the noise-reduced affinity loss, as released. What
    counts depends on the object alone, so it is found once per object and not per instance.

    Args:
        mask_logits: (K, h, w).
        weights: Quality of the mask of each instance's object, (K,).
        object_index: Row of each instance's object, (K,).
        masks: Pseudo mask of each object, bool or in [0, 1], (N, h, w).
        inside: Cells from which pairs count, bool, (N, h, w).
        valid: Cells to which pairs count, bool, (N, h, w).
        threshold: Smallest affinity of a pair that counts.

    Returns:
        A scalar; an instance without pairs adds nothing.
    """
    smooth = smoothed_masks(masks)
    columns = smooth.shape[-1]
    times = torch.zeros((len(PAIR_OFFSETS), *smooth.shape), dtype=torch.uint8, device=smooth.device)
    for number, offset in enumerate(PAIR_OFFSETS):
        agrees = label_agreement(*shifted_pair(smooth, offset)) >= threshold
        inside_first, inside_second = shifted_pair(inside, offset)
        valid_first, valid_second = shifted_pair(valid, offset)
        ends = (inside_first & valid_second).byte() + (inside_second & valid_first).byte()
        shifted_pair(times[number], offset)[0].copy_(ends * agrees)
    pairs = times.sum(dim=(0, 2, 3))  # (N,)
    weight_of_pair = weights / pairs[object_index].clamp(min=1)

    logits = mask_logits.float().flatten()
    cells = smooth[0].numel() if len(smooth) else 1
    loss = logits.new_zeros(())
    for number, (dy, dx) in enumerate(PAIR_OFFSETS):
        ends = times[number][object_index].flatten()  # (K h w)
        first = ends.nonzero()[:, 0]
        value = _label_difference(logits[first], logits[first + dy * columns + dx])
        loss = loss + (value * ends[first] * weight_of_pair[first // cells]).sum()
    return loss


def depth_loss(depth: Tensor, target: Tensor, counted: Tensor, image_index: Tensor) -> Tensor:
    """Mean of (D - depth / 255)^2 over the counted cells of each instance.

    Source: Pseudo-Depth (arXiv:2403.01214), the depth term of the depth-guided mask head.

    Args:
        depth: Predicted nearness of each instance, in (0, 1), (N, h, w).
        target: Inverse depth of each image, 0..255, (B, h, w).
        counted: Cells in the instance's box where the image has depth, bool, (N, h, w).
        image_index: Image of each instance, (N,).

    Returns:
        One loss per instance in [0, 1], 0 without a counted cell, (N,).
    """
    n, y, x = counted.nonzero(as_tuple=True)
    error = (depth[n, y, x].float() - target[image_index[n], y, x] / 255).square()
    total = depth.new_zeros(len(depth), dtype=torch.float32).index_add(0, n, error)
    return total / counted.sum(dim=(1, 2)).clamp(min=1)
