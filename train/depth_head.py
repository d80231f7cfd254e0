"""Depth-guided mask head: an auxiliary branch that training adds to the student.

B images, K chosen instances, c channels of the box tower, h x w cells of the stride-8 grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from boxseg.config import STRIDES, ModelConfig
from boxseg.mask_head import upsample_to_stride_4
from boxseg.student import DensePredictions

Form = Literal["contract", "paper"]

SMALLEST_FACTOR = 0.05
"""Factor of a mask logit where the depth probability is 0; it keeps the logit's sign and part of
its gradient."""

_WINDOW = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
"""Row and column offset of the cells that a 3x3 convolution reads."""


@dataclass(frozen=True)
class GuidedMasks:
    """Masks of chosen instances at the stride-4 centres, each (K, 2h, 2w)."""

    plain: Tensor
    """Z: the logits that ship."""
    logits: Tensor
    """What the terms train on: Z under the guidance of depth."""
    depth: Tensor
    """D: how near each instance says that a cell is, in (0, 1)."""


class DepthHead(nn.Module):
    """Multiplies mask logits by a predicted depth (Pseudo-Depth, arXiv:2403.01214, DG-MaskHead).

    A controller of its own writes one more dynamic layer per instance, M_d, which reads the same
    hidden layer F1 as the mask's last layer: d = sigmoid(M_d(F1)) beside z. Nothing of it is part
    of the student, which ships without it.

    **Why it can be stripped exactly.** Z and D are the bilinear surfaces of z and d. The terms see
    Z * D' with D' = 0.05 + 0.95 D, where both are sampled first and multiplied afterwards. D' is
    positive wherever it is sampled, so Z * D' and Z have one sign at every point, on the grid and
    at the pixels of a frame: a mask cut at probability one half is the same with and without the
    branch. What stripping changes is the probability itself: validation, deployment, mask score
    and teacher use sigmoid(Z).

    The form `paper` multiplies on the stride-8 grid and interpolates the product, without the floor
    of 0.05. Interpolation then mixes factors and a cell with d = 0 has no gradient, so there the
    mask without the branch is not quite the mask with it; in the paper the layer stays at test.
    """

    def __init__(self, config: ModelConfig, form: Form = "contract") -> None:
        """Build the controller.

        Args:
            config: The student's.
            form: "contract" or "paper"; see the class.

        Raises:
            ValueError: if the student's mask head has no hidden layer.
        """
        super().__init__()
        if config.mask_head_layers < 2:
            raise ValueError(
                "terms.depth needs a hidden layer in the mask head: model.mask_head_layers must "
                f"be at least 2, got {config.mask_head_layers}"
            )
        self.form = form
        width = config.tower_channels if config.tower_depth else config.fpn_channels
        self.controller = nn.Conv2d(width, config.mask_head_channels + 1, 3, padding=1)
        nn.init.normal_(self.controller.weight, std=0.01)
        assert self.controller.bias is not None
        nn.init.zeros_(self.controller.bias)

    def forward(
        self,
        predictions: DensePredictions,
        image_index: Tensor,
        location_index: Tensor,
        mask_logits: Tensor,
        hidden: Sequence[Tensor],
        share: float = 1.0,
    ) -> GuidedMasks:
        """Guide the masks of chosen predictions.

        Args:
            predictions: What the student returned.
            image_index: Image of each instance, ascending, (K,).
            location_index: Location of each instance, (K,).
            mask_logits: z, (K, h, w), of `Student.mask_layers_at`.
            hidden: F1 of the instances of each image, (k, width, h, w), of the same.
            share: How much of the guidance applies, in [0, 1]: each factor f becomes
                1 - share * (1 - f), which is positive as well.
        """
        parameters = self._parameters_at(predictions, image_index, location_index)  # (K, width + 1)
        chunks = parameters.split([len(part) for part in hidden])
        responses = [
            torch.baddbmm(chunk[:, -1:, None], chunk[:, None, :-1], part.flatten(2))  # (k, 1, hw)
            for chunk, part in zip(chunks, hidden, strict=True)
        ]
        depth = torch.cat(responses).sigmoid().view_as(mask_logits)
        surface = upsample_to_stride_4(depth)
        plain = upsample_to_stride_4(mask_logits)
        if self.form == "paper":
            guided = mask_logits * (1 - share * (1 - depth))
            return GuidedMasks(plain, upsample_to_stride_4(guided), surface)
        factor = SMALLEST_FACTOR + (1 - SMALLEST_FACTOR) * surface
        return GuidedMasks(plain, plain * (1 - share * (1 - factor)), surface)

    def _parameters_at(
        self, predictions: DensePredictions, image_index: Tensor, location_index: Tensor
    ) -> Tensor:
        """Run the controller at the chosen locations only: weights, then the bias, (K, width + 1).

        The same numbers as the convolution over whole levels, which would compute a hundred times
        as many locations.
        """
        locations = predictions.locations[location_index]
        levels = predictions.levels[location_index]
        patches = _patches(predictions.box_features, image_index, locations, levels)
        kernel = self.controller.weight.flatten(2)  # (width + 1, c, 9)
        assert self.controller.bias is not None
        return torch.einsum("knc,ocn->ko", patches, kernel) + self.controller.bias


def _patches(
    features: Sequence[Tensor], image_index: Tensor, locations: Tensor, levels: Tensor
) -> Tensor:
    """Gather the 3 x 3 cells around each location in its own level, 0 beyond the border.

    Args:
        features: One (B, c, rows, columns) per level.
        image_index: (K,).
        locations: x, y in input pixels, (K, 2).
        levels: (K,).

    Returns:
        Float32, cells in row-major order, (K, 9, c).
    """
    offsets = torch.tensor(_WINDOW, device=levels.device)
    total = features[0].new_zeros((), dtype=torch.float32)
    for level, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
        rows, columns = feature.shape[-2:]
        x, y = torch.div(locations, stride, rounding_mode="floor").long().unbind(dim=1)
        y, x = y[:, None] + offsets[:, 0], x[:, None] + offsets[:, 1]  # (K, 9)
        inside = (levels == level)[:, None] & (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
        cells = feature[image_index[:, None], :, y.clamp(0, rows - 1), x.clamp(0, columns - 1)]
        total = total + torch.where(inside[:, :, None], cells.float(), 0.0)  # (K, 9, c)
    return total
