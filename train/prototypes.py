"""Semantic prototypes (SIM, arXiv:2303.08578): directions that each class takes.

B images, C classes, L prototypes per class, D mask channels, G pairs of an image and a class that
occurs in it, T cells, h x w cells of one grid.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

SINKHORN_EPS = 0.05
"""Entropy of the assignment of cells to prototypes (SIM, as released)."""

SINKHORN_ITERATIONS = 3
"""Rounds of the assignment (SIM, as released)."""


def sinkhorn(
    cosines: Tensor,
    group: Tensor,
    groups: int,
    eps: float = SINKHORN_EPS,
    iterations: int = SINKHORN_ITERATIONS,
) -> Tensor:
    """Share out the cells of each group evenly among its prototypes, close ones first.

    Source: SIM (arXiv:2303.08578); the algorithm is Cuturi's (arXiv:1306.0895). In every group of
    N cells the plan tends to sum to 1 / L over the cells for each prototype and to 1 / N over the
    prototypes for each cell; the last step of a round sets the latter exactly.

    Args:
        cosines: Of each cell with the prototypes of its group, in [-1, 1], (T, L).
        group: Group of each cell, (T,).
        groups: Number of groups G.
        eps: Entropy; the smaller, the harder the plan.
        iterations: Rounds.

    Returns:
        The plan, (T, L).
    """
    prototypes = cosines.shape[1]
    sizes = torch.bincount(group, minlength=groups)[group, None]
    plan = torch.exp((cosines - 1) / eps)  # at least exp(-2 / eps)
    for _ in range(iterations):
        totals = plan.new_zeros((groups, prototypes)).index_add_(0, group, plan)
        plan = plan / (totals[group] * prototypes)
        plan = plan / (plan.sum(dim=1, keepdim=True) * sizes)
    return plan


class Prototypes:
    """Directions in mask-feature space that each class takes: an average of image centroids.

    They start as random directions (seeded, so that all processes agree) and count for nothing
    until cells were assigned to them. The first centroid replaces the random direction, because at
    momentum .999 a random start would outlast a short schedule: with n centroids seen and k new
    ones the old direction keeps min(momentum^k, n / (n + k)), a plain mean at first.
    """

    def __init__(
        self, classes: int, channels: int, per_class: int = 10, momentum: float = 0.999
    ) -> None:
        """Draw the random start.

        Args:
            classes: C.
            channels: D.
            per_class: L.
            momentum: What a direction keeps when one image's centroid joins, once the plain mean
                would keep more.
        """
        generator = torch.Generator().manual_seed(0)
        random = torch.randn((classes, per_class, channels), generator=generator)
        self.vectors = F.normalize(random, dim=2)
        """Unit length over the last axis, float32, (C, L, D). The released code normalises the
        axis of the prototypes instead, after which a product is no cosine."""
        self.seen = torch.zeros((classes, per_class))
        """Image centroids that each has averaged, (C, L)."""
        self.momentum = momentum

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        self.vectors, self.seen = self.vectors.to(device), self.seen.to(device)

    def cosines(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return the cosine of every cell of one image with the prototypes of some classes.

        Args:
            features: Unit length per cell, (D, h, w).
            classes: (g,).

        Returns:
            (g, L, h, w).
        """
        chosen = self.vectors[classes]  # (g, L, D)
        products = chosen.flatten(0, 1) @ features.flatten(1)
        return products.view(*chosen.shape[:2], *features.shape[1:])

    def semantic_map(self, cosines: Tensor, classes: Tensor, temperature: float) -> Tensor:
        """Return how probably each cell is of a class: sigmoid(max over l of cosine / temperature).

        Source: SIM (arXiv:2303.08578), the semantic probability map.

        Args:
            cosines: (G, L, h, w).
            classes: Class of each, (G,).
            temperature: The smaller, the harder the map; 1 as released, .1 in the paper.

        Returns:
            In [0, 1], (G, h, w); 0 for a class that has no prototype yet.
        """
        unknown = self.seen[classes] == 0  # (G, L)
        known = cosines.masked_fill(unknown[:, :, None, None], -torch.inf)
        return (known.amax(dim=1) / temperature).sigmoid()

    def update(
        self, features: Tensor, cosines: Tensor, inside: Tensor, images: Tensor, classes: Tensor
    ) -> None:
        """Move the prototypes towards the cells that are assigned to them.

        Every image gives each prototype of a class at most one centroid, over the cells that
        choose it in the Sinkhorn plan (arg max; the release samples by Gumbel softmax). Processes
        share their centroids, so that all keep the same prototypes; all must call this together.

        Args:
            features: Unit length per cell, (B, D, h, w).
            cosines: (G, L, h, w).
            inside: Cells of the class in the image, bool, (G, h, w).
            images: Image of each pair, (G,).
            classes: Class of each pair, (G,).
        """
        count, length, channels = self.vectors.shape
        sums = torch.zeros_like(self.vectors).view(-1, channels)  # (C L, D)
        centroids = torch.zeros_like(self.seen).view(-1)  # (C L,)
        pair, y, x = inside.nonzero(as_tuple=True)
        if len(pair):
            pairs = len(images)
            plan = sinkhorn(cosines[pair, :, y, x], pair, pairs)
            slot = pair * length + plan.argmax(dim=1)
            total = features.new_zeros((pairs * length, channels))
            total.index_add_(0, slot, features[images[pair], :, y, x])
            cells = torch.bincount(slot, minlength=pairs * length)
            steps = torch.arange(length, device=slot.device)
            owner = (classes[:, None] * length + steps).view(-1)  # (G L,)
            sums.index_add_(0, owner, total / cells.clamp(min=1)[:, None])
            centroids.index_add_(0, owner, (cells > 0).to(centroids.dtype))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(centroids)
        self.average(
            sums.view(count, length, channels) / centroids.clamp(min=1).view(count, length, 1),
            centroids.view(count, length),
        )

    def average(self, centroids: Tensor, images: Tensor) -> None:
        """Let mean image centroids join: p <- normalised (keep p + (1 - keep) centroid).

        Args:
            centroids: Mean over the images, (C, L, D).
            images: Number of images in each mean, (C, L); where 0, the prototype stays.
        """
        plain = self.seen / (self.seen + images).clamp(min=1)
        keep = torch.minimum(self.momentum**images, plain)[:, :, None]
        moved = F.normalize(keep * self.vectors + (1 - keep) * centroids, dim=2)
        self.vectors = torch.where(images[:, :, None] > 0, moved, self.vectors)
        self.seen = self.seen + images

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as tensors."""
        return {"vectors": self.vectors, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state.

        Raises:
            ValueError: if it belongs to other classes, channels or numbers of prototypes.
        """
        for name, own in self.state_dict().items():
            if state[name].shape != own.shape:
                raise ValueError(
                    f"prototypes: {name} is {tuple(state[name].shape)}, "
                    f"this run needs {tuple(own.shape)}"
                )
        device = self.vectors.device
        self.vectors, self.seen = state["vectors"].to(device), state["seen"].to(device)
