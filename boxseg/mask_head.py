"""Mask branch and dynamic mask head of CondInst (arXiv:2003.05664).

B images, N instances, M mask channels, P parameters, h x w cells of the stride-8 grid; (...) stands
for no axis or for one axis of images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxseg.config import ModelConfig

MASK_STRIDE = 8
"""Pixels per cell of the mask features and of the mask logits."""

COORDINATE_SCALES = (64.0, 128.0, 256.0, 512.0, 1024.0)
"""Pixels by which relative coordinates are divided at P3..P7."""


class MaskBranch(nn.Module):
    """Sum of P3, P4 and P5 at stride 8, then convolutions: the features all instances share.

    P4 and P5 are upsampled with half-pixel centres, where the reference aligns corners.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build the branch."""
        super().__init__()
        width = config.mask_branch_channels
        self.refine = nn.ModuleList(_convolution(config.fpn_channels, width) for _ in range(3))
        self.tower = nn.Sequential(
            *(_convolution(width, width) for _ in range(config.mask_branch_depth))
        )
        self.project = nn.Conv2d(width, config.mask_channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Return mask features (B, M, h, w) from P3, P4, P5 (more levels are not read)."""
        total: Tensor = self.refine[0](pyramid[0])
        for refine, feature in zip(list(self.refine)[1:], pyramid[1:3], strict=True):
            total = total + F.interpolate(
                refine(feature), size=total.shape[-2:], mode="bilinear", align_corners=False
            )
        features: Tensor = self.project(self.tower(total))
        return features


def dynamic_mask_head(
    features: Tensor,
    parameters: Tensor,
    locations: Tensor,
    scales: Tensor,
    widths: Sequence[int],
) -> Tensor:
    """Run the instances' own small networks on the mask features of their image.

    The first layer is one matrix product for all instances of an image: relative coordinates are an
    affine function of the cell, so they fold into its weights. Float32 throughout, because folded
    coordinates of several hundred pixels need more than half precision.

    Args:
        features: Mask features, (..., M, h, w).
        parameters: Weights of every layer (output x input), then biases, (..., N, P). Inputs of
            the first layer are relative x, relative y, then the features.
        locations: Where each instance was predicted, x, y in input pixels, (..., N, 2).
        scales: Pixels that count as one unit of relative coordinates, (..., N).
        widths: Output channels of each layer; the last is 1.

    Returns:
        Mask logits, (..., N, h, w).
    """
    return dynamic_mask_layers(features, parameters, locations, scales, widths)[0]


def dynamic_mask_layers(
    features: Tensor,
    parameters: Tensor,
    locations: Tensor,
    scales: Tensor,
    widths: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Run `dynamic_mask_head` and return its last hidden layer as well.

    Returns:
        Mask logits, (..., N, h, w), and what the last layer read: the activations of the last
        hidden layer, at least 0, (..., N, widths[-2], h, w); no channel for a head of one layer.
    """
    with torch.autocast(features.device.type, enabled=False):
        return _dynamic_mask_layers(
            features.float(), parameters.float(), locations.float(), scales.float(), widths
        )


def _dynamic_mask_layers(
    features: Tensor, parameters: Tensor, locations: Tensor, scales: Tensor, widths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    *images, channels, height, width = features.shape
    count = parameters.shape[-2]
    weights, biases = split_parameters(parameters, channels + 2, widths)

    # relative x = (location - cell) / scale, so its weight acts on -cell / 64 with the
    # factor 64 / scale, and location / scale joins the bias, which acts on a plane of ones.
    unit = COORDINATE_SCALES[0]
    cell_x = (torch.arange(width, device=features.device) + 0.5) * (MASK_STRIDE / unit)
    cell_y = (torch.arange(height, device=features.device) + 0.5) * (MASK_STRIDE / unit)
    inputs = torch.cat(
        [
            -cell_x.expand(*images, 1, height, width),
            -cell_y[:, None].expand(*images, 1, height, width),
            features,
            torch.ones(1, device=features.device).expand(*images, 1, height, width),
        ],
        dim=-3,
    ).flatten(-2)  # (..., M + 3, hw)
    first = weights[0]  # (..., N, w1, M + 2)
    coordinates = first[..., :2]  # (..., N, w1, 2)
    shift = (coordinates * (locations / scales[..., None])[..., None, :]).sum(dim=-1)
    folded = torch.cat(
        [
            coordinates * (unit / scales)[..., None, None],
            first[..., 2:],
            (biases[0] + shift)[..., None],
        ],
        dim=-1,
    )  # (..., N, w1, M + 3)
    output = folded.flatten(-3, -2) @ inputs  # (..., N w1, hw)
    output = output.unflatten(-2, (count, widths[0])).flatten(0, -3)  # all images' instances
    hidden = output[:, :0]
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        hidden = F.relu(output)
        output = torch.baddbmm(bias[..., None].flatten(0, -3), weight.flatten(0, -3), hidden)
    return (
        output.view(*images, count, height, width),
        hidden.view(*images, count, hidden.shape[1], height, width),
    )


def split_parameters(
    parameters: Tensor, inputs: int, widths: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Cut controller outputs into layers.

    Args:
        parameters: Weights of all layers, then biases of all layers, (..., P).
        inputs: Input channels of the first layer.
        widths: Output channels of each layer.

    Returns:
        Weights, each (..., output, input), and biases, each (..., output).
    """
    shapes = list(zip(widths, (inputs, *widths[:-1]), strict=True))
    sizes = [out * into for out, into in shapes] + list(widths)
    if parameters.shape[-1] != sum(sizes):
        raise ValueError(f"got {parameters.shape[-1]} parameters per instance, need {sum(sizes)}")
    parts = parameters.split(sizes, dim=-1)
    weights = [
        part.unflatten(-1, (out, into))
        for part, (out, into) in zip(parts[: len(widths)], shapes, strict=True)
    ]
    return weights, list(parts[len(widths) :])


def upsample_to_stride_4(logits: Tensor) -> Tensor:
    """Sample the logit surface at stride-4 cell centres: (N, h, w) -> (N, 2h, 2w)."""
    return F.interpolate(logits[None], scale_factor=2, mode="bilinear", align_corners=False)[0]


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
