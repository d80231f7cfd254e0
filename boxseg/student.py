"""The deployed network: images to dense predictions.

B images, N instances, C classes, L locations of all levels (P3..P7, row-major), P parameters,
M mask channels, h x w cells of the stride-8 grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from boxseg.backbone import Backbone
from boxseg.boxes import distances_to_boxes
from boxseg.config import SIZE_DIVISOR, STRIDES, ModelConfig
from boxseg.fcos_head import FCOSHead
from boxseg.mask_head import COORDINATE_SCALES, MaskBranch, dynamic_mask_head, dynamic_mask_layers

PIXEL_MEAN = (123.675, 116.28, 103.53)
"""ImageNet mean, RGB, of bytes."""

PIXEL_STD = (58.395, 57.12, 57.375)
"""ImageNet standard deviation, RGB, of bytes."""


@dataclass(frozen=True)
class DensePredictions:
    """What the student says at every location."""

    class_logits: Tensor
    """(B, L, C)."""
    quality_logits: Tensor
    """(B, L)."""
    distances: Tensor
    """Distances to the four sides in strides of the level, at least 0, (B, L, 4)."""
    boxes: Tensor
    """x1, y1, x2, y2 in input pixels, not clipped, (B, L, 4)."""
    parameters: Tensor
    """Parameters of the dynamic mask head, (B, P, L)."""
    mask_features: Tensor
    """(B, M, h, w)."""
    locations: Tensor
    """x, y in input pixels, (L, 2)."""
    levels: Tensor
    """0 for P3 to 4 for P7, (L,)."""
    box_features: tuple[Tensor, ...]
    """What box, quality and controller read: output of the box tower at each level, in the
    precision of the network, (B, tower_channels, rows, columns)."""


class Student(nn.Module):
    """CondInst (arXiv:2003.05664) on torchvision backbones, every parameter used on every frame."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: ModelConfig, backbone_weights: str | None = None) -> None:
        """Build the network.

        Args:
            config: Its shape.
            backbone_weights: See `Backbone`; only training's start needs them.
        """
        super().__init__()
        self.config = config
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1))
        self.backbone = Backbone(config.backbone, config.fpn_channels, backbone_weights)
        self.head = FCOSHead(config)
        self.mask_branch = MaskBranch(config)

    def forward(self, images: Tensor) -> DensePredictions:
        """Predict at every location.

        Args:
            images: RGB in 0..255, bytes or float, (B, 3, H, W); H and W multiples of 32.

        Raises:
            ValueError: if a side is not a multiple of 32.
        """
        height, width = images.shape[-2:]
        if height % SIZE_DIVISOR or width % SIZE_DIVISOR:
            raise ValueError(
                f"image sides must be multiples of {SIZE_DIVISOR}, got {height} {width}"
            )
        pyramid = self.backbone((images.float() - self.pixel_mean) / self.pixel_std)
        levels = [self.head(feature, level) for level, feature in enumerate(pyramid)]
        locations, level_index = grid_locations(
            [(int(level.shape[-2]), int(level.shape[-1])) for level in pyramid], images.device
        )
        class_logits, distances, quality, parameters = (
            torch.cat([level[part].flatten(2) for level in levels], dim=2) for part in range(4)
        )
        distances = distances.transpose(1, 2).float()  # (B, L, 4)
        strides = torch.tensor(STRIDES, device=images.device, dtype=torch.float32)
        return DensePredictions(
            class_logits=class_logits.transpose(1, 2),
            quality_logits=quality[:, 0],
            distances=distances,
            boxes=distances_to_boxes(locations, distances * strides[level_index][:, None]),
            parameters=parameters,
            mask_features=self.mask_branch(pyramid),
            locations=locations,
            levels=level_index,
            box_features=tuple(level[4] for level in levels),
        )

    def masks_at(
        self, predictions: DensePredictions, image_index: Tensor, location_index: Tensor
    ) -> Tensor:
        """Return the mask logits of chosen predictions.

        Args:
            predictions: What `forward` returned.
            image_index: Image of each instance, in 0..B-1, ascending, (N,).
            location_index: Location of each instance, in 0..L-1, (N,).

        Returns:
            Logits on the stride-8 grid, float32, (N, h, w).
        """
        widths = self.config.mask_head_widths
        chunks = _instances_by_image(predictions, image_index, location_index)
        return torch.cat([dynamic_mask_head(*chunk, widths) for chunk in chunks])

    def mask_layers_at(
        self, predictions: DensePredictions, image_index: Tensor, location_index: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the mask logits of chosen predictions and the hidden layer they come from.

        Args:
            predictions: What `forward` returned.
            image_index: Image of each instance, in 0..B-1, ascending, (N,).
            location_index: Location of each instance, in 0..L-1, (N,).

        Returns:
            Logits as `masks_at` returns them, (N, h, w), and the activations of the last hidden
            layer of the instances of each image, float32, one (n, width, h, w) per image.
        """
        widths = self.config.mask_head_widths
        chunks = _instances_by_image(predictions, image_index, location_index)
        layers = [dynamic_mask_layers(*chunk, widths) for chunk in chunks]
        return torch.cat([logits for logits, _ in layers]), [hidden for _, hidden in layers]


def _instances_by_image(
    predictions: DensePredictions, image_index: Tensor, location_index: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield mask features, parameters, locations and scales of each image's instances."""
    parameters = predictions.parameters[image_index, :, location_index]  # (N, P)
    locations = predictions.locations[location_index]
    scales = parameters.new_tensor(COORDINATE_SCALES, dtype=torch.float32)
    scales = scales[predictions.levels[location_index]]
    counts = torch.bincount(image_index, minlength=len(predictions.mask_features)).tolist()
    yield from zip(
        predictions.mask_features,
        parameters.split(counts),
        locations.split(counts),
        scales.split(counts),
        strict=True,
    )


def grid_locations(
    sizes: list[tuple[int, int]], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return x, y of the cell centres of all levels, (L, 2), and the level of each, (L,).

    Args:
        sizes: Rows and columns of P3..P7.
        device: Where to put them.
    """
    locations, levels = [], []
    for level, ((rows, columns), stride) in enumerate(zip(sizes, STRIDES, strict=True)):
        x = torch.arange(columns, device=device) * stride + stride // 2
        y = torch.arange(rows, device=device) * stride + stride // 2
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        locations.append(torch.stack([grid_x, grid_y], dim=-1).view(-1, 2))
        levels.append(torch.full((rows * columns,), level, device=device))
    return torch.cat(locations).float(), torch.cat(levels)
