"""Image to feature pyramid: a torchvision backbone and an FPN.

B images, H x W pixels; C3, C4, C5 have strides 8, 16, 32 and P3..P7 strides 8..128.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from boxseg.config import BackboneName
from boxseg.errors import FileMismatchError

_MOBILENET_CUTS = {"mobilenet_v2": (2, 4, 7, 14, 18), "mobilenet_v3_large": (2, 4, 7, 13, 16)}
"""Ends of the five stages in `features`; the classifier's last convolution is left out."""

_CHANNELS = {
    "resnet18": (128, 256, 512),
    "resnet34": (128, 256, 512),
    "resnet50": (512, 1024, 2048),
    "resnet101": (512, 1024, 2048),
    "mobilenet_v2": (32, 96, 320),
    "mobilenet_v3_large": (40, 112, 160),
}
"""Channels of C3, C4, C5."""


class Backbone(nn.Module):
    """Five stages of strides 2 (or 4), 4, 8, 16 and 32; the last three feed the pyramid."""

    def __init__(self, name: BackboneName, fpn_channels: int, weights: str | None = None) -> None:
        """Build the backbone.

        Args:
            name: One of torchvision's classification networks.
            fpn_channels: Channels of every pyramid level.
            weights: Weight name of torchvision ("IMAGENET1K_V2"), a file that holds the
                network's state_dict, or None for random initialisation.

        Raises:
            FileMismatchError: if the file is not a state_dict of this network.
            ValueError: if `weights` is neither a file nor one of torchvision's names.
        """
        super().__init__()
        network = _classifier(name, weights)
        self.stages = nn.ModuleList(_stages(name, network))
        self.fpn = FeaturePyramidNetwork(
            list(_CHANNELS[name]), fpn_channels, LastLevelP6P7(fpn_channels, fpn_channels)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return P3..P7, each (B, fpn_channels, ceil(H / stride), ceil(W / stride)).

        Args:
            images: Normalised RGB, (B, 3, H, W); H and W multiples of 32.
        """
        features: dict[str, Tensor] = {}
        for index, stage in enumerate(self.stages):
            images = stage(images)
            if index >= 2:
                features[f"c{index + 1}"] = images
        return list(self.fpn(features).values())


def _classifier(name: BackboneName, weights: str | None) -> nn.Module:
    network: nn.Module
    if weights is None:
        network = torchvision.models.get_model(name, weights=None)
        return network
    path = Path(os.path.expanduser(weights))
    if not path.is_file():
        known = [entry.name for entry in torchvision.models.get_model_weights(name)]
        if weights not in known:
            raise ValueError(
                f"model.weights must be a file or one of {', '.join(known)} for {name}, "
                f"got {weights!r}"
            )
        network = torchvision.models.get_model(name, weights=weights)
        return network
    network = torchvision.models.get_model(name, weights=None)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # unpickling foreign bytes raises nearly everything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileMismatchError(
            f"{path} is not a state_dict of torchvision's {name}: {reason}"
        ) from error
    return network


def _stages(name: BackboneName, network: nn.Module) -> list[nn.Module]:
    if name in _MOBILENET_CUTS:
        blocks = list(network.get_submodule("features").children())
        ends = _MOBILENET_CUTS[name]
        starts = (0, *ends[:-1])
        return [nn.Sequential(*blocks[start:end]) for start, end in zip(starts, ends, strict=True)]
    stem = [network.get_submodule(part) for part in ("conv1", "bn1", "relu", "maxpool")]
    layers = [network.get_submodule(f"layer{number}") for number in range(1, 5)]
    return [nn.Sequential(*stem), *layers]
